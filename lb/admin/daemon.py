"""What the admin API may see and do of the running daemon. The application implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lb._fastpath.engine import Engine
    from lb.certs.expiry import Expiry
    from lb.health.monitor import Monitor
    from lb.observe.metrics import Metrics
    from lb.observe.settings_file import SettingsFile
    from lb.pipeline import Build, Pipeline
    from lb.sockets import Listeners


class Daemon(Protocol):
    """The running daemon."""

    engine: Engine
    pipeline: Pipeline
    listeners: Listeners
    expiry: Expiry
    settings_file: SettingsFile
    health: Monitor
    metrics: Metrics
    threads: int
    started_at: float
    """Seconds since the epoch."""
    tls_kernel: str
    """Whether the kernel encrypts what is sent: `off`, `on`, or why it cannot although it should."""

    def readiness(self) -> tuple[bool, str]:
        """(whether new requests are taken, `serving` or what it waits for)."""

    async def reload(self) -> Build:
        """Read all sources again, now."""
