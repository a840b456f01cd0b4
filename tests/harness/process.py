"""lb as a child process: start, wait until it serves, look inside through its admin socket, and end it cleanly."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.waiting import DEADLINE, SANITIZED, wait_until

ROOT = Path(__file__).resolve().parents[2]
_BAD_IN_STDERR = re.compile(
    r"Traceback \(most recent call last\)|ERROR: AddressSanitizer|runtime error:|SUMMARY: \w+Sanitizer"
    r"|Fatal Python error|Segmentation fault|assertion failed",
    re.IGNORECASE,
)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lb", timeout=DEADLINE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class LbProcess:
    """`python -m lb run PATH…` with its admin socket, access log and stderr in `directory`."""

    def __init__(
        self,
        paths: Sequence[Path],
        directory: Path,
        *options: str,
        threads: int = 2,
        environment: Mapping[str, str] | None = None,
        open_files: int | None = None,
        wait: bool = True,
        through: Sequence[str] = (),
    ) -> None:
        """`through`: a command that starts the one behind it, such as `setpriv`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.admin_socket = directory / "admin.sock"
        self.access_log = directory / "access.log"
        self.stderr_path = directory / "stderr.log"
        command = [
            sys.executable, "-m", "lb", "run", *map(str, paths),
            "--admin-socket", str(self.admin_socket),
            "--access-log", str(self.access_log), "--log-format", "json",
            "--threads", str(threads), *options,
        ]  # fmt: skip
        command = [*through, *command]
        if open_files is not None:
            command = ["prlimit", f"--nofile={open_files}:{open_files}", *command]
        with self.stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(environment), stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def wait_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"lb ended with {self.process.returncode} instead of serving:\n{self.stderr}")
            with contextlib.suppress(OSError):
                return self.admin("/readyz")[0] == 200
            return False

        try:
            wait_until(ready, "lb is ready", interval=0.02)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.stderr}") from None

    def admin(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes]:
        """(status, body) of a request to the admin API."""
        connection = _UnixConnection(self.admin_socket)
        try:
            payload = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if payload else {}
            connection.request(method, path, body=payload, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """Decoded JSON of the admin API, with all that has been answered before; AssertionError unless 200."""
        self.wait_turns()
        status, body = self.admin(path)
        assert status == 200, f"{path}: {status} {body[:500]!r}"
        return json.loads(body)

    @property
    def generation(self) -> int:
        """Of the table that serves."""
        return int(self.get("/v1/config")["generation"])

    def wait_generation_after(self, generation: int) -> int:
        return wait_until(lambda: (now := self.generation) > generation and now, f"a generation after {generation}")

    def endpoints(self, upstream: str) -> set[str]:
        return {one["endpoint"] for one in self.get(f"/v1/upstreams/{upstream}")["endpoints"]}

    def wait_turns(self) -> None:
        """Every reactor has ended the turn it was in. It counts after it has sent, so that whoever has an answer is not
        sure to find it counted before.
        """
        self.admin("/v1/flows?limit=1")  # which each of them answers between its turns

    def metrics(self) -> dict[str, float]:
        """Every sample by its name with labels, as /metrics writes it."""
        status, body = self.admin("/metrics")
        assert status == 200
        samples = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                match = re.match(r"(\w+(?:\{.*\})?) (\S+)", line)
                assert match, line
                samples[match[1]] = float(match[2])
        return samples

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all samples of `name` that have these labels, with all that has been answered before."""
        if not name.startswith("lb_reactor_"):  # asking makes turns and events, which these count
            self.wait_turns()
        total = 0.0
        for key, value in self.metrics().items():
            if key.split("{", 1)[0] == name and all(f'{label}="{wanted}"' in key for label, wanted in labels.items()):
                total += value
        return total

    def log_records(self) -> list[dict[str, Any]]:
        """The access log so far, without a last line that is still being written."""
        text = self.access_log.read_text() if self.access_log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def wait_log(self, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """At least `count` access log records that have these fields."""

        def matching() -> list[dict[str, Any]]:
            records = self.log_records()
            found = [item for item in records if all(item.get(key) == value for key, value in fields.items())]
            return found if len(found) >= count else []

        try:
            return wait_until(matching, f"{count} access log records with {fields}", interval=0.02)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log ends {self.log_records()[-10:]}\n{self.stderr[-2_000:]}") from None

    def ctl(self, *arguments: str) -> str:
        """Output of `lb ctl`; AssertionError when it fails."""
        result = subprocess.run(
            [sys.executable, "-m", "lb", "ctl", "--socket", str(self.admin_socket), *arguments],
            cwd=ROOT, env=_environment(None), capture_output=True, text=True, timeout=DEADLINE * 2, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"ctl {arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def fd_count(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def sockets(self) -> int:
        """Open socket descriptors."""
        count = 0
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += str(link.readlink()).startswith("socket:")
        return count

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]

    def cpu_seconds(self) -> float:
        """User and system time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens meanwhile reaches lb at once, when it goes on."""
        tasks = Path(f"/proc/{self.pid}/task")
        self.signal(signal.SIGSTOP)
        try:
            # Each thread stops by itself, and the first one is the state of the process.
            wait_until(
                lambda: all(
                    (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()
                ),
                "all threads of lb have stopped",
            )
            yield
        finally:
            self.signal(signal.SIGCONT)

    def assert_healthy(self) -> None:
        """It runs, and stderr holds no traceback and no sanitizer report."""
        assert self.process.poll() is None, f"lb ended with {self.process.returncode}:\n{self.stderr}"
        self._assert_clean_stderr()

    def assert_at_rest(self) -> None:
        """Once all clients have gone nothing stays behind: no connection, no request, no buffer, no old table."""
        watched = re.compile(r"lb_(connections_active|buffer_bytes|tables_pinned|upstream_requests_\w+|\w+_active)\b")

        def left() -> dict[str, float]:
            return {key: value for key, value in self.metrics().items() if value and watched.match(key)}

        try:
            wait_until(lambda: not left(), "nothing stays behind", interval=0.02)
        except AssertionError as error:
            raise AssertionError(f"{error}: {left()}") from None

    def _assert_clean_stderr(self) -> None:
        text = self.stderr
        assert not _BAD_IN_STDERR.search(text), f"lb's stderr:\n{text[-20_000:]}"

    def stop(self) -> None:
        """TERM; it must end with 0, in time, and without a word of distress."""
        try:
            self.assert_healthy()
            self.signal(signal.SIGTERM)
            self.assert_ends()
        finally:
            self.kill()

    def assert_ends(self) -> None:
        """After a signal: it ends with 0 and a clean stderr."""
        try:
            code = self.process.wait(DEADLINE * 2)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"lb did not end after SIGTERM:\n{self.stderr}") from None
        assert code == 0, f"lb ended with {code}:\n{self.stderr}"
        self._assert_clean_stderr()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> LbProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.process.poll() is not None:
            if kind is None:
                self._assert_clean_stderr()
        elif kind is None:
            self.stop()
        else:
            self.kill()


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **(extra or {})}
    if SANITIZED:
        library = subprocess.run(
            [shutil.which("gcc") or "cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        environment.setdefault("LD_PRELOAD", library)
        # CPython keeps memory until it exits, by design.
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=0:halt_on_error=1")
        environment.setdefault("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    return environment
