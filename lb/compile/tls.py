"""Certificates and TLS contexts for the compiler: each made once and used until nothing in the Config asks for it.

Nothing that OpenSSL refuses fails a build. A certificate that it refuses keeps the one of the same name that served
before; names without a certificate get lb's self-made one, never another name's. Authorities or revocation lists that
it refuses leave in force what was asked before them, and where there was nothing, nobody gets in: a name is closed, an
upstream gets no requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

import msgspec

from lb._fastpath import credentials
from lb.certs.ocsp import holds_until
from lb.certs.self_made import self_made
from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.tls import (
    CIPHERSUITES,
    DEFAULT_HOST,
    GROUPS,
    POLICIES,
    TLS_1_2,
    TLS_1_3,
    Certificate,
    ClientCertificates,
    ListenerTls,
    TlsHost,
    TlsPolicy,
    UpstreamTls,
)
from lb.model.upstream import Upstream
from lb.problems import Problem

MadeT = TypeVar("MadeT")

_CLIENT_MODES = {"off": 0, "optional": 1, "required": 2, "unverified": 3, "nobody": 4}
_FORWARD = {"xfcc": 1, "ssl-client": 2}
_NOBODY = ClientCertificates("nobody")


def missing_groups() -> tuple[str, ...]:
    """Groups of the policies that the library does not have."""
    known = credentials.known_groups(GROUPS).split(":")
    return tuple(group for group in GROUPS.split(":") if group not in known)


def check(config: Config) -> dict[str, Problem]:
    """What OpenSSL refuses of a Config, as TlsParts.refused has it: for those who only look."""
    parts = TlsParts()
    parts.take(config.certificates)
    for listener in config.listeners.values():
        if listener.terminates:
            parts.of_listener(listener, None, {})
    for upstream in config.upstreams.values():
        if upstream.tls is not None:
            parts.of_upstream(upstream, None, None)
    return parts.refused


class TlsParts:
    """What was made of the certificates and policies of one Config after another."""

    def __init__(self) -> None:
        self._models: dict[str, Certificate] = {}
        self._made: dict[str, credentials.Certificate] = {}
        self.refused: dict[str, Problem] = {}
        """What OpenSSL would not take of the newest Config: `certificate NAME`, `upstream NAME` or
        `listener NAME HOST`, and why."""
        self._old: dict[Hashable, object] = {}
        self._new: dict[Hashable, object] = {}

    def take(self, certificates: Mapping[str, Certificate]) -> None:
        """Make what is new among the certificates; forget what the Config before had and this one has not."""
        made: dict[str, credentials.Certificate] = {}
        self.refused = {}
        for name, one in certificates.items():
            known = self._made.get(name)
            if known is not None and _same(self._models.get(name), one):
                made[name] = known
                continue
            try:
                made[name] = _make_certificate(one)
            except ValueError as error:
                self.refused[f"certificate {name}"] = _refused_certificate(one, str(error))
                if known is not None:
                    made[name] = known
        self._models, self._made = dict(certificates), made
        self._old, self._new = self._new, {}

    def of_listener(
        self, listener: Listener, before: Listener | None, made: Mapping[str, credentials.TlsHost]
    ) -> dict[str, credentials.TlsHost]:
        """What a listener serves names with, always with the default for all others. `made` is what it was `before`."""
        tls = listener.tls or ListenerTls()
        old = before.tls.hosts if before is not None and before.tls is not None else {}
        hosts = tls.hosts if DEFAULT_HOST in tls.hosts else {**tls.hosts, DEFAULT_HOST: TlsHost()}
        served = {}
        for name, host in hosts.items():
            certificates = tuple(self._made[one] for one in host.certificates if one in self._made)
            try:
                policy = self._policy(host.clients, tls.policy)
            except ValueError as error:
                known = made.get(name)
                stays = name in old and _differ_in_bundles(old[name].clients, host.clients)
                policy = known.policy if known is not None and stays else self._policy(_NOBODY, tls.policy)
                problem = _refused_clients(listener, name, str(error), stays=policy.lets_in)
                self.refused[f"listener {listener.name} {name}"] = problem
            served[name] = self._host(policy, certificates, host.clients)
        return served

    def of_upstream(
        self, upstream: Upstream, before: Upstream | None, made: credentials.ClientTls | None
    ) -> credentials.ClientTls | None:
        """How the endpoints of an upstream with TLS are spoken to; None: not at all. `made` is how it was `before`."""
        tls = upstream.tls or UpstreamTls()
        try:
            return self._client(tls)
        except ValueError as error:
            old = before.tls if before is not None else None
            stays = made if old is not None and _differ_in_bundles(old, tls) else None
            problem = _refused_upstream(upstream, str(error), stays=stays is not None)
            self.refused[f"upstream {upstream.name}"] = problem
            return stays

    def _client(self, tls: UpstreamTls) -> credentials.ClientTls:
        certificate = self._made.get(tls.certificate)
        if tls.certificate and certificate is None:
            raise ValueError(f"certificate {tls.certificate}, which lb would show, cannot be used")
        return self._once(
            ("upstream", tls, certificate),
            lambda: credentials.ClientTls(
                min_version=TLS_1_2,
                max_version=TLS_1_3,
                ciphers=POLICIES["intermediate"].ciphers,
                ciphersuites=CIPHERSUITES,
                alpn=(b"h2", b"http/1.1"),
                verify=tls.verify,
                ca=tls.ca.encode(),
                crl=tls.crl.encode(),
                server_name=tls.server_name,
                names=tls.names,
                certificate=certificate,
            ),
        )

    def _host(
        self,
        policy: credentials.ServerTls,
        certificates: tuple[credentials.Certificate, ...],
        clients: ClientCertificates,
    ) -> credentials.TlsHost:
        shown = certificates or (self._self_made,)
        forward = sum(_FORWARD[one] for one in clients.forward)
        return self._once(("host", policy, shown, forward), lambda: credentials.TlsHost(policy, shown, forward))

    def _policy(self, clients: ClientCertificates, name: TlsPolicy) -> credentials.ServerTls:
        identity = hashlib.sha256(repr((name, clients.mode, clients.ca, clients.crl, clients.depth)).encode()).digest()
        policy = POLICIES[name]
        return self._once(
            ("policy", identity),
            lambda: credentials.ServerTls(
                min_version=policy.lowest,
                max_version=TLS_1_3,
                ciphers=policy.ciphers,
                ciphersuites=CIPHERSUITES,
                groups=GROUPS,
                alpn=(b"h2", b"http/1.1"),
                client_mode=_CLIENT_MODES[clients.mode],
                ca=clients.ca.encode(),
                crl=clients.crl.encode(),
                depth=clients.depth,
                identity=identity,
            ),
        )

    @cached_property
    def _self_made(self) -> credentials.Certificate:
        return credentials.Certificate(*self_made(datetime.now(UTC)))

    def _once(self, key: Hashable, make: Callable[[], MadeT]) -> MadeT:
        """What was made of the same key for this Config or for the one before."""
        made = self._new.get(key)
        if made is None:
            made = self._old.get(key) or make()
            self._new[key] = made
        return made  # type: ignore[return-value]


def _make_certificate(one: Certificate) -> credentials.Certificate:
    """ValueError when OpenSSL refuses it."""
    until = holds_until(one.ocsp, one.chain) if one.ocsp else None
    return credentials.Certificate(
        one.chain.encode(), one.key.encode(), base64.b64decode(one.ocsp), int(until.timestamp()) if until else 0
    )


def _same(one: Certificate | None, other: Certificate) -> bool:
    return one is other or (one is not None and (one.chain, one.key, one.ocsp) == (other.chain, other.key, other.ocsp))


_BundlesT = TypeVar("_BundlesT", ClientCertificates, UpstreamTls)


def _differ_in_bundles(old: _BundlesT, new: _BundlesT) -> bool:
    """Whether the same is asked, if perhaps with other authorities or revocation lists. When more is asked than before,
    what was asked before is no substitute."""
    return msgspec.structs.replace(old, ca="", crl="") == msgspec.structs.replace(new, ca="", crl="")


def _refused_certificate(one: Certificate, why: str) -> Problem:
    return Problem(
        "LB6007",
        one.origin,
        f"certificate {one.name} is refused by OpenSSL: {why}",
        "the one of this name that served before stays in use until a restart; without one lb's self-made one is shown",
        "have a certificate made that OpenSSL takes: RSA from 2048 bits, signed with SHA-256 or better",
    )


def _refused_clients(listener: Listener, host: str, why: str, *, stays: bool) -> Problem:
    return Problem(
        "LB6008",
        listener.origin,
        f"what listener {listener.name} asks of clients of {host} is refused by OpenSSL: {why}",
        "what it asked before stays in force" if stays else "no client of this name gets in",
        "put the authorities' certificates and revocation lists there again, as PEM",
        f"listeners.{listener.name}.tls.hosts.{host}.clients",
    )


def _refused_upstream(upstream: Upstream, why: str, *, stays: bool) -> Problem:
    return Problem(
        "LB6008",
        upstream.origin,
        f"TLS to the endpoints of {upstream.name} is refused by OpenSSL: {why}",
        "they are spoken to as before" if stays else "they get no requests, which are answered 503",
        "put the authorities' certificates and revocation lists there again, as PEM",
        f"upstreams.{upstream.name}.tls",
    )
