"""How connections end: drains, limits, timeouts and the client's own GOAWAY, and that no request is lost with them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, SettingsFrame

from tests.harness.http2_client import (
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Http2Client,
    Part,
    data,
    frame_bytes,
    goaway,
    ping,
    request_fields,
    settings,
)
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, digest, payload, pieces
from tests.harness.ports import free_port
from tests.harness.waiting import wait_until
from tests.wire.http2.endpoints import HOSTS, OLD, Endpoints, endpoints

LAST_POSSIBLE = (1 << 31) - 1
MAX_CONCURRENT = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    native = Native()
    native.listen("http", free_port())
    native.listen("impatient", free_port(), head_timeout="300ms", keepalive_timeout="300ms", idle_timeout="300ms")
    native.listen("three", free_port(), max_requests_per_connection=3)
    native.listen("small", free_port(), max_body=1_000)
    with endpoints(tmp_path_factory.mktemp("ends"), native) as started:
        yield started


@pytest.fixture(autouse=True)
def sound(site: Endpoints) -> Iterator[None]:
    yield
    site.assert_sound()


def connect(site: Endpoints, listener: str = "http") -> Http2Client:
    client = Http2Client(site.serving.connect(listener))
    client.handshake()
    return client


def reasons(site: Endpoints, name: str) -> float:
    return site.serving.lb.metric("lb_exchange_end_total", reason=name)


def is_goaway(frame: object) -> bool:
    return isinstance(frame, GoAwayFrame)


class TestDrain:
    def test_a_drain_loses_nothing(self, tmp_path: Path) -> None:
        """RFC 9113 6.8: a notice, then the last stream; what comes between the two is served as well."""
        with endpoints(tmp_path, Native(), threads=1) as site:
            client = Http2Client(site.serving.connect(), acknowledge=False)
            client.send(frame_bytes(SettingsFrame.type, 1, 0))
            client.handshake()
            waiting = client.request("/gate/1", host=OLD)
            upload = client.request("/echo", host=OLD, method="POST", body=b"x" * 1_000, end=False)
            client.settle()
            site.serving.lb.signal(signal.SIGTERM)
            first = client.until(is_goaway, "the notice")
            assert isinstance(first, GoAwayFrame)
            assert (first.error_code, first.last_stream_id) == (NO_ERROR, LAST_POSSIBLE)
            asked = client.until(lambda frame: isinstance(frame, PingFrame), "lb asks whether it was seen")
            assert isinstance(asked, PingFrame)
            late = client.request("/length/50000", host=OLD)
            assert client.response(late).body == payload(50_000)
            client.send(ping(asked.opaque_data, ack=True))
            last = client.until(is_goaway, "the last stream")
            assert isinstance(last, GoAwayFrame)
            assert (last.error_code, last.last_stream_id) == (NO_ERROR, late)
            site.seen.gate.set()
            assert client.response(waiting).body == b"/gate/1"
            client.send(data(upload, b"", "END_STREAM"))
            assert client.response(upload).status == 200
            assert client.end() == NO_ERROR
            client.close()
            site.serving.lb.assert_ends()

    def test_a_client_that_does_not_answer_is_not_waited_for(self, tmp_path: Path) -> None:
        with endpoints(tmp_path, Native(), threads=1) as site:
            with Http2Client(site.serving.connect(), acknowledge=False) as client:
                client.settle()
                site.serving.lb.signal(signal.SIGTERM)
                assert client.end() == NO_ERROR
                assert [frame.last_stream_id for frame in client.goaways] == [LAST_POSSIBLE, 0]
            site.serving.lb.assert_ends()

    def test_idle_clients_are_told_and_let_go(self, tmp_path: Path) -> None:
        with endpoints(tmp_path, Native()) as site:
            clients = [Http2Client(site.serving.connect()) for _ in range(10)]
            for client in clients:
                assert client.ask("/length/10", host=OLD).status == 200
            site.serving.lb.signal(signal.SIGTERM)
            for client in clients:
                assert client.end() == NO_ERROR
                client.close()
            site.serving.lb.assert_ends()

    def test_a_listener_that_is_gone_takes_no_new_streams(self, tmp_path: Path) -> None:
        native = Native()
        native.listen("http", free_port())
        native.listen("other", free_port())
        with endpoints(tmp_path, native) as site:
            with Http2Client(site.serving.connect("other")) as client:
                waiting = client.request("/gate/1", host=OLD)
                client.settle()
                del native.listeners["other"]
                site.serving.apply()
                site.seen.gate.set()
                assert client.response(waiting).body == b"/gate/1"
                refused = client.request("/length/10", host=OLD)
                while client.streams[refused].reset is None and client.receive() is not None:
                    pass
                assert client.streams[refused].reset in (None, REFUSED_STREAM)
                assert client.streams[refused].status == 0
                assert client.end() == NO_ERROR
            site.assert_sound()


class TestLimits:
    def test_requests_per_connection(self, site: Endpoints) -> None:
        with connect(site, "three") as client:
            streams = [client.request("/length/100", host=OLD) for _ in range(3)]
            for stream in streams:
                assert client.response(stream).body == payload(100)
            assert client.end() == NO_ERROR
            assert client.goaways[-1].last_stream_id >= streams[-1]

    def test_as_many_streams_as_announced_are_served(self, site: Endpoints) -> None:
        site.seen.gate.clear()
        with connect(site) as client:
            streams = [client.request(f"/gate/{n}", host=OLD) for n in range(client.settings[MAX_CONCURRENT])]
            client.settle()
            site.seen.gate.set()
            for number, stream in enumerate(streams):
                assert client.response(stream).body == f"/gate/{number}".encode()

    def test_streams_that_came_before_the_announcement_are_refused_unharmed(self, site: Endpoints) -> None:
        """A client cannot know the limit yet: REFUSED_STREAM says that the request can be sent again (RFC 9113 8.7)."""
        with Http2Client(site.serving.connect(), preface=b"") as client:
            parts: list[Part] = []
            for stream in range(1, 601, 2):
                fields = request_fields("/length/10", host=OLD, method="POST")
                parts += [client.headers(stream, *fields, end=False), data(stream, b"abc", "END_STREAM")]
            client.send(PREFACE, settings(), *parts)
            refused = 0
            for stream in range(1, 601, 2):
                while not client.streams[stream].over:
                    assert client.receive() is not None, f"ended with {client.goaways}"
                if client.streams[stream].reset is not None:
                    assert client.streams[stream].reset == REFUSED_STREAM
                    refused += 1
            assert refused <= 300 - client.settings[MAX_CONCURRENT]
            client.settle()

    def test_a_body_over_the_limit(self, site: Endpoints) -> None:
        with connect(site, "small") as client:
            stream = client.request("/echo", host=OLD, method="POST", body=b"x" * 1_001, end=False)
            assert client.response(stream).status == 413
            assert client.reset_of(stream) == NO_ERROR
            assert client.ask("/echo", ("content-length", "5000"), host=OLD, method="POST", end=False).status == 413
            assert client.ask("/echo", host=OLD, method="POST", body=b"x" * 1_000).status == 200


class TestTimeouts:
    def test_an_idle_connection(self, site: Endpoints) -> None:
        before = reasons(site, "keepalive-timeout")
        with connect(site, "impatient") as client:
            assert client.ask("/length/10", host=OLD).status == 200
            assert client.end() == NO_ERROR
        assert reasons(site, "keepalive-timeout") == before + 1

    def test_pings_do_not_keep_a_connection_alive(self, site: Endpoints) -> None:
        with connect(site, "impatient") as client:
            client.raw.socket.settimeout(0.05)
            sent = 0
            while not client.closed:
                with contextlib.suppress(TimeoutError):
                    if client.receive() is None:
                        break
                    continue
                client.send(ping())
                sent += 1
            assert client.goaways[-1].error_code == NO_ERROR
            assert sent > 1

    def test_a_connection_with_a_request_under_way_is_not_idle(self, site: Endpoints) -> None:
        before = reasons(site, "keepalive-timeout")
        site.seen.gate.clear()
        with connect(site, "impatient") as client, connect(site, "impatient") as other:
            stream = client.request("/gate/1", host=OLD)
            other.end()
            site.seen.gate.set()
            assert client.response(stream).status == 200
        assert reasons(site, "keepalive-timeout") == before + 1

    def test_half_a_preface(self, site: Endpoints) -> None:
        before = reasons(site, "head-timeout")
        with site.serving.connect("impatient") as raw:
            raw.send(PREFACE[:20])
            raw.rest()
        assert reasons(site, "head-timeout") == before + 1

    @pytest.mark.parametrize("cut", [3, 9, 12])
    def test_half_a_head(self, cut: int, site: Endpoints) -> None:
        with connect(site, "impatient") as client:
            before = reasons(site, "head-timeout") + reasons(site, "keepalive-timeout")
            client.raw.send(client.headers(1, *request_fields(host=OLD)).serialize()[:cut])
            assert client.end() in (NO_ERROR, PROTOCOL_ERROR)
            assert reasons(site, "head-timeout") + reasons(site, "keepalive-timeout") == before + 1

    def test_a_head_that_is_continued_for_ever(self, site: Endpoints) -> None:
        before = reasons(site, "head-timeout")
        with connect(site, "impatient") as client:
            client.send(client.headers(1, *request_fields(host=OLD), end_headers=False))
            assert client.end() == PROTOCOL_ERROR
        assert reasons(site, "head-timeout") == before + 1

    @pytest.mark.parametrize("host", HOSTS)
    def test_a_body_that_stands_still_costs_its_stream_only(self, host: str, site: Endpoints) -> None:
        with connect(site, "impatient") as client:
            stream = client.request("/echo", host=host, method="POST", body=b"abc", end=False)
            assert client.response(stream).status == 408
            assert client.ask("/length/10", host=host).status == 200
            record = site.serving.lb.wait_log(1, client_port=client.raw.socket.getsockname()[1])[0]
        assert (record["reason"], record["status"]) == ("client-idle-timeout", 408)

    def test_a_client_that_opens_no_window_loses_the_stream(self, site: Endpoints) -> None:
        """The endpoint is done with it, so that nobody but lb looks after the client."""
        before = reasons(site, "h2-window-stall")
        with Http2Client(site.serving.connect("impatient"), announce=((4, 0),)) as client:
            stream = client.request("/length/100", host=OLD)
            assert client.reset_of(stream) != NO_ERROR
            assert client.streams[stream].body == b""
        assert reasons(site, "h2-window-stall") == before + 1

    def test_a_client_that_opens_no_window_for_a_long_response(self, site: Endpoints) -> None:
        with Http2Client(site.serving.connect("impatient"), announce=((4, 0),)) as client:
            stream = client.request(f"/length/{5 * MEGABYTE}", host=OLD)
            assert client.reset_of(stream) != NO_ERROR
            record = site.serving.lb.wait_log(1, client_port=client.raw.socket.getsockname()[1])[0]
        assert record["reason"] == "client-idle-timeout"

    def test_a_client_that_reads_nothing_is_cut_off(self, site: Endpoints) -> None:
        raw = site.serving.connect("impatient", receive_buffer=4_096)
        with Http2Client(raw, announce=((4, LAST_POSSIBLE),)) as client:
            client.send(frame_bytes(8, 0, 0, (1 << 30).to_bytes(4, "big")))
            for _ in range(10):
                client.request(f"/length/{5 * MEGABYTE}", host=OLD)
            port = raw.socket.getsockname()[1]
            records = site.serving.lb.wait_log(10, client_port=port)
            assert {record["reason"] for record in records} <= {"client-idle-timeout", "client-reset", "client-closed"}
            wait_until(lambda: site.serving.lb.metric("lb_connections_active") == 0, "its connection is closed")


class TestClientsGoaway:
    @pytest.mark.parametrize("host", HOSTS)
    def test_what_was_begun_is_finished(self, host: str, site: Endpoints) -> None:
        site.seen.gate.clear()
        with connect(site) as client:
            waiting = client.request("/gate/1", host=host)
            upload = client.request("/echo", host=host, method="POST", end=False)
            client.send(goaway())
            client.upload(upload, pieces(MEGABYTE))
            site.seen.gate.set()
            assert client.response(upload).body == digest(MEGABYTE)
            assert client.response(waiting).body == b"/gate/1"
            assert client.end() in (None, NO_ERROR)

    def test_an_idle_client_that_says_goodbye_is_let_go(self, site: Endpoints) -> None:
        with connect(site) as client:
            client.send(goaway())
            assert client.end() in (None, NO_ERROR)

    def test_an_error_of_the_client_is_no_error_of_lb(self, site: Endpoints) -> None:
        with connect(site) as client:
            client.send(goaway(code=ENHANCE_YOUR_CALM, text=b"why?"))
            assert client.end() in (None, NO_ERROR)


class TestFirstFrames:
    def test_settings_come_first_even_when_the_first_frame_is_wrong(self, site: Endpoints) -> None:
        with Http2Client(site.serving.connect(), preface=b"") as client:
            client.send(PREFACE, settings(), frame_bytes(0, 0, 0, b"x"))
            assert client.end() == PROTOCOL_ERROR
            assert isinstance(client.frames[0], SettingsFrame)

    def test_a_preface_without_settings(self, site: Endpoints) -> None:
        """RFC 9113 3.4: the client's preface ends with SETTINGS."""
        with Http2Client(site.serving.connect(), preface=b"") as client:
            client.send(PREFACE, client.headers(1, *request_fields(host=OLD)))
            assert client.end() == PROTOCOL_ERROR

    def test_a_request_right_behind_the_preface(self, site: Endpoints) -> None:
        with Http2Client(site.serving.connect(), preface=b"") as client:
            client.send(PREFACE, settings(), client.headers(1, *request_fields("/length/9", host=OLD)))
            assert client.response(1).body == payload(9)

    def test_a_preface_in_two_pieces(self, site: Endpoints) -> None:
        for cut in range(1, len(PREFACE)):
            with Http2Client(site.serving.connect(), preface=b"") as client:
                client.raw.send((PREFACE[:cut], PREFACE[cut:] + settings()))
                client._unconfirmed.append(None)
                client.handshake()

    def test_the_preface_comes_only_before_the_first_request(self, site: Endpoints) -> None:
        """Behind a request of HTTP/1 it is no preface, but a request for `*`."""
        with site.serving.connect() as raw:
            assert raw.ask(b"GET /length/3 HTTP/1.1\r\nHost: old.test\r\n\r\n").status == 200
            raw.send(PREFACE + settings())
            assert b"HTTP/1.1" in raw.rest()
