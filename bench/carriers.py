"""The proxies that only carry bytes: each one's configuration for one service.

All do the same work: the same endpoints by round robin, no access log, the same timeouts, one worker or thread.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.build import BIN
from bench.contenders import Envoy, Lb, Proxy, socket_address
from bench.load import LoadFailed, StreamClient

PATIENCE_SECONDS = 5
ADDRESSES = tuple(f"127.1.0.{number}" for number in range(1, 11))


@dataclass(frozen=True)
class Service:
    """What is behind a carrier."""

    port: int
    addresses: tuple[str, ...] = ADDRESSES


class Carrier(Proxy):
    """A proxy in front of one service."""

    def __init__(self, service: Service, directory: Path) -> None:
        super().__init__(directory)
        self.service = service

    def serves(self) -> bool:
        message = b"e, is anybody there?"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS) as client:
                client.sendall(message)
                return client.recv(len(message), socket.MSG_WAITALL) == message
        except OSError:
            return False


class FloorCarrier(Carrier):
    """floor.c with an endpoint's connection for each client's. It knows one endpoint."""

    name = "floor"
    title = "floor (bare relay)"

    def configure(self) -> None:
        pass

    def command(self) -> list[str | Path]:
        return [BIN / "floor", str(self.port), str(self.service.port), "flows"]


class LbCarrier(Carrier):
    name = "lb"
    title = "lb"

    def configure(self) -> None:
        config = {
            "apiVersion": "lb/v1",
            "kind": "Config",
            "listeners": {
                "carried": {
                    "address": "127.0.0.1",
                    "port": self.port,
                    "protocol": "tcp",
                    "stream": {"forward": "service", "idle_timeout": "600s"},
                }
            },
            "upstreams": {"service": {"endpoints": [f"{each}:{self.service.port}" for each in self.service.addresses]}},
        }
        (self.directory / "lb.yaml").write_text(json.dumps(config, indent=4))

    def command(self) -> list[str | Path]:
        file, admin = self.directory / "lb.yaml", self.directory / "admin.sock"
        return [*Lb.program(), "run", file, "--threads", "1", "--admin-socket", admin]


class NginxCarrier(Carrier):
    """The stream module, which is a file of its own on Debian."""

    name = "nginx"
    title = "nginx"

    def configure(self) -> None:
        text = _NGINX % {
            "module": _stream_module(),
            "dir": self.directory,
            "port": self.port,
            "servers": " ".join(f"server {each}:{self.service.port};" for each in self.service.addresses),
        }
        (self.directory / "nginx.conf").write_text(text)

    def command(self) -> list[str | Path]:
        return ["nginx", "-p", self.directory, "-c", self.directory / "nginx.conf", "-e", "stderr"]


def _stream_module() -> str:
    """The line that loads it; empty where it is built in."""
    built = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True).stderr
    modules = re.search(r"--modules-path=(\S+)", built)
    return f"load_module {modules[1]}/ngx_stream_module.so;" if modules and "--with-stream=dynamic" in built else ""


class HAProxyCarrier(Carrier):
    name = "haproxy"
    title = "HAProxy"
    buffer_bytes = 16 << 10
    """Its default, which serves small messages best."""
    pipe_bytes = 64 << 10
    options = ""

    def configure(self) -> None:
        text = _HAPROXY % {
            "buffer": self.buffer_bytes,
            "pipe": self.pipe_bytes,
            "options": self.options,
            "port": self.port,
            "servers": "\n".join(
                f"    server e{number} {each}:{self.service.port}" for number, each in enumerate(self.service.addresses)
            ),
        }
        (self.directory / "haproxy.cfg").write_text(text)

    def command(self) -> list[str | Path]:
        return ["haproxy", "-W", "-db", "-f", self.directory / "haproxy.cfg"]


class CopyingHAProxy(HAProxyCarrier):
    """With the buffers that serve bulk best."""

    buffer_bytes = 64 << 10


class SplicingHAProxy(HAProxyCarrier):
    """Always, and with the largest pipes that it may have: left to its own judgement (splice-auto) it splices a small
    part, and costs three times as much."""

    name = "haproxy-splice"
    title = "HAProxy, splicing"
    pipe_bytes = 1 << 20
    options = "option splice-request\n    option splice-response"


class EnvoyCarrier(Carrier):
    name = "envoy"
    title = "Envoy"

    def configure(self) -> None:
        (self.directory / "envoy.json").write_text(json.dumps(self._bootstrap()))

    def _bootstrap(self) -> dict[str, object]:
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "carried",
            "cluster": "service",
            "idle_timeout": "600s",
        }
        listener = {
            "name": "carried",
            "address": socket_address("127.0.0.1", self.port),
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
        }
        endpoints = [
            {"endpoint": {"address": socket_address(each, self.service.port)}} for each in self.service.addresses
        ]
        cluster = {
            "name": "service",
            "type": "STATIC",
            "connect_timeout": "5s",
            "lb_policy": "ROUND_ROBIN",
            "circuit_breakers": {"thresholds": [{"max_connections": 1_000_000, "max_pending_requests": 1_000_000}]},
            "load_assignment": {"cluster_name": "service", "endpoints": [{"lb_endpoints": endpoints}]},
        }
        return {
            "node": {"id": "bench", "cluster": "bench"},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }

    def command(self) -> list[str | Path]:
        flags = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        return [Envoy.program(), "-c", self.directory / "envoy.json", *flags]


def check_carrying(carrier: Carrier) -> None:
    """Bulk is whole in both directions, and the end of one half is passed on behind it while the other one goes on. The
    floor does not do that."""
    if isinstance(carrier, FloorCarrier):
        return
    for direction in ("down", "up"):
        with StreamClient(direction, carrier.port, 2, 0.02) as client:
            client.begin()
            if not client.read_line()["bytes"]:
                raise LoadFailed(f"{carrier.name} carries nothing")


_NGINX = """\
%(module)s
daemon off;
pid %(dir)s/pid;
worker_processes 1;
worker_rlimit_nofile 20000;
events { worker_connections 20000; }
stream {
    access_log off;
    proxy_connect_timeout 5s;
    proxy_timeout 600s;
    proxy_half_close on;
    upstream service { %(servers)s }
    server { listen 127.0.0.1:%(port)d backlog=4096; proxy_pass service; }
}
"""

_HAPROXY = """\
global
    nbthread 1
    tune.bufsize %(buffer)d
    tune.pipesize %(pipe)d
    maxconn 9600
    maxpipes 100
defaults
    mode tcp
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    %(options)s
listen carried
    bind 127.0.0.1:%(port)d backlog 4096
%(servers)s
"""

CARRIERS: dict[str, type[Carrier]] = {
    "floor": FloorCarrier,
    "lb": LbCarrier,
    "nginx": NginxCarrier,
    "haproxy": HAProxyCarrier,
    "envoy": EnvoyCarrier,
}
"""By the name of the contender whose program it is."""
