"""Free ports. They come from below the kernel's ephemeral range, so that no outgoing connection takes one meanwhile."""

from __future__ import annotations

import itertools
import random
import socket

_LOWEST, _HIGHEST = 12_000, 32_000
_given: set[int] = set()
_random = random.SystemRandom()


def free_port() -> int:
    """A port nobody is bound to, by TCP or UDP, on any loopback address; this process gives none out twice."""
    for _ in range(1_000):
        port = _random.randrange(_LOWEST, _HIGHEST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    places = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
    for (family, address), kind in itertools.product(places, (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
