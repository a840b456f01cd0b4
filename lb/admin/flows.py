"""What lb carries right now, for the admin API: asks the reactors, waits for them, and says it in the API's words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal

from lb._fastpath.engine import LOOK_ORDERS
from lb.admin import schema
from lb.model.upstream import split_key

if TYPE_CHECKING:
    from lb._fastpath.engine import CarriedFlow, Engine, FlowLook

FLOWS_MOST = 1_000
"""How many are described at once; totals are of all of them."""
DEFAULT_LIMIT = 50
TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.005

STUCK = "a thread gets no CPU time or is stuck, see lb_reactor_heartbeat_age_seconds of /metrics"

Network = tuple[bytes, int] | Literal["unix"]
"""16 bytes, IPv4 as ::ffff:a.b.c.d, and how many leading bits count; or those without an address."""


class Unanswered(Exception):
    """A reactor does not come to it, or looks for somebody else for too long."""


async def look(engine: Engine, query: Mapping[str, Any], patience: float = TIMEOUT_SECONDS) -> schema.Flows:
    """The flows that `query` asks for. ValueError for a question that makes no sense, KeyError with `listener`
    or `upstream` when there has never been such a one, Unanswered after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    asked = _question(query)
    while (started := engine.look_at_flows(**asked)) is None:
        await _wait(deadline, f"some threads have not ended looking for another request: {STUCK}")
    try:
        while threads := started.waits_for():
            await _wait(deadline, f"{_threads(threads)} not answered for {patience:g} s: {STUCK}")
        return _tell(started)
    finally:
        started.cancel()


def _question(query: Mapping[str, Any]) -> dict[str, Any]:
    if query["sort"] not in LOOK_ORDERS:
        raise ValueError(f"`sort` is one of {', '.join(LOOK_ORDERS)}, not `{query['sort']}`")
    return {
        "listener": query["listener"] or None,
        "upstream": query["upstream"] or None,
        "key": _endpoint(query["endpoint"]) or None,
        "client": read_client(query["client"]) if query["client"] else None,
        "order": query["sort"],
        "limit": min(query["limit"], FLOWS_MOST),
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


def _tell(ended: FlowLook) -> schema.Flows:
    found, matched, totals = ended.result()
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
    return schema.Flows(tuple(map(_flow_info, found)), matched, tuple(endpoints))


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
