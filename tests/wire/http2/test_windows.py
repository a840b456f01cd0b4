"""How much of a request a client of HTTP/2 may send ahead: little until somebody takes it, then more."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import RawClient
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

HOST = "windows.example.com"
FIRST_WINDOW = 65_535
FULL_WINDOW = 262_144
STREAMS = 12
SIZE = 200_000


class Uploads:
    """Sends the same body on many streams, as fast as the windows let it."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.engine.initiate_connection()
        self.sent: dict[int, int] = {}
        self.widest: dict[int, int] = {}
        self.answers: dict[int, bytes] = {}
        self.flush()

    def flush(self) -> None:
        self.client.send(self.engine.data_to_send())

    def read(self) -> None:
        for event in self.engine.receive_data(self.client.socket.recv(65_536)):
            if isinstance(event, h2.events.DataReceived):
                self.answers[event.stream_id] = self.answers.get(event.stream_id, b"") + event.data
        self.flush()

    def begin(self, body: bytes) -> int:
        stream = self.engine.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", "/")]
        self.engine.send_headers(stream, [*head, ("content-length", str(len(body)))])
        self.sent[stream] = 0
        return stream

    def go_on(self, body: bytes) -> None:
        """Send what may be sent now."""
        for stream, sent in self.sent.items():
            while sent < len(body) and (room := min(self.engine.local_flow_control_window(stream), 16_384)) > 0:
                self.widest[stream] = max(self.widest.get(stream, 0), self.engine.local_flow_control_window(stream))
                piece = body[sent : sent + room]
                sent += len(piece)
                self.engine.send_data(stream, piece, end_stream=sent == len(body))
            self.sent[stream] = sent
        self.flush()


@pytest.fixture
def held() -> threading.Event:
    """Set: the backend reads bodies."""
    return threading.Event()


@pytest.fixture
def setup(tmp_path: Path, held: threading.Event) -> Iterator[Serving]:
    def digest(connection: BackendConnection) -> None:
        while (received := connection.read_head()) is not None:
            assert held.wait(30)
            if not connection.read_body(received):
                return
            text = hashlib.sha256(received.request.body).hexdigest().encode()
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + text)

    with RawBackend(digest) as backend:
        native = Native()
        native.serve(HOST, backend, max_connections=1)
        with serving(tmp_path, native, {"digest": backend}, threads=1) as server:
            yield server


def test_what_waits_for_its_turn_is_little_and_what_is_taken_flows(setup: Serving, held: threading.Event) -> None:
    """One request at a time is served; those behind it may send their first window, the rest when it is their turn."""
    body = bytes(range(256)) * (SIZE // 256)
    with setup.connect() as client:
        uploads = Uploads(client)
        streams = [uploads.begin(body) for _ in range(STREAMS)]
        uploads.go_on(body)
        while list(uploads.sent.values()) != [len(body), *[FIRST_WINDOW] * (STREAMS - 1)]:
            uploads.read()
            uploads.go_on(body)
        waiting = (STREAMS - 1) * FIRST_WINDOW
        wait_until(lambda: setup.lb.metric("lb_buffer_bytes") >= waiting, "what was sent ahead waits")
        assert setup.lb.metric("lb_buffer_bytes") < waiting + 500_000
        held.set()
        while len(uploads.answers) < STREAMS or any(len(answer) < 64 for answer in uploads.answers.values()):
            uploads.read()
            uploads.go_on(body)
        expected = hashlib.sha256(body).hexdigest().encode()
        assert [uploads.answers[stream] for stream in streams] == [expected] * STREAMS
        wait_until(lambda: setup.lb.metric("lb_buffer_bytes") == 0, "nothing waits any more")


def test_a_stream_whose_bytes_are_taken_gets_the_large_window(setup: Serving, held: threading.Event) -> None:
    held.set()
    body = b"x" * 2_000_000
    with setup.connect() as client:
        uploads = Uploads(client)
        stream = uploads.begin(body)
        while len(uploads.answers.get(stream, b"")) < 64:
            uploads.go_on(body)
            uploads.read()
        assert uploads.answers[stream] == hashlib.sha256(body).hexdigest().encode()
        assert FIRST_WINDOW < uploads.widest[stream] <= FULL_WINDOW
