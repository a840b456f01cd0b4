"""OCSP responses: what a certificate's authority says of it, to be stapled to handshakes (RFC 6066 8)."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from functools import lru_cache

from cryptography.x509 import ocsp

from lb.certs.pem import CertificateError, read_certificates

_FETCH = "fetch it anew: openssl ocsp -issuer CA -cert LEAF -url URL -respout FILE"


def check_response(response: bytes, chain: str) -> datetime | None:
    """Until when a DER response about the chain's leaf holds, if it says. CertificateError when it is of no use."""
    try:
        found = ocsp.load_der_ocsp_response(response)
        if found.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise CertificateError(f"the OCSP response says {found.response_status.name}", _FETCH)
        serial, until = found.serial_number, found.next_update_utc
    except CertificateError:
        raise
    except ValueError:
        raise CertificateError("the OCSP response cannot be parsed: it must be DER", _FETCH) from None
    if serial != read_certificates(chain)[0].serial_number:
        raise CertificateError("the OCSP response is about another certificate", _FETCH)
    return until


@lru_cache(maxsize=4_096)
def holds_until(response: str, chain: str) -> datetime | None:
    """The same of a response in base64; None too when it is of no use."""
    try:
        return check_response(base64.b64decode(response), chain)
    except (CertificateError, binascii.Error):
        return None
