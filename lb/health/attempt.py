"""One check under way: a connection of its own, TLS when it is wanted, a talk, and a deadline over all of it.

Works on the socket itself, with the event loop's readiness callbacks: what goes wrong is told apart by its errno and by
how far the check came, TLS stays in our hands (tls.py), and a check costs no task.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable

from lb.health.talk import CLOSED, Talk
from lb.health.tls import TlsStream, failure
from lb.health.verdict import PASSED, Verdict, printable

READ_BYTES = 16_384
"""In one turn of the loop: in the smallest frames or chunks even this takes tens of milliseconds."""
MOST_BYTES = 131_072
"""More than this without a verdict is no answer."""
STALL_S = 0.1
"""A deadline that is told so much too late says that the loop stood still, not the endpoint."""
_MOST_STALLS = 3

_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_REFUSED = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN})
"""The last one is a Unix socket whose backlog is full (connect(2))."""
_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})

SocketAddress = tuple[str, int] | str
"""(IP address, port), or the path of a Unix socket."""


class Attempt:
    """Ends once: `done` gets a Verdict, never from within `start`; or it is cancelled."""

    __slots__ = (
        "_address", "_deadline", "_done", "_fd", "_loop", "_preamble", "_received", "_socket", "_stage", "_stalls",
        "_talk", "_timeout_s", "_timer", "_tls", "_unsent", "_writing",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: SocketAddress,
        preamble: bytes,
        talk: Talk | None,
        tls: TlsStream | None,
        timeout_s: float,
        done: Callable[[Verdict], None],
    ) -> None:
        """`preamble` is sent before all else. Without `talk` a connection is enough, or with `tls` a handshake."""
        self._loop = loop
        self._address = address
        self._preamble = preamble
        self._talk = talk
        self._tls = tls
        self._timeout_s = timeout_s
        self._done = done
        self._socket: socket.socket
        self._fd = -1
        """-1 while there is no socket."""
        self._unsent = b""
        self._writing = False
        self._received = 0
        self._deadline = 0.0
        self._stage = "connecting"
        self._stalls = 0
        self._timer: asyncio.Handle | None = None
        """Of the deadline; None once it is over."""

    def start(self) -> None:
        """Begin to connect."""
        self._deadline = time.monotonic() + self._timeout_s
        self._timer = self._loop.call_later(self._timeout_s, self._on_deadline)
        try:
            opened = socket.socket(_family(self._address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._socket, self._fd = opened, opened.fileno()
            number = opened.connect_ex(self._address)
        except OSError as error:
            number = error.errno or errno.EIO
        if number == errno.EINPROGRESS:
            self._loop.add_writer(self._fd, self._guard, self._on_connected)
            self._writing = True
        else:  # at once: a Unix socket, or a mistake
            self._loop.call_soon(self._guard, self._on_connect_ended, number)

    def cancel(self) -> None:
        """End it without a verdict."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._stop_writing()
            self._socket.close()
            self._fd = -1

    def _end(self, verdict: Verdict) -> None:
        self.cancel()
        self._done(verdict)

    def _guard(self, step: Callable[..., Verdict | None], *arguments: object) -> None:
        """Run a step; a verdict of it ends the attempt, and so does whatever it meets."""
        if self._timer is None:
            return
        try:
            verdict = step(*arguments)
        except ssl.SSLError as error:
            verdict = failure(error)
        except OSError as error:
            verdict = _of_errno(error.errno or errno.EIO)
        except Exception as error:
            # What the codecs did not foresee. It must not leave the attempt open: nobody else would end it.
            verdict = Verdict("bad-response", printable(f"{type(error).__name__}: {error}"))
        if verdict is not None:
            self._end(verdict)

    def _on_deadline(self) -> None:
        late_s = time.monotonic() - self._deadline
        if late_s < STALL_S:
            self._end(Verdict("timeout", f"{self._stage} took longer than {self._timeout_s:g} s"))
        elif self._stalls == _MOST_STALLS:
            self._end(Verdict("skipped", "lb was too busy"))
        else:
            # Give back what the loop took: an answer may have been waiting all the while.
            self._stalls += 1
            self._deadline = time.monotonic() + self._timeout_s
            self._timer = self._loop.call_later(self._timeout_s, self._on_deadline)

    # -- Connecting

    def _on_connected(self) -> Verdict | None:
        self._stop_writing()
        return self._on_connect_ended(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _on_connect_ended(self, number: int) -> Verdict | None:
        if number:
            return _of_errno(number)
        if self._talk is None and self._tls is None:
            self._send(self._preamble)
            return PASSED
        if self._socket.family != socket.AF_UNIX:
            # What follows a handshake must not wait for the acknowledgement of its last message.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add_reader(self._fd, self._guard, self._on_readable)
        if self._tls is not None:
            self._stage = "the TLS handshake"
            self._tls.begin()
            self._send(self._preamble + self._tls.take_output())
        elif self._talk is not None:
            self._stage = "the answer"
            self._send(self._preamble + self._talk.begin())
        return None

    # -- Talking

    def _on_readable(self) -> Verdict | None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        self._received += len(data)
        verdict = self._take(data) if self._tls is None else self._take_encrypted(self._tls, data)
        if verdict is not None:
            return verdict
        if not data:
            return self._talk.end() if self._talk is not None else CLOSED
        return Verdict("bad-response", f"no answer in {MOST_BYTES} bytes") if self._received > MOST_BYTES else None

    def _take(self, data: bytes) -> Verdict | None:
        if not data or self._talk is None:
            return None
        verdict = self._talk.receive(data)
        if verdict is None:
            self._send(self._talk.take_output())
        return verdict

    def _take_encrypted(self, tls: TlsStream, data: bytes) -> Verdict | None:
        was_open = tls.is_open
        plain = tls.receive(data)
        verdict = self._on_open(tls) if tls.is_open and not was_open else None
        if verdict is None and plain and self._talk is not None:
            verdict = self._talk.receive(plain)
            tls.send(self._talk.take_output() if verdict is None else b"")
        # Also when all is said: an endpoint that waits for the end of the handshake would call it broken.
        self._send(tls.take_output())
        return verdict

    def _on_open(self, tls: TlsStream) -> Verdict | None:
        """The handshake is over."""
        mistake = tls.mistake()
        if mistake is not None or self._talk is None:
            return mistake or PASSED
        self._stage = "the answer"
        tls.send(self._talk.begin())
        return None

    def _send(self, data: bytes) -> None:
        """Now, and what the endpoint does not take at once later."""
        self._unsent += data
        if not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        self._unsent = self._unsent[sent:]
        if self._unsent and not self._writing:
            self._loop.add_writer(self._fd, self._guard, self._send, b"")
            self._writing = True
        elif not self._unsent:
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)


def _family(address: SocketAddress) -> socket.AddressFamily:
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _of_errno(number: int) -> Verdict:
    text = os.strerror(number).lower()
    if number in _OWN_FAULT:
        return Verdict("skipped", text)
    if number in _REFUSED:
        return Verdict("refused", text)
    if number in _GONE:
        return Verdict("closed", text)
    if number == errno.ETIMEDOUT:
        return Verdict("timeout", text)
    return Verdict("unreachable", text)
