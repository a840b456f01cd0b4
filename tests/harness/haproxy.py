"""HAProxy from the distribution, with a configuration of its own in a temporary directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.harness.tcp import listens_on
from tests.harness.waiting import DEADLINE, wait_until

HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")

_CONFIGURATION = """
global
    maxconn 200
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
"""


class HaProxy:
    """A running HAProxy; `port` is one that its sections listen on."""

    def __init__(self, directory: Path, sections: str, port: int) -> None:
        assert HAPROXY is not None
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "haproxy.cfg"
        path.write_text(_CONFIGURATION + sections)
        self.process = subprocess.Popen(
            [HAPROXY, "-db", "-q", "-f", str(path)], stdin=subprocess.DEVNULL, stderr=(directory / "stderr").open("wb")
        )
        wait_until(lambda: listens_on(port), "HAProxy is ready")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def __enter__(self) -> HaProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
