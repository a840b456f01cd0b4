"""The proxies that only carry: each one's configuration for TCP, for UDP, and for TLS by server name.

All do the same work: the same endpoints by round robin, no access log, the same timeouts, one worker or thread.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.build import BIN
from bench.certificate import Certificate
from bench.contenders import Envoy, Lb, Proxy, socket_address
from bench.load import LoadFailed, StreamClient, echoes, fetch

SESSION_SECONDS = 60
"""Of silence, after which a session of UDP ends."""
SHORT_MS = 300
"""The same where each is to have one answer, for who does not count answers."""
ADDRESSES = tuple(f"127.1.0.{number}" for number in range(1, 11))


@dataclass(frozen=True)
class Service:
    """What is behind a carrier: stream_backend.c."""

    port: int
    addresses: tuple[str, ...] = ADDRESSES
    protocol: ClassVar[str] = "tcp"

    def serves(self, port: int) -> bool:
        """Whether the carrier on `port` passes something on and back."""
        return echoes(port, socket.SOCK_STREAM)

    def check(self, carrier: Carrier) -> None:
        """Raises LoadFailed when it does not do all of its work.

        Bulk is whole in both directions, and the end of one half is passed on behind it while the other one goes on.
        The floor does not do that."""
        for direction in ("down", "up") if not isinstance(carrier, FloorCarrier) else ():
            with StreamClient(direction, carrier.port, 2, 0.02) as client:
                client.begin()
                if not client.read_line()["bytes"]:
                    raise LoadFailed(f"{carrier.name} carries nothing")


@dataclass(frozen=True)
class DatagramService(Service):
    """datagram_backend.c."""

    responses: int = 0
    """After how many answers a session ends; 0: when it is silent."""
    protocol: ClassVar[str] = "udp"

    def serves(self, port: int) -> bool:
        return echoes(port, socket.SOCK_DGRAM)

    def check(self, carrier: Carrier) -> None:
        """Each client gets its own answers; that is what datagram_client.c looks at in any case."""


@dataclass(frozen=True)
class NamedService(Service):
    """TLS servers with one certificate. Each name has an upstream of its own, with the same endpoints."""

    names: tuple[str, ...] = ()
    certificate: Certificate | None = None
    protocol: ClassVar[str] = "tls"

    def serves(self, port: int) -> bool:
        return fetch(port, self.names[-1], "/", self.certificate).status == 200

    def check(self, carrier: Carrier) -> None:
        """Who asks for a name that nobody has gets nothing."""
        unknown = fetch(carrier.port, self.names[0], "/", self.certificate, server_name="nobody.example.com")
        if unknown.status:
            raise LoadFailed(f"{carrier.name} does not look at names")


class Carrier(Proxy):
    """A proxy in front of one service."""

    def __init__(self, service: Service, directory: Path) -> None:
        super().__init__(directory)
        self.service = service

    def serves(self) -> bool:
        return self.service.serves(self.port)

    def check(self) -> None:
        self.service.check(self)


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
        service = self.service
        endpoints = [f"{each}:{service.port}" for each in service.addresses]
        options: dict[str, object] = {"idle_timeout": "600s"}
        names = ["service"]
        if isinstance(service, DatagramService):
            options = {"forward": "service", "idle_timeout": f"{SESSION_SECONDS}s", "responses": service.responses}
        elif isinstance(service, NamedService):
            names = list(service.names)
            options["names"] = {name: name for name in names}
        else:
            options["forward"] = "service"
        section = "datagram" if service.protocol == "udp" else "stream"
        listener = {"address": "127.0.0.1", "port": self.port, "protocol": service.protocol, section: options}
        config = {
            "apiVersion": "lb/v1",
            "kind": "Config",
            "listeners": {"carried": listener},
            "upstreams": {name: {"endpoints": endpoints} for name in names},
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
        service = self.service
        servers = " ".join(f"server {each}:{service.port};" for each in service.addresses)
        names: tuple[str, ...] = ("service",)
        listen, more, chosen = "backlog=4096", "", "service"
        if isinstance(service, DatagramService):
            # With proxy_responses 1, nginx 1.22 left 192 of 2,414 datagrams without an answer.
            listen, more = "udp", f"proxy_timeout {SHORT_MS if service.responses else SESSION_SECONDS * 1000}ms;"
        elif isinstance(service, NamedService):
            names, more, chosen = service.names, "ssl_preread on;", "$upstream"
        text = _NGINX % {
            "module": _stream_module(),
            "dir": self.directory,
            "map": " ".join(f"{name} {name};" for name in names),
            "upstreams": "\n    ".join(f"upstream {name} {{ {servers} }}" for name in names),
            "listen": f"127.0.0.1:{self.port} {listen}",
            "more": more,
            "chosen": chosen,
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
        service = self.service
        names = service.names if isinstance(service, NamedService) else ("service",)
        servers = "".join(f"    server e{n} {each}:{service.port}\n" for n, each in enumerate(service.addresses))
        chosen = "default_backend service"
        if isinstance(service, NamedService):
            (self.directory / "names.map").write_text("".join(f"{name} {name}\n" for name in names))
            chosen = _HAPROXY_NAMES % {"map": self.directory / "names.map"}
        text = _HAPROXY % {
            "buffer": self.buffer_bytes,
            "pipe": self.pipe_bytes,
            "options": self.options,
            "port": self.port,
            "chosen": chosen,
            "backends": "".join(f"backend {name}\n{servers}" for name in names),
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
        service = self.service
        names = service.names if isinstance(service, NamedService) else ("service",)
        at = {
            "address": "127.0.0.1",
            "port_value": self.port,
            "protocol": "UDP" if service.protocol == "udp" else "TCP",
        }
        listener: dict[str, object] = {"name": "carried", "address": {"socket_address": at}}
        if isinstance(service, DatagramService):
            listener |= self._datagrams(service)
        else:
            listener["filter_chains"] = [self._chain(name) for name in names]
        if isinstance(service, NamedService):
            listener["listener_filters"] = [_filter("listener.tls_inspector", _INSPECTOR)]
        return {
            "node": {"id": "bench", "cluster": "bench"},
            "static_resources": {"listeners": [listener], "clusters": [self._cluster(name) for name in names]},
        }

    def _chain(self, name: str) -> dict[str, object]:
        proxy = {"stat_prefix": "carried", "cluster": name, "idle_timeout": "600s"}
        match = {"filter_chain_match": {"server_names": [name]}} if isinstance(self.service, NamedService) else {}
        return {**match, "filters": [_filter("network.tcp_proxy", _TCP_PROXY, **proxy)]}

    @staticmethod
    def _datagrams(service: DatagramService) -> dict[str, object]:
        """It does not count answers."""
        proxy = {
            "stat_prefix": "carried",
            "idle_timeout": f"{SHORT_MS / 1000}s" if service.responses else f"{SESSION_SECONDS}s",
            "matcher": {"on_no_match": {"action": _filter("udp.route", _UDP_ROUTE, cluster="service")}},
        }
        return {"listener_filters": [_filter("udp_listener.udp_proxy", _UDP_PROXY, **proxy)]}

    def _cluster(self, name: str) -> dict[str, object]:
        port = self.service.port
        endpoints = [{"endpoint": {"address": socket_address(each, port)}} for each in self.service.addresses]
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "lb_policy": "ROUND_ROBIN",
            "circuit_breakers": {"thresholds": [{"max_connections": 1_000_000, "max_pending_requests": 1_000_000}]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        }

    def command(self) -> list[str | Path]:
        flags = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        return [Envoy.program(), "-c", self.directory / "envoy.json", *flags]


_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters."
_TCP_PROXY = "network.tcp_proxy.v3.TcpProxy"
_INSPECTOR = "listener.tls_inspector.v3.TlsInspector"
_UDP_PROXY = "udp.udp_proxy.v3.UdpProxyConfig"
_UDP_ROUTE = "udp.udp_proxy.v3.Route"


def _filter(name: str, kind: str, **fields: object) -> dict[str, object]:
    return {"name": f"envoy.filters.{name}", "typed_config": {"@type": _EXTENSIONS + kind, **fields}}


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
    map_hash_bucket_size 128;
    map $ssl_preread_server_name $upstream { %(map)s }
    %(upstreams)s
    server { listen %(listen)s; %(more)s proxy_pass %(chosen)s; }
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
frontend carried
    bind 127.0.0.1:%(port)d backlog 4096
    %(chosen)s
%(backends)s
"""

_HAPROXY_NAMES = """\
tcp-request inspect-delay 5s
    tcp-request content accept if { req.ssl_hello_type 1 }
    use_backend %%[req.ssl_sni,lower,map(%(map)s,none)]
    default_backend none
backend none
    tcp-request content reject"""

CARRIERS: dict[str, type[Carrier]] = {
    "floor": FloorCarrier,
    "lb": LbCarrier,
    "nginx": NginxCarrier,
    "haproxy": HAProxyCarrier,
    "envoy": EnvoyCarrier,
}
"""By the name of the contender whose program it is."""
