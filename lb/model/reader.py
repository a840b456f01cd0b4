"""Native file -> model. Every mistake is a Problem that costs only the thing it stands in; all else is loaded.

What a mistake costs: a wrong option costs the option (its default, of the settings or built in, stands in), a wrong
condition or action costs the route (a route that lost a condition would serve too much), a wrong address costs the
endpoint or the listener (without its address it would listen everywhere), a wrong word in a health check the whole
check (half understood, it might find good endpoints bad), an entry of a list of networks itself. An unknown key costs
nothing, unless one that holds something back (NARROWING_KEYS) is probably meant: then it costs the listener, route or
upstream. That is so when there is nothing to go back to: a part that has served keeps what it was (parts.py).
The `settings:` section belongs to lb/settings.py and is passed over.

An element without `origin:` comes from its place in the file; an endpoint without one from where its upstream says.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from lb.certs.pem import (
    CertificateError,
    only_certificates,
    only_key,
    read_bundle,
    read_certificates,
    read_chain,
    read_pair,
)
from lb.model.address import UNIX_PREFIX, address_mistake, is_ip_address, is_network
from lb.model.config import Config
from lb.model.datagram import Datagram, DatagramOptions
from lb.model.defaults import BUILT_IN_DEFAULTS, Defaults
from lb.model.form import (
    BUNDLES,
    CERTIFICATE_KEYS,
    ENDPOINT_KEYS,
    HIDDEN,
    HOST_KEYS,
    LISTENER_KEYS,
    NAME_ROUTE_KEYS,
    NARROWING_KEYS,
    PATH_KINDS,
    ROUTE_KEYS,
    STREAM_KEYS,
    TLS_KEYS,
    TOP_KEYS,
    UPSTREAM_KEYS,
    default_name_of,
    default_route_name,
)
from lb.model.health import HealthCheck, is_used, mistakes, read_off
from lb.model.listener import Listener, ListenerProtocol
from lb.model.normalize import Rejected, normalize_host, normalize_rule_path
from lb.model.parts import Before, PartReader, Reading, tell_sections
from lb.model.route import (
    Forward,
    HeaderMatch,
    Match,
    PathMatch,
    QueryMatch,
    Respond,
    Route,
    RouteOptions,
    VirtualHost,
    WeightedUpstream,
)
from lb.model.stream import OF_HTTP, Mode, NameRoute, Stream, StreamOptions, StreamRoute
from lb.model.tls import Certificate, ClientCertificates, ListenerTls, TlsHost, TlsPolicy, UpstreamTls
from lb.model.upstream import (
    Balance,
    Endpoint,
    Protocol,
    ProxyProtocol,
    ProxyValue,
    Upstream,
    UpstreamOptions,
    split_key,
    spoken_for,
)
from lb.model.values import MistakeError, key_of, nearest, option_keys, suggest
from lb.problems import Origin, Problem, Problems

CarriedOptionsT = TypeVar("CarriedOptionsT", StreamOptions, DatagramOptions)
ConditionT = TypeVar("ConditionT", HeaderMatch, QueryMatch)


def from_content(
    content: Mapping[str, Any],
    origin: Origin,
    lines: Mapping[str, int] | None = None,
    is_elsewhere: Callable[[str], bool] | None = None,
    defaults: Defaults = BUILT_IN_DEFAULTS,
) -> tuple[Config, list[Problem]]:
    """The Config of a decoded native file that nothing came before, and what is wrong with it (LB5003, LB5004)."""
    reading = read_content(content, origin, lines or {}, is_elsewhere or _is_nowhere, Before(), defaults)
    return reading.config, list(reading.problems)


def read_content(
    content: Mapping[str, Any],
    origin: Origin,
    lines: Mapping[str, int],
    is_elsewhere: Callable[[str], bool],
    before: Before,
    defaults: Defaults = BUILT_IN_DEFAULTS,
) -> Reading:
    """What a decoded native file says. Its parts that have mistakes stay as they were `before`.

    `origin` is the file's own; `lines` maps paths inside the document (`upstreams.web.endpoints[0]`) to lines.
    `is_elsewhere` tells whether something else than this file defines an upstream of a name. What a part does not say
    is as in `defaults`.
    """
    reader = _Reader(origin, lines, is_elsewhere, before, defaults)
    config, problems = reader.read_config(content)
    return Reading(config, problems, frozenset(reader.flawed))


def places_of(content: Mapping[str, Any]) -> Iterator[str]:
    """The places of all parts of a decoded native file (`upstreams.web`), also of those that cannot be read."""
    for section in ("listeners", "hosts", "upstreams", "certificates"):
        parts = content.get(section)
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            if section != "hosts":
                yield f"{section}.{name}"
            elif isinstance(part, Mapping):
                yield from (f"hosts.{name}.{hostname}" for hostname in part)


def names_of_upstreams(content: Mapping[str, Any], before: Config | None = None) -> Collection[str]:
    """The names that a decoded native file gives to upstreams, also to those that cannot be read; and those that it
    gave `before`, where the section cannot be understood and they stay.
    """
    declared = content.get("upstreams")
    names = dict.fromkeys(declared) if isinstance(declared, Mapping) else {}
    is_clear = (declared is None or isinstance(declared, Mapping)) and set(content) <= set(TOP_KEYS)
    return names if before is None or is_clear else {**names, **dict.fromkeys(before.upstreams)}


_UNREAD = Certificate("", "", "")
"""Stands for a certificate whose files could not be used."""


class _Reader(PartReader):
    """Holds what the sections know of each other."""

    def __init__(
        self,
        origin: Origin,
        lines: Mapping[str, int],
        is_elsewhere: Callable[[str], bool],
        before: Before,
        defaults: Defaults,
    ) -> None:
        super().__init__(origin, lines, before)
        self._defaults = defaults
        self._upstream_names: Collection[str] = ()
        self._certificates: Mapping[str, Certificate] = {}
        self._named_certificates: Collection[str] = ()
        """Also those that cannot be used."""
        self._is_elsewhere = is_elsewhere
        self._route_names: set[str] = set()

    # -- The parts of the file

    def read_config(self, content: Mapping[str, Any]) -> tuple[Config, tuple[Problem, ...]]:
        self._report_unknown_keys("", content, TOP_KEYS)
        of_sections, self.problems = tuple(self.problems), Problems()
        self._removes_nothing = bool(of_sections)
        own, everywhere = self._before.own.config, self._before.everywhere
        certificates = self._read_certificates(content.get("certificates"))
        self._certificates = certificates
        upstreams = self._read_parts(
            "upstreams", content.get("upstreams"), self._read_upstream, own.upstreams, everywhere.upstreams
        )
        self._upstream_names = {**dict.fromkeys(names_of_upstreams(content)), **dict.fromkeys(upstreams)}
        hosts = self._read_host_sets(content.get("hosts"))
        listeners = self._read_parts(
            "listeners", content.get("listeners"), self._read_listener, own.listeners, everywhere.listeners
        )
        for listener in listeners.values():
            if listener.has_hosts and listener.stream is not None:
                self._report_hosts_without_tls(listener, hosts.get(listener.host_set, {}))
        config = self._complete(Config(listeners, hosts, upstreams, certificates), self._is_elsewhere)
        return config, (*tell_sections(of_sections, self._not_removed), *self.problems)

    def _report_hosts_without_tls(self, listener: Listener, hosts: Mapping[str, VirtualHost]) -> None:
        """On equal names `names` comes first, as passthrough does in ingress-nginx."""
        for name, routes in listener.stream.names.items() if listener.stream is not None else ():
            if name in hosts and not routes[-1].alpn:
                field = f"listeners.{listener.name}.stream.names.{name}"
                self.problems.add(
                    "LB5014",
                    self._place(field),
                    f"host {name} of host set {listener.host_set} gets no TLS connection of listener {listener.name}",
                    why="its server name is carried elsewhere, so only plain HTTP can reach the host",
                    fix="take one of the two away, or add `alpn` to the name's routes",
                    field=field,
                )

    def _read_certificates(self, value: object) -> dict[str, Certificate]:
        own, everywhere = self._before.own.config.certificates, self._before.everywhere.certificates
        read = self._read_parts("certificates", value, self._read_certificate, own, everywhere)
        declared = dict.fromkeys(value) if isinstance(value, Mapping) else {}
        self._named_certificates = {**declared, **dict.fromkeys(read)}
        return {name: one for name, one in read.items() if one is not _UNREAD}

    def _read_certificate(self, path: str, name: str, value: object) -> Certificate:
        content = self._mapping(path, value)
        self._report_unknown_keys(path, content, CERTIFICATE_KEYS)
        if "chain" not in content and content.keys() & {"cert_file", "directory"}:
            return _UNREAD  # whoever reads the files has said why, or has put what is in the directory beside it
        return self._make_certificate(path, name, content)

    def _make_certificate(self, path: str, name: str, content: Mapping[str, Any]) -> Certificate:
        chain = self._text(f"{path}.chain", content.get("chain"))
        key = self._text(f"{path}.key", content.get("key"))
        if key == HIDDEN:
            raise MistakeError(f"{path}.key", "the private key is hidden", "render with --show-secrets")
        try:
            read_pair(chain, key)
        except CertificateError as error:
            raise MistakeError(path, error.what, error.fix) from None
        origin = self._read_origin(path, content)
        return Certificate(name, only_certificates(chain), only_key(key), self._read_response(path, content), origin)

    def _read_response(self, path: str, content: Mapping[str, Any]) -> str:
        text = self._text(f"{path}.ocsp", content.get("ocsp", ""))
        try:
            base64.b64decode(text, validate=True)
        except binascii.Error:
            raise MistakeError(f"{path}.ocsp", "is not base64", "write the DER response with `base64 -w0`") from None
        return text

    def _read_listener_tls(self, path: str, value: object) -> ListenerTls:
        content = self._mapping(path, value)
        self._report_unknown_keys(path, content, TLS_KEYS)
        hosts = self._mapping(f"{path}.hosts", content.get("hosts") or {})
        said = {name: self._read_tls_host(f"{path}.hosts.{name}", name, host) for name, host in hosts.items()}
        return ListenerTls(
            {**self._hosts_of_certificates(f"{path}.certificates", content.get("certificates")), **said},
            self._choice(f"{path}.policy", content.get("policy", "intermediate"), get_args(TlsPolicy)),
            self._field_value(f"{path}.hsts", content.get("hsts", "")),
        )

    def _hosts_of_certificates(self, path: str, value: object) -> dict[str, TlsHost]:
        """The names that certificates are for, each with the newest certificate of each kind of key."""
        found: dict[str, dict[str, tuple[float, str]]] = {}
        for wanted in self._list(path, [value] if isinstance(value, str) else value):
            for certificate in self._certificates_called(path, self._text(path, wanted)):
                pair = read_chain(certificate.chain)
                for host in map(str.lower, pair.names):
                    if _is_hostname(host):
                        newest = found.setdefault(host, {})
                        mine = (pair.not_before.timestamp(), certificate.name)
                        newest[pair.kind] = max(newest.get(pair.kind, mine), mine)
        return {host: TlsHost(tuple(name for _, name in kinds.values())) for host, kinds in sorted(found.items())}

    def _certificates_called(self, path: str, wanted: str) -> list[Certificate]:
        """The certificate of a name, or all that were read from the directory of that name."""
        self._check_certificate_exists(path, wanted)
        return [one for name, one in self._certificates.items() if name == wanted or name.startswith(f"{wanted}/")]

    def _check_certificate_exists(self, path: str, name: str) -> None:
        """One that is there and cannot be used has its own problem."""
        if name not in self._certificates and name not in self._named_certificates:
            self._report(path, f"there is no certificate `{name}`", suggest(name, self._named_certificates))

    def _read_tls_host(self, path: str, name: str, value: object) -> TlsHost:
        self._check_hostname(path, name)
        if isinstance(value, str):
            value = [value]
        content, names_path = self._mapping_or_list(path, value, "certificates")
        self._report_unknown_keys(path, content, ("certificates", "clients"), NARROWING_KEYS)
        names = tuple(self._text(names_path, one) for one in self._list(names_path, content.get("certificates")))
        for one in names:
            self._check_certificate_exists(names_path, one)
        clients = self._mapping(f"{path}.clients", content.get("clients", {}))
        problems_before = len(self.problems)
        clients = self._without_files(f"{path}.clients", clients)
        asked = self._read_options(f"{path}.clients", clients, ClientCertificates(), only_options=True)
        if len(self.problems) > problems_before:
            # Half understood, it might let in whom it should not: the listener is not opened.
            raise MistakeError(f"{path}.clients", "what is asked of clients is not understood", "mend it")
        if asked.mode in ("optional", "required"):
            self._check_bundle(f"{path}.clients.ca", asked.ca)
        if asked.crl:
            self._check_lists(f"{path}.clients.crl", asked.crl)
        return TlsHost(tuple(one for one in names if one in self._certificates), asked)

    def _without_files(self, path: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without the names of files whose text has been put in their place. A file that could not be used must not
        read as none at all: without authorities of its own everybody's would do.
        """
        for key in BUNDLES:
            if f"{key}_file" in content and key not in content:
                raise MistakeError(f"{path}.{key}_file", "the file cannot be used, and nothing stands in for it")
        return {
            key: value for key, value in content.items() if key.removesuffix("_file") not in BUNDLES or key in BUNDLES
        }

    def _read_upstream_tls(self, path: str, value: object) -> UpstreamTls:
        content = self._without_files(path, self._mapping(path, value))
        tls = self._read_options(path, content, UpstreamTls(), only_options=True)
        for key, name in (("server_name", tls.server_name), *(("names", one) for one in tls.names)):
            if name and not _is_hostname(name.lower()) and not is_ip_address(name):
                raise MistakeError(
                    f"{path}.{key}", f"`{name}` is neither a name such as api.example.com nor an address"
                )
        if tls.ca:
            self._check_bundle(f"{path}.ca", tls.ca)
        if tls.crl:
            self._check_lists(f"{path}.crl", tls.crl)
        if tls.certificate and tls.certificate not in self._certificates:
            raise MistakeError(
                f"{path}.certificate",
                f"there is no certificate `{tls.certificate}` that can be used",
                suggest(tls.certificate, self._certificates),
            )
        if not tls.verify:
            self.problems.add(
                "LB5009",
                self._place(path),
                "the certificates of the endpoints are not verified",
                why="whoever answers at their addresses is taken for them, and sees all requests",
                fix="name the authority that has signed them (`ca` or `ca_file`), and take `verify: false` away",
                field=path,
            )
        elif not tls.server_name and not tls.names:
            raise MistakeError(path, "there is no name to verify", "add `server_name`, or `verify: false`")
        return tls

    def _check_bundle(self, path: str, bundle: str) -> None:
        try:
            if read_certificates(bundle):
                return
            raise CertificateError("there is no certificate in it", "put the PEM of the authorities there")
        except CertificateError as error:
            raise MistakeError(path, error.what, error.fix) from None

    def _check_lists(self, path: str, lists: str) -> None:
        try:
            if read_bundle(lists).lists:
                return
            raise CertificateError("there is no revocation list in it", "put PEM (X509 CRL) there")
        except CertificateError as error:
            raise MistakeError(path, error.what, error.fix) from None

    def _field_value(self, path: str, value: object) -> str:
        text = self._text(path, value)
        if any(not " " <= character <= "~" for character in text):
            raise MistakeError(path, "holds characters that no header field may have")
        return text

    def _read_listener(self, path: str, name: str, value: object) -> Listener:
        content = self._mapping(path, value)
        self._report_unknown_keys(path, content, LISTENER_KEYS, NARROWING_KEYS)
        address = self._text(f"{path}.address", content.get("address", ""))
        if address:
            fix = "write an address of this host such as 127.0.0.1 or ::1, unix:/path, or leave it out to listen on all"
            self._check_address(f"{path}.address", address, fix)
        port = self._number(f"{path}.port", content.get("port", 0), 0, 65_535)
        if not port and not address.startswith("unix:"):
            raise MistakeError(path, "the listener has no port", "add `port: 80`")
        protocols: tuple[ListenerProtocol, ...] = get_args(ListenerProtocol)
        protocol = self._choice(f"{path}.protocol", content.get("protocol", "http"), protocols)
        if protocol == "udp" and address.startswith("unix:"):
            raise MistakeError(f"{path}.address", "UDP has no Unix sockets", "write an IP address and a port")
        self._check_sections(path, content, protocol)
        origin = self._read_origin(path, content)
        has_stream = protocol in ("tcp", "tls") or "stream" in content
        stream = self._read_stream(f"{path}.stream", name, origin, content, protocol) if has_stream else None
        http = self._mapping(f"{path}.http", content.get("http", {}))
        of_http = self._defaults.http_of(has_hosts=protocol in ("http", "https"))
        listener = Listener(
            name,
            port,
            address,
            protocol,
            self._text(f"{path}.host_set", content.get("host_set", "default")),
            self._read_options(f"{path}.http", http, of_http, only_options=True),
            origin,
            stream=stream,
            datagram=self._read_datagram(f"{path}.datagram", name, origin, content.get("datagram", {}))
            if protocol == "udp"
            else None,
        )
        if not listener.terminates:
            if "tls" in content:
                self._report(f"{path}.tls", "lb terminates TLS of no name", "add `mode: terminate`, or leave it out")
            return listener
        tls = self._read_listener_tls(f"{path}.tls", content.get("tls", {}))
        if tls.hsts and not listener.has_hosts:
            self._report(f"{path}.tls.hsts", "the listener does not speak HTTP", "leave it out")
        return msgspec.structs.replace(listener, tls=tls)

    def _check_sections(self, path: str, content: Mapping[str, Any], protocol: ListenerProtocol) -> None:
        """A section that the listener's protocol has no use for would be obeyed nowhere."""
        if "tls" in content and protocol not in ("https", "tls"):
            fix = "add `protocol: https` or `protocol: tls`"
            raise MistakeError(f"{path}.tls", "the listener does not speak TLS", fix)
        if "stream" in content and protocol not in ("tcp", "tls", "https"):
            fix = "add `protocol: tcp` or `protocol: tls`"
            raise MistakeError(f"{path}.stream", "the listener does not carry connections", fix)
        if "datagram" in content and protocol != "udp":
            raise MistakeError(f"{path}.datagram", "the listener does not carry datagrams", "add `protocol: udp`")
        for key in ("http", "host_set"):
            if key in content and protocol in ("tcp", "tls", "udp"):
                raise MistakeError(f"{path}.{key}", "the listener does not speak HTTP", f"remove `{key}`")

    def _read_datagram(self, path: str, listener: str, origin: Origin, value: object) -> Datagram:
        content = self._mapping(path, value)
        self._report_unknown_keys(path, content, (*STREAM_KEYS, *option_keys(DatagramOptions)), NARROWING_KEYS)
        options = self._read_carried_options(path, content, self._defaults.datagram)
        if "forward" not in content:
            raise MistakeError(path, "datagrams have nowhere to go", "add `forward: NAME` of an upstream")
        return Datagram(self._read_stream_route(path, listener, origin, content, "datagrams are dropped"), options)

    def _read_carried_options(
        self, path: str, content: Mapping[str, Any], defaults: CarriedOptionsT
    ) -> CarriedOptionsT:
        # Where the file says who is let in, a default that it cannot be read for must not say it instead.
        said = {key: () for key in ("allow", "proxy_protocol") if key in content and hasattr(defaults, key)}
        options = self._read_options(path, content, msgspec.structs.replace(defaults, **said))
        # An empty list lets in everybody, or takes a proxy for the client: the listener is not opened.
        for key, what in (("allow", "who may connect"), ("proxy_protocol", "who sends PROXY headers")):
            if content.get(key) and not getattr(options, key, ()):
                raise MistakeError(f"{path}.{key}", f"{what} is not understood", "mend it")
        return options

    def _read_stream(
        self, path: str, listener: str, origin: Origin, section: Mapping[str, Any], protocol: ListenerProtocol
    ) -> Stream:
        content = self._mapping(path, section.get("stream", {}))
        self._report_unknown_keys(path, content, (*STREAM_KEYS, "names", *option_keys(StreamOptions)), NARROWING_KEYS)
        options = self._read_carried_options(path, content, self._defaults.stream)
        if protocol == "https":
            options = self._only_of_names(path, content, options)
        route = self._read_stream_route(path, listener, origin, content) if "forward" in content else None
        names = self._read_names(path, listener, origin, content, protocol)
        if protocol == "tls" and route is not None:
            # Short for the name that stands for all others.
            if "*" in names:
                raise MistakeError(f"{path}.forward", "`forward` and the name `*` both say it", "take one of them away")
            fields = {field: getattr(route, field) for field in route.__struct_fields__}
            names, route = {**names, "*": (NameRoute(**fields, mode="terminate"),)}, None
        if route is None and not names:
            raise MistakeError(path, "connections have nowhere to go", "add `forward: NAME` of an upstream")
        return Stream(route, options, names)

    def _only_of_names(self, path: str, content: Mapping[str, Any], options: StreamOptions) -> StreamOptions:
        """What concerns the clients of other names as well is said for all of them."""
        if "forward" in content:
            raise MistakeError(f"{path}.forward", "the listener serves HTTP", "write `names: {NAME: UPSTREAM}`")
        for attribute in OF_HTTP:
            key = key_of(StreamOptions, attribute)
            if key in content:
                of_http = "head_timeout" if key == "handshake_timeout" else key
                self._report(f"{path}.{key}", f"`{key}` has no effect here", f"write `{of_http}` under `http`")
        return options.beside_http()

    def _read_stream_route(
        self,
        path: str,
        name: str,
        origin: Origin,
        content: Mapping[str, Any],
        dangling: str = "connections are reset",
    ) -> StreamRoute:
        """`name` and `origin` are those of a route that does not say others; `dangling`: what becomes of what comes
        without an upstream."""
        route = StreamRoute(
            self._text(f"{path}.name", content.get("name", name)),
            self._read_forward(f"{path}.forward", content["forward"], f"its {dangling}"),
            self._read_origin(path, content) if "origin" in content else origin,
            self._text(f"{path}.field", content.get("field", "")),
        )
        self._check_name_is_new(path, route.name)
        return route

    def _read_names(
        self, path: str, listener: str, origin: Origin, content: Mapping[str, Any], protocol: ListenerProtocol
    ) -> dict[str, tuple[NameRoute, ...]]:
        if "names" in content and protocol == "tcp":
            raise MistakeError(f"{path}.names", "TCP knows no names", "add `protocol: tls`")

        def read_routes(names_path: str, server_name: str, value: object) -> tuple[NameRoute, ...]:
            self._check_hostname(names_path, server_name)
            routes = [value] if isinstance(value, (str, Mapping)) else self._list(names_path, value)
            read = tuple(
                self._read_name_route(
                    names_path if len(routes) == 1 else f"{names_path}[{index}]",
                    default_name_of(listener, server_name, index),
                    origin,
                    route,
                )
                for index, route in enumerate(routes)
            )
            if not read:
                raise MistakeError(names_path, "connections have nowhere to go", "write the NAME of an upstream")
            for index, route in enumerate(read[:-1]):
                if not route.alpn:
                    what = "takes all clients, so those behind it get none"
                    self._report(f"{names_path}[{index}]", what, "put it last, or add `alpn`")
            return read

        return dict(self._read_each(f"{path}.names", content.get("names"), read_routes))

    def _read_name_route(self, path: str, name: str, origin: Origin, value: object) -> NameRoute:
        content = {"forward": value} if isinstance(value, str) else self._mapping(path, value)
        self._report_unknown_keys(path, content, NAME_ROUTE_KEYS, NARROWING_KEYS)
        if "forward" not in content:
            raise MistakeError(path, "connections have nowhere to go", "add `forward: NAME` of an upstream")
        mode: Mode = self._choice(f"{path}.mode", content.get("mode", "passthrough"), get_args(Mode))
        alpn = tuple(
            self._read_protocol(f"{path}.alpn", one) for one in self._list(f"{path}.alpn", content.get("alpn"))
        )
        route = self._read_stream_route(path, name, origin, content)
        return NameRoute(route.name, route.forward, route.origin, route.field, mode, alpn)

    def _read_protocol(self, path: str, value: object) -> str:
        """RFC 7301 3.1: 1 to 255 bytes; those that are registered are ASCII."""
        text = self._text(path, value)
        if not 0 < len(text) < 256 or not text.isascii():
            raise MistakeError(path, f"{text!r} is no ALPN protocol", "write one such as h2, http/1.1 or acme-tls/1")
        return text

    def _read_host_sets(self, value: object) -> dict[str, dict[str, VirtualHost]]:
        own = self._before.own.config.hosts
        entries = self._read_section("hosts", value, own)
        hosts = {name: self._read_host_set(name, entry) for name, entry in (entries or {}).items()}
        if entries is None or self._removes_nothing:
            missing = [name for name in own if name not in hosts]
            hosts.update({name: self._stay_all(f"hosts.{name}", own[name]) for name in missing})
        return hosts

    def _read_host_set(self, name: str, value: object) -> dict[str, VirtualHost]:
        def read_host(host_path: str, hostname: str, host: object) -> VirtualHost:
            return self._read_host(host_path, name, hostname, host)

        own, everywhere = (one.hosts.get(name, {}) for one in (self._before.own.config, self._before.everywhere))
        return self._read_parts(f"hosts.{name}", value, read_host, own, everywhere)

    def _read_host(self, path: str, host_set: str, hostname: str, value: object) -> VirtualHost:
        self._check_hostname(path, hostname)
        if isinstance(value, Mapping):
            content, routes_path = value, f"{path}.routes"
            self._report_unknown_keys(path, content, HOST_KEYS)
        else:
            content, routes_path = {"routes": value}, path
        routes = self._list(routes_path, content.get("routes"))
        names = (default_route_name(host_set, hostname, index) for index in range(len(routes)))
        read = (
            self._attempt(self._read_route, f"{routes_path}[{index}]", name, route)
            for index, (name, route) in enumerate(zip(names, routes, strict=True))
        )
        one_label = self._flag(f"{path}.one_label", content.get("one_label", True))
        return VirtualHost(hostname, tuple(route for route in read if route is not None), one_label)

    def _read_route(self, path: str, default_name: str, value: object) -> Route:
        content = self._mapping(path, value)
        self._report_unknown_keys(path, content, (*ROUTE_KEYS, *option_keys(RouteOptions)), NARROWING_KEYS)
        name = self._text(f"{path}.name", content.get("name", default_name))
        route = Route(
            name,
            self._read_match(path, content),
            self._read_action(path, content),
            self._read_options(path, content, self._defaults.route),
            self._read_origin(path, content),
            self._text(f"{path}.field", content.get("field", "")),
        )
        self._check_name_is_new(path, name)
        return route

    def _read_upstream(self, path: str, name: str, value: object) -> Upstream:
        content, endpoints_path = self._mapping_or_list(path, value, "endpoints")
        self._report_unknown_keys(path, content, (*UPSTREAM_KEYS, *option_keys(UpstreamOptions)), NARROWING_KEYS)
        inherited = self._read_origin(path, content) if "origin" in content else None
        endpoints = (
            self._attempt(self._read_endpoint, f"{endpoints_path}[{index}]", inherited, endpoint)
            for index, endpoint in enumerate(self._list(endpoints_path, content.get("endpoints")))
        )
        protocol: Protocol = self._choice(f"{path}.protocol", content.get("protocol", "http1"), get_args(Protocol))
        proxy_protocol: ProxyProtocol = self._choice(
            f"{path}.proxy_protocol", content.get("proxy_protocol", "none"), get_args(ProxyProtocol)
        )
        transparent = self._flag(f"{path}.transparent", content.get("transparent", False))
        spoken = spoken_for(protocol, proxy_protocol, transparent=transparent)
        if protocol == "http2" and spoken != protocol:
            also = "transparent" if transparent else f"proxy_protocol {proxy_protocol}"
            self.problems.add(
                "LB5013",
                self._place(f"{path}.protocol"),
                f"protocol http2 and {also} exclude each other",
                why="a connection is for one client then, so its endpoints are spoken to with HTTP/1.1",
                fix="take one of the two away",
                field=f"{path}.protocol",
            )
        return Upstream(
            name,
            self._choice(f"{path}.balance", content.get("balance", self._defaults.balance), get_args(Balance)),
            tuple(endpoint for endpoint in endpoints if endpoint is not None),
            self._choice(f"{path}.affinity", content.get("affinity", "none"), ("none", "client-ip")),
            self._read_options(path, content, self._defaults.upstream),
            self._text(f"{path}.unavailable", content.get("unavailable", "")),
            self._text(f"{path}.resolve", content.get("resolve", "")),
            self._place(path) if inherited is None else inherited,
            self._read_upstream_tls(f"{path}.tls", content["tls"]) if "tls" in content else None,
            spoken,
            self._read_health_check(f"{path}.health_check", content.get("health_check"), has_tls="tls" in content),
            proxy_protocol,
            self._read_proxy_values(f"{path}.proxy_values", content.get("proxy_values"), proxy_protocol),
            transparent,
        )

    def _read_proxy_values(self, path: str, value: object, proxy_protocol: ProxyProtocol) -> tuple[ProxyValue, ...]:
        values = (
            self._attempt(self._choice, f"{path}[{index}]", one, get_args(ProxyValue))
            for index, one in enumerate(self._list(path, value))
        )
        known = tuple(dict.fromkeys(one for one in values if one is not None))
        if known and proxy_protocol != "v2":
            self._report(path, "only headers of version 2 tell them", "add `proxy_protocol: v2`")
            return ()
        return known

    def _read_health_check(self, path: str, value: object, *, has_tls: bool) -> HealthCheck:
        """No check at all when there is a mistake in it."""
        self._why = "the endpoints are not checked"
        problems_before = len(self.problems)
        check = self._attempt(self._read_check, path, value, has_tls)
        self._why = ""
        return check if check is not None and len(self.problems) == problems_before else HealthCheck()

    def _read_check(self, path: str, value: object, has_tls: bool) -> HealthCheck:
        if value is None or value is False:  # what YAML 1.1 makes of a plain `off`
            return HealthCheck()
        content = read_off({"type": value} if isinstance(value, str) else self._mapping(path, value))
        problems_before = len(self.problems)
        check = self._read_options(path, content, HealthCheck(type="http"), only_options=True)
        if len(self.problems) == problems_before:
            for attribute, what in mistakes(check, has_tls=has_tls):
                self._report(f"{path}.{key_of(HealthCheck, attribute)}", what, "")
            for key in content:
                if not is_used(key, check):
                    self._report(f"{path}.{key}", f"has no effect on a check of type {check.type}", "leave it out")
        return check if check.type != "off" else HealthCheck()

    def _read_endpoint(self, path: str, inherited: Origin | None, value: object) -> Endpoint:
        content = {"address": value} if isinstance(value, str) else self._mapping(path, value)
        self._report_unknown_keys(path, content, ENDPOINT_KEYS)
        address, port = self._read_endpoint_address(path, content)
        return Endpoint(
            address,
            port,
            self._number(f"{path}.weight", content.get("weight", 1), 0),
            self._flag(f"{path}.draining", content.get("draining", False)),
            self._text(f"{path}.target", content.get("target", "")),
            self._read_origin(path, content) if inherited is None or "origin" in content else inherited,
        )

    def _read_endpoint_address(self, path: str, content: Mapping[str, Any]) -> tuple[str, int]:
        address = self._text(f"{path}.address", content.get("address"))
        if "port" in content:
            port, port_path = content["port"], f"{path}.port"
        else:
            try:
                address, port = split_key(address)
            except ValueError as error:
                raise MistakeError(f"{path}.address", str(error)) from None
            port_path = f"{path}.address"
        fix = "write an IP address such as 10.0.0.1 or fd00::1; a name goes into `resolve` of the upstream"
        self._check_address(f"{path}.address", address, fix)
        least = 0 if address.startswith(UNIX_PREFIX) else 1
        return address, self._number(port_path, port, least, 65_535)

    # -- The parts of a route

    def _read_match(self, path: str, content: Mapping[str, Any]) -> Match:
        return Match(
            self._read_path(f"{path}.path", content.get("path", "/")),
            tuple(self._token(f"{path}.methods", one) for one in self._list(f"{path}.methods", content.get("methods"))),
            tuple(self._read_values(f"{path}.headers", content.get("headers", {}), HeaderMatch)),
            tuple(self._read_values(f"{path}.query", content.get("query", {}), QueryMatch)),
        )

    def _read_path(self, path: str, value: object) -> PathMatch:
        if isinstance(value, str):
            key, text = "prefix", value
        else:
            key, found = self._single(path, value)
            text = self._text(f"{path}.{key}", found)
        if key not in PATH_KINDS:
            raise MistakeError(path, f"`{key}` is no kind of path condition", suggest(key, PATH_KINDS))
        partial = key == "string_prefix"
        if not text.startswith("/") and not (partial and not text):
            raise MistakeError(path, f"path {text!r} does not begin with /", f"write `/{text}`")
        self._check_path_is_normal(path, text, partial=partial)
        return PathMatch(PATH_KINDS[key], text)  # type: ignore[arg-type]

    def _read_values(self, path: str, value: object, kind: type[ConditionT]) -> Iterator[ConditionT]:
        for name, wanted in self._entries(path, value):
            place = f"{path}.{name}"
            if kind is HeaderMatch:
                self._token(place, name)
            if wanted == {"present": True}:
                yield kind(name)
            else:
                yield kind(name, self._text(place, wanted, "in quotes, or `{present: true}`"))

    def _read_action(self, path: str, content: Mapping[str, Any]) -> Forward | Respond:
        if ("forward" in content) == ("respond" in content):
            raise MistakeError(
                path, "a route needs either `forward` or `respond`", "add `forward: NAME` of an upstream"
            )
        if "forward" in content:
            return self._read_forward(f"{path}.forward", content["forward"])
        return self._read_respond(f"{path}.respond", content["respond"])

    def _read_forward(self, path: str, value: object, dangling: str = "its requests are answered 503") -> Forward:
        """`dangling`: what it means when there is no such upstream."""
        entries = [(value, 1)] if isinstance(value, str) else self._entries(path, value)
        for name, _ in entries:
            self._check_upstream_exists(path, name, dangling)
        return Forward(tuple(WeightedUpstream(name, self._number(f"{path}.{name}", one, 0)) for name, one in entries))

    def _read_respond(self, path: str, value: object) -> Respond:
        content = {"status": value} if isinstance(value, int) else self._mapping(path, value)
        self._report_unknown_keys(path, content, ("status", "body", "why"))
        return Respond(
            self._number(f"{path}.status", content.get("status"), 200, 599),
            self._text(f"{path}.body", content.get("body", "")),
            self._text(f"{path}.why", content.get("why", "")),
        )

    # -- Checks

    def _check_address(self, path: str, address: str, fix: str) -> None:
        mistake = address_mistake(address)
        if mistake:
            raise MistakeError(path, mistake, fix)

    def _check_name_is_new(self, path: str, name: str) -> None:
        """Route names key metrics and logs: of several routes with one name only the first one is kept."""
        if name in self._route_names:
            raise MistakeError(f"{path}.name", f"there is another route named `{name}`", "give it another `name`")
        self._route_names.add(name)

    def _check_upstream_exists(self, path: str, name: str, why: str) -> None:
        if name in self._upstream_names or self._is_elsewhere(name):
            return
        near = nearest(name, self._upstream_names)
        fix = near or "define it under `upstreams`, or write NAMESPACE/SERVICE:PORT for a Service of the cluster"
        self.problems.add("LB5004", self._place(path), f"`{name}` is no upstream", why=why, fix=fix, field=path)

    def _check_hostname(self, path: str, hostname: str) -> None:
        name = hostname.removeprefix("*.")
        if hostname == "*":
            return
        normal = normalize_host(name.encode())
        if isinstance(normal, Rejected) or not normal:
            raise MistakeError(
                path, f"`{hostname}` is not a hostname", "write `shop.example.com`, `*.example.com` or `*`"
            )
        if normal.decode() != name:
            raise MistakeError(
                path,
                f"`{hostname}` is not written as requests are matched",
                f"write `{hostname[: len(hostname) - len(name)]}{normal.decode()}`",
            )

    def _check_path_is_normal(self, path: str, value: str, *, partial: bool) -> None:
        normal = normalize_rule_path(value, partial=partial)
        if isinstance(normal, Rejected):
            self._report(path, f"path {value!r} never matches: {normal.why}", "")
        elif normal != value:
            self._report(path, f"path {value!r} never matches: request paths are normalised first", f"write `{normal}`")


def _is_hostname(name: str) -> bool:
    """Whether clients may ask for it (SNI); a certificate may also be for addresses and for stranger things."""
    plain = name.removeprefix("*.")
    normal = normalize_host(plain.encode())
    return not isinstance(normal, Rejected) and bool(plain) and normal.decode() == plain and not is_network(plain)


def _is_nowhere(name: str) -> bool:
    return False
