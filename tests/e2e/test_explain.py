"""What `lb explain` says is what happens: every rule of the demo, and what misses them all, asked of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner

from lb.cli.main import main
from lb.model.balance import Share, choose_by_rendezvous, hash_client
from lb.model.config import Config
from lb.model.route import Match
from lb.objects.view import Changes
from lb.sources.files import read_paths
from lb.translate.translation import Options, translate
from tests.harness.client import RawClient
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.process import ROOT, LbProcess
from tests.harness.serving import serving
from tests.harness.tcp import TcpServer, named, read_exactly

DEMO = "conf/demo"


class Request(NamedTuple):
    """What is asked, in the words of the command line."""

    host: str
    target: str
    method: str = "GET"
    headers: tuple[str, ...] = ()


MISSES = [
    Request("nothing.test", "/"),
    Request("a.b.blog.example.com", "/"),
    Request("a.next.shop.example.com", "/"),
    Request("shop.example.com", "/healthz/"),
    Request("shop.example.com", "/healthz?x=1"),
    Request("shop.example.com", "/staticfile"),
    Request("shop.example.com", "/api/v1/ordersx"),
    Request("shop.example.com", "/API"),
    Request("SHOP.example.com.", "//api//v1/./orders/../orders"),
    Request("shop.example.com", "/legacy/x", "POST"),
    Request("shop.example.com", "/%61pi"),
    Request("shop.example.com", "/a%2fb"),
    Request("shop.example.com", "/../x"),
    Request("shop.example.com", "/%00"),
    Request("shop.example.com:x", "/"),
    Request("next.shop.example.com", "/", headers=("X-Version: other",)),
    Request("next.shop.example.com", "/", headers=("x-version: next",)),
    Request("next.shop.example.com", "/", headers=("X-Version: next", "X-Version: next")),
]


def read_config() -> Config:
    return translate(read_paths([ROOT / DEMO]), Options(), Changes(everything=True), None).config


def requests_of(config: Config) -> Iterator[Request]:
    """For each rule the path it names, and one below it."""
    for hosts in config.hosts.values():
        for hostname, host in hosts.items():
            name = "any.test" if hostname == "*" else hostname.replace("*", "one")
            for route in host.routes:
                for target in {route.match.path.value, f"{route.match.path.value.rstrip('/')}/x"}:
                    yield Request(name, target or "/", next(iter(route.match.methods), "GET"), _headers(route.match))


def _headers(match: Match) -> tuple[str, ...]:
    return tuple(f"{one.name}: {one.value or 'x'}" for one in match.headers)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LbProcess, int]]:
    port = free_port()
    options = ("--demo", "--publish", f"80=127.0.0.1:{port}")
    with LbProcess([Path(DEMO)], tmp_path_factory.mktemp("demo"), *options, threads=1) as lb:
        yield lb, port


@pytest.mark.parametrize("request_made", sorted({*requests_of(read_config()), *MISSES}), ids=str)
def test_explain_says_what_happens(
    demo: tuple[LbProcess, int], request_made: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    lb, port = demo
    monkeypatch.chdir(ROOT)
    before = len(lb.log_records())
    status = _ask(port, request_made)
    record = lb.wait_log(before + 1)[before]
    assert record["status"] == status
    for told in (_explain_files(port, request_made), _explain_live(lb, port, request_made)):
        routes = [step["name"] for step in told.get("routes", ()) if step["verdict"] == "won"]
        hosts = [step["hostname"] for step in told.get("hosts", ()) if step["verdict"] == "won"]
        assert (told["reason"], routes, hosts) == (
            record["reason"],
            [record["route"]] if record["route"] else [],
            [record["virtual_host"]] if record["virtual_host"] else [],
        )
        assert told["status"] in (status, None)
        assert (told["status"] is None) == bool(record["endpoint"])
        serving = {step["name"]: step.get("endpoints", ()) for step in told.get("upstreams", ()) if step["share"]}
        if record["endpoint"]:
            keys = [one["key"] for one in serving[record["upstream"]] if one["state"] == "ready"]
            assert record["endpoint"] in keys


def _ask(port: int, made: Request) -> int:
    lines = "".join(f"{line}\r\n" for line in made.headers)
    head = f"{made.method} {made.target} HTTP/1.1\r\nHost: {made.host}\r\n{lines}Content-Length: 0\r\n\r\n"
    with RawClient(("127.0.0.1", port)) as client:
        return client.ask(head.encode(), made.method).status


def _explain_files(port: int, made: Request) -> Any:
    options = ["-X", made.method, *(word for line in _lines(made) for word in ("-H", line)), "--json"]
    url = f"http://127.0.0.1:{port}{made.target}"
    result = CliRunner().invoke(main, ["explain", url, DEMO, "--publish", f"80=127.0.0.1:{port}", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _explain_live(lb: LbProcess, port: int, made: Request) -> Any:
    query = [("url", f"http://127.0.0.1:{port}{made.target}"), ("method", made.method)]
    return lb.get(f"/v1/explain?{urlencode([*query, *(('header', line) for line in _lines(made))])}")


def _lines(made: Request) -> tuple[str, ...]:
    return (f"Host: {made.host}", *made.headers)


def test_explain_knows_where_affinity_keeps_a_client(tmp_path: Path) -> None:
    with TcpServer(named("old")) as old, TcpServer(named("new")) as new:
        shares = [Share(old.key, 1), Share(new.key, 1)]
        addresses = [f"127.0.0.{number}" for number in range(2, 200)]
        client = next(one for one in addresses if choose_by_rendezvous(shares, hash_client(one), lambda _: True) == 1)
        native = Native()
        native.upstream("db", [old.key], affinity="client-ip")
        native.carry("db", free_port(), "db")
        with serving(tmp_path, native) as site:
            url = "tcp://127.0.0.1:{}".format(site.address("db")[1])

            def told() -> list[str]:
                arguments = ["explain", url, "--live", str(site.lb.admin_socket), "--from", client]
                return [line.strip() for line in CliRunner().invoke(main, arguments).output.splitlines()]

            def answers() -> bytes:
                with site.connect("db", source=client) as connected:
                    return read_exactly(connected.socket, 3)

            unknown = f"lb remembers no endpoint of db for {client}: its address decides"
            assert unknown in told()
            assert answers() == b"old"
            native.upstream("db", [old.key, new.key], affinity="client-ip")
            site.apply()
            start = f"{client} was sent to {old.key} last, "
            assert any(one.startswith(start) and one.endswith(f"would lead to {new.key}") for one in told())
            assert f"{old.key} answers {client}" in told()[-1]
            assert answers() == b"old"
            site.lb.ctl("drain", "db", old.key)
            assert any(one.startswith(start) and "which is drain now" in one for one in told())
            assert f"{new.key} answers {client}" in told()[-1]
            assert answers() == b"new"
            # Files know nothing of clients.
            offline = CliRunner().invoke(main, ["explain", url, str(site.path), "--from", client]).output
            assert "unless another one has answered it before" in offline
            assert "was sent to" not in offline
