"""Priorities of responses (RFC 9218): `priority` fields and PRIORITY_UPDATE frames, seen through a narrow window.

Streams have all the window they want, the connection has none until every response waits in lb. What then comes first
is lb's choice alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hyperframe.frame import DataFrame

from tests.harness.http2_client import PROTOCOL_ERROR, Field, Http2Client, frame_bytes, window_update
from tests.harness.native import Native
from tests.harness.waiting import wait_until
from tests.wire.http2.endpoints import HOSTS, OLD, Endpoints, endpoints

SIZE = 40_000
PRIORITY_UPDATE = 16


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    with endpoints(tmp_path_factory.mktemp("priority"), Native(), threads=1) as started:
        yield started


@pytest.fixture
def client(site: Endpoints) -> Iterator[Http2Client]:
    with Http2Client(site.serving.connect(), announce=((4, 1 << 20),), credit=False) as connected:
        connected.handshake()
        # Use the connection's window up, so that all that follows has to wait.
        stream = connected.request("/length/65535", host=OLD)
        connected.response(stream)
        assert connected.window == 0
        yield connected


def update(stream: int, value: bytes) -> bytes:
    return frame_bytes(PRIORITY_UPDATE, 0, 0, stream.to_bytes(4, "big") + value)


def ask(client: Http2Client, site: Endpoints, host: str, *priorities: str | None) -> list[int]:
    """A request of each priority; returns when all responses wait in lb."""
    before = site.serving.lb.metric("lb_buffer_bytes")
    streams = []
    for priority in priorities:
        field: list[Field] = [("priority", priority)] if priority is not None else []
        streams.append(client.request(f"/length/{SIZE}", *field, host=host))
    waiting = before + SIZE * len(streams)
    wait_until(lambda: site.serving.lb.metric("lb_buffer_bytes") >= waiting, "the responses wait")
    return streams


def order_of_data(client: Http2Client, streams: list[int], piece: int = 4_000) -> list[int]:
    """Whose bytes came, piece by piece."""
    order: list[int] = []
    while not all(client.streams[stream].over for stream in streams):
        client.send(window_update(0, piece))
        wanted = piece
        while wanted > 0 and not all(client.streams[stream].over for stream in streams):
            frame = client.until(lambda frame: isinstance(frame, DataFrame), "DATA")
            assert isinstance(frame, DataFrame)
            wanted -= len(frame.data)
            order += [frame.stream_id] if frame.data else []
    return order


def runs(order: list[int]) -> list[int]:
    """The order without repetitions."""
    return [stream for at, stream in enumerate(order) if at == 0 or order[at - 1] != stream]


@pytest.mark.parametrize("host", HOSTS)
class TestUrgency:
    def test_urgent_responses_come_first(self, host: str, client: Http2Client, site: Endpoints) -> None:
        low, usual, high, highest = ask(client, site, host, "u=7", None, "u=1", "u=0")
        assert runs(order_of_data(client, [low, usual, high, highest])) == [highest, high, usual, low]

    def test_responses_as_urgent_as_each_other_come_one_after_the_other(
        self, host: str, client: Http2Client, site: Endpoints
    ) -> None:
        """RFC 9218 10: what is of no use before it is whole is not cut into slices."""
        streams = ask(client, site, host, None, None, None)
        assert runs(order_of_data(client, streams)) == streams

    def test_incremental_responses_share(self, host: str, client: Http2Client, site: Endpoints) -> None:
        streams = ask(client, site, host, "i", "i", "i")
        order = order_of_data(client, streams)
        assert len(runs(order)) > 12
        assert set(order[:6]) == set(streams)

    def test_incremental_ones_wait_for_more_urgent_ones(self, host: str, client: Http2Client, site: Endpoints) -> None:
        first, second, urgent = ask(client, site, host, "u=5, i", "u=5, i", "u=2")
        order = order_of_data(client, [first, second, urgent])
        assert runs(order)[0] == urgent
        assert urgent not in order[len(order) // 2 :]

    @pytest.mark.parametrize("value", ["u=9", "u=-1", "u=a", ",,", "u", "u=1.5", "x" * 100])
    def test_what_is_no_priority_is_the_usual_one(
        self, value: str, host: str, client: Http2Client, site: Endpoints
    ) -> None:
        wrong, urgent, usual = ask(client, site, host, value, "u=2", None)
        assert runs(order_of_data(client, [wrong, urgent, usual])) == [urgent, wrong, usual]


class TestPriorityUpdate:
    def test_of_a_response_that_waits(self, client: Http2Client, site: Endpoints) -> None:
        first, second, third = ask(client, site, OLD, None, None, None)
        client.send(update(third, b"u=0"), update(first, b"u=6"))
        assert runs(order_of_data(client, [first, second, third])) == [third, second, first]

    def test_of_a_request_that_comes_later(self, client: Http2Client, site: Endpoints) -> None:
        next_stream = max(client.streams) + 2
        client.send(update(next_stream + 2, b"u=1"))
        streams = ask(client, site, OLD, None, None)
        assert runs(order_of_data(client, streams)) == streams[::-1]

    def test_it_wins_over_the_field(self, client: Http2Client, site: Endpoints) -> None:
        streams = ask(client, site, OLD, "u=0", "u=1")
        client.send(update(streams[0], b"u=5"))
        assert runs(order_of_data(client, streams)) == streams[::-1]

    def test_on_a_stream_it_is_an_error_of_the_connection(self, client: Http2Client) -> None:
        client.send(frame_bytes(PRIORITY_UPDATE, 0, 1, b"\0\0\0\1u=1"))
        assert client.end() == PROTOCOL_ERROR


def test_the_old_priorities_are_not_used(client: Http2Client) -> None:
    """lb says so (RFC 9218 2.1), so that clients send the new ones."""
    assert client.settings[9] == 1


def test_the_field_goes_on_to_the_endpoint(client: Http2Client, site: Endpoints) -> None:
    site.old.take()
    client.send(window_update(0, 1 << 20))
    client.ask("/length/1", ("priority", "u=2, i"), host=OLD)
    assert site.old.requests()[-1].headers.get("priority") == b"u=2, i"
