"""The admin API over its real sockets, with a fake engine behind it; and `lb ctl` as its client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from lb.admin.api import OPERATIONS
from lb.admin.flows import Unanswered
from lb.admin.flows import end as end_flows
from lb.admin.flows import look as look_at_flows
from lb.admin.server import AdminServer
from lb.certs.expiry import Expiry
from lb.cli.ctl import command
from lb.model.health import HealthCheck
from lb.model.listener import Listener
from lb.model.tls import Certificate
from lb.observe import logs
from lb.observe.metrics import Metrics
from lb.observe.settings_file import SettingsFile
from lb.pipeline import Build
from lb.problems import Origin, Problem
from lb.settings import Admin, Bind
from lb.settings import Metrics as MetricsSettings
from lb.sockets import Opened
from lb.sources.store import Store
from lb.translate.options import Options
from tests.app.fakes import BOUNDS, FakeEngine, FakeHealth, FakeLook, endpoint_state, make_config, traffic
from tests.harness.certificates import Authority
from tests.harness.waiting import DEADLINE

UPSTREAM = "shop/web:http"


class FakePipeline:
    def __init__(self) -> None:
        self.config = make_config(routes=3)
        self.options = Options()
        self.generation = 7
        stages = {"read": 0.5, "translate": 0.25, "compile": 0.125, "publish": 0.0}
        problems = {"error": 1, "warning": 1, "note": 0}
        self.newest = self.last_good = Build(7, "published", 1.7e9, stages, {"Ingress": 3}, problems)
        self.last_refused: Build | None = None
        self.outcomes = Counter(published=7)
        self.compiler = SimpleNamespace(refused={})
        self.store = Store()
        self.lock = asyncio.Lock()
        origin = Origin("Service", "shop", "web", "shop.yaml", 30, 1)
        self.read_problems: tuple[Problem, ...] = ()
        self.translated_problems = (
            Problem(
                "LB3002", Origin("Ingress", "shop", "web", "shop.yaml", 12, 3), "host is empty", field="spec.rules[0]"
            ),
            Problem("LB4003", origin, "no ready endpoint", why="all pods are starting", fix="wait"),
        )

    def place(self, origin: Origin) -> Origin:
        return origin


class FakeListeners:
    def __init__(self) -> None:
        self.opened = {"http": Opened("http", 80, Bind("127.0.0.1", 8080), "127.0.0.1:8080")}
        self.closed: dict[str, Problem] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(self.closed.values())

    def bind_of(self, listener: object) -> Bind:
        return Bind("127.0.0.1", 8080)


class FakeDaemon:
    """Implements lb.admin.daemon.Daemon."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.engine.routes = {"shop/web:0:1": traffic(5)}
        self.engine.endpoints = {UPSTREAM: [endpoint_state("127.0.0.11:9001"), endpoint_state("127.0.0.12:9001")]}
        self.pipeline: Any = FakePipeline()
        self.listeners: Any = FakeListeners()
        self.told: list[Problem] = []
        self.expiry = Expiry(0, self.told.append)
        self.health: Any = FakeHealth()
        self.settings_file = SettingsFile(None)
        self.metrics = Metrics(
            self.engine,
            BOUNDS,
            self.pipeline,
            self.listeners,
            self.expiry,
            self.settings_file,
            self.health,
            MetricsSettings(),  # type: ignore[arg-type]
        )
        self.threads = 2
        self.tls_kernel = "off"
        self.started_at = 1.7e9
        self.state = (True, "serving")
        self.reloads = 0

    def readiness(self) -> tuple[bool, str]:
        return self.state

    async def reload(self) -> Build:
        self.reloads += 1
        build: Build = self.pipeline.newest
        return build


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
async def server(daemon: FakeDaemon, tmp_path: Path) -> AsyncIterator[AdminServer]:
    settings = Admin(socket=str(tmp_path / "run" / "admin.sock"), address="127.0.0.1:0")
    server = AdminServer(daemon, settings)  # type: ignore[arg-type]
    await server.start()
    yield server
    await server.stop()
    assert not Path(server.path).exists()


class Api:
    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session, self.base = session, base

    async def __call__(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self.session.request(method, self.base + path, json=body) as response:
            expected = (
                "application/problem+json" if response.status >= 400 and path != "/readyz" else "application/json"
            )
            assert response.content_type == expected
            return response.status, await response.json(content_type=None)

    async def get(self, path: str) -> Any:
        status, answer = await self("GET", path)
        assert status == 200, answer
        return answer


@pytest.fixture
async def api(server: AdminServer) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(server.path)) as session:
        yield Api(session, "http://lb")


async def test_the_socket_is_for_owner_and_group(server: AdminServer) -> None:
    assert stat.S_IMODE(Path(server.path).stat().st_mode) == 0o660


async def test_liveness_and_readiness(api: Api, daemon: FakeDaemon) -> None:
    assert await api.get("/livez") == {"live": True}
    assert await api.get("/readyz") == {"ready": True, "why": "serving", "generation": 7}
    daemon.state = (False, "draining")
    assert await api("GET", "/readyz") == (503, {"ready": False, "why": "draining", "generation": 7})
    assert (await api("GET", "/livez"))[0] == 200


async def test_status_and_config(api: Api) -> None:
    status = await api.get("/v1/status")
    assert status["pid"] == os.getpid()
    assert (status["hosts"], status["routes"], status["upstreams"]) == (1, 4, 1)
    assert status["problems"] == {"error": 1, "warning": 1, "note": 0}
    config = await api.get("/v1/config")
    assert config["generation"] == 7
    assert config["builds"] == {"published": 7, "unchanged": 0, "refused": 0}
    assert list(config["last_good"]["seconds"]) == ["read", "translate", "compile", "publish"]
    assert config["last_refused"] is None


async def test_problems_by_severity(api: Api) -> None:
    everything = await api.get("/v1/problems")
    assert (everything["total"], len(everything["items"])) == (2, 2)
    (only,) = (await api.get("/v1/problems?severity=error"))["items"]
    assert only["code"] == "LB3002"
    assert only["object"] == "Ingress shop/web"
    assert only["place"] == "shop.yaml:12:3"
    assert only["title"] == "host is not valid"


async def test_a_file_whose_name_is_no_utf8_hides_no_problem(api: Api, daemon: FakeDaemon) -> None:
    daemon.pipeline.read_problems = (Problem("LB1002", Origin(file="a\udcff.yaml"), "it ends in the middle"),)
    assert (await api.get("/v1/problems"))["items"][0]["place"] == "a?.yaml"


async def test_listeners(api: Api, daemon: FakeDaemon) -> None:
    (listener,) = await api.get("/v1/listeners")
    assert (listener["open"], listener["address"], listener["requests"]) == (True, "127.0.0.1:8080", 42)
    origin = daemon.pipeline.config.listeners["http"].origin
    daemon.listeners.opened = {}
    daemon.listeners.closed = {"http": Problem("LB6001", origin, "cannot be opened", why="nginx listens there")}
    (listener,) = await api.get("/v1/listeners")
    assert (listener["open"], listener["problem"]) == (False, "nginx listens there")
    assert (await api.get("/v1/problems"))["total"] == 3


async def test_a_listener_that_is_closed_because_lb_stops_says_so(api: Api, daemon: FakeDaemon) -> None:
    daemon.listeners.opened = {}
    daemon.state = (False, "draining")
    (listener,) = await api.get("/v1/listeners")
    assert (listener["open"], listener["problem"]) == (False, "lb is stopping")
    explained = await api.get("/v1/explain?url=http://shop.example.com/")
    assert "lb is stopping" in str(explained)


async def test_all_addresses_are_written_as_they_are_where_a_listener_is_closed(api: Api, daemon: FakeDaemon) -> None:
    names = {"shop/db:5432": ("tcp", "[::]:5432", "*:5432"), "shop/dns:53/udp": ("udp", "0.0.0.0:53/udp", "*:53/udp")}
    listeners = {
        name: Listener(name, int(place.rpartition(":")[2].removesuffix("/udp")), transport, protocol=transport)
        for name, (transport, place, _) in names.items()
    }
    daemon.pipeline.config = msgspec.structs.replace(daemon.pipeline.config, listeners=listeners)
    daemon.listeners.opened = {
        name: Opened(name, listeners[name].port, Bind("", listeners[name].port, transport), place)
        for name, (transport, place, _) in names.items()
    }
    shown = {name: place for name, (_, _, place) in names.items()}
    assert {one["name"]: one["address"] for one in await api.get("/v1/listeners")} == shown


async def test_each_port_of_an_object_has_its_own_reason_not_to_be_open(api: Api, daemon: FakeDaemon) -> None:
    origin = Origin("ConfigMap", "shop", "tcp", "tcp.yaml", 3)
    names = {"shop/tcp:5432": "postgres listens there", "shop/tcp:6379": "redis listens there"}
    listeners = {name: Listener(name, int(name[-4:]), protocol="tcp", origin=origin) for name in names}
    daemon.pipeline.config = msgspec.structs.replace(daemon.pipeline.config, listeners=listeners)
    daemon.listeners.opened = {}
    daemon.listeners.closed = {name: Problem("LB6001", origin, "cannot be opened", why) for name, why in names.items()}
    assert {one["name"]: one["problem"] for one in await api.get("/v1/listeners")} == names


async def test_routes_are_filtered_and_paged(api: Api) -> None:
    page = await api.get("/v1/routes")
    assert [one["rank"] for one in page["items"]] == [0, 1, 2, 3]
    assert page["items"][1]["requests"] == 5
    assert page["items"][3]["action"] == {"type": "respond", "status": 404}
    assert page["items"][3]["source"] == "Ingress shop/web spec.rules[1] (shop.yaml:12:3)"
    part = await api.get("/v1/routes?offset=1&limit=2")
    assert (part["total"], part["offset"], len(part["items"])) == (4, 1, 2)
    assert (await api.get(f"/v1/routes?upstream={UPSTREAM}"))["total"] == 3
    assert (await api.get("/v1/routes?host=other.example.com"))["total"] == 0


async def test_upstreams(api: Api) -> None:
    (one,) = (await api.get("/v1/upstreams"))["items"]
    assert (one["name"], one["endpoints"], one["endpoints_ready"], one["attempts"]) == (UPSTREAM, 2, 2, 41)
    detail = await api.get(f"/v1/upstreams/{UPSTREAM}")
    assert [(one["endpoint"], one["target"]) for one in detail["endpoints"]] == [
        ("127.0.0.11:9001", "pod/a"),
        ("127.0.0.12:9001", "pod/b"),
    ]


async def test_explain_uses_the_published_port_and_live_states(api: Api, daemon: FakeDaemon) -> None:
    daemon.engine.endpoints[UPSTREAM][0]["state"] = "drain"
    answer = await api.get("/v1/explain?url=http://shop.example.com:8080/1?x=2&header=A:%20b&client=192.0.2.9")
    assert (answer["path"], answer["query"], answer["reason"]) == ("/1", "x=2", "ok")
    assert [one["verdict"] for one in answer["routes"]] == ["lost", "won", "lost", "not-reached"]
    assert [one["state"] for one in answer["upstreams"][0]["endpoints"]] == ["drain", "ready"]


async def test_explain_tells_why_nothing_listens(api: Api, daemon: FakeDaemon) -> None:
    origin = Origin("ConfigMap", "shop", "tcp", "tcp.yaml", 3)
    daemon.pipeline.translated_problems = (Problem("LB4013", origin, "'x' is wrong", field="data[7001]"),)
    told = await api.get("/v1/explain?url=tcp://192.0.2.1:7001")
    assert told["reason"] == "no-listener"
    assert told["notes"][-1] == "not served: ConfigMap shop/tcp: 'x' is wrong (LB4013)  [tcp.yaml:3 data[7001]]"
    assert "notes" not in await api.get("/v1/explain?url=tcp://192.0.2.1:7002")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("GET", "/v1/explain?url=http://shop:99999/", None, 400, "is not like http://"),
        ("GET", "/v1/explain?url=http://a/&header=x", None, 400, "is not like `Name: value`"),
        ("GET", "/v1/explain?url=http://a/&client=x", None, 400, "does not appear to be"),
        ("GET", "/v1/routes?limit=x", None, 400, "`limit` must be a number"),
        ("GET", "/v1/problems?severity=bad", None, 400, "`severity` is one of error, warning, note, not `bad`"),
        ("GET", "/v1/explain", None, 400, "`url` is missing"),
        (
            "GET",
            "/v1/flows?endpoint=10.0.0.1",
            None,
            400,
            "`endpoint`: '10.0.0.1' is not an address such as 10.0.0.1:80",
        ),
        ("GET", "/v1/upstreams/shop/wbe:http", None, 404, "did you mean `shop/web:http`?"),
        ("GET", "/v1/upstreams/web", None, 404, "did you mean `shop/web:http`?"),
        ("GET", "/nothing", None, 404, "/nothing"),
        ("POST", "/livez", None, 405, "Method Not Allowed"),
        ("POST", "/v1/endpoints", {"upstream": "x", "state": "drain"}, 404, "no upstream x"),
        ("POST", "/v1/endpoints", {"upstream": UPSTREAM}, 400, "`state`, `weight` or both"),
        ("POST", "/v1/endpoints", {"upstream": UPSTREAM, "state": "gone"}, 400, "$.state"),
        ("POST", "/v1/endpoints", {"upstream": UPSTREAM, "mode": "down"}, 400, "unknown field `mode`"),
        (
            "POST",
            "/v1/endpoints",
            {"upstream": UPSTREAM, "endpoint": "127.0.0.13:9001", "state": "down"},
            404,
            "has no endpoint",
        ),
        ("POST", "/v1/flows/end", {}, 400, "say which: `listener`, `client`, `endpoint`, `upstream`, or several"),
        ("POST", "/v1/flows/end", {"ends": "x"}, 400, "unknown field `ends`"),
        ("POST", "/v1/flows/end", {"listener": "htpp"}, 404, "there is no listener htpp"),
        ("POST", "/v1/flows/end", {"client": "10.0.0.0/33"}, 400, "`client` is an address or network like"),
        ("PUT", "/v1/log-level", {"level": "loud"}, 400, "level"),
    ],
)
async def test_refusals_are_problem_documents(
    api: Api, method: str, path: str, body: object, status: int, detail: str
) -> None:
    got, answer = await api(method, path, body)
    assert got == status
    assert answer["status"] == status
    assert detail in answer["detail"]


async def test_a_large_body_is_refused(api: Api) -> None:
    status, _ = await api("POST", "/v1/endpoints", {"upstream": "x" * 100_000})
    assert status == 413


async def test_operators_change_endpoints(api: Api, daemon: FakeDaemon) -> None:
    key = "127.0.0.11:9001"
    status, detail = await api("POST", "/v1/endpoints", {"upstream": UPSTREAM, "endpoint": key, "state": "drain"})
    assert status == 200
    assert [one["state"] for one in detail["endpoints"]] == ["drain", "ready"]
    await api("POST", "/v1/endpoints", {"upstream": UPSTREAM, "weight": 5})
    assert daemon.engine.changes == [
        (UPSTREAM, key, "drain", None),
        (UPSTREAM, key, None, 5),
        (UPSTREAM, "127.0.0.12:9001", None, 5),
    ]


async def test_reload_and_log_level(api: Api, daemon: FakeDaemon) -> None:
    assert (await api("POST", "/v1/reload"))[1]["outcome"] == "published"
    assert daemon.reloads == 1
    before = logs.level()
    try:
        assert await api("PUT", "/v1/log-level", {"level": "error"}) == (200, {"level": "error"})
        assert logs.level() == "error"
    finally:
        logs.set_level(before)


async def test_tcp_is_for_reading_only(server: AdminServer, daemon: FakeDaemon) -> None:
    async with aiohttp.ClientSession() as session:
        api = Api(session, f"http://{server.address}")
        assert (await api.get("/readyz"))["ready"]
        for operation in OPERATIONS:
            if operation.method != "GET":
                status, answer = await api(operation.method, operation.path, {})
                assert (status, "Unix socket" in answer["detail"]) == (403, True)
    assert daemon.reloads == 0


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_answers_have_the_date(server: AdminServer, transport: str) -> None:
    connector = aiohttp.UnixConnector(server.path) if transport == "unix" else aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector) as session:
        for path in ("/livez", "/nothing"):
            before = int(time.time())
            async with session.get(f"http://{server.address}{path}") as response:
                (date,) = response.headers.getall("date")
            assert before <= parsedate_to_datetime(date).timestamp() <= time.time()


async def test_nothing_wakes_a_server_that_nobody_asks(server: AdminServer) -> None:
    assert len(server._running) == 2
    loop: Any = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        while not all(running.started for running, _ in server._running):
            await asyncio.sleep(0)
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


async def test_metrics_are_text(api: Api) -> None:
    async with api.session.get("http://lb/metrics") as response:
        assert response.content_type == "text/plain"
        assert "lb_ready 1.0" in await response.text()


async def test_the_openapi_document_describes_every_operation(api: Api) -> None:
    document = await api.get("/openapi.json")
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert described == {(one.method.lower(), one.path.replace(":path}", "}")) for one in OPERATIONS}
    text = json.dumps(document)
    references = set(re.findall(r"#/components/schemas/([^\"]+)", text))
    assert references <= set(document["components"]["schemas"])
    assert "ErrorDocument" in references


async def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not(
    server: AdminServer, daemon: FakeDaemon, tmp_path: Path
) -> None:
    second = AdminServer(daemon, Admin(socket=server.path))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="somebody listens"):
        await second.start()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    third = AdminServer(daemon, Admin(socket=str(tmp_path / "dead.sock")))  # type: ignore[arg-type]
    await third.start()
    await third.stop()


# -- lb ctl


async def ctl(server: AdminServer, *arguments: str) -> Result:
    """In a thread: the server is in this loop."""
    return await asyncio.to_thread(CliRunner().invoke, command, ["--admin-socket", server.path, *arguments])


async def test_ctl_shows(server: AdminServer, daemon: FakeDaemon) -> None:
    status = await ctl(server, "status")
    assert status.exit_code == 0, status.output
    assert "1 hosts, 4 routes, 1 upstreams" in status.output
    assert "shop.yaml:12:3: error[LB3002]: host is empty" in (await ctl(server, "problems")).output
    assert "127.0.0.1:8080" in (await ctl(server, "listeners")).output
    assert "prefix /1" in (await ctl(server, "routes", "--host", "shop.example.com")).output
    assert "2/2" in (await ctl(server, "upstreams")).output
    detail = (await ctl(server, "upstreams", UPSTREAM)).output
    assert "pod/b" in detail
    assert "HEALTH" not in detail
    before = (await ctl(server, "-o", "json", "listeners")).output
    assert json.loads(before)[0]["name"] == "http"
    for form in (["-o", "json"], ["--json"]):  # people write it behind the verb, too
        assert (await ctl(server, "listeners", *form)).output == before
    assert "LISTENER" in (await ctl(server, "-o", "json", "listeners", "-o", "table")).output
    daemon.state = (False, "draining")
    assert (await ctl(server, "status")).exit_code == 1


def carried(number: int, **differs: object) -> dict[str, Any]:
    """A flow as the engine tells it."""
    address = bytes.fromhex("00000000000000000000ffffc0000201")
    numbers = dict.fromkeys(("bytes_in", "bytes_out", "datagrams_in", "datagrams_out"), 0)
    numbers |= dict.fromkeys(("waits_for_endpoint", "waits_for_client", "idle_ms"), 0)
    texts = {"kind": "tcp", "state": "open", "listener": "db", "server_name": "", "route": "db", "upstream": "db"}
    places = {"peer": address, "peer_port": number, "has_proxy": False, "proxy": None, "endpoint": f"10.0.0.{number}:5"}
    return {**texts, **numbers, **places, "thread": 0, "attempts": 1, "age_ms": 1_000, "drain_ms": None, **differs}


def total(number: int, flows: int) -> dict[str, Any]:
    sums = {"bytes_in": 7, "bytes_out": 1 << 20, "waits_for_endpoint": 0, "waits_for_client": 2_048}
    return {"upstream": "db", "endpoint": f"10.0.0.{number}:5", "flows": flows, "sessions": 0, **sums}


async def test_flows_are_shown(server: AdminServer, daemon: FakeDaemon) -> None:
    waits = {"waits_for_endpoint": 12_345, "waits_for_client": 5}
    look = FakeLook(
        3,
        carried(1, age_ms=7_322_000, idle_ms=65_000, bytes_in=999, bytes_out=1_234_567),
        carried(2, state="half-closed-endpoint", drain_ms=12_345, **waits),
        carried(3, state="connecting", attempts=2, peer=None),
        carried(4, kind="udp", route="db/2", drain_ms=0, has_proxy=True),
        matched=54,
        totals=[total(number, number) for number in range(1, 31)],
    )
    daemon.engine.looks = [None, look]
    shown = [
        line.rstrip() for line in (await ctl(server, "flows", "--sort", "idle", "--limit", "4")).output.splitlines()
    ]
    assert look.cancelled
    assert shown[0].split() == (
        [
            "KIND",
            "CLIENT",
            "VIA",
            "LISTENER",
            "UPSTREAM",
            "ENDPOINT",
            "STATE",
            "AGE",
            "IDLE",
            "IN",
            "OUT",
            "WAITING",
            "THREAD",
            "ROUTE",
        ]
    )
    assert [" ".join(line.split()) for line in shown[1:5]] == [
        "tcp 192.0.2.1:1 db db 10.0.0.1:5 open 2h 2m 1m 5s 999 1.2M 0 db",
        "tcp 192.0.2.1:2 db db 10.0.0.2:5 half-closed by endpoint, draining, 12s left 1s 0s 0 0 >12K <5 0 db",
        "tcp unix db db 10.0.0.3:5 connecting, attempt 2 1s 0s 0 0 0 db",
        "udp 192.0.2.1:4 unix db db 10.0.0.4:5 draining, 0s left 1s 0s 0 0 0 db/2",
    ]
    assert shown[5:7] == ["50 more match; --limit shows more of them", ""]
    assert " ".join(shown[8].split()) == "10.0.0.30:5 db 30 0 7 1.0M <2.0K"
    assert len(shown) == 8 + 20 + 1
    assert shown[-1] == "… 10 more endpoints; -o json has all"
    asked = {"listener": None, "upstream": None, "key": None, "client": None, "order": "idle", "limit": 4}
    assert daemon.engine.asked == [asked, asked]


async def test_flows_are_asked_for_by_their_clients(api: Api, daemon: FakeDaemon) -> None:
    assert (await api.get("/v1/flows?limit=5000&client=10.1.2.3"))["total"] == 0
    asked = daemon.engine.asked.pop()
    assert (asked["limit"], asked["client"]) == (1_000, (b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x03", 128))
    await api.get("/v1/flows?client=2001:db8::7/32")
    assert daemon.engine.asked.pop()["client"] == (bytes.fromhex("20010db8") + bytes(12), 32)
    assert (await api("GET", "/v1/flows?upstream=web"))[0] == 404


def whole(number: int, flows: int, sessions: int) -> dict[str, Any]:
    return {**total(number, flows), "sessions": sessions}


async def test_flows_are_ended(server: AdminServer, daemon: FakeDaemon) -> None:
    daemon.engine.looks = [None, FakeLook(2, totals=[whole(1, 2, 0), whole(2, 1, 1)])]
    with capture_logs() as logs:
        result = await ctl(server, "end-flows", "--client", "10.1.2.0/24", "--endpoint", "10.0.0.9:5")
    assert [" ".join(line.split()) for line in result.output.splitlines()] == [
        "ended 3 TCP connections and 1 UDP session",
        "",
        "ENDPOINT UPSTREAM CONNECTIONS SESSIONS",
        "10.0.0.1:5 db 2 0",
        "10.0.0.2:5 db 1 1",
    ]
    network = (b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x00", 120)
    filters = {"listener": None, "upstream": None, "key": "10.0.0.9:5", "client": network}
    assert daemon.engine.asked == [{**filters, "limit": 0, "ends": True}] * 2
    (line,) = (one for one in logs if one["event"] == "flows ended")
    asked = {"client": "10.1.2.0/24", "endpoint": "10.0.0.9:5"}
    assert {**line, **asked, "connections": 3, "sessions": 1} == line


async def test_what_was_ended_is_counted(server: AdminServer, daemon: FakeDaemon) -> None:
    many = [total(number, number) for number in range(1, 31)]

    async def end(*options: str, totals: list[dict[str, Any]]) -> str:
        daemon.engine.looks = [FakeLook(totals=totals)]
        with capture_logs():  # which would stand in the output as well
            result = await ctl(server, "end-flows", "--client", "unix", *options)
        assert result.exit_code == 0
        return result.output

    assert (await end(totals=[whole(1, 1, 0)])).startswith("ended 1 TCP connection\n")
    assert (await end(totals=[whole(1, 0, 2)])).startswith("ended 2 UDP sessions\n")
    assert await end(totals=[]) == "no TCP connection and no UDP session matches\n"
    assert (await end(totals=many)).splitlines()[-1] == "… 10 more endpoints; -o json has all"
    answer = json.loads(await end("-o", "json", totals=many))
    assert (answer["connections"], answer["sessions"], len(answer["endpoints"])) == (465, 0, 30)


async def test_nothing_is_ended_unless_somebody_says_what(server: AdminServer, daemon: FakeDaemon) -> None:
    result = await ctl(server, "end-flows")
    assert result.exit_code == 2
    assert "with --listener, --client, --endpoint, --upstream or several of them" in result.output
    result = await ctl(server, "end-flows", "--upstream", "nobody")
    assert result.exit_code == 2
    assert "there is no upstream nobody" in result.output
    assert all(asked["upstream"] == "nobody" for asked in daemon.engine.asked)


async def test_flows_that_are_not_ended_in_time(daemon: FakeDaemon) -> None:
    which = {"listener": "", "upstream": "", "endpoint": "", "client": "unix"}
    look = FakeLook(1_000_000)
    daemon.engine.looks = [look]
    with pytest.raises(Unanswered, match=r"thread 1 has not answered .* Some that match have been ended, others not"):
        await end_flows(daemon.engine, which, patience=0.02)  # type: ignore[arg-type]
    assert look.cancelled
    daemon.engine.looks = [None] * 1_000
    with pytest.raises(Unanswered, match="looking for another request") as raised:
        await end_flows(daemon.engine, which, patience=0.02)  # type: ignore[arg-type]
    assert "have been ended" not in str(raised.value)


async def test_the_log_knows_of_flows_that_were_not_all_ended(
    api: Api, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for what has ended those that were is to find it."""
    monkeypatch.setattr("lb.admin.flows.end", partial(end_flows, patience=0.02))
    daemon.engine.looks = [FakeLook(1_000_000)]
    with capture_logs() as logs:
        status, answer = await api("POST", "/v1/flows/end", {"client": "unix"})
    assert status == 503
    (line,) = (one for one in logs if one["event"] == "flows not all ended")
    assert (line["client"], line["why"]) == ("unix", answer["detail"])
    assert "listener" not in line


async def test_flows_of_threads_that_do_not_answer(daemon: FakeDaemon) -> None:
    """The question is taken back, and says whom it has waited for."""
    query = {"listener": "", "upstream": "", "endpoint": "", "client": "", "sort": "age", "limit": 5}
    look = FakeLook(1_000_000)
    daemon.engine.looks = [look]
    with pytest.raises(Unanswered, match="thread 1 has not answered"):
        await look_at_flows(daemon.engine, query, patience=0.02)  # type: ignore[arg-type]
    assert look.cancelled
    daemon.engine.looks = [None] * 1_000
    with pytest.raises(Unanswered, match="have not ended looking for another request"):
        await look_at_flows(daemon.engine, query, patience=0.02)  # type: ignore[arg-type]


async def test_explain_tells_what_affinity_remembers(api: Api, daemon: FakeDaemon) -> None:
    config = daemon.pipeline.config
    sticky = msgspec.structs.replace(config.upstreams[UPSTREAM], affinity="client-ip")
    daemon.pipeline.config = msgspec.structs.replace(config, upstreams={UPSTREAM: sticky})
    url = "/v1/explain?url=http://shop.example.com:8080/1&client=192.0.2.9"
    assert f"lb remembers no endpoint of {UPSTREAM} for 192.0.2.9: its address decides" in (await api.get(url))["notes"]
    daemon.engine.remembered[UPSTREAM, bytes.fromhex("00000000000000000000ffffc0000209")] = ("127.0.0.12:9001", 65_000)
    told = await api.get(url)
    assert told["why"] == "127.0.0.12:9001 answers 192.0.2.9"
    assert any("192.0.2.9 was sent to 127.0.0.12:9001 last, 65s ago, and stays there" in one for one in told["notes"])


async def test_ctl_tells_of_an_endpoint_that_is_ejected(server: AdminServer, daemon: FakeDaemon) -> None:
    failed = {"failures_in_row": 3, "last_failure": "no answer in time"}
    daemon.engine.endpoints[UPSTREAM][0].update(state="ejected", ejected_for_ms=6_001, **failed)
    assert "1 ejected: connections fail" in (await ctl(server, "upstreams")).output
    text = "ejected, 7 s left (3 connections failed: no answer in time)"
    assert text in (await ctl(server, "upstreams", UPSTREAM)).output
    daemon.engine.endpoints[UPSTREAM][0].update(state="ready", ejected_for_ms=0)
    assert "ready (the last 3 connections failed: no" in (await ctl(server, "upstreams", UPSTREAM)).output
    daemon.engine.endpoints[UPSTREAM][0].update(failures_in_row=0, last_failure="")
    daemon.engine.endpoints[UPSTREAM][1].update(state="ejected", ejected_for_ms=1, **failed)
    daemon.engine.endpoints[UPSTREAM][0]["state"] = "ejected"
    assert "2 ejected: connections fail" in (await ctl(server, "upstreams")).output, "they serve as a last resort"


async def test_ctl_tells_of_an_endpoint_that_somebody_has_drained(server: AdminServer, daemon: FakeDaemon) -> None:
    daemon.engine.endpoints[UPSTREAM][0]["state"] = "drain"
    assert "1 drained, down or of weight 0" in (await ctl(server, "upstreams")).output


async def test_ctl_and_api_tell_of_health(api: Api, server: AdminServer, daemon: FakeDaemon) -> None:
    key = "127.0.0.11:9001"
    config = daemon.pipeline.config
    check = HealthCheck(type="http", path="/healthz")
    checked = msgspec.structs.replace(config.upstreams[UPSTREAM], health_check=check)
    daemon.pipeline.config = msgspec.structs.replace(config, upstreams={UPSTREAM: checked})
    daemon.health.known = FakeHealth(UPSTREAM, key).known
    daemon.engine.endpoints[UPSTREAM][0]["state"] = "unhealthy"
    (one,) = (await api.get("/v1/upstreams"))["items"]
    assert (one["endpoints_ready"], one["endpoints_unhealthy"]) == (1, 1)
    assert one["health_check"] == "http GET /healthz every 5s"
    first, second = (await api.get(f"/v1/upstreams/{UPSTREAM}"))["endpoints"]
    assert (first["health"]["state"], first["health"]["result"]) == ("unhealthy", "wrong-status")
    assert second["health"] is None
    told = await api.get("/v1/explain?url=http://shop.example.com:8080/1")
    assert told["upstreams"][0]["endpoints"][0]["health"] == "unhealthy for 90 s: status 503"
    assert "1 unhealthy" in (await ctl(server, "upstreams")).output
    assert f"health      1 upstream without a healthy endpoint: {UPSTREAM}" in (await ctl(server, "status")).output
    shown = (await ctl(server, "upstreams", UPSTREAM)).output
    assert "health check: http GET /healthz every 5s" in shown
    assert "unhealthy for 1m 30s: status 503" in shown
    assert "not checked" in shown


@pytest.mark.parametrize(
    ("when_all_fail", "effect", "result"),
    [
        ("serve", "all get requests (when_all_fail: serve)", "so all of them get requests (when_all_fail: serve)"),
        ("refuse", "requests are answered 503 (when_all_fail: refuse)", f"all endpoints of {UPSTREAM} fail"),
    ],
)
async def test_ctl_and_explain_tell_what_happens_when_all_endpoints_fail(
    api: Api, server: AdminServer, daemon: FakeDaemon, when_all_fail: str, effect: str, result: str
) -> None:
    config = daemon.pipeline.config
    check = HealthCheck(type="http", when_all_fail=when_all_fail)  # type: ignore[arg-type]
    checked = msgspec.structs.replace(config.upstreams[UPSTREAM], health_check=check)
    daemon.pipeline.config = msgspec.structs.replace(config, upstreams={UPSTREAM: checked})
    for endpoint in daemon.engine.endpoints[UPSTREAM]:
        endpoint["state"] = "unhealthy"
    assert f"all fail their health checks: {effect}" in (await ctl(server, "upstreams")).output
    told = await api.get("/v1/explain?url=http://shop.example.com:8080/1")
    assert result in told["why"]


async def test_ctl_marks_certificates_whose_renewal_is_refused(server: AdminServer, daemon: FakeDaemon) -> None:
    pair = Authority().issue("shop.example.com")
    names = ("shop/web", "shop/api", "shop/fine", "files")
    certificates = {name: Certificate(name, pair.chain, pair.key) for name in names}
    daemon.pipeline.config = msgspec.structs.replace(daemon.pipeline.config, certificates=certificates)
    assert "WARNING" not in (await ctl(server, "certificates")).output
    daemon.pipeline.translated_problems = (Problem("LB3011", Origin("Secret", "shop", "web"), "no key"),)
    daemon.pipeline.compiler.refused = {"certificate shop/api": Problem("LB6007", Origin(), "small key")}
    daemon.pipeline.read_problems = (Problem("LB1008", Origin(), "no key", field="certificates.files"),)
    rows = {line.split()[0]: line.rstrip() for line in (await ctl(server, "certificates")).output.splitlines()}
    assert rows["shop/web"].endswith("a newer one is refused (LB3011): a restart loses this one")
    assert "it is refused (LB6007): the one before it is served" in rows["shop/api"]
    assert rows["files"].endswith("a newer one is refused (LB1008): a restart loses this one")
    assert "refused" not in rows["shop/fine"]


async def test_ctl_changes(server: AdminServer, daemon: FakeDaemon) -> None:
    key = "127.0.0.12:9001"
    for arguments in (("drain", UPSTREAM), ("down", UPSTREAM, key), ("ready", UPSTREAM, key)):
        result = await ctl(server, *arguments)
        assert result.exit_code == 0, result.output
    await ctl(server, "weight", UPSTREAM, key, "9")
    await ctl(server, "weight", UPSTREAM, key, "default")
    assert [change[1:] for change in daemon.engine.changes] == [
        ("127.0.0.11:9001", "drain", None),
        (key, "drain", None),
        (key, "down", None),
        (key, "ready", None),
        (key, None, 9),
        (key, None, -1),
    ]
    assert "published, generation 7 (read 500 ms" in (await ctl(server, "reload")).output


async def test_ctl_passes_on_why_not(server: AdminServer) -> None:
    result = await ctl(server, "drain", "shop/wbe:http")
    assert result.exit_code == 2
    assert "did you mean `shop/web:http`?" in result.output


def test_ctl_without_a_daemon(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--admin-socket", str(tmp_path / "none.sock"), "status"])
    assert result.exit_code == 2
    assert "Is `lb run` running?" in result.output
