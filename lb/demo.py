"""The demo: echo servers that stand in for the pods of an export, so that `lb run --demo` answers without a cluster.

They run in a process of their own (`python -m lb.demo`), so that they share neither the loop nor the fate of the load
balancer. The daemon writes the endpoints it wants, as one JSON line, whenever they change, and reads one line back when
they listen; when its end of the pipe closes, the process ends. Only loopback addresses are served.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from shlex import quote

import h11
import msgspec
import structlog

from lb.model.config import Config
from lb.model.route import Forward, Route
from lb.model.upstream import split_key

log = structlog.stdlib.get_logger(__name__)

DEMO_PATH = Path(__file__).parent.parent / "conf" / "demo"
DEMO_PUBLISH = "80=127.0.0.1:8080"

MAX_LINE_BYTES = 1 << 22


class Echo(msgspec.Struct, frozen=True):
    """What an echo server answers."""

    endpoint: str
    target: str
    """The pod that it stands for."""
    upstream: str
    method: str
    path: str
    """As the endpoint received it."""
    headers: dict[str, str]
    """Lines with the same name joined."""
    body_bytes: int


class Role(msgspec.Struct, frozen=True):
    """What an echo server stands for."""

    upstream: str
    target: str


class Listening(msgspec.Struct, frozen=True):
    """The process's answer: how many listen, and why some do not."""

    count: int
    failed: dict[str, str]


# -- In the daemon


class EchoProcess:
    """The process of echo servers, as the daemon sees it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._roles: dict[str, Role] = {}

    async def serve(self, config: Config) -> None:
        """Have an echo server at each loopback endpoint of `config`; returns when they listen."""
        roles = roles_of(config)
        if roles == self._roles:
            return
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "lb.demo",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                start_new_session=True,  # Ctrl-C is for lb, which still needs its endpoints while it drains
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the echo process has no pipes")
        self._process.stdin.write(msgspec.json.encode(roles) + b"\n")
        await self._process.stdin.drain()
        answer = msgspec.json.decode(await self._process.stdout.readline(), type=Listening)
        self._roles = roles
        for key, why in answer.failed.items():
            log.warning("demo endpoint cannot listen", endpoint=key, why=why)
        log.info("demo endpoints listen", count=answer.count)

    async def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()


def roles_of(config: Config) -> dict[str, Role]:
    """Endpoint key -> what it stands for, for all endpoints on loopback addresses."""
    return {
        endpoint.key: Role(upstream.name, endpoint.target)
        for upstream in config.upstreams.values()
        for endpoint in upstream.endpoints
        if not endpoint.address.startswith("unix:") and ip_address(endpoint.address).is_loopback
    }


def hints(config: Config, address: str, path: str) -> list[str]:
    """Three commands to try: two requests and an explanation. `address` is where lb listens, `path` what it reads."""
    found = list(_examples(config))[:2]
    requests = [f"curl -s -H 'Host: {host}' http://{address}{quote(target)}" for host, target in found]
    explained = [f"{_program()} explain http://{host}{quote(target)} {quote(path)}" for host, target in found[:1]]
    return requests + explained


def _program() -> str:
    """How this program was called, as somebody in this directory would write it."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m lb"
    return quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _examples(config: Config) -> Iterator[tuple[str, str]]:
    """(host, path) that an endpoint answers, one for each exact hostname, those with most routes first."""
    for hosts in config.hosts.values():
        for hostname, host in sorted(hosts.items(), key=lambda item: -len(item[1].routes)):
            served = [route for route in host.routes if _is_example(route, config)]
            if served and "*" not in hostname:
                # The longest path says most about how routes are chosen.
                yield hostname, max((route.match.path.value for route in served), key=len)


def _is_example(route: Route, config: Config) -> bool:
    match = route.match
    return (
        isinstance(route.action, Forward)
        and not (match.methods or match.headers or match.query)
        and all(config.upstreams[share.name].endpoints for share in route.action.upstreams)
    )


# -- In the process of its own


class EchoServers:
    """Servers by endpoint key."""

    def __init__(self) -> None:
        self._servers: dict[str, asyncio.Server] = {}
        self._roles: dict[str, Role] = {}

    async def serve(self, roles: Mapping[str, Role]) -> Listening:
        """Listen at exactly these endpoints."""
        failed = {}
        for key in self._servers.keys() - roles.keys():
            self._servers.pop(key).close()
        self._roles = dict(roles)
        for key in roles.keys() - self._servers.keys():
            address, port = split_key(key)
            try:
                self._servers[key] = await asyncio.start_server(partial(self._converse, key), address, port)
            except OSError as error:
                failed[key] = error.strerror or str(error)
        return Listening(len(self._servers), failed)

    async def _converse(self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        with suppress(ConnectionError, h11.RemoteProtocolError):
            while await self._answer(key, connection, reader, writer):
                connection.start_next_cycle()
        writer.close()

    async def _answer(
        self, key: str, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Serve one request; returns whether another may follow."""
        request, body_bytes = None, 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                    writer.write(connection.send(go_on) or b"")
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body_bytes += len(event.data)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                break
            else:
                return False
        writer.write(self._echo(key, connection, request, body_bytes))
        await writer.drain()
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    def _echo(self, key: str, connection: h11.Connection, request: h11.Request, body_bytes: int) -> bytes:
        role = self._roles.get(key, Role("", ""))
        headers: dict[str, str] = {}
        for name, value in request.headers.raw_items():
            title, text = name.decode("latin-1"), value.decode("latin-1")
            headers[title] = f"{headers[title]}, {text}" if title in headers else text
        echo = Echo(
            endpoint=key,
            target=role.target,
            upstream=role.upstream,
            method=request.method.decode(),
            path=request.target.decode(),
            headers=headers,
            body_bytes=body_bytes,
        )
        body = msgspec.json.format(msgspec.json.encode(echo), indent=2) + b"\n"
        head = h11.Response(
            status_code=200,
            headers=[("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
            reason=b"OK",
        )
        answer = connection.send(head) or b""
        if request.method != b"HEAD":
            answer += connection.send(h11.Data(data=body)) or b""
        return answer + (connection.send(h11.EndOfMessage()) or b"")


async def main() -> None:
    """Follow what standard input asks for until it closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    servers = EchoServers()
    while line := await reader.readline():
        answer = await servers.serve(msgspec.json.decode(line, type=dict[str, Role]))
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
