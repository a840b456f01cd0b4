"""What `lb explain` says, as plain data: the steps of a decision, and what each of them found.

The CLI prints it, the admin API sends it as JSON, and the CLI prints what the admin API sent.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lb.model.upstream import Protocol
from lb.problems import Origin

Verdict = Literal["won", "lost", "not-reached"]


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """What in the input caused something. Lines and columns count from 1; 0 where they are not known."""

    object: str = ""
    """`Ingress shop/web`."""
    file: str = ""
    line: int = 0
    column: int = 0
    item: str = ""
    """`items[12]`: the place in a JSON file."""
    field: str = ""

    @property
    def place(self) -> str:
        """`web.yaml:12:3`."""
        return Origin(file=self.file, line=self.line, column=self.column, item=self.item).place


class ListenerStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A listener on the port that was asked for."""

    name: str
    bind: str
    """`*:80`."""
    host_set: str
    """Empty for a listener that carries bytes."""
    verdict: Verdict
    source: Source
    published: str = ""
    """Where clients reach it, when that is not its own address."""
    closed: str = ""
    """Why the running daemon could not open it; empty when it is open, or when nobody knows."""


class CertificateStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A certificate that the client may be shown."""

    name: str
    """Empty: the one that lb makes for itself."""
    kind: str
    names: tuple[str, ...] = ()
    expires: float = 0
    """Seconds since the epoch; 0: not known."""
    mistake: str = ""
    """Why clients will refuse it, or why it is not shown."""
    warning: str = ""
    """That it is shown because a newer one was refused."""
    source: Source = Source()


class TlsStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """The handshake before the request."""

    server_name: str
    """Empty: the client names nobody."""
    entry: str
    """Of the listener: `shop.example.com`, `*.example.com`, or `*`."""
    why: str
    """exact name, what the wildcard covers, or that it is the default."""
    policy: str
    clients: str
    """What is asked of clients."""
    certificates: tuple[CertificateStep, ...] = ()
    """Clients get the first one whose kind of key they understand."""


class NameStep(msgspec.Struct, frozen=True):
    """An entry of the listener's `names`, and whether it takes the connection."""

    entry: str
    """`db.example.com`, `*.example.com`, or `*`."""
    verdict: Verdict
    why: str


class HostStep(msgspec.Struct, frozen=True):
    """A virtual host that could have served the host."""

    hostname: str
    verdict: Verdict
    why: str
    routes: int


class RouteStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route of the chosen host, in rank order."""

    name: str
    match: str
    verdict: Verdict
    failed: str = ""
    """The condition that does not hold: path, method, header or query."""
    why: str = ""
    source: Source = Source()


class OptionStep(msgspec.Struct, frozen=True):
    """An option in force."""

    name: str
    value: str
    set_by: str
    """`route …`, `listener …`, `upstream …`, `settings defaults.…` or `built in`."""


class EndpointStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """An endpoint and whether it gets requests."""

    key: str
    state: str
    """`ready`, `draining`, `zero-weight`; with live states also `unhealthy`, `untested`, `ejected`, `drain`, `down`."""
    weight: int = 1
    target: str = ""
    active: int | None = None
    """Requests it is serving now; only with live states."""
    health: str = ""
    """What its health checks say; only with live states."""
    source: Source = Source()
    tls_error: str = ""
    """Why its last TLS handshake failed; only with live states."""
    chosen: bool = False
    """The address of the client who is asked about leads to it."""
    slow_share: float = 1.0
    """How much of its weight it has while it starts slowly; only with live states."""
    ejected_for_ms: int = 0
    failures_in_row: int = 0
    """Connections that have failed since the last one that succeeded; only with live states, as is the next."""
    last_failure: str = ""


def describe_failures(state: str, ejected_for_ms: int, failures_in_row: int, last_failure: str) -> str:
    """`ejected, 7 s left (3 connections failed: no answer in time)`; just the state when nothing has failed."""
    if state == "ejected":
        state += f", {-(-ejected_for_ms // 1000)} s left"
    if not failures_in_row:
        return state
    connections = "connection" if failures_in_row == 1 else f"{failures_in_row} connections"
    return f"{state} ({'the last ' if state == 'ready' else ''}{connections} failed: {last_failure})"


class UpstreamStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """An upstream that the route forwards to."""

    name: str
    share: float
    """Of the route's requests, 0 to 1."""
    balance: str = ""
    hash_key: str = ""
    """What of the client the endpoint is chosen by (UpstreamOptions.hash_key); empty when it is not."""
    affinity: str = "none"
    endpoints: tuple[EndpointStep, ...] = ()
    reason: str = ""
    """With which a request that comes here is refused; empty when it can serve."""
    why: str = ""
    """Why it cannot serve; empty when it can."""
    source: Source = Source()
    tls: str = ""
    """How its endpoints are spoken to over TLS; empty: in the clear."""
    protocol: Protocol = "http1"
    """What its endpoints speak."""

    @property
    def serves(self) -> bool:
        return not self.why


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision, step by step. Steps that were not reached are empty."""

    method: str
    host: str
    """Normalised, as are path and query; what the client sent when it was rejected."""
    path: str
    query: str | None
    status: int | None
    """What lb answers by itself; None when an endpoint answers, or when nothing listens."""
    reason: str
    """The name that logs and metrics show. `ok` when the request is forwarded."""
    why: str
    listeners: tuple[ListenerStep, ...] = ()
    names: tuple[NameStep, ...] = ()
    tls: TlsStep | None = None
    hosts: tuple[HostStep, ...] = ()
    routes: tuple[RouteStep, ...] = ()
    action: str = ""
    upstreams: tuple[UpstreamStep, ...] = ()
    options: tuple[OptionStep, ...] = ()
    notes: tuple[str, ...] = ()
    """What else is worth knowing."""
