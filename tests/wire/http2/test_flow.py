"""Flow control: windows of all sizes, readers that do not read, and what lb keeps for them meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hyperframe.frame import DataFrame

from tests.harness.http2_client import FLOW_CONTROL_ERROR, Http2Client, settings, window_update
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, digest, digest_of, payload, pieces
from tests.harness.waiting import SANITIZED, wait_until
from tests.wire.http2.endpoints import HOSTS, OLD, Endpoints, endpoints

INITIAL_WINDOW = 4
LARGE = 20 * MEGABYTE
PER_STREAM = 420_000
"""Bytes that lb may keep of a stream that stands still: what its client has not taken yet, the last read, and, from an
HTTP/2 endpoint, a stream's window."""
MEMORY_ALLOWANCE = 24 * MEGABYTE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    with endpoints(tmp_path_factory.mktemp("flow"), Native()) as started:
        yield started


@pytest.fixture(autouse=True)
def sound(site: Endpoints) -> Iterator[None]:
    yield
    site.assert_sound()


def connect(site: Endpoints, window: int, *, connection: int = 1 << 30) -> Http2Client:
    """A client that gives no window back by itself; `window` is that of each stream."""
    client = Http2Client(site.serving.connect(), announce=((INITIAL_WINDOW, window),), credit=False)
    client.handshake()
    if connection:
        client.send(window_update(0, connection))
    return client


def wait_for_standstill(site: Endpoints) -> float:
    """lb's buffers do not change any more; how much is in them."""
    seen: list[float] = []

    def still() -> bool:
        seen.append(site.serving.lb.metric("lb_buffer_bytes"))
        return len(seen) > 4 and len(set(seen[-4:])) == 1

    wait_until(still, "lb stands still", interval=0.03)
    return seen[-1]


both = pytest.mark.parametrize("host", HOSTS)


@both
class TestWindows:
    def test_nothing_comes_while_the_window_is_zero(self, host: str, site: Endpoints) -> None:
        with connect(site, 0) as client:
            stream = client.request("/length/5000", host=host)
            client.until(lambda _: client.streams[stream].status == 200, "the head came")
            client.settle()
            assert client.streams[stream].body == b""
            for size in (1, 2, 1_000, 3_997):
                client.send(window_update(stream, size))
            assert client.response(stream).body == payload(5_000)

    def test_a_response_without_a_body_needs_no_window(self, host: str, site: Endpoints) -> None:
        with connect(site, 0, connection=0) as client:
            assert client.ask("/length/0", host=host).status == 200
            assert client.ask("/status/204", host=host).status == 204

    def test_trailers_need_no_window(self, host: str, site: Endpoints) -> None:
        with connect(site, 64) as client:
            answer = client.ask("/echo", host=host, method="POST", body=b"", trailers=[("x-t", "1")])
            assert (answer.body, answer.trailers.get("x-t")) == (digest(0), b"1")

    def test_windows_of_one_byte(self, host: str, site: Endpoints) -> None:
        with connect(site, 1) as client:
            stream = client.request("/length/300", host=host)
            while len(client.streams[stream].body) < 300:
                client.until(lambda frame: isinstance(frame, DataFrame), "a byte came")
                client.send(window_update(stream, 1))
            assert client.response(stream).body == payload(300)

    def test_windows_below_zero(self, host: str, site: Endpoints) -> None:
        """RFC 9113 6.9.2: what was sent before stays sent; the window is to be paid back first."""
        with connect(site, 50_000) as client:
            stream = client.request("/length/120000", host=host)
            client.until(lambda _: len(client.streams[stream].body) == 50_000, "the window is used up")
            client.send(settings((INITIAL_WINDOW, 10)))
            client.handshake()
            assert client.streams[stream].window == 10 - 50_000
            client.send(window_update(stream, 40_000))
            client.settle()
            client.settle()
            assert len(client.streams[stream].body) == 50_000
            client.send(window_update(stream, 10_000))
            client.until(lambda _: len(client.streams[stream].body) == 50_010, "the window is above zero")
            client.send(settings((INITIAL_WINDOW, 100_000)))
            assert client.response(stream).body == payload(120_000)

    def test_the_connections_window_holds_for_all_streams(self, host: str, site: Endpoints) -> None:
        with connect(site, MEGABYTE, connection=0) as client:
            streams = [client.request("/length/50000", host=host) for _ in range(4)]

            def came() -> int:
                return sum(len(client.streams[stream].body) for stream in streams)

            client.until(lambda _: came() == 65_535, "the connection's window is used up")
            client.send(window_update(0, 34_465))
            client.until(lambda _: came() == 100_000, "so is what was added")
            client.send(window_update(0, MEGABYTE))
            for stream in streams:
                assert client.response(stream).body == payload(50_000)

    def test_a_window_that_overflows_ends_its_stream_only(self, host: str, site: Endpoints) -> None:
        with connect(site, 0) as client:
            stream = client.request("/length/5000", host=host)
            client.send(window_update(stream, (1 << 31) - 1), window_update(stream, 1))
            assert client.reset_of(stream) == FLOW_CONTROL_ERROR
            other = client.request("/length/10", host=host)
            client.send(window_update(other, 10))
            assert client.response(other).body == payload(10)

    def test_a_change_that_overflows_a_window_ends_its_stream(self, host: str, site: Endpoints) -> None:
        """RFC 9113 6.9.2 would have the whole connection end; libnghttp2 leaves it at the stream."""
        with connect(site, 0) as client:
            stream = client.request("/length/5000", host=host)
            client.send(window_update(stream, (1 << 31) - 1), settings((INITIAL_WINDOW, 1)))
            assert client.reset_of(stream) == FLOW_CONTROL_ERROR

    def test_uploads_get_their_windows_back(self, host: str, site: Endpoints) -> None:
        with connect(site, MEGABYTE) as client:
            for _ in range(3):
                stream = client.request("/echo", host=host, method="POST", end=False)
                client.upload(stream, pieces(2 * MEGABYTE))
                assert client.response(stream).body == digest(2 * MEGABYTE)


@both
class TestSlowReaders:
    def test_a_stream_that_is_not_read_stalls_itself_only(self, host: str, site: Endpoints) -> None:
        with connect(site, 0) as client:
            stalled = client.request(f"/length/{LARGE}", host=host)
            for _ in range(20):
                stream = client.request("/length/30000", host=host)
                client.send(window_update(stream, 30_000))
                assert client.response(stream).body == payload(30_000)
            assert wait_for_standstill(site) < PER_STREAM
            client.credit = True
            client.send(window_update(stalled, 100_000))
            assert digest_of(client.response(stalled).body) == digest(LARGE)

    def test_what_lb_keeps_for_a_hundred_of_them_is_bounded(self, host: str, site: Endpoints) -> None:
        before = site.serving.lb.rss_bytes()
        with connect(site, 0) as client:
            for _ in range(100):
                client.request(f"/length/{LARGE}", host=host)
            assert wait_for_standstill(site) < 100 * PER_STREAM
            if not SANITIZED:
                assert site.serving.lb.rss_bytes() - before < 100 * PER_STREAM
            other = client.request("/length/30000", host=host)
            client.send(window_update(other, 30_000))
            assert client.response(other).body == payload(30_000)
        wait_until(lambda: site.serving.lb.metric("lb_buffer_bytes") == 0, "nothing is kept")

    def test_a_client_that_reads_nothing_at_all_costs_no_memory(self, host: str, site: Endpoints) -> None:
        """Windows are wide open, and its socket is full."""
        before = site.serving.lb.rss_bytes()
        raw = site.serving.connect(receive_buffer=4_096)
        with Http2Client(raw, announce=((INITIAL_WINDOW, (1 << 31) - 1),)) as client:
            client.send(window_update(0, 1 << 30))
            for _ in range(50):
                client.request(f"/length/{LARGE}", host=host)
            assert wait_for_standstill(site) < 50 * PER_STREAM
            if not SANITIZED:
                assert site.serving.lb.rss_bytes() - before < MEMORY_ALLOWANCE
            with connect(site, MEGABYTE) as other:
                assert other.ask("/length/30000", host=host).body == payload(30_000)


def test_an_endpoint_that_does_not_read_stalls_its_streams_only(site: Endpoints) -> None:
    site.new.greedy = False
    try:
        with connect(site, MEGABYTE) as client:
            stalled = client.request("/echo", host="new.test", method="POST", end=False)
            size = 0
            # lb may not know at first how much the endpoint takes; once all windows are closed nothing moves.
            while client.streams[stalled].room > 0 and size < 4 * MEGABYTE:
                client.upload(stalled, [bytes(min(16_000, client.streams[stalled].room))], end=False)
                size += 16_000
                client.settle()
            assert size < MEGABYTE
            for _ in range(5):
                stream = client.request("/echo", host=OLD, method="POST", end=False)
                client.upload(stream, pieces(2 * MEGABYTE))
                assert client.response(stream).body == digest(2 * MEGABYTE)
            assert wait_for_standstill(site) < 2 * 262_144
    finally:
        site.new.greedy = True
