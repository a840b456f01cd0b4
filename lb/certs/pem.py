"""PEM texts: certificates with their keys, authorities and revocation lists, and whether they fit.

Pure: no files, no clock. No text here, nor any error, ever holds key material, and no parsed key outlives the check.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

_BEGIN, _END, _DASHES = "-----BEGIN ", "-----END ", "-----"

_CERTIFICATES = frozenset(("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"))
_LISTS = frozenset(("X509 CRL",))

_LEAST_RSA_BITS = 2048
"""OpenSSL's security level 1 lets 1024 through, level 2 (Debian's default) does not."""

_MOST_REMEMBERED = 65_536
_fitting: dict[bytes, Pair] = {}
"""Digest of a chain and a key that fit -> what was said of them."""

_COPY = "copy the PEM again, whole"


class CertificateError(ValueError):
    """A certificate that cannot be used: what is wrong, and how to mend it."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class Pair(msgspec.Struct, frozen=True):
    """What is known of a certificate, all of it public."""

    names: tuple[str, ...]
    """DNS names and addresses it is for (SAN); a common name does not count (RFC 9110 4.3.4)."""
    not_before: datetime
    not_after: datetime
    kind: str
    """EC, RSA or Ed25519."""
    subject: str
    issuer: str
    serial: str = ""
    """Hexadecimal, as `openssl x509 -serial` prints it."""
    fingerprint: str = ""
    """SHA-256 of the certificate, hexadecimal."""
    ends: tuple[datetime, ...] = ()
    """When each certificate of the chain expires."""
    disorder: str = ""
    """Why some clients will not find the way from the leaf to its root; empty when the chain is in order."""


class Bundle(NamedTuple):
    """What a file of authorities holds."""

    certificates: Sequence[x509.Certificate]
    lists: Sequence[x509.CertificateRevocationList]


class _Block(NamedTuple):
    label: str
    text: str


def read_pair(chain: str, key: str) -> Pair:
    """What a chain (the leaf first) and its private key say. CertificateError.

    To parse a key takes half a millisecond, and one changed certificate among thousands has all of them looked at: what
    was found to fit is remembered, by its digest.
    """
    digest = hashlib.sha256(f"{len(chain)}:{chain}{key}".encode("utf-8", "replace")).digest()
    pair = _fitting.get(digest)
    if pair is None:
        certificates = _leaf_first(chain)
        pair = _describe(certificates)
        _check_key(certificates, key)
        if len(_fitting) >= _MOST_REMEMBERED:
            _fitting.clear()
        _fitting[digest] = pair
    return pair


@lru_cache(maxsize=16_384)
def read_chain(chain: str) -> Pair:
    """What a chain (the leaf first) says, whatever its key. Remembered: metrics ask often. CertificateError."""
    return _describe(_leaf_first(chain))


def expiry_of(chain: str) -> float:
    """When the leaf of a chain expires, in seconds since the epoch. CertificateError."""
    return read_chain(chain).not_after.timestamp()


def only_certificates(text: str) -> str:
    """The certificates of a PEM text without all else: keys in the same file must not stay with what may be shown."""
    return "".join(block.text for block in _blocks(text) if block.label in _CERTIFICATES)


def read_certificates(text: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, in order. CertificateError for one that cannot be parsed."""
    found: list[x509.Certificate] = []
    for block in _blocks(text):
        if block.label in _CERTIFICATES:
            try:
                found.append(x509.load_pem_x509_certificate(block.text.encode()))
            except ValueError:
                raise CertificateError(f"certificate {len(found) + 1} of it cannot be parsed", _COPY) from None
    return found


def read_bundle(text: str) -> Bundle:
    """Authorities and revocation lists, in order. CertificateError for one that cannot be parsed."""
    lists: list[x509.CertificateRevocationList] = []
    for block in _blocks(text):
        if block.label in _LISTS:
            try:
                lists.append(x509.load_pem_x509_crl(block.text.encode()))
            except ValueError:
                raise CertificateError(f"revocation list {len(lists) + 1} of it cannot be parsed", _COPY) from None
    return Bundle(read_certificates(text), lists)


def only_key(text: str) -> str:
    """The first private key of a PEM text, without all else; empty when there is none."""
    return next((block.text for block in _blocks(text) if _is_key(block)), "")


def has_key(text: str) -> bool:
    """Whether a private key stands in a PEM text."""
    return any(_is_key(block) for block in _blocks(text))


def covers(names: Iterable[str], host: str) -> bool:
    """Whether a certificate for `names` is one for `host` (RFC 6125 6.4.3: a wildcard stands for one label).

    A wildcard host is covered by the same wildcard only, and no wildcard covers an address.
    """
    host = host.lower()
    parent = "" if _is_address(host) else host.partition(".")[2]
    return any(
        name == host or (bool(parent) and name.startswith("*.") and name[2:] == parent)
        for name in map(str.lower, names)
    )


# Blocks


def _blocks(text: str) -> Iterator[_Block]:
    """What stands between BEGIN and END lines (RFC 7468 2); a BEGIN without its END holds nothing.

    Every line is looked at once: a text of nothing but BEGIN lines costs no more than any other.
    """
    label, lines = "", []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(_BEGIN) and stripped.endswith(_DASHES):
            label, lines = stripped[len(_BEGIN) : -len(_DASHES)], [stripped]
        elif label:
            lines.append(stripped)
            if stripped == f"{_END}{label}{_DASHES}":
                yield _Block(label, "\n".join(lines) + "\n")
                label, lines = "", []


def _is_key(block: _Block) -> bool:
    return block.label.endswith("PRIVATE KEY")


# Certificates


def _leaf_first(chain: str) -> list[x509.Certificate]:
    certificates = read_certificates(chain)
    if not certificates:
        what = "there is no certificate in it" if _BEGIN in chain else "it is no PEM: there is no BEGIN line in it"
        raise CertificateError(what, "put the PEM of the chain there, the leaf first")
    return certificates


def _describe(certificates: Sequence[x509.Certificate]) -> Pair:
    try:
        ends = tuple(one.not_valid_after_utc for one in certificates)
        return _describe_leaf(certificates[0], ends, _disorder(certificates))
    except CertificateError:
        raise
    except ValueError:  # fields are parsed when they are asked for
        raise CertificateError(
            "a certificate of it holds fields that cannot be parsed", "have it signed anew"
        ) from None


def _describe_leaf(leaf: x509.Certificate, ends: tuple[datetime, ...], disorder: str) -> Pair:
    return Pair(
        tuple(_names(leaf)),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        _kind(leaf),
        leaf.subject.rfc4514_string(),
        leaf.issuer.rfc4514_string(),
        f"{leaf.serial_number:X}",
        leaf.fingerprint(hashes.SHA256()).hex(),
        ends,
        disorder,
    )


def _disorder(certificates: Sequence[x509.Certificate]) -> str:
    """Each certificate must be followed by the one that signed it (RFC 5246 7.4.2; TLS 1.3 lets clients be lenient)."""
    for number, (one, above) in enumerate(pairwise(certificates), 1):
        if one.issuer != above.subject:
            return f"certificate {number + 1} of the chain is not the issuer of certificate {number}"
    return ""


def _names(leaf: x509.Certificate) -> Iterable[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return
    for name in names:
        if isinstance(name, x509.DNSName):
            yield name.value
        elif isinstance(name, x509.IPAddress) and isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
            yield str(name.value)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# Keys


def _check_key(certificates: Sequence[x509.Certificate], text: str) -> None:
    public = _read_public(text)
    if _public(certificates[0].public_key()) == public:
        return
    for number, one in enumerate(certificates[1:], 2):
        if _public(one.public_key()) == public:
            raise CertificateError(
                f"the private key belongs to certificate {number} of the chain, which must stand first",
                "put the leaf first, then the certificate that signed it, and so on",
            )
    raise CertificateError(
        "the private key does not belong to the certificate", "put the leaf first, and the key it was made with"
    )


def _read_public(text: str) -> bytes:
    """The public half of the first private key. PKCS#8, PKCS#1 and SEC1, also with EC PARAMETERS before it."""
    block = next((one for one in _blocks(text) if _is_key(one)), None)
    if block is None:
        what = "there is no private key in it" if _BEGIN in text else "it is no PEM: there is no BEGIN line in it"
        raise CertificateError(what, "put the PEM of the certificate's private key there")
    if block.label.startswith("ENCRYPTED") or "Proc-Type: 4,ENCRYPTED" in block.text:
        raise CertificateError(
            "the private key is encrypted", "remove the passphrase: openssl pkey -in encrypted.key -out plain.key"
        )
    try:
        key = serialization.load_pem_private_key(block.text.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("the private key cannot be parsed", _COPY) from None
    return _public(key.public_key())


def _public(key: object) -> bytes:
    public: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def _kind(leaf: x509.Certificate) -> str:
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "EC"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise CertificateError(
                f"its RSA key has {key.key_size} bits, which OpenSSL refuses",
                f"use {_LEAST_RSA_BITS} or more, or P-256",
            )
        return "RSA"
    raise CertificateError("its key is neither EC, RSA nor Ed25519", "have one of these signed")
