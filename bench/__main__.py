"""`python -m bench`: build, measure, show; see README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench import report
from bench.build import BENCH, RESULTS, build_programs
from bench.contenders import CONTENDERS, Contender, Unavailable
from bench.figures import FIGURES
from bench.load import LoadFailed, backend
from bench.machine import LOAD_CPU, describe, enter_own_network, run_on
from bench.measure import Settings, say, show

MICRO = "micro"


def parse_arguments() -> argparse.Namespace:
    names = [figure.name for figure in FIGURES]
    peers = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure lb against its floor and its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: 10 minutes, rough numbers")
    parser.add_argument(
        "--only", action="append", choices=[*names, MICRO], metavar="NAME", help=", ".join([*names, MICRO])
    )
    parser.add_argument("--peers", default=",".join(peers), help="comma-separated; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="how often each contender takes its turn (default: 5, quick: 2)")
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/benchmarks.md from the last results, measure nothing"
    )
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    if unknown := set(arguments.peers) - set(peers):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    return arguments


def find_contenders(names: list[str]) -> tuple[list[type[Contender]], dict[str, str]]:
    """Those of them that this machine has, with their versions."""
    found, versions = [], {}
    for contender in CONTENDERS:
        if contender.name in names:
            try:
                versions[contender.name] = contender.version()
            except Unavailable as missing:
                say(f"bench: without {contender.name}: {missing}")
                continue
            found.append(contender)
    return found, versions


def run_figures(arguments: argparse.Namespace, directory: Path) -> bool:
    """Whether all of them could be measured."""
    contenders, versions = find_contenders(arguments.peers)
    about = {
        **describe(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if name != "floor"),
    }
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    with backend() as (port, pid):
        settings = Settings(
            arguments.quick, tuple(contenders), directory, port, pid, rounds, 1 if arguments.quick else 2
        )
        for figure in FIGURES:
            if arguments.only and figure.name not in arguments.only:
                continue
            say(f"{figure.title}")
            began = time.monotonic()
            run = replace(settings, figure=figure.name)
            try:
                rows = figure.run(run)
            except (LoadFailed, RuntimeError) as failure:
                run.fail("everything", failure)
                continue
            show(figure, rows)
            say(f"  [{time.monotonic() - began:.0f} s]")
            if rows:
                report.save(figure, rows, about)
    if settings.failures:
        say(f"bench: not measured: {', '.join(settings.failures)}")
    return not settings.failures


def run_micro() -> bool:
    """The parts on their own, by pytest-benchmark."""
    RESULTS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", BENCH / "micro", "-q", "--benchmark-json", RESULTS / "micro.json"]
    columns = [
        "--benchmark-columns=median,iqr,rounds",
        "--benchmark-disable-gc",
        "--timeout=300",
        "--benchmark-max-time=0.5",
    ]
    return subprocess.run([*command, *columns, "-p", "no:cacheprovider"], check=False, cwd=BENCH.parent).returncode == 0


def main() -> int:
    arguments = parse_arguments()
    if arguments.write_docs:
        report.write_docs()
        return 0
    if len(os.sched_getaffinity(0)) < 2:
        say("bench: two CPUs are needed, one for the proxy and one for the load")
        return 1
    build_programs()
    if not enter_own_network():
        say("bench: not root, so this machine's own network is used, with whatever else it carries")
    run_on(LOAD_CPU)
    directory = Path(tempfile.mkdtemp(prefix="lb-bench-"))
    try:
        complete = run_figures(arguments, directory) if arguments.only != [MICRO] else True
    finally:
        shutil.rmtree(directory)
    if MICRO in arguments.only if arguments.only else not arguments.quick:
        complete = run_micro() and complete
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
