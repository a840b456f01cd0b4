"""Settings: what is read, what is refused and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb.model.health import HealthCheck
from lb.settings import (
    Bind,
    Settings,
    SettingsError,
    default_admin_socket,
    find_admin_socket,
    has_routing,
    load_settings,
    parse_bind,
    parse_publish,
)

HEAD = "apiVersion: lb/v1\nkind: Config\n"


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "lb.yaml"
    path.write_text(text)
    return load_settings(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, HEAD + text)
    return str(caught.value).removeprefix(str(tmp_path / "lb.yaml"))


def test_everything_has_a_default(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD + "hosts: {}\n") == Settings()
    assert Settings().thread_count >= 1
    assert Settings(threads=3).thread_count == 3


def test_times_and_sizes_are_written_as_in_the_rest_of_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        HEAD
        + """
settings:
  drain_timeout: 90s
  limits: {max_buffer: 64Mi, max_connections: 10}
  publish: ["80=127.0.0.1:8080"]
  error_answers: [{status: 503, body: down}]
  defaults:
    http: {head_timeout: 5s, trusted_proxies: [10.0.0.0/8]}
    route: {response_timeout: 1m30s}
    upstream: {max_queue: 7}
    health_check: {type: http, path: /healthz, interval: 10s, statuses: [200, 300-399], tls: off, open_flows: reset}
""",
    )
    assert settings.drain_timeout_ms == 90_000
    assert settings.limits.max_buffer_bytes == 64 << 20
    assert settings.error_answers[0].body == "down"
    assert settings.defaults.http.head_timeout_ms == 5_000
    assert settings.defaults.http.trusted_proxies == ("10.0.0.0/8",)
    assert settings.defaults.route.response_timeout_ms == 90_000
    assert settings.defaults.upstream.max_queue == 7
    check = HealthCheck(
        "http", path="/healthz", interval_ms=10_000, statuses=(200, "300-399"), tls="off", open_flows="reset"
    )
    assert settings.defaults.health_check == check


def test_settings_are_taken_from_native_documents_only(tmp_path: Path) -> None:
    other = "apiVersion: v1\nkind: ConfigMap\nsettings: {threads: 7}\n"
    assert load(tmp_path, other).threads == 0
    assert load(tmp_path, f"{other}---\n{HEAD}settings: {{threads: 2}}\n").threads == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings:\n  admin:\n    sokcet: x\n", ":5: settings.admin.sokcet: unknown field; did you mean `socket`?"),
        ("settings: {zzz: 1}\n", ":3: settings.zzz: unknown field"),
        (
            "settings:\n  defaults:\n    health_check: {type: http, path: x}\n",
            ":5: settings.defaults.health_check.path: 'x' is not a path such as /healthz",
        ),
        ("settings: {threads: many}\n", ":3: settings.threads: Expected `int`, got `str`"),
        ("settings: {threads: -1}\n", ":3: settings.threads: Expected `int` >= 0"),
        (
            "settings:\n  drain_timeout: 30\n",
            ":4: settings.drain_timeout: 30 is not a duration such as 500ms, 5s, 1m or 1h",
        ),
        (
            "settings:\n  error_answers:\n  - {status: 503, body: x}\n  - {status: 700, body: x}\n",
            ":6: settings.error_answers[1].status: Expected `int` <= 599",
        ),
        ("settings: [1]\n", ":3: `settings` must be a mapping"),
        (
            "settings:\n  publish: [80]\n",
            ":4: settings.publish[0]: Expected `str`, got `int`",
        ),
        (
            "settings:\n  publish: ['80:8080']\n",
            ":4: settings.publish: `80:8080` is not PORT=ADDRESS:PORT, such as `80=127.0.0.1:8080` or `53=:5353/udp`",
        ),
        (
            "settings:\n  defaults:\n    http: {trusted_proxies: [10.0.0.0/8, proxies]}\n",
            ":5: settings.defaults.http.trusted_proxies[1]: 'proxies' is no network such as 10.0.0.0/8",
        ),
        (
            "settings:\n  defaults:\n    stream: {allow: [10.0.0.0/40]}\n",
            ":5: settings.defaults.stream.allow[0]: '10.0.0.0/40' is no network such as 10.0.0.0/8",
        ),
        (
            "settings:\n  defaults:\n    upstream: {max_connections: -1}\n",
            ":5: settings.defaults.upstream.max_connections: -1 is less than 0",
        ),
        (
            "settings:\n  admin: {address: 'unix:/x'}\n",
            ":4: settings.admin.address: this is for TCP; a Unix socket is `socket`",
        ),
        (
            "settings:\n  kubernetes: {tcp_services: a/tcp,\n    udp_services: udp}\n",
            ":5: settings.kubernetes.udp_services: `udp` is not NAMESPACE/NAME",
        ),
        (
            "settings:\n  session_tickets: {secret: a/b/c}\n",
            ":4: settings.session_tickets.secret: `a/b/c` is not NAMESPACE/NAME",
        ),
        ("settings:\n  threads: !many 1\n", ":4: could not determine a constructor for the tag '!many'"),
        ("settings:\n  threads: 1\n  [a]: 1\n", ":5: found unhashable key"),
        (
            "settings:\n  drain_timeout: 2026-13-01\n",
            ":4: a value cannot be read: month must be in 1..12",
        ),
        (
            "settings:\n  threads: !!int x\n",
            ":4: a value cannot be read: invalid literal for int() with base 10: 'x'",
        ),
    ],
)
def test_refusals_name_line_field_and_fix(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_a_syntax_error_is_one_line_with_its_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, "settings: {threads: 1\n")
    assert "\n" not in message
    assert "line" in message


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("8080", Bind("", 8080)),
        (":8080", Bind("", 8080)),
        ("*:8080", Bind("", 8080)),
        ("127.0.0.1:0", Bind("127.0.0.1", 0)),
        ("[::1]:8080", Bind("::1", 8080)),
        ("unix:/run/x.sock", Bind("unix:/run/x.sock")),
    ],
)
def test_bind_addresses(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind
    assert parse_bind(str(bind)) == bind


@pytest.mark.parametrize("text", ["", "x", "localhost:80", "::1:80x", "127.0.0.1:99999", "unix:", "127.0.0.1:-1"])
def test_bad_bind_addresses(text: str) -> None:
    with pytest.raises(SettingsError, match="`"):
        parse_bind(text)


def test_publish_maps_ports() -> None:
    assert parse_publish(["80=127.0.0.1:8080", "443=8443", "53=:5353/udp", "53=[::1]:53/tcp"]) == {
        (80, "tcp"): Bind("127.0.0.1", 8080),
        (443, "tcp"): Bind("", 8443),
        (53, "udp"): Bind("", 5353, "udp"),
        (53, "tcp"): Bind("::1", 53),
    }
    for wrong in ("8080", "http=8080", "0=8080", "99999=80"):
        with pytest.raises(SettingsError, match="PORT=ADDRESS:PORT"):
            parse_publish([wrong])
    with pytest.raises(SettingsError, match="only /udp, or /tcp, can stand behind the port"):
        parse_publish(["53=:5353/sctp"])


def test_routing_is_told_from_settings(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(HEAD + "settings: {}\n")
    assert not has_routing(path)
    path.write_text(HEAD + "settings: {}\nhosts: {}\n")
    assert has_routing(path)


def test_daemon_and_ctl_agree_on_the_admin_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "system", tmp_path / "own"
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(system))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    own.mkdir()
    assert default_admin_socket() == f"{system}/admin.sock"
    writable = {str(own)}
    monkeypatch.setattr("os.access", lambda path, mode: str(path) in writable)
    assert default_admin_socket() == f"{own}/lb/admin.sock"
    assert find_admin_socket() == f"{system}/admin.sock", "the place that is told when nothing is found"
    (own / "lb").mkdir()
    (own / "lb" / "admin.sock").touch()
    assert find_admin_socket() == f"{own}/lb/admin.sock"
    writable.clear()
    with pytest.raises(SettingsError, match="--admin-socket"):
        default_admin_socket()
