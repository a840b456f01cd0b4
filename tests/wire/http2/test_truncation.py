"""A connection that ends in the middle of what it has received: nothing that was cut off may pass for whole."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import hpack
import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import RawClient
from tests.harness.http2_client import Http2Client, data, frame_bytes, request_fields
from tests.harness.http2_endpoint import Ended, FrameConnection, last
from tests.harness.messages import Truncated
from tests.harness.native import Native
from tests.harness.serving import serving

HOST = "cut.test"
GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
BOMB = 9_000
"""References to a field of 3,000 bytes, one byte each."""


def bomb(stream: int, encoder: hpack.Encoder, *fields: tuple[str, str]) -> bytes:
    """A header block that no limit allows."""
    block = encoder.encode([*fields, ("x-b", "v" * 3_000)]) + bytes([0xBE]) * BOMB
    return frame_bytes(1, 4, stream, block)


def test_a_response_that_a_neighbour_has_cut(tmp_path: Path) -> None:
    """Stream 3's head ends the connection; the end of stream 1's body stands behind it in the same segment."""
    first = threading.Event()

    def endpoint(connection: BackendConnection) -> None:
        peer = FrameConnection(connection)
        encoder = hpack.Encoder()
        try:
            one = peer.request().stream
            peer.send(frame_bytes(1, 4, one, encoder.encode([(":status", "200")])), data(one, b"first half "))
            first.set()
            two = peer.request().stream
            peer.send(bomb(two, encoder, (":status", "200")), last(one, b"second half"))
            while True:
                peer.next()
        except Ended:
            pass

    with RawBackend(endpoint) as backend:
        native = Native()
        native.serve(HOST, backend, route={"retries": 0}, protocol="http2")
        with serving(tmp_path, native, {HOST: backend}, threads=1) as site, site.connect() as victim:
            victim.send(GET)
            assert first.wait(20)
            with site.connect() as other:
                assert other.ask(GET).status == 502
            with pytest.raises((Truncated, ConnectionError)):
                victim.response()
            (record,) = site.lb.wait_log(1, status=200)
            assert record["reason"] != "ok"


def test_a_response_whose_own_head_was_refused(tmp_path: Path) -> None:
    """What comes behind it is not its end: the client is answered, and its connection stays in step."""

    def endpoint(connection: BackendConnection) -> None:
        peer = FrameConnection(connection)
        try:
            stream = peer.request().stream
            peer.send(bomb(stream, hpack.Encoder(), (":status", "200")), last(stream, b"body"))
            while True:
                peer.next()
        except Ended:
            pass

    with RawBackend(endpoint) as backend:
        native = Native()
        native.serve(HOST, backend, route={"retries": 0}, protocol="http2")
        with serving(tmp_path, native, {HOST: backend}, threads=1) as site, site.connect() as client:
            assert client.ask(GET).status == 502
            assert client.ask(GET.replace(HOST.encode(), b"nobody.test")).status == 404


def test_an_upload_whose_connection_ends_before_it(tmp_path: Path) -> None:
    """The endpoint must not take the half that it has for the whole."""
    received = bytearray()
    begun, over = threading.Event(), threading.Event()

    def endpoint(connection: BackendConnection) -> None:
        with contextlib.suppress(ConnectionError):
            while connection.reader.fill():
                received.extend(connection.reader.buffer)
                connection.reader.buffer.clear()
                if b"first half " in received:
                    begun.set()
        over.set()

    with RawBackend(endpoint) as backend:
        native = Native()
        native.serve(HOST, backend)
        with serving(tmp_path, native, {HOST: backend}, threads=1) as site:
            raw: RawClient = site.connect()
            with Http2Client(raw) as client:
                stream = client.request("/up", method="POST", host=HOST, end=False)
                client.send(data(stream, b"first half "))
                encoder = client.encoder
                fields = [(str(name), str(value)) for name, value in request_fields("/up", method="POST", host=HOST)]
                assert begun.wait(20)
                client.send(bomb(stream + 2, encoder, *fields) + last(stream, b"second half").serialize())
                assert over.wait(20)
    assert not received.endswith(b"0\r\n\r\n")
