"""Large bodies that are cheap to make and to check."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

_BLOCK = random.Random(20_240_613).randbytes(1 << 20)
MEGABYTE = len(_BLOCK)


def pieces(size: int, piece: int = 65_536) -> Iterator[memoryview]:
    """`size` bytes of noise that repeats every megabyte."""
    block = memoryview(_BLOCK)
    sent = 0
    while sent < size:
        start = sent % MEGABYTE
        part = block[start : start + min(piece, size - sent, MEGABYTE - start)]
        yield part
        sent += len(part)


def payload(size: int) -> bytes:
    return b"".join(pieces(size))


def digest(size: int) -> bytes:
    """SHA-256 of `payload(size)` in hexadecimal."""
    seen = hashlib.sha256()
    for piece in pieces(size, MEGABYTE):
        seen.update(piece)
    return seen.hexdigest().encode()


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
