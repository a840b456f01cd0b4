"""TLS of Ingresses: their `spec.tls` sections as claims on names, and the Secrets with the certificates.

As in ingress-nginx a host whose Secret is missing, bad or for other names is served with the default certificate: its
clients see that something is wrong, its requests are not lost, and no other host's certificate is ever shown. A Secret
that turns bad keeps the certificate it had.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import cast

import msgspec

from lb.certs.pem import CertificateError, Pair, covers, only_certificates, only_key, read_pair
from lb.model.tls import Certificate, TlsHost
from lb.objects.core import Secret
from lb.objects.networking import Ingress
from lb.objects.view import Stored
from lb.problems import Origin, Problem, Problems
from lb.translate.precedence import Age

SecretName = tuple[str, str]
"""(namespace, name)"""


class TlsClaim(msgspec.Struct, frozen=True):
    """A name that an Ingress wants to be served by TLS."""

    hostname: str
    secret: SecretName | None
    """None: with the default certificate."""
    age: Age
    origin: Origin
    field: str
    """`spec.tls[0]`"""


class SecretPart(msgspec.Struct, frozen=True):
    """What became of a Secret."""

    certificate: Certificate | None
    names: tuple[str, ...] = ()
    """Whom it is for."""
    problem: Problem | None = None


def claim_names(stored: Stored, age: Age) -> tuple[TlsClaim, ...]:
    """The names in an Ingress's TLS sections; a section without hosts stands for the hosts of its rules."""
    ingress = cast(Ingress, stored.object)
    rules = [rule.host for rule in ingress.spec.rules if rule.host]
    claims: dict[str, TlsClaim] = {}
    for index, section in enumerate(ingress.spec.tls):
        secret = (ingress.metadata.namespace, section.secret_name) if section.secret_name else None
        for host in section.hosts or rules:
            claims.setdefault(host, TlsClaim(host, secret, age, stored.origin, f"spec.tls[{index}]"))
    return tuple(claims.values())


def read_secret(stored: Stored | None, name: SecretName, before: SecretPart | None) -> SecretPart:
    """The certificate in a Secret; the one it had `before` when it cannot be used any more."""
    last = before.certificate if before is not None else None
    names = before.names if before is not None else ()
    if stored is None:
        return SecretPart(None)
    try:
        chain, key, pair = _parse(cast(Secret, stored.object))
    except CertificateError as error:
        why = "the certificate it had before stays in use" if last else "its hosts get the default certificate"
        return SecretPart(last, names, Problem("LB3011", stored.origin, error.what, why, error.fix, "data"))
    return SecretPart(Certificate("/".join(name), chain, key, origin=stored.origin), pair.names)


def _parse(secret: Secret) -> tuple[str, str, Pair]:
    chain, key = _value(secret, "tls.crt"), _value(secret, "tls.key")
    pair = read_pair(chain, key)
    return only_certificates(chain), only_key(key), pair


def _value(secret: Secret, key: str) -> str:
    plain = (secret.string_data or {}).get(key)
    if plain is not None:
        return plain
    encoded = (secret.data or {}).get(key)
    if not encoded:
        raise CertificateError(f"the Secret has no {key}", "make it with `kubectl create secret tls`")
    try:
        return base64.b64decode(encoded, validate=False).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise CertificateError(f"{key} is not PEM in base64", "make it with `kubectl create secret tls`") from None


def assemble_names(
    claims: Iterable[TlsClaim], secrets: Mapping[SecretName, SecretPart]
) -> tuple[dict[str, TlsHost], dict[str, Certificate], tuple[Problem, ...]]:
    """What each name is served with, and the certificates for that. Of several claims the oldest Ingress's counts."""
    hosts: dict[str, TlsHost] = {}
    winners: dict[str, TlsClaim] = {}
    certificates: dict[str, Certificate] = {}
    problems = Problems()
    for claim in sorted(claims, key=lambda one: one.age):
        winner = winners.setdefault(claim.hostname, claim)
        if winner is not claim:
            if winner.secret != claim.secret:
                problems.extend((_taken(claim, winner),))
            continue
        part = secrets.get(claim.secret) if claim.secret is not None else None
        hosts[claim.hostname] = TlsHost()
        if claim.secret is None:
            continue
        problem = _complaint(claim, claim.secret, part)
        if problem is not None:
            problems.extend((problem,))
        elif part is not None and part.certificate is not None:
            hosts[claim.hostname] = TlsHost((part.certificate.name,))
            certificates[part.certificate.name] = part.certificate
    return hosts, certificates, tuple(problems)


def _complaint(claim: TlsClaim, secret: SecretName, part: SecretPart | None) -> Problem | None:
    """Why a name does not get the certificate of its Secret; None when it does, or when the Secret itself says why."""
    name = "/".join(secret)
    if part is None or (part.certificate is None and part.problem is None):
        return Problem(
            "LB3010",
            claim.origin,
            f"Secret {name} does not exist",
            f"{claim.hostname} is served with the default certificate",
            "check the name; the Secret is in the Ingress's own namespace, and exports leave Secrets out unless asked",
            f"{claim.field}.secretName",
        )
    if part.certificate is not None and not covers(part.names, claim.hostname):
        names = ", ".join(part.names[:5]) or "no name"
        return Problem(
            "LB3012",
            claim.origin,
            f"the certificate in Secret {name} is not for {claim.hostname} but for {names}",
            "the host is served with the default certificate",
            "have a certificate made whose subject alternative names include the host",
            f"{claim.field}.hosts",
        )
    return None


def _taken(claim: TlsClaim, winner: TlsClaim) -> Problem:
    return Problem(
        "LB3004",
        claim.origin,
        f"{claim.hostname} has its certificate from {winner.origin.object or 'an older Ingress'} already",
        "one name has one certificate; the older Ingress's is served",
        "name the same Secret in both",
        claim.field,
    )
