"""What Secrets and ConfigMaps hold for TLS: certificates with their keys, and bundles of authorities.

Read when somebody names one, and kept for the next translation. What turns bad keeps what it held before; what is not
there any more holds nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, cast

import msgspec

from lb.certs.pem import CertificateError, Pair, only_certificates, only_key, read_bundle, read_pair
from lb.model.tls import Certificate
from lb.objects.core import ConfigMap, Secret
from lb.objects.view import Stored, View
from lb.problems import Problem
from lb.translate.guard import guarded

SecretName = tuple[str, str]
"""(namespace, name)"""

AUTHORITIES_KEY = "ca.crt"
LISTS_KEY = "ca.crl"


class MaterialName(NamedTuple):
    """What is read from where."""

    use: Literal["certificate", "authorities"]
    kind: str
    """Secret or ConfigMap."""
    namespace: str
    name: str

    @property
    def object(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class SecretPart(msgspec.Struct, frozen=True):
    """What became of a Secret with a certificate."""

    certificate: Certificate | None
    names: tuple[str, ...] = ()
    """Whom it is for."""
    problem: Problem | None = None


class BundlePart(msgspec.Struct, frozen=True):
    """What became of an object with authorities."""

    ca: str = ""
    """PEM; empty when there are none."""
    crl: str = ""
    problem: Problem | None = None


Part = SecretPart | BundlePart
Parts = Mapping[MaterialName, Part]


class Material:
    """The objects that are named in one translation, over those of the one before."""

    def __init__(self, view: View, old: Parts, stale: Iterable[MaterialName]) -> None:
        """`stale` are those of `old` whose objects may say something else now."""
        self._view = view
        self._old = old
        self._kept: dict[MaterialName, Part] = dict(old)
        self._touched = set(stale)
        """What may differ from before: of 100,000 Secrets most are not looked at."""
        for name in self._touched:
            del self._kept[name]

    def certificate(self, secret: SecretName) -> SecretPart:
        """The certificate in a Secret, or the last good one."""
        return cast(SecretPart, self._read(MaterialName("certificate", "Secret", *secret)))

    def authorities(self, name: MaterialName) -> BundlePart:
        """The authorities in an object, or the last good ones."""
        return cast(BundlePart, self._read(name))

    def changed(self) -> Iterator[tuple[MaterialName, Part | None]]:
        """What differs from before; None for what is gone."""
        for name in self._touched:
            if self._old.get(name) is not self._kept.get(name):
                yield name, self._kept.get(name)

    def parts(self, wanted: Iterable[MaterialName] | None) -> Parts:
        """For the next translation: all, or those that are still `wanted`. The old ones themselves when they are the
        same."""
        if wanted is not None:
            self._kept = {name: self._kept[name] for name in dict.fromkeys(wanted) if name in self._kept}
            self._touched |= self._old.keys() - self._kept.keys()
        return self._kept if any(True for _ in self.changed()) else self._old

    def _read(self, name: MaterialName) -> Part:
        part = self._kept.get(name)
        if part is None:
            before = self._old.get(name)
            stored = self._view.get(name.kind, name.namespace, name.name)
            if name.use == "certificate":
                part = _read_secret(stored, name, cast("SecretPart | None", before))
            else:
                part = _read_bundle(stored, cast("BundlePart | None", before))
            self._kept[name] = part = before if before == part and before is not None else part
            self._touched.add(name)
        return part


def _read_secret(stored: Stored | None, name: MaterialName, before: SecretPart | None) -> SecretPart:
    if stored is None:
        return SecretPart(None)
    last = before.certificate if before is not None else None
    why = "the certificate it had before stays in use" if last else "its hosts get the default certificate"

    def read() -> SecretPart:
        try:
            chain, key, pair = _parse_pair(cast(Secret, stored.object))
        except CertificateError as error:
            return instead(Problem("LB3011", stored.origin, error.what, why, error.fix, "data"))
        return SecretPart(Certificate(f"{name.namespace}/{name.name}", chain, key, origin=stored.origin), pair.names)

    def instead(problem: Problem) -> SecretPart:
        return SecretPart(last, before.names if before is not None else (), problem)

    return guarded(read, instead, stored.origin, why)


def _read_bundle(stored: Stored | None, before: BundlePart | None) -> BundlePart:
    if stored is None:
        return BundlePart()
    last = before if before is not None else BundlePart()
    why = "what it held before stays in use" if last.ca else "nobody is trusted by it"

    def read() -> BundlePart:
        try:
            return BundlePart(*_parse_bundle(stored.object))
        except CertificateError as error:
            return instead(Problem("LB3014", stored.origin, error.what, why, error.fix, "data"))

    def instead(problem: Problem) -> BundlePart:
        return BundlePart(last.ca, last.crl, problem)

    return guarded(read, instead, stored.origin, why)


def _parse_pair(secret: Secret) -> tuple[str, str, Pair]:
    fix = "make it with `kubectl create secret tls`"
    chain, key = _value(secret, "tls.crt", fix), _value(secret, "tls.key", fix)
    pair = read_pair(chain, key)
    return only_certificates(chain), only_key(key), pair


def _parse_bundle(found: object) -> tuple[str, str]:
    """(authorities, revocation lists) as PEM."""
    fix = f"put the authorities' certificates there, as PEM, under {AUTHORITIES_KEY}"
    ca = _value(found, AUTHORITIES_KEY, fix)
    if not read_bundle(ca).certificates:
        raise CertificateError(f"there is no certificate in {AUTHORITIES_KEY}", fix)
    if not _has(found, LISTS_KEY):
        return only_certificates(ca), ""
    fix = f"put the revocation lists there, as PEM, or take {LISTS_KEY} away"
    crl = _value(found, LISTS_KEY, fix)
    if not read_bundle(crl).lists:
        raise CertificateError(f"there is no revocation list in {LISTS_KEY}", fix)
    return only_certificates(ca), crl


def _has(found: object, key: str) -> bool:
    plain = found.string_data if isinstance(found, Secret) else None
    data = found.data if isinstance(found, Secret | ConfigMap) else None
    return key in (plain or {}) or key in (data or {})


def _value(found: object, key: str, fix: str) -> str:
    """A text of a Secret or ConfigMap. CertificateError when there is none."""
    if isinstance(found, ConfigMap):
        text = (found.data or {}).get(key)
        if text:
            return text
        raise CertificateError(f"the ConfigMap has no {key}", fix)
    secret = cast(Secret, found)
    plain = (secret.string_data or {}).get(key)
    if plain is not None:
        return plain
    encoded = (secret.data or {}).get(key)
    if not encoded:
        raise CertificateError(f"the Secret has no {key}", fix)
    try:
        return base64.b64decode(encoded, validate=False).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise CertificateError(f"{key} is not PEM in base64", fix) from None
