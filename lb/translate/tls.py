"""TLS towards clients: the `spec.tls` sections of Ingresses as claims on names, and what is asked of clients there.

As in ingress-nginx a host whose Secret is missing, bad or for other names is served with the default certificate: its
clients see that something is wrong, its requests are not lost, and no other host's certificate is ever shown. With
client certificates it is the other way round: what cannot be verified lets nobody in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from lb.certs.pem import covers
from lb.model.route import Route
from lb.model.tls import DEFAULT_HOST, Certificate, ClientCertificates, ClientMode, TlsHost
from lb.objects.networking import Ingress
from lb.objects.view import Stored
from lb.problems import Origin, Problem, Problems
from lb.translate.annotations import field_of
from lb.translate.material import Material, MaterialName, SecretName, SecretPart
from lb.translate.precedence import Age

CLIENTS_FIELD = field_of("clients", "mode")


_STRICTNESS: dict[ClientMode, int] = {"off": 0, "unverified": 1, "optional": 2, "required": 3, "nobody": 3}
"""A mistake (nobody) does not take the place of a certificate that an older Ingress requires."""


def is_strict(asked: ClientCertificates) -> bool:
    """Whether nobody gets in without a certificate."""
    return asked.mode in ("required", "nobody")


def send_to_https(route: Route) -> Route:
    """Plain HTTP would be the way around certificates: who comes by it shows none."""
    return msgspec.structs.replace(route, options=msgspec.structs.replace(route.options, https_redirect=308))


def redirect_stays(origin: Origin) -> Problem:
    return Problem(
        "LB5011",
        origin,
        "lb/ssl-redirect is off, and clients of its hosts must show certificates",
        "plain HTTP is sent to https all the same: who comes by it shows no certificate",
        "take lb/ssl-redirect away",
        field_of("route", "https_redirect"),
    )


class WantedClients(msgspec.Struct, frozen=True):
    """What an Ingress asks of clients."""

    asked: ClientCertificates
    """Without the authorities; `why` says what is wrong with the annotations, if anything is."""
    authorities: MaterialName | None = None


class TlsClaim(msgspec.Struct, frozen=True):
    """A name that an Ingress wants to be served by TLS."""

    hostname: str
    secret: SecretName | None
    """None: with the default certificate."""
    age: Age
    origin: Origin
    field: str
    """`spec.tls[0]`"""
    clients: WantedClients | None = None
    """None: the Ingress does not say."""


def read_wanted_clients(values: Mapping[str, Any], mistake: str, namespace: str) -> WantedClients | None:
    """What the annotations ask of clients; nobody gets in when they cannot be understood. None: they ask nothing."""
    if mistake:
        return WantedClients(ClientCertificates("nobody", why=mistake))
    mode = values.get("mode", "required")
    if not values or mode == "off":
        return None
    if mode in ("optional", "required") and "ca" not in values:
        why = f"lb/client-certificate: {mode} needs lb/client-ca, which names the authorities"
        return WantedClients(ClientCertificates("nobody", why=why))
    asked = ClientCertificates(mode, forward=values.get("forward", ()))
    if "depth" in values:
        asked = msgspec.structs.replace(asked, depth=values["depth"])
    if mode not in ("optional", "required"):
        return WantedClients(asked)
    kind, name = values["ca"]
    return WantedClients(asked, MaterialName("authorities", kind, namespace, name))


def claim_names(stored: Stored, age: Age, clients: WantedClients | None) -> tuple[TlsClaim, ...]:
    """The names in an Ingress's TLS sections; a section without hosts stands for the hosts of its rules.

    What is asked of clients holds for all hosts of the Ingress. Each of them is a claim of its own then, also where
    a wildcard covers it or no section names it: another Ingress's certificate must not open it.
    """
    ingress = cast(Ingress, stored.object)
    namespace = ingress.metadata.namespace
    rules = [rule.host for rule in ingress.spec.rules if rule.host]
    claims: dict[str, TlsClaim] = {}
    for index, section in enumerate(ingress.spec.tls):
        secret = (namespace, section.secret_name) if section.secret_name else None
        for host in section.hosts or rules:
            claims.setdefault(host, TlsClaim(host, secret, age, stored.origin, f"spec.tls[{index}]", clients))
    if clients is not None:
        everybody = any(not rule.host for rule in ingress.spec.rules) or not ingress.spec.rules
        for host in (*rules, *((DEFAULT_HOST,) if everybody else ())):
            if host not in claims:
                near = next((one for one in claims.values() if covers((one.hostname,), host)), None)
                secret = near.secret if near is not None else None
                claims[host] = TlsClaim(host, secret, age, stored.origin, CLIENTS_FIELD, clients)
    return tuple(claims.values())


def assemble_names(
    claims: Iterable[TlsClaim], material: Material
) -> tuple[dict[str, TlsHost], dict[str, Certificate], tuple[Problem, ...]]:
    """What each name is served with, and the certificates for that."""
    problems = Problems()
    ordered = sorted(claims, key=lambda one: one.age)
    certificates: dict[str, Certificate] = {}
    shown = _assemble_certificates(ordered, material, certificates, problems)
    asked = _assemble_clients(ordered, material, problems)
    nothing = ClientCertificates()
    hosts = {name: TlsHost(names, asked.get(name, nothing)) for name, names in shown.items()}
    return hosts, certificates, tuple(problems)


def _assemble_certificates(
    claims: Iterable[TlsClaim], material: Material, certificates: dict[str, Certificate], problems: Problems
) -> dict[str, tuple[str, ...]]:
    """Of several claims the oldest Ingress's counts, and one that a TLS section makes before one that none makes."""
    shown: dict[str, tuple[str, ...]] = {}
    winners: dict[str, TlsClaim] = {}
    for claim in sorted(claims, key=lambda one: one.field == CLIENTS_FIELD):
        winner = winners.setdefault(claim.hostname, claim)
        if winner is not claim:
            if winner.secret != claim.secret and claim.field != CLIENTS_FIELD:
                problems.extend((_taken(claim, winner),))
            continue
        shown[claim.hostname] = ()
        if claim.secret is None:
            continue
        part = material.certificate(claim.secret)
        problem = _complaint(claim, claim.secret, part)
        if problem is not None:
            problems.extend((problem,))
        elif part.certificate is not None:
            shown[claim.hostname] = (part.certificate.name,)
            certificates[part.certificate.name] = part.certificate
    return shown


def _assemble_clients(
    claims: Iterable[TlsClaim], material: Material, problems: Problems
) -> dict[str, ClientCertificates]:
    """Of several Ingresses the one counts that asks most of clients, so that none opens what another one guards; of
    those that ask as much, the oldest. `claims` come by age.
    """
    askers: dict[str, list[tuple[TlsClaim, WantedClients]]] = {}
    for claim in claims:
        if claim.clients is not None:
            askers.setdefault(claim.hostname, []).append((claim, claim.clients))
    asked: dict[str, ClientCertificates] = {}
    for hostname, several in askers.items():
        strictest, wanted = max(several, key=lambda one: _STRICTNESS[one[1].asked.mode])
        asked[hostname] = _ask(strictest, wanted, material, problems)
        problems.extend(_contradicted(claim, strictest) for claim, other in several if other != wanted)
    return asked


def _ask(claim: TlsClaim, clients: WantedClients, material: Material, problems: Problems) -> ClientCertificates:
    """What is asked of the clients of a name, with the authorities; nobody gets in without them."""
    source = clients.authorities
    if source is None:
        return clients.asked
    bundle = material.authorities(source)
    if bundle.ca:
        return msgspec.structs.replace(clients.asked, ca=bundle.ca, crl=bundle.crl)
    why = f"the authorities in {source.object} cannot be used"
    if bundle.problem is None:
        why = f"{source.object} does not exist"
        problems.add(
            "LB3013",
            claim.origin,
            why,
            why="nobody gets in: who the clients are cannot be verified",
            fix="check the name; it is in the Ingress's own namespace, and exports leave it out unless asked",
            field=field_of("clients", "ca"),
        )
    return ClientCertificates("nobody", why=why)


def _complaint(claim: TlsClaim, secret: SecretName, part: SecretPart) -> Problem | None:
    """Why a name does not get the certificate of its Secret; None when it does, or when the Secret itself says why."""
    name = "/".join(secret)
    if part.certificate is None and part.problem is None:
        return Problem(
            "LB3010",
            claim.origin,
            f"Secret {name} does not exist",
            f"{claim.hostname} is served with the default certificate",
            "check the name, in the Ingress's own namespace; exports leave Secrets out unless asked, LB1003 bad ones",
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


def _contradicted(claim: TlsClaim, asker: TlsClaim) -> Problem:
    ours, theirs = (one.origin.object or "another Ingress" for one in (claim, asker))
    return Problem(
        "LB5012",
        claim.origin,
        f"what {ours} asks of clients of {claim.hostname} differs from what {theirs} asks",
        f"one name asks one thing of its clients: {theirs} decides, which is stricter, or as strict and older",
        "say the same in both",
        CLIENTS_FIELD,
    )
