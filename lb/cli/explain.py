"""`lb explain`: the way of a request, step by step. Asks the running daemon, or works on files without one."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TypeVar
from urllib.parse import urlencode

import click
import msgspec
from rich.console import Console
from rich.text import Text

from lb.cli.inputs import (
    Flags,
    Input,
    config_option,
    make_options,
    path_arguments,
    publish_option,
    read_input,
    translation_options,
)
from lb.cli.output import output_option
from lb.cli.terminal import Terminal, visible
from lb.compile.tls import check as check_tls
from lb.model.ask import Ask, make_ask
from lb.model.explain import explain, finds_nobody, say_not_served
from lb.model.explanation import (
    CertificateStep,
    EndpointStep,
    Explanation,
    HostStep,
    ListenerStep,
    NameStep,
    OptionStep,
    RouteStep,
    Source,
    TlsStep,
    UpstreamStep,
    Verdict,
    describe_failures,
)
from lb.objects.networking import Ingress
from lb.problems import Origin, Problem
from lb.settings import SettingsError, parse_publish
from lb.sources.locate import locate_all
from lb.sources.store import Store
from lb.translate.unheard import unheard

StepT = TypeVar("StepT", ListenerStep, CertificateStep, RouteStep, UpstreamStep, EndpointStep)

MARKS: dict[Verdict, tuple[str, str]] = {"won": ("✓", "green"), "lost": ("✗", "red"), "not-reached": ("·", "dim")}
MAX_LOSERS = 12
"""How many routes in a row that lost by their path are printed; -o json has all."""
MAX_ENDPOINTS = 12
NOTHING_TO_SAY = ("no limit", "none", "false")
"""Built-in values that do nothing to a request; -o json has them."""
OPTIONS_WIDTH = 90
UNREAD = ("LB1001", "LB1002", "LB1006")
"""Problems of whole files."""
LEFT_OUT = ("LB2002", "LB2003", "LB3001", "LB3002", "LB3003", "LB3004")
"""Problems that leave a rule of an Ingress, or all of it, without a route."""
_RULE = re.compile(r"spec\.rules\[([0-9]+)\]")
_LABEL_WIDTH = 10


@click.command(short_help="Tell which rule serves a request, and why not the others.")
@click.argument("url")
@path_arguments
@config_option
@translation_options
@publish_option
@click.option("-X", "--request", "method", default="GET", show_default=True, metavar="METHOD")
@click.option("-H", "--header", "lines", multiple=True, metavar="'NAME: VALUE'", help="Header line. Repeatable.")
@click.option("--from", "client", default="", metavar="IP", help="Address of the client.")
@click.option("--alpn", multiple=True, metavar="PROTOCOL", help="What the client offers by ALPN. Repeatable.")
@click.option("--live", "--admin-socket", "socket", metavar="SOCKET", help="Admin socket of the daemon to ask.")
@output_option("text")
def command(
    url: str,
    paths: tuple[str, ...],
    config_file: str | None,
    flags: Flags,
    publish: tuple[str, ...],
    method: str,
    lines: tuple[str, ...],
    client: str,
    alpn: tuple[str, ...],
    socket: str | None,
    output: str,
) -> None:
    """Tell which rule serves a request for URL, and why not the others. URL tcp://ADDRESS:PORT is a TCP connection,
    udp://ADDRESS:PORT a datagram, tls://NAME:PORT a connection that begins with TLS.

    With PATHs the answer is worked out from them, without them the running daemon is asked, which also knows the state
    of its endpoints.
    """
    from_files = bool(paths or config_file)
    if from_files and socket:
        raise click.UsageError("give either PATHs or --live")
    if publish and not from_files:
        raise click.UsageError("--publish goes with PATHs: the running daemon knows what it has published")
    try:
        ask = make_ask(url, method, lines, client, alpn)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if from_files:
        explanation = _explain_files(ask, paths, config_file, flags, publish)
    else:
        explanation = _ask_daemon(url, method, lines, client, alpn, socket)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(explanation), indent=2))
    else:
        print_explanation(Terminal(soft_wrap=True), explanation)


def _explain_files(
    ask: Ask, paths: Sequence[str], config_file: str | None, flags: Flags, publish: Sequence[str]
) -> Explanation:
    read = read_input(paths, config_file, flags)
    try:
        binds = parse_publish((*read.settings.publish, *publish))
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    listeners = read.config.listeners.values()
    published = {
        one.name: str(binds[one.port, one.transport]) for one in listeners if (one.port, one.transport) in binds
    }
    _tell_unread(read.problems)
    told = explain(
        read.config,
        ask,
        published=published,
        refused=check_tls(read.config),
        defaults=make_options(read.settings, flags),
    )
    told = _with_lines(told)
    return msgspec.structs.replace(told, notes=(*told.notes, *_left_out(read, told, ask)))


def _tell_unread(problems: Sequence[Problem]) -> None:
    """What lacks because of its file looks like a request that nobody takes."""
    for problem in problems:
        if problem.code in UNREAD:
            click.echo(f"lb explain: {visible(problem.what)}", err=True)


def _left_out(read: Input, told: Explanation, ask: Ask) -> Iterator[str]:
    """The objects that say something of the port or host and are not served."""
    problems: list[Problem] = []
    if finds_nobody(told, ask.port):
        problems += unheard(read.problems, read.store, ask.port, ask.transport)
    if told.hosts or told.reason == "no-host":  # else it was refused before any rule was looked at
        hosts = {told.host, *(step.hostname for step in told.hosts)}
        problems += [one for one in read.problems if one.code in LEFT_OUT and hosts & _hosts_of(read.store, one)]
    return map(say_not_served, problems, locate_all([one.origin for one in problems]))


def _hosts_of(store: Store, problem: Problem) -> set[str]:
    """Hosts of the rule that a problem is about, or of all rules of its Ingress."""
    origin = problem.origin
    stored = store.get(origin.kind, origin.namespace, origin.name)
    if stored is None or not isinstance(stored.object, Ingress):
        return set()
    rules = stored.object.spec.rules
    if rule := _RULE.match(problem.field):
        rules = rules[int(rule[1]) :][:1]
    return {one.host or "*" for one in rules}


def _with_lines(told: Explanation) -> Explanation:
    """Objects of JSON files know only their item; their lines are looked up here, for all of them at once."""
    upstreams = told.upstreams
    sources = [step.source for steps in (told.listeners, told.routes, upstreams) for step in steps]
    sources += [one.source for one in (told.tls.certificates if told.tls is not None else ())]
    sources += [endpoint.source for upstream in upstreams for endpoint in upstream.endpoints]
    sources = list({source for source in sources if source.file and not source.line})
    origins = locate_all([Origin(file=source.file, item=source.item) for source in sources])
    lines = {
        source: msgspec.structs.replace(source, line=origin.line, column=origin.column)
        for source, origin in zip(sources, origins, strict=True)
    }

    def locate(step: StepT) -> StepT:
        return msgspec.structs.replace(step, source=lines.get(step.source, step.source))

    tls = told.tls
    if tls is not None:
        tls = msgspec.structs.replace(tls, certificates=tuple(map(locate, tls.certificates)))
    return msgspec.structs.replace(
        told,
        listeners=tuple(map(locate, told.listeners)),
        tls=tls,
        routes=tuple(map(locate, told.routes)),
        upstreams=tuple(
            msgspec.structs.replace(locate(one), endpoints=tuple(map(locate, one.endpoints))) for one in upstreams
        ),
    )


def _ask_daemon(
    url: str, method: str, lines: Sequence[str], client: str, alpn: Sequence[str], socket: str | None
) -> Explanation:
    # The client of the admin API is needed here only; without it the offline verbs start faster.
    from lb.cli.ctl import Client
    from lb.settings import find_admin_socket

    query = [("url", url), ("method", method), ("client", client), *(("header", line) for line in lines)]
    query += [("alpn", one) for one in alpn]
    given = urlencode([(name, value) for name, value in query if value])
    path = socket or os.environ.get("LB_ADMIN_SOCKET") or find_admin_socket()
    answer = Client(path, "json").get(f"/v1/explain?{given}")
    return msgspec.convert(answer, Explanation)


def print_explanation(console: Console, told: Explanation) -> None:
    """Print the steps in the order in which they are decided. Without colour the marks say the same."""
    query = "" if told.query is None else f"?{told.query}"
    _print(console, "request", Text(f"{told.method} {told.host}{told.path}{query}"))
    _print_rows(console, "listener", [_listener_row(one) for one in told.listeners])
    _print_rows(console, "name", [_name_row(one) for one in told.names])
    if told.tls is not None:
        _print_rows(console, "tls", list(_tls_rows(told.tls, time.time())))
    _print_rows(console, "host", [_host_row(one) for one in told.hosts])
    _print_rows(console, "route", list(_route_rows(told.routes)))
    if told.action:
        _print(console, "action", Text(told.action))
    for upstream in told.upstreams:
        _print_rows(console, "upstream", list(_upstream_rows(upstream)))
    _print_rows(console, "options", list(_option_rows(told.options)))
    _print_rows(console, "note", [Text(note) for note in told.notes])
    _print(console, "result", _result(told))


def _listener_row(step: ListenerStep) -> Text:
    served = (
        f"serves host set {step.host_set}"
        if step.host_set
        else "carries bytes"
        if not step.bind.endswith("/udp")
        else "carries datagrams"
    )
    at = f", published at {step.published}" if step.published else ""
    closed = f"closed: {step.closed}" if step.closed else ""
    return _step(step.verdict, f"{step.name} {step.bind}{at}, {served}", step.source, closed)


def _name_row(step: NameStep) -> Text:
    return _step(step.verdict, step.entry, why=step.why)


def _tls_rows(step: TlsStep, now: float) -> Iterator[Text]:
    name = step.server_name or "no name"
    yield _step("won", f"{step.entry} for {name}", why=step.why)
    for number, one in enumerate(step.certificates):
        verdict: Verdict = "lost" if one.mistake else "won" if number == 0 else "not-reached"
        yield _certificate_row(one, verdict, now)
    yield Text(f"    policy {step.policy}")
    yield Text(f"    {step.clients}")


def _certificate_row(step: CertificateStep, verdict: Verdict, now: float) -> Text:
    name = f"certificate {step.name}" if step.name else "lb's self-made certificate"
    whys = [step.mistake] if step.mistake else []
    if step.expires:
        date = datetime.fromtimestamp(step.expires, UTC).strftime("%Y-%m-%d")
        whys.append(f"expired on {date}" if step.expires <= now else f"until {date}")
    if step.warning:
        whys.append(step.warning)
    if verdict == "not-reached":
        whys.append("for clients that do not understand the one above")
    row = Text("    ")
    row.append_text(_step(verdict, f"{name} ({step.kind})" if step.kind else name, why="; ".join(whys)))
    return _with_source(row, step.source)


def _host_row(step: HostStep) -> Text:
    return _step(step.verdict, f"{step.hostname} ({step.routes} route{'' if step.routes == 1 else 's'})", why=step.why)


def _route_rows(routes: Sequence[RouteStep]) -> Iterator[Text]:
    """All routes; of many in a row that lost by their path only the first and last few."""
    for by_path, group in groupby(routes, key=lambda step: step.failed == "path"):
        steps = list(group)
        if by_path and len(steps) > MAX_LOSERS:
            half = MAX_LOSERS // 2
            yield from map(_route_row, steps[:half])
            yield Text(f"  … {len(steps) - 2 * half} more whose path does not match", "dim")
            yield from map(_route_row, steps[-half:])
        else:
            yield from map(_route_row, steps)


def _route_row(step: RouteStep) -> Text:
    return _step(step.verdict, f"{step.name} ({step.match})", step.source, step.why)


def _upstream_rows(upstream: UpstreamStep) -> Iterator[Text]:
    share = "" if upstream.share == 1 else f" gets {upstream.share:.0%}"
    policy = f", {upstream.balance}" if upstream.balance else ""
    policy += f" by {upstream.hash_key}" if upstream.balance == "maglev" and upstream.affinity == "none" else ""
    affinity = f", affinity {upstream.affinity}" if upstream.affinity != "none" else ""
    protocol = {"http1": "", "http2": ", HTTP/2"}.get(upstream.protocol, ", HTTP/2 or HTTP/1 by ALPN")
    verdict: Verdict = "won" if upstream.serves and upstream.share else "lost" if upstream.share else "not-reached"
    yield _step(verdict, f"{upstream.name}{share}{policy}{affinity}{protocol}", upstream.source, upstream.why)
    if upstream.tls:
        yield Text(f"    {upstream.tls}")
    for endpoint in upstream.endpoints[:MAX_ENDPOINTS]:
        yield _endpoint_row(endpoint)
    rest = len(upstream.endpoints) - MAX_ENDPOINTS
    if rest > 0:
        yield Text(f"    … {rest} more endpoints", "dim")


def _endpoint_row(endpoint: EndpointStep) -> Text:
    style = {"ready": "green", "unhealthy": "red"}.get(endpoint.state, "yellow")
    row = Text("    ")
    row.append(f"{endpoint.key} ")
    row.append(
        describe_failures(endpoint.state, endpoint.ejected_for_ms, endpoint.failures_in_row, endpoint.last_failure),
        style,
    )
    details = ["chosen"] if endpoint.chosen else []
    details += [f"weight {endpoint.weight}"] if endpoint.weight not in (0, 1) else []
    details += [f"{endpoint.active} active"] if endpoint.active is not None else []
    details += [f"starts slowly ({endpoint.slow_share:.0%})"] if endpoint.slow_share < 1 else []
    details += [endpoint.target] if endpoint.target else []
    details += [endpoint.health] if endpoint.health else []
    details += [f"TLS failed: {endpoint.tls_error}"] if endpoint.tls_error else []
    row.append("".join(f", {detail}" for detail in details))
    return _with_source(row, endpoint.source)


def _option_rows(options: Sequence[OptionStep]) -> Iterator[Text]:
    """What somebody set, each on its line; the built-in ones together."""
    for option in options:
        if option.set_by != "built in":
            yield Text(f"{option.name} {option.value}  [{option.set_by}]")
    built_in = [one for one in options if one.set_by == "built in" and one.value not in NOTHING_TO_SAY]
    text = ", ".join(dict.fromkeys(f"{one.name} {one.value}" for one in built_in))
    for line in textwrap.wrap(text, OPTIONS_WIDTH, initial_indent="built in: ", subsequent_indent="  "):
        yield Text(line, "dim")


def _result(told: Explanation) -> Text:
    if told.reason == "ok":
        return Text(f"forwarded: {told.why}", "bold green")
    if told.status is None:
        return Text(f"no answer, {told.reason}: {told.why}", "bold red")
    return Text(f"{told.status}, {told.reason}: {told.why}", "bold green" if told.status < 400 else "bold red")


def _step(verdict: Verdict, text: str, source: Source | None = None, why: str = "") -> Text:
    mark, style = MARKS[verdict]
    row = Text()
    row.append(f"{mark} ", style)
    row.append(text, "bold" if verdict == "won" else "")
    if why:
        row.append(f": {why}")
    return row if source is None else _with_source(row, source)


def _with_source(row: Text, source: Source) -> Text:
    text = " ".join(part for part in (source.object, source.place, source.field) if part)
    if text:
        row.append(f"  [{text}]", "dim")
    return row


def _print_rows(console: Console, label: str, rows: Sequence[Text]) -> None:
    for index, row in enumerate(rows):
        _print(console, "" if index else label, row)


def _print(console: Console, label: str, row: Text) -> None:
    line = Text(f"{label:{_LABEL_WIDTH}}", "cyan")
    line.append_text(row)
    console.print(line)
