"""Listening sockets: opens them for the model's listeners and hands them to the engine.

Owns where a listener really binds (its own address, a published one, a socket that systemd opened), dual stack, Unix
socket files, and the problem LB6001 for what cannot be opened: the other listeners serve nevertheless. It knows nothing
of requests.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from lb.model.listener import Listener, Transport
from lb.problems import Problem
from lb.settings import Bind, Published

log = structlog.stdlib.get_logger(__name__)

# The kernel takes the smaller of this and net.core.somaxconn, so the administrator's limit is the one that counts.
BACKLOG = 65_535
# Whoever may write to a Unix listener may send requests; a proxy in front of lb usually shares its group.
UNIX_MODE = 0o660


_ALL = ("", "0.0.0.0", "::")  # noqa: S104 (compares, does not bind)


class Acceptor(Protocol):
    """Whoever accepts on the sockets: the engine."""

    def open_listener(self, name: str, sockets: Sequence[int], place: str) -> None: ...
    def pass_listener(self, place: str, name: str) -> None: ...
    def close_listener(self, place: str) -> None: ...


class Opened(msgspec.Struct, frozen=True):
    """A listener that accepts."""

    name: str
    port: int
    """In the model."""
    wanted: Bind
    address: str
    """Where it really is, as `127.0.0.1:8080`."""
    activated: bool = False
    """systemd opened it."""
    place: str = ""
    """What the engine knows its sockets by."""


class Listeners:
    """Keeps the open sockets equal to the model's listeners."""

    def __init__(
        self,
        engine: Acceptor,
        threads: int,
        publish: Published,
        activated: Sequence[tuple[str, socket.socket]] = (),
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._publish = publish
        self._activated = list(activated)
        self._ports: set[tuple[int, Transport]] = set()
        self.opened: dict[str, Opened] = {}
        self.closed: dict[str, Problem] = {}
        """Why a listener is not open, by its name: an object with several ports may have another reason for each."""
        self.problems: tuple[Problem, ...] = ()

    def sync(self, listeners: Mapping[str, Listener]) -> None:
        """Open what is new, close what is gone, try again what could not be opened before."""
        wanted = {name: self.bind_of(listener) for name, listener in listeners.items()}
        places = self.places(listeners.values())
        self._ports = {(listener.port, listener.transport) for listener in listeners.values()}
        leaving = [opened for name, opened in self.opened.items() if wanted.get(name) != opened.wanted]
        passed = dict(self._heirs(leaving, wanted))
        closing = [opened for opened in leaving if opened not in passed.values()]
        for name, opened in passed.items():
            self._pass_on(opened, listeners[name])
        new = [name for name, bind in wanted.items() if name not in self.opened or self.opened[name].wanted != bind]
        # What opens does so before anything closes, so that a port that keeps its number is open all the time. But two
        # at the same place would be one to the engine.
        needed = {self._place_of(listeners[name]) for name in new}
        first = [opened for opened in closing if opened.place in needed]
        for opened in first:
            self._close(opened)
        freed = {opened.wanted for opened in closing}
        self.closed = {}
        for name in new:
            try:
                self._open(listeners[name], wanted[name], places, share=self._is_beside_ours(wanted[name], freed))
            except OSError as error:
                self.closed[name] = _problem(listeners[name], wanted[name], error)
        for opened in closing:
            if opened not in first:
                self._close(opened)
        for problem in self.closed.values():
            if problem not in self.problems:
                log.error(problem.what, code=problem.code, why=problem.why, fix=problem.fix)
        self.problems = tuple(self.closed.values())

    def _heirs(self, leaving: Iterable[Opened], wanted: Mapping[str, Bind]) -> Iterator[tuple[str, Opened]]:
        """Whose place another listener wants now. Its sockets stay, because who is connecting to them would be reset
        if they closed, UDP's sessions would end, and the published table has said already whose they are. Not so where
        a socket comes by its listener's name (systemd).
        """
        free = {one.wanted: one for one in leaving if not one.activated and _is_one_place(one.wanted)}
        for name, bind in wanted.items():
            opened = self.opened.get(name)
            if bind in free and (opened is None or opened.wanted != bind):
                yield name, free.pop(bind)

    def retry(self, listeners: Mapping[str, Listener]) -> None:
        """Open what could not be opened, if it can be now: a virtual address has moved here, or its holder has gone."""
        places = self.places(listeners.values())
        for name in [name for name in self.closed if name in listeners]:
            bind = self.bind_of(listeners[name])
            with suppress(OSError):
                self._open(listeners[name], bind, places, share=self._is_beside_ours(bind, ()))
                del self.closed[name]
                self.problems = tuple(self.closed.values())

    def bind_of(self, listener: Listener) -> Bind:
        """Where a listener is to bind."""
        port = listener.port, listener.transport
        return self._publish.get(port) or Bind(listener.address, *port)

    def places(self, listeners: Iterable[Listener]) -> dict[str, str]:
        """{place: listener}, as `sync` will have it: who has it keeps it, and else it goes to who comes first.

        Any thread may ask.
        """
        has = {opened.place: name for name, opened in dict(self.opened).items()}
        places: dict[str, str] = {}
        for listener in listeners:
            place = self._place_of(listener)
            if place not in places or has.get(place) == listener.name:
                places[place] = listener.name
        return places

    def _place_of(self, listener: Listener) -> str:
        """What the engine knows the sockets by: who has the place may change."""
        bind = self.bind_of(listener)
        return str(bind) if _is_one_place(bind) else f"{bind} {listener.name}"

    def unused(self) -> list[str]:
        """What was given but serves nothing, as texts: likely a mistake."""
        texts = [
            f"--publish {port}={bind}: no {transport.upper()} listener has port {port}{self._hint(port, transport)}"
            for (port, transport), bind in self._publish.items()
            if (port, transport) not in self._ports
        ]
        served = {opened.address for opened in self.opened.values() if opened.activated}
        for name, activated in self._activated:
            if (address := _address_of(activated)) not in served:
                texts.append(f"systemd's socket {name} at {address} belongs to no listener: clients wait there in vain")
        return texts

    def _hint(self, port: int, transport: Transport) -> str:
        """For who forgot /udp, or wrote /tcp."""
        return (
            ", but a UDP one has: write /udp behind it" if transport == "tcp" and (port, "udp") in self._ports else ""
        )

    def close(self) -> None:
        """Close all; removes the socket files that are ours. Those of UDP go with the engine: sessions under way need
        them to the end, and who comes meanwhile is served as long.
        """
        for opened in list(self.opened.values()):
            if opened.wanted.transport == "tcp":
                self._close(opened)

    def _is_beside_ours(self, bind: Bind, freed: Collection[Bind]) -> bool:
        """Whether lb has the port already, and may: what it is about to close, or all addresses while this is one of
        them, or the other way around. The kernel hands connections to the socket that says most, so both serve."""
        others = [one.wanted for one in self.opened.values() if one.wanted != bind]
        meeting = (one for one in (*others, *freed) if (one.port, one.transport) == (bind.port, bind.transport))
        return any(one == bind or one.address in _ALL or bind.address in _ALL for one in meeting)

    def _open(self, listener: Listener, bind: Bind, places: Mapping[str, str], *, share: bool) -> None:
        """`places`: as the table has them. What it gives to one must not be open for another, should whoever keeps the
        port from both go between their tries.
        """
        name, place = listener.name, self._place_of(listener)
        if places[place] != name:
            raise OSError(errno.EADDRINUSE, f"listener {places[place]} is to have it")
        with ExitStack() as close_ours:  # the engine has its own duplicates
            activated = self._find_activated(name, bind)
            # The engine takes a moment to close a socket, which must not look like somebody else's.
            if activated is None:
                sockets = open_sockets(bind, self._threads, share=share)
            elif bind.transport == "udp":
                sockets = [activated, *open_siblings(activated, self._threads - 1)]
            else:
                sockets = [activated]
                if activated.family != socket.AF_UNIX:
                    _prepare_for_clients(activated)
            for opened in sockets:
                if opened is not activated:
                    close_ours.callback(opened.close)
            self._engine.open_listener(name, [opened.fileno() for opened in sockets], place)
            where = _address_of(sockets[0])
        self.opened[name] = Opened(name, listener.port, bind, where, activated is not None, place)
        log.info("listening", listener=name, address=where)

    def _forget(self, opened: Opened) -> None:
        if self.opened.get(opened.name) is opened:  # its name has no other place yet
            del self.opened[opened.name]

    def _pass_on(self, opened: Opened, heir: Listener) -> None:
        self._forget(opened)
        self._engine.pass_listener(opened.place, heir.name)
        self.opened[heir.name] = msgspec.structs.replace(opened, name=heir.name, port=heir.port)
        log.info("listening", listener=heir.name, address=opened.address, instead_of=opened.name)

    def _close(self, opened: Opened) -> None:
        self._forget(opened)
        self._engine.close_listener(opened.place)
        if opened.address.startswith("unix:") and not opened.activated:
            with suppress(OSError):  # it has gone, or may not be removed: who binds there next sees to it
                Path(opened.address.removeprefix("unix:")).unlink()
        log.info("stopped listening", listener=opened.name, address=opened.address)

    def _find_activated(self, name: str, bind: Bind) -> socket.socket | None:
        """systemd's socket with the listener's name, else one at the listener's place."""
        fitting = [(given, one) for given, one in self._activated if _transport_of(one) == bind.transport]
        named = [one for given, one in fitting if given == name]
        return next(iter([*named, *(one for _, one in fitting if _is_at(one, bind))]), None)


def open_sockets(bind: Bind, count: int, *, share: bool = False) -> list[socket.socket]:
    """Non-blocking sockets, listening where they are TCP's: `count` that share a port, or one for a Unix path. OSError.

    `share` allows that this user already has listening sockets at the same place.
    """
    if bind.address.startswith("unix:"):
        return [_open_unix(bind.address.removeprefix("unix:"))]
    family = socket.AF_INET6 if ":" in bind.address or (not bind.address and _has_ipv6()) else socket.AF_INET
    address = bind.address or ("::" if family == socket.AF_INET6 else "0.0.0.0")  # noqa: S104 (asked for)
    if bind.port and not share:
        _check_free(family, address, bind)
    sockets: list[socket.socket] = []
    port = bind.port
    try:
        for _ in range(count):
            opened = _new_socket(family, bind)
            sockets.append(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.bind((address, port))
            port = opened.getsockname()[1]
        if bind.transport == "tcp":
            for opened in sockets:
                opened.listen(BACKLOG)
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def open_siblings(given: socket.socket, count: int) -> list[socket.socket]:
    """`count` more UDP sockets at the place of one that systemd opened, so that all threads serve it; none where
    another user owns it, as the kernel sees it (systemd is root).
    """
    siblings: list[socket.socket] = []
    given.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    dual_stack = given.family == socket.AF_INET6 and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    place = Bind("" if dual_stack else str(given.getsockname()[0]), 0, "udp")
    try:
        for _ in range(count):
            siblings.append(_new_socket(given.family, place))
            siblings[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            siblings[-1].bind(given.getsockname())
    except OSError:
        for opened in siblings:
            opened.close()
        return []
    return siblings


def _is_one_place(bind: Bind) -> bool:
    """Port 0 is another one for everybody."""
    return bind.port != 0 or bind.address.startswith("unix:")


def _new_socket(family: int, bind: Bind) -> socket.socket:
    udp = bind.transport == "udp"
    opened = socket.socket(family, (socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if bind.address else 0)
    if not udp:  # which has no connections that linger; there it would let anybody share the port
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _prepare_for_clients(opened)
    return opened


def _prepare_for_clients(listening: socket.socket) -> None:
    """Options of TCP that accepted sockets inherit, which saves system calls for each. Without keepalive a client that
    has vanished would hold its connection for ever where no idle_timeout ends it.
    """
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _check_free(family: int, address: str, bind: Bind) -> None:
    """OSError when somebody is there. With SO_REUSEPORT alone, two lb would share a port without noticing."""
    with _new_socket(family, bind) as probe:
        probe.bind((address, bind.port))


def _open_unix(path: str) -> socket.socket:
    """A listening Unix socket; replaces the file that a dead process left."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        remove_stale_socket(path)
        bind_unix(opened, path, UNIX_MODE)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def bind_unix(opened: socket.socket, path: str, mode: int) -> None:
    """Bind with the mode in force from the first moment. OSError."""
    # fchmod before bind sets the mode of the file that bind makes; umask may only take from it.
    os.fchmod(opened.fileno(), mode)
    opened.bind(path)
    Path(path).chmod(mode)


def remove_stale_socket(path: str) -> None:
    """Remove a socket file on which nobody listens. OSError EADDRINUSE when somebody does, or it is no socket."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError(errno.EADDRINUSE, f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise OSError(errno.EADDRINUSE, f"somebody listens on {path}")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _is_at(candidate: socket.socket, bind: Bind) -> bool:
    name = candidate.getsockname()
    if candidate.family == socket.AF_UNIX:
        return bind.address == f"unix:{_text(name)}"
    return bool(name[1] == bind.port and bind.address in ("", name[0]))


def _address_of(opened: socket.socket) -> str:
    name = opened.getsockname()
    if opened.family == socket.AF_UNIX:
        return f"unix:{_text(name)}"
    return str(Bind(name[0], name[1], _transport_of(opened)))


def _transport_of(opened: socket.socket) -> Transport:
    return "udp" if opened.type == socket.SOCK_DGRAM else "tcp"


def _text(name: str | bytes) -> str:
    return os.fsdecode(name)


def _problem(listener: Listener, bind: Bind, error: OSError) -> Problem:
    why = error.strerror or str(error)
    fix = "correct the listener's address, or map its port with --publish"
    service = _chooses_addresses(listener, bind)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "raise the limit of open files (LimitNOFILE of the unit): each thread has a socket of each listener"
    elif bind.address.startswith("unix:"):
        fix = "correct the path, or remove what is there"
    elif error.errno == errno.EADDRINUSE:
        holder = find_holder(bind)
        why = f"{holder} listens there" if holder else why
        fix = f"stop it, or publish the listener elsewhere: --publish {listener.port}=ADDRESS:PORT{_suffix(bind)}"
        if service:
            fix = f"stop it, or name other addresses of this host in lb/addresses of {listener.origin.object}"
    elif error.errno == errno.EACCES and 0 < bind.port < 1024:
        why = "ports below 1024 need privilege"
        high = f"{listener.port}=:{8000 + listener.port}{_suffix(bind)}"
        fix = f"use systemd (CAP_NET_BIND_SERVICE) or a high port: --publish {high}"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = f"this host does not have the address {bind.address}"
        if service:
            fix = f"bring the address to this host, or correct {listener.origin.object} (lb/addresses, loadBalancerIP)"
    return Problem("LB6001", listener.origin, f"listener {listener.name} cannot be opened at {bind}", why, fix)


def _chooses_addresses(listener: Listener, bind: Bind) -> bool:
    """Whether it is a Service that says where to listen, and nobody has published its port elsewhere."""
    return listener.origin.kind == "Service" and (bind.address, bind.port) == (listener.address, listener.port)


def _suffix(bind: Bind) -> str:
    return "/udp" if bind.transport == "udp" else ""


def find_holder(bind: Bind) -> str:
    """`nginx (pid 812)` that has a port, or empty: other users' processes show only to root."""
    surely, perhaps = _held(bind)
    inodes = {f"socket:[{inode}]" for inode in surely or perhaps}
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        pid = descriptors.parent.name
        # Processes come and go, and most are not ours to look into.
        with suppress(OSError):
            if any(str(link.readlink()) in inodes for link in descriptors.iterdir()):
                name = (descriptors.parent / "comm").read_text().strip()
                return "another listener of lb" if pid == str(os.getpid()) else f"{name} (pid {pid})"
    return ""


def _held(bind: Bind) -> tuple[set[str], set[str]]:
    """The inodes of sockets that keep an address from being bound, and of those that may.

    These are IPv6's on all addresses, where the address is one of IPv4: the table does not say whether they are for
    IPv6 only, so another one goes before them. Source: proc_net_tcp: sl local_address rem_address st ... inode; st 0A
    is LISTEN; of UDP 07 is not connected and 01 is.
    """
    wanted = ip_address(bind.address) if bind.address else None
    states = ("0A",) if bind.transport == "tcp" else ("01", "07")
    surely: set[str] = set()
    perhaps: set[str] = set()
    for table in (f"/proc/net/{bind.transport}", f"/proc/net/{bind.transport}6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                address, port = columns[1].split(":")
                if columns[3] not in states or int(port, 16) != bind.port:
                    continue
                held = _read_kernel_address(address)
                if wanted is None or _meet(wanted, held):
                    surely.add(columns[9])
                elif wanted.version == 4 and held.version == 6 and held.is_unspecified:
                    perhaps.add(columns[9])
    return surely, perhaps


def _meet(wanted: IPv4Address | IPv6Address, held: IPv4Address | IPv6Address) -> bool:
    """Whether one socket each on these addresses keep each other from one port."""
    if wanted.version != held.version:
        return False
    return wanted.is_unspecified or held.is_unspecified or wanted == held


def _read_kernel_address(text: str) -> IPv4Address | IPv6Address:
    """Words of 32 bits in hexadecimal, each as the machine has it in memory: `0100007F` is 127.0.0.1 on most."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    address = ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address
