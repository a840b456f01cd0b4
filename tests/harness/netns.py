"""Hosts of a test's own: network namespaces with addresses, routes and links between them.

A thread can stand in another namespace than the rest of its process, a socket stays where it was made, and a process
begins where the thread stood that started it. So the servers, clients and processes of the harness work as they are,
made inside `with host.entered():`.

The namespaces have no names in the system: they live as long as this process holds them, and with the last descriptor
goes everything in them. However a run of the tests ends, none of it stays behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness.waiting import DEADLINE

_CLONE_NEWNET = 0x40000000
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_libc = ctypes.CDLL(None, use_errno=True)

IP = shutil.which("ip", path=_PATH)
NFT = shutil.which("nft", path=_PATH)


class Host:
    """A namespace with its loopback interface up. Closing it ends it, once no process is left inside."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _coming_back():
            _call("unshare", _CLONE_NEWNET)
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.ip("link set lo up")
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where other processes find the namespace; `nsenter --net=PATH` leads into it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the threads and processes that it starts, are inside meanwhile."""
        with _coming_back():
            _call("setns", self._descriptor, _CLONE_NEWNET)
            yield

    def ip(self, *commands: str) -> None:
        """Run `ip` for each command; AssertionError with what it said when one fails."""
        assert IP is not None
        self.run(IP, "-batch", "-", text="\n".join(commands))

    def nft(self, rules: str) -> None:
        """Load nftables rules, all or none of them."""
        assert NFT is not None, "look at NFT first"
        self.run(NFT, "-f", "-", text=rules)

    def run(self, *command: str, text: str = "") -> str:
        """Output of a command run inside; AssertionError when it fails."""
        with self.entered():
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}\n{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def set(self, **sysctls: int | str) -> None:
        """Set what stands under /proc/sys/net, with `__` for a slash: `ipv4__ip_forward=1`."""
        with self.entered():
            for name, value in sysctls.items():
                Path("/proc/sys/net", *name.split("__")).write_text(str(value))

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def link(
    one: Host, device: str, addresses: Sequence[str], other: Host, other_device: str, others: Sequence[str]
) -> None:
    """A cable from a device of one host to a device of the other, with their addresses (`10.0.0.1/24`)."""
    one.ip(f"link add name {device} type veth peer name {other_device} netns {other.path}")
    for host, name, own in ((one, device, addresses), (other, other_device, others)):
        host.ip(*(_address(each, name) for each in own), f"link set dev {name} up")


def bridge(host: Host, device: str, addresses: Sequence[str]) -> None:
    """A switch on a host, which has these addresses on it. `link set dev NAME master DEVICE` plugs a cable in."""
    # Addresses are known by configuration here: no waiting for others that might have them, or for the ports to learn.
    host.ip(
        f"link add name {device} type bridge forward_delay 0",
        *(_address(each, device) for each in addresses),
        f"link set dev {device} up",
    )


def _address(address: str, device: str) -> str:
    return f"addr add {address} dev {device}" + (" nodad" if ":" in address else "")


def require_hosts() -> None:
    """Skip the test where there can be no namespaces."""
    if reason := _unavailable():
        pytest.skip(reason)


@functools.cache
def _unavailable() -> str:
    if IP is None:
        return "iproute2 is not installed"
    try:
        with Host("one") as one, Host("other") as other:
            link(one, "a", ["10.0.0.1/24"], other, "b", ["10.0.0.2/24"])
            one.set(ipv4__ip_forward=1)
    except (OSError, AssertionError) as error:
        return f"network namespaces need root: {error}"
    return ""


@contextlib.contextmanager
def _coming_back() -> Iterator[None]:
    """Whatever namespace this thread goes to, it is back at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
