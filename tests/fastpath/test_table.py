"""The compiled table answers as the reference matcher does, for random configurations and requests."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb._fastpath.engine import Engine
from lb.compile.table import Compiler
from lb.model.config import Config
from lb.model.listener import HttpOptions, Listener
from lb.model.match import Request, match, match_name
from lb.model.route import Forward, Match, PathMatch, Route, VirtualHost, WeightedUpstream
from lb.model.tls import Certificate
from lb.model.upstream import Endpoint, Upstream
from tests.harness.waiting import wait_until
from tests.model.strategies import configs, offers, requests_for, server_names


def compiled_answer(
    compiler: Compiler, config: Config, listener: str, request: Request
) -> tuple[str | None, str | None]:
    table = compiler.compile(config, 1)

    def raw(text: str) -> bytes:
        return text.encode("utf-8", "surrogateescape")

    return table.match(
        listener,
        raw(request.host),
        raw(request.path),
        raw(request.method),
        [(raw(name), raw(value)) for name, value in request.headers],
        None if request.query is None else raw(request.query),
    )


def reference_answer(config: Config, listener: str, request: Request) -> tuple[str | None, str | None]:
    found = match(config, listener, request)
    return found.host.hostname if found.host else None, found.route.name if found.route else None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_compiled_table_agrees_with_the_reference_matcher(data: st.DataObject) -> None:
    config = data.draw(configs())
    compiler = Compiler(Engine(threads=1))
    for _ in range(8):
        listener, request = data.draw(requests_for(config))
        assert compiled_answer(compiler, config, listener, request) == reference_answer(config, listener, request)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_table_made_from_another_one_is_as_good_as_a_new_one(data: st.DataObject) -> None:
    first, second = data.draw(configs()), data.draw(configs())
    compiler = Compiler(Engine(threads=1))
    compiler.compile(first, 1)
    for _ in range(5):
        listener, request = data.draw(requests_for(second))
        assert compiled_answer(compiler, second, listener, request) == reference_answer(second, listener, request)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_server_names_are_found_as_the_reference_matcher_does(data: st.DataObject) -> None:
    config = data.draw(configs().filter(lambda config: any(one.stream for one in config.listeners.values())))
    table = Compiler(Engine(threads=1)).compile(config, 1)
    for _ in range(8):
        listener = data.draw(st.sampled_from([name for name, one in config.listeners.items() if one.stream]))
        server_name = data.draw(server_names.map(lambda name: name.replace("*", "a")) | st.just(""))
        offered = data.draw(offers)
        found = match_name(config, listener, server_name, offered).route
        wire = b"".join(bytes([len(one)]) + one.encode() for one in offered)
        assert table.match_name(listener, server_name.encode(), wire) == (found.name if found else None)


def route(name: str, path: str, kind: str = "prefix") -> Route:
    return Route(name, Match(PathMatch(kind, path)), Forward((WeightedUpstream("u"),)))


def test_unchanged_hosts_and_upstreams_keep_their_compiled_form() -> None:
    engine = Engine(threads=1)
    compiler = Compiler(engine)
    hosts = {f"h{i}.example.com": VirtualHost(f"h{i}.example.com", (route(f"r{i}", "/"),)) for i in range(50)}
    upstreams = {"u": Upstream("u", endpoints=(Endpoint("127.0.0.1", 80),))}
    listeners = {"http": Listener("http", 80, host_set="h")}
    before = compiler.compile(Config(listeners, {"h": hosts}, upstreams), 1)
    changed = {**hosts, "h7.example.com": VirtualHost("h7.example.com", (route("other", "/x"),))}
    after = compiler.compile(Config(listeners, {"h": changed}, upstreams), 2)
    old, new = before.listeners["http"].index.hosts, after.listeners["http"].index.hosts
    assert {name for name in hosts if old[name] is not new[name]} == {"h7.example.com"}
    assert before.upstreams["u"] is after.upstreams["u"]
    assert after.match("http", b"h7.example.com", b"/x") == ("h7.example.com", "other")
    assert before.match("http", b"h7.example.com", b"/x") == ("h7.example.com", "r7")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([f"{name}.example.com" for name in "abcdefghijkl"] + ["*.example.com", "*"]), st.booleans()
        ),
        max_size=8,
    )
)
def test_an_index_changed_step_by_step_finds_what_a_new_one_finds(steps: list[dict[str, bool]]) -> None:
    compiler = Compiler(Engine(threads=1))
    kinds = {
        (name, flag): VirtualHost(name, (route(f"{name} {flag}", "/"),))
        for name in [f"{name}.example.com" for name in "abcdefghijkl"] + ["*.example.com", "*"]
        for flag in (False, True)
    }
    for number, step in enumerate(steps, 1):
        hosts = {name: kinds[name, flag] for name, flag in step.items()}
        config = Config({"http": Listener("http", 80, host_set="h")}, {"h": hosts}, {"u": Upstream("u")})
        table = compiler.compile(config, number)
        assert table.host_count == len(hosts)
        for host in ["a.example.com", "b.example.com", "l.example.com", "zz.example.com", "other"]:
            assert table.match("http", host.encode(), b"/") == reference_answer(config, "http", Request(host, "/"))


def test_an_endpoint_keeps_its_identity_when_its_upstream_changes() -> None:
    engine = Engine(threads=1)
    compiler = Compiler(engine)
    listeners = {"http": Listener("http", 80, host_set="h")}

    def config(*ports: int) -> Config:
        endpoints = tuple(Endpoint("127.0.0.1", port) for port in ports)
        return Config(listeners, {"h": {}}, {"u": Upstream("u", endpoints=endpoints)})

    first = compiler.compile(config(1, 2), 1)
    second = compiler.compile(config(2, 3), 2)
    assert first.upstreams["u"].endpoints[1] is second.upstreams["u"].endpoints[0]


def test_endpoints_that_are_no_addresses_cost_only_themselves() -> None:
    compiler = Compiler(Engine(threads=1))
    endpoints = (Endpoint("backend.example.com", 80), Endpoint("10.0.0.1", 80), Endpoint("unix:" + "x" * 200))
    table = compiler.compile(Config({}, {}, {"u": Upstream("u", endpoints=endpoints)}), 1)
    assert [endpoint.key for endpoint in table.upstreams["u"].endpoints] == ["10.0.0.1:80"]


def test_draining_endpoints_count_only_while_nobody_else_can_serve() -> None:
    compiler = Compiler(Engine(threads=1))
    leaving, staying = Endpoint("10.0.0.1", 80, draining=True), Endpoint("10.0.0.2", 80)
    both = compiler.compile(Config({}, {}, {"u": Upstream("u", endpoints=(leaving, staying))}), 1)
    alone = compiler.compile(Config({}, {}, {"u": Upstream("u", endpoints=(leaving,))}), 2)
    assert both.upstreams["u"].weights == (0, 1)
    assert alone.upstreams["u"].weights == (1,)


def test_a_bad_network_is_an_error_that_leaves_the_compiler_as_it_was() -> None:
    from lb.model.listener import HttpOptions

    compiler = Compiler(Engine(threads=1))
    good = Config(
        {"http": Listener("http", 80, host_set="h")},
        {"h": {"*": VirtualHost("*", (route("r", "/"),))}},
        {"u": Upstream("u")},
    )
    compiler.compile(good, 1)
    bad = Config({"http": Listener("http", 80, http=HttpOptions(trusted_proxies=("no",)))}, {}, {})
    with pytest.raises(ValueError, match="no"):
        compiler.compile(bad, 2)
    assert compiler.compile(good, 3).match("http", b"x", b"/") == ("*", "r")


def test_each_of_many_hosts_is_found() -> None:
    compiler = Compiler(Engine(threads=1))
    names = [f"app-{i}.team-{i % 97}.example.com" for i in range(20_000)]
    hosts = {name: VirtualHost(name, (route(name, "/"),)) for name in names}
    table = compiler.compile(
        Config({"http": Listener("http", 80, host_set="h")}, {"h": hosts}, {"u": Upstream("u")}), 1
    )
    assert table.host_count == len(names)
    assert all(table.match("http", name.encode(), b"/x") == (name, name) for name in names)
    assert table.match("http", b"app-1.example.com", b"/") == (None, None)


def test_what_is_refused_changes_only_with_what_serves() -> None:
    """Others read it while the next Config is compiled in another thread."""
    compiler = Compiler(Engine(threads=1))
    compiler.compile(Config(certificates={"a": Certificate("a", "no chain", "no key")}), 1)
    told = compiler.refused
    assert told.keys() == {"certificate a"}
    listener = Listener("http", 80, http=HttpOptions(trusted_proxies=("no network",)))
    with pytest.raises(ValueError, match="no network"):
        compiler.compile(Config({"http": listener}), 2)
    assert compiler.refused is told
    compiler.compile(Config(), 2)
    assert compiler.refused == {}
    assert told.keys() == {"certificate a"}


def test_a_place_that_passes_on_and_on_uses_up_no_listeners() -> None:
    engine = Engine(threads=1)
    compiler = Compiler(engine, places=lambda listeners: {"here": next(iter(listeners)).name})
    engine.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            for turn in range(5_000):
                name = str(turn)
                engine.publish(compiler.compile(Config({name: Listener(name, 80, host_set="h")}, {"h": {}}), turn + 1))
                if turn == 0:
                    engine.open_listener(name, [listening.fileno()], "here")
                else:
                    engine.pass_listener("here", name)
                if turn % 500 == 499:
                    wait_until(lambda: engine.collect() == 0, "old tables go")
        assert "4999" in engine.listener_stats()
    finally:
        engine.stop()


def test_who_comes_to_the_sockets_of_a_listener_that_is_gone() -> None:
    """The table has gone ahead of its sockets: they are about to be closed, and nobody else has the place."""
    engine = Engine(threads=1)
    compiler = Compiler(engine, places=lambda listeners: {"here": "goes"} if any(listeners) else {})
    engine.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listener = Listener("goes", 80, host_set="h")
            engine.publish(compiler.compile(Config({"goes": listener}, {"h": {}}), 1))
            engine.open_listener("goes", [listening.fileno()], "here")
            engine.publish(compiler.compile(Config(), 2))
            with socket.create_connection(listening.getsockname(), 10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(100) == b"", "the request may be sent again"
            assert engine.listener_stats()["goes"]["accepted"] == 1
            wait_until(lambda: engine.listener_stats()["goes"]["active"] == 0, "it is counted to its end")
    finally:
        engine.stop()


def test_a_listener_that_cannot_be_opened_everywhere_is_opened_nowhere() -> None:
    """Else nobody could open it any more: its port would be taken, by a socket that no one closes."""
    engine = Engine(threads=2)
    engine.publish(Compiler(engine).compile(Config({"web": Listener("web", 80, host_set="h")}, {"h": {}}), 1))
    engine.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = listening.getsockname()
            with pytest.raises(OSError, match="cannot open a listening socket"):
                engine.open_listener("web", [listening.fileno(), -1])
        wait_until(lambda: not is_open(address), "its sockets are closed")
        with socket.create_server(address) as listening:
            engine.open_listener("web", [listening.fileno()])
        with socket.create_connection(address, 10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
    finally:
        engine.stop()


def is_open(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


def test_listeners_that_are_over_give_their_places_to_new_ones() -> None:
    engine = Engine(threads=1)
    compiler = Compiler(engine)
    for turn in range(4):
        listeners = {f"{turn}/{i}": Listener(f"{turn}/{i}", 80, host_set="h") for i in range(1_500)}
        engine.publish(compiler.compile(Config(listeners, {"h": {}}), turn + 1))
        engine.collect()
        assert listeners.keys() <= engine.listener_stats().keys()
    listeners = {str(i): Listener(str(i), 80, host_set="h") for i in range(5_000)}
    with pytest.raises(ValueError, match="more than 4096 listeners"):
        compiler.compile(Config(listeners, {"h": {}}), 9)
