"""The request or connection that `lb explain` is asked about, made from a URL as a client would."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from lb.model.address import ANY_ADDRESS
from lb.model.address import is_ip_address as is_address
from lb.model.listener import Transport

_URL = re.compile(
    r"(?:(?P<scheme>https?|wss?)://|(?![^/?#]*://))(?:[^/?#@]*@)?(?P<authority>(?:\[[^\]/?#]*\]|[^:/?#\[]+)(?::(?P<port>[0-9]*))?)"
    r"(?P<target>(?:[/?][^#]*)?)(?:#.*)?"
)
"""RFC 3986 3, with the schemes that lb serves. The fragment is for the client itself."""

_WEBSOCKET = {"ws": "http", "wss": "https"}
"""RFC 6455 3: a websocket begins as a request with this scheme."""
_SCHEMES = ("http", "https", *_WEBSOCKET, "tcp", "udp", "tls")
_UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))

_CARRIED = re.compile(r"(?P<scheme>tcp|udp)://(?P<authority>(?:\[[^\]/?#]*\]|[^:/?#\[@]+):(?P<port>[0-9]+))/?")
_WITHOUT_PORT = re.compile(r"(?P<scheme>tcp|udp)://(?P<authority>\[[^\]/?#]*\]|[^:/?#\[@]+)/?")
_TLS = re.compile(r"(?P<scheme>tls)://(?P<authority>(?:\[[^\]/?#]*\]|[^:/?#\[@]+)(?::(?P<port>[0-9]+))?)/?")

_BROWSER = ("h2", "http/1.1")
"""What clients of HTTP offer by ALPN, nearly all of them."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


class Ask(msgspec.Struct, frozen=True):
    """The request in question, as the client sends it."""

    host: str
    """Host header, with or without port."""
    target: str = "/"
    """Path and query."""
    port: int = 80
    """The port that the client connects to."""
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    client: str = ""
    """IP address of the client; empty when it does not matter."""
    scheme: str = ""
    """http or https; empty: what the listener speaks. tcp, tls: a connection, of which nobody says what it carries;
    udp: a datagram. There target and headers mean nothing."""
    server_name: str = ""
    """Whom the client names in the TLS handshake; an address is no name."""
    alpn: tuple[str, ...] = ()
    """What it offers there (ALPN)."""
    address: str = ""
    """IP address that the client connects to; empty when it is told by a name only, which nobody looks up."""

    @property
    def transport(self) -> Transport:
        return "udp" if self.scheme == "udp" else "tcp"


def make_ask(
    url: str, method: str = "GET", lines: Sequence[str] = (), client: str = "", alpn: Sequence[str] = ()
) -> Ask:
    """What a client sends for a URL such as `http://shop.example.com:8080/cart`, with header `lines` (`Name: value`).

    A `Host:` line replaces the URL's host, as in curl. `tcp://192.0.2.1:5432` and `tls://db.example.com:5432` are
    connections, `udp://192.0.2.1:53` is a datagram. ValueError with a text for people.
    """
    if carried := _CARRIED.fullmatch(url) or _TLS.fullmatch(url):
        return _make_carried(carried, method, lines, client, alpn)
    if portless := _WITHOUT_PORT.fullmatch(url):
        raise ValueError(f"{url!r}: the port is missing, as in {portless['scheme']}://{portless['authority']}:5432")
    parts = _URL.fullmatch(url)
    if parts is None or int(parts["port"] or 0) > 65_535:
        scheme, separator, _ = url.partition("://")
        if separator and _SCHEME.fullmatch(scheme) and scheme not in _SCHEMES:
            raise ValueError(f"lb serves {', '.join(_SCHEMES)}, not {scheme}")
        examples = "http://shop.example.com/cart, tls://db.example.com:5432, tcp://192.0.2.1:5432 or udp://192.0.2.1:53"
        raise ValueError(f"{url!r} is not like {examples}")
    headers = [_split_line(line) for line in lines]
    hosts = [value for name, value in headers if name.lower() == "host"]
    if client:
        ip_address(client)
    if parts["scheme"] in _WEBSOCKET:
        headers += [line for line in _UPGRADE if line[0].lower() not in {name.lower() for name, _ in headers}]
    scheme = _WEBSOCKET.get(parts["scheme"], parts["scheme"] or "")
    target = parts["target"]
    return Ask(
        host=hosts[0] if hosts else parts["authority"],
        target=target if target.startswith("/") else f"/{target}",
        port=int(parts["port"] or 0) or (443 if scheme == "https" else 80),
        method=method,
        headers=tuple(headers),
        client=client,
        scheme=scheme,
        server_name=server_name_of(parts["authority"]),
        alpn=tuple(alpn) or (_BROWSER if scheme == "https" else ()),
        address=_address(parts["authority"]),
    )


def _address(authority: str) -> str:
    """Of a URL's host; empty when that is a name."""
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    return str(ip_address(host)) if is_address(host) and host not in ANY_ADDRESS else ""


def server_name_of(authority: str) -> str:
    """What clients say of a URL's host in the handshake: no port, no address, no dot at the end (RFC 6066 3)."""
    host = authority.rpartition("]")[0] or authority.partition(":")[0]
    return "" if host.startswith("[") or is_address(host) else host.lower().removesuffix(".")


def _make_carried(parts: re.Match[str], method: str, lines: Sequence[str], client: str, alpn: Sequence[str]) -> Ask:
    scheme, authority, port = parts["scheme"], parts["authority"], int(parts["port"] or 443)
    if port > 65_535:
        raise ValueError(f"{port} is no port")
    if lines or method != "GET":
        what = "UDP datagram" if scheme == "udp" else f"{scheme.upper()} connection"
        raise ValueError(f"a {what} has neither method nor headers")
    if client:
        ip_address(client)
    name = server_name_of(authority) if scheme == "tls" else ""
    return Ask(authority, "", port, scheme.upper(), (), client, scheme, name, tuple(alpn), _address(authority))


def _split_line(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"{line!r} is not like `Name: value`")
    return name.strip(), value.strip(" \t")
