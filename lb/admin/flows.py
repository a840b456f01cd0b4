"""What lb carries right now, for the admin API: asks the reactors, waits for them, and says it in the API's words.

Also ends it: the same question, and those that it finds are over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal

from lb._fastpath.flow_look import LOOK_ORDERS
from lb.admin import schema
from lb.model.upstream import split_key

if TYPE_CHECKING:
    from lb._fastpath.engine import Engine
    from lb._fastpath.flow_look import CarriedFlow, CarriedTotal

    _Answer = tuple[list[CarriedFlow], int, list[CarriedTotal]]

FLOWS_MOST = 1_000
"""How many are described at once; totals are of all of them."""
DEFAULT_LIMIT = 50
TIMEOUT_SECONDS = 5.0
ENDING_SECONDS = 25.0
"""Ending one takes longer than looking at it, and there may be a hundred thousand."""
POLL_SECONDS = 0.005

STUCK = "a thread gets no CPU time or is stuck, see lb_reactor_heartbeat_age_seconds of /metrics"

IN_PART = ". Some that match have been ended, others not: asked again, lb goes on with them"

Network = tuple[bytes, int] | Literal["unix"]
"""16 bytes, IPv4 as ::ffff:a.b.c.d, and how many leading bits count; or those without an address."""


class Unanswered(Exception):
    """A reactor does not come to it, or looks for somebody else for too long."""


async def look(engine: Engine, query: Mapping[str, Any], patience: float = TIMEOUT_SECONDS) -> schema.Flows:
    """The flows that `query` asks for. ValueError for a question that makes no sense, KeyError with `listener`
    or `upstream` when there has never been such a one, Unanswered after `patience` seconds.
    """
    if query["sort"] not in LOOK_ORDERS:
        raise ValueError(f"`sort` is one of {', '.join(LOOK_ORDERS)}, not `{query['sort']}`")
    shown = {"order": query["sort"], "limit": min(query["limit"], FLOWS_MOST)}
    found, matched, totals = await _ask(engine, {**_filters(query), **shown}, patience)
    return schema.Flows(tuple(map(_flow_info, found)), matched, _endpoints(totals))


async def end(engine: Engine, which: Mapping[str, str], patience: float = ENDING_SECONDS) -> schema.FlowsEnded:
    """End the flows that pass these filters. Fails as `look` does; ValueError also when there is no filter."""
    if not any(which.values()):
        raise ValueError(f"say which: {', '.join(f'`{name}`' for name in which)}, or several of them")
    _, _, totals = await _ask(engine, {**_filters(which), "limit": 0, "ends": True}, patience, IN_PART)
    connections, sessions = sum(one["flows"] for one in totals), sum(one["sessions"] for one in totals)
    return schema.FlowsEnded(connections, sessions, _endpoints(totals))


async def _ask(engine: Engine, asked: Mapping[str, Any], patience: float, in_part: str = "") -> _Answer:
    """What the reactors have found. `in_part`: what else to know when not all of them answer."""
    deadline = time.monotonic() + patience
    while (started := engine.look_at_flows(**asked)) is None:
        await _wait(deadline, f"some threads have not ended looking for another request: {STUCK}")
    try:
        while threads := started.waits_for():
            await _wait(deadline, f"{_threads(threads)} not answered for {patience:g} s: {STUCK}{in_part}")
        return started.result()
    finally:
        started.cancel()


def _filters(given: Mapping[str, str]) -> dict[str, Any]:
    return {
        "listener": given["listener"] or None,
        "upstream": given["upstream"] or None,
        "key": _endpoint(given["endpoint"]) or None,
        "client": read_client(given["client"]) if given["client"] else None,
    }


def _endpoint(text: str) -> str:
    """As `lb ctl upstreams NAME` writes it. ValueError with a text for people."""
    try:
        if text:
            split_key(text)
    except ValueError as error:
        raise ValueError(f"`endpoint`: {error}") from None
    return text


def read_client(text: str) -> Network:
    """An address, a network, or `unix`. ValueError with a text for people."""
    if text == "unix":
        return "unix"
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        example = "10.0.0.7, 10.0.0.0/8, 2001:db8::/32 or unix"
        raise ValueError(f"`client` is an address or network like {example}, not `{text}`") from None
    packed, bits = network.network_address.packed, network.prefixlen
    return (packed, bits) if network.version == 6 else (b"\0" * 10 + b"\xff\xff" + packed, 96 + bits)


async def _wait(deadline: float, why: str) -> None:
    if time.monotonic() >= deadline:
        raise Unanswered(why)
    await asyncio.sleep(POLL_SECONDS)


def _threads(threads: list[int]) -> str:
    names = ", ".join(str(one) for one in threads)
    return f"thread {names} has" if len(threads) == 1 else f"threads {names} have"


def _endpoints(totals: Iterable[CarriedTotal]) -> tuple[schema.EndpointFlows, ...]:
    endpoints = [
        schema.EndpointFlows(
            upstream=one["upstream"],
            endpoint=one["endpoint"],
            connections=one["flows"],
            sessions=one["sessions"],
            bytes_in=one["bytes_in"],
            bytes_out=one["bytes_out"],
            waiting_for_endpoint=one["waits_for_endpoint"],
            waiting_for_client=one["waits_for_client"],
        )
        for one in totals
    ]
    endpoints.sort(key=lambda one: (-one.connections - one.sessions, one.upstream, one.endpoint))
    return tuple(endpoints)


def _flow_info(one: CarriedFlow) -> schema.FlowInfo:
    return schema.FlowInfo(
        kind=one["kind"],  # type: ignore[arg-type]
        listener=one["listener"],
        client=_place(one["peer"], one["peer_port"]),
        proxy=_address(one["proxy"]) if one["has_proxy"] else "",
        server_name=one["server_name"],
        route=one["route"],
        upstream=one["upstream"],
        endpoint=one["endpoint"],
        state=one["state"],  # type: ignore[arg-type]
        draining_seconds=None if one["drain_ms"] is None else one["drain_ms"] / 1000,
        age_seconds=one["age_ms"] / 1000,
        idle_seconds=one["idle_ms"] / 1000,
        bytes_in=one["bytes_in"],
        bytes_out=one["bytes_out"],
        datagrams_in=one["datagrams_in"],
        datagrams_out=one["datagrams_out"],
        waiting_for_endpoint=one["waits_for_endpoint"],
        waiting_for_client=one["waits_for_client"],
        attempts=one["attempts"],
        thread=one["thread"],
    )


def _address(packed: bytes | None) -> str:
    if packed is None:
        return "unix"
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _place(packed: bytes | None, port: int) -> str:
    address = _address(packed)
    if packed is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
