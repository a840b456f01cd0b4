"""What is told of the addresses at which Services are listened for, beside those at which their clients know them.

All addresses and one of them are two places (`lb/translate/places.py`), so nobody is refused here. But who names an
address takes it from whoever has the port on all; and who names none is found at addresses that nobody told clients of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lb.model.listener import Listener
from lb.problems import Origin, Problem

_MOST_SERVICES = 10
"""That a note names: one line for each of a thousand would be read by nobody."""


class Place(NamedTuple):
    """A port that an object has at some addresses, while another one has it on all."""

    taker: Listener
    holder: Listener
    """Who has all the other addresses."""
    is_decided: bool
    """Whether lb's own annotation names the addresses, and not what was written for others."""
    named: tuple[str, ...]
    """All addresses that the object names."""


def taken_from_all(place: Place, addresses: Sequence[str]) -> Problem:
    """What is told of a port that is taken at these addresses (LB4017; LB4018 where lb was told to)."""
    taker, holder = place.taker, place.holder
    origin = holder.origin
    whose = ", ".join(filter(None, (origin.object if origin.kind else "", origin.place))) or "lb's own, for Ingresses"
    port = f"{taker.transport.upper()} port {taker.port}"
    rest = "Ingresses get" if not origin.object else f"{origin.object if origin.kind else holder.name} gets"
    return Problem(
        "LB4018" if place.is_decided else "LB4017",
        taker.origin,
        f"{taker.origin.object} takes {port} at {', '.join(addresses)} from listener {holder.name} on {holder.bind} "
        f"({whose})",
        why=f"who names an address gets what comes to it; {rest} what comes to all others",
        fix=_fix_of_taken(place),
        field=next((route.field for route in taker.carried_routes), ""),
    )


def _fix_of_taken(place: Place) -> str:
    origin = place.holder.origin
    fix = "if this is not meant, give the Service another address or port"
    if not origin.object:
        fix += ', or lb/load-balancer: "false" if it is that of the controller whose Ingresses lb serves'
    elif not origin.kind:
        fix += f", or listener {place.holder.name} an address"
    elif origin.kind == "Service":
        fix += f", or {origin.object} addresses of its own with lb/addresses"
    if place.is_decided:
        return fix
    return f'{fix}; if it is meant, lb/addresses: "{", ".join(place.named)}" says so'


def known_elsewhere(services: Sequence[tuple[Origin, Sequence[str]]]) -> Problem | None:
    """The one note (LB4020) on Services that listen on all addresses although their clients know them at these."""
    if not services:
        return None
    first, addresses = services[0]
    command = f"kubectl annotate service -n {first.namespace} {first.name} lb/addresses={','.join(addresses)}"
    why = "they are reached at all other addresses of this host as well, those for its management included"
    if len(services) == 1:
        return Problem(
            "LB4020",
            first,
            f"{first.object} listens on all addresses; its clients know it at {', '.join(addresses)}",
            why=why.replace("they are", "it is"),
            fix=f"once this host has what clients know: {command}",
        )
    told = [f"{one.namespace}/{one.name} at {', '.join(known)}" for one, known in services[:_MOST_SERVICES]]
    if len(services) > _MOST_SERVICES:
        told.append(f"and {len(services) - _MOST_SERVICES} more")
    return Problem(
        "LB4020",
        Origin(),
        f"{len(services)} Services listen on all addresses; their clients know {'; '.join(told)}",
        why=why,
        fix=f"once this host has what clients know, for each of them: {command}",
    )


def external_addresses(origin: Origin, unheard: Sequence[str], heard: Sequence[str]) -> Problem:
    """The warning (LB4019) on `externalIPs` that are not among the addresses that a Service names."""
    every = ",".join((*heard, *unheard))
    return Problem(
        "LB4019",
        origin,
        f"{origin.object} has externalIPs {', '.join(unheard)}, where lb does not listen",
        why=f"it listens on {', '.join(heard)}, which the Service names; external addresses are kube-proxy's, on nodes",
        fix=f"once this host has all of them: kubectl annotate service -n {origin.namespace} {origin.name} "
        f"lb/addresses={every}; {','.join(heard)} alone says that this is meant",
        field="spec.externalIPs",
    )
