"""`lb ctl`: look at and operate a running daemon, through its admin socket.

Knows the admin API's types (lb/admin/schema.py) and how to show them; all the work is the daemon's.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.console import Console
from rich.table import Table

from lb.cli.output import output_option
from lb.cli.terminal import Terminal, visible
from lb.model.explanation import describe_failures
from lb.settings import find_admin_socket

Verb = Callable[..., None]

Json = Any
"""A decoded answer: lb/admin/schema.py says what is in it."""

TIMEOUT_SECONDS = 30
# A reload of a large export takes a while.
RELOAD_TIMEOUT_SECONDS = 300
PAGE = 1_000
FORMS = click.Choice(["table", "json"])
MAX_ENDPOINTS = 20
"""How many totals are printed; -o json has all."""


class AdminConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("lb", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """The admin API of one daemon. Fails with texts for people."""

    def __init__(self, path: str, output: str) -> None:
        self._path = path
        self._output = output

    def with_output(self, output: str) -> Client:
        """One whose answers are shown in another form."""
        return Client(self._path, output)

    def get(self, path: str, **query: object) -> Json:
        """Decoded answer of a GET."""
        given = urlencode({name: value for name, value in query.items() if value not in ("", None)})
        return self.call("GET", f"{path}?{given}" if given else path)

    def call(self, method: str, path: str, body: object = None, timeout: float = TIMEOUT_SECONDS) -> Json:
        """Decoded answer."""
        connection = AdminConnection(self._path, timeout)
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body))
            response = connection.getresponse()
            content = response.read()
        except FileNotFoundError:
            _fail(f"no daemon: {self._path} does not exist. Is `lb run` running? --admin-socket names another one.")
        except ConnectionRefusedError:
            _fail(f"no daemon: nobody listens on {self._path} any more. Is `lb run` running?")
        except PermissionError:
            _fail(
                f"{self._path} may not be used by you: run this as the daemon's user or in its group (sudo lb ctl …)."
            )
        except (TimeoutError, http.client.HTTPException, OSError) as error:
            _fail(f"the daemon at {self._path} does not answer: {error or type(error).__name__}")
        finally:
            connection.close()
        answer = json.loads(content)
        if response.status >= 400:
            _fail(answer["detail"])
        return answer

    def show(self, answer: Json, render: Callable[[Console, Json], None]) -> None:
        """Print an answer as the user asked for."""
        if self._output == "json":
            click.echo(json.dumps(answer, indent=2))
        else:
            # Off a terminal the lines are for other programs: never wrapped.
            console = Terminal()
            render(console if console.is_terminal else Terminal(width=10_000), answer)


class _Verb(click.Command):
    """Takes the form of its output as well, because people write it behind the verb."""

    def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401  # click's own
        super().__init__(*given, **named)
        self.params.append(click.Option(["-o", "--output"], type=FORMS, expose_value=False, callback=_choose_form))
        self.params.append(
            click.Option(["--json"], is_flag=True, hidden=True, expose_value=False, callback=_choose_json)
        )


def _choose_form(context: click.Context, parameter: click.Parameter, form: str | None) -> None:
    if form is not None:
        context.obj = context.obj.with_output(form)


def _choose_json(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        context.obj = context.obj.with_output("json")


class _Verbs(click.Group):
    command_class = _Verb


@click.group(cls=_Verbs)
@click.option(
    "--admin-socket", "--socket", "path", envvar="LB_ADMIN_SOCKET", metavar="PATH", help="Admin socket of the daemon."
)
@output_option("table")
@click.pass_context
def command(context: click.Context, path: str | None, output: str) -> None:
    """Look at and operate a running daemon."""
    context.obj = Client(path or find_admin_socket(), output)


@command.command()
@click.pass_obj
def status(client: Client) -> None:
    """The daemon at a glance. Exits with 1 when it is not ready."""
    answer = client.get("/v1/status")
    client.show(answer, _show_status)
    if not answer["ready"]:
        raise SystemExit(1)


@command.command()
@click.option("--severity", type=click.Choice(["error", "warning", "note"]), help="Only these.")
@click.option("--offset", default=0, help="Skip so many.")
@click.pass_obj
def problems(client: Client, severity: str | None, offset: int) -> None:
    """What is wrong with the input."""
    client.show(client.get("/v1/problems", severity=severity, offset=offset, limit=PAGE), _show_problems)


@command.command()
@click.pass_obj
def listeners(client: Client) -> None:
    """Listeners, and where they are."""
    client.show(client.get("/v1/listeners"), _show_listeners)


@command.command("load-balancers")
@click.argument("name", default="", metavar="[NAMESPACE/NAME]")
@click.pass_obj
def load_balancers(client: Client, name: str) -> None:
    """Services of type LoadBalancer: where lb listens for them, to whom it sends, and why not."""
    answer = client.get("/v1/load-balancers", name=name)
    if name and not answer:
        _fail(f"the input has no Service of type LoadBalancer {name}, and no ConfigMap of ports of that name")
    client.show(answer, lambda console, shown: _show_load_balancers(console, shown, with_problems=bool(name)))


@command.command()
@click.option("--offset", default=0, help="Skip so many.")
@click.pass_obj
def certificates(client: Client, offset: int) -> None:
    """Certificates, and what is served with them; those that expire first come first."""
    client.show(client.get("/v1/certificates", offset=offset, limit=PAGE), _show_certificates)


@command.command()
@click.option("--host", default="", help="Only routes of this hostname.")
@click.option("--upstream", default="", help="Only routes that lead there.")
@click.option("--offset", default=0, help="Skip so many.")
@click.pass_obj
def routes(client: Client, host: str, upstream: str, offset: int) -> None:
    """Routes, host by host in the order in which they are tried."""
    answer = client.get("/v1/routes", host=host, upstream=upstream, offset=offset, limit=PAGE)
    client.show(answer, _show_routes)


@command.command()
@click.argument("name", required=False)
@click.option("--offset", default=0, help="Skip so many.")
@click.pass_obj
def upstreams(client: Client, name: str | None, offset: int) -> None:
    """Upstreams, or one upstream with its endpoints."""
    if name is None:
        client.show(client.get("/v1/upstreams", offset=offset, limit=PAGE), _show_upstreams)
    else:
        client.show(client.get(f"/v1/upstreams/{quote(name)}"), _show_upstream)


def _which_flows(verb: Verb) -> Verb:
    """The options that choose among what is carried."""
    network = "Only of this address or network (CIDR), or `unix`."
    for option in (
        click.option("--upstream", default="", help="Only to this upstream."),
        click.option("--endpoint", default="", metavar="ADDRESS:PORT", help="Only to this endpoint."),
        click.option("--client", "who", default="", metavar="ADDRESS", help=network),
        click.option("--listener", default="", help="Only of this listener."),
    ):
        verb = option(verb)
    return verb


@command.command()
@_which_flows
@click.option(
    "--sort", type=click.Choice(["age", "idle", "bytes"]), default="age", show_default=True, help="The greatest first."
)
@click.option(
    "--limit",
    type=click.IntRange(0, PAGE),
    default=50,
    show_default=True,
    help="Show so many. With 0, only totals by endpoint.",
)
@click.pass_obj
def flows(client: Client, listener: str, who: str, endpoint: str, upstream: str, sort: str, limit: int) -> None:
    """TCP connections and UDP sessions that are carried now, and totals by endpoint.

    IN is what the client has sent, OUT what it has got. WAITING are bytes in lb that the endpoint (>) or the client (<)
    has not taken yet. Requests of HTTP are not among them.
    """
    filters = {"listener": listener, "client": who, "endpoint": endpoint, "upstream": upstream}
    client.show(client.get("/v1/flows", **filters, sort=sort, limit=limit), _show_flows)


@command.command("end-flows")
@_which_flows
@click.pass_obj
def end_flows(client: Client, listener: str, who: str, endpoint: str, upstream: str) -> None:
    """End the TCP connections and UDP sessions that match; `lb ctl flows` shows them before that.

    At least one option must say which. Connections are reset on both sides. Clients may come again at once, and to the
    same endpoint, unless it is drained; a UDP client that goes on sending has a new session with its next datagram.
    """
    which = {"listener": listener, "client": who, "endpoint": endpoint, "upstream": upstream}
    if not any(which.values()):
        raise click.UsageError("say which to end, with --listener, --client, --endpoint, --upstream or several of them")
    client.show(client.call("POST", "/v1/flows/end", which), _show_ended)


@command.command()
@click.argument("upstream")
@click.argument("endpoint", default="")
@click.pass_obj
def drain(client: Client, upstream: str, endpoint: str) -> None:
    """Give an endpoint (or all of an upstream) nothing new; requests, TCP connections and UDP sessions go on."""
    _change(client, upstream, endpoint, state="drain")


@command.command()
@click.argument("upstream")
@click.argument("endpoint", default="")
@click.pass_obj
def down(client: Client, upstream: str, endpoint: str) -> None:
    """Like drain, and close kept connections that carry no request; UDP sessions move after their drain_timeout.

    Requests under way and TCP connections that are carried go on until they end.
    """
    _change(client, upstream, endpoint, state="down")


@command.command()
@click.argument("upstream")
@click.argument("endpoint", default="")
@click.pass_obj
def ready(client: Client, upstream: str, endpoint: str) -> None:
    """Take back drain or down."""
    _change(client, upstream, endpoint, state="ready")


@command.command()
@click.argument("upstream")
@click.argument("endpoint")
@click.argument("weight", metavar="N|default")
@click.pass_obj
def weight(client: Client, upstream: str, endpoint: str, weight: str) -> None:
    """Change an endpoint's weight, or return to the configured one."""
    if weight != "default" and not weight.isdigit():
        raise click.BadParameter("must be a number or `default`", param_hint="N|default")
    _change(client, upstream, endpoint, weight=-1 if weight == "default" else int(weight))


@command.command()
@click.pass_obj
def reload(client: Client) -> None:
    """Read all sources again, now. Exits with 1 when the new input was refused."""
    answer = client.call("POST", "/v1/reload", timeout=RELOAD_TIMEOUT_SECONDS)
    client.show(answer, _show_build)
    if answer["outcome"] == "refused":
        raise SystemExit(1)


@command.command("log-level")
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_obj
def log_level(client: Client, level: str) -> None:
    """Change the level of the daemon's own log."""
    answer = client.call("PUT", "/v1/log-level", {"level": level})
    client.show(answer, lambda console, shown: console.print(f"log level is {shown['level']}"))


def _change(client: Client, upstream: str, endpoint: str, **change: object) -> None:
    answer = client.call("POST", "/v1/endpoints", {"upstream": upstream, "endpoint": endpoint, **change})
    client.show(answer, _show_upstream)


def _fail(text: str) -> NoReturn:
    command = " ".join(click.get_current_context().command_path.split()[:2])
    click.echo(f"{command}: {visible(text)}", err=True)
    raise SystemExit(2)


# -- Texts


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns that end in `#` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table, markup=False, highlight=False)


def _show_status(console: Console, answer: Json) -> None:
    found = ", ".join(
        f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in answer["problems"].items() if count
    )
    rows = [
        ("state", answer["why"]),
        ("version", f"{answer['version']}, process {answer['pid']}, {answer['threads']} threads"),
        ("up for", _duration(answer["uptime_seconds"])),
        ("generation", answer["generation"]),
        ("listeners", f"{answer['listeners_open']} of {answer['listeners']} open"),
        ("serving", f"{answer['hosts']} hosts, {answer['routes']} routes, {answer['upstreams']} upstreams"),
        ("health", _health_in_short(answer)),
        ("under way", f"{answer['exchanges']} requests, {answer['connections']} connections"),
        ("problems", found or "none"),
        ("log level", answer["log_level"]),
        ("TLS", f"{answer['tls_library']}{_without(answer['tls_groups_missing'])}"),
    ]
    if answer["tls_kernel"] != "off":
        rows.append(("kernel TLS", answer["tls_kernel"]))
    for name, value in rows:
        console.print(f"{name:11} {value}", markup=False, highlight=False)


def _health_in_short(answer: Json) -> str:
    count, first = answer["upstreams_unhealthy"], answer["upstreams_unhealthy_first"]
    if not answer["upstreams_checked"]:
        return "no upstream is checked"
    if not count:
        return f"no upstream without a healthy endpoint ({answer['upstreams_checked']} checked)"
    names = ", ".join(first) + (", …" if count > len(first) else "")
    return f"{count} upstream{'' if count == 1 else 's'} without a healthy endpoint: {names}"


def _show_problems(console: Console, answer: Json) -> None:
    for one in answer["items"]:
        place = f"{one['place']}: " if one["place"] else ""
        console.print(f"{place}{one['severity']}[{one['code']}]: {one['what']}", markup=False, highlight=False)
        for label, text in (("object", f"{one['object']} {one['field']}"), ("why", one["why"]), ("fix", one["fix"])):
            if text.strip():
                console.print(f"  {label}: {text.strip()}", markup=False, highlight=False)
    _show_rest(console, answer, "problems")


def _show_listeners(console: Console, answer: Json) -> None:
    rows = [
        (
            one["name"],
            one["address"],
            "open" if one["open"] else f"closed: {one['problem']}",
            one["host_set"] or one["forward"],
            one["connections_active"],
            one["requests"],
        )
        for one in answer
    ]
    _table(console, ("LISTENER", "ADDRESS", "STATE", "SERVES", "CONNECTIONS#", "REQUESTS#"), rows)


def _show_load_balancers(console: Console, answer: Json, *, with_problems: bool) -> None:
    rows = []
    for one in answer:
        # Who finds nobody is told of once, with the code where there is one.
        in_short = {} if with_problems else _in_short(one["problems"])
        told = set()
        for port in one["ports"]:
            listener, upstreams = port["listener"], port["upstreams"]
            whys = [listener["problem"], *(up["unavailable"] or _why_nobody(up) for up in upstreams)]
            told.update(whys)
            ready = sum(up["endpoints_ready"] for up in upstreams), sum(up["endpoints"] for up in upstreams)
            rows.append(
                (
                    one["object"],
                    listener["address"],
                    listener["protocol"],
                    "open" if listener["open"] else "closed",
                    listener["forward"],
                    "{}/{}".format(*ready),
                    listener["connections_active"],
                    "; ".join(in_short.get(why, why) for why in whys if why),
                )
            )
        rows += [(one["object"], *[""] * 6, short) for what, short in in_short.items() if what not in told]
    columns = ("LOAD BALANCER", "LISTENS", "PROTOCOL", "STATE", "SENDS TO", "READY#", "CONNECTIONS#", "WHY")
    _table(console, columns, rows)
    if with_problems:
        problems = [problem for one in answer for problem in one["problems"]]
        _show_problems(console, {"items": problems, "offset": 0, "total": len(problems)})


def _in_short(problems: Sequence[Json]) -> dict[str, str]:
    """What is wrong, and the same behind its code."""
    return {one["what"]: f"{one['severity']}[{one['code']}]: {one['what']}" for one in problems}


def _without(groups: Sequence[str]) -> str:
    return f", without {', '.join(groups)}" if groups else ""


def _show_certificates(console: Console, answer: Json) -> None:
    has_warnings = any(one["warning"] for one in answer["items"])
    rows = [
        (
            one["name"],
            one["kind"],
            datetime.fromtimestamp(one["not_after"], UTC).strftime("%Y-%m-%d %H:%M UTC"),
            _left(one["not_after"] - time.time()),
            ", ".join(one["hosts"] + [f"to {upstream}" for upstream in one["upstreams"]]) or "nothing",
            one["fingerprint"],
            one["source"],
            *([one["warning"]] if has_warnings else []),
        )
        for one in answer["items"]
    ]
    columns = ("CERTIFICATE", "KEY", "EXPIRES", "LEFT#", "SERVES", "SHA-256", "SOURCE")
    _table(console, (*columns, "WARNING") if has_warnings else columns, rows)
    _show_rest(console, answer, "certificates")


def _left(seconds: float) -> str:
    return _duration(seconds) if seconds > 0 else "EXPIRED"


def _show_routes(console: Console, answer: Json) -> None:
    rows = [
        (one["hostname"], one["rank"], _match(one["match"]), _action(one["action"]), one["requests"], one["source"])
        for one in answer["items"]
    ]
    _table(console, ("HOST", "RANK#", "MATCH", "ACTION", "REQUESTS#", "SOURCE"), rows)
    _show_rest(console, answer, "routes")


def _show_upstreams(console: Console, answer: Json) -> None:
    rows = [
        (
            one["name"],
            f"{one['endpoints_ready']}/{one['endpoints']}",
            one["balance"],
            one["requests_active"],
            one["requests_queued"],
            one["attempts"],
            one["connect_failures"],
            one["unavailable"] or _why_nobody(one),
        )
        for one in answer["items"]
    ]
    columns = ("UPSTREAM", "READY#", "BALANCE", "ACTIVE#", "QUEUED#", "ATTEMPTS#", "CONNECT FAILURES#", "WHY")
    _table(console, columns, rows)
    _show_rest(console, answer, "upstreams")


def _why_nobody(one: Json) -> str:
    """What to look at when there are endpoints, and some or all of them take no requests."""
    if one["all_fail"]:
        effect = "all get requests" if one["all_fail"] == "serve" else "requests are answered 503"
        return f"all fail their health checks: {effect} (when_all_fail: {one['all_fail']})"
    nobody = one["endpoints"] and not one["endpoints_ready"] and not one["endpoints_ejected"]
    if nobody:
        return f"none takes requests: `lb ctl upstreams {one['name']}` shows their states"
    aside = one["endpoints"] - one["endpoints_ready"] - one["endpoints_unhealthy"] - one["endpoints_ejected"]
    ejected = f"{one['endpoints_ejected']} ejected: connections fail" if one["endpoints_ejected"] else ""
    unhealthy = f"{one['endpoints_unhealthy']} unhealthy" if one["endpoints_unhealthy"] else ""
    return ", ".join(filter(None, (unhealthy, ejected, f"{aside} drained, down or of weight 0" if aside else "")))


def _show_upstream(console: Console, answer: Json) -> None:
    one = answer["upstream"]
    console.print(f"{one['name']}: {one['balance']}, from {one['source']}", markup=False, highlight=False)
    if one["unavailable"]:
        console.print(one["unavailable"], markup=False, highlight=False)
    is_checked = one["health_check"] != "off"
    if is_checked:
        console.print(f"health check: {one['health_check']}", markup=False, highlight=False)
    any_tls_error = any(endpoint["tls_error"] for endpoint in answer["endpoints"])
    rows = [
        (
            endpoint["endpoint"],
            describe_failures(
                endpoint["state"], endpoint["ejected_for_ms"], endpoint["failures_in_row"], endpoint["last_failure"]
            ),
            endpoint["weight"],
            endpoint["requests_active"],
            endpoint["requests"],
            endpoint["failures"],
            endpoint["target"],
            *([_health(endpoint["health"])] if is_checked else []),
            *([endpoint["tls_error"]] if any_tls_error else []),
        )
        for endpoint in answer["endpoints"]
    ]
    columns = ("ENDPOINT", "STATE", "WEIGHT#", "ACTIVE#", "REQUESTS#", "FAILURES#", "TARGET")
    more = (*(("HEALTH",) if is_checked else ()), *(("TLS",) if any_tls_error else ()))
    _table(console, (*columns, *more), rows)


def _health(health: Json) -> str:
    """`healthy`, `unhealthy for 12s: status 503`, or `not checked` for those that are about to go."""
    if health is None:
        return "not checked"
    why = f": {health['why']}" if health["why"] else ""
    if health["state"] == "untested":
        return f"not checked yet{why}"
    return f"{health['state']} for {_duration(time.time() - health['since'])}{why}"


def _show_flows(console: Console, answer: Json) -> None:
    if not answer["total"]:
        console.print("no TCP connection and no UDP session matches", markup=False, highlight=False)
        return
    if answer["items"]:
        _show_each_flow(console, answer["items"])
    if rest := answer["total"] - len(answer["items"]):
        more = "; --limit shows more of them" if len(answer["items"]) < PAGE else ""
        console.print(f"{rest} more match{more}", markup=False, highlight=False)
    console.print()
    rows = [
        (
            one["endpoint"],
            one["upstream"],
            one["connections"],
            one["sessions"],
            _size(one["bytes_in"]),
            _size(one["bytes_out"]),
            _waiting(one),
        )
        for one in answer["endpoints"][:MAX_ENDPOINTS]
    ]
    _table(console, ("ENDPOINT", "UPSTREAM", "CONNECTIONS#", "SESSIONS#", "IN#", "OUT#", "WAITING"), rows)
    _show_more_endpoints(console, answer)


def _show_ended(console: Console, answer: Json) -> None:
    if not answer["endpoints"]:
        console.print("no TCP connection and no UDP session matches", markup=False, highlight=False)
        return
    connections, sessions = answer["connections"], answer["sessions"]
    parts = (_counted(connections, "TCP connection"), _counted(sessions, "UDP session"))
    console.print(f"ended {' and '.join(filter(None, parts))}", markup=False, highlight=False)
    rows = [
        (one["endpoint"], one["upstream"], one["connections"], one["sessions"])
        for one in answer["endpoints"][:MAX_ENDPOINTS]
    ]
    console.print()
    _table(console, ("ENDPOINT", "UPSTREAM", "CONNECTIONS#", "SESSIONS#"), rows)
    _show_more_endpoints(console, answer)


def _counted(count: int, what: str) -> str:
    """`2 UDP sessions`; empty for none."""
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""


def _show_more_endpoints(console: Console, answer: Json) -> None:
    rest = len(answer["endpoints"]) - MAX_ENDPOINTS
    if rest > 0:
        console.print(f"… {rest} more endpoints; -o json has all", markup=False, highlight=False)


def _show_each_flow(console: Console, items: Sequence[Json]) -> None:
    columns: list[tuple[str, Callable[[Json], object]]] = [
        ("KIND", lambda one: one["kind"]),
        ("CLIENT", lambda one: one["client"]),
        ("LISTENER", lambda one: one["listener"]),
        ("UPSTREAM", lambda one: one["upstream"]),
        ("ENDPOINT", lambda one: one["endpoint"]),
        ("STATE", _flow_state),
        ("AGE#", lambda one: _duration(one["age_seconds"])),
        ("IDLE#", lambda one: _duration(one["idle_seconds"])),
        ("IN#", lambda one: _size(one["bytes_in"])),
        ("OUT#", lambda one: _size(one["bytes_out"])),
        ("WAITING", _waiting),
        ("THREAD#", lambda one: one["thread"]),
    ]
    if any(one["server_name"] for one in items):
        columns.insert(2, ("NAME", lambda one: one["server_name"]))
    if any(one["proxy"] for one in items):
        columns.insert(2, ("VIA", lambda one: one["proxy"]))
    if any(one["route"] != one["listener"] for one in items):
        columns.append(("ROUTE", lambda one: one["route"]))
    _table(console, [name for name, _ in columns], [[tell(one) for _, tell in columns] for one in items])


def _flow_state(one: Json) -> str:
    texts = {
        "half-closed-client": "half-closed by client",
        "half-closed-endpoint": "half-closed by endpoint",
        "reset-client": "reset by client",
        "reset-endpoint": "reset by endpoint",
    }
    text: str = texts.get(one["state"], one["state"])
    if one["state"] == "connecting" and one["attempts"] > 1:
        text += f", attempt {one['attempts']}"
    if one["draining_seconds"] is None:
        return text
    left = f"draining, {_duration(one['draining_seconds'])} left"
    return left if one["state"] == "open" else f"{text}, {left}"


def _waiting(one: Json) -> str:
    pairs = ((">", one["waiting_for_endpoint"]), ("<", one["waiting_for_client"]))
    return " ".join(f"{mark}{_size(size)}" for mark, size in pairs if size)


def _size(count: int) -> str:
    """`973`, `1.2K`, `57M`: three digits at most, in powers of 1,024."""
    size, unit = float(count), ""
    for bigger in "KMGTPE":
        if size < 999.5:
            break
        size, unit = size / 1024, bigger
    return f"{size:.1f}{unit}" if unit and size < 9.95 else f"{size:.0f}{unit}"


def _show_build(console: Console, answer: Json) -> None:
    stages = ", ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in answer["seconds"].items())
    console.print(f"{answer['outcome']}, generation {answer['generation']} ({stages})", markup=False, highlight=False)
    if answer["error"]:
        console.print(answer["error"], markup=False, highlight=False)
    # A file that cannot be read changes nothing either: "unchanged" alone would sound like good news.
    if errors := answer["problems"].get("error", 0):
        text = f"{errors} error{'s' if errors > 1 else ''} in the input; `lb ctl problems` tells which"
        console.print(text, markup=False, highlight=False)


def _show_rest(console: Console, answer: Json, what: str) -> None:
    shown = answer["offset"] + len(answer["items"])
    if shown < answer["total"]:
        text = f"{answer['total']} {what} in all; --offset {shown} shows the next ones"
        console.print(text, markup=False, highlight=False)


def _match(match: Json) -> str:
    path = match.get("path", {})
    parts = [f"{path.get('kind', 'prefix')} {path.get('value', '/')}", *match.get("methods", ())]
    for one in (*match.get("headers", ()), *match.get("query", ())):
        parts.append(f"{one['name']}={one['value']}" if "value" in one else one["name"])
    return " ".join(parts)


def _action(action: Json) -> str:
    if action["type"] == "respond":
        return f"answer {action['status']}"
    return ", ".join(
        share["name"] + (f" ({share['weight']})" if share.get("weight", 1) != 1 else "")
        for share in action["upstreams"]
    )


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = [(days, "d"), (hour, "h"), (minute, "m"), (second, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{value}{unit}" for value, unit in parts[:2])
