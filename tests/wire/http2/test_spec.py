"""h2spec's 147 cases, plain and over TLS, in one piece and byte by byte."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from tests.harness.backend import RawBackend, answering
from tests.harness.certificates import Authority
from tests.harness.client import bytewise, whole
from tests.harness.http2_client import PREFACE, Http2Client
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.wire.http2.spec_cases import BODY, CASES, Case

AUTHORITY = Authority()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    backend = RawBackend(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)))
    native = Native()
    native.listen("http", free_port())
    native.certificate("pair", AUTHORITY.issue("wire.test"))
    native.listen_tls("https", free_port(), {"wire.test": "pair"})
    native.serve("wire.test", backend)
    with serving(tmp_path_factory.mktemp("h2spec"), native, {"wire": backend}) as started:
        yield started


def test_the_suite_is_whole() -> None:
    """As many as reference implementations are measured by, each once."""
    assert len({case.id for case in CASES}) == len(CASES) == 147


def connect(wire: Serving, listener: str, *, handshake: bool, how: str) -> Http2Client:
    raw = wire.connect(listener)
    if listener == "https":
        context = ssl.create_default_context(cadata=AUTHORITY.pem)
        context.set_alpn_protocols(["h2"])
        raw.socket = context.wrap_socket(raw.socket, server_hostname="wire.test")
    cut = bytewise if how == "byte by byte" else whole
    client = Http2Client(raw, preface=PREFACE if handshake else b"", cut=cut, credit=False)
    if handshake:
        client.handshake()
    return client


@pytest.mark.parametrize("how", ["whole", "byte by byte", "whole, TLS"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, how: str, wire: Serving) -> None:
    run(case, wire, "https" if how == "whole, TLS" else "http", how)
    wire.lb.assert_healthy()
    wire.backends["wire"].assert_clean()


def run(case: Case, wire: Serving, listener: str, how: str) -> None:
    with connect(wire, listener, handshake=case.handshake, how=how) as client:
        for step in case.steps:
            part = step(client) if callable(step) else step
            if part is not None:
                client.send(part)
        case.check(client)
