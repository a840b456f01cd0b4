"""The first message of a TLS client, byte by byte as a test wants it, and what the server says to it.

No cryptography: what a server would agree to shows in its first answer (RFC 5246 7.4.1, RFC 8446 4.1).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.harness.client import Address

SSL_3_0, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304

# Extensions and alerts by their registered numbers.
SERVER_NAME, SUPPORTED_GROUPS, POINT_FORMATS, SIGNATURES, ALPN, RENEGOTIATION = 0, 10, 11, 13, 16, 0xFF01
HEARTBEAT, EARLY_DATA, VERSIONS, KEY_SHARE, PSK_MODES = 15, 42, 43, 51, 45
UNEXPECTED_MESSAGE, RECORD_OVERFLOW, HANDSHAKE_FAILURE, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 22, 40, 47, 50
PROTOCOL_VERSION, INAPPROPRIATE_FALLBACK, NO_APPLICATION_PROTOCOL = 70, 86, 120
FALLBACK_SCSV, RENEGOTIATION_SCSV = 0x5600, 0x00FF

GROUPS = (0x11EC, 29, 23, 24, 25, 30, 0x0100)
"""X25519MLKEM768, X25519, P-256, P-384, P-521, X448, ffdhe2048"""
_SIGNATURES = (0x0403, 0x0503, 0x0804, 0x0805, 0x0401, 0x0501, 0x0807)
_HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def vector(content: bytes, width: int) -> bytes:
    return len(content).to_bytes(width) + content


def numbers(values: Sequence[int]) -> bytes:
    return b"".join(value.to_bytes(2) for value in values)


def server_name(name: bytes) -> bytes:
    """Content of the extension (RFC 6066 3)."""
    return vector(b"\x00" + vector(name, 2), 2)


@dataclass
class Hello:
    """A ClientHello. `versions` empty: one of TLS 1.2 or older, whose version is `legacy`."""

    name: bytes = b"shop.example.com"
    legacy: int = TLS_1_2
    versions: tuple[int, ...] = ()
    ciphers: Sequence[int] = (0xC02B, 0xC02F)
    compressions: bytes = b"\x00"
    groups: Sequence[int] = GROUPS
    signatures: Sequence[int] = _SIGNATURES
    protocols: tuple[bytes, ...] = ()
    more: dict[int, bytes] = field(default_factory=dict)
    """Extensions by number, also in place of those that are made of the above."""

    def message(self) -> bytes:
        extensions = {
            SUPPORTED_GROUPS: vector(numbers(self.groups), 2),
            POINT_FORMATS: b"\x01\x00",
            SIGNATURES: vector(numbers(self.signatures), 2),
        }
        if self.name:
            extensions[SERVER_NAME] = server_name(self.name)
        if self.protocols:
            extensions[ALPN] = vector(b"".join(vector(one, 1) for one in self.protocols), 2)
        if self.versions:
            extensions[VERSIONS] = vector(numbers(self.versions), 1)
            extensions[KEY_SHARE] = vector(b"", 2)
            extensions[PSK_MODES] = b"\x01\x01"
        extensions |= self.more
        body = self.legacy.to_bytes(2) + os.urandom(32) + vector(os.urandom(32), 1)
        body += vector(numbers(self.ciphers), 2) + vector(self.compressions, 1)
        body += vector(b"".join(kind.to_bytes(2) + vector(content, 2) for kind, content in extensions.items()), 2)
        return b"\x01" + vector(body, 3)

    def records(self, piece: int = 16_384) -> bytes:
        """As records of at most `piece` bytes."""
        message = self.message()
        return b"".join(record(22, message[at : at + piece]) for at in range(0, len(message), piece))


def record(kind: int, content: bytes, version: int = TLS_1_0) -> bytes:
    return bytes([kind]) + version.to_bytes(2) + vector(content, 2)


@dataclass
class ServerHello:
    version: int
    cipher: int
    compression: int
    extensions: dict[int, bytes]
    is_retry: bool

    @property
    def group(self) -> int:
        """The one that a HelloRetryRequest asks for."""
        return int.from_bytes(self.extensions[KEY_SHARE][:2])


@dataclass
class Alert:
    level: int
    number: int


def say(address: Address, data: bytes) -> ServerHello | Alert | None:
    """The server's answer to these bytes; None when it closes without a word."""
    with socket.create_connection(address, 20) as client:
        client.sendall(data)
        return answer(client)


def answer(client: socket.socket) -> ServerHello | Alert | None:
    handshake = b""
    for kind, content in _records(client):
        if kind == 21:
            return Alert(content[0], content[1])
        handshake += content
        if kind == 22 and len(handshake) >= 4 + int.from_bytes(handshake[1:4]):
            return _server_hello(handshake[4 : 4 + int.from_bytes(handshake[1:4])])
    return None


def _records(client: socket.socket) -> Iterator[tuple[int, bytes]]:
    while (head := _exactly(client, 5)) and (content := _exactly(client, int.from_bytes(head[3:]))):
        yield head[0], content


def _exactly(client: socket.socket, size: int) -> bytes:
    """So many bytes; nothing when the server closes or resets before."""
    data = b""
    try:
        while len(data) < size:
            piece = client.recv(size - len(data))
            if not piece:
                return b""
            data += piece
    except ConnectionError:
        return b""
    return data


def _server_hello(body: bytes) -> ServerHello:
    version, random = int.from_bytes(body[:2]), body[2:34]
    at = 35 + body[34]
    cipher, compression = int.from_bytes(body[at : at + 2]), body[at + 2]
    at += 5
    extensions = {}
    while at < len(body):
        kind, size = int.from_bytes(body[at : at + 2]), int.from_bytes(body[at + 2 : at + 4])
        extensions[kind] = body[at + 4 : at + 4 + size]
        at += 4 + size
    version = int.from_bytes(extensions.get(VERSIONS, version.to_bytes(2)))
    return ServerHello(version, cipher, compression, extensions, random == _HELLO_RETRY)
