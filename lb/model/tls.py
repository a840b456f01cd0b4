"""TLS: policies, certificates, what listeners serve names with, and how endpoints are spoken to."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from lb.problems import Origin

TlsPolicy = Literal["intermediate", "modern", "old"]
ClientMode = Literal["off", "optional", "required", "unverified", "nobody"]
ClientHeaders = Literal["xfcc", "ssl-client"]

DEFAULT_HOST = "*"
"""Stands for all names that have no certificate of their own, and for clients that say no name."""

TLS_1_2, TLS_1_3 = 0x0303, 0x0304

_AEAD = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Of TLS 1.2: Mozilla's intermediate list, without finite-field Diffie-Hellman."""
_CBC_AND_RSA = (
    "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:"
    "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:"
    "AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA256:AES256-SHA256:AES128-SHA:AES256-SHA"
)
"""What Mozilla's old list has besides and TLS 1.2 can use, without 3DES."""
CIPHERSUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS = "X25519MLKEM768:X25519:P-256:P-384"
"""The first one only where the library has it (OpenSSL 3.5)."""


class Policy(NamedTuple):
    """What a policy's name stands for (https://wiki.mozilla.org/Security/Server_Side_TLS, version 5.7)."""

    lowest: int
    ciphers: str
    """Of TLS 1.2."""
    text: str
    """For people."""


POLICIES: dict[TlsPolicy, Policy] = {
    "modern": Policy(TLS_1_3, _AEAD, "TLS 1.3"),
    "intermediate": Policy(TLS_1_2, _AEAD, "TLS 1.2 and 1.3"),
    # TLS 1.0 and 1.1 are no part of it: RFC 8996 forbids them.
    "old": Policy(TLS_1_2, f"{_AEAD}:{_CBC_AND_RSA}", "TLS 1.2 and 1.3, also with CBC and without forward secrecy"),
}
"""Endpoints are spoken to as `intermediate` says."""


class Certificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A certificate chain and its private key, as PEM. The key never appears in logs, dumps or `repr`."""

    name: str
    """`shop/web-tls` for a Secret."""
    chain: str
    """The leaf first, then its issuers."""
    key: str
    ocsp: str = ""
    """What its authority says of it (OCSP, DER in base64), stapled to handshakes."""
    origin: Origin = Origin()

    def __repr__(self) -> str:
        return f"Certificate({self.name})"


class ClientCertificates(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked of clients."""

    mode: ClientMode = "off"
    """off: not asked. optional: verified when shown. required: no certificate, no connection. unverified: asked for and
    handed on, whoever signed it. nobody: all are refused."""
    ca: str = ""
    """Authorities that are trusted, as PEM. Needed for optional and required."""
    crl: str = ""
    """Revocation lists, as PEM."""
    depth: int = 4
    """Most intermediate authorities between a client's certificate and a trusted one."""
    forward: tuple[ClientHeaders, ...] = ()
    """How endpoints are told: `xfcc` sends X-Forwarded-Client-Cert, `ssl-client` sends ssl-client-verify,
    ssl-client-subject-dn and so on, as ingress-nginx does. What clients send under these names is dropped."""
    why: str = ""
    """Why it is so, when it was not asked for: `Secret shop/clients does not exist`."""


class TlsHost(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a name is served with."""

    certificates: tuple[str, ...] = ()
    """Names of certificates; of several, a client gets the one whose kind of key it understands, EC before RSA. None:
    lb's own self-made one."""
    clients: ClientCertificates = ClientCertificates()


class ListenerTls(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a listener speaks TLS."""

    hosts: dict[str, TlsHost] = {}
    """By name: `shop.example.com`, `*.example.com` (one label), and `*` for all others."""
    policy: TlsPolicy = "intermediate"
    """modern: TLS 1.3 only. intermediate: TLS 1.2 as well, with forward secrecy and authenticated encryption. old: also
    the other ciphers of TLS 1.2 (CBC, RSA key exchange), for clients of before 2014."""
    hsts: str = ""
    """Value of Strict-Transport-Security, such as `max-age=31536000; includeSubDomains`."""


class UpstreamTls(msgspec.Struct, frozen=True, omit_defaults=True):
    """How endpoints are spoken to over TLS."""

    server_name: str = ""
    """Sent as SNI, and the name that the endpoint's certificate must have unless `names` says others."""
    verify: bool = True
    """Whether the endpoint's certificate must be trusted and have the name."""
    ca: str = ""
    """Authorities that are trusted, as PEM; empty: the system's."""
    crl: str = ""
    """Revocation lists, as PEM."""
    names: tuple[str, ...] = ()
    """Names or addresses of which the endpoint's certificate must have one."""
    certificate: str = ""
    """Name of the certificate that lb shows."""
