"""What is measured. Each module owns some figures; FIGURES lists them all, in the order they run and are shown."""

from __future__ import annotations

from bench.figures.carried import BULK, BULK_ONE, CONNECT, PASSTHROUGH, TCP, TCP_IDLE
from bench.figures.changes import ENDPOINT, INGRESS, SWAPS, TAIL
from bench.figures.cost import BODY_1M, BODY_16K, KEEPALIVE, NEW_CONNECTION, ROUTES, TLS_BODY_1M
from bench.figures.datagrams import UDP, UDP_ONCE
from bench.figures.http2 import GRPC, HTTP2
from bench.figures.size import IDLE, SCALE, TLS_IDLE
from bench.figures.tls import HANDSHAKE, RESUMED, STORM, TLS_KEEPALIVE

FIGURES = (
    *(KEEPALIVE, BODY_16K, BODY_1M, NEW_CONNECTION, ROUTES),
    *(TLS_KEEPALIVE, TLS_BODY_1M, HANDSHAKE, RESUMED, STORM, HTTP2, GRPC),
    *(TCP, BULK, BULK_ONE, CONNECT, TCP_IDLE, UDP, UDP_ONCE, PASSTHROUGH),
    *(SCALE, INGRESS, ENDPOINT, TAIL, IDLE, TLS_IDLE, SWAPS),
)
