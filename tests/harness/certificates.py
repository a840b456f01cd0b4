"""Certificates for tests: an authority and what it signs, made anew each time."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """A chain, the leaf first, and its key, as PEM."""

    chain: str
    key: str


def make_key(kind: str = "EC") -> Key:
    """`EC` (P-256) or `RSA` (2048 bits)."""
    return ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else rsa.generate_private_key(65537, 2048)


def pem(key: Key, passphrase: str = "", form: str = "PKCS8") -> str:
    """`form`: PKCS8, or TraditionalOpenSSL for PKCS#1 and SEC1."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), protection
    ).decode()


class Authority:
    """A root, or with `issuer` an intermediate, that signs what tests ask for."""

    def __init__(self, name: str = "Test Root", issuer: Authority | None = None) -> None:
        self.issuer = issuer
        self._key = make_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, [], is_authority=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self,
        *names: str,
        kind: str = "EC",
        subject: str = "",
        days: int = 90,
        uris: tuple[str, ...] = (),
        key: Key | None = None,
        street: str = "",
    ) -> Pair:
        """A leaf for these DNS names and addresses. Negative `days`: it has expired so long ago."""
        key = key or make_key(kind)
        text = subject or (names[0] if names else "leaf")
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, text)]
        if street:  # what may be as long as anybody likes
            attributes.append(x509.NameAttribute(NameOID.STREET_ADDRESS, street))
        holder = x509.Name(attributes)
        alternatives: list[x509.GeneralName] = [_general_name(name) for name in names]
        alternatives += [x509.UniformResourceIdentifier(uri) for uri in uris]
        leaf = self._sign(holder, key, alternatives, days=days)
        chain = leaf.public_bytes(serialization.Encoding.PEM).decode()
        above: Authority | None = self
        while above is not None and above.issuer is not None:
            chain += above.pem
            above = above.issuer
        return Pair(chain, pem(key))

    def revoke(self, *pairs: Pair) -> str:
        """A revocation list with these certificates in it."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=30))
        for pair in pairs:
            serial = x509.load_pem_x509_certificate(pair.chain.encode()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _sign(
        self,
        holder: x509.Name,
        key: Key,
        alternatives: list[x509.GeneralName],
        *,
        days: int = 365,
        is_authority: bool = False,
    ) -> x509.Certificate:
        signer = self if not is_authority or self.issuer is None else self.issuer
        end = datetime.now(UTC) + timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(holder)
            .issuer_name(signer._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=max(days, 0) + 400))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(signer._key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
