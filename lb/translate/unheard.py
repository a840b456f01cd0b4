"""Why nothing listens on a port that an object asks for: `lb explain` tells it to whoever finds nobody there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import cast

from lb.model.listener import Transport
from lb.objects.core import Service
from lb.objects.view import View
from lb.problems import NOT_LISTENED_FOR, WHERE_TO_LISTEN, Problem

_ONE_PORT = re.compile(r"spec\.ports\[([0-9]+)\]")


def unheard(problems: Iterable[Problem], view: View, port: int, transport: Transport) -> Iterator[Problem]:
    """Those that keep a port from being listened on. `view` has the objects that they are about."""
    return (
        one
        for one in problems
        if (one.code in NOT_LISTENED_FOR or one.field in WHERE_TO_LISTEN) and _asks_for(one, view, port, transport)
    )


def _asks_for(problem: Problem, view: View, port: int, transport: Transport) -> bool:
    """Whether it is about that port; a problem of a whole Service is about all its ports."""
    origin = problem.origin
    if origin.kind == "ConfigMap":
        return problem.field == f"data[{port}]"
    stored = view.get("Service", origin.namespace, origin.name) if origin.kind == "Service" else None
    if stored is None:
        return False
    ports = cast(Service, stored.object).spec.ports
    if found := _ONE_PORT.match(problem.field):
        ports = ports[int(found[1]) :][:1]
    others = {"tcp", "udp"} - {transport}
    return any(one.port == port and one.protocol.lower() not in others for one in ports)
