"""The demo's echo servers: a real process on loopback addresses, followed by its daemon."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession

from lb.demo import EchoProcess, hints, roles_of
from lb.model.config import Config
from lb.model.upstream import Endpoint, Upstream
from tests.app.fakes import make_config
from tests.harness.ports import free_port


def config_with(*endpoints: Endpoint) -> Config:
    return msgspec.structs.replace(
        make_config(), upstreams={"shop/web:http": Upstream("shop/web:http", endpoints=endpoints)}
    )


def test_only_loopback_addresses_are_served() -> None:
    config = config_with(Endpoint("127.0.0.11", 80), Endpoint("10.0.0.1", 80), Endpoint("::1", 80), Endpoint("unix:/x"))
    assert set(roles_of(config)) == {"127.0.0.11:80", "[::1]:80"}


async def test_echo_servers_follow_the_model() -> None:
    port = free_port()
    first, second = Endpoint("127.0.0.11", port, target="pod/a"), Endpoint("127.0.0.12", port, target="pod/b")
    echo = EchoProcess()
    try:
        await echo.serve(config_with(first))
        async with ClientSession() as session:
            for _ in range(2):  # the connection is kept
                async with session.post(f"http://127.0.0.11:{port}/cart?x=1", data=b"12345") as response:
                    answer = await response.json()
            async with session.head(f"http://127.0.0.11:{port}/") as response:
                assert response.status == 200
            assert (answer["endpoint"], answer["target"]) == (f"127.0.0.11:{port}", "pod/a")
            assert (answer["method"], answer["path"], answer["body_bytes"]) == ("POST", "/cart?x=1", 5)
            assert answer["headers"]["Content-Length"] == "5"
            await echo.serve(config_with(first, second))
            async with session.get(f"http://127.0.0.12:{port}/") as response:
                assert (await response.json())["target"] == "pod/b"
    finally:
        await echo.stop()


@pytest.mark.parametrize(
    ("called", "program"),
    [("/x/lb/__main__.py", "python -m lb"), (str(Path.cwd() / ".venv/bin/lb"), ".venv/bin/lb"), ("/b/lb", "/b/lb")],
)
def test_hints_are_commands_to_try(monkeypatch: pytest.MonkeyPatch, called: str, program: str) -> None:
    monkeypatch.setattr("sys.argv", [called])
    lines = hints(make_config(), "127.0.0.1:8080", "conf/demo")
    assert lines[0] == "curl -s -H 'Host: shop.example.com' http://127.0.0.1:8080/0"
    assert lines[-1] == f"{program} explain http://shop.example.com/0 conf/demo"
