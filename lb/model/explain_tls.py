"""TLS in an explanation: which certificate a client is shown and why, what it is asked for, and how endpoints are
spoken to.

The same rules as lb/_fastpath/tls.pyx: an exact name, a wildcard for one label, else what all others get.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from lb.certs.pem import CertificateError, covers, read_certificates, read_chain
from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.tls import DEFAULT_HOST, POLICIES, Certificate, ClientCertificates, ListenerTls, TlsHost, UpstreamTls
from lb.problems import Origin

_CLIENTS = {
    "off": "clients are not asked for a certificate",
    "unverified": "clients are asked for a certificate, which nobody verifies",
}
_AUTHORITIES_SHOWN = 3


class Chosen(NamedTuple):
    """What a listener serves a server name with."""

    name: str
    """The entry that counts: `shop.example.com`, `*.example.com`, or `*`."""
    host: TlsHost
    why: str


class CertificateTold(msgspec.Struct, frozen=True, omit_defaults=True):
    """A certificate that may be shown."""

    name: str
    """Empty: the one that lb makes for itself."""
    kind: str = ""
    """EC, RSA or Ed25519: clients get the first one whose kind they understand."""
    names: tuple[str, ...] = ()
    expires: float = 0
    """Seconds since the epoch."""
    mistake: str = ""
    """Why clients will refuse it, as far as names go, or why it is not shown."""
    origin: Origin = Origin()


def choose(listener: Listener, server_name: str) -> Chosen:
    """What a client that says `server_name` (lower case; empty: it says none) is served with."""
    hosts = (listener.tls or ListenerTls()).hosts
    parent = server_name.partition(".")[2]
    if server_name and server_name in hosts:
        return Chosen(server_name, hosts[server_name], "exact name")
    wildcard = f"*.{parent}"
    if parent and wildcard in hosts:
        return Chosen(wildcard, hosts[wildcard], f"covers {server_name.partition('.')[0]}")
    why = "takes the names that have no entry of their own" if server_name else "takes clients that say no name"
    return Chosen(DEFAULT_HOST, hosts.get(DEFAULT_HOST, TlsHost()), why)


def tell_certificates(config: Config, chosen: Chosen, server_name: str) -> tuple[CertificateTold, ...]:
    """The certificates of an entry, those that are shown first before others."""
    found = [config.certificates[name] for name in chosen.host.certificates if name in config.certificates]
    told = [_tell(one, server_name) for one in found]
    if not told:
        mistake = "no certificate that could be used was given for this name"
        return (CertificateTold("", "EC", mistake=mistake),)
    return tuple(sorted(told, key=lambda one: ("EC", "Ed25519", "RSA").index(one.kind) if one.kind else 3))


def _tell(one: Certificate, server_name: str) -> CertificateTold:
    try:
        pair = read_chain(one.chain)
    except CertificateError as error:
        return CertificateTold(one.name, mistake=error.what, origin=one.origin)
    mistake = ""
    if server_name and not covers(pair.names, server_name):
        mistake = f"it is not for {server_name} but for {', '.join(pair.names[:5]) or 'no name'}"
    return CertificateTold(one.name, pair.kind, pair.names, pair.not_after.timestamp(), mistake, one.origin)


def describe_policy(listener: Listener) -> str:
    """`intermediate: TLS 1.2 and 1.3; HSTS max-age=60`"""
    tls = listener.tls or ListenerTls()
    hsts = f"; HSTS {tls.hsts}" if tls.hsts else ""
    return f"{tls.policy}: {POLICIES[tls.policy].text}{hsts}"


def describe_clients(clients: ClientCertificates) -> str:
    """What is asked of clients, in a sentence."""
    if clients.mode == "nobody":
        return f"nobody gets in: {clients.why or 'the configuration says so'}"
    if clients.mode in _CLIENTS:
        text = _CLIENTS[clients.mode]
    else:
        must = "clients must show a certificate" if clients.mode == "required" else "clients may show a certificate"
        lists = ", less what is revoked" if clients.crl else ""
        text = f"{must}, signed by {_authorities(clients.ca)}{lists}; depth {clients.depth}"
    forward = {"xfcc": "X-Forwarded-Client-Cert", "ssl-client": "ssl-client-*"}
    headers = " and ".join(forward[one] for one in clients.forward)
    return f"{text}; endpoints are told by {headers}" if headers else text


def asks_the_same(one: ClientCertificates, other: ClientCertificates) -> bool:
    """Whether a connection made for one name may carry requests for another. How endpoints are told is no matter."""
    return _asked(one) == _asked(other)


def _asked(clients: ClientCertificates) -> tuple[object, ...]:
    return clients.mode, clients.ca, clients.crl, clients.depth


def describe_upstream(tls: UpstreamTls | None) -> str:
    """How endpoints are spoken to; empty: in the clear."""
    if tls is None:
        return ""
    name = f" as {tls.server_name}" if tls.server_name else ""
    shown = f", showing certificate {tls.certificate}" if tls.certificate else ""
    if not tls.verify:
        return f"TLS{name}, NOT VERIFIED{shown}"
    whom = _authorities(tls.ca) if tls.ca else "the system's authorities"
    names = " or ".join(tls.names)
    wanted = f", must be {names}" if names else ""
    lists = ", less what is revoked" if tls.crl else ""
    return f"TLS{name}{wanted}, verified by {whom}{lists}{shown}"


def _authorities(bundle: str) -> str:
    """Their subjects, the first few."""
    try:
        subjects = [one.subject.rfc4514_string() for one in read_certificates(bundle)]
    except (CertificateError, ValueError):
        return "authorities that cannot be read"
    more = len(subjects) - _AUTHORITIES_SHOWN
    return ", ".join(subjects[:_AUTHORITIES_SHOWN]) + (f" and {more} more" if more > 0 else "")
