"""Requests and responses on streams: bodies, trailers, interim and early responses, cancellations, and many at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hyperframe.frame import RstStreamFrame

from tests.harness.http2_client import INTERNAL_ERROR, NO_ERROR, Http2Client, data, request_fields, reset
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, digest, digest_of, payload, pieces
from tests.harness.waiting import wait_until
from tests.wire.http2.endpoints import HOSTS, OLD, Endpoints, endpoints

LARGE = 20 * MEGABYTE + 7
EDGES = (0, 1, 9, 16_383, 16_384, 16_385, 32_768, 65_535, 65_536, 65_537, 262_145)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    with endpoints(tmp_path_factory.mktemp("streams"), Native()) as started:
        yield started


@pytest.fixture(autouse=True)
def sound(site: Endpoints) -> Iterator[None]:
    yield
    site.assert_sound()


@pytest.fixture
def client(site: Endpoints) -> Iterator[Http2Client]:
    with Http2Client(site.serving.connect(), announce=((4, 1 << 20),)) as connected:
        connected.handshake()
        yield connected


both = pytest.mark.parametrize("host", HOSTS)


@both
class TestBodies:
    @pytest.mark.parametrize("kind", ["length", "open"])
    def test_a_large_download_arrives_whole(self, kind: str, host: str, client: Http2Client) -> None:
        answer = client.ask(f"/{kind}/{LARGE}", host=host)
        assert len(answer.body) == LARGE
        assert digest_of(answer.body) == digest(LARGE)

    @pytest.mark.parametrize("with_length", [True, False])
    def test_a_large_upload_arrives_whole(self, with_length: bool, host: str, client: Http2Client) -> None:
        length = [("content-length", str(LARGE))] if with_length else []
        stream = client.request("/echo", *length, host=host, method="POST", end=False)
        client.upload(stream, pieces(LARGE))
        assert client.response(stream).body == digest(LARGE)

    def test_both_directions_at_once(self, host: str, client: Http2Client) -> None:
        size = 3 * MEGABYTE
        stream = client.request("/mirror", host=host, method="POST", end=False)
        client.upload(stream, pieces(size, 30_000))
        assert digest_of(client.response(stream).body) == digest(size)

    def test_sizes_around_the_edges_of_frames_and_buffers(self, host: str, client: Http2Client) -> None:
        for size in EDGES:
            for kind in ("length", "open"):
                assert client.ask(f"/{kind}/{size}", host=host).body == payload(size)
            stream = client.request("/echo", host=host, method="POST", end=False)
            client.upload(stream, pieces(size))
            assert client.response(stream).body == digest(size)

    def test_padding_is_no_part_of_a_body(self, host: str, client: Http2Client) -> None:
        stream = client.request("/echo", host=host, method="POST", end=False)
        client.send(data(stream, b"hello", pad=200), data(stream, b"", pad=0), data(stream, b"!", "END_STREAM", pad=1))
        assert client.response(stream).body == digest_of(b"hello!")


@both
class TestHeads:
    def test_head(self, host: str, client: Http2Client) -> None:
        answer = client.ask("/length/0", host=host, method="HEAD")
        assert (answer.status, answer.headers.get("content-length")) == (200, b"0")

    @pytest.mark.parametrize("status", [204, 304])
    def test_responses_without_a_body(self, status: int, host: str, client: Http2Client) -> None:
        answer = client.ask(f"/status/{status}", host=host)
        assert (answer.status, answer.body) == (status, b"")
        assert answer.headers.get("content-length") == (b"7" if status == 304 else None)

    def test_fields_longer_than_a_frame(self, host: str, client: Http2Client) -> None:
        """A field section may go over several CONTINUATION frames."""
        fields = [(f"x-long-{number}", "~" * 3_000) for number in range(9)]
        client.send(*client.long_headers(1, *request_fields("/echo", host=host), *fields))
        assert client.response(1).status == 200

    def test_interim_responses(self, host: str, client: Http2Client) -> None:
        answer = client.ask("/interim", host=host)
        assert [(status, headers.get("link")) for status, headers in answer.interim] == [(103, b"</a.css>")] * 2
        assert (answer.status, answer.body) == (200, b"late")

    def test_100_continue(self, host: str, client: Http2Client) -> None:
        stream = client.request("/echo", ("expect", "100-continue"), host=host, method="POST", end=False)
        client.until(lambda _: bool(client.streams[stream].interim), "100 Continue came")
        client.upload(stream, [b"at last"])
        answer = client.response(stream)
        assert [status for status, _ in answer.interim] == [100]
        assert answer.body == digest_of(b"at last")

    def test_trailers_both_ways(self, host: str, client: Http2Client) -> None:
        trailers = [("x-checksum", "abc"), ("x-empty", "")]
        answer = client.ask("/echo", host=host, method="POST", body=b"hello", trailers=trailers)
        assert answer.body == digest_of(b"hello")
        assert answer.trailers == [(b"x-checksum", b"abc"), (b"x-empty", b"")]


@both
class TestEarlyResponses:
    def test_the_rest_of_the_request_is_declined(self, host: str, client: Http2Client) -> None:
        """RFC 9113 8.1: the whole response, then RST_STREAM with NO_ERROR."""
        stream = client.request("/early", host=host, method="POST", body=b"x" * 1_000, end=False)
        answer = client.response(stream)
        assert (answer.status, answer.body) == (413, b"too much")
        assert client.reset_of(stream) == NO_ERROR

    def test_what_was_on_its_way_does_no_harm(self, host: str, client: Http2Client) -> None:
        """More of it than the connection's window: it is given back although nobody wanted the bytes."""
        for _ in range(30):
            stream = client.request("/early", host=host, method="POST", body=b"x" * 1_000, end=False)
            client.reset_of(stream)
            client.send(*(data(stream, bytes(16_000)) for _ in range(4)))
        client.settle()
        assert client.room > MEGABYTE // 4
        assert client.ask("/echo", host=host, method="POST", body=b"hello").body == digest_of(b"hello")


@both
class TestCancellation:
    def test_a_cancelled_request_is_ended_at_the_endpoint(
        self, host: str, site: Endpoints, client: Http2Client
    ) -> None:
        target = f"/hang/{random.random()}"
        stream = client.request(target, host=host)
        wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") == 1, "it is under way")
        client.send(reset(stream))
        wait_until(lambda: target in site.seen.given_up, "the endpoint is told")
        record = site.serving.lb.wait_log(1, target=target)[0]
        assert (record["reason"], record["status"]) == ("client-reset", 499)
        assert client.ask("/echo", host=host).status == 200

    def test_a_cancelled_upload_is_ended_at_the_endpoint(self, host: str, site: Endpoints, client: Http2Client) -> None:
        target = f"/echo/{random.random()}"
        stream = client.request(target, host=host, method="POST", body=b"part", end=False)
        wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") == 1, "it is under way")
        client.send(reset(stream))
        wait_until(lambda: target in site.seen.given_up, "the endpoint is told")

    def test_a_cancelled_download_stops(self, host: str, site: Endpoints, client: Http2Client) -> None:
        client.credit = False
        stream = client.request(f"/length/{LARGE}", host=host)
        client.until(lambda _: bool(client.streams[stream].body), "it has begun")
        client.send(reset(stream))
        wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") == 0, "it has stopped")
        client.credit = True
        assert client.ask("/echo", host=host).status == 200

    def test_a_client_that_goes_ends_all_of_its_requests(self, host: str, site: Endpoints, client: Http2Client) -> None:
        targets = [f"/hang/{random.random()}" for _ in range(5)]
        for target in targets:
            client.request(target, host=host)
        wait_until(lambda: site.serving.lb.metric("lb_upstream_requests_active") == 5, "they are under way")
        client.close()
        wait_until(lambda: set(targets) <= set(site.seen.given_up), "the endpoint is told of each")
        records = [record for target in targets for record in site.serving.lb.wait_log(1, target=target)]
        assert {(record["reason"], record["status"]) for record in records} <= {
            ("client-closed", 499),
            ("client-reset", 499),
        }

    def test_a_response_that_is_cut_off_is_not_taken_for_whole(self, host: str, client: Http2Client) -> None:
        stream = client.request("/cut", host=host)
        assert client.reset_of(stream) == INTERNAL_ERROR
        assert not client.streams[stream].ended
        assert client.ask("/echo", host=host).status == 200


@both
class TestManyAtOnce:
    def test_answers_are_not_mixed_up(self, host: str, client: Http2Client) -> None:
        sizes = {client.request(f"/open/{size}", host=host): size for size in range(0, 120_000, 1_200)}
        for stream, size in sizes.items():
            assert client.response(stream).body == payload(size)

    def test_uploads_and_downloads_are_interleaved(self, host: str, client: Http2Client) -> None:
        chance = random.Random(9113)
        bodies = {
            client.request("/echo", host=host, method="POST", end=False): [
                chance.randbytes(chance.randint(0, 9_000)) for _ in range(10)
            ]
            for _ in range(20)
        }
        downloads = [client.request("/length/50000", host=host) for _ in range(20)]
        turns = [stream for stream, parts in bodies.items() for _ in parts]
        chance.shuffle(turns)
        left = {stream: list(parts) for stream, parts in bodies.items()}
        for stream in turns:
            client.upload(stream, [left[stream].pop(0)], end=not left[stream])
        for stream, parts in bodies.items():
            assert client.response(stream).body == digest_of(b"".join(parts))
        for stream in downloads:
            assert client.response(stream).body == payload(50_000)

    def test_whoever_waits_holds_up_nobody(self, host: str, site: Endpoints, client: Http2Client) -> None:
        site.seen.gate.clear()
        waiting = [client.request(f"/gate/{number}", host=host) for number in range(20)]
        for _ in range(5):
            assert client.ask("/length/70000", host=host).body == payload(70_000)
        assert not any(client.streams[stream].status for stream in waiting)
        site.seen.gate.set()
        for number, stream in enumerate(waiting):
            assert client.response(stream).body == f"/gate/{number}".encode()


def test_fields_of_http_1_connections_stay_behind(site: Endpoints, client: Http2Client) -> None:
    backend = site.old
    script = backend.script
    lines = (b"Connection: close, x-hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Connection: x", b"UPPER: Case")

    def answering(connection: object) -> None:
        connection.read()  # type: ignore[attr-defined]
        head = b"".join(line + b"\r\n" for line in lines)
        connection.send(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % head)  # type: ignore[attr-defined]

    backend.drop_connections()
    backend.script = answering  # type: ignore[assignment]
    try:
        answer = client.ask("/", host=OLD)
    finally:
        backend.script = script
    assert answer.headers.get("upper") == b"Case"
    assert {name for name, _ in answer.headers} == {b"upper", b"date"}


def test_each_stream_is_a_request_in_log_and_metrics(site: Endpoints, client: Http2Client) -> None:
    lb = site.serving.lb
    before = lb.metric("lb_listener_requests_total")
    streams = [client.request("/length/100", host=OLD) for _ in range(7)]
    for stream in streams:
        client.response(stream)
    port = client.raw.socket.getsockname()[1]
    records = lb.wait_log(7, client_port=port)
    assert {record["protocol"] for record in records} == {"HTTP/2.0"}
    assert all(record["bytes_out"] >= 100 for record in records)
    assert lb.metric("lb_listener_requests_total") == before + 7


def test_resets_of_lb_are_frames_not_disconnections(client: Http2Client) -> None:
    stream = client.request("/cut", host=OLD)
    client.until(lambda frame: isinstance(frame, RstStreamFrame) and frame.stream_id == stream, "RST_STREAM")
    client.settle()
