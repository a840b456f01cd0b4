"""The daemon as a process: start, reload, signals, drain and end, with real sockets and the real data plane."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lb.cli.main import main
from tests.harness.backend import OK, BackendConnection, RawBackend, answering
from tests.harness.certificates import Authority
from tests.harness.client import RawClient, get
from tests.harness.native import Native, forward, respond
from tests.harness.ports import free_port
from tests.harness.process import ROOT, LbProcess
from tests.harness.tcp import TcpServer, echo, read_exactly
from tests.harness.waiting import DEADLINE, wait_until
from tests.translate.cluster import backend, ingress


class Site:
    """A native file that lb serves, on a port of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "site.yaml"
        self.native = Native()
        self.port = free_port()
        self.native.listen("http", self.port)
        self.native.host("a.test", respond("a", 200, "first"))
        self.native.write(self.path)

    def ask(self, host: str = "a.test", path: str = "/", port: int | None = None) -> tuple[int, bytes]:
        with RawClient(("127.0.0.1", port or self.port)) as client:
            answer = client.ask(get(host, path))
            return answer.status, answer.body


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextlib.contextmanager
def running(site: Site, *options: str, **keywords: object) -> Iterator[LbProcess]:
    with LbProcess([site.path], site.directory / "lb", *options, threads=2, **keywords) as lb:  # type: ignore[arg-type]
        yield lb


def test_a_first_build_that_is_refused_is_told_everywhere(site: Site) -> None:
    """What no check of the input caught: lb runs, says why it serves nothing, and serves once the input is good."""
    code = (
        "import lb.compile.table as table\n"
        "network = table._network\n"
        "def refuse(text):\n"
        "    if text == '192.0.2.66': raise ValueError('no such network')\n"
        "    return network(text)\n"
        "table._network = refuse\n"
    )
    (site.directory / "sitecustomize.py").write_text(code)
    site.native.listen("http", site.port, trusted_proxies=["192.0.2.66"])
    site.native.write(site.path)
    with running(site, wait=False, environment={"PYTHONPATH": f"{site.directory}:{ROOT}"}) as lb:
        why = "the first build was refused: ValueError: no such network"
        wait_until(lambda: lb.admin_socket.exists() and why in lb.admin("/readyz")[1].decode(), "it says why")
        assert lb.admin("/readyz")[0] == 503
        config = lb.get("/v1/config")
        assert (config["generation"], config["last_refused"]["error"]) == (0, "ValueError: no such network")
        assert lb.metric("lb_config_last_build_success") == 0
        assert "the first build was refused: nothing is served" in lb.stderr
        site.native.listen("http", site.port, trusted_proxies=[])
        site.native.write(site.path)
        wait_until(lambda: lb.generation == 1, "the good input serves")
        assert site.ask() == (200, b"first")
        lb.stderr_path.write_text("")  # its traceback was wanted


def test_objects_that_only_moved_in_their_file_are_shown_where_they_are_now(tmp_path: Path) -> None:
    path, port = tmp_path / "shop.yaml", free_port()
    objects = backend("web", "127.0.0.1") + backend("idle") + ingress("web", ("a.test", "Prefix", "/", "web"))
    objects += ingress("idle", ("b.test", "Prefix", "/", "idle"))
    path.write_text(objects)
    with LbProcess([path], tmp_path / "lb", "--publish", f"80=127.0.0.1:{port}") as lb:

        def places() -> list[int]:
            told = lb.get("/v1/explain?url=http://a.test/")
            endpoint = told["upstreams"][0]["endpoints"][0]
            lines = [told["routes"][0]["source"]["line"], told["upstreams"][0]["source"]["line"]]
            shown = [lb.get("/v1/routes?host=a.test")["items"][0], *lb.get("/v1/upstreams")["items"]]
            shown.append(lb.get("/v1/upstreams/shop/web:80")["endpoints"][0])
            lines += [endpoint["source"]["line"], *(int(one["source"].split(":")[-2]) for one in shown)]
            found = [one for one in lb.get("/v1/problems")["items"] if one["code"] == "LB4003"]
            return [*lines, *(one["origin"]["line"] for one in found)]

        before = places()
        assert 0 not in before
        assert len(before) == 8
        path.write_text("# one\n# two\n# three\n" + objects)
        wait_until(lambda: places() == [line + 3 for line in before], "the new lines are told")
        assert lb.generation == 1


def run_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lb", "run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_it_serves_follows_its_file_and_ends(site: Site) -> None:
    with running(site) as lb:
        assert site.ask() == (200, b"first")
        generation = lb.generation
        site.native.host("a.test", respond("a", 200, "second"))
        site.native.write(site.path)
        lb.wait_generation_after(generation)
        assert site.ask() == (200, b"second")
        (listener,) = lb.get("/v1/listeners")
        assert listener["address"] == f"127.0.0.1:{site.port}"
        assert lb.get("/v1/routes?host=a.test")["items"][0]["requests"] == 2
        lb.stop()


def test_the_metrics_are_those_of_the_engine(site: Site) -> None:
    with running(site) as lb:
        site.ask()
        wait_until(lambda: lb.metric("lb_exchange_end_total", reason="local-answer") == 1, "the exchange is counted")
        assert lb.metric("lb_listener_responses_total", code_class="2xx") == 1
        assert lb.metric("lb_route_request_duration_seconds_count", route="a") == 1
        assert lb.metric("lb_config_generation") == 1
        assert lb.metric("lb_ready") == 1
        assert lb.metric("lb_reactor_turns_total") > 0


def test_a_broken_file_changes_nothing_and_is_told(site: Site) -> None:
    with running(site) as lb:
        good = site.path.read_text()
        site.path.write_text("listeners: [\n")
        wait_until(lambda: lb.get("/v1/problems?severity=error")["total"], "the problem is told")
        assert site.ask() == (200, b"first")
        site.path.write_text(good)
        wait_until(lambda: not lb.get("/v1/problems?severity=error")["total"], "the problem is gone")


def test_hup_reads_again_and_opens_what_could_not_be_opened(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        site.native.listen("taken", taken)
        site.native.write(site.path)
        with running(site) as lb:
            assert site.ask()[0] == 200
            (problem,) = lb.get("/v1/problems?severity=error")["items"]
            assert problem["code"] == "LB6001"
            assert f"pid {os.getpid()}" in problem["why"]
            assert lb.metric("lb_listener_up", listener="taken") == 0
            holder.close()
            lb.signal(signal.SIGHUP)
            wait_until(lambda: lb.metric("lb_listener_up", listener="taken") == 1, "the listener is open")
            assert site.ask(port=taken) == (200, b"first")
            assert lb.ctl("reload").startswith("unchanged")


def test_a_reload_that_changes_nothing_is_told(site: Site) -> None:
    with running(site) as lb:
        lb.signal(signal.SIGHUP)
        (record,) = wait_until(lambda: _told(lb, "unchanged"), "the log tells of it")
        assert (record["level"], record["generation"]) == ("info", 1)
        assert lb.ctl("reload").startswith("unchanged")
        assert len(_told(lb, "unchanged")) == 2


def _told(lb: LbProcess, event: str) -> list[dict[str, Any]]:
    """What the daemon has logged under this name."""
    records = [json.loads(line) for line in lb.stderr.splitlines() if line.startswith("{") and line.endswith("}")]
    return [record for record in records if record["event"] == event]


def test_defaults_of_the_settings_hold_for_native_listeners(tmp_path: Path) -> None:
    native, path = Native(), tmp_path / "lb.yaml"
    with TcpServer(echo) as server:
        native.upstream("echo", [server.key])
        native.carry("one", free_port(), "echo")
        native.carry("many", free_port(), "echo", max_connections_per_client=0)
        native.write(path)
        settings = tmp_path / "settings.yaml"
        settings.write_text(
            "apiVersion: lb/v1\nkind: Config\nsettings: {defaults: {stream: {max_connections_per_client: 1}}}\n"
        )
        with LbProcess([path], tmp_path / "lb", "-c", str(settings)) as lb:
            one, many = (("127.0.0.1", native.listeners[name]["port"]) for name in ("one", "many"))
            with socket.create_connection(many, DEADLINE) as first, socket.create_connection(many, DEADLINE) as second:
                for connected in (first, second):
                    connected.sendall(b"x")
                    assert read_exactly(connected, 1) == b"x"
            with socket.create_connection(one, DEADLINE) as first:
                first.sendall(b"x")
                assert read_exactly(first, 1) == b"x"
                with pytest.raises(ConnectionResetError), socket.create_connection(one, DEADLINE) as second:
                    second.recv(1)
            assert lb.ctl("reload").startswith("unchanged")
            told = explained(lb, f"tcp://127.0.0.1:{one[1]}")
            assert "max_connections_per_client 1  [settings defaults.stream]" in told


def test_a_published_port_and_the_admin_address(site: Site) -> None:
    published, admin = free_port(), free_port()
    with running(site, "--publish", f"{site.port}=127.0.0.1:{published}", "--admin", f"127.0.0.1:{admin}") as lb:
        assert site.ask(port=published) == (200, b"first")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", site.port), 5)
        with RawClient(("127.0.0.1", admin)) as client:
            assert client.ask(get("admin", "/readyz")).status == 200
        explanation = json.loads(lb.ctl("-o", "json", "status"))
        assert explanation["ready"] is True


def test_https_redirects_lead_to_the_published_port(site: Site) -> None:
    https, published = free_port(), free_port()
    site.native.certificate("a", Authority().issue("a.test"))
    site.native.listen_tls("https", https, {"a.test": ["a"]})
    site.native.host("a.test", {**respond("a", 200, "secure"), "https_redirect": 308})
    site.native.write(site.path)
    with running(site, "--publish", f"{https}=127.0.0.1:{published}"), RawClient(("127.0.0.1", site.port)) as client:
        answer = client.ask(get("a.test", "/x?y=1"))
        assert (answer.status, answer.headers.get("location")) == (308, f"https://a.test:{published}/x?y=1".encode())


def explained(lb: LbProcess, url: str) -> str:
    return CliRunner().invoke(main, ["explain", url, "--live", str(lb.admin_socket)]).stdout


def test_explain_tells_that_a_listener_is_closed_and_where_one_is_published(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, published = other.getsockname()[1], free_port()
        site.native.listen("taken", taken)
        site.native.write(site.path)
        with running(site, "--publish", f"{site.port}=127.0.0.1:{published}") as lb:
            told = explained(lb, f"http://a.test:{taken}/")
            assert f"✗ taken 127.0.0.1:{taken}, serves host set default: closed: " in told
            assert f"no answer, no-listener: nobody listens on 127.0.0.1:{taken} for taken: " in told
            told = explained(lb, f"http://a.test:{published}/")
            assert f"✓ http 127.0.0.1:{site.port}, published at 127.0.0.1:{published}" in told


def test_usr1_reopens_the_access_log(site: Site) -> None:
    with running(site) as lb:
        site.ask(path="/before")
        lb.wait_log(1, target="/before")
        rotated = lb.access_log.with_suffix(".1")
        lb.access_log.rename(rotated)
        lb.signal(signal.SIGUSR1)
        asked = 0

        def after() -> bool:
            nonlocal asked
            asked += 1
            site.ask(path="/after")
            return lb.access_log.exists() and "/after" in lb.access_log.read_text()

        wait_until(after, "records go to the new file")
        files = (rotated, lb.access_log)
        wait_until(lambda: sum(file.read_text().count("/after") for file in files) == asked, "no record is lost")


class Gate:
    """A backend that answers when it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Event()
        self.backend = RawBackend(self.answer)

    def answer(self, connection: BackendConnection) -> None:
        if connection.read() is not None:
            self.asked.set()
            assert self.open.wait(DEADLINE)
            connection.send(OK)


@pytest.fixture
def gate(site: Site) -> Iterator[Gate]:
    gate = Gate()
    with gate.backend:
        site.native.serve("slow.test", gate.backend)
        site.native.write(site.path)
        yield gate
        gate.open.set()


def test_term_finishes_what_is_under_way(site: Site, gate: Gate) -> None:
    with (
        running(site) as lb,
        RawClient(("127.0.0.1", site.port)) as client,
        RawClient(("127.0.0.1", site.port)) as idle,
    ):
        assert idle.ask(get("a.test")).status == 200
        client.send(get("slow.test"))
        assert gate.asked.wait(DEADLINE)
        lb.signal(signal.SIGTERM)
        wait_until(lambda: lb.admin("/readyz")[0] == 503, "readiness is off")
        assert json.loads(lb.admin("/readyz")[1])["why"] == "draining"
        assert lb.admin("/livez")[0] == 200
        assert idle.rest() == b"", "an idle connection is closed"
        wait_until(lambda: refused(site.port), "nothing new is accepted")
        site.native.host("b.test", respond("b", 200))
        site.native.write(site.path)
        lb.ctl("reload")
        assert refused(site.port), "a change opens nothing again"
        gate.open.set()
        answer = client.response()
        assert (answer.status, answer.body) == (200, b"ok")
        lb.assert_ends()
        assert not lb.admin_socket.exists()


def test_a_second_term_ends_now(site: Site, gate: Gate) -> None:
    with running(site) as lb, RawClient(("127.0.0.1", site.port)) as client:
        client.send(get("slow.test"))
        assert gate.asked.wait(DEADLINE)
        lb.signal(signal.SIGTERM)
        wait_until(lambda: lb.admin("/readyz")[0] == 503, "it drains")
        lb.signal(signal.SIGTERM)
        lb.assert_ends()
        assert not gate.open.is_set()


def test_the_drain_time_ends_waiting(site: Site, gate: Gate) -> None:
    settings = site.directory / "lb.yaml"
    settings.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {drain_timeout: 100ms}\n")
    with running(site, "-c", str(settings)) as lb, RawClient(("127.0.0.1", site.port)) as client:
        lb.ctl("reload")
        assert "settings have changed" not in lb.stderr
        settings.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {drain_timeout: 1h}\n")
        lb.ctl("reload")
        assert "settings have changed: they are read at start only" in lb.stderr
        client.send(get("slow.test"))
        assert gate.asked.wait(DEADLINE)
        lb.signal(signal.SIGTERM)
        lb.assert_ends()
        assert "requests were cut off" in lb.stderr


def test_settings_that_change_are_told_without_a_reload(site: Site) -> None:
    settings = site.directory / "lb.yaml"
    head = "apiVersion: lb/v1\nkind: Config\nsettings: "
    settings.write_text(head + "{drain_timeout: 100ms}\n")
    with running(site, "-c", str(settings)) as lb:
        settings.write_text(head + "{drain_timeout: 1h}\n")
        wait_until(lambda: "settings have changed: they are read at start only" in lb.stderr, "the change is told")
        settings.write_text(head + "{drian_timeout: 1h}\n")
        wait_until(lambda: "settings cannot be read: lb would not start with them" in lb.stderr, "the mistake is told")
        assert "did you mean `drain_timeout`?" in lb.stderr
        told = lb.ctl("problems")
        assert "LB5003" in told
        assert f"{settings}:3" in told
        assert "did you mean `drain_timeout`?" in told
        assert "lb goes on with the settings that it was started with" in told
        assert lb.metric("lb_config_problems", severity="error") == 1
        assert lb.get("/v1/status")["problems"]["error"] == 1
        settings.write_text(head + "{drain_timeout: !long 1h}\n")
        lb.ctl("reload")
        assert "the tag '!long'" in lb.ctl("problems")
        settings.unlink()
        lb.ctl("reload")
        assert "the settings cannot be read" in lb.ctl("problems")
        settings.write_text(head + "{drain_timeout: 100ms}\n")
        lb.ctl("reload")
        assert lb.metric("lb_config_problems", severity="error") == 0


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_operators_drain_endpoints_and_a_reload_keeps_it(site: Site) -> None:
    with RawBackend(answering(answer_named(b"one"))) as one, RawBackend(answering(answer_named(b"two"))) as two:
        site.native.serve("app.test", one, two)
        site.native.write(site.path)
        with running(site) as lb:
            assert {site.ask("app.test")[1] for _ in range(6)} == {b"one", b"two"}
            assert "drain" in lb.ctl("drain", "app.test", one.key)
            lb.ctl("reload")
            assert {site.ask("app.test")[1] for _ in range(6)} == {b"two"}
            lb.ctl("weight", "app.test", two.key, "0")
            lb.ctl("ready", "app.test", one.key)
            assert {site.ask("app.test")[1] for _ in range(6)} == {b"one"}
            assert lb.metric("lb_endpoint_weight", endpoint=two.key) == 0


def answer_named(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_settings_of_the_file_hold(site: Site) -> None:
    settings = site.directory / "lb.yaml"
    settings.write_text(
        f"""
apiVersion: lb/v1
kind: Config
settings:
  threads: 1
  error_answers: [{{status: 404, content_type: text/plain, body: "nothing at all (%(status))"}}]
  access_log: {{format: "%{{status}} %{{target}}"}}
listeners: {{own: {{address: 127.0.0.1, port: {free_port()}}}}}
"""
    )
    log = site.directory / "own.log"
    options = ["-c", str(settings), "--access-log", str(log), "--admin-socket", str(site.directory / "a.sock")]
    process = subprocess.Popen([sys.executable, "-m", "lb", "run", str(site.path), *options], cwd=ROOT)
    try:
        wait_until(lambda: not refused(site.port), "it listens")
        assert site.ask("unknown.test") == (404, b"nothing at all (404)")
        wait_until(lambda: log.exists() and log.read_text() == "404 /\n", "the record is written")
        status = [sys.executable, "-m", "lb", "ctl", "--admin-socket", str(site.directory / "a.sock"), "status"]
        shown = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "1 threads" in shown
        assert "2 of 2 open" in shown
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0


def test_term_while_the_input_is_still_read(site: Site) -> None:
    """A pipe that nobody writes to stands for an export that takes long."""
    pipe = site.directory / "never.json"
    os.mkfifo(pipe)
    with LbProcess([pipe], site.directory / "lb", wait=False) as lb:

        def lives() -> bool:
            with contextlib.suppress(OSError):
                return lb.admin("/livez")[0] == 200
            return False

        wait_until(lives, "it lives")
        assert json.loads(lb.admin("/readyz")[1])["why"] == "reading the input"
        lb.signal(signal.SIGTERM)
        lb.assert_ends()


def test_new_errors_of_the_input_are_told_once_each(site: Site) -> None:
    def told(lb: LbProcess) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in lb.stderr.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("code") == "LB4001"]

    def lose(*services: str) -> None:
        site.native.host("lost.test", *(forward(one, f"shop/{one}:80") for one in services))
        site.native.write(site.path)

    lose("first")
    with running(site) as lb:
        [first] = told(lb)
        assert first["event"] == "Service shop/first does not exist"
        assert (first["level"], str(first["place"]).partition(":")[0]) == ("error", str(site.path))
        lose("first", "second")
        wait_until(lambda: len(told(lb)) == 2, "the new one is told")
        assert told(lb)[1]["event"] == "Service shop/second does not exist"
        lose(*(f"more-{number:02}" for number in range(23)))
        wait_until(lambda: "and 3 more errors: `lb ctl problems` shows all" in lb.stderr, "the rest is counted")
        assert len(told(lb)) == 2 + 20


def told_errors(lb: LbProcess, code: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in lb.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("code") == code]


def test_a_mistake_in_the_file_is_told_once_and_a_restart_begins_with_what_is_written(site: Site) -> None:
    site.native.host("b.test", respond("b", 200, "b"))
    site.native.write(site.path)
    text = site.path.read_text()
    broken = text.replace("status: 200", "status: two hundred", 1)
    with running(site) as lb:
        site.path.write_text(broken)
        wait_until(lambda: told_errors(lb, "LB5003"), "the mistake is told")
        site.path.write_text(broken + "\n# another line\n")
        lb.ctl("reload")
        (error,) = told_errors(lb, "LB5003")
        line = broken[: broken.index("two hundred")].count("\n") + 1
        assert error["place"].startswith(f"{site.path}:{line}")
        assert error["why"] == "the last good version of `hosts.default.a.test` stays in use"
        assert (site.ask(), site.ask("b.test")) == ((200, b"first"), (200, b"b"))
        # Who sees only the file sees what a restart would serve.
        checked = CliRunner().invoke(main, ["check", str(site.path)])
        assert checked.exit_code == 1
        assert "LB5003" in checked.output
        assert "stays in use" not in checked.output
        lb.stop()
    with running(site) as lb:
        assert (site.ask()[0], site.ask("b.test")) == (404, (200, b"b"))
        site.path.unlink()
        site.path.write_text(text)
        wait_until(lambda: site.ask() == (200, b"first"), "what is mended serves")


def test_a_fault_of_lb_costs_one_object_and_its_traceback_is_told_once(tmp_path: Path) -> None:
    code = (
        "import lb.translate.translation as translation\n"
        "translate = translation.translate_ingress\n"
        "def fail(stored, *rest):\n"
        "    if 'bad' in str(stored.object.spec.rules): raise KeyError('of a bug')\n"
        "    return translate(stored, *rest)\n"
        "translation.translate_ingress = fail\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    site = Site(tmp_path)
    site.native.listeners["http"]["host_set"] = "ingress"
    site.native.write(site.path)
    objects = tmp_path / "objects.yaml"

    def write(*paths: str) -> None:
        rules = [ingress(f"on-{host}", (host, "Prefix", path, "web")) for host, path in zip(HOSTS, paths, strict=False)]
        objects.write_text("".join(rules) + backend("web"))

    write("/bad", "/")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with LbProcess([site.path, objects], tmp_path / "lb", threads=2, environment=environment) as lb:
        assert [site.ask(host)[0] for host in HOSTS] == [404, 503]
        write("/good", "/")
        wait_until(lambda: site.ask(HOSTS[0], "/good")[0] == 503, "without the fault it is served")
        write("/bad", "/more")
        wait_until(lambda: site.ask(HOSTS[1])[0] == 404, "everything else changes")
        assert site.ask(HOSTS[0], "/good")[0] == 503
        lb.ctl("reload")
        first, second = told_errors(lb, "LB7001")
        assert first["object"] == "Ingress shop/on-one.test"
        assert first["event"] == "lb fails on it: KeyError: 'of a bug'"
        assert "in fail" in first["exception"]
        assert (first["why"], second["why"]) == (
            "it is left out; everything else is served",
            "its last good version stays in use",
        )
        write()
        wait_until(lambda: site.ask(HOSTS[0], "/good")[0] == 404, "what is removed goes")
        assert lb.metric("lb_config_last_build_success") == 1
        lb.stderr_path.write_text("")  # its tracebacks were wanted


HOSTS = ("one.test", "two.test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one PATH"),
        (["-c", "{settings}"], "settings.thread: unknown field; did you mean `threads`?"),
        (["x", "--publish", "80"], "`80` is not PORT=ADDRESS:PORT"),
        (["x", "--admin", "here"], "does not end in a port"),
        (["{empty}", "--log-format", "combind", "--admin-socket", "{socket}"], "did you mean `combined`?"),
        (
            ["{empty}", "--access-log", "/nowhere/access.log", "--admin-socket", "{socket}"],
            "Error: --access-log: /nowhere/access.log cannot be opened",
        ),
        (
            ["-c", "{logs}", "--admin-socket", "{socket}"],
            "/logs.yaml:4: settings.access_log.path: /nowhere/access.log cannot be opened: No such file or directory",
        ),
        (["{empty}", "--admin-socket", "/proc/a.sock"], "cannot start"),
        (["{empty}", "{empty}/nonexist"], "empty/nonexist does not exist"),
        (["{settings}/below"], "lb.yaml/below does not exist"),
    ],
)
def test_wrong_usage_is_told_at_once(tmp_path: Path, arguments: list[str], message: str) -> None:
    settings = tmp_path / "lb.yaml"
    settings.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {thread: 1}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    logs = tmp_path / "logs.yaml"
    logs.write_text(
        "apiVersion: lb/v1\nkind: Config\nsettings:\n  access_log: {path: /nowhere/access.log}\nhosts: {}\n"
    )
    names = {"logs": logs, "settings": settings, "socket": tmp_path / "a.sock", "empty": empty}
    result = run_to_end(*(text.format_map(names) for text in arguments))
    assert result.returncode == (1 if message == "cannot start" else 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_no_core_dumps_and_all_descriptors(site: Site) -> None:
    with running(site) as lb:
        limits = Path(f"/proc/{lb.pid}/limits").read_text()
        core = re.search(r"Max core file size +(\S+) +(\S+)", limits)
        files = re.search(r"Max open files +(\S+) +(\S+)", limits)
        assert core
        assert core.groups() == ("0", "0")
        assert files
        assert files[1] == files[2] == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_it_speaks_with_systemd(site: Site, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}

        def wait_for(first: str) -> str:
            while not (message := manager.recv(4096).decode()).startswith(first):
                pass
            return message

        with running(site, environment=environment) as lb:
            assert "generation 1: 1 hosts" in wait_for("READY=1")
            wait_for("WATCHDOG=1")
            lb.signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in wait_for("RELOADING=1")
            wait_for("READY=1")
            lb.signal(signal.SIGTERM)
            wait_for("STOPPING=1")
            lb.assert_ends()


def test_a_socket_of_systemd_is_served(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as activated:
        descriptor = os.dup2(activated.fileno(), 210)
        run = f"{sys.executable} -m lb run {site.path} --admin-socket {site.directory}/a.sock"
        script = f"exec 3<&{descriptor}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec {run}"
        process = subprocess.Popen(["bash", "-c", script], cwd=ROOT, pass_fds=[descriptor])
        os.close(descriptor)
        try:
            # Connecting works at once: systemd listens, and lb takes it over from the queue.
            assert site.ask(port=activated.getsockname()[1]) == (200, b"first")
            assert refused(site.port)
        finally:
            process.terminate()
            assert process.wait(DEADLINE) == 0


def test_the_demo_answers_with_its_endpoints(site: Site) -> None:
    port = free_port()
    site.native.serve("demo.test", f"127.0.0.11:{port}", f"127.0.0.12:{port}")
    site.native.write(site.path)
    with running(site, "--demo") as lb:
        answers = [json.loads(site.ask("demo.test", "/cart")[1]) for _ in range(4)]
        assert {answer["endpoint"] for answer in answers} == {f"127.0.0.11:{port}", f"127.0.0.12:{port}"}
        assert answers[0]["path"] == "/cart"
        assert "X-Request-ID" in answers[0]["headers"]
        assert "explain http://demo.test/" in lb.stderr
        lb.stop()
