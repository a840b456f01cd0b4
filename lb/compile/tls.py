"""Certificates and TLS contexts for the compiler: each made once and used until nothing in the Config asks for it.

A certificate that OpenSSL refuses keeps the one of the same name that served before; names without a certificate get
lb's self-made one, never another name's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

from lb._fastpath import credentials
from lb.certs.self_made import self_made
from lb.model.tls import DEFAULT_HOST, Certificate, ClientCertificates, ListenerTls, TlsHost, TlsPolicy, UpstreamTls

MadeT = TypeVar("MadeT")

TLS_1_2, TLS_1_3 = 0x0303, 0x0304

_LOWEST: dict[TlsPolicy, int] = {"intermediate": TLS_1_2, "modern": TLS_1_3}

CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Of TLS 1.2: Mozilla's intermediate list, without finite-field Diffie-Hellman."""
CIPHERSUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS = "X25519MLKEM768:X25519:P-256:P-384"
"""The first one only where the library has it (OpenSSL 3.5)."""

_CLIENT_MODES = {"off": 0, "optional": 1, "required": 2, "unverified": 3}
_FORWARD = {"xfcc": 1, "ssl-client": 2}


class TlsParts:
    """What was made of the certificates and policies of one Config after another."""

    def __init__(self) -> None:
        self._models: dict[str, Certificate] = {}
        self._made: dict[str, credentials.Certificate] = {}
        self.refused: dict[str, str] = {}
        """Certificates that OpenSSL would not take, and why."""
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
                made[name] = credentials.Certificate(one.chain.encode(), one.key.encode(), base64.b64decode(one.ocsp))
            except ValueError as error:
                self.refused[name] = str(error)
                if known is not None:
                    made[name] = known
        self._models, self._made = dict(certificates), made
        self._old, self._new = self._new, {}

    def of_listener(self, tls: ListenerTls) -> dict[str, credentials.TlsHost]:
        """What a listener serves names with; always with the default for all others."""
        hosts = tls.hosts if DEFAULT_HOST in tls.hosts else {**tls.hosts, DEFAULT_HOST: TlsHost()}
        return {name: self._host(host, tls.policy) for name, host in hosts.items()}

    def of_upstream(self, tls: UpstreamTls) -> credentials.ClientTls:
        """How endpoints are spoken to. ValueError when OpenSSL refuses it."""
        certificate = self._made.get(tls.certificate)
        return self._once(
            ("upstream", tls, certificate),
            lambda: credentials.ClientTls(
                min_version=TLS_1_2,
                max_version=TLS_1_3,
                ciphers=CIPHERS,
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

    def _host(self, host: TlsHost, policy: TlsPolicy) -> credentials.TlsHost:
        certificates = tuple(self._made[name] for name in host.certificates if name in self._made)
        certificates = certificates or (self._self_made,)
        context = self._policy(host.clients, policy)
        forward = sum(_FORWARD[one] for one in host.clients.forward)
        return self._once(
            ("host", context, certificates, forward), lambda: credentials.TlsHost(context, certificates, forward)
        )

    def _policy(self, clients: ClientCertificates, policy: TlsPolicy) -> credentials.ServerTls:
        identity = hashlib.sha256(
            repr((policy, clients.mode, clients.ca, clients.crl, clients.depth)).encode()
        ).digest()
        return self._once(
            ("policy", identity),
            lambda: credentials.ServerTls(
                min_version=_LOWEST[policy],
                max_version=TLS_1_3,
                ciphers=CIPHERS,
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


def _same(one: Certificate | None, other: Certificate) -> bool:
    return one is other or (one is not None and (one.chain, one.key, one.ocsp) == (other.chain, other.key, other.ocsp))
