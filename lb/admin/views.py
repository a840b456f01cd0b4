"""What serves, as the admin API shows it: the model joined with the engine's numbers.

Reads only, and only values that do not change while it reads: a Config and the counters of one moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lb import __version__
from lb._fastpath.credentials import library_version
from lb.admin import schema
from lb.admin.daemon import Daemon
from lb.certs.pem import expiry_of, read_chain
from lb.compile.tls import missing_groups
from lb.model.ask import make_ask
from lb.model.balance import pack_client
from lb.model.config import Config
from lb.model.description import describe_carried
from lb.model.explain import all_fail, finds_nobody, say_not_served
from lb.model.explain import explain as explain_request
from lb.model.explanation import Explanation
from lb.model.health import describe_check
from lb.model.listener import Listener
from lb.model.route import Forward, Route
from lb.model.tls import Certificate
from lb.model.upstream import Upstream
from lb.observe import logs
from lb.observe.metrics import requests_of
from lb.pipeline import OUTCOMES, count_problems
from lb.problems import NOT_LISTENED_FOR, WHERE_TO_LISTEN, Origin, Problem, Severity
from lb.translate.unheard import unheard

if TYPE_CHECKING:
    from lb._fastpath.engine import DatagramStats, EndpointStats, UpstreamStats

MAX_PAGE = 1_000
MAX_NAMES = 3
"""How many names a summary holds."""

ItemT = TypeVar("ItemT")


def readiness(daemon: Daemon) -> schema.Readiness:
    ready, why = daemon.readiness()
    return schema.Readiness(ready=ready, why=why, generation=daemon.pipeline.generation)


def status(daemon: Daemon) -> schema.Status:
    ready, why = daemon.readiness()
    config = daemon.pipeline.config
    exchanges, connections = daemon.engine.active()
    checked = [one.name for one in config.upstreams.values() if one.health_check.type != "off"]
    unhealthy = [name for name in checked if _is_unhealthy(daemon, name)]
    return schema.Status(
        version=__version__,
        pid=os.getpid(),
        started_at=daemon.started_at,
        uptime_seconds=time.time() - daemon.started_at,
        ready=ready,
        why=why,
        generation=daemon.pipeline.generation,
        threads=daemon.threads,
        exchanges=exchanges,
        connections=connections,
        listeners=len(config.listeners),
        listeners_open=len(daemon.listeners.opened),
        hosts=sum(len(hosts) for hosts in config.hosts.values()),
        routes=sum(len(host.routes) for hosts in config.hosts.values() for host in hosts.values()),
        upstreams=len(config.upstreams),
        upstreams_checked=len(checked),
        upstreams_unhealthy=len(unhealthy),
        upstreams_unhealthy_first=tuple(unhealthy[:MAX_NAMES]),
        problems=_count_problems(daemon),
        log_level=logs.level(),
        tls_library=library_version(),
        tls_kernel=daemon.tls_kernel,
        tls_groups_missing=missing_groups(),
    )


def _is_unhealthy(daemon: Daemon, upstream: str) -> bool:
    """Whether it has endpoints that are checked, and none of them passes."""
    states = {health.state for health in daemon.health.of(upstream).values()}
    return states == {"unhealthy"}


def config_status(daemon: Daemon) -> schema.ConfigStatus:
    pipeline = daemon.pipeline
    return schema.ConfigStatus(
        generation=pipeline.generation,
        builds={outcome: pipeline.outcomes[outcome] for outcome in OUTCOMES},
        newest=pipeline.newest,
        last_good=pipeline.last_good,
        last_refused=pipeline.last_refused,
    )


def problems(daemon: Daemon, severity: str, offset: int, limit: int) -> schema.Page[schema.ProblemInfo]:
    """Of the newest input, settings, listeners, and of certificates in time. An empty severity takes all."""
    pipeline = daemon.pipeline
    found = [
        (problem, place)
        for group, place in (
            (pipeline.read_problems, None),
            (pipeline.translated_problems, pipeline.place),
            (daemon.settings_file.problems, None),
            (daemon.listeners.problems, None),
            (daemon.expiry.problems, pipeline.place),
        )
        for problem in group
        if not severity or problem.severity == severity
    ]
    infos = [
        schema.ProblemInfo.of(
            problem if place is None else msgspec.structs.replace(problem, origin=place(problem.origin))
        )
        for problem, place in _slice(found, offset, limit)
    ]
    return schema.Page(tuple(infos), len(found), offset)


def _count_problems(daemon: Daemon) -> dict[Severity, int]:
    return count_problems(
        daemon.pipeline.newest, daemon.settings_file.problems, daemon.listeners.problems, daemon.expiry.problems
    )


def listeners(daemon: Daemon) -> tuple[schema.ListenerInfo, ...]:
    stats = daemon.engine.listener_stats()
    datagrams = daemon.engine.datagram_stats()
    closed = _closed(daemon)
    infos = []
    for name, listener in daemon.pipeline.config.listeners.items():
        opened = daemon.listeners.opened.get(name)
        counts = stats.get(name)
        infos.append(
            schema.ListenerInfo(
                name=name,
                port=listener.port,
                protocol=listener.protocol,
                host_set=listener.host_set if listener.has_hosts else "",
                forward=describe_carried(listener),
                open=opened is not None,
                address=_address_of(daemon, listener),
                activated=opened is not None and opened.activated,
                problem=closed.get(name, ""),
                connections=counts["accepted"] if counts else 0,
                connections_active=counts["active"] if counts else 0,
                connections_rejected=counts["rejected"] if counts else 0,
                requests=counts["requests"] if counts else 0,
                datagrams=_datagrams(datagrams[name]) if name in datagrams else None,
            )
        )
    return tuple(infos)


def load_balancers(daemon: Daemon, wanted: str) -> tuple[schema.LoadBalancerInfo, ...]:
    """Objects whose ports lb listens on, and those whose ports it does not and why; of this NAMESPACE/NAME, if any."""
    config = daemon.pipeline.config
    ports: dict[Origin, list[Listener]] = {}
    for listener in config.listeners.values():
        if listener.origin.kind in ("Service", "ConfigMap"):
            ports.setdefault(listener.origin, []).append(listener)
    problems: dict[Origin, list[Problem]] = {}
    for problem in daemon.pipeline.translated_problems:
        if problem.origin in ports or problem.code in NOT_LISTENED_FOR or problem.field in WHERE_TO_LISTEN:
            problems.setdefault(problem.origin, []).append(problem)
    infos, upstreams = {info.name: info for info in listeners(daemon)}, daemon.engine.upstream_stats()
    place = daemon.pipeline.place

    def carried(listener: Listener) -> schema.CarriedPort:
        names = {share.name: None for route in listener.carried_routes for share in route.forward.upstreams}
        return schema.CarriedPort(
            infos[listener.name],
            tuple(
                _upstream_info(daemon, config.upstreams[name], daemon.engine.endpoint_stats(name), upstreams.get(name))
                for name in names
                if name in config.upstreams
            ),
        )

    return tuple(
        schema.LoadBalancerInfo(
            origin.object,
            _source(daemon, origin),
            tuple(map(carried, ports.get(origin, ()))),
            tuple(
                schema.ProblemInfo.of(msgspec.structs.replace(one, origin=place(origin)))
                for one in problems.get(origin, ())
            ),
        )
        for origin in sorted({**ports, **problems}, key=lambda one: (one.namespace, one.name, one.kind))
        if wanted in ("", f"{origin.namespace}/{origin.name}")
    )


def _datagrams(stats: DatagramStats) -> schema.DatagramInfo:
    return schema.DatagramInfo(stats["datagrams_in"], stats["datagrams_out"], stats["dropped"], stats["evicted"])


def _address_of(daemon: Daemon, listener: Listener) -> str:
    """Where it accepts; where it should, when it is not open. All addresses are `*` either way."""
    opened = daemon.listeners.opened.get(listener.name)
    if opened is None:
        return str(daemon.listeners.bind_of(listener))
    if opened.wanted.address or opened.activated:
        return str(opened.address)
    return f"*:{opened.address.rpartition(':')[2]}"


def _reached_at(daemon: Daemon, listener: Listener) -> str:
    """As it was asked for, `*:80` for a socket at `[::]:80`; but port 0 and systemd's sockets are where they are."""
    bind, address = daemon.listeners.bind_of(listener), _address_of(daemon, listener)
    _, _, port = str(bind).rpartition(":")
    return str(bind) if address.endswith(f":{port}") else address


def _closed(daemon: Daemon) -> dict[str, str]:
    """Why listeners are not open, by name."""
    opened, closed = daemon.listeners.opened, daemon.listeners.closed
    otherwise = "lb is stopping" if daemon.readiness()[1] == "draining" else "it is not open"
    return {
        name: closed[name].why if name in closed else otherwise
        for name in daemon.pipeline.config.listeners
        if name not in opened
    }


def certificates(daemon: Daemon, offset: int, limit: int) -> schema.Page[schema.CertificateInfo]:
    """Those that expire first come first."""
    config = daemon.pipeline.config
    hosts: dict[str, list[str]] = {}
    for listener in config.listeners.values():
        for name, host in listener.tls.hosts.items() if listener.tls is not None else ():
            for certificate in host.certificates:
                hosts.setdefault(certificate, []).append(f"{listener.name} {name}")
    upstreams: dict[str, list[str]] = {}
    for upstream in config.upstreams.values():
        if upstream.tls is not None and upstream.tls.certificate:
            upstreams.setdefault(upstream.tls.certificate, []).append(upstream.name)
    found = sorted(config.certificates.values(), key=lambda one: (expiry_of(one.chain), one.name))
    renewals = _refused_renewals(daemon)
    infos = [
        _certificate_info(
            daemon, one, tuple(hosts.get(one.name, ())), tuple(upstreams.get(one.name, ())), renewals.get(one.name, "")
        )
        for one in _slice(found, offset, limit)
    ]
    return schema.Page(tuple(infos), len(found), offset)


def _refused_renewals(daemon: Daemon) -> dict[str, str]:
    """What is to be said of certificates whose newest form is refused, by name."""
    newest = {
        f"{problem.origin.namespace}/{problem.origin.name}": problem.code
        for problem in daemon.pipeline.translated_problems
        if problem.code == "LB3011"
    }
    for problem in daemon.pipeline.read_problems:  # certificates of native files
        if problem.code in ("LB1001", "LB1008") and problem.field.startswith("certificates."):
            newest[problem.field.removeprefix("certificates.")] = problem.code
    found = {name: f"a newer one is refused ({code}): a restart loses this one" for name, code in newest.items()}
    for key, problem in daemon.pipeline.compiler.refused.items():
        if problem.code == "LB6007":
            name = key.removeprefix("certificate ")
            found[name] = "it is refused (LB6007): the one before it is served, and a restart loses that"
    return found


def _certificate_info(
    daemon: Daemon, one: Certificate, hosts: tuple[str, ...], upstreams: tuple[str, ...], warning: str
) -> schema.CertificateInfo:
    pair = read_chain(one.chain)
    return schema.CertificateInfo(
        name=one.name,
        kind=pair.kind,
        names=pair.names,
        hosts=hosts,
        upstreams=upstreams,
        subject=pair.subject,
        issuer=pair.issuer,
        serial=pair.serial,
        fingerprint=pair.fingerprint,
        not_before=pair.not_before.timestamp(),
        not_after=pair.not_after.timestamp(),
        stapled=bool(one.ocsp),
        source=_source(daemon, one.origin),
        warning=warning,
    )


def routes(daemon: Daemon, host: str, upstream: str, offset: int, limit: int) -> schema.Page[schema.RouteInfo]:
    """Routes of a hostname and to an upstream; an empty filter takes all."""
    found = [
        (host_set, hostname, rank, route)
        for host_set, hostname, rank, route in _all_routes(daemon.pipeline.config)
        if (not host or hostname == host) and (not upstream or _leads_to(route, upstream))
    ]
    traffic = daemon.engine.route_stats()
    infos = [
        schema.RouteInfo(
            name=route.name,
            host_set=host_set,
            hostname=hostname,
            rank=rank,
            match=route.match,
            action=route.action,
            source=_source(daemon, route.origin, route.field),
            requests=requests_of(traffic[route.name]) if route.name in traffic else 0,
        )
        for host_set, hostname, rank, route in _slice(found, offset, limit)
    ]
    return schema.Page(tuple(infos), len(found), offset)


def upstreams(daemon: Daemon, offset: int, limit: int) -> schema.Page[schema.UpstreamInfo]:
    known = daemon.pipeline.config.upstreams
    stats = daemon.engine.upstream_stats()
    infos = [
        _upstream_info(daemon, known[name], daemon.engine.endpoint_stats(name), stats.get(name))
        for name in _slice(sorted(known), offset, limit)
    ]
    return schema.Page(tuple(infos), len(known), offset)


def upstream(daemon: Daemon, name: str) -> schema.UpstreamDetail:
    """KeyError when there is none of that name."""
    model = daemon.pipeline.config.upstreams[name]
    stats = daemon.engine.endpoint_stats(name)
    known = {endpoint.key: endpoint for endpoint in model.endpoints}
    health = daemon.health.of(name)
    endpoints = []
    for one in stats:
        endpoint = known.get(one["key"])
        endpoints.append(
            schema.EndpointInfo(
                endpoint=one["key"],
                state=one["state"],
                weight=one["weight"],
                target=endpoint.target if endpoint else "",
                source=_source(daemon, endpoint.origin) if endpoint else "",
                requests=one["requests"],
                requests_active=one["active"],
                failures=one["failures"],
                connections_idle=one["idle"],
                ejected_for_ms=one["ejected_for_ms"],
                failures_in_row=one["failures_in_row"],
                last_failure=one["last_failure"],
                slow_share=one["slow_share"],
                tls_error=one["tls_error"],
                health=health.get(one["key"]),
            )
        )
    return schema.UpstreamDetail(
        _upstream_info(daemon, model, stats, daemon.engine.upstream_stats().get(name)), tuple(endpoints)
    )


def explain(
    daemon: Daemon, url: str, method: str, lines: Sequence[str], client: str, alpn: Sequence[str] = ()
) -> Explanation:
    """Why a request goes where it goes, with live endpoint states. ValueError for arguments that make no sense."""
    pipeline, ask = daemon.pipeline, make_ask(url, method, lines, client, alpn)
    listeners = pipeline.config.listeners
    told = explain_request(
        pipeline.config,
        ask,
        _EndpointStates(daemon),
        published={name: _reached_at(daemon, one) for name, one in listeners.items()},
        closed=_closed(daemon),
        renewals=_refused_renewals(daemon),
        place=pipeline.place,
        refused=pipeline.compiler.refused,
        memory=lambda name, address: daemon.engine.remembered_endpoint(name, pack_client(address)),
        defaults=pipeline.options,
    )
    if not finds_nobody(told, ask.port):
        return told
    problems = unheard(pipeline.translated_problems, pipeline.store, ask.port, ask.transport)
    notes = (say_not_served(one, pipeline.place(one.origin)) for one in problems)
    return msgspec.structs.replace(told, notes=(*told.notes, *notes))


class _EndpointStates(Mapping[str, Sequence[Any]]):
    """Asks the engine only for the upstreams that are looked at."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def __getitem__(self, upstream: str) -> Sequence[Any]:
        health = self._daemon.health.of(upstream)
        return [
            {**one, "health": health[one["key"]].say() if one["key"] in health else ""}
            for one in self._daemon.engine.endpoint_stats(upstream)
        ]

    def __iter__(self) -> Iterator[str]:
        return iter(self._daemon.pipeline.config.upstreams)

    def __len__(self) -> int:
        return len(self._daemon.pipeline.config.upstreams)


def _upstream_info(
    daemon: Daemon, model: Upstream, endpoints: Sequence[EndpointStats], counts: UpstreamStats | None
) -> schema.UpstreamInfo:
    return schema.UpstreamInfo(
        name=model.name,
        balance=model.balance,
        affinity=model.affinity,
        protocol=model.protocol,
        endpoints=len(endpoints),
        endpoints_ready=sum(1 for one in endpoints if one["state"] == "ready" and one["weight"]),
        endpoints_unhealthy=sum(1 for one in endpoints if one["state"] == "unhealthy"),
        endpoints_ejected=sum(1 for one in endpoints if one["state"] == "ejected" and one["weight"]),
        health_check=describe_check(model.health_check),
        all_fail=model.health_check.when_all_fail if _all_fail(endpoints) else "",
        unavailable=model.unavailable,
        source=_source(daemon, model.origin),
        requests_active=counts["active"] if counts else 0,
        requests_queued=counts["queued"] if counts else 0,
        attempts=counts["attempts"] if counts else 0,
        retries=counts["retries"] if counts else 0,
        connects=counts["connects"] if counts else 0,
        connect_failures=counts["connect_failures"] if counts else 0,
        ejections=counts["ejections"] if counts else 0,
        connections_idle=counts["idle"] if counts else 0,
    )


def _all_fail(endpoints: Sequence[EndpointStats]) -> bool:
    return all_fail({one["state"] for one in endpoints if one["weight"]})


def _all_routes(config: Config) -> Iterator[tuple[str, str, int, Route]]:
    for host_set, hosts in config.hosts.items():
        for hostname, host in hosts.items():
            for rank, route in enumerate(host.routes):
                yield host_set, hostname, rank, route


def _leads_to(route: Route, upstream: str) -> bool:
    return isinstance(route.action, Forward) and any(share.name == upstream for share in route.action.upstreams)


def _slice(items: Sequence[ItemT], offset: int, limit: int) -> Sequence[ItemT]:
    return items[offset : offset + min(limit, MAX_PAGE)]


def _source(daemon: Daemon, origin: Origin, field: str = "") -> str:
    """`Ingress shop/web spec.rules[0] (web.yaml:12)`, or only the place in a native file; where it stands now."""
    origin = daemon.pipeline.place(origin)
    if not origin.kind:
        return origin.place
    text = " ".join(part for part in (origin.object, field) if part)
    return f"{text} ({origin.place})" if origin.place else text


def names_like(names: Iterable[str], wanted: str) -> str:
    """`; did you mean ...?` for an error text."""
    known = list(names)
    # Of an upstream people know the Service's name: `web` of `shop/web:80`.
    near = [name for name in known if wanted in (service := name.rpartition(":")[0], service.rpartition("/")[2])]
    near = near or get_close_matches(wanted, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
