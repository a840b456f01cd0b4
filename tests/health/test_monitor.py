"""Who is checked and when, what survives changes of the configuration, and what the data plane is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from lb._fastpath.engine import Engine
from lb.compile.table import Compiler
from lb.health import monitor
from lb.health.monitor import Monitor
from lb.health.probe import Probe
from lb.health.runner import MOST, Runner, most_at_once
from lb.health.talk import Question
from lb.health.target import Target, target_of
from lb.health.tls import ClientPair, TlsClient
from lb.health.verdict import Verdict
from lb.model.config import Config
from lb.model.health import HealthCheck
from lb.model.tls import Certificate, UpstreamTls
from lb.model.upstream import Endpoint, Upstream
from tests.app.fakes import PAIR
from tests.harness.certificates import Authority
from tests.harness.ports import free_port
from tests.harness.waiting import DEADLINE

FAST = HealthCheck("http", interval_ms=100, fast_interval_ms=100, rise=2, fall=3)


class Site:
    """A web server in the test's own loop. `status` is its answer; 0: none at all."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: Counter[str] = Counter()
        """Requests by host."""
        self.held = 0
        self.most_held = 0
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4_096)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            host = next(line for line in head.decode().split("\r\n") if line.startswith("Host: "))
            self.asked[host.removeprefix("Host: ")] += 1
            if self.status:
                writer.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % self.status)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.held -= 1
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def total(self) -> int:
        return self.asked.total()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    started = Site()
    await started.start()
    yield started
    await started.stop()


class World:
    """A Monitor, and what it has told the data plane."""

    def __init__(self, limit: int = 64) -> None:
        self.words: dict[tuple[str, str], bool] = {}
        self.resets: set[str] = set()
        """Upstreams with endpoints whose flows are reset."""
        self.told = 0
        self.monitor = Monitor(self._set_health, limit)

    def _set_health(self, upstream: str, key: str, healthy: bool, reset_flows: bool) -> None:
        self.words[upstream, key] = healthy
        self.resets |= {upstream} if reset_flows else set()
        self.told += 1

    def follow(self, *upstreams: Upstream, certificates: Iterable[Certificate] = ()) -> None:
        self.monitor.follow(
            Config(upstreams={one.name: one for one in upstreams}, certificates={one.name: one for one in certificates})
        )

    def state(self, upstream: str = "web") -> str:
        """Of the upstream's only endpoint."""
        (state,) = self.monitor.states(upstream).values()
        return state


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.monitor.close()
    assert made.monitor.stats().running == 0


async def until(condition: Callable[[], object], what: str) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    try:
        await asyncio.wait_for(wait(), DEADLINE)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


def web(port: int, name: str = "web", check: HealthCheck = FAST, **fields: Any) -> Upstream:
    return Upstream(name, endpoints=(Endpoint("127.0.0.1", port),), health_check=check, **fields)


async def test_an_endpoint_falls_and_rises(world: World, site: Site) -> None:
    key = f"127.0.0.1:{site.port}"
    with capture_logs() as logs:
        world.follow(web(site.port))
        assert world.state() == "untested"
        assert world.words == {}, "nothing is said before it is known"
        await until(lambda: world.words == {("web", key): True}, "the first check passes")
        site.status = 503
        before = site.total
        await until(lambda: world.words == {("web", key): False}, "the endpoint falls")
        assert site.total - before in (FAST.fall, FAST.fall + 1), "the next one may have begun"
        known = world.monitor.of("web")[key]
        assert (known.state, known.result, known.why) == ("unhealthy", "wrong-status", "status 503")
        assert known.say().endswith("s: status 503")
        site.status = 200
        before = site.total
        await until(lambda: world.words == {("web", key): True}, "the endpoint rises")
        assert site.total - before in (FAST.rise, FAST.rise + 1)
    assert world.monitor.of("web")[key].say() == ""
    lines = [(one["log_level"], one["event"], one.get("why")) for one in logs]
    assert lines == [
        ("debug", "endpoint is healthy", None),
        ("warning", "endpoint is unhealthy", "status 503"),
        ("error", "all endpoints of an upstream are unhealthy", None),
        ("info", "endpoint is healthy", None),
    ]
    assert logs[1]["endpoint"] == key
    assert logs[1]["upstreams"] == ["web"]
    assert logs[1]["check"] == "http GET / every 100ms"
    assert logs[2]["requests"] == "are sent to them all the same"
    stats = world.monitor.stats()
    assert stats.changes == {"web": {"healthy": 2, "unhealthy": 1}}
    assert stats.results["wrong-status"] >= 3
    assert stats.results["passed"] >= 3
    assert world.told == 3, "only changes are told"


@pytest.mark.parametrize(("pause_s", "told"), [(0.0, ["status 503", "status 404"]), (3_600.0, ["status 503"])])
async def test_another_reason_is_told_but_not_again_and_again(
    world: World, site: Site, monkeypatch: pytest.MonkeyPatch, pause_s: float, told: list[str]
) -> None:
    monkeypatch.setattr(monitor, "REASON_LOG_S", pause_s)
    key = f"127.0.0.1:{site.port}"

    async def fail_with(status: int) -> None:
        site.status, results = status, world.monitor.stats().results["wrong-status"]
        await until(lambda: world.monitor.stats().results["wrong-status"] >= results + 3, "it fails on and on")
        assert world.monitor.of("web")[key].why == f"status {status}"

    with capture_logs() as logs:
        site.status = 503
        world.follow(web(site.port))
        await fail_with(503)
        await fail_with(404)
    lines = [one for one in logs if one["log_level"] == "warning"]
    assert [one["why"] for one in lines] == told
    assert [one["event"] for one in lines][1:] == ["endpoint is unhealthy for another reason"] * (len(told) - 1)
    assert {one["endpoint"] for one in lines} == {key}


async def test_the_first_check_decides_alone(world: World) -> None:
    world.follow(web(free_port(), check=HealthCheck("tcp", fall=9)))
    await until(lambda: world.words, "the first check")
    assert world.state() == "unhealthy"
    assert world.monitor.stats().changes == {"web": {"healthy": 0, "unhealthy": 1}}


async def test_one_endpoint_of_several_upstreams_is_checked_once_for_all(world: World, site: Site) -> None:
    slow = msgspec.structs.replace(FAST, interval_ms=3_600_000)
    world.follow(web(site.port, "one", slow), web(site.port, "two", slow))
    await until(lambda: len(world.words) == 2, "both are told")
    assert site.total == 1
    key = f"127.0.0.1:{site.port}"
    assert world.words == {("one", key): True, ("two", key): True}
    # One that comes later knows at once.
    refusing = msgspec.structs.replace(slow, when_all_fail="refuse", open_flows="reset")
    world.follow(web(site.port, "one", slow), web(site.port, "two", slow), web(site.port, "three", refusing))
    assert world.words["three", key] is True
    other = msgspec.structs.replace(slow, host="other.test")
    world.follow(web(site.port, "one", slow), web(site.port, "four", other))
    assert world.monitor.states("four") == {key: "untested"}
    await until(lambda: ("four", key) in world.words, "another check is another matter")
    assert site.asked == {key: 1, "other.test": 1}


async def test_each_upstream_says_what_becomes_of_flows(world: World, site: Site) -> None:
    """Also where they share a check, and from the change on that says so."""
    resetting = msgspec.structs.replace(FAST, open_flows="reset", fall=1, rise=1)
    keeping = msgspec.structs.replace(resetting, open_flows="keep")
    world.follow(web(site.port, "one", resetting), web(site.port, "two", keeping))
    await until(lambda: set(world.words.values()) == {True} and len(world.words) == 2, "all are healthy")
    assert not world.resets
    site.status = 503
    await until(lambda: set(world.words.values()) == {False}, "all fail")
    assert world.resets == {"one"}
    world.resets.clear()
    told = world.told
    world.follow(web(site.port, "one", keeping), web(site.port, "two", resetting))
    site.status = 200
    await until(lambda: set(world.words.values()) == {True}, "all are healthy")
    world.resets.clear()
    site.status = 503
    await until(lambda: set(world.words.values()) == {False}, "all fail")
    assert world.resets == {"two"}
    assert world.told > told


async def test_state_survives_what_does_not_concern_it(world: World, site: Site) -> None:
    site.status = 503
    upstream = web(site.port)
    world.follow(upstream)
    await until(lambda: world.words, "the first check")
    probe = world.monitor._watched["web"][f"127.0.0.1:{site.port}"]
    since = probe.since
    heavier = msgspec.structs.replace(upstream, balance="least-connections")
    more = (*upstream.endpoints, Endpoint("127.0.0.1", free_port()))
    for config in (upstream, heavier, msgspec.structs.replace(heavier, endpoints=more), upstream):
        world.follow(config, web(site.port, "other", HealthCheck()))
        assert world.monitor._watched["web"][f"127.0.0.1:{site.port}"] is probe
        assert (probe.health.state, probe.since) == ("unhealthy", since)
        assert set(world.words.values()) == {False}


async def test_an_endpoint_that_comes_back_into_the_table_is_told_again() -> None:
    """The check of an upstream whose TLS was refused and is mended is no other one, but to the data plane its
    endpoints are new."""
    engine, port = Engine(threads=1), free_port()
    compiler, checks = Compiler(engine), Monitor(engine.set_health, 4)

    def serve(generation: int, ca: str) -> list[str]:
        config = Config(upstreams={"web": web(port, check=HealthCheck("tcp"), tls=UpstreamTls("shop.test", ca=ca))})
        engine.publish(compiler.compile(config, generation))
        checks.follow(config)
        return [one["state"] for one in engine.endpoint_stats("web")]

    assert serve(1, "no certificate") == []
    await until(lambda: checks.states("web") == {f"127.0.0.1:{port}": "unhealthy"}, "the first check")
    assert serve(2, Authority().pem) == ["unhealthy"]
    checks.close()


async def test_a_changed_check_keeps_the_old_word_until_it_has_one(world: World, site: Site) -> None:
    key = f"127.0.0.1:{site.port}"
    site.status = 503
    world.follow(web(site.port))
    await until(lambda: world.words, "the first check")
    since = world.monitor.of("web")[key].since
    site.status = 0
    world.follow(web(site.port, check=msgspec.structs.replace(FAST, host="new.test", timeout_ms=60_000)))
    assert world.monitor.states("web") == {key: "unhealthy"}
    assert world.monitor.of("web")[key].since == since
    await until(lambda: site.asked["new.test"], "the new check is made")
    assert world.state() == "unhealthy"
    site.status = 200
    world.follow(web(site.port, check=HealthCheck("http", host="newer.test", rise=5, interval_ms=3_600_000)))
    await until(lambda: world.words["web", key], "the first result of a new check decides alone")
    assert site.asked["newer.test"] == 1


async def test_an_endpoint_that_goes_is_checked_no_more(world: World, site: Site) -> None:
    site.status = 0
    key = f"127.0.0.1:{site.port}"
    world.follow(web(site.port, check=HealthCheck("http", timeout_ms=60_000)))
    await until(lambda: site.held == 1, "the check is under way")
    world.follow(Upstream("web", health_check=FAST))
    assert world.monitor.of("web") == {}
    assert world.monitor.stats().running == 0
    await until(lambda: site.held == 0, "its connection is closed")
    assert world.words == {}
    # When it comes back nothing is known of it.
    site.status = 200
    world.follow(web(site.port))
    assert world.monitor.states("web") == {key: "untested"}
    await until(lambda: world.words == {("web", key): True}, "it is checked again")
    world.follow()
    assert world.monitor.of("web") == {}


async def test_without_a_check_an_endpoint_is_healthy(world: World, site: Site) -> None:
    site.status = 503
    key = f"127.0.0.1:{site.port}"
    world.follow(web(site.port))
    await until(lambda: world.words == {("web", key): False}, "the first check")
    world.follow(web(site.port, check=HealthCheck()))
    assert world.words == {("web", key): True}
    assert world.monitor.of("web") == {}


async def test_an_upstream_that_is_renamed_keeps_what_is_known_of_its_endpoints(world: World, site: Site) -> None:
    key = f"127.0.0.1:{site.port}"
    site.status = 503
    world.follow(web(site.port, "old"))
    await until(lambda: world.words, "the first check")
    site.status = 0
    world.follow(web(site.port, "new"))
    assert world.words == {("old", key): False, ("new", key): False}
    assert world.monitor.states("new") == {key: "unhealthy"}


async def test_draining_endpoints_are_checked_only_while_they_serve(world: World, site: Site) -> None:
    ready, leaving = Endpoint("127.0.0.1", site.port), Endpoint("127.0.0.1", free_port(), draining=True)
    world.follow(Upstream("web", endpoints=(ready, leaving), health_check=FAST))
    assert set(world.monitor.states("web")) == {ready.key}
    world.follow(Upstream("web", endpoints=(leaving,), health_check=FAST))
    assert set(world.monitor.states("web")) == {leaving.key}
    await until(lambda: world.words.get(("web", leaving.key)) is False, "it is checked now")
    world.follow(Upstream("web", endpoints=(ready, leaving), health_check=FAST))
    assert world.words["web", leaving.key] is True, "what is not checked is healthy"


async def test_weight_nothing_is_checked_because_an_operator_may_give_it_some(world: World, site: Site) -> None:
    world.follow(Upstream("web", endpoints=(Endpoint("127.0.0.1", site.port, weight=0),), health_check=FAST))
    await until(lambda: world.state() == "healthy", "it is checked")


async def test_addresses_that_are_none_are_passed_over(world: World, site: Site) -> None:
    endpoints = (Endpoint("nonsense", 80), Endpoint("127.0.0.1", site.port))
    world.follow(Upstream("web", endpoints=endpoints, health_check=FAST))
    await until(lambda: world.words, "the good one is checked")
    assert set(world.monitor.states("web")) == {f"127.0.0.1:{site.port}"}


async def test_a_new_client_certificate_is_shown_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Endpoint] = []

    def follow(upstream: Upstream, endpoint: Endpoint, pair: ClientPair | None) -> Target:
        followed.append(endpoint)
        return target_of(upstream, endpoint, pair)

    monkeypatch.setattr(monitor, "target_of", follow)
    tls = UpstreamTls("shop.test", verify=False, certificate="me")
    upstream = Upstream("web", endpoints=(Endpoint("127.0.0.1", free_port()),), health_check=FAST, tls=tls)
    world.follow(upstream, certificates=[Certificate("me", PAIR.chain, PAIR.key)])
    before = next(iter(world.monitor._probes))
    world.follow(upstream, certificates=[Certificate("me", PAIR.chain, PAIR.key)])
    assert next(iter(world.monitor._probes)) == before
    world.follow(upstream, certificates=[Certificate("me", PAIR.chain + "\n", PAIR.key)])
    assert next(iter(world.monitor._probes)) != before
    assert PAIR.key not in repr(world.monitor._probes)
    world.follow(upstream)
    (target,) = world.monitor._probes
    assert target.tls is not None
    assert target.tls.pair is None, "one that is gone is shown no more"
    told = len(followed)
    world.follow(upstream)
    assert len(followed) == told, "and an upstream that is followed already is passed over"


async def test_what_lb_itself_cannot_do_says_nothing_of_the_endpoint(world: World, site: Site) -> None:
    tls = UpstreamTls("shop.test", ca="no certificate")
    with capture_logs() as logs:
        world.follow(web(site.port, tls=tls))
        await until(lambda: world.monitor.stats().results["skipped"] >= 2, "checks are skipped, and tried again")
    assert world.state() == "untested"
    assert world.words == {}
    assert [(one["log_level"], one["event"]) for one in logs] == [("error", "health checks are skipped")]
    (known,) = world.monitor.of("web").values()
    assert known.say().startswith("not checked yet: the TLS settings cannot be used")


async def test_tls_that_cannot_be_made_gives_its_place_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(client: TlsClient) -> None:
        raise TypeError("unforeseen")

    monkeypatch.setattr(TlsClient, "open", fail)
    world = World(limit=1)
    world.follow(web(site.port, "bad", tls=UpstreamTls("a.test")), web(site.port, "good"))
    await until(lambda: world.monitor.stats().results["skipped"] >= 2, "it is tried again")
    await until(
        lambda: world.monitor.states("good") == {f"127.0.0.1:{site.port}": "healthy"}, "the other one is checked"
    )
    world.monitor.close()
    assert world.monitor.stats().running == 0


async def test_a_check_that_cannot_be_made_gives_its_place_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place for two checks, and one of them fails before it has begun."""
    open_question = Target.question

    def question(target: Target) -> Question | None:
        if target.check.host == "bad.test":
            raise RuntimeError("unforeseen")
        return open_question(target)

    monkeypatch.setattr(Target, "question", question)
    world = World(limit=1)
    with capture_logs() as logs:
        bad = msgspec.structs.replace(FAST, host="bad.test")
        world.follow(web(site.port, "bad", bad), web(site.port, "good"))
        await until(lambda: world.monitor.stats().results["skipped"] >= 2, "it is tried again")
        await until(lambda: world.words == {("good", f"127.0.0.1:{site.port}"): True}, "the other one is checked")
    world.monitor.close()
    assert world.monitor.stats().running == 0
    (line,) = (one for one in logs if one["log_level"] == "error")
    assert line["why"] == "the check cannot be made: RuntimeError: unforeseen"


async def test_all_fail_is_said_once_and_with_what_follows(world: World) -> None:
    refusing = msgspec.structs.replace(FAST, when_all_fail="refuse")
    ports = [free_port() for _ in range(5)]
    endpoints = tuple(Endpoint("127.0.0.1", port) for port in ports)
    with capture_logs() as logs:
        world.follow(Upstream("web", endpoints=endpoints, health_check=refusing))
        await until(lambda: len(world.words) == 5, "all are checked")
    (line,) = (one for one in logs if one["log_level"] == "error")
    assert (line["upstream"], line["requests"]) == ("web", "are answered 503")


async def test_no_more_than_the_limit_are_under_way(site: Site) -> None:
    world = World(limit=3)
    site.status = 0
    checks = [HealthCheck("http", host=f"h{index}.test", timeout_ms=100, fast_interval_ms=100) for index in range(12)]
    world.follow(*(web(site.port, f"u{index}", check) for index, check in enumerate(checks)))
    await until(lambda: len(world.words) == 12, "all have had their turn")
    assert site.most_held <= 3
    assert world.monitor.stats().running <= 3
    world.monitor.close()
    assert world.monitor.stats().running == 0
    await until(lambda: site.held == 0, "nothing stays open")


async def test_thousands_of_endpoints(site: Site) -> None:
    """Each is checked and flips, and the loop goes on turning meanwhile."""
    world = World(limit=256)
    count, turns = 1_500, 0
    check = HealthCheck("http", interval_ms=60_000, fast_interval_ms=500, down_interval_ms=500, fall=1, rise=1)
    upstreams = [
        web(site.port, f"u{index}", msgspec.structs.replace(check, host=f"h{index}.test")) for index in range(count)
    ]
    site.status = 503
    world.follow(*upstreams)
    while len(world.words) < count:
        turns += 1
        await asyncio.sleep(0)
    # At most 16 begin in a turn; a loop that is kept from turning would need far fewer turns.
    assert turns >= count // 16
    assert not any(world.words.values())
    site.status = 200
    await until(lambda: all(world.words.values()), "all rise")
    assert site.most_held <= 256
    assert len(site.asked) == count
    world.monitor.close()


def pauses(check: HealthCheck, verdicts: Iterable[Verdict]) -> list[float]:
    """From the start of each check to the next one, in parts of a second, in a world without time."""
    probe = Probe(
        target_of(web(1, check=check), Endpoint("127.0.0.1", 1), None), Runner(0), lambda *_: None, "untested"
    )
    found = []
    for verdict in verdicts:
        if verdict.counts:
            probe.health.take(passed=verdict.passed, rise=check.rise, fall=check.fall)
        found.append(probe._pause_s(verdict))
    probe.close()
    return found


async def test_pauses_are_spread() -> None:
    passed, failed = Verdict("passed"), Verdict("refused")
    check = HealthCheck("tcp", interval_ms=10_000, fast_interval_ms=1_000, down_interval_ms=30_000)
    firsts = [pauses(check, [passed])[0] for _ in range(400)]
    assert min(firsts) < 1 < 9 < max(firsts) < 10, "what begins together goes apart at once"
    laters = [pauses(check, [passed, passed])[1] for _ in range(400)]
    assert 9 <= min(laters) < 9.3 < 10.7 < max(laters) <= 11
    run = pauses(check, [passed, passed, failed, failed, failed, failed, passed, passed, passed])
    rounded = [round(one / 10) if one > 5 else round(one) for one in run[1:]]
    assert rounded == [1, 1, 1, 3, 3, 1, 1, 1]
    assert pauses(check, [Verdict("skipped")])[0] < 1.2


async def test_the_fast_pace_is_never_slower_than_the_usual_one() -> None:
    check = HealthCheck("tcp", interval_ms=200, fast_interval_ms=60_000)
    assert max(pauses(check, [Verdict("passed"), Verdict("refused")])) < 1


@pytest.mark.parametrize(("descriptors", "most"), [(1 << 30, MOST), (1_024, 64), (20, 1), (3, 1)])
def test_the_limit_leaves_descriptors_to_requests(descriptors: int, most: int) -> None:
    assert most_at_once(descriptors) == most
