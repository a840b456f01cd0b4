"""Stand-ins for the data plane and for translation: they remember what they were told, and count what they should."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lb.health.monitor import EndpointHealth, HealthStats
from lb.health.verdict import RESULTS
from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.route import Forward, Match, PathMatch, Respond, Route, VirtualHost, WeightedUpstream
from lb.model.tls import Certificate
from lb.model.upstream import Endpoint, Upstream
from lb.objects.view import Changes
from lb.observe.metrics import ENGINE_COUNTERS
from lb.problems import Origin, Problem
from tests.harness.certificates import Authority

BOUNDS = (0.01, 0.1, 1.0)

PAIR = Authority().issue("shop.example.com")


def traffic(ok: int = 0, failed: int = 0) -> dict[str, Any]:
    return {
        "responses": [0, ok, 0, 0, failed],
        "bytes_in": 10 * ok,
        "bytes_out": 20 * ok,
        "buckets": [ok, failed, 0, 0],
        "seconds": 0.25 * ok,
    }


class FakeLook:
    """Implements lb._fastpath.flow_look.FlowLook: `turns` times some thread has not answered, then there is this."""

    def __init__(self, turns: int = 0, *flows: dict[str, Any], matched: int = 0, totals: Sequence[Any] = ()) -> None:
        self.turns = turns
        self.flows = list(flows)
        self.matched = matched or len(flows)
        self.totals = list(totals)
        self.cancelled = False

    def waits_for(self) -> list[int]:
        self.turns -= 1
        return [1] if self.turns >= 0 else []

    def cancel(self) -> None:
        self.cancelled = True

    def result(self) -> tuple[list[dict[str, Any]], int, list[Any]]:
        return self.flows, self.matched, self.totals


class FakeEngine:
    """Implements what the control plane calls of lb._fastpath.engine.Engine."""

    def __init__(self) -> None:
        self.tables: list[object] = []
        self.opened: dict[str, list[int]] = {}
        self.closed: list[str] = []
        self.routes: dict[str, dict[str, Any]] = {}
        self.grpc_calls: dict[str, list[int]] = {}
        self.endpoints: dict[str, list[dict[str, Any]]] = {}
        self.changes: list[tuple[str, str, str | None, int | None]] = []
        self.fail_to_publish = False
        self.asked: list[dict[str, Any]] = []
        self.looks: list[FakeLook | None] = []
        self.remembered: dict[tuple[str, bytes], tuple[str, int]] = {}

    def publish(self, table: object) -> None:
        if self.fail_to_publish:
            raise RuntimeError("no memory")
        self.tables.append(table)

    def open_listener(self, name: str, sockets: Sequence[int], place: str) -> None:
        assert place not in self.opened
        self.opened[place] = list(sockets)

    def pass_listener(self, place: str, name: str) -> None:
        assert place in self.opened

    def close_listener(self, place: str) -> None:
        del self.opened[place]
        self.closed.append(place)

    def active(self) -> tuple[int, int]:
        return (3, 5)

    def heartbeat_ages_ms(self) -> list[int]:
        return [12, 250]

    def counters(self) -> dict[str, int]:
        return dict.fromkeys(ENGINE_COUNTERS, 5)

    def reasons(self) -> dict[str, int]:
        return {"ok": 40, "no-route": 2}

    def listener_stats(self) -> dict[str, dict[str, Any]]:
        return {"http": {**traffic(40, 2), "accepted": 9, "active": 5, "rejected": 1, "requests": 42, "tls_failed": 0}}

    def datagram_stats(self) -> dict[str, dict[str, Any]]:
        return {"dns": {"datagrams_in": 3, "datagrams_out": 2, "evicted": 1, "dropped": {"drain": 1}}}

    def route_stats(self) -> dict[str, dict[str, Any]]:
        return self.routes

    def grpc_stats(self) -> dict[str, list[int]]:
        return self.grpc_calls

    def upstream_stats(self) -> dict[str, dict[str, Any]]:
        counts = {"active": 1, "queued": 0, "attempts": 41, "retries": 1, "connects": 6, "connect_failures": 1}
        return {
            name: {**traffic(40), **counts, "reused": 35, "idle": 4, "ejected": 0, "ejections": 2}
            for name in self.endpoints
        }

    def endpoint_stats(self, upstream: str) -> list[dict[str, Any]]:
        return self.endpoints[upstream]

    def look_at_flows(self, **asked: Any) -> FakeLook | None:
        self.asked.append(asked)
        for what in ("listener", "upstream"):
            if asked[what] not in (None, "http", "shop/web:http"):
                raise KeyError(what)
        return self.looks.pop(0) if self.looks else FakeLook()

    def remembered_endpoint(self, upstream: str, client: bytes) -> tuple[str, int] | None:
        return self.remembered.get((upstream, client))

    def set_endpoint(self, upstream: str, key: str, *, admin: str | None = None, weight: int | None = None) -> None:
        self.changes.append((upstream, key, admin, weight))
        for one in self.endpoints[upstream]:
            if one["key"] == key and admin is not None:
                one["state"] = admin


class FakeHealth:
    """Implements what admin API and metrics ask of lb.health.monitor.Monitor: one endpoint is known to be unhealthy."""

    def __init__(self, upstream: str = "", key: str = "") -> None:
        self.known: dict[str, dict[str, EndpointHealth]] = {}
        if upstream:
            check = "http GET /healthz every 5s"
            one = EndpointHealth("unhealthy", time.time() - 90, check, "wrong-status", "status 503", time.time(), 1.5)
            self.known[upstream] = {key: one}

    def of(self, upstream: str) -> dict[str, EndpointHealth]:
        return self.known.get(upstream, {})

    def states(self, upstream: str) -> dict[str, str]:
        return {key: one.state for key, one in self.of(upstream).items()}

    def stats(self) -> HealthStats:
        changes = {upstream: {"healthy": 1, "unhealthy": 2} for upstream in self.known}
        return HealthStats(dict.fromkeys(RESULTS, 7), 3, changes)


class FakeCompiler:
    """Makes (generation, config) tables."""

    def __init__(self) -> None:
        self.fail = False

    def compile(self, config: Config, generation: int) -> object:
        if self.fail:
            raise ValueError("cannot compile this")
        return (generation, config)


class FakeStore:
    """Gives out changes as they were put in."""

    def __init__(self) -> None:
        self.pending = Changes()
        self.found: list[Problem] = []

    def take_changes(self) -> Changes:
        taken, self.pending = self.pending, Changes()
        return taken

    def problems(self) -> Sequence[Problem]:
        return self.found

    def counts(self) -> Mapping[str, int]:
        return {"Ingress": 2, "Service": 1}


def endpoint_state(key: str) -> dict[str, Any]:
    numbers = {
        "weight": 1,
        "active": 0,
        "idle": 2,
        "requests": 20,
        "failures": 0,
        "ejected_for_ms": 0,
        "slow_share": 1.0,
    }
    return {"key": key, "state": "ready", **numbers, "tls_error": "", "failures_in_row": 0, "last_failure": ""}


def make_config(routes: int = 2, port: int = 80, address: str = "127.0.0.1") -> Config:
    """One listener, one host with so many routes to one upstream of two endpoints, and a local answer."""
    origin = Origin("Ingress", "shop", "web", "shop.yaml", 12, 3)
    made = [
        Route(
            f"shop/web:0:{index}",
            Match(PathMatch("prefix", f"/{index}")),
            Forward((WeightedUpstream("shop/web:http"),)),
        )
        for index in range(routes)
    ]
    answer = Route("shop/web:1:0", Match(), Respond(404), origin=origin, field="spec.rules[1]")
    host = VirtualHost("shop.example.com", (*made, answer))
    endpoints = (Endpoint("127.0.0.11", 9001, target="pod/a"), Endpoint("127.0.0.12", 9001, target="pod/b"))
    return Config(
        listeners={"http": Listener("http", port, address, origin=origin)},
        hosts={"default": {"shop.example.com": host}},
        upstreams={"shop/web:http": Upstream("shop/web:http", endpoints=endpoints, origin=origin)},
        certificates={"shop/web-tls": Certificate("shop/web-tls", PAIR.chain, PAIR.key, origin=origin)},
    )
