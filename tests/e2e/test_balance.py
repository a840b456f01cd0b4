"""Who gets the request: shares, least connections, affinity, drained and weightless endpoints."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.model.balance import Share, choose_by_maglev, hash_bytes, hash_client, maglev_table
from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import RawClient, get
from tests.harness.native import Native, forward
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer
from tests.harness.udp import UdpServer, ask, udp_client
from tests.harness.waiting import DEADLINE, wait_until

Named = dict[str, RawBackend]


class Hold:
    """Answers with a name; holds requests for `/hold` until it is released."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.release = threading.Event()

    def __call__(self, connection: BackendConnection) -> None:
        while (request := connection.read()) is not None:
            if request.target == b"/hold":
                assert self.release.wait(DEADLINE)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.name), self.name))


@pytest.fixture(scope="module")
def backends() -> Iterator[Named]:
    named = {name: RawBackend(Hold(name)) for name in "abc"}
    yield named
    for backend in named.values():
        backend.close()


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backends: Named
) -> Iterator[Serving]:
    native = Native()
    a, b, c = backends.values()
    native.serve("even.test", a, b, c)
    native.serve(
        "weighted.test",
        {"address": a.key, "weight": 5}, {"address": b.key, "weight": 1}, {"address": c.key, "weight": 1},
    )  # fmt: skip
    native.serve("zero.test", a, {"address": b.key, "weight": 0})
    native.serve("all-zero.test", {"address": a.key, "weight": 0})
    native.serve("draining.test", a, {"address": b.key, "draining": True})
    native.serve("all-draining.test", {"address": b.key, "draining": True})
    native.serve("least.test", a, b, c, balance="least-connections")
    native.serve("least-weighted.test", {"address": a.key, "weight": 2}, b, balance="least-connections")
    native.serve("sticky.test", a, b, c, affinity="client-ip")
    native.serve("two.test", {"address": a.key, "weight": 3}, b, balance="random-two")
    native.serve("hashed.test", a, {"address": b.key, "weight": 2}, c, balance="maglev")
    native.upstream("only-a", [a])
    native.upstream("only-b", [b])
    native.host("split.test", forward("split", ("only-a", 3), ("only-b", 1), ("even.test", 0)))
    with serving(tmp_path_factory.mktemp("balance"), native, None, threads=request.param) as started:
        yield started
        for backend in backends.values():
            backend.assert_clean()


def names(site: Serving, host: str, count: int) -> list[str]:
    with site.connect() as client:
        return [client.ask(get(host)).body.decode() for _ in range(count)]


def test_round_robin_is_even(site: Serving) -> None:
    assert Counter(names(site, "even.test", 30)) == {"a": 10, "b": 10, "c": 10}


def test_weighted_round_robin_is_exact_and_smooth(site: Serving) -> None:
    seen = names(site, "weighted.test", 70)
    for start in range(0, 70, 7):
        assert Counter(seen[start : start + 7]) == {"a": 5, "b": 1, "c": 1}
    # Smooth: the light ones never follow each other (nginx's algorithm gives a a b a c a a).
    pairs = set(itertools.pairwise(seen))
    assert not pairs & {("b", "c"), ("c", "b")}


def test_an_endpoint_without_weight_gets_nothing(site: Serving) -> None:
    assert set(names(site, "zero.test", 20)) == {"a"}
    with site.connect() as client:
        assert client.ask(get("all-zero.test")).status == 503


def test_a_draining_endpoint_is_the_last_resort(site: Serving) -> None:
    assert set(names(site, "draining.test", 20)) == {"a"}
    assert set(names(site, "all-draining.test", 5)) == {"b"}


def test_traffic_is_split_by_weight(site: Serving) -> None:
    seen = Counter(names(site, "split.test", 400))
    assert set(seen) == {"a", "b"}
    # Exact where it is done in turns; chance must stay within five standard deviations of 300.
    assert 250 < seen["a"] < 350


def test_least_connections_spreads_what_is_under_way_exactly(site: Serving, backends: Named) -> None:
    with held(site, backends, "least.test", 12) as active:
        assert active == {"a": 4, "b": 4, "c": 4}


def test_least_connections_obeys_weights(site: Serving, backends: Named) -> None:
    with held(site, backends, "least-weighted.test", 12) as active:
        assert active == {"a": 8, "b": 4}


def test_a_busy_endpoint_is_avoided(site: Serving, backends: Named) -> None:
    with held(site, backends, "least.test", 2) as active:
        busy = set(active)
        assert len(busy) == 2
        assert set(names(site, "least.test", 10)) == {"a", "b", "c"} - busy


@contextlib.contextmanager
def held(site: Serving, backends: Named, host: str, count: int) -> Iterator[dict[str, int]]:
    """`count` requests under way at once, each on a connection of its own; gives their number by backend."""
    holds = [backend.script for backend in backends.values() if isinstance(backend.script, Hold)]
    for backend in backends.values():
        backend.take()
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(count):
            client = stack.enter_context(site.connect())
            client.send(get(host, "/hold"))
            clients.append(client)
            wait_until(lambda wanted=number + 1: arrived(backends).total() == wanted, "the request arrives")
        try:
            yield dict(arrived(backends))
        finally:
            for hold in holds:
                hold.release.set()
            for client in clients:
                assert client.response().status == 200
            for hold in holds:
                hold.release.clear()


def arrived(backends: Named) -> Counter[str]:
    """Requests for `/hold` by backend."""
    seen: Counter[str] = Counter()
    for name, backend in backends.items():
        with backend.lock:
            seen[name] += sum(received.request.target == b"/hold" for received in backend.received)
    return +seen


def test_a_client_stays_on_its_endpoint(site: Serving) -> None:
    chosen = {}
    for number in range(2, 32):
        source = f"127.0.0.{number}"
        seen = set()
        for _ in range(3):
            with site.connect(source=source) as client:
                seen |= {client.ask(get("sticky.test")).body for _ in range(2)}
        assert len(seen) == 1, f"{source} was moved"
        chosen[source] = seen.pop()
    assert set(chosen.values()) == {b"a", b"b", b"c"}


def test_a_client_whose_endpoint_goes_moves_and_the_others_stay(tmp_path: Path, backends: Named) -> None:
    native = Native()
    native.serve("sticky.test", *backends.values(), affinity="client-ip")
    sources = [f"127.0.0.{number}" for number in range(2, 32)]
    with serving(tmp_path, native) as site:

        def choices() -> dict[str, bytes]:
            chosen = {}
            for source in sources:
                with site.connect(source=source) as client:
                    chosen[source] = client.ask(get("sticky.test")).body
            return chosen

        before = choices()
        native.upstream("sticky.test", [backends["a"], backends["b"]], affinity="client-ip")
        site.apply()
        after = choices()
        assert set(after.values()) == {b"a", b"b"}
        # kube-proxy keeps clients whose endpoint stays; so must we.
        moved = [source for source in sources if before[source] != b"c" and before[source] != after[source]]
        assert moved == []


def test_clients_stay_while_endpoints_come_and_go(tmp_path: Path, backends: Named) -> None:
    a, b, c = backends.values()
    native = Native()
    native.serve("sticky.test", a, b, affinity="client-ip")
    native.serve("brief.test", a, b, affinity="client-ip", affinity_timeout="64ms")
    sources = [f"127.0.0.{number}" for number in range(2, 42)]
    with serving(tmp_path, native, threads=2) as site:

        def choices(host: str) -> list[bytes]:
            chosen = []
            for source in sources:
                with site.connect(source=source) as client:
                    chosen.append(client.ask(get(host)).body)
            return chosen

        before, brief = choices("sticky.test"), choices("brief.test")
        assert before == brief  # the first choice is the address's
        stop = threading.Event()
        moved: list[str] = []
        threads = [
            threading.Thread(target=_keep_asking, args=(site, source, was, stop, moved))
            for source, was in list(zip(sources, before, strict=True))[:8]
        ]
        for thread in threads:
            thread.start()
        for members in ([a, b, c], [a, b], [c, b, a], [b, {"address": a.key, "weight": 3}, c]):
            for host, options in (("sticky.test", {}), ("brief.test", {"affinity_timeout": "64ms"})):
                native.upstream(host, members, affinity="client-ip", **options)
            site.apply()
            assert choices("sticky.test") == before
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert moved == []
        # Those that are forgotten soon use what has come.
        wait_until(lambda: b"c" in choices("brief.test"), "a client that was silent is sent to a new endpoint")


def _keep_asking(site: Serving, source: str, wanted: bytes, stop: threading.Event, moved: list[str]) -> None:
    with site.connect(source=source) as client:
        while not stop.is_set():
            if client.ask(get("sticky.test")).body != wanted:
                moved.append(source)


def test_a_newcomer_starts_slowly(tmp_path: Path, backends: Named) -> None:
    a, b, c = backends.values()
    native = Native()
    native.serve("slow.test", a, b, slow_start="10h")
    with serving(tmp_path, native, threads=2) as site:
        assert Counter(names(site, "slow.test", 20)) == {"a": 10, "b": 10}
        native.upstream("slow.test", [a, b, c], slow_start="10h")
        site.apply()
        seen = Counter(names(site, "slow.test", 630))
        assert 5 <= seen["c"] <= 70  # 0.1 of 2.1 is 30
        assert abs(seen["a"] - seen["b"]) <= 60
        endpoints = {one["endpoint"]: one for one in site.lb.get("/v1/upstreams/slow.test")["endpoints"]}
        assert [round(endpoints[one.key]["slow_share"], 1) for one in (a, b, c)] == [1, 1, 0.1]


def test_random_two_obeys_weights(site: Serving) -> None:
    seen = Counter(names(site, "two.test", 400))
    # Chance stays within five standard deviations of 300.
    assert 256 < seen["a"] < 344


def hashed_to(shares: list[Share], h: int) -> str:
    index = choose_by_maglev(shares, maglev_table(shares), h, lambda _: True)
    assert index is not None
    return shares[index].key


def test_maglev_chooses_for_requests_by_the_clients_address(site: Serving, backends: Named) -> None:
    a, b, c = backends.values()
    shares = [Share(a.key, 1), Share(b.key, 2), Share(c.key, 1)]
    seen = set()
    for number in range(2, 32):
        source = f"127.0.0.{number}"
        wanted = backends_name(backends, hashed_to(shares, hash_client(source)))
        with site.connect(source=source) as client:
            assert {client.ask(get("hashed.test")).body.decode() for _ in range(2)} == {wanted}
        seen.add(wanted)
    assert seen == set(backends)


def backends_name(backends: Named, key: str) -> str:
    return next(name for name, backend in backends.items() if backend.key == key)


@pytest.mark.parametrize("hash_key", ["source", "source-port", "flow"])
def test_maglev_chooses_for_flows_by_their_key(tmp_path: Path, hash_key: str) -> None:
    with contextlib.ExitStack() as stack:
        servers: dict[str, TcpServer] = {}
        for _ in range(4):
            server = TcpServer(lambda one: one.sendall(f"127.0.0.1:{one.getsockname()[1]}".encode()))
            servers[stack.enter_context(server).key] = server
        native = Native()
        keys = list(servers)
        native.upstream("hashed", keys[:3], balance="maglev", hash_key=hash_key)
        native.carry("first", free_port(), "hashed")
        native.carry("second", free_port(), "hashed")
        site = stack.enter_context(serving(tmp_path, native))

        def wanted(client: tuple[str, int], server: tuple[str, int], members: list[str]) -> str:
            parts = [_packed(client[0]), client[1].to_bytes(2), _packed(server[0]), server[1].to_bytes(2), b"\x06"]
            size = {"source": 1, "source-port": 2, "flow": 5}[hash_key]
            return hashed_to([Share(key, 1) for key in members], hash_bytes(b"".join(parts[:size])))

        def check(members: list[str]) -> None:
            seen = set()
            for number in range(20):
                for listener in ("first", "second"):
                    source = f"127.0.0.{2 + number % 7}"
                    with site.connect(listener, source=source) as client:
                        answer = client.socket.recv(100).decode()
                        assert answer == wanted(client.socket.getsockname(), client.socket.getpeername(), members)
                        seen.add(answer)
            assert len(seen) >= 2

        check(keys[:3])
        native.upstream("hashed", keys, balance="maglev", hash_key=hash_key)
        site.apply()
        check(keys)


def test_a_flow_behind_a_proxy_is_the_one_that_its_header_tells(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = [TcpServer(lambda one: one.sendall(f"127.0.0.1:{one.getsockname()[1]}".encode())) for _ in range(3)]
        keys = [stack.enter_context(server).key for server in servers]
        native = Native()
        native.upstream("hashed", keys, balance="maglev", hash_key="flow")
        native.carry("behind", free_port(), "hashed", proxy_protocol=["127.0.0.0/8"])
        site = stack.enter_context(serving(tmp_path, native))
        shares = [Share(key, 1) for key in keys]
        for port in range(1_000, 1_020):
            flow = _packed("10.1.1.1") + port.to_bytes(2) + _packed("10.2.2.2") + (443).to_bytes(2) + b"\x06"
            with site.connect("behind") as client:
                client.send(b"PROXY TCP4 10.1.1.1 10.2.2.2 %d 443\r\n" % port)
                assert client.socket.recv(100).decode() == hashed_to(shares, hash_bytes(flow))


def test_a_session_that_was_evicted_comes_back_to_its_endpoint(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        keys = [stack.enter_context(UdpServer(_answers(name))).key for name in (b"a", b"b", b"c", b"d")]
        native = Native()
        native.upstream("quic", keys[:3], balance="maglev", hash_key="source-port")
        native.carry_datagrams("quic", free_port(), "quic", max_sessions=2)
        site = stack.enter_context(serving(tmp_path, native, threads=2))
        address = site.address("quic")
        clients = [stack.enter_context(udp_client(address)) for _ in range(24)]

        def wanted(client: socket.socket, members: list[str]) -> bytes:
            h = hash_bytes(_packed("127.0.0.1") + client.getsockname()[1].to_bytes(2))
            return b"abcd"[(index := keys.index(hashed_to([Share(key, 1) for key in members], h))) : index + 1]

        def check(members: list[str]) -> None:
            answers = [[ask(client, b"who?") for client in clients] for _ in range(3)]
            assert answers == [[wanted(client, members) for client in clients]] * 3

        check(keys[:3])
        native.upstream("quic", keys, balance="maglev", hash_key="source-port")
        site.apply()
        check(keys)
        # Each question but a few was the first of a session: there is room for two.
        assert site.lb.metric("lb_exchange_end_total", reason="session-evicted") > 100


def _answers(name: bytes) -> Callable[[bytes], tuple[bytes, ...]]:
    return lambda _: (name,)


def _packed(address: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes(map(int, address.split(".")))


def test_who_waits_for_its_own_endpoint_holds_up_nobody(tmp_path: Path) -> None:
    """Clients that belong to different endpoints stand in one line."""
    holds = {name: Hold(name) for name in "ab"}
    servers = {name: RawBackend(hold) for name, hold in holds.items()}
    native = Native()
    native.serve(
        "sticky.test", *servers.values(), affinity="client-ip",
        max_connections_per_endpoint=1, max_queue=10, queue_timeout="20s",
    )  # fmt: skip
    with serving(tmp_path, native, servers, threads=1) as site, contextlib.ExitStack() as stack:
        clients: dict[str, list[RawClient]] = {"a": [], "b": []}
        for number in range(2, 100):
            client = stack.enter_context(site.connect(source=f"127.0.0.{number}"))
            clients[client.ask(get("sticky.test")).body.decode()].append(client)
            if min(map(len, clients.values())) == 2:
                break

        def under_way(state: str, count: int) -> None:
            wait_until(lambda: site.lb.metric(f"lb_upstream_requests_{state}") == count, f"{count} {state}")

        for name in "ab":
            clients[name][0].send(get("sticky.test", "/hold"))
        under_way("active", 2)
        for count, name in enumerate("ab", 1):
            clients[name][1].send(get("sticky.test"))
            under_way("queued", count)
        for name in "ba":
            holds[name].release.set()
            for client in clients[name][:2]:
                assert client.response().body == name.encode()
