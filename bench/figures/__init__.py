"""What is measured. Each module owns some figures; FIGURES lists them all, in the order they run and are shown."""

from __future__ import annotations

from bench.figures.changes import ENDPOINT, INGRESS, SWAPS, TAIL
from bench.figures.cost import BODY_16K, KEEPALIVE, NEW_CONNECTION, ROUTES
from bench.figures.size import IDLE, SCALE

FIGURES = (KEEPALIVE, BODY_16K, NEW_CONNECTION, ROUTES, SCALE, INGRESS, ENDPOINT, TAIL, IDLE, SWAPS)
