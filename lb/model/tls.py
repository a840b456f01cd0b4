"""TLS: certificates, what listeners serve names with, and how endpoints are spoken to."""

from __future__ import annotations

from typing import Literal

import msgspec

from lb.problems import Origin

TlsPolicy = Literal["intermediate", "modern", "old"]
ClientMode = Literal["off", "optional", "required", "unverified", "nobody"]
ClientHeaders = Literal["xfcc", "ssl-client"]

DEFAULT_HOST = "*"
"""Stands for all names that have no certificate of their own, and for clients that say no name."""


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
