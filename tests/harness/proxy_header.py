"""Headers of the PROXY protocol: made, and read by a reference that is written from the specification alone.

Source: haproxy/doc/proxy-protocol.txt.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from typing import NamedTuple

from tests.harness.tcp import read_exactly

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MOST = 4_096
"""Bytes of a header that lb reads."""

ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL = 1, 2, 3, 4, 5, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23

End = tuple[str, int]
Values = list[tuple[int, bytes]]


class BadHeaderError(ValueError):
    """What begins so is no header."""


class Header(NamedTuple):
    """What a header says."""

    size: int
    client: End | None = None
    target: End | None = None
    values: Values = []  # noqa: RUF012  # never changed

    def value(self, kind: int) -> bytes | None:
        return dict(self.values).get(kind)


def v1(client: str = "192.0.2.1", port: int = 4711, kind: str = "TCP4", local: str = "192.0.2.2") -> bytes:
    return f"PROXY {kind} {client} {local} {port} 443\r\n".encode()


def v2(client: str = "192.0.2.1", port: int = 4711, *, command: int = 0x21, rest: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    local = "2001:db8::2" if ":" in client else "192.0.2.2"
    addresses = socket.inet_pton(family, client) + socket.inet_pton(family, local) + struct.pack("!HH", port, 443)
    return framed(addresses + rest, command=command, kind=0x21 if ":" in client else 0x11)


def framed(payload: bytes, *, command: int = 0x21, kind: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(payload)) + payload


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def ssl_value(*inner: bytes, client: int = 1, verify: int = 0) -> bytes:
    return tlv(SSL, struct.pack("!BI", client, verify) + b"".join(inner))


def checked(header: bytes) -> bytes:
    """A header of version 2 with its checksum behind it."""
    length = struct.unpack("!H", header[14:16])[0] + 7
    whole = header[:14] + struct.pack("!H", length) + header[16:] + tlv(CRC32C, b"\0" * 4)
    return whole[:-4] + struct.pack("!I", crc32c(whole))


def crc32c(data: bytes) -> int:
    """RFC 3720 B.4, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def split_values(data: bytes) -> Values:
    values = []
    while data:
        if len(data) < 3:
            raise BadHeaderError("less than a value is left")
        kind, length = struct.unpack("!BH", data[:3])
        if len(data) < 3 + length:
            raise BadHeaderError("a value is cut off")
        values.append((kind, data[3 : 3 + length]))
        data = data[3 + length :]
    return values


def decode(data: bytes) -> Header | None:
    """The header that `data` begins with; None while it may still become one. BadHeaderError."""
    if data.startswith(SIGNATURE) or SIGNATURE.startswith(data):
        return _decode_v2(data)
    if data.startswith(b"PROXY ") or b"PROXY ".startswith(data):
        return _decode_v1(data)
    raise BadHeaderError("neither version")


def receive(peer: socket.socket) -> Header:
    """The header that a connection begins with."""
    data = read_exactly(peer, 1)
    while (header := decode(data)) is None:
        data += read_exactly(peer, 1)
    return header


_V1 = re.compile(rb"PROXY TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")


def _decode_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, 107) + 1
    if not end:
        if len(data) < 107:
            return None
        raise BadHeaderError("no end")
    line = data[:end]
    if re.fullmatch(rb"PROXY UNKNOWN( [^\n]*)?\r\n", line):
        return Header(end)
    if not (found := _V1.fullmatch(line)):
        raise BadHeaderError("not like a line of version 1")
    version, *addresses = found.groups()
    parse = ipaddress.IPv4Address if version == b"4" else ipaddress.IPv6Address
    try:
        if b"%" in line:
            raise ValueError("zones mean nothing elsewhere")
        client, target = (str(parse(one.decode())) for one in addresses[:2])
    except ValueError as error:
        raise BadHeaderError(str(error)) from None
    ports = [int(one) for one in addresses[2:]]
    if max(ports) > 65_535:
        raise BadHeaderError("no port")
    return Header(end, (client, ports[0]), (target, ports[1]))


def _decode_v2(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    command, kind, length = struct.unpack("!BBH", data[12:16])
    if command not in (0x20, 0x21) or 16 + length > MOST:
        raise BadHeaderError("version, command or length")
    if len(data) < 16 + length:
        return None
    if command == 0x20:
        return Header(16 + length)
    widths = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
    if kind not in widths or length < widths[kind]:
        raise BadHeaderError("family")
    addresses, rest = data[16 : 16 + widths[kind]], data[16 + widths[kind] : 16 + length]
    values = split_values(rest)
    _check(data[: 16 + length], values, 16 + widths[kind])
    if kind not in (0x11, 0x21):
        return Header(16 + length, values=values)
    family, width = (socket.AF_INET, 4) if kind == 0x11 else (socket.AF_INET6, 16)
    ports = struct.unpack("!HH", addresses[2 * width :])
    ends = [socket.inet_ntop(family, addresses[at : at + width]) for at in (0, width)]
    return Header(16 + length, (ends[0], ports[0]), (ends[1], ports[1]), values)


def _check(header: bytes, values: Values, at: int) -> None:
    sums = []
    for kind, value in values:
        if kind == CRC32C:
            if len(value) != 4:
                raise BadHeaderError("a checksum has four bytes")
            sums.append((at + 3, value))
        if kind == UNIQUE_ID and len(value) > 128:
            raise BadHeaderError("a unique id has 128 bytes at most")
        if kind == SSL:
            if len(value) < 5:
                raise BadHeaderError("half of SSL")
            split_values(value[5:])
        at += 3 + len(value)
    if len(sums) > 1:
        raise BadHeaderError("two checksums")
    for place, value in sums:
        if crc32c(header[:place] + b"\0" * 4 + header[place + 4 :]) != struct.unpack("!I", value)[0]:
            raise BadHeaderError("the checksum is wrong")
