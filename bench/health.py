"""What active health checks cost the control plane: python -m bench.health [--endpoints N] [--interval SECONDS].

The checks run as in the daemon (lb/health/monitor.py in uvloop) on CPU 0, the endpoints on CPU 1; every endpoint has an
address of its own in 127.0.0.0/8. A first round finds out about all of them, then CPU time is counted over a few
intervals, in which each is checked as often as it should be. `lag` is how late the loop comes to a timer meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvloop

from bench.build import build_programs
from bench.certificate import make_certificate
from bench.load import backend, free_port, is_open, start_on_load_cpu
from bench.machine import PROXY_CPU, run_on
from lb.health.monitor import Monitor
from lb.health.runner import MOST
from lb.model.config import Config
from lb.model.health import CheckType, HealthCheck
from lb.model.tls import UpstreamTls
from lb.model.upstream import Endpoint, Upstream

INTERVALS = 3
TICK_S = 0.05
NAME = "bench.test"


@contextmanager
def tls_server() -> Iterator[tuple[int, UpstreamTls]]:
    """OpenSSL's own server (P-256), and how to trust it."""
    with tempfile.TemporaryDirectory(prefix="bench-health-") as directory:
        certificate = make_certificate(Path(directory), [NAME])
        port = free_port()
        command: list[str | Path] = ["openssl", "s_server", "-accept", f"*:{port}", "-quiet", "-naccept", "10000000"]
        command += ["-cert", certificate.chain, "-key", certificate.key]
        process = start_on_load_cpu(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not is_open(port):
                time.sleep(0.02)
            yield port, UpstreamTls(NAME, ca=certificate.chain.read_text())
        finally:
            process.kill()
            process.wait()


async def measure(upstream: Upstream, interval_s: float) -> str:
    """One row of the table."""
    known: set[str] = set()
    monitor = Monitor(lambda _, key, healthy: known.add(key) if healthy else None, MOST)
    monitor.follow(Config(upstreams={upstream.name: upstream}))
    began = time.monotonic()
    while len(known) < len(upstream.endpoints):
        await asyncio.sleep(TICK_S)
        if time.monotonic() - began > 60:
            raise RuntimeError(f"only {len(known)} endpoints of {len(upstream.endpoints)} are healthy")
    first_s = time.monotonic() - began
    await asyncio.sleep(interval_s)  # the first pauses are random, later ones are not
    before, cpu, wall = monitor.stats().results, time.process_time(), time.monotonic()
    lags = []
    while time.monotonic() - wall < INTERVALS * interval_s:
        asked = time.monotonic()
        await asyncio.sleep(TICK_S)
        lags.append(time.monotonic() - asked - TICK_S)
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    after = monitor.stats().results
    monitor.close()
    checks = after["passed"] - before["passed"]
    if failed := {
        name: after[name] - before[name] for name in after if name != "passed" and after[name] != before[name]
    }:
        raise RuntimeError(f"not all checks passed: {failed}")
    lags.sort()
    return (
        f"| {upstream.health_check.type} | {checks / wall_s:.0f} | {cpu_s / checks * 1e6:.0f} | {cpu_s / wall_s:.0%} "
        f"| {first_s:.1f} | {lags[len(lags) // 2] * 1000:.0f} | {lags[int(len(lags) * 0.99)] * 1000:.0f} |"
    )


def make_upstream(
    kind: CheckType, port: int, count: int, interval_s: float, tls: UpstreamTls | None = None
) -> Upstream:
    endpoints = tuple(
        Endpoint(f"127.{1 + index // 62_500}.{index // 250 % 250}.{1 + index % 250}", port) for index in range(count)
    )
    check = HealthCheck(kind, path="/128", interval_ms=round(interval_s * 1000))
    return Upstream("bench", endpoints=endpoints, health_check=check, tls=tls)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.health", description=__doc__.partition("\n")[0])
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds")
    parser.add_argument("--only", default="tcp,http,http2,tls", help="kinds of checks")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    build_programs()
    run_on(PROXY_CPU)
    print("| check | checks/s | CPU µs a check | of a core | first round s | lag p50 ms | lag p99 ms |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with backend() as (plain, _), backend("grpc_backend") as (http2, _), tls_server() as (secure, trust):
        ports: dict[CheckType, tuple[int, UpstreamTls | None]] = {
            "tcp": (plain, None), "http": (plain, None), "http2": (http2, None), "tls": (secure, trust),
        }  # fmt: skip
        for kind, (port, tls) in ports.items():
            if kind in arguments.only.split(","):
                upstream = make_upstream(kind, port, arguments.endpoints, arguments.interval, tls)
                print(uvloop.run(measure(upstream, arguments.interval)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
