"""Clients that attack: each ends in GOAWAY, with a named reason in the counters, and costs nobody else anything.

And clients that only look like it, which must be left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import HeadersFrame

from tests.harness.http2_client import (
    ENHANCE_YOUR_CALM,
    REFUSED_STREAM,
    Field,
    Http2Client,
    Part,
    data,
    frame_bytes,
    ping,
    priority,
    request_fields,
    reset,
    settings,
    window_update,
)
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, digest, payload
from tests.harness.waiting import SANITIZED, wait_until
from tests.wire.http2.endpoints import NEW, OLD, Endpoints, endpoints

MEMORY_ALLOWANCE = 24 * MEGABYTE
LARGEST_WINDOW = (1 << 31) - 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """One thread, so that an attack meets those whom it must not hurt."""
    with endpoints(tmp_path_factory.mktemp("floods"), Native(), threads=1) as started:
        yield started


class Bystander:
    """Another connection that goes on asking meanwhile."""

    def __init__(self, site: Endpoints) -> None:
        self.client = Http2Client(site.serving.connect())
        self.client.handshake()
        self.answered = 0
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                assert self.client.ask("/length/3000", host=OLD).body == payload(3_000)
                self.answered += 1
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        before = self.answered
        wait_until(lambda: self.failure or self.answered > before + 3, "the others are served")
        self._stopping.set()
        self._thread.join()
        self.client.close()
        assert self.failure is None, self.failure


@pytest.fixture
def bystander(site: Endpoints) -> Iterator[Bystander]:
    before = site.serving.lb.rss_bytes()
    other = Bystander(site)
    yield other
    other.stop()
    site.assert_sound()
    if not SANITIZED:
        assert site.serving.lb.rss_bytes() - before < MEMORY_ALLOWANCE


def reasons(site: Endpoints, name: str) -> float:
    return site.serving.lb.metric("lb_exchange_end_total", reason=name)


def connect(site: Endpoints, *announce: tuple[int, int]) -> Http2Client:
    client = Http2Client(site.serving.connect(), announce=announce)
    client.handshake()
    return client


Wave = Callable[[Http2Client, int], list[Part]]
"""The frames of an attack's next step, by its number."""


def head(client: Http2Client, stream: int, *more: Field, end: bool = True, target: str = "/hang/1") -> HeadersFrame:
    return client.headers(stream, *request_fields(target, host=OLD, method="POST"), *more, end=end)


def rapid_reset(client: Http2Client, step: int) -> list[Part]:
    return [head(client, 2 * step + 1), reset(2 * step + 1)]


def rapid_reset_of_uploads(client: Http2Client, step: int) -> list[Part]:
    return [head(client, 2 * step + 1, end=False), data(2 * step + 1, b"abc"), reset(2 * step + 1)]


def made_you_reset(*wrong: Callable[[int], Part]) -> Wave:
    """CVE-2025-8671: frames that make the server reset the stream by itself."""

    def wave(client: Http2Client, step: int) -> list[Part]:
        stream = 2 * step + 1
        return [head(client, stream, end=False), *(frame(stream) for frame in wrong)]

    return wave


def wrong_length(client: Http2Client, step: int) -> list[Part]:
    return [head(client, 2 * step + 1, ("content-length", "1"), end=False), data(2 * step + 1, b"abc")]


def malformed(client: Http2Client, step: int) -> list[Part]:
    return [client.headers(2 * step + 1, *request_fields("relative"))]


def malformed_trailers(client: Http2Client, step: int) -> list[Part]:
    stream = 2 * step + 1
    return [head(client, stream, end=False), client.headers(stream, ("connection", "x"))]


def depends_on_itself(client: Http2Client, stream: int) -> Part:
    frame = head(client, stream)
    frame.flags.add("PRIORITY")
    frame.depends_on = stream
    return frame


def on_one_stream(frame: Callable[[], Part]) -> Wave:
    return lambda client, step: [head(client, 1, end=False), frame()] if step == 0 else [frame()]


def anywhere(frame: Part) -> Wave:
    return lambda client, step: [frame]


def refused_by_nobodys_settings(client: Http2Client, step: int) -> list[Part]:
    """Its settings are never acknowledged, so that it may always say that it did not know."""
    return [head(client, 2 * step + 1)]


FLOODS: list[tuple[str, Wave, str]] = [
    ("rapid reset", rapid_reset, "h2-rapid-reset"),
    ("rapid reset of uploads", rapid_reset_of_uploads, "h2-rapid-reset"),
    ("MadeYouReset: WINDOW_UPDATE of 0", made_you_reset(lambda s: window_update(s, 0)), "h2-protocol-error"),
    (
        "MadeYouReset: PRIORITY of a wrong length",
        made_you_reset(lambda s: frame_bytes(2, 0, s, bytes(4))),
        "h2-protocol-error",
    ),
    (
        "MadeYouReset: DATA behind END_STREAM",
        made_you_reset(lambda s: data(s, b"x", "END_STREAM"), lambda s: data(s, b"x")),
        "h2-protocol-error",
    ),
    (
        "MadeYouReset: HEADERS that depend on themselves",
        lambda client, step: [depends_on_itself(client, 2 * step + 1)],
        "h2-protocol-error",
    ),
    (
        "MadeYouReset: a window that overflows",
        made_you_reset(lambda s: window_update(s, LARGEST_WINDOW), lambda s: window_update(s, LARGEST_WINDOW)),
        "h2-made-you-reset",
    ),
    ("MadeYouReset: more DATA than content-length", wrong_length, "h2-made-you-reset"),
    ("MadeYouReset: a malformed head", malformed, "h2-made-you-reset"),
    ("MadeYouReset: malformed trailers", malformed_trailers, "h2-made-you-reset"),
    ("SETTINGS", anywhere(settings()), "h2-control-flood"),
    ("SETTINGS that change the window", anywhere(settings((4, 70_000))), "h2-control-flood"),
    ("PING", anywhere(ping()), "h2-control-flood"),
    ("PING acknowledgements", anywhere(ping(ack=True)), "h2-control-flood"),
    ("PRIORITY", anywhere(priority(1)), "h2-control-flood"),
    ("PRIORITY_UPDATE", anywhere(frame_bytes(16, 0, 0, b"\0\0\0\1u=1")), "h2-control-flood"),
    ("WINDOW_UPDATE of the connection", anywhere(window_update(0, 1)), "h2-control-flood"),
    ("WINDOW_UPDATE of a stream", on_one_stream(lambda: window_update(1, 1)), "h2-control-flood"),
    ("unknown frames", anywhere(frame_bytes(0xEE, 0, 0, b"x")), "h2-control-flood"),
    ("unknown frames on a stream", on_one_stream(lambda: frame_bytes(0xEE, 0, 1)), "h2-control-flood"),
    ("GOAWAY", on_one_stream(lambda: frame_bytes(7, 0, 0, bytes(8))), "h2-control-flood"),
    ("empty DATA", on_one_stream(lambda: data(1)), "h2-control-flood"),
    ("DATA of nothing but padding", on_one_stream(lambda: data(1, pad=9)), "h2-control-flood"),
    ("streams over the limit", refused_by_nobodys_settings, "h2-stream-flood"),
]


@pytest.mark.parametrize(("wave", "reason"), [flood[1:] for flood in FLOODS], ids=[flood[0] for flood in FLOODS])
def test_a_flood_ends_its_connection_only(wave: Wave, reason: str, site: Endpoints, bystander: Bystander) -> None:
    before = reasons(site, reason)
    with Http2Client(site.serving.connect(), acknowledge=wave is not refused_by_nobodys_settings) as client:
        if wave is not refused_by_nobodys_settings:
            client.handshake()
        step = 0
        reader = threading.Thread(target=client.end, daemon=True)
        reader.start()
        while not client.goaways and not client.raw.send_failed and step < 20_000:
            # Encoding a head is not for two threads; only this one does it.
            client.send(*(part for number in range(step, step + 20) for part in wave(client, number)))
            step += 20
        reader.join()
        assert client.goaways, f"{step} steps were taken"
        wanted = client.goaways[-1].error_code == ENHANCE_YOUR_CALM
        assert wanted == (reason != "h2-protocol-error"), client.goaways
    assert reasons(site, reason) == before + 1
    wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") <= 1, "its requests are ended")


class TestHeaderBlocks:
    def flood(self, site: Endpoints, reason: str, *parts: Part, client: Http2Client) -> None:
        before = reasons(site, reason)
        client.send(*parts)
        assert client.end() == ENHANCE_YOUR_CALM
        assert reasons(site, reason) == before + 1

    def test_many_continuations(self, site: Endpoints, bystander: Bystander) -> None:
        with connect(site) as client:
            parts = client.long_headers(1, *request_fields(host=OLD), ("x-long", "~" * 400), size=20)
            assert len(parts) > 10
            self.flood(site, "h2-continuation-flood", *parts, client=client)

    def test_empty_continuations(self, site: Endpoints, bystander: Bystander) -> None:
        with connect(site) as client:
            first = head(client, 1)
            first.flags.discard("END_HEADERS")
            self.flood(site, "h2-continuation-flood", first, *[frame_bytes(9, 0, 1)] * 10, client=client)

    def test_large_continuations(self, site: Endpoints, bystander: Bystander) -> None:
        with connect(site) as client:
            fields = [(f"x-{number}", "~" * 15_000) for number in range(5)]
            parts = client.long_headers(1, *request_fields(host=OLD), *fields, size=16_384)
            assert len(parts) < 9
            self.flood(site, "h2-continuation-flood", *parts, client=client)

    @pytest.mark.parametrize("name", ["x-bomb", "cookie"])
    def test_a_bomb_of_indexed_fields(self, name: str, site: Endpoints, bystander: Bystander) -> None:
        """One byte stands for a field of 4,000 (RFC 7541 7.3)."""
        with connect(site) as client:
            block = client.block(*request_fields(host=OLD), (name, "~" * 3_900))
            again = client.block((name, "~" * 3_900))
            assert len(again) == 1
            bomb = HeadersFrame(1, block + again * 10_000, flags=["END_STREAM", "END_HEADERS"])
            self.flood(site, "h2-header-bomb", bomb, client=client)

    def test_a_bomb_of_tiny_crumbs(self, site: Endpoints, bystander: Bystander) -> None:
        with connect(site) as client:
            block = client.block(*request_fields(host=OLD), ("cookie", "a"))
            bomb = HeadersFrame(1, block + client.block(("cookie", "a")) * 12_000, flags=["END_STREAM", "END_HEADERS"])
            self.flood(site, "h2-header-bomb", bomb, client=client)

    def test_somewhat_too_many_fields_cost_the_request_only(self, site: Endpoints, bystander: Bystander) -> None:
        with connect(site) as client:
            for fields in ([("x", str(n)) for n in range(300)], [("x-long", "~" * 3_900)] * 12):
                stream = client.request("/length/3", *fields, host=OLD)
                assert client.response(stream).status == 431
            assert client.ask("/length/3", host=OLD).status == 200

    def test_the_bomb_costs_no_memory_while_it_is_refused(self, site: Endpoints, bystander: Bystander) -> None:
        """Lists that are refused with 431, over and over."""
        with connect(site) as client:
            for _ in range(200):
                stream = client.request("/length/3", *[("x-bomb", "~" * 3_900)] * 40, host=OLD)
                assert client.response(stream).status == 431
        wait_until(lambda: site.serving.lb.metric("lb_buffer_bytes") < 400_000, "nothing is kept")


def test_windows_of_single_bytes(site: Endpoints, bystander: Bystander) -> None:
    """Data dribble (CVE-2019-9511): a frame for each byte of a large response."""
    before = reasons(site, "h2-control-flood")
    with Http2Client(site.serving.connect(), announce=((4, 0),), credit=False) as client:
        stream = client.request(f"/length/{MEGABYTE}", host=OLD)
        while client.receive() is not None:
            client.send(*[window_update(stream, 1)] * 10)
        assert client.goaways[-1].error_code == ENHANCE_YOUR_CALM
        assert len(client.streams[stream].body) < 10_000
    assert reasons(site, "h2-control-flood") == before + 1


def test_streams_that_are_held_open_count_until_they_are_over(site: Endpoints, bystander: Bystander) -> None:
    """No more of them than are announced, whatever the client does to those it has."""
    with connect(site) as client:
        limit = client.settings[3]
        streams = [client.request("/hang/1", host=NEW) for _ in range(limit)]
        client.settle()
        wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") >= limit, "all are under way")
        client.send(*(reset(stream) for stream in streams[: limit // 2]))
        client.settle()
        for _ in range(limit // 2):
            client.request("/hang/1", host=NEW)
        client.settle()
        assert not client.goaways
        assert not any(stream.reset == REFUSED_STREAM for stream in client.streams.values())
    wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") <= 1, "they are ended")


class TestFalseAlarms:
    """What browsers, gRPC and downloads do is no attack."""

    def test_a_page_of_300_parts(self, site: Endpoints) -> None:
        with connect(site) as client:
            waiting: list[int] = []
            for number in range(300):
                if len(waiting) == 100:
                    assert client.response(waiting.pop(0)).status == 200
                waiting.append(client.request(f"/length/{number * 50}", ("priority", f"u={number % 8}"), host=OLD))
            for stream in waiting:
                assert client.response(stream).status == 200
            assert not client.goaways

    def test_a_browser_leaves_a_page(self, site: Endpoints) -> None:
        with connect(site) as client:
            streams = [client.request("/hang/1", host=OLD) for _ in range(120)]
            client.settle()
            client.send(*(reset(stream) for stream in streams))
            assert client.ask("/length/5", host=OLD).status == 200

    @pytest.mark.parametrize("piece", [600, 2_000])
    def test_a_download_with_many_small_window_updates(self, piece: int, site: Endpoints) -> None:
        size = 12 * MEGABYTE
        with connect(site, (4, 1 << 20)) as client:
            client.credit = False
            client.send(window_update(0, 1 << 20))
            stream = client.request(f"/length/{size}", host=OLD)
            returned = 0
            while not client.streams[stream].over:
                assert client.receive() is not None, client.goaways
                while len(client.streams[stream].body) - returned >= piece:
                    client.send(window_update(0, piece), window_update(stream, piece))
                    returned += piece
            assert len(client.streams[stream].body) == size

    @pytest.mark.parametrize("host", [OLD, NEW])
    def test_small_messages_in_both_directions(self, host: str, site: Endpoints) -> None:
        """As gRPC streams them: a frame and two window updates for each, and a PING now and then."""
        with connect(site) as client:
            stream = client.request("/mirror", host=host, method="POST", end=False)
            for number in range(6_000):
                client.send(data(stream, b"%05d" % number))
                if number % 500 == 0:
                    client.settle()
                while len(client.streams[stream].body) < 5 * number - 500:
                    assert client.receive() is not None, client.goaways
            client.send(data(stream, b"", "END_STREAM"))
            assert client.response(stream).body == b"".join(b"%05d" % number for number in range(6_000))

    def test_pings_that_keep_a_connection_measured(self, site: Endpoints) -> None:
        with connect(site) as client:
            for number in range(80):
                client.settle(b"%08d" % number)
            assert client.ask("/length/5", host=OLD).status == 200

    def test_an_upload_in_small_frames(self, site: Endpoints) -> None:
        with connect(site) as client:
            stream = client.request("/echo", host=OLD, method="POST", end=False)
            whole = payload(30_000)
            client.upload(stream, (whole[start : start + 3] for start in range(0, len(whole), 3)))
            assert client.response(stream).body == digest(30_000)
