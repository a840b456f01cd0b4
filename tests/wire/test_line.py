"""Who waits for a place on a full upstream, and goes before there is one: its endpoint never hears of it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.backend import OK, BackendConnection, RawBackend
from tests.harness.client import get, post
from tests.harness.native import Native
from tests.harness.serving import serving
from tests.harness.waiting import DEADLINE, wait_until

HOST = "full.test"
REQUESTS = {
    "no body": get(HOST),
    "whole body": post(HOST, b"x" * 10_000),
    "body cut short": post(HOST, b"x" * 10_000)[:-1],
    "chunks without an end": get(HOST, "/", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n",
}


@pytest.mark.parametrize("reason", ["client-closed", "client-reset"])
def test_who_goes_while_it_waits_takes_no_place(tmp_path: Path, reason: str) -> None:
    gate = threading.Event()

    def slow(connection: BackendConnection) -> None:
        while connection.read() is not None:
            assert gate.wait(DEADLINE)
            connection.send(OK)

    backend = RawBackend(slow)
    native = Native()
    native.serve(HOST, backend, max_connections=1, queue_timeout="60s")
    with serving(tmp_path, native, {HOST: backend}) as site, site.connect() as first, ExitStack() as stack:

        def waiting() -> float:
            return site.lb.metric("lb_upstream_requests_queued", upstream=HOST)

        first.send(get(HOST, "/first"))
        wait_until(lambda: backend.received, "the place is taken")
        clients = [stack.enter_context(site.connect()) for _ in REQUESTS]
        for client, request in zip(clients, REQUESTS.values(), strict=True):
            client.send(request)
        wait_until(lambda: waiting() == len(REQUESTS), "all of them stand in line")
        for left, client in reversed([*enumerate(clients)]):
            if reason == "client-closed":
                client.finish()
            else:
                client.reset()
            wait_until(lambda left=left: waiting() == left, "it is seen that this client has gone")
        assert {item["reason"] for item in site.lb.wait_log(len(REQUESTS), host=HOST, status=499)} == {reason}
        gate.set()
        assert first.response().status == 200
        assert first.ask(get(HOST, "/next")).status == 200
        assert [request.target for request in backend.requests()] == [b"/first", b"/next"]
        backend.assert_clean()


def test_who_has_gone_before_a_retry_puts_it_in_line(tmp_path: Path) -> None:
    """Its end was told while an endpoint had its request, and is not told again."""
    fail, gate = threading.Event(), threading.Event()

    def failing(connection: BackendConnection) -> None:
        if connection.read() is not None:
            assert fail.wait(DEADLINE)

    def slow(connection: BackendConnection) -> None:
        while connection.read() is not None:
            assert gate.wait(DEADLINE)
            connection.send(OK)

    backends = {"fails": RawBackend(failing), "slow": RawBackend(slow)}
    native = Native()
    native.serve(HOST, *backends.values(), max_connections_per_endpoint=1, queue_timeout="60s")
    with serving(tmp_path, native, backends, threads=1) as site, site.connect() as one, site.connect() as other:
        one.send(get(HOST, "/one"))
        other.send(get(HOST, "/other"))
        wait_until(lambda: all(backend.received for backend in backends.values()), "each has a place")
        is_one = backends["fails"].received[0].request.target == b"/one"
        gone, stays = (one, other) if is_one else (other, one)
        gone.finish()
        fail.set()
        (record,) = site.lb.wait_log(1, host=HOST, status=499)
        assert (record["reason"], record["attempts"]) == ("client-closed", 1)
        assert site.lb.metric("lb_upstream_requests_queued", upstream=HOST) == 0
        gate.set()
        assert stays.response().status == 200
        assert len(backends["slow"].received) == 1
