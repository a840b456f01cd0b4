"""TLS towards the endpoints of a Service, from its annotations `lb/backend-…`.

Nothing is verified by accident and nothing goes unverified in silence: without a word the system's authorities and the
name SERVICE.NAMESPACE.svc count; `lb/backend-verify: "false"` is a problem that stays; and what is asked for and cannot
be done keeps requests away from the endpoints instead of sending them in the clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lb.model.tls import Certificate, UpstreamTls
from lb.objects.core import Service
from lb.objects.view import Stored
from lb.problems import Problems
from lb.translate.annotations import field_of
from lb.translate.material import Material, MaterialName


class BackendTls(msgspec.Struct, frozen=True):
    """How the endpoints of a Service are spoken to."""

    tls: UpstreamTls | None = None
    """None: plain."""
    why: str = ""
    """Why they are not to be spoken to at all."""
    certificate: Certificate | None = None
    """That lb shows them."""
    uses: tuple[MaterialName, ...] = ()


def read_backend_tls(
    stored: Stored, values: Mapping[str, Any], mistake: str, material: Material, problems: Problems
) -> BackendTls:
    """What a Service's annotations say. `mistake`: what is wrong with one of them."""
    if mistake:
        return BackendTls(why=f"how its endpoints are spoken to is not understood: {mistake}")
    if not values.get("enabled", bool(values)):
        if len(values) > 1:
            problems.add(
                "LB5008",
                stored.origin,
                "annotations for TLS to the endpoints have no effect: lb/backend-tls turns it off",
                why="requests are sent in the clear",
                fix='write lb/backend-tls: "true"',
                field=field_of("tls", "enabled"),
            )
        return BackendTls()
    return _Reader(stored, values, material, problems).read()


class _Reader:
    def __init__(self, stored: Stored, values: Mapping[str, Any], material: Material, problems: Problems) -> None:
        self._stored = stored
        self._values = values
        self._material = material
        self._problems = problems
        self._namespace = stored.object.metadata.namespace
        self._uses: list[MaterialName] = []
        self._why = ""

    def read(self) -> BackendTls:
        verify = self._values.get("verify", True)
        names = self._values.get("names", ())
        # Before the certificate: it is of no use to say what is wrong with both at once.
        ca, crl = self._authorities() if verify else ("", "")
        certificate = self._certificate()
        if not verify:
            report_unverified(self._problems, self._stored, f"Service {self._name}")
        if self._why:
            return BackendTls(why=self._why, uses=tuple(self._uses))
        tls = UpstreamTls(
            self._values.get("server_name") or self._default_name(),
            verify,
            ca,
            crl,
            names if verify else (),
            certificate.name if certificate is not None else "",
        )
        return BackendTls(tls, "", certificate, tuple(self._uses))

    @property
    def _name(self) -> str:
        return f"{self._namespace}/{self._stored.object.metadata.name}"

    def _default_name(self) -> str:
        """What certificates inside a cluster are made for (OpenShift's service CA, cert-manager's examples)."""
        service = self._stored.object
        if isinstance(service, Service) and service.spec.type == "ExternalName":
            return service.spec.external_name.removesuffix(".")
        return f"{service.metadata.name}.{self._namespace}.svc"

    def _authorities(self) -> tuple[str, str]:
        source = self._values.get("ca")
        if source is None:
            return "", ""
        name = MaterialName("authorities", source[0], self._namespace, source[1])
        self._uses.append(name)
        bundle = self._material.authorities(name)
        if not bundle.ca:
            self._cannot(name, missing=bundle.problem is None, code="LB3013", field="ca")
        return bundle.ca, bundle.crl

    def _certificate(self) -> Certificate | None:
        secret = self._values.get("certificate")
        if secret is None:
            return None
        name = MaterialName("certificate", "Secret", self._namespace, secret)
        self._uses.append(name)
        part = self._material.certificate((self._namespace, secret))
        if part.certificate is None:
            self._cannot(name, missing=part.problem is None, code="LB3010", field="certificate")
        return part.certificate

    def _cannot(self, name: MaterialName, *, missing: bool, code: str, field: str) -> None:
        """What an annotation names cannot be had. What is wrong inside an object is said of that object."""
        self._why = f"{name.object} does not exist" if missing else f"{name.object} cannot be used"
        if missing:
            self._problems.add(
                code,
                self._stored.origin,
                self._why,
                why="requests are answered 503: the endpoints cannot be spoken to as asked",
                fix="check the name; it is in the Service's own namespace, and exports leave it out unless asked",
                field=field_of("tls", field),
            )


def report_unverified(problems: Problems, stored: Stored, whose: str) -> None:
    problems.add(
        "LB5009",
        stored.origin,
        f"the certificates of the endpoints of {whose} are not verified",
        why="whoever answers at their addresses is taken for them, and sees all requests",
        fix="name the authority that has signed them in lb/backend-ca, and take lb/backend-verify away",
        field=field_of("tls", "verify"),
    )
