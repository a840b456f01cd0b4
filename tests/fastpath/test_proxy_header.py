"""The PROXY header's reader against a reference in Python: what is built, what is bent, and what is noise."""

from __future__ import annotations

import ipaddress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb._fastpath import testing
from tests.harness.proxy_header import (
    SIGNATURE,
    BadHeaderError,
    End,
    checked,
    decode,
    framed,
    split_values,
    ssl_value,
    tlv,
    v1,
    v2,
)

kinds = st.sampled_from([1, 2, 3, 4, 5, 0x20, 0x30, 0xEA, 0xFF])
values = st.lists(st.builds(tlv, kinds, st.binary(max_size=140)), max_size=5).map(b"".join)
ssl_values = st.builds(lambda inner, client: ssl_value(inner, client=client), values, st.integers(0, 255))
clients = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
ports = st.integers(0, 65_535)
built = st.builds(lambda client, port, rest: v2(client, port, rest=rest), clients, ports, st.one_of(values, ssl_values))
families = st.sampled_from([0, 0x11, 0x12, 0x21, 0x31, 0x41])
others = st.builds(
    lambda payload, command, kind: framed(payload, command=command, kind=kind),
    st.one_of(values, st.binary(max_size=300), values.map(lambda rest: b"\0" * 216 + rest)),
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    families,
)
lines = st.builds(
    lambda client, port, kind, local: v1(client, port, kind, local),
    clients,
    st.integers(0, 70_000),
    st.sampled_from(["TCP4", "TCP6", "UNKNOWN", "UDP4"]),
    clients,
)
headers = st.one_of(built, built.map(checked), others, lines)


def agree(data: bytes) -> None:
    got = testing.read_proxy_header(data)
    try:
        expected = decode(data)
    except BadHeaderError:
        assert got == -1
        return
    if expected is None:
        assert got == 0
        return
    assert isinstance(got, tuple)
    size, client, target, rest = got
    assert (size, split_values(rest)) == (expected.size, expected.values)
    assert (client, target) == (_packed(expected.client), _packed(expected.target))


def _packed(end: End | None) -> tuple[bytes, int] | None:
    if end is None:
        return None
    address = ipaddress.ip_address(end[0])
    return (address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed), end[1]


@settings(max_examples=300, deadline=None)
@given(headers, st.binary(max_size=20))
@example(b"PROXY TCP4 192.0.2.1\0x 192.0.2.2 1 2\r\n", b"")
@example(v2(rest=tlv(4, b"\0" * (4_096 - 16 - 12 - 3))), b"")
@example(v2(rest=tlv(4, b"\0" * (4_096 - 16 - 12 - 2))), b"")
def test_headers_are_read_as_the_reference_does(header: bytes, behind: bytes) -> None:
    agree(header + behind)


@settings(max_examples=300, deadline=None)
@given(headers, st.data())
def test_bent_and_cut_headers(header: bytes, data: st.DataObject) -> None:
    bent = bytearray(header)
    for _ in range(data.draw(st.integers(0, 3))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    agree(bytes(bent[: data.draw(st.integers(0, len(bent)))]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]), st.binary(max_size=120))
def test_noise(start: bytes, noise: bytes) -> None:
    agree(start + noise)
