"""One Ingress: its rules as claims on hosts, and the Service ports it refers to.

Whatever is wrong with a rule costs only that rule. What cannot be served is answered on its own path, so that its
requests do not reach another rule's backend: 503 for a Service that is missing, 404 for a resource backend or none (as
ingress-nginx does).
"""

from __future__ import annotations

import ipaddress
import re
from typing import cast

import msgspec

from lb.certs.pem import covers
from lb.model.normalize import Rejected, normalize_rule_path
from lb.model.route import (
    Forward,
    Match,
    PathKind,
    PathMatch,
    Respond,
    Route,
    RouteOptions,
    WeightedUpstream,
)
from lb.model.upstream import Balance
from lb.objects.networking import HTTPIngressPath, Ingress, IngressBackend, IngressServiceBackend
from lb.objects.view import Stored, View
from lb.problems import Problem, Problems
from lb.translate.annotations import GUARDED, SSL_PASSTHROUGH, read_annotations
from lb.translate.options import Options
from lb.translate.passthrough import wants_passthrough
from lb.translate.precedence import DEFAULT_FIELD, Age, Claim, age_of
from lb.translate.services import PortTable, Reference, missing_port, read_port_table, resolve_reference
from lb.translate.tls import CLIENTS_FIELD, TlsClaim, WantedClients, claim_names, is_strict, read_wanted_clients

CATCH_ALL = "*"
"""The host of rules without a host, and of a default backend without rules."""

_PATH_KINDS: dict[str, PathKind] = {
    "Exact": "exact",
    "Prefix": "prefix",
    # "nginx prefix match": ingress-nginx without use-regex makes a plain `location` of it.
    "ImplementationSpecific": "string-prefix",
}

_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")
"""Paths that are valid and normalised as they stand: nearly all of them."""

_LABELS = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_HOST = re.compile(rf"(\*\.)?{_LABELS}")
"""apimachinery `IsDNS1123Subdomain` and `IsWildcardDNS1123Subdomain`."""

_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

_FORBIDDEN_SEQUENCES = ("//", "/./", "/../", "%2f", "%2F")
_FORBIDDEN_ENDS = ("/..", "/.")
"""For Exact and Prefix; kubernetes pkg/apis/networking/validation, validateHTTPIngressPath."""


class IngressPart(msgspec.Struct, frozen=True):
    """An Ingress's share of the model."""

    age: Age
    claims: tuple[Claim, ...] = ()
    references: tuple[Reference, ...] = ()
    """Each once."""
    balance: Balance | None = None
    """What `lb/balance` asks for, for all references."""
    tls: tuple[TlsClaim, ...] = ()
    problems: tuple[Problem, ...] = ()


class Directory:
    """What many Ingresses share while they are translated: the Services' ports, and values that are equal.

    A cache over one View, to be thrown away with it.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._tables: dict[tuple[str, str], PortTable] = {}
        self._references: dict[tuple[str, str, str, int], tuple[Reference, Forward]] = {}
        self._matches: dict[tuple[str, str], Match] = {}
        self._fields: dict[tuple[int, int], str] = {}

    def table(self, namespace: str, service: str) -> PortTable:
        key = (namespace, service)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = read_port_table(self._view.get("Service", namespace, service))
        return table

    def refer(self, namespace: str, backend: IngressServiceBackend) -> tuple[Reference, Forward]:
        key = (namespace, backend.name, backend.port.name, backend.port.number)
        found = self._references.get(key)
        if found is None:
            table = self.table(namespace, backend.name)
            reference = resolve_reference(table, namespace, backend.name, backend.port)
            found = self._references[key] = (reference, Forward((WeightedUpstream(reference.upstream),)))
        return found

    def match(self, kind: PathKind, value: str) -> Match:
        key = (kind, value)
        match = self._matches.get(key)
        if match is None:
            match = self._matches[key] = Match(PathMatch(kind, value))
        return match

    def field(self, rule: int, path: int) -> str:
        key = (rule, path)
        field = self._fields.get(key)
        if field is None:
            field = self._fields[key] = f"spec.rules[{rule}].http.paths[{path}]"
        return field


def translate_ingress(stored: Stored, options: Options, directory: Directory) -> IngressPart:
    """The share of an Ingress that is ours."""
    return _IngressTranslation(stored, options, directory).translate()


def foreign_ingress(stored: Stored, problem: Problem) -> IngressPart:
    """The share of an Ingress that is not ours: only the problem that says so."""
    return IngressPart(age_of(stored.object.metadata), problems=(problem,))


class _IngressTranslation:
    """One Ingress; holds what all its rules share."""

    __slots__ = (
        "_age",
        "_balance",
        "_directory",
        "_ingress",
        "_name",
        "_namespace",
        "_options",
        "_origin",
        "_passes_tls",
        "_problems",
        "_references",
        "_tls",
        "_tls_options",
    )

    def __init__(self, stored: Stored, options: Options, directory: Directory) -> None:
        self._ingress = cast(Ingress, stored.object)
        self._origin = stored.origin
        self._directory = directory
        self._namespace = self._ingress.metadata.namespace
        self._name = f"{self._namespace}/{self._ingress.metadata.name}"
        self._problems = Problems()
        self._references: dict[Reference, None] = {}
        served = (SSL_PASSTHROUGH,) if options.ssl_passthrough else ()
        values = read_annotations(stored, "Ingress", self._problems, served)
        self._passes_tls = stored.origin if wants_passthrough(stored, options, self._problems) else None
        self._balance: Balance | None = values.balance
        self._options: RouteOptions = (
            msgspec.structs.replace(options.route, **values.route) if values.route else options.route
        )
        self._age = age_of(self._ingress.metadata)
        mistake = values.mistakes.get("clients", "")
        clients = read_wanted_clients(values.clients, mistake, self._namespace)
        self._tls: tuple[TlsClaim, ...] = ()
        self._tls_options = self._options
        if self._ingress.spec.tls or clients is not None:
            self._tls = claim_names(stored, self._age, clients)
            if clients is not None and not mistake:
                self._check_clients(clients)
            if self._options.https_redirect is None:
                # ingress-nginx: ssl-redirect is on where there is TLS, with 308 (http-redirect-code).
                self._tls_options = msgspec.structs.replace(self._options, https_redirect=308)

    def _check_clients(self, clients: WantedClients) -> None:
        """Whether what is asked of clients can be asked, and is asked of all of them."""
        if clients.asked.why:
            fix = "name a Secret or ConfigMap with ca.crt in lb/client-ca"
            self._add("LB5010", clients.asked.why, GUARDED["clients"], CLIENTS_FIELD, fix)
        if not self._ingress.spec.tls:
            what = "client certificates are asked for, and there is no TLS section"
            why = "its hosts are served by TLS all the same, with the default certificate"
            self._add("LB5010", what, why, CLIENTS_FIELD, "add spec.tls with a Secret")
        if self._options.https_redirect == 0 and not is_strict(clients.asked):
            what = "client certificates are asked for, and plain HTTP is not sent to https"
            why = "who comes by plain HTTP shows no certificate"
            self._add("LB5010", what, why, CLIENTS_FIELD, "take lb/ssl-redirect away")

    def translate(self) -> IngressPart:
        spec = self._ingress.spec
        routes: dict[str, list[Route]] = {}
        for index, rule in enumerate(spec.rules):
            host = rule.host or CATCH_ALL
            mistake = _host_mistake(rule.host)
            if mistake:
                self._add("LB3002", f"host {rule.host!r} {mistake}", "the rule is ignored", f"spec.rules[{index}].host")
                continue
            # A host whose rule has no http is known all the same: what it is asked for is the default backend's.
            taken = routes.setdefault(host, [])
            if rule.http is not None:
                self._translate_paths(index, rule.http.paths, taken, self._options_of(host))
        if not spec.rules and spec.default_backend is not None:
            routes[CATCH_ALL] = []
        if not spec.rules and spec.default_backend is None:
            self._add("LB1003", "spec has neither rules nor a defaultBackend", "the Ingress serves nothing", "spec")
        defaults = self._translate_default(list(routes)) if spec.default_backend is not None else {}
        age = self._age
        return IngressPart(
            age,
            tuple(
                [Claim(host, age, tuple(taken), defaults.get(host), self._passes_tls) for host, taken in routes.items()]
            ),
            tuple(self._references),
            self._balance,
            self._tls,
            tuple(self._problems),
        )

    def _options_of(self, host: str) -> RouteOptions:
        """Of a host's routes: those of a host with TLS send plain HTTP there."""
        if self._tls and covers((claim.hostname for claim in self._tls), host):
            return self._tls_options
        return self._options

    def _translate_paths(
        self, rule: int, paths: tuple[HTTPIngressPath, ...], routes: list[Route], options: RouteOptions
    ) -> None:
        for index, path in enumerate(paths):
            field = self._directory.field(rule, index)
            kind = _PATH_KINDS.get(path.path_type)
            if kind is None:
                what = f"pathType {path.path_type!r} is not known" if path.path_type else "pathType is missing"
                fix = "write Exact, Prefix or ImplementationSpecific"
                self._add("LB3003", what, "the rule is ignored", f"{field}.pathType", fix)
                continue
            value = path.path
            if _PLAIN_PATH.fullmatch(value) is None or not value:
                value, mistake = _normalize(kind, value)
                if mistake:
                    what = f"path {path.path!r} {mistake}"
                    self._add("LB3001", what, "the rule is ignored", f"{field}.path")
                    continue
            routes.append(
                Route(
                    f"{self._name}:{rule}:{index}",
                    self._directory.match(kind, value),
                    self._translate_backend(path.backend, field, "backend"),
                    options,
                    self._origin,
                    field,
                )
            )

    def _translate_default(self, hosts: list[str]) -> dict[str, Route]:
        """The default backend as the last route of each host (ingress-nginx, createServers).

        With several hosts each has its own name for it, because names of routes are unique.
        """
        backend = self._ingress.spec.default_backend or IngressBackend()
        action = self._translate_backend(backend, DEFAULT_FIELD, "")
        match = self._directory.match("prefix", "/")
        routes = {}
        for host in hosts:
            name = f"{self._name}:default:{host}" if len(hosts) > 1 else f"{self._name}:default"
            routes[host] = Route(name, match, action, self._options_of(host), self._origin, DEFAULT_FIELD)
        return routes

    def _translate_backend(self, backend: IngressBackend, field: str, child: str) -> Forward | Respond:
        service = backend.service
        if service is not None and backend.resource is None and service.name:
            if (not service.port.name) != (not service.port.number):
                reference, forward = self._directory.refer(self._namespace, service)
                if reference.mistake:
                    self._report_reference(reference, field, child)
                self._references[reference] = None
                return forward
            which = "both a name and a number" if service.port.name else "neither a name nor a number"
            return self._refuse("LB3005", 503, f"the backend's port has {which}", field, child)
        if backend.resource is not None and service is None:
            resource = f"{backend.resource.kind} {backend.resource.name}"
            return self._refuse("LB3006", 404, f"resource backends are not served: {resource}", field, child)
        which = "both a service and a resource" if backend.resource is not None else "no service"
        return self._refuse("LB3005", 404, f"the backend has {which}", field, child)

    def _refuse(self, code: str, status: int, what: str, field: str, child: str) -> Respond:
        self._add(code, what, f"its requests are answered {status}", f"{field}.{child}" if child else field)
        return Respond(status, why=what)

    def _report_reference(self, reference: Reference, field: str, child: str) -> None:
        if reference.mistake == "LB4001":
            what = f"Service {reference.namespace}/{reference.service} does not exist"
            fix = "check the name, in the Ingress's own namespace, and whether LB1003 leaves the Service out"
        else:
            what, fix = missing_port(reference, self._directory.table(reference.namespace, reference.service))
        place = f"{field}.{child}" if child else field
        self._add(reference.mistake, what, "its requests are answered 503", f"{place}.service", fix)

    def _add(self, code: str, what: str, why: str, field: str, fix: str = "") -> None:
        self._problems.add(code, self._origin, what, why=why, fix=fix, field=field)


def _host_mistake(host: str) -> str:
    """What is wrong with a host; empty when nothing is (kubernetes pkg/apis/networking/validation)."""
    if not host:
        return ""
    if _HOST.fullmatch(host) is not None and len(host) <= 253:
        return "is an IP address" if host[-1].isdigit() and _is_address(host) else ""
    if host == "*":
        return "is not a host; leave it out to serve all hosts"
    if ":" in host:
        return "has a port or is an address"
    if "*" in host.removeprefix("*."):
        return "has a * that is not its whole first label"
    if host != host.lower():
        return "has upper-case letters; write it in lower case"
    return "is not a DNS name (RFC 1123)"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _normalize(kind: PathKind, path: str) -> tuple[str, str]:
    """(the path as normalised requests have it, what is wrong with it)."""
    if not path and kind == "string-prefix":
        return "/", ""  # ingress-nginx: rootLocation.
    if not path.startswith("/"):
        return path, "does not begin with /"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        return path, "has a control character"
    if kind != "string-prefix":
        for sequence in _FORBIDDEN_SEQUENCES:
            if sequence in path:
                return path, f"contains {sequence}"
        for end in _FORBIDDEN_ENDS:
            if path.endswith(end):
                return path, f"ends with {end}"
    # Rules are written in the URL's characters, requests arrive escaped; a % that escapes nothing stands for itself.
    normal = normalize_rule_path(_LONE_PERCENT.sub("%25", path), partial=kind == "string-prefix")
    if isinstance(normal, Rejected):
        return path, f"never matches: {normal.why}"
    return normal, ""
