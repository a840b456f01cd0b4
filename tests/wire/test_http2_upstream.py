"""HTTP/2 towards endpoints: streams on shared connections, limits, goodbyes, windows, and which protocol is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.certificates import Authority
from tests.harness.client import chunked, get
from tests.harness.http_client import Answer, Exchange, HttpClient, Reset
from tests.harness.http_server import Call, Handler, Http2Connection, HttpServer
from tests.harness.native import Native, respond
from tests.harness.payload import MEGABYTE, digest, payload, pieces
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

STREAMS = SettingCodes.MAX_CONCURRENT_STREAMS
WINDOW = SettingCodes.INITIAL_WINDOW_SIZE
LARGE = 8 * MEGABYTE


class Endpoint:
    """Answers with its name, or does what the path says; `/hold` waits for `release`."""

    def __init__(self, name: str = "one", handler: Handler | None = None, **options: object) -> None:
        self.name = name.encode()
        self.server = HttpServer(handler or self._handle, **options)  # type: ignore[arg-type]
        self._released = asyncio.Event()

    async def _handle(self, call: Call) -> None:
        kind = call.target.split(b"/")[1].decode()
        if kind == "hold":
            await call.until(self._released.is_set)
            await call.body()
            await call.answer(200, self.name)
        elif kind == "begin":
            call.respond(200)
            await call.send(b"begun ")
            await call.until(self._released.is_set)
            await call.send(self.name)
            call.end()
        elif kind == "bulk":
            call.respond(200)
            for piece in pieces(int(call.target.split(b"/")[2])):
                await call.send(bytes(piece))
            call.end()
        elif kind == "digest":
            await call.answer(200, hashlib.sha256(await call.body()).hexdigest().encode())
        else:
            await call.body()
            await call.answer(200, self.name)

    def release(self) -> None:
        def do() -> None:
            self._released.set()
            for call in self.server.calls:
                call.changed()

        self.server.do(do)

    def change(self, settings: dict[SettingCodes, int]) -> None:
        """SETTINGS on every open connection."""
        self.server.do(lambda: [one.change(settings) for one in self.server.open])

    def go_away(self, last: int, code: int = 0, *, close: bool = False) -> None:
        self.server.do(lambda: [one.go_away(last, code, close=close) for one in self.server.open])

    def die(self) -> None:
        self.server.do(lambda: [one.abort() for one in self.server.open])

    @property
    def key(self) -> str:
        return self.server.key


@dataclass
class Setup:
    """A host of lb's and its endpoints. lb has one thread, so that requests meet on connections."""

    serving: Serving
    host: str
    endpoints: list[Endpoint]

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[0]

    def client(self, version: str = "2", **options: object) -> Client:
        return Client(self, version, **options)

    def use(self, *keys: str, **fields: object) -> None:
        """Change the upstream."""
        self.serving.native.upstream(self.host, keys, **fields)
        self.serving.apply()

    def reason(self, target: str, **fields: object) -> str:
        """Why the request for this target ended."""
        return str(self.serving.lb.wait_log(target=target, virtual_host=self.host, **fields)[-1]["reason"])

    def metric(self, name: str) -> float:
        return self.serving.lb.metric(name, upstream=self.host)

    def last_failure(self, address: str) -> str:
        """Why connections to an endpoint fail, as operators see it."""
        endpoints = self.serving.lb.get(f"/v1/upstreams/{self.host}")["endpoints"]
        return str(next(one["last_failure"] for one in endpoints if one["endpoint"] == address))


class Client(HttpClient):
    """Asks the host of its set-up."""

    def __init__(self, setup: Setup, version: str, **options: object) -> None:
        super().__init__(setup.serving.address(), version, **options)  # type: ignore[arg-type]
        self.host = setup.host

    def get(self, target: str = "/", method: str = "GET", **options: object) -> Answer:
        return self.ask(self.host, target, method, **options)  # type: ignore[arg-type]

    def begin(self, target: str = "/", method: str = "GET", **options: object) -> Exchange:
        return self.start(self.host, target, method, **options)  # type: ignore[arg-type]


Make = Callable[..., Setup]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    native = Native()
    native.host("none.test", respond("none", 404))
    with serving(tmp_path_factory.mktemp("upstream"), native, threads=1) as made:
        yield made


@pytest.fixture
def make(running: Serving) -> Iterator[Make]:
    """Serve a host of its own from these endpoints; `fields` are the upstream's."""
    made: list[Endpoint] = []

    def start(*endpoints: Endpoint, route: dict[str, object] | None = None, **fields: object) -> Setup:
        made.extend(endpoints)
        host = f"h2-{len(running.native.hosts)}.test"
        running.native.serve(host, *(one.key for one in endpoints), route=route, **{"protocol": "http2", **fields})
        running.apply()
        return Setup(running, host, list(endpoints))

    yield start
    for endpoint in made:
        endpoint.server.close()
    running.lb.assert_healthy()
    for endpoint in made:
        endpoint.server.assert_clean()


def held(setup: Setup, client: Client, count: int, target: str = "/hold", method: str = "GET") -> list[Exchange]:
    """So many requests that the endpoints have and do not answer."""
    before = sum(len(one.server.calls) for one in setup.endpoints)
    exchanges = [client.begin(f"{target}/{number}", method) for number in range(count)]
    wait_until(
        lambda: sum(len(one.server.calls) for one in setup.endpoints) == before + count, f"{count} requests have come"
    )
    return exchanges


def only_connection(setup: Setup, client: Client) -> Http2Connection:
    """That on which the endpoint has answered one request, and has nothing more to say."""
    assert client.get().status == 200
    (connection,) = setup.endpoint.server.connections
    assert isinstance(connection, Http2Connection)
    return connection


def bodies(exchanges: list[Exchange]) -> list[bytes]:
    return [exchange.rest().body for exchange in exchanges]


# -------------------------------------------------------------------------------------------------- shared connections


def test_requests_of_many_clients_share_one_connection(make: Make) -> None:
    setup = make(Endpoint())
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(setup.client(version)) for version in ("1.1", "2") * 10]
        exchanges = [exchange for client in clients for exchange in held(setup, client, 1)]
        assert setup.endpoint.server.accepted == 1
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 20
    assert setup.metric("lb_upstream_connects_total") == 1


def test_more_connections_when_the_endpoint_allows_few_streams(make: Make) -> None:
    setup = make(Endpoint(settings={STREAMS: 4}))
    with setup.client() as client:
        assert client.get().body == b"one"
        exchanges = held(setup, client, 10)
        assert sorted(len(one.calls) for one in setup.endpoint.server.open) == [2, 4, 5]
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 10
        assert bodies([client.begin() for _ in range(4)]) == [b"one"] * 4
    assert setup.endpoint.server.accepted == 3


@pytest.mark.parametrize(("limit", "connections"), [(3, [1, 3, 3, 3]), (0, [10])])
def test_more_connections_when_few_streams_are_configured(make: Make, limit: int, connections: list[int]) -> None:
    setup = make(Endpoint(), max_streams_per_connection=limit)
    with setup.client() as client:
        exchanges = held(setup, client, 10)
        assert sorted(len(one.calls) for one in setup.endpoint.server.open) == connections
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 10


def test_burst_before_the_limit_is_known(make: Make) -> None:
    """Streams that went out beyond it are refused, or wait; none of them is lost."""
    setup = make(Endpoint(settings={STREAMS: 4}))
    with setup.client() as client:
        exchanges = [client.begin(f"/hold/{number}") for number in range(40)]
        setup.endpoint.server.wait_calls(4)
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 40


def test_endpoint_that_allows_no_stream(make: Make) -> None:
    """It is left alone; when it allows some again it is used."""
    setup = make(Endpoint("shut", settings={STREAMS: 0}), Endpoint("open"))
    with setup.client() as client:
        for _ in range(10):
            assert client.get().body == b"open"
        wait_until(lambda: not setup.endpoint.server.open, "connections without streams are given up")
        setup.endpoint.server.settings[STREAMS] = 10
        wait_until(lambda: client.get().body == b"shut", "the endpoint is used again")


def test_only_endpoint_allows_no_stream(make: Make) -> None:
    setup = make(Endpoint(settings={STREAMS: 0}))
    with setup.client() as client:
        answer = client.get("/nobody")
    assert answer.status == 502
    assert setup.reason("/nobody") == "upstream-refused"


def test_limit_falls_while_streams_run(make: Make) -> None:
    """What runs goes on, what is new begins elsewhere, until the limit rises again."""
    setup = make(Endpoint())
    with setup.client() as client:
        running = held(setup, client, 5)
        first = setup.endpoint.server.open[0]
        setup.endpoint.change({STREAMS: 2})
        running += held(setup, client, 3)
        setup.endpoint.change({STREAMS: 0})
        running += held(setup, client, 2)
        assert len(first.calls) == 5
        accepted = setup.endpoint.server.accepted
        setup.endpoint.change({STREAMS: 100})
        running += held(setup, client, 50)
        assert setup.endpoint.server.accepted == accepted
        setup.endpoint.release()
        assert bodies(running) == [b"one"] * 60


def test_requests_in_line_get_their_turn(make: Make) -> None:
    setup = make(Endpoint(), max_connections_per_endpoint=3)
    with setup.client() as client:
        exchanges = [client.begin(f"/hold/{number}") for number in range(50)]
        setup.endpoint.server.wait_calls(3)
        wait_until(lambda: setup.metric("lb_upstream_requests_queued") == 47, "the others wait")
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 50


def test_connection_is_closed_after_so_many_requests(make: Make) -> None:
    setup = make(Endpoint(), max_requests_per_connection=3)
    with setup.client() as client:
        for _ in range(7):
            assert client.get().body == b"one"
        exchanges = held(setup, client, 7)
        assert max(one.count for one in setup.endpoint.server.connections) == 3
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 7


def test_unused_connection_is_closed_with_goaway(make: Make) -> None:
    setup = make(Endpoint(), idle_timeout="100ms")
    with setup.client() as client:
        assert client.get().body == b"one"
        wait_until(lambda: not setup.endpoint.server.open, "the connection is closed")
        assert setup.endpoint.server.goaways == [0]
        assert client.get().body == b"one"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_endpoint_closes_an_unused_connection(make: Make, method: str) -> None:
    """The next request gets a new one, whatever it is."""
    setup = make(Endpoint())
    with setup.client() as client:
        for _ in range(20):
            assert client.get(method=method).status == 200
            setup.endpoint.server.do(lambda: [one.transport.close() for one in setup.endpoint.server.open])


# -------------------------------------------------------------------------------------------------- refusals and deaths


def test_goaway_lets_streams_end(make: Make) -> None:
    """Those that the endpoint has taken end on their connection, the next request begins on a new one."""
    setup = make(Endpoint())
    with setup.client() as client:
        exchanges = held(setup, client, 3) + held(setup, client, 3, "/begin", "POST")
        setup.endpoint.go_away(11)
        wait_until(lambda: client.get().status == 200 and setup.endpoint.server.accepted == 2, "a new connection")
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 3 + [b"begun one"] * 3
        wait_until(lambda: len(setup.endpoint.server.open) == 1, "the old connection is closed")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("code", [ErrorCodes.NO_ERROR, ErrorCodes.ENHANCE_YOUR_CALM])
@pytest.mark.parametrize("close", [False, True])
def test_goaway_that_leaves_streams_out(make: Make, method: str, code: ErrorCodes, close: bool) -> None:
    """They are begun again on a new connection of the same endpoint: it has not looked at them."""
    setup = make(Endpoint())
    with setup.client() as client:
        exchanges = held(setup, client, 10, method=method)
        kept = 0 if close else 5
        setup.endpoint.go_away(2 * kept - 1 if kept else 0, code, close=close)
        setup.endpoint.server.wait_calls(20 - kept)
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 10
        assert setup.endpoint.server.accepted == 2


def test_goaway_that_leaves_out_what_has_begun_to_be_answered(make: Make) -> None:
    """Nobody may pretend that it was not looked at."""
    setup = make(Endpoint())
    with setup.client() as client:
        (begun,) = held(setup, client, 1, "/begin")
        assert begun.read() == b"begun "
        setup.endpoint.go_away(0)
        with pytest.raises(Reset):
            begun.rest()
    assert setup.reason("/begin/0") == "upstream-truncated"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_left_out_by_one_connection_after_the_other(make: Make, method: str) -> None:
    """As behind a server that ends each after so many requests, when others are always first."""

    async def leaving(call: Call) -> None:
        if server.accepted < 12 or call.target == b"/never":
            for one in server.open:
                one.go_away(0, 0, close=True)
        else:
            await call.answer(200, b"at last")

    setup = make(Endpoint("one", leaving))
    server = setup.endpoint.server
    with setup.client() as client:
        assert client.get("/", method).body == b"at last"
        before = server.accepted
        answer = client.get("/never", method)
    assert answer.status == 502
    assert b"upstream-refused" in answer.body
    assert server.accepted - before < 25, "it comes to an end"


def test_left_out_and_then_sent_elsewhere(make: Make) -> None:
    """It goes first on the next connection of the endpoint that has left it out; another one's have room for it."""

    async def leave_out_then_refuse(call: Call) -> None:
        if len(server.calls) % 3 == 1:
            for one in server.open:
                one.go_away(0, 0, close=True)
        else:
            call.reset(ErrorCodes.REFUSED_STREAM)

    setup = make(Endpoint("busy", leave_out_then_refuse), Endpoint("free"))
    server = setup.endpoint.server
    with setup.client() as client:
        assert [client.get().body for _ in range(8)] == [b"free"] * 8
    assert server.calls
    assert setup.endpoints[1].server.accepted == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused_stream_goes_elsewhere(make: Make, method: str) -> None:
    async def refuse(call: Call) -> None:
        call.reset(ErrorCodes.REFUSED_STREAM)

    setup = make(Endpoint("full", refuse), Endpoint("free"))
    with setup.client() as client:
        assert bodies([client.begin("/", method) for _ in range(10)]) == [b"free"] * 10
    assert setup.endpoint.server.calls


def test_all_refuse(make: Make) -> None:
    async def refuse(call: Call) -> None:
        call.reset(ErrorCodes.REFUSED_STREAM)

    setup = make(Endpoint("full", refuse), Endpoint("full", refuse))
    with setup.client() as client:
        answer = client.get("/refused")
        assert answer.status == 502
        assert b"upstream-refused" in answer.body
    assert setup.reason("/refused") == "upstream-refused"
    assert len(setup.endpoints[0].server.calls) + len(setup.endpoints[1].server.calls) <= 6


@pytest.mark.parametrize("streams", [1, 100])
def test_full_connection_that_refuses_goes_on(make: Make, streams: int) -> None:
    """It leaves nobody out: its endpoint says no, and is not asked again and again on new connections."""

    async def refuse(call: Call) -> None:
        call.reset(ErrorCodes.REFUSED_STREAM)

    setup = make(Endpoint("full", refuse, settings={STREAMS: streams}), Endpoint("free"))
    with setup.client() as client:
        assert bodies([client.begin(f"/{number}") for number in range(10)]) == [b"free"] * 10
    asked = Counter(call.target for call in setup.endpoint.server.calls)
    assert max(asked.values()) <= 2


@pytest.mark.parametrize("code", [ErrorCodes.INTERNAL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.CANCEL])
def test_reset_before_the_head(make: Make, code: ErrorCodes) -> None:
    """Only what can be repeated is, because the endpoint may have acted on it."""

    async def reset(call: Call) -> None:
        call.reset(code)

    setup = make(Endpoint("broken", reset), Endpoint("whole"))
    with setup.client() as client:
        assert bodies([client.begin() for _ in range(6)]) == [b"whole"] * 6
        answers = [client.get(f"/post/{number}", "POST") for number in range(2)]
    assert sorted(answer.status for answer in answers) == [200, 502]
    setup.serving.lb.wait_log(reason="upstream-reset", status=502, virtual_host=setup.host)


def test_connection_dies_with_many_streams(make: Make) -> None:
    """GETs begin again elsewhere, what has begun to come is cut off, POSTs are answered 502."""
    setup = make(Endpoint())
    with setup.client() as client:
        begun = held(setup, client, 3, "/begin")
        for exchange in begun:
            assert exchange.read() == b"begun "
        gets = held(setup, client, 20)
        posts = held(setup, client, 3, method="POST")
        setup.endpoint.die()
        setup.endpoint.server.wait_calls(46)
        setup.endpoint.release()
        assert bodies(gets) == [b"one"] * 20
        assert [exchange.rest().status for exchange in posts] == [502] * 3
        for exchange in begun:
            with pytest.raises(Reset):
                exchange.rest()
    assert setup.endpoint.server.accepted == 2
    assert setup.reason("/begin/0") == "upstream-truncated"
    assert setup.reason("/hold/0", method="POST") == "upstream-reset"


def test_endpoint_that_is_not_there(make: Make) -> None:
    """Those who wait for the same connection all learn that there is none."""
    setup = make(Endpoint("gone"), Endpoint("there"))
    setup.endpoint.server.close()
    with setup.client() as client:
        assert bodies([client.begin() for _ in range(30)]) == [b"there"] * 30


def test_endpoint_that_says_nothing(make: Make) -> None:
    """It has not been spoken to before its SETTINGS, so that another one can serve whatever it is."""
    silent = RawBackend(lambda connection: connection.wait_for_end() and None)
    with silent:
        setup = make(Endpoint("there"))
        setup.use(silent.key, setup.endpoint.key, protocol="http2", connect_timeout="100ms")
        with setup.client() as client:
            assert bodies([client.begin("/", "POST") for _ in range(10)]) == [b"there"] * 10
        setup.use(silent.key, protocol="http2", connect_timeout="100ms")
        with setup.client() as client:
            assert client.get("/silent").status == 504
        assert setup.reason("/silent") == "connect-timeout"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_endpoint_that_ends_before_its_settings(make: Make, how: str) -> None:
    """As one that restarts. Why it is passed over from then on does not read as if its configuration were wrong."""

    def go(connection: BackendConnection) -> None:
        connection.reader.take(24)
        if how == "reset":
            connection.reset()

    with RawBackend(go) as restarting:
        setup = make(Endpoint("there"))
        setup.use(restarting.key, setup.endpoint.key, protocol="http2")
        with setup.client() as client:
            assert bodies([client.begin("/", "POST") for _ in range(10)]) == [b"there"] * 10
        assert setup.last_failure(restarting.key) == "it ends the connection before HTTP/2 begins"


def test_response_timeout_resets_the_stream_only(make: Make) -> None:
    """As long as anything has come on its connection since it began there."""
    setup = make(Endpoint(), route={"response_timeout": "200ms"})
    with setup.client() as client:
        old = only_connection(setup, client)
        exchange = client.begin("/hold", "POST", end=False)  # no timeout holds before its request is complete
        wait_until(lambda: old.count == 2, "the endpoint has it")
        setup.endpoint.server.do(old.ping)
        wait_until(lambda: old.pongs, "lb has heard of the endpoint")
        call = setup.endpoint.server.calls[-1]
        exchange.end()
        assert exchange.rest().status == 504
        wait_until(lambda: call.cancelled == ErrorCodes.CANCEL, "the endpoint is told")
        client.get()
        wait_until(lambda: old.count == 3, "the next request comes on the same connection")


def test_silent_connection_gets_nothing_new(make: Make) -> None:
    """Whatever is at its other end, a new connection finds out; what runs on the old one may still end well."""
    setup = make(Endpoint(), route={"response_timeout": "300ms"})
    with setup.client() as client:
        old = only_connection(setup, client)
        second = client.begin("/hold/patient", "POST", end=False)
        wait_until(lambda: old.count == 2, "the endpoint has the second request")
        assert client.get("/hold").status == 504
        wait_until(lambda: client.get().status == 200, "a new connection answers")
        assert old.count == 3
        setup.endpoint.release()
        second.end()
        assert second.rest().body == b"one"
        wait_until(lambda: old.ended, "the old connection is closed")


def test_what_came_before_a_request_says_nothing_of_its_connection(make: Make) -> None:
    """And be it a microsecond before: lb finds both at once when it wakes. Seldom, one in dozens, something is read
    behind the request all the same, and then the connection is not silent; not five times.
    """
    setup = make(Endpoint(), route={"response_timeout": "300ms"})
    with setup.client() as client:
        for _ in range(5):
            old = only_connection(setup, client)
            before = old.count
            with setup.serving.lb.stopped():
                setup.endpoint.server.do(old.ping)
                unanswered = client.begin("/hold")
            assert unanswered.rest().status == 504
            wait_until(lambda: client.get().status == 200, "a connection answers")
            if old.count == before + 1:
                return
    raise AssertionError("requests went on to a connection on which one had not been answered")


# -------------------------------------------------------------------------------------------------------- flow control


def test_slow_client_stalls_only_its_stream(make: Make) -> None:
    """What a client does not take stops at the endpoint; others on the same connection go on; memory stays bounded."""
    setup = make(Endpoint())
    lb = setup.serving.lb
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(setup.client(version, receive_buffer=4096)).begin(f"/bulk/{LARGE}")
            for version in ("1.1", "2") * 5
        ]
        setup.endpoint.server.wait_calls(10)
        wait_until(lambda: lb.metric("lb_buffer_bytes") > 500_000, "bytes wait for the slow clients")
        with setup.client() as client:
            for size in (1, 100_000, LARGE):
                assert hashlib.sha256(client.get(f"/bulk/{size}").body).hexdigest().encode() == digest(size)
        assert setup.endpoint.server.accepted == 1
        assert lb.metric("lb_buffer_bytes") < 10 * 600_000
        for exchange in slow:
            assert hashlib.sha256(exchange.rest().body).hexdigest().encode() == digest(LARGE)


def test_slow_endpoint_stalls_only_its_stream(make: Make) -> None:
    """What the endpoint does not take of one body stops at its client."""
    setup = make(Endpoint())
    lb = setup.serving.lb
    with setup.client() as client, setup.client() as other:
        exchange = client.begin("/hold", "POST", end=False)
        for piece in pieces(150_000):
            exchange.send(bytes(piece))
        wait_until(lambda: lb.metric("lb_buffer_bytes") > 60_000, "bytes wait for the endpoint")
        assert other.get("/digest", "POST", body=payload(MEGABYTE)).body == digest(MEGABYTE)
        assert lb.metric("lb_buffer_bytes") < 1_000_000
        setup.endpoint.release()
        exchange.end()
        assert exchange.rest().body == b"one"
    assert setup.endpoint.server.accepted == 1


@pytest.mark.parametrize(("size", "body"), [(0, 50_000), (1, 500), (1000, 50_000), (2**31 - 1, 50_000)])
def test_windows_of_the_endpoint_are_kept(make: Make, size: int, body: int) -> None:
    """Whatever window streams begin with, and when it changes under way."""
    setup = make(Endpoint(settings={WINDOW: size}))
    with setup.client() as client:
        client.get()
        exchange = client.begin("/digest", "POST", end=False)
        setup.endpoint.server.wait_calls(2)
        exchange.send(payload(body))
        exchange.end()
        if size == 0:
            setup.endpoint.change({WINDOW: 20_000})
        assert exchange.rest().body == digest(body)


def test_window_shrinks_below_what_is_under_way(make: Make) -> None:
    """The stream's window becomes negative (RFC 9113 6.9.2), and the body still arrives."""
    setup = make(Endpoint())
    with setup.client() as client:
        exchange = client.begin("/hold/digest", "POST", end=False)
        exchange.send(payload(60_000))
        setup.endpoint.server.wait_calls(1)
        setup.endpoint.change({WINDOW: 0})
        assert client.get().status == 200
        exchange.send(payload(100_000))
        exchange.end()
        setup.endpoint.release()
        setup.endpoint.change({WINDOW: 65_535})
        assert exchange.rest().body == b"one"


def test_endpoint_without_a_header_table(make: Make) -> None:
    setup = make(Endpoint(settings={SettingCodes.HEADER_TABLE_SIZE: 0}))
    with setup.client() as client:
        for _ in range(5):
            assert client.get(headers=[(b"x-same", b"again")]).status == 200
        setup.endpoint.change({SettingCodes.HEADER_TABLE_SIZE: 4096})
        for _ in range(5):
            assert client.get(headers=[(b"x-same", b"again")]).status == 200


# ---------------------------------------------------------------------------------------------- no floods, though alike


def test_endpoint_measures_with_pings(make: Make) -> None:
    """gRPC estimates bandwidth by a PING for each round trip in which data has come."""

    async def measure(call: Call) -> None:
        seen = hashlib.sha256()
        while data := await call.read():
            call.connection.ping()
            seen.update(data)
        await call.answer(200, seen.hexdigest().encode())

    setup = make(Endpoint(handler=measure))
    with setup.client() as client:
        exchange = client.begin("/", "POST", end=False)
        for piece in pieces(4 * MEGABYTE, 8192):
            exchange.send(bytes(piece))
        exchange.end()
        assert exchange.rest().body == digest(4 * MEGABYTE)
    assert setup.endpoint.server.accepted == 1


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_client_measures_with_pings(make: Make, version: str) -> None:
    """The same on the other side, while it downloads; the endpoint speaks either protocol."""
    setup = make(Endpoint(), protocol="http2" if version == "2" else "http1")
    with setup.client() as client:
        exchange = client.begin(f"/bulk/{LARGE}")
        seen = hashlib.sha256()
        while data := exchange.read():
            client.ping()
            seen.update(data)
        assert seen.hexdigest().encode() == digest(LARGE)
        assert client.get().status == 200


def test_endpoint_that_answers_early_every_time(make: Make) -> None:
    """The rest of each request is not wanted, which RST_STREAM says (RFC 9113 8.1)."""

    async def hasty(call: Call) -> None:
        await call.answer(200, b"early")
        call.reset(ErrorCodes.NO_ERROR)

    setup = make(Endpoint(handler=hasty))
    with setup.client() as client:
        for _ in range(600):
            exchange = client.begin("/", "POST", end=False)
            assert exchange.rest().body == b"early"
    assert setup.endpoint.server.accepted == 1


# -------------------------------------------------------------------------------------------------------------- changes


def test_endpoint_is_removed_while_streams_run(make: Make) -> None:
    """They end where they are, nothing new begins there, and the connection is closed behind the last one."""
    old, new = Endpoint("old"), Endpoint("new")
    setup = make(old, new)
    setup.use(old.key, protocol="http2")
    with setup.client() as client:
        exchanges = held(setup, client, 3) + held(setup, client, 3, "/begin")
        setup.use(new.key, protocol="http2")
        assert bodies([client.begin() for _ in range(10)]) == [b"new"] * 10
        assert old.server.open
        old.release()
        assert bodies(exchanges) == [b"old"] * 3 + [b"begun old"] * 3
        wait_until(lambda: not old.server.open, "the connection to the removed endpoint is closed")
        assert client.get().body == b"new"


def test_endpoint_changes_its_protocol(make: Make) -> None:
    """What begins after the change speaks the new one; what runs goes on in the old one."""
    setup = make(Endpoint())
    with setup.client() as client:
        exchanges = held(setup, client, 2)
        setup.use(setup.endpoint.key, protocol="http1")
        assert client.get().body == b"one"
        assert [call.version for call in setup.endpoint.server.calls] == ["2", "2", "1.1"]
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 2


# ----------------------------------------------------------------------------------------------------- which protocol


@dataclass
class Security:
    authority: Authority
    directory: Path
    fields: dict[str, object] = field(default_factory=dict)

    def endpoint(self, *alpn: str, handler: Handler | None = None) -> Endpoint:
        pair = self.authority.issue("endpoint.test")
        return Endpoint(handler=handler, pair=pair, directory=self.directory, alpn=alpn)


@pytest.fixture
def security(tmp_path: Path) -> Security:
    authority = Authority()
    return Security(authority, tmp_path, {"tls": {"ca": authority.pem, "server_name": "endpoint.test"}})


@pytest.mark.parametrize(
    ("protocol", "alpn", "spoken"),
    [
        ("auto", ("h2", "http/1.1"), "2"),
        ("auto", ("http/1.1",), "1.1"),
        ("auto", (), "1.1"),
        ("http2", ("h2", "http/1.1"), "2"),
        ("http1", ("h2", "http/1.1"), "1.1"),
        ("http1", (), "1.1"),
    ],
)
def test_alpn_decides(make: Make, security: Security, protocol: str, alpn: tuple[str, ...], spoken: str) -> None:
    setup = make(security.endpoint(*alpn), protocol=protocol, **security.fields)
    with setup.client() as client:
        assert client.get().body == b"one"
        exchanges = held(setup, client, 5)
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 5
    assert {call.version for call in setup.endpoint.server.calls} == {spoken}
    assert (setup.endpoint.server.accepted == 1) == (spoken == "2")


def test_what_alpn_has_chosen_is_expected_again(make: Make, security: Security) -> None:
    """A burst shares one connection; and when the endpoint has been replaced by one without HTTP/2, none is lost."""
    setup = make(security.endpoint("h2", "http/1.1"), protocol="auto", route={"retries": 0}, **security.fields)
    server = setup.endpoint.server
    with setup.client() as client:
        assert client.get().body == b"one"
        setup.endpoint.die()
        wait_until(lambda: not server.open, "the connection ends")
        exchanges = held(setup, client, 20)
        assert server.accepted == 2
        setup.endpoint.release()
        assert bodies(exchanges) == [b"one"] * 20
        server.agree_on("http/1.1")
        setup.endpoint.die()
        wait_until(lambda: not server.open, "the connections end")
        assert bodies([client.begin("/", "POST") for _ in range(20)]) == [b"one"] * 20
        assert {call.version for call in server.calls[21:]} == {"1.1"}
        server.agree_on("h2")
        server.do(lambda: [one.transport.close() for one in server.open])
        wait_until(lambda: client.get().body == b"one" and server.calls[-1].version == "2", "HTTP/2 is found again")


@pytest.mark.parametrize("chunks", [(), (b"hello", b"again")], ids=["empty", "full"])
def test_what_is_sent_again_by_http1_has_its_end(make: Make, security: Security, chunks: tuple[bytes, ...]) -> None:
    """A body of unknown length was refused with HTTP/2, and the endpoint's next connection speaks HTTP/1.1."""

    async def replaced(call: Call) -> None:
        body = await call.body()
        if call.version == "2":
            server.agree_on("http/1.1")
            for one in server.open:
                one.go_away(0, 0, close=True)
        else:
            await call.answer(200, b"got " + body)

    setup = make(security.endpoint("h2", handler=replaced), protocol="auto", **security.fields)
    server = setup.endpoint.server
    with setup.serving.connect() as client:
        head = get(setup.host, "/", "Transfer-Encoding: chunked", method="POST")
        assert client.ask(head + chunked(*chunks)).body == b"got " + b"".join(chunks)
    assert [call.version for call in server.calls] == ["2", "1.1"]


def test_an_endpoint_that_closes_without_a_goodbye(make: Make, security: Security) -> None:
    """Neither HTTP/2's nor TLS's. It has closed all the same, and not reset."""

    async def close(call: Call) -> None:
        await call.body()
        for one in server.open:
            one.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)

    setup = make(security.endpoint("h2", handler=close), protocol="http2", **security.fields)
    server = setup.endpoint.server
    with setup.client() as client:
        (body,) = bodies([client.begin("/", "POST")])
    assert b"upstream-closed" in body
    assert len(server.calls) == 1


@pytest.mark.parametrize("alpn", [("http/1.1",), ()])
def test_endpoint_that_must_speak_http2_and_does_not(make: Make, security: Security, alpn: tuple[str, ...]) -> None:
    setup = make(security.endpoint(*alpn), protocol="http2", **security.fields)
    with setup.client() as client:
        answer = client.get("/not-h2")
        assert answer.status == 502
        assert b"upstream-protocol" in answer.body
    assert not setup.endpoint.server.calls
    assert setup.last_failure(setup.endpoint.key) == "it does not speak HTTP/2"


def test_plain_endpoint_that_speaks_only_http1(make: Make) -> None:
    """It answers lb's preface by HTTP/1.1, and that is said."""

    def refuse(connection: BackendConnection) -> None:
        connection.reader.take(24)
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        connection.wait_for_end()

    setup = make(Endpoint())
    with RawBackend(refuse) as old:
        setup.use(old.key, protocol="http2")
        with setup.client() as client:
            answer = client.get("/not-h2c")
    assert answer.status == 502
    assert b"upstream-protocol" in answer.body


def test_auto_without_tls_is_http1(make: Make) -> None:
    setup = make(Endpoint(), protocol="auto")
    with setup.client() as client:
        assert client.get().body == b"one"
    assert setup.endpoint.server.calls[0].version == "1.1"


# ----------------------------------------------------------------------------------------------------------- websockets


def test_left_out_and_then_without_extended_connect(make: Make) -> None:
    """The next connection is asked once, although whom another one has left out goes first there."""

    async def replaced(call: Call) -> None:
        server.settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 0
        for one in server.open:
            one.go_away(0, 0, close=True)

    setup = make(Endpoint("one", replaced))
    server = setup.endpoint.server
    sent = []
    with setup.client("1.1") as client:
        for target in ("/first", "/again"):
            assert client.websocket(setup.host, target).rest().status == 502
            assert setup.reason(target) == "upstream-no-websocket"
            sent.append(setup.metric("lb_upstream_sent_bytes_total"))
    assert sent[0] == 2 * (sent[1] - sent[0]), "on two connections, and then on the second one"


def test_endpoint_without_extended_connect(make: Make) -> None:
    setup = make(Endpoint(settings={SettingCodes.ENABLE_CONNECT_PROTOCOL: 0}))
    for version in ("1.1", "2"):
        with setup.client(version) as client:
            exchange = client.websocket(setup.host, f"/chat/{version}")
            assert exchange.rest().status == 502
        assert setup.reason(f"/chat/{version}") == "upstream-no-websocket"
    with setup.client() as client:
        assert client.get().status == 200


def test_other_upgrades_do_not_fit_http2(make: Make) -> None:
    setup = make(Endpoint())
    with setup.client("1.1") as client:
        fields = [(b"upgrade", b"something"), (b"connection", b"upgrade")]
        assert client.get("/other", headers=fields).status == 502
    assert setup.reason("/other") == "upstream-no-websocket"
