"""External names: asked of a real name server, kept fresh by TTL, kept alive through failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.rcode
import pytest

from lb.objects.view import Resolution
from lb.sources import resolve
from lb.sources.resolve import Answer, ResolveError, Resolver
from lb.sources.store import Store
from tests.sources.name_server import NameServer, name_server

DEADLINE_S = 20
NO_HOSTS = Path("/nonexistent/hosts")


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with name_server() as found:
        found.records["db.example.com.", "A"] = (60, ["10.0.0.2", "10.0.0.1"])
        found.records["db.example.com.", "AAAA"] = (40, ["fd00::1"])
        yield found


async def ask(server: NameServer, name: str, *search: str, hosts: Path = NO_HOSTS) -> Answer:
    return await Resolver(Store(), lambda: None, server.resolver(*search), hosts).resolve(name)


async def test_both_families_sorted_with_the_shorter_ttl(server: NameServer) -> None:
    assert await ask(server, "db.example.com") == Answer(("10.0.0.1", "10.0.0.2", "fd00::1"), 40.0)
    assert await ask(server, "DB.example.com.") == Answer(("10.0.0.1", "10.0.0.2", "fd00::1"), 40.0)


@pytest.mark.parametrize(("ttl", "pause_s"), [(0, 5.0), (7, 7.0), (86_400, 300.0)])
async def test_ttls_have_bounds(server: NameServer, ttl: int, pause_s: float) -> None:
    server.records["a.example.com.", "A"] = (ttl, ["10.0.0.1"])
    assert await ask(server, "a.example.com") == Answer(("10.0.0.1",), pause_s)


async def test_aliases_count_for_the_ttl(server: NameServer) -> None:
    server.records["alias.example.com.", "CNAME"] = (9, ["db.example.com."])
    assert (await ask(server, "alias.example.com")).ttl_s == 9.0


async def test_search_domains(server: NameServer) -> None:
    assert (await ask(server, "db", "nowhere.example.com", "example.com")).addresses[0] == "10.0.0.1"
    assert server.asked["db.nowhere.example.com.", "A"] == 1
    with pytest.raises(ResolveError, match="db does not exist"):
        await ask(server, "db")


async def test_literals_need_no_server(server: NameServer) -> None:
    assert await ask(server, "10.1.2.3") == Answer(("10.1.2.3",), None)
    assert await ask(server, "[FD00::0001]") == Answer(("fd00::1",), None)
    assert not server.asked


async def test_the_hosts_file_and_localhost(server: NameServer, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# mine\n10.9.9.9 Printer printer.lan # office\nfd00::9 printer\nnonsense printer\n10.9.9.8\n")
    assert (await ask(server, "printer", hosts=hosts)).addresses == ("10.9.9.9", "fd00::9")
    assert (await ask(server, "PRINTER.lan.", hosts=hosts)).addresses == ("10.9.9.9",)
    assert (await ask(server, "localhost", hosts=hosts)).addresses == ("127.0.0.1", "::1")
    assert (await ask(server, "app.localhost")).addresses == ("127.0.0.1", "::1")
    assert (await ask(server, "printer", hosts=hosts)).ttl_s == resolve.HOSTS_TTL_S
    assert not server.asked


async def test_one_family_failing_is_asked_again_soon(server: NameServer) -> None:
    server.failures["AAAA"] = dns.rcode.SERVFAIL
    assert await ask(server, "db.example.com") == Answer(("10.0.0.1", "10.0.0.2"), resolve.SHORTEST_TTL_S)
    del server.records["db.example.com.", "AAAA"]
    server.failures.clear()
    assert await ask(server, "db.example.com") == Answer(("10.0.0.1", "10.0.0.2"), 60.0)


async def test_why_there_are_no_addresses(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "LIFETIME_S", 0.2)
    server.records["text.example.com.", "TXT"] = (60, ["hello"])
    for name, why in (
        ("none.example.com", "none.example.com does not exist"),
        ("text.example.com", "text.example.com has no addresses"),
        ("x" * 70 + ".example.com", "label"),
        ("a..example.com", "empty"),
    ):
        with pytest.raises(ResolveError, match=why):
            await ask(server, name)
    server.failures["A"] = server.failures["AAAA"] = dns.rcode.REFUSED
    with pytest.raises(ResolveError, match="all name servers refused or failed for db"):
        await ask(server, "db.example.com")
    server.is_silent = True
    with pytest.raises(ResolveError, match="no name server answered for db"):
        await ask(server, "db.example.com")


async def test_the_systems_resolver_is_used_when_none_is_given(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dnspython reads /etc/resolv.conf; here from another place, with the port of our server."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch example.com\n")
    made = dns.asyncresolver.Resolver

    def from_file() -> dns.asyncresolver.Resolver:
        found = made(filename=str(conf))
        found.port = server.port
        return found

    monkeypatch.setattr("dns.asyncresolver.Resolver", from_file)
    resolver = Resolver(Store(), lambda: None, hosts_file=NO_HOSTS)
    assert (await resolver.resolve("db")).addresses == ("10.0.0.1", "10.0.0.2", "fd00::1")
    conf.write_text("# nothing\n")
    monkeypatch.setattr("dns.asyncresolver.Resolver", lambda: made(filename=str(tmp_path / "none")))
    with pytest.raises(ResolveError, match=r"resolv\.conf|cannot open|configuration"):
        await resolver.resolve("db")


class Following:
    """A resolver that follows names into a store."""

    def __init__(self, server: NameServer) -> None:
        self.store = Store()
        self.store.take_changes()
        self.changes = 0
        self.resolver = Resolver(self.store, self._note, server.resolver(), NO_HOSTS)

    def _note(self) -> None:
        self.changes += 1

    def get(self, name: str = "db.example.com") -> Resolution | None:
        stored = self.store.get("Resolution", "", name)
        assert stored is None or isinstance(stored.object, Resolution)
        return stored.object if stored else None  # type: ignore[return-value]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_addresses(self, *addresses: str, error: str = "") -> None:
        def is_so() -> bool:
            found = self.get()
            return (
                found is not None
                and found.addresses == addresses
                and error in found.error
                and bool(error) == bool(found.error)
            )

        await self.until(is_so)


@asynccontextmanager
async def following(server: NameServer, *names: str) -> AsyncIterator[Following]:
    found = Following(server)
    found.resolver.follow(names)
    try:
        yield found
    finally:
        await found.resolver.close()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "SHORTEST_TTL_S", 0.02)
    monkeypatch.setattr(resolve, "LONGEST_TTL_S", 0.02)
    monkeypatch.setattr(resolve, "FIRST_RETRY_S", 0.005)
    monkeypatch.setattr(resolve, "LONGEST_RETRY_S", 0.02)
    monkeypatch.setattr(resolve, "LIFETIME_S", 0.2)


@pytest.mark.usefixtures("_quick")
async def test_addresses_follow_the_server(server: NameServer) -> None:
    async with following(server, "db.example.com") as found:
        await found.until_addresses("10.0.0.1", "10.0.0.2", "fd00::1")
        assert found.changes == 1
        asked = server.asked["db.example.com.", "A"]
        server.records["db.example.com.", "A"] = (60, ["10.0.0.1", "10.0.0.2"])  # rotated: no change
        await found.until(lambda: server.asked["db.example.com.", "A"] > asked + 2)
        assert found.changes == 1
        server.records["db.example.com.", "A"] = (60, ["10.0.0.7"])
        await found.until_addresses("10.0.0.7", "fd00::1")
        assert found.changes == 2


@pytest.mark.usefixtures("_quick")
async def test_the_last_good_addresses_outlive_failures(server: NameServer) -> None:
    del server.records["db.example.com.", "AAAA"]
    async with following(server, "db.example.com") as found:
        await found.until_addresses("10.0.0.1", "10.0.0.2")
        server.failures["A"] = server.failures["AAAA"] = dns.rcode.SERVFAIL
        await found.until_addresses("10.0.0.1", "10.0.0.2", error="refused or failed")
        server.failures.clear()
        del server.records["db.example.com.", "A"]
        await found.until_addresses("10.0.0.1", "10.0.0.2", error="does not exist")
        server.records["db.example.com.", "A"] = (60, ["10.0.0.3"])
        await found.until_addresses("10.0.0.3")


@pytest.mark.usefixtures("_quick")
async def test_a_name_that_does_not_exist_yet(server: NameServer) -> None:
    async with following(server, "new.example.com") as found:
        await found.until(lambda: found.get("new.example.com"))
        resolution = found.get("new.example.com")
        assert resolution is not None
        assert (resolution.addresses, resolution.error) == ((), "new.example.com does not exist")
        server.records["new.example.com.", "A"] = (60, ["10.0.0.9"])
        await found.until(lambda: (found.get("new.example.com") or resolution).addresses == ("10.0.0.9",))


async def test_names_come_and_go(server: NameServer) -> None:
    server.records["a.example.com.", "A"] = (60, ["10.0.0.4"])
    async with following(server, "db.example.com", "10.0.0.8") as found:
        await found.until(lambda: found.get() and found.get("10.0.0.8"))
        found.resolver.follow(["db.example.com", "a.example.com"])
        await found.until(lambda: found.get("a.example.com"))
        assert found.get("10.0.0.8") is None
        assert server.asked["db.example.com.", "A"] == 1, "what stays is not asked again"
        await found.resolver.close()
        assert found.get() is not None


async def test_failures_are_retried_with_growing_pauses(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    resolver = Resolver(Store(), lambda: None, server.resolver(), NO_HOSTS)
    monkeypatch.setattr("lb.sources.resolve.asyncio.sleep", note)
    resolver.follow(["none.example.com"])
    async with asyncio.timeout(DEADLINE_S):
        while len(pauses) < 8:
            await sleep(0.005)
    await resolver.close()
    assert [pause for pause in pauses if pause >= 1][:8] == [1, 2, 4, 8, 16, 32, 60, 60]
