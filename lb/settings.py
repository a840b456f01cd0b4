"""Settings of the daemon: what is not routing, with a good default for everything.

Owns the Settings value, its place in the native file (the `settings:` section, read only from the file that `-c` names)
and the checks of what stands there. Command line options override the file. Settings are read once, at start: what may
change while lb runs is routing, and that is not here. Times and sizes are written as in the rest of the native file:
`drain_timeout: 30s` is `drain_timeout_ms` here.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from lb.model.address import is_network
from lb.model.datagram import DatagramOptions
from lb.model.form import NETWORKS, option_fields
from lb.model.health import HealthCheck, mistakes, read_off
from lb.model.listener import HttpOptions, Transport, write_bind
from lb.model.route import RouteOptions
from lb.model.stream import StreamOptions
from lb.model.tls import TlsPolicy
from lb.model.units import parse_duration, parse_size
from lb.model.upstream import Balance, UpstreamOptions
from lb.problems import Origin, Problem
from lb.translate.options import NodeAddressType, Targets

LogLevel = Literal["debug", "info", "warning", "error"]

Steps = tuple[str | int, ...]
"""Path of a field: `("error_answers", 0, "status")`."""

ACCESS_LOG_PATH: Steps = ("access_log", "path")

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[int, Meta(ge=0)]


class SettingsError(ValueError):
    """Settings that cannot be used. The text names the place and says how to fix it."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all sections."""


class Admin(Section, frozen=True):
    """The admin API."""

    socket: str = ""
    """Path of its Unix socket. Empty: /run/lb/admin.sock, or a place of the user's own when that cannot be written."""
    socket_mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0660"
    """Who may connect, in octal: everybody who can may change the daemon's state."""
    address: str = ""
    """Also serve it on this ADDRESS:PORT. Only reading is allowed there."""


class AccessLog(Section, frozen=True):
    """The access log."""

    path: str = ""
    """File, `-` for standard output, or empty for none. Reopened on SIGUSR1."""
    format: str = "json"
    """`json`, `combined`, or a template such as `%{client} %{status} %{duration}`."""


class Log(Section, frozen=True):
    """What lb says about itself, on standard error."""

    level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error`. `lb ctl log-level` changes it while lb runs."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, else JSON."""


class Limits(Section, frozen=True):
    """Limits of the whole process. 0 means none but the system's."""

    max_connections: Count = 0
    """Client connections open at the same time; more are answered 503 and closed."""
    max_buffer_bytes: Count = 0
    """Memory for bytes that wait to be sent."""


class ErrorAnswer(Section, frozen=True):
    """The body of lb's own answers with one status."""

    status: Annotated[int, Meta(ge=0, le=599)]
    """0 stands for all that have no answer of their own."""
    body: str
    """`%(status)`, `%(title)`, `%(reason)` and `%(request_id)` are filled in."""
    content_type: str = "text/html; charset=utf-8"


class Metrics(Section, frozen=True):
    """How many series /metrics may have. The busiest get their own; the rest is summed under `_other`."""

    max_routes: Count = 1_000
    """Routes with series of their own."""
    max_upstreams: Count = 1_000
    """Upstreams with series of their own."""
    max_endpoints: Count = 1_000
    """Endpoints with series of their own."""
    max_certificates: Count = 1_000
    """Certificates with a series of their own: those that expire first."""


class Defaults(Section, frozen=True):
    """What objects get that say nothing themselves."""

    balance: Balance = "round-robin"
    """How an endpoint is chosen: `round-robin`, `least-connections`, `random-two` or `maglev`."""
    http: HttpOptions = HttpOptions()
    stream: StreamOptions = StreamOptions()
    datagram: DatagramOptions = DatagramOptions()
    route: RouteOptions = RouteOptions()
    upstream: UpstreamOptions = UpstreamOptions()
    health_check: HealthCheck = HealthCheck()


class Kubernetes(Section, frozen=True):
    """How Kubernetes objects are read."""

    classes: tuple[str, ...] = ()
    """Ingress classes to serve besides those whose controller is lb's."""
    take_over: tuple[str, ...] = ()
    """Controllers whose classes are served as if they were lb's, such as `k8s.io/ingress-nginx`, and
    `loadBalancerClass`es, such as `service.k8s.aws/nlb`."""
    targets: Targets = "endpoints"
    """Send requests to pods, or to node ports. `lb/targets` on a Service overrides it."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have to be a target."""
    node_address: NodeAddressType = "InternalIP"
    """Which address of a node is the target: `InternalIP` or `ExternalIP`."""
    port: Annotated[int, Meta(ge=1, le=65_535)] = 80
    """Port of the listener that serves Ingresses."""
    https_port: Annotated[int, Meta(ge=1, le=65_535)] = 443
    """Port of the listener that serves Ingresses by TLS, when one of them asks for it."""
    tls_policy: TlsPolicy = "intermediate"
    """Versions and ciphers of that listener: `modern` (TLS 1.3), `intermediate` (and 1.2), or `old` (and 1.2's CBC and
    RSA ciphers, for clients of before 2014)."""
    hsts: Annotated[str, Meta(pattern="^[ -~]*$")] = ""
    """What that listener sends as Strict-Transport-Security, such as `max-age=31536000`; empty: nothing."""
    load_balancers: bool = False
    """Serve every Service of type LoadBalancer that has no class. `lb/load-balancer` on a Service overrides it."""
    tcp_services: str = ""
    """NAMESPACE/NAME of a ConfigMap that maps TCP ports to Services, as ingress-nginx reads it."""
    udp_services: str = ""
    """The same for UDP ports."""
    ssl_passthrough: bool = False
    """Whether `nginx.ingress.kubernetes.io/ssl-passthrough` counts: what `--enable-ssl-passthrough` says there."""


class Certificates(Section, frozen=True):
    """What is watched of certificates."""

    expiry_warning_ms: Milliseconds = 14 * 24 * 3_600_000
    """How long before its end a certificate is a problem."""


class Tls(Section, frozen=True):
    """How TLS is done, with clients and with endpoints."""

    kernel: bool = False
    """Let the kernel encrypt what is sent, where it can (Linux with the module `tls`)."""


class SessionTickets(Section, frozen=True):
    """Keys of the tickets by which TLS sessions are resumed."""

    rotate_ms: Annotated[int, Meta(ge=60_000)] = 12 * 3_600_000
    """How often lb makes a new key. The two before it are kept, so a ticket is good for two to three times as long."""
    files: tuple[str, ...] = ()
    """Files with a key each, for hosts that share their sessions: 80 or 48 random bytes, as nginx takes them. The first
    one makes tickets, all are read; lb makes none itself, and reads them again every minute."""
    secret: str = ""
    """NAMESPACE/NAME of a Secret with such keys as its values, in the order of their names."""


class Settings(Section, frozen=True):
    """Settings of the daemon."""

    threads: Count = 0
    """Threads that carry traffic. 0: one for each core that lb may use."""
    drain_timeout_ms: Milliseconds = 30_000
    """How long requests under way may take to finish when lb is told to stop."""
    core_dumps: bool = False
    """Allow core dumps and debuggers. They would see keys and credentials."""
    publish: tuple[str, ...] = ()
    """Where listeners bind instead of their own port: `80=127.0.0.1:8080` or `53=:5353/udp`, as with
    `--publish`."""
    admin: Admin = Admin()
    access_log: AccessLog = AccessLog()
    log: Log = Log()
    limits: Limits = Limits()
    error_answers: tuple[ErrorAnswer, ...] = ()
    """Bodies of lb's own answers: a list of `status` (0 for all others), `body` and `content_type`."""
    metrics: Metrics = Metrics()
    certificates: Certificates = Certificates()
    tls: Tls = Tls()
    session_tickets: SessionTickets = SessionTickets()
    defaults: Defaults = Defaults()
    kubernetes: Kubernetes = Kubernetes()

    @property
    def thread_count(self) -> int:
        """Reactor threads to start."""
        return self.threads or len(os.sched_getaffinity(0))


class Bind(msgspec.Struct, frozen=True):
    """Where a listener really binds."""

    address: str = ""
    """IPv4, IPv6 without brackets, `unix:/path`, or empty for all addresses of both families."""
    port: int = 0
    transport: Transport = "tcp"

    def __str__(self) -> str:
        return write_bind(self.address, self.port, self.transport)


Published = Mapping[tuple[int, Transport], Bind]
"""Where listeners bind instead of their own port."""


def parse_bind(text: str) -> Bind:
    """`8080`, `:8080`, `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`. SettingsError when it is none of these."""
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise SettingsError(f"`{text}` has no path: write `unix:/run/lb/http.sock`")
        return Bind(text)
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"`{text}` does not end in a port: write ADDRESS:PORT, such as `127.0.0.1:8080`")
    try:
        return Bind(str(ipaddress.ip_address(address)) if address not in ("", "*") else "", int(port))
    except ValueError:
        fix = "an IPv6 address stands in brackets, `[::1]:8080`" if ":" in address else "names are not resolved"
        raise SettingsError(f"`{text}`: `{address}` is not an IP address ({fix})") from None


def parse_publish(texts: Sequence[str]) -> Published:
    """`PORT=ADDRESS:PORT`, `PORT=ADDRESS:PORT/tcp` (the same) or `PORT=ADDRESS:PORT/udp` by the listener's port; the
    last one for a port counts.
    """
    mappings: dict[tuple[int, Transport], Bind] = {}
    for text in texts:
        port, equals, place = text.partition("=")
        if not equals or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise SettingsError(f"`{text}` is not PORT=ADDRESS:PORT, such as `80=127.0.0.1:8080` or `53=:5353/udp`")
        where, slash, name = ("", "", "tcp") if place.startswith("unix:") else place.rpartition("/")
        transport: Transport = "udp" if name == "udp" and slash else "tcp"
        if name.isalpha() and slash and name not in ("tcp", "udp"):
            raise SettingsError(f"`{text}`: only /udp, or /tcp, can stand behind the port")
        bind = parse_bind(where if slash and name in ("tcp", "udp") else place)
        mappings[int(port), transport] = Bind(bind.address, bind.port, transport)
    return mappings


def check_name(text: str) -> None:
    """SettingsError when this is not NAMESPACE/NAME."""
    if not re.fullmatch("[^/]+/[^/]+", text):
        raise SettingsError(f"`{text}` is not NAMESPACE/NAME")


def default_admin_socket() -> str:
    """Where the daemon puts its admin socket when nobody says: the first place that this user may write."""
    for path in _admin_sockets():
        directory = Path(path).parent
        if os.access(directory if directory.exists() else directory.parent, os.W_OK):
            return path
    raise SettingsError("no place for the admin socket; say where with --admin-socket")


def find_admin_socket() -> str:
    """Where the admin socket of a running daemon is: the first of the usual places that has one."""
    places = _admin_sockets()
    return next((path for path in places if Path(path).exists()), places[0])


def _admin_sockets() -> list[str]:
    system = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or "/run/lb"
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    own = f"{user}/lb/admin.sock" if user else f"/tmp/lb-{os.getuid()}/admin.sock"  # noqa: S108 (its owner is checked)
    return [f"{system}/admin.sock", own]


def load_settings(path: str | Path) -> Settings:
    """The `settings:` section of a native file; all defaults when it has none. SettingsError, OSError."""
    node = next((top["settings"] for top in _documents(path) if "settings" in top), None)
    if node is None:
        return Settings()
    try:
        return parse_settings(_content_of(node, path))
    except FieldError as error:
        raise SettingsError(f"{path}:{_line_of(node, error.path)}: {error}") from None


def problem_with(file: str, error: SettingsError, why: str) -> Problem:
    """What load_settings has found wrong with a file. It says `FILE:LINE: ` first, which belongs in the origin."""
    line, colon, what = str(error).removeprefix(f"{file}:").partition(": ")
    if colon and line.isdigit():
        origin = Origin(file=file, line=int(line))
    else:
        origin, what = Origin(file=file), str(error).removeprefix(f"{Path(file)}: ")
    return Problem(
        "LB5003", origin, what, why, "write it as the table of settings says (docs/configuration.md, Settings)"
    )


def place_of(path: str | Path, field: Steps) -> str:
    """`FILE:LINE` where a native file says this field of the settings. SettingsError, OSError."""
    node = next((top["settings"] for top in _documents(path) if "settings" in top), None)
    return str(path) if node is None else f"{path}:{_line_of(node, field)}"


def unusable_files(settings: Settings) -> Iterator[FieldError]:
    """What `lb run` could not open, as far as looking tells: by this user, on this host, now."""
    path = settings.access_log.path
    if path not in ("", "-") and (why := _why_not_written(Path(path))):
        yield FieldError(ACCESS_LOG_PATH, f"{path} cannot be opened: {why}")


def _why_not_written(path: Path) -> str:
    """Empty when it probably can be."""
    if path.is_dir():
        return "it is a directory"
    if path.exists():
        return "" if os.access(path, os.W_OK) else "this user may not write it"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else f"this user may not write in {path.parent}"


def has_routing(path: str | Path) -> bool:
    """Whether a native file says anything besides settings. SettingsError, OSError."""
    return any(top.keys() & {"listeners", "hosts", "upstreams"} for top in _documents(path))


def parse_settings(content: object) -> Settings:
    """Decoded content as Settings. SettingsError with the field's path and, for a wrong name, the likely right one."""
    if not isinstance(content, Mapping):
        raise FieldError((), "`settings` must be a mapping")
    try:
        settings = msgspec.convert(_to_attributes(content, Settings, ()), Settings)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        raise FieldError(_split_path(place.rstrip("`")), message) from None
    _check(settings)
    return settings


class FieldError(SettingsError):
    """A SettingsError that knows the path of its field."""

    def __init__(self, path: Steps, message: str) -> None:
        self.path = path
        self.what = message
        super().__init__(f"settings{''.join(_step(step) for step in path)}: {message}" if path else message)


def _check(settings: Settings) -> None:
    """What types alone cannot say."""
    try:
        parse_publish(settings.publish)
    except SettingsError as error:
        raise FieldError(("publish",), str(error)) from None
    try:
        if settings.admin.address and parse_bind(settings.admin.address).address.startswith("unix:"):
            raise SettingsError("this is for TCP; a Unix socket is `socket`")
    except SettingsError as error:
        raise FieldError(("admin", "address"), str(error)) from None
    for section in ("http", "stream", "datagram", "route", "upstream"):
        _check_options(("defaults", section), getattr(settings.defaults, section))
    named = (("kubernetes", "tcp_services"), ("kubernetes", "udp_services"), ("session_tickets", "secret"))
    for section, field in named:
        try:
            if name := getattr(getattr(settings, section), field):
                check_name(name)
        except SettingsError as error:
            raise FieldError((section, field), str(error)) from None
    keys = {field.attribute: field.key for field in option_fields(HealthCheck)}
    for attribute, what in mistakes(settings.defaults.health_check, has_tls=True):
        raise FieldError(("defaults", "health_check", keys[attribute]), what)


def _check_options(path: Steps, options: msgspec.Struct) -> None:
    for field in option_fields(type(options)):
        value = getattr(options, field.attribute)
        if isinstance(value, int) and value < 0:
            raise FieldError((*path, field.key), f"{value} is less than 0")
        for index, network in enumerate(value if field.attribute in NETWORKS else ()):
            if not is_network(network):
                raise FieldError((*path, field.key, index), f"{network!r} is no network such as 10.0.0.0/8")


def _to_attributes(content: Mapping[Any, Any], struct: type[msgspec.Struct], path: Steps) -> dict[str, object]:
    """Keys of the file as attributes: `drain_timeout: 30s` is `drain_timeout_ms: 30000`."""
    known = {field.key: field for field in option_fields(struct)}
    attributes = {}
    for key, value in (read_off(content) if struct is HealthCheck else content).items():
        place = (*path, str(key))
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise FieldError(place, f"unknown field{f'; did you mean `{near[0]}`?' if near else ''}")
        field = known[key]
        if isinstance(value, Mapping) and isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            value = _to_attributes(value, field.type, place)
        elif field.unit != "plain":
            try:
                value = parse_duration(value) if field.unit == "duration" else parse_size(value)
            except ValueError as error:
                raise FieldError(place, str(error)) from None
        attributes[field.attribute] = value
    return attributes


def _documents(path: str | Path) -> list[dict[str, yaml.Node]]:
    """The native documents of a file: key at the top -> node."""
    try:
        documents = list(yaml.compose_all(Path(path).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None
    tops = [
        {key.value: value for key, value in document.value if isinstance(key, yaml.ScalarNode)}
        for document in documents
        if isinstance(document, yaml.MappingNode)
    ]
    return [top for top in tops if "apiVersion" in top and str(top["apiVersion"].value).startswith("lb/")]


def _content_of(node: yaml.Node, path: str | Path) -> object:
    """SettingsError for a value that is not what it looks like, or what its tag says."""
    loader = yaml.CSafeLoader("")
    line = node.start_mark.line + 1
    try:
        return loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else line
        raise SettingsError(f"{path}:{line}: {error.problem}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise SettingsError(f"{path}:{line}: a value cannot be read: {error}") from None
    finally:
        loader.dispose()


def _line_of(node: yaml.Node, path: Steps) -> int:
    """Line of the field at `path`, or of the nearest one around it that there is."""
    line = node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = [(value, value) for value in node.value[step : step + 1]]
        else:
            found = []
        if not found:
            break
        key, node = found[0]
        line = key.start_mark.line + 1
    return line


def _split_path(path: str) -> Steps:
    """msgspec's `.error_answers[0].status` as steps."""
    return tuple(int(index) if index else name for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path))


def _step(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"
