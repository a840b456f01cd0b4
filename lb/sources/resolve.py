"""Resolves the external names of upstreams, and keeps them fresh.

Owns when to ask again: when the answer's TTL ends (at least 5 s, at most 5 min), and with growing pauses after a
failure. The last good addresses outlive a failure. What is found goes into the store as Resolution objects, like
everything else that translation sees. It knows nothing of upstreams.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from lb.objects.meta import Key, ObjectMeta
from lb.objects.view import Resolution, Stored
from lb.problems import Origin
from lb.sources.store import Store

SHORTEST_TTL_S = 5.0
LONGEST_TTL_S = 300.0
HOSTS_TTL_S = 60.0
"""The hosts file has no TTLs; it is read again this often."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
LIFETIME_S = 10.0
"""How long one look-up may try all servers."""
_PARALLEL = 32
"""Look-ups under way at the same time."""

HOSTS_FILE = Path("/etc/hosts")


class Answer(NamedTuple):
    """What a name resolved to."""

    addresses: tuple[str, ...]
    """Sorted: servers rotate them, which is no change."""
    ttl_s: float | None
    """None: for good."""


class ResolveError(Exception):
    """A name has no addresses. The text says why."""


class Resolver:
    """Follows a set of names. `changed` is called in the event loop after a Resolution in the store has changed."""

    def __init__(
        self,
        store: Store,
        changed: Callable[[], None],
        dns_resolver: dns.asyncresolver.Resolver | None = None,
        hosts_file: Path = HOSTS_FILE,
    ) -> None:
        """`dns_resolver` is the system's (/etc/resolv.conf) when none is given."""
        self._store = store
        self._changed = changed
        self._dns_resolver = dns_resolver
        self._hosts_file = hosts_file
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._parallel = asyncio.Semaphore(_PARALLEL)

    def follow(self, names: Iterable[str]) -> None:
        """Follow exactly these names from now on. What is known of a name that stays is kept."""
        wanted = set(names)
        for name in self._tasks.keys() - wanted:
            self._tasks.pop(name).cancel()
            self._store.drop(Key("Resolution", "", name))
        for name in sorted(wanted - self._tasks.keys()):
            self._tasks[name] = asyncio.create_task(self._follow(name), name=f"resolve {name}")

    async def close(self) -> None:
        """Stop following; the addresses stay in the store."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str) -> None:
        addresses: tuple[str, ...] = ()
        failures = 0
        while True:
            try:
                async with self._parallel:
                    answer = await self.resolve(name)
            except ResolveError as error:
                self._put(name, addresses, str(error))
                await asyncio.sleep(min(FIRST_RETRY_S * 2**failures, LONGEST_RETRY_S))
                failures = min(failures + 1, 16)
                continue
            failures = 0
            addresses = answer.addresses
            self._put(name, addresses, "")
            if answer.ttl_s is None:
                return
            await asyncio.sleep(answer.ttl_s)

    def _put(self, name: str, addresses: tuple[str, ...], error: str) -> None:
        resolution = Resolution(ObjectMeta(name=name), addresses, error)
        known = self._store.get("Resolution", "", name)
        if known is None or known.object != resolution:
            self._store.put(Stored(resolution, Origin(kind="Resolution", name=name)))
            self._changed()

    async def resolve(self, name: str) -> Answer:
        """All addresses of a name: a literal, a line of the hosts file, or what DNS says. Raises ResolveError."""
        literal = _literal(name)
        if literal is not None:
            return Answer((literal,), None)
        plain = name.rstrip(".").lower()
        addresses = await asyncio.to_thread(read_hosts, self._hosts_file, plain)
        if not addresses and (plain == "localhost" or plain.endswith(".localhost")):
            addresses = ("127.0.0.1", "::1")  # never asked of DNS: RFC 6761 6.3
        if addresses:
            return Answer(addresses, HOSTS_TTL_S)
        return await self._ask(name)

    async def _ask(self, name: str) -> Answer:
        try:
            resolver = self._dns_resolver
            if resolver is None:  # made anew each time: /etc/resolv.conf may change
                resolver = await asyncio.to_thread(dns.asyncresolver.Resolver)
        except dns.exception.DNSException as error:  # no usable /etc/resolv.conf
            raise ResolveError(_say(name, error)) from error
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        answers = await asyncio.gather(*(self._ask_one(resolver, name, kind) for kind in kinds), return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, Answer)]
        addresses = tuple(sorted({address for answer in found for address in answer.addresses}))
        if addresses:
            # The other family's failure is no reason to wait, but to ask again soon.
            complete = len(found) == len(answers)
            ttl_s = min(answer.ttl_s or LONGEST_TTL_S for answer in found if answer.addresses)
            return Answer(addresses, ttl_s if complete else SHORTEST_TTL_S)
        for answer in answers:
            if isinstance(answer, ResolveError):
                raise answer
            if isinstance(answer, BaseException):
                raise answer
        raise ResolveError(f"{name} has no addresses")

    async def _ask_one(self, resolver: dns.asyncresolver.Resolver, name: str, kind: dns.rdatatype.RdataType) -> Answer:
        try:
            answer = await resolver.resolve(name, kind, search=True, raise_on_no_answer=False, lifetime=LIFETIME_S)
        except (dns.exception.DNSException, OSError) as error:
            raise ResolveError(_say(name, error)) from error
        addresses = tuple(record.address for record in answer) if answer.rrset is not None else ()
        # The least TTL of the records on the way (CNAMEs too), or of the denial.
        ttl_s = float(answer.chaining_result.minimum_ttl)
        return Answer(addresses, min(max(ttl_s, SHORTEST_TTL_S), LONGEST_TTL_S))


def _literal(name: str) -> str | None:
    """An IP address as it is compared elsewhere; brackets around IPv6 are taken off."""
    try:
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def read_hosts(file: Path, name: str) -> tuple[str, ...]:
    """The addresses of a name in a hosts file (hosts(5)), sorted; none when the file is missing."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return ()
    found = set()
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1 and name in (word.lower().rstrip(".") for word in words[1:]):
            literal = _literal(words[0])
            if literal is not None:
                found.add(literal)
    return tuple(sorted(found))


def _say(name: str, error: Exception) -> str:
    """Why, in words: dnspython's own texts repeat the whole question."""
    if isinstance(error, dns.resolver.NXDOMAIN):
        return f"{name} does not exist"
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"no name server answered for {name}"
    if isinstance(error, dns.resolver.NoNameservers):
        return f"all name servers refused or failed for {name}"
    return f"{name}: {error or type(error).__name__}"
