"""OCSP responses for tests."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from tests.harness.certificates import Authority, Pair


def response_for(authority: Authority, pair: Pair, until: datetime | None = None) -> bytes:
    """What the authority would answer about a leaf it has signed: all is well."""
    leaf = x509.load_pem_x509_certificate(pair.chain.encode())
    issuer = x509.load_pem_x509_certificate(authority.pem.encode())
    builder = ocsp.OCSPResponseBuilder().add_response(
        leaf, issuer, hashes.SHA256(), ocsp.OCSPCertStatus.GOOD, leaf.not_valid_before_utc, until, None, None
    )
    made = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, issuer).sign(authority._key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)
