"""gRPC through lb: grpcio on both sides, plain and TLS; deadlines, large and slow streams, swaps, lb's own errors."""

from __future__ import annotations

import hashlib
import itertools
import queue
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from tests.harness.certificates import Authority
from tests.harness.grpc_server import SERVICE, Calls, GrpcServer
from tests.harness.http_client import HttpClient
from tests.harness.http_server import Call, HttpServer
from tests.harness.native import Native, forward, respond
from tests.harness.payload import MEGABYTE, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until

PAIRS = [(client, endpoint) for client in ("plain", "tls") for endpoint in ("plain", "tls")]
CODE = grpc.StatusCode


@dataclass
class World:
    """lb between grpcio clients and grpcio servers."""

    serving: Serving
    authority: Authority
    servers: dict[str, GrpcServer]
    patient: HttpServer

    def calls(self, host: str, security: str = "plain", **options: object) -> Calls:
        listener, ca = ("https", self.authority.pem) if security == "tls" else ("http", "")
        address = "{}:{}".format(*self.serving.address(listener))
        return Calls(address, host, ca=ca, options=list(options.items()))

    def wait_for(self, name: bytes) -> threading.Event:
        """The call of `wait` with this request has come; what is set when its client has given up."""
        return wait_until(
            lambda: next((one.waits[name] for one in self.servers.values() if name in one.waits), None), "it"
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("grpc")
    authority = Authority()
    native = Native()
    names = ("plain.test", "tls.test", "rolling.test", "aging.test")
    native.certificate("lb", authority.issue(*names))
    native.listen("http", free_port())
    native.listen_tls("https", free_port(), {"*": "lb"})
    knows_no_time = HttpServer(patient)
    servers = {"plain": GrpcServer(), "tls": GrpcServer(pair=authority.issue("endpoint.test"))}
    native.upstream("plain", [servers["plain"].key], protocol="http2")
    tls = {"ca": authority.pem, "server_name": "endpoint.test"}
    native.upstream("tls", [servers["tls"].key], protocol="http2", tls=tls)
    for name in ("plain", "tls"):
        native.host(f"{name}.test", forward(name, name))
    native.upstream("nobody", [])
    native.upstream("gone", [f"127.0.0.1:{free_port()}"], protocol="http2")
    native.upstream("narrow", [servers["plain"].key], protocol="http2", max_connections=1, max_queue=0)
    native.host(
        "errors.test",
        forward("no-endpoint", "nobody", path="/nobody"),
        forward("connect-failed", "gone", path="/gone"),
        forward("short", "plain", path=f"/{SERVICE}/wait", response_timeout="100ms"),
        forward("small", "plain", path=f"/{SERVICE}/echo", max_body="1Ki"),
        forward("whole", "plain", path=f"/{SERVICE}/chat", request_timeout="100ms"),
        respond("local", 403, path="/local"),
        {**respond("redirected", 200, path="/redirected"), "https_redirect": 308},
    )
    native.host("narrow.test", forward("narrow", "narrow"))
    native.serve("patient.test", knows_no_time.key, protocol="http2")
    native.host("hurried.test", forward("hurried", "patient.test", request_timeout="100ms"))
    try:
        with serving(directory, native) as running:
            yield World(running, authority, servers, knows_no_time)
    finally:
        knows_no_time.close()
        for server in servers.values():
            server.close()


@pytest.fixture(params=PAIRS, ids="-".join)
def calls(world: World, request: pytest.FixtureRequest) -> Iterator[Calls]:
    """A client that is plain or not, of endpoints that are or not."""
    security, endpoint = request.param
    with world.calls(f"{endpoint}.test", security) as made:
        yield made
    world.serving.lb.assert_healthy()


# ------------------------------------------------------------------------------------------------------ kinds of calls


def test_one_to_one(calls: Calls) -> None:
    for size in (0, 1, 100_000, 5 * MEGABYTE):
        assert calls.echo(payload(size), timeout=DEADLINE) == payload(size)


def test_one_to_many(calls: Calls) -> None:
    assert [len(message) for message in calls.repeat(b"100 1000", timeout=DEADLINE)] == [1000] * 100
    assert list(calls.repeat(b"0 0", timeout=DEADLINE)) == []
    assert list(calls.repeat(b"3 %d" % (5 * MEGABYTE), timeout=DEADLINE)) == [payload(5 * MEGABYTE)] * 3


def test_many_to_one(calls: Calls) -> None:
    messages = [payload(size) for size in (0, 1, 70_000, 5 * MEGABYTE)] * 2
    expected = b"8 " + hashlib.sha256(b"".join(messages)).hexdigest().encode()
    assert calls.digest(iter(messages), timeout=DEADLINE) == expected


def test_many_to_many(calls: Calls) -> None:
    """Each message is answered before the next one is sent."""
    outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = calls.chat(iter(outgoing.get, None), timeout=DEADLINE)
    for number in range(100):
        outgoing.put(b"%d" % number)
        assert next(answers) == b"one %d" % number
    outgoing.put(None)
    assert list(answers) == []
    assert answers.code() is CODE.OK


def test_metadata(calls: Calls) -> None:
    sent = (("x-mine", "1"), ("mine-bin", b"\x00\x01\xff"), ("x-twice", "a"), ("x-twice", "b"))
    body, call = calls.meta.with_call(b"", metadata=sent, timeout=DEADLINE)
    seen = body.decode().split("\n")
    assert "x-mine='1'" in seen
    assert f"mine-bin={bytes([0, 1, 255])!r}" in seen
    assert "x-twice='a'" in seen
    assert "x-twice='b'" in seen
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (initial["x-begin"], initial["begin-bin"]) == ("1", b"\x01\xfe")
    assert (trailing["any-name"], trailing["end-bin"]) == ("2", b"\x02\xfd")


@pytest.mark.parametrize("code", [code for code in CODE if code is not CODE.OK], ids=lambda code: code.name)
def test_status_of_the_endpoint_goes_through(world: World, code: grpc.StatusCode) -> None:
    details = "it said: 50% ünsinn\n"
    with world.calls("plain.test") as calls:
        with pytest.raises(grpc.RpcError) as caught:
            calls.fail(f"{code.value[0]} {details}".encode(), timeout=DEADLINE)
        assert (caught.value.code(), caught.value.details()) == (code, details)
        assert dict(caught.value.trailing_metadata())["failure-bin"] == b"\x00\xff"
    world.serving.lb.wait_log(target=f"/{SERVICE}/fail", grpc_status=code.value[0])


def test_calls_are_counted_by_route_and_status(world: World) -> None:
    serving = world.serving

    def counted(status: str) -> float:
        return serving.lb.metric("lb_route_grpc_calls_total", route="counted", grpc_status=status)

    serving.native.host("counted.test", forward("counted", "plain"))
    serving.apply()
    with world.calls("counted.test") as calls:
        for _ in range(3):
            calls.echo(b"", timeout=DEADLINE)
        for code in (5, 5, 14):
            with pytest.raises(grpc.RpcError):
                calls.fail(b"%d it" % code, timeout=DEADLINE)
    ask_raw(world, f"/{SERVICE}/echo", (b"grpc-timeout", b"x"), host="counted.test")  # answered by lb
    with HttpClient(serving.address(), "2") as client:  # given up
        exchange = client.start("counted.test", f"/{SERVICE}/wait", "POST", [(b"content-type", b"application/grpc")])
        exchange.cancel()
    wait_until(lambda: counted("none") == 1, "the call that was given up has ended")
    statuses = ("OK", "NOT_FOUND", "UNAVAILABLE", "INTERNAL", "UNKNOWN")
    assert [counted(status) for status in statuses] == [3, 2, 1, 1, 0]


# ------------------------------------------------------------------------------------------- cancellation and deadlines


def test_client_cancels(world: World, calls: Calls) -> None:
    name = secrets.token_bytes(8)
    waiting = calls.wait.future(name, timeout=DEADLINE)
    ended = world.wait_for(name)
    waiting.cancel()
    assert ended.wait(DEADLINE)
    endless = calls.repeat(b"1000000 1000", timeout=DEADLINE)
    assert len(next(endless)) == 1000
    endless.cancel()
    assert calls.echo(b"still here", timeout=DEADLINE) == b"still here"


def test_deadline_of_a_real_client(world: World, calls: Calls) -> None:
    """Whoever notices first, client, lb or endpoint: all three know."""
    name = secrets.token_bytes(8)
    with pytest.raises(grpc.RpcError) as caught:
        calls.wait(name, timeout=0.3)
    assert caught.value.code() is CODE.DEADLINE_EXCEEDED
    assert world.wait_for(name).wait(DEADLINE)
    assert calls.echo(b"still here", timeout=DEADLINE) == b"still here"


def ask_raw(world: World, path: str, *fields: tuple[bytes, bytes], host: str = "plain.test") -> tuple[int, str, str]:
    """HTTP status, grpc-status and grpc-message of a call whose client has no clock of its own."""
    with HttpClient(world.serving.address(), "2") as client:
        headers = [(b"content-type", b"application/grpc+proto"), (b"te", b"trailers"), *fields]
        exchange = client.start(host, path, "POST", headers, end=False)
        exchange.send(b"\0\0\0\0\0")
        exchange.end()
        answer = exchange.rest()
        where = answer.trailers if answer.trailers else answer.headers
        if answer.headers.get("grpc-status"):  # without a body the head says all
            assert answer.body == b""
            assert (answer.headers.get("content-type") or b"").startswith(b"application/grpc")
        return answer.status, (where.get("grpc-status") or b"").decode(), (where.get("grpc-message") or b"").decode()


async def patient(call: Call) -> None:
    """An endpoint that knows no deadlines: `/wait` is never answered."""
    await call.body()
    if call.target == b"/wait":
        await call.until_cancelled()
    else:
        await call.answer(200, b"\0\0\0\0\0", [(b"content-type", b"application/grpc")], [(b"grpc-status", b"0")])


@pytest.mark.parametrize("text", ["100m", "100000u", "99999999n", "00000001m", "0S", "0n", "1n"])
def test_deadline_is_kept_by_lb(world: World, text: str) -> None:
    before = len(world.patient.calls)
    assert ask_raw(world, "/wait", (b"grpc-timeout", text.encode()), host="patient.test") == (
        200,
        "4",
        "lb: grpc-deadline",
    )
    record = world.serving.lb.wait_log(virtual_host="patient.test", reason="grpc-deadline")[-1]
    assert (record["status"], record["grpc_status"]) == (200, 4)
    for call in world.patient.calls[before:]:  # when the time was enough to reach it
        wait_until(lambda call=call: call.cancelled == 8, "the endpoint is told (CANCEL)")


@pytest.mark.parametrize("text", ["1H", "1M", "10S", "99999999H"])
def test_deadline_that_is_far_away(world: World, text: str) -> None:
    assert ask_raw(world, "/echo", (b"grpc-timeout", text.encode()), host="patient.test") == (200, "0", "")


@pytest.mark.parametrize("text", ["", "5", "5x", "-5S", "123456789m", "1.5S", "m", "5 S"])
def test_deadline_that_is_none(world: World, text: str) -> None:
    result = ask_raw(world, "/echo", (b"grpc-timeout", text.encode()), host="patient.test")
    assert result == (200, "13", "lb: bad-header")


def test_two_deadlines(world: World) -> None:
    fields = [(b"grpc-timeout", b"10S"), (b"grpc-timeout", b"20S")]
    assert ask_raw(world, "/echo", *fields, host="patient.test") == (200, "13", "lb: bad-header")


def test_shorter_limit_of_the_route_holds(world: World) -> None:
    result = ask_raw(world, "/wait", (b"grpc-timeout", b"1H"), host="hurried.test")
    assert result == (200, "4", "lb: request-timeout")


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        (b"x-trace-bin", b"!!!!", b"AAEC"),
        (b"grpc-encoding", b"nonsense", b"identity"),
        (b"grpc-accept-encoding", b"\xff", b"identity"),
    ],
)
def test_malformed_call_does_not_spoil_others_of_its_connection(
    world: World, name: bytes, bad: bytes, good: bytes
) -> None:
    """grpc-core remembers with an entry of the header table that it was wrong, and takes the name from it later on."""
    path = f"/{SERVICE}/echo"
    with world.calls("plain.test") as calls:
        assert calls.echo(b"before", timeout=DEADLINE) == b"before"
        for _ in range(3):
            ask_raw(world, path, (name, bad))
        assert ask_raw(world, path, (name, good))[1] == "0"
        assert calls.echo(b"behind", timeout=DEADLINE) == b"behind"


def test_deadline_ends_what_has_begun(world: World) -> None:
    """The response has begun, so that its status cannot be told any more: the stream is cut."""
    with world.calls("errors.test") as calls:
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = calls.chat(iter(outgoing.get, None))
        outgoing.put(b"x")
        assert next(answers) == b"one x"
        with pytest.raises(grpc.RpcError):
            next(answers)
        outgoing.put(None)
    record = world.serving.lb.wait_log(route="whole")[-1]
    assert record["reason"] == "request-timeout"


# ------------------------------------------------------------------------------------------------------ lb's own errors


@pytest.mark.parametrize(
    ("host", "path", "status", "reason"),
    [
        ("unknown.test", "/x", 12, "no-host"),
        ("errors.test", "/x", 12, "no-route"),
        ("errors.test", "/nobody/x", 14, "no-endpoint"),
        ("errors.test", "/gone/x", 14, "connect-failed"),
        ("errors.test", f"/{SERVICE}/wait", 4, "response-timeout"),
    ],
)
def test_errors_have_a_grpc_status(world: World, host: str, path: str, status: int, reason: str) -> None:
    assert ask_raw(world, path, host=host) == (200, str(status), f"lb: {reason}")
    record = world.serving.lb.wait_log(host=host, reason=reason)[-1]
    assert (record["status"], record["grpc_status"]) == (200, status)


def test_message_over_the_limit(world: World) -> None:
    with world.calls("errors.test") as calls:
        assert calls.echo(b"x" * 1000, timeout=DEADLINE) == b"x" * 1000
        with pytest.raises(grpc.RpcError) as caught:
            calls.echo(b"x" * 100_000, timeout=DEADLINE)
    assert (caught.value.code(), caught.value.details()) == (CODE.RESOURCE_EXHAUSTED, "lb: body-too-large")


def test_full_upstream(world: World) -> None:
    with world.calls("narrow.test") as calls:
        waiting = calls.wait.future(b"full", timeout=DEADLINE)
        ended = world.wait_for(b"full")
        with pytest.raises(grpc.RpcError) as caught:
            calls.echo(b"x", timeout=DEADLINE)
        assert (caught.value.code(), caught.value.details()) == (CODE.UNAVAILABLE, "lb: queue-full")
        waiting.cancel()
        assert ended.wait(DEADLINE)
        # Its place is free again.
        wait_until(lambda: _succeeds(calls), "the next call is served")


def _succeeds(calls: Calls) -> bool:
    try:
        return bool(calls.echo(b"x", timeout=DEADLINE) == b"x")
    except grpc.RpcError:
        return False


def test_answers_of_routes_are_http(world: World) -> None:
    """What the configuration says is said as it is; gRPC has a meaning for each HTTP status."""
    assert ask_raw(world, "/local", host="errors.test")[0] == 403
    assert ask_raw(world, "/redirected", host="errors.test")[0] == 308


# --------------------------------------------------------------------------------------------------- large, slow, long


def test_slow_reader(world: World) -> None:
    """A client that does not read holds up its own stream, not its neighbours, and not lb's memory."""
    lb = world.serving.lb
    with world.calls("plain.test") as calls, world.calls("plain.test") as others:
        slow = calls.repeat(b"100 %d" % MEGABYTE, timeout=DEADLINE * 2)
        assert len(next(slow)) == MEGABYTE
        for _ in range(50):
            assert others.echo(b"quick", timeout=DEADLINE) == b"quick"
        assert lb.metric("lb_buffer_bytes") < 4 * MEGABYTE
        assert sum(len(message) for message in slow) == 99 * MEGABYTE


def test_long_conversation_over_many_swaps(world: World) -> None:
    """A stream goes on, on its connections, whatever the configuration becomes meanwhile."""
    serving = world.serving
    with world.calls("plain.test", "tls") as calls:
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = calls.chat(iter(outgoing.get, None), timeout=DEADLINE * 2)
        for swap in range(8):
            serving.native.host(f"swap-{swap}.test", respond("swap", 200))
            if swap == 4:
                serving.native.host("plain.test", forward("plain", "nobody"))
            if swap == 6:
                serving.native.host("plain.test", forward("plain", "plain"))
            serving.apply()
            for number in range(20):
                outgoing.put(b"%d" % number)
                assert next(answers) == b"one %d" % number
        outgoing.put(None)
        assert list(answers) == []


class Load:
    """Unary and streaming calls from several clients at once, until it is stopped."""

    def __init__(self, world: World, host: str) -> None:
        self.failures: list[str] = []
        self.done = 0
        self._stop = threading.Event()
        self._calls = [world.calls(host, security) for security in ("plain", "tls") * 3]
        self._workers = [threading.Thread(target=self._work, args=(calls,)) for calls in self._calls]

    def _work(self, calls: Calls) -> None:
        while not self._stop.is_set():
            try:
                assert calls.echo(b"x" * 100, timeout=DEADLINE) == b"x" * 100
                assert len(list(calls.chat(iter([b"a", b"b"]), timeout=DEADLINE))) == 2
                self.done += 2
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")

    def wait_for_progress(self) -> None:
        goal = self.done + 50
        wait_until(lambda: self.done >= goal or self.failures, "calls are made")

    def __enter__(self) -> Load:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join(DEADLINE * 2)
        for calls in self._calls:
            calls.channel.close()


def test_servers_are_replaced_under_load_and_no_call_fails(world: World) -> None:
    serving = world.serving
    servers = [GrpcServer(f"server {number}") for number in range(4)]
    serving.native.serve("rolling.test", servers[0].key, protocol="http2")
    serving.apply()
    with Load(world, "rolling.test") as load:
        for old, new in itertools.pairwise(servers):
            load.wait_for_progress()
            serving.native.serve("rolling.test", old.key, new.key, protocol="http2")
            serving.apply()
            serving.native.serve("rolling.test", new.key, protocol="http2")
            serving.apply()
        load.wait_for_progress()
    for server in servers:
        server.close()
    assert not load.failures


def test_server_that_ends_its_connections_every_now_and_then(world: World) -> None:
    """grpc's MAX_CONNECTION_AGE: two GOAWAYs each time, the second one with the last stream."""
    serving = world.serving
    age = [("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 20_000)]
    with GrpcServer(options=age) as server:
        serving.native.serve("aging.test", server.key, protocol="http2")
        serving.apply()
        with Load(world, "aging.test") as load:
            wait_until(
                lambda: serving.lb.metric("lb_upstream_connects_total", upstream="aging.test") > 20 or load.failures,
                "connections have come and gone",
            )
        assert not load.failures
        assert load.done > 100
