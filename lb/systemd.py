"""What systemd and lb tell each other: readiness, reloads, the watchdog, and listening sockets that systemd opened.

Owns the protocols of sd_notify(3) and sd_listen_fds(3), in the standard library alone: they are a datagram and three
environment variables. Outside systemd everything here does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells the service manager how lb is. Source: sd_notify(3)."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        # Children must not speak for us, so the variables go.
        self._address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        self.watchdog_seconds = int(interval) / 1e6 if interval.isdigit() and ours else 0.0
        """The service manager kills us when it hears nothing for so long; 0 when it does not wait."""

    def ready(self, status: str) -> None:
        """Start or reload is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. Type=notify-reload needs the time in the same message."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much more time, from now on, to finish starting or stopping."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """All is well."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # An address that begins with `@` is in the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        # Nobody listening is no reason to fail, and the manager may come back (daemon-reexec).
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(message, address)


def take_listening_sockets(environment: MutableMapping[str, str] = os.environ) -> list[tuple[str, socket.socket]]:
    """(FileDescriptorName, socket) of what socket activation handed over; the variables are removed.

    Source: sd_listen_fds(3), sd_listen_fds_with_names(3).
    """
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    named = names.split(":") if names else []
    sockets = []
    for index in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + index
        os.set_inheritable(descriptor, False)
        taken = socket.socket(fileno=descriptor)
        taken.setblocking(False)
        sockets.append((named[index] if index < len(named) else "unknown", taken))
    return sockets
