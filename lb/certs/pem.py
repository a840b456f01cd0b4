"""PEM texts: certificates with their keys, and whether they fit.

Pure: no files, no clock. No text here, nor any error, ever holds key material.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

_BLOCK = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]+)-----.*?-----END (?P=label)-----", re.DOTALL)

_LEAST_RSA_BITS = 2048
"""OpenSSL's security level 1 lets 1024 through, level 2 (Debian's default) does not."""


class CertificateError(ValueError):
    """A certificate that cannot be used: what is wrong, and how to mend it."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class Pair(msgspec.Struct, frozen=True):
    """What is known of a certificate whose key fits."""

    names: tuple[str, ...]
    """DNS names and addresses it is for (SAN); a common name does not count (RFC 9110 4.3.4)."""
    not_before: datetime
    not_after: datetime
    kind: str
    """EC, RSA or Ed25519."""
    subject: str
    issuer: str


def read_pair(chain: str, key: str) -> Pair:
    """What a chain (the leaf first) and its private key say. CertificateError."""
    certificates = read_certificates(chain)
    if not certificates:
        raise CertificateError("there is no certificate in it", "put the PEM of the chain there, the leaf first")
    leaf = certificates[0]
    kind = _kind(leaf.public_key())
    _check_key(leaf, key)
    return Pair(
        tuple(_names(leaf)),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        kind,
        leaf.subject.rfc4514_string(),
        leaf.issuer.rfc4514_string(),
    )


def read_certificates(text: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, in order. CertificateError for one that cannot be parsed."""
    found = []
    for block in _BLOCK.finditer(text):
        if block["label"] not in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"):
            continue
        try:
            found.append(x509.load_pem_x509_certificate(block[0].encode()))
        except ValueError:
            raise CertificateError(
                f"certificate {len(found) + 1} of it cannot be parsed", "copy the PEM again, whole"
            ) from None
    return found


@lru_cache(maxsize=16_384)
def expiry_of(chain: str) -> float:
    """When the leaf of a chain that has been read before expires, in seconds since the epoch."""
    return read_certificates(chain)[0].not_valid_after_utc.timestamp()


def covers(names: Iterable[str], host: str) -> bool:
    """Whether a certificate for `names` is one for `host` (RFC 6125 6.4.3: a wildcard stands for one label).

    A wildcard host is covered by the same wildcard only.
    """
    host = host.lower()
    parent = host.partition(".")[2]
    return any(name == host or (name.startswith("*.") and name[2:] == parent) for name in map(str.lower, names))


def _check_key(leaf: x509.Certificate, text: str) -> None:
    block = next((one for one in _BLOCK.finditer(text) if one["label"].endswith("PRIVATE KEY")), None)
    if block is None:
        raise CertificateError("there is no private key in it", "put the PEM of the certificate's private key there")
    if block["label"].startswith("ENCRYPTED") or "Proc-Type: 4,ENCRYPTED" in block[0]:
        raise CertificateError(
            "the private key is encrypted", "remove the passphrase: openssl pkey -in encrypted.key -out plain.key"
        )
    try:
        key = serialization.load_pem_private_key(block[0].encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("the private key cannot be parsed", "copy the PEM again, whole") from None
    if _public(key.public_key()) != _public(leaf.public_key()):
        raise CertificateError(
            "the private key does not belong to the certificate", "put the leaf first, and the key it was made with"
        )


def _public(key: object) -> bytes:
    public: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def _kind(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "EC"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise CertificateError(f"its RSA key has {key.key_size} bits", f"use {_LEAST_RSA_BITS} or more, or P-256")
        return "RSA"
    raise CertificateError("its key is neither EC, RSA nor Ed25519", "have one of these signed")


def _names(leaf: x509.Certificate) -> Iterable[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return
    for name in names:
        if isinstance(name, x509.DNSName):
            yield name.value
        elif isinstance(name, x509.IPAddress) and isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
            yield str(name.value)
