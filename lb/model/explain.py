"""Why a request goes where it goes: every decision on its way, each with the object and line that caused it.

The decisions are those of match.py; this file only asks it step by step and keeps the answers (explanation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from lb.model.address import ANY_ADDRESS
from lb.model.address import is_ip_address as is_address
from lb.model.ask import Ask, server_name_of
from lb.model.balance import Share, choose_by_maglev, choose_by_rendezvous, hash_client, maglev_table
from lb.model.config import Config
from lb.model.datagram import DatagramOptions
from lb.model.defaults import BUILT_IN_DEFAULTS, Defaults
from lb.model.description import describe_forward, describe_match
from lb.model.explain_tls import (
    Chosen,
    asks_the_same,
    choose,
    describe_clients,
    describe_policy,
    describe_upstream,
    tell_certificates,
)
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
)
from lb.model.form import OptionField, option_fields
from lb.model.health import describe_check
from lb.model.listener import HttpOptions, Listener, Transport, write_bind
from lb.model.match import Condition, Named, Request, covers, failed_condition, find_host, match_name
from lb.model.normalize import Rejected, normalize_host, normalize_target
from lb.model.route import BUILT_IN_ROUTE_OPTIONS, Forward, Respond, Route, RouteOptions, VirtualHost
from lb.model.stream import NameRoute, Stream, StreamOptions, StreamRoute
from lb.model.units import format_duration
from lb.model.upstream import Endpoint, Upstream, UpstreamOptions
from lb.problems import Origin, Problem

States = Mapping[str, Sequence[Mapping[str, Any]]]
"""Upstream -> its endpoints as the running daemon sees them: `key`, `state`, `weight`, `active`, … (EndpointStats)."""

Memory = Callable[[str, str], tuple[str, int] | None]
"""(upstream, client's address) -> the endpoint that affinity remembers for it in the running daemon, and how many
milliseconds ago it was chosen last."""

STATUS = {
    "bad-host": 400,
    "bad-target": 400,
    "method-refused": 405,
    "no-host": 404,
    "no-route": 404,
    "no-upstream": 503,
    "no-endpoint": 503,
    "misdirected": 421,
    "plain-http": 400,
    "no-healthy-endpoint": 503,
}
"""What lb answers for the reasons that routing can end with: a part of lb/_fastpath/c/reasons.h."""

_OTHERS_SHOWN = 3
"""More listeners on other addresses say less."""

NO_LISTENER = "no-listener"
"""Not one of the data plane's reasons: where nothing listens, no request arrives."""


def explain(
    config: Config,
    ask: Ask,
    states: States | None = None,
    listener: str | None = None,
    published: Mapping[str, str] | None = None,
    place: Callable[[Origin], Origin] | None = None,
    refused: Mapping[str, Problem] | None = None,
    closed: Mapping[str, str] | None = None,
    renewals: Mapping[str, str] | None = None,
    memory: Memory | None = None,
    defaults: Defaults = BUILT_IN_DEFAULTS,
) -> Explanation:
    """How `config` serves the request.

    `listener` names the listener that takes it, when that is known better than from the port; `published` are the
    addresses (`*:8080`) at which clients reach listeners instead of their own, by name, and `closed` tells why
    listeners could not be opened. `states` are the endpoints' live states;
    without them the model's are told. `place` knows where the object of an origin stands now. `refused` is what OpenSSL
    would not take of the certificates and policies (TlsParts.refused), `renewals` what is to be said of certificates
    that serve because a newer one was refused. `memory` is what client affinity remembers; without it nobody knows.
    `defaults` are what the settings say for all, which is told of the options that have it from there.
    """
    known = (states or {}, published or {}, closed or {}, place or _as_it_says, refused or {}, renewals or {}, memory)
    return _Explainer(config, ask, defaults, *known).explain(listener)


class _End(Exception):
    """The search ends before an action: a normal outcome, told to the user."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


class _Explainer:
    """Walks the decisions in order. What each step found is kept, so an end anywhere still tells all before it."""

    def __init__(
        self,
        config: Config,
        ask: Ask,
        defaults: Defaults,
        states: States,
        published: Mapping[str, str],
        closed: Mapping[str, str],
        place: Callable[[Origin], Origin],
        refused: Mapping[str, Problem],
        renewals: Mapping[str, str],
        memory: Memory | None,
    ) -> None:
        self._config = config
        self._defaults = defaults
        self._published = published
        self._closed = closed
        self._place = place
        self._refused = refused
        self._renewals = renewals
        self._memory = memory
        self._ask = ask
        self._states = states
        self._found: dict[str, Any] = {"host": _printable(ask.host), "path": _printable(ask.target), "query": None}
        self._notes: list[str] = []
        self._carried = False
        self._carries: Transport | None = None
        self._lost = "requests are answered 503"
        self._chooser = ""  # the client's address as endpoints are chosen by it, when it is known
        self._passes = False

    def explain(self, name: str | None) -> Explanation:
        try:
            status, reason, why = self._walk(name)
        except _End as end:
            status, reason, why = self._status_of(end.reason), end.reason, end.why
        return Explanation(
            method=self._ask.method, status=status, reason=reason, why=why, notes=tuple(self._notes), **self._found
        )

    def _walk(self, name: str | None) -> tuple[int | None, str, str]:
        listener = self._choose_listener(name)
        self._note_proxies(listener)
        if listener.datagram is not None:
            return self._follow_carried(listener, listener.datagram.route, listener.datagram.options)
        if listener.stream is not None and listener.stream.route is not None:
            return self._follow_carried(listener, listener.stream.route, listener.stream.options)
        if self._ask.scheme == "tcp":
            raise _End(NO_LISTENER, f"{listener.name} speaks {listener.protocol}: ask for {listener.protocol}://…")
        route_by_name = self._choose_name(listener)
        if route_by_name is not None and listener.stream is not None:
            return self._follow_name(listener, listener.stream, route_by_name)
        if self._ask.scheme == "tls":
            raise _End(NO_LISTENER, f"{listener.name} speaks {listener.protocol}: ask for {listener.protocol}://…")
        shaken = self._shake_hands(listener)
        request = self._normalize(listener)
        host = self._choose_host(listener, request)
        self._check_direction(listener, shaken, request)
        route = self._choose_route(host, request)
        self._note_client(listener)
        self._found["options"] = tuple(_listener_and_route_options(listener, route, self._defaults))
        if route.options.https_redirect and not self._is_secure(listener):
            self._found["action"] = f"redirect to https ({route.options.https_redirect})"
            why = f"plain HTTP of {host.hostname} is sent to https"
            return route.options.https_redirect, "local-answer", why
        if isinstance(route.action, Respond):
            self._found["action"] = f"answer {route.action.status}"
            return route.action.status, "local-answer", route.action.why or "the route says so"
        return self._follow(route.action)

    def _status_of(self, reason: str) -> int | None:
        """What lb answers; bytes that are only carried get no answer."""
        return None if self._carried else STATUS.get(reason)

    def _follow_carried(
        self, listener: Listener, route: StreamRoute, options: StreamOptions | DatagramOptions
    ) -> tuple[int | None, str, str]:
        if self._ask.scheme not in ("tcp", "udp"):
            self._notes.append(f"{listener.name} carries bytes: it neither knows nor changes what is asked in them")
        what = "datagram" if listener.transport == "udp" else "connection"
        self._found["routes"] = (RouteStep(route.name, f"every {what}", "won", source=self._source(route.origin)),)
        self._let_in(listener, options, what)
        return self._follow(route.forward)

    def _let_in(self, listener: Listener, options: StreamOptions | DatagramOptions, what: str) -> None:
        """Whether the client may come at all, and what holds for what it sends."""
        self._carried = True
        self._carries = listener.transport
        self._lost = "datagrams are dropped" if listener.transport == "udp" else "connections are reset"
        self._found["options"] = tuple(_carried_options(listener, options, self._defaults))
        networks, client = ", ".join(options.allow), self._client_of(listener)
        if networks and not client:
            self._notes.append(f"only clients in {networks} are let in: say whose {what} it is with --from")
        elif networks and not _is_in(client, options.allow):
            raise _End("source-refused", f"{client} is not in {networks}")
        self._chooser = client

    def _client_of(self, listener: Listener) -> str:
        """The client's address; empty where only the header of a proxy would tell it, and where nobody says it."""
        proxies = _proxies_of(listener)
        return "" if _is_in(self._ask.client, proxies) and not _is_everybody(proxies) else self._ask.client

    def _note_proxies(self, listener: Listener) -> None:
        """That a PROXY header is expected, and whose address is asked about."""
        proxies = _proxies_of(listener)
        if not proxies:
            return
        whose = "" if _is_everybody(proxies) else f" from {', '.join(proxies)}"
        said = f"connections{whose} must begin with a PROXY header, which says who the client is"
        if self._ask.client and not self._client_of(listener):
            said += f": {self._ask.client} is such a proxy, so say with --from whom its header names"
        elif self._ask.client:
            alone = " or who comes without a proxy" if whose else ""
            said += f": {self._ask.client} is taken for the one whom it names{alone}"
        self._notes.append(said)

    def _choose_name(self, listener: Listener) -> NameRoute | None:
        """The route that takes the connection because of its server name; None: the hosts of HTTP are asked."""
        if listener.stream is None:
            return None
        server_name = self._ask.server_name
        if self._ask.scheme == "http":
            raise _End("plain-http", f"listener {listener.name} speaks TLS, and the client does not")
        found = match_name(self._config, listener.name, server_name, self._ask.alpn)
        names = {name: VirtualHost(name, (), one_label=False) for name in listener.stream.names}
        self._found["names"] = tuple(
            NameStep(one.hostname, *_judge_name(found, verdict, why))
            for one, verdict, why in _judge_hosts(names, server_name, names.get(found.entry or ""))
        )
        self._carried = not listener.has_hosts or found.route is not None
        if found.entry is not None and found.host is None:
            routes = listener.stream.names[found.entry]
            self._found["routes"] = tuple(self._judge_name_route(route, found.route) for route in routes)
        if found.route is None and not listener.has_hosts:
            if found.entry is None:
                raise _End(
                    "unrecognized-name", f"{listener.name} knows no name that stands for {server_name or 'none'}"
                )
            offered = ", ".join(self._ask.alpn) or "nothing"
            raise _End(
                "no-application-protocol", f"the client offers {offered}, and no route of {found.entry} is for it"
            )
        return found.route

    def _judge_name_route(self, route: NameRoute, winner: NameRoute | None) -> RouteStep:
        source = self._source(route.origin, route.field)
        match = f"clients that offer {' or '.join(route.alpn)}" if route.alpn else "every client"
        if route is winner:
            return RouteStep(route.name, match, "won", source=source)
        if route.takes(self._ask.alpn):
            return RouteStep(route.name, match, "not-reached", why="another one stands before it", source=source)
        offered = ", ".join(self._ask.alpn) or "nothing"
        return RouteStep(route.name, match, "lost", "alpn", f"the client offers {offered}", source)

    def _follow_name(self, listener: Listener, stream: Stream, route: NameRoute) -> tuple[int | None, str, str]:
        self._passes = route.mode == "passthrough"
        if self._passes:
            self._notes.append("TLS is passed through: the endpoint's certificate is what the client sees")
            if self._ask.scheme != "tls":
                self._notes.append("the request itself is unknown to lb, so no host, path or header decides")
        self._let_in(listener, stream.options, "connection")
        if not self._passes:
            self._shake_hands(listener)
        return self._follow(route.forward)

    def _choose_listener(self, name: str | None) -> Listener:
        listeners = self._config.listeners
        named = [listeners[name]] if name in listeners else []
        candidates = self._listeners_at_port() if name is None else named
        self._found["listeners"] = tuple(
            ListenerStep(
                one.name,
                one.bind,
                one.host_set if one.has_hosts else "",
                "lost" if index or one.name in self._closed or not (name or self._fits(one)) else "won",
                self._source(one.origin),
                self._published_at(one),
                self._closed.get(one.name, ""),
            )
            for index, one in enumerate(candidates)
        )
        if not candidates:
            udp = "/udp" if self._ask.transport == "udp" else ""
            where = f"listener {name}" if name is not None else f"port {self._ask.port}{udp}"
            raise _End(NO_LISTENER, f"nothing listens on {where}; {self._what_else(name)}")
        chosen = candidates[0]
        self._note_name(chosen)
        if name is None and not self._fits(chosen):
            raise _End(NO_LISTENER, self._who_else(candidates))
        if chosen.name in self._closed:
            where = self._published_at(chosen) or chosen.bind
            raise _End(NO_LISTENER, f"nobody listens on {where} for {chosen.name}: {self._closed[chosen.name]}")
        return chosen

    def _note_name(self, chosen: Listener) -> None:
        """That nobody has looked up the name that is connected to, where it is all that is said."""
        scheme, name = self._ask.scheme, server_name_of(self._ask.host)
        if scheme in ("tcp", "udp") and name:
            self._notes.append(
                f"{name} is not looked up: this is what {chosen.name} does on {self._reached_at(chosen)};"
                f" {scheme}://ADDRESS:{self._ask.port} asks about one address"
            )

    def _what_else(self, name: str | None) -> str:
        """What there is in place of a listener: on the same port the other protocol, else all ports."""
        listeners = sorted(self._config.listeners.values(), key=_port_order)
        port, other = self._ask.port, "TCP" if self._ask.transport == "udp" else "UDP"
        beside = [one for one in listeners if name is None and port in (one.port, _port_of(self._reached_at(one)))]
        if beside:
            return f"for {other} there is {beside[0].name} on {self._reached_at(beside[0])}"
        ports = ", ".join(dict.fromkeys(map(_port_text, listeners)))
        return f"there is {ports or 'no listener at all'}"

    def _published_at(self, listener: Listener) -> str:
        """Empty where a listener is at its own address."""
        address = self._published.get(listener.name, "")
        return "" if address == listener.bind else address

    def _listeners_at_port(self) -> list[Listener]:
        """Those that clients reach there, or whose own port it is; the only listener where no one has that port.

        Ports are mapped on the way to lb by more than lb knows: a container runtime, a firewall, a proxy for TLS.
        """
        listeners = [one for one in self._config.listeners.values() if one.transport == self._ask.transport]
        port = self._ask.port
        reached = [one for one in listeners if _port_of(self._published.get(one.name, "")) == port]
        mapped = [one for one in listeners if one.port == port]
        candidates = reached or mapped
        if not any(map(self._fits, candidates)) and any(map(self._fits, mapped)):
            candidates = mapped
        if not candidates and len(listeners) == 1:
            candidates = listeners
            only = candidates[0]
            if self._fits(only):
                self._notes.append(
                    f"no listener has port {port}: this is what the only one does, {only.name} on {only.bind}"
                )
        return sorted(candidates, key=self._distance)

    def _distance(self, listener: Listener) -> int:
        """The listener on the very address that is asked for stands before those on all addresses, and one that is
        open before one that is not; those on other addresses come last."""
        if not self._fits(listener):
            return 4
        if listener.name in self._closed:
            return 3
        addresses = [_address_of(place) for place in self._places(listener)]
        if self._ask.address in addresses:
            return 0
        return 1 if any(one in ANY_ADDRESS for one in addresses) else 2

    def _fits(self, listener: Listener) -> bool:
        """Whether it listens on the address that is asked for. A name says no address."""
        asked = self._ask.address
        places = self._places(listener)
        if not listener.address:  # the kernel says [::] of what takes both families
            places = [place.replace("[::]:", "*:") for place in places]
        return not asked or any(_covers_address(place, asked) for place in places)

    def _places(self, listener: Listener) -> list[str]:
        """Where it is reached, and its own place, from which somebody may map the port that is asked for."""
        places = [self._reached_at(listener), listener.bind]
        return [place for place in places if _port_of(place) == self._ask.port] or places

    def _reached_at(self, listener: Listener) -> str:
        return self._published.get(listener.name, "") or listener.bind

    def _who_else(self, others: Sequence[Listener]) -> str:
        """That nothing listens on the address that is asked for, and who listens on which others."""
        where = write_bind(self._ask.address, self._ask.port, self._ask.transport)
        known = [f"{one.name} on {self._reached_at(one)}" for one in others if one.name not in self._closed]
        shown = ", ".join(known[:_OTHERS_SHOWN])
        more = f" and {len(known) - _OTHERS_SHOWN} more" if len(known) > _OTHERS_SHOWN else ""
        return f"nothing listens on {where}; there is {shown or 'no open listener'}{more}"

    def _shake_hands(self, listener: Listener) -> Chosen | None:
        """What comes before the request on a listener that speaks TLS."""
        scheme, server_name = self._ask.scheme, self._ask.server_name
        if listener.protocol == "http":
            if scheme == "https":
                self._notes.append(
                    f"listener {listener.name} speaks plain HTTP: TLS must end at a proxy before it, which"
                    " trusted_proxies must name if its X-Forwarded-Proto is to be believed"
                )
            return None
        if scheme == "http":
            raise _End("plain-http", f"listener {listener.name} speaks TLS, and the client does not")
        chosen = choose(listener, server_name)
        clients = chosen.host.clients
        self._found["tls"] = TlsStep(
            server_name,
            chosen.name,
            chosen.why,
            describe_policy(listener),
            describe_clients(clients),
            tuple(self._certificates(chosen, server_name)),
        )
        refused = self._refused.get(f"listener {listener.name} {chosen.name}")
        if refused is not None:
            self._notes.append(f"{refused.what}: {refused.why}")
        if clients.mode == "nobody":
            raise _End("tls-handshake-failed", f"no client of {chosen.name} gets in: {clients.why}")
        return chosen

    def _certificates(self, chosen: Chosen, server_name: str) -> Iterator[CertificateStep]:
        for told in tell_certificates(self._config, chosen, server_name):
            refused = self._refused.get(f"certificate {told.name}")
            mistake = f"{refused.what}; {refused.why}" if refused is not None else told.mistake
            warning = self._renewals.get(told.name, "") if refused is None else ""
            source = self._source(told.origin)
            yield CertificateStep(told.name, told.kind, told.names, told.expires, mistake, warning, source)

    def _check_direction(self, listener: Listener, shaken: Chosen | None, request: Request) -> None:
        """A request must not come by a connection that was made under other rules (RFC 9110 15.5.20)."""
        if shaken is None:
            return
        wanted = choose(listener, request.host)
        if not asks_the_same(shaken.host.clients, wanted.host.clients):
            what = f"{request.host or 'no host'} asks something else of clients than the name of the handshake"
            raise _End("misdirected", f"{what}, {self._ask.server_name or 'none'}")

    def _is_secure(self, listener: Listener) -> bool:
        """Whether the client speaks TLS, to lb or to a proxy that is believed."""
        if listener.protocol == "https":
            return True
        said = next((value for name, value in self._ask.headers if name.lower() == "x-forwarded-proto"), "")
        return said.strip().lower() == "https" and self._is_trusted(listener)

    def _is_trusted(self, listener: Listener) -> bool:
        if not self._ask.client:
            return False
        client = ip_address(self._ask.client)
        return any(client in ip_network(one, strict=False) for one in listener.http.trusted_proxies)

    def _normalize(self, listener: Listener) -> Request:
        if self._ask.method == "CONNECT":
            raise _End("method-refused", "lb is no forward proxy")
        host = normalize_host(_encode(self._ask.host))
        if isinstance(host, Rejected):
            raise _End("bad-host", f"{host.why} ({host.rejection})")
        options = listener.http
        target = normalize_target(
            _encode(self._ask.target), merge_slashes=options.merge_slashes, escaped_slashes=options.escaped_slashes
        )
        if isinstance(target, Rejected):
            raise _End("bad-target", f"{target.why} ({target.rejection})")
        request = Request(
            _decode(host),
            _decode(target.path),
            self._ask.method,
            self._ask.headers,
            None if target.query is None else _decode(target.query),
        )
        self._found |= {"host": request.host, "path": request.path, "query": request.query}
        if request.path != self._ask.target.partition("?")[0]:
            self._notes.append(f"the path is normalised to {request.path}, which is matched and forwarded")
        return request

    def _choose_host(self, listener: Listener, request: Request) -> VirtualHost:
        hosts = self._config.hosts.get(listener.host_set, {})
        chosen = find_host(hosts, request.host)
        self._found["hosts"] = tuple(
            HostStep(one.hostname, verdict, why, len(one.routes))
            for one, verdict, why in _judge_hosts(hosts, request.host, chosen)
        )
        if chosen is None:
            raise _End("no-host", f"no virtual host of host set {listener.host_set} takes {request.host or 'no host'}")
        return chosen

    def _choose_route(self, host: VirtualHost, request: Request) -> Route:
        winner = None
        steps = []
        for route in host.routes:
            failed = failed_condition(route.match, request)
            verdict: Verdict = "lost" if failed is not None else "won" if winner is None else "not-reached"
            steps.append(
                RouteStep(
                    route.name,
                    describe_match(route.match),
                    verdict,
                    failed.kind if failed is not None else "",
                    _why_route(failed, verdict),
                    self._source(route.origin, route.field),
                )
            )
            winner = route if verdict == "won" else winner
        self._found["routes"] = tuple(steps)
        if winner is None:
            raise _End("no-route", f"none of the {len(host.routes)} routes of {host.hostname} takes it")
        return winner

    def _follow(self, forward: Forward) -> tuple[int | None, str, str]:
        total = sum(share.weight for share in forward.upstreams)
        self._found["action"] = f"forward to {describe_forward(forward)}"
        if not total:
            raise _End("no-upstream", "the route forwards to no upstream with a weight above 0")
        steps = tuple(self._judge_upstream(share.name, share.weight / total) for share in forward.upstreams)
        self._found["upstreams"] = steps
        upstreams = [self._config.upstreams[step.name] for step in steps if step.name in self._config.upstreams]
        for upstream in upstreams:
            self._found["options"] += tuple(_upstream_options(upstream, self._defaults, self._carries))
        refusing = [step for step in steps if step.share and not step.serves]
        if sum(step.share for step in refusing) >= 1 or len(refusing) == sum(1 for step in steps if step.share):
            reasons = {step.reason for step in refusing}
            reason = next(one for one in ("no-endpoint", "no-healthy-endpoint", "no-upstream") if one in reasons)
            raise _End(reason, "; ".join(step.why for step in refusing))
        for step in refusing:
            lost = self._lost
            self._notes.append(f"{step.share:.0%} of the {lost} ({step.reason}): {step.why}")
        endpoints = [one for step in steps if step.share for one in step.endpoints]
        chosen = [one.key for one in endpoints if one.chosen]
        if len(chosen) == 1 == sum(1 for step in steps if step.share):
            forgets = self._memory is None and any(step.affinity != "none" for step in steps if step.share)
            unless = ", unless another one has answered it before" if forgets else ""
            return None, "ok", f"{chosen[0]} answers {self._chooser}{unless}"
        if any(one.state == "ready" for one in endpoints):
            return None, "ok", "one of the ready endpoints answers"
        if _all_fail(endpoints):
            return (
                None,
                "ok",
                "all endpoints fail their health checks, so all of them get requests (when_all_fail: serve)",
            )
        return None, "ok", "an endpoint answers: none is ready"

    def _judge_upstream(self, name: str, share: float) -> UpstreamStep:
        upstream = self._config.upstreams.get(name)
        if upstream is None:
            return UpstreamStep(name, share, reason="no-upstream", why=f"there is no upstream {name}")
        live = {str(state["key"]): state for state in self._states.get(name, ())}
        endpoints = tuple(
            _judge_endpoint(one, live.get(one.key), self._source(one.origin)) for one in upstream.endpoints
        )
        refused = self._refused.get(f"upstream {name}")
        if refused is not None:
            self._notes.append(f"{refused.what}: {refused.why}")
        hash_key = self._hash_key(upstream)
        if upstream.affinity == "client-ip":
            self._notes.append(f"{name} keeps a client on its endpoint while that can serve{_how_long(upstream)}")
        elif hash_key == "source" and not self._ask.client:
            self._notes.append(f"{name} chooses by the client's address: --from tells which endpoint")
        if hash_key == "source" and self._chooser:
            endpoints = _choose(upstream, endpoints, self._chooser)
            if upstream.affinity == "client-ip":
                endpoints = self._recall(name, endpoints)
        reason, why = _why_unavailable(upstream, endpoints)
        if not reason and _all_fail(endpoints):
            self._notes.append(f"all endpoints of {name} fail their health checks, so they serve all the same")
        return UpstreamStep(
            name,
            share,
            upstream.balance,
            hash_key,
            upstream.affinity,
            endpoints,
            reason,
            why,
            self._source(upstream.origin),
            "" if self._passes else describe_upstream(upstream.tls),
            protocol=upstream.protocol,
        )

    def _recall(self, name: str, endpoints: tuple[EndpointStep, ...]) -> tuple[EndpointStep, ...]:
        """With the one marked that the client was on last, while it can serve and somebody remembers it."""
        if self._memory is None:
            return endpoints
        found = self._memory(name, self._chooser)
        if found is None:
            self._notes.append(f"lb remembers no endpoint of {name} for {self._chooser}: its address decides")
            return endpoints
        key, milliseconds = found
        was = f"{self._chooser} was sent to {key} last, {_say_age(milliseconds)} ago"
        state = next((one.state for one in endpoints if one.key == key), "gone")
        if state != "ready":
            self._notes.append(f"{was}, which is {state} now: its address decides")
            return endpoints
        by_address = next((one.key for one in endpoints if one.chosen), key)
        without = "would lead to the same one" if by_address == key else f"would lead to {by_address}"
        self._notes.append(f"{was}, and stays there; its address alone {without}")
        return tuple(msgspec.structs.replace(one, chosen=one.key == key) for one in endpoints)

    def _hash_key(self, upstream: Upstream) -> str:
        if upstream.affinity == "client-ip":
            return "source"
        if upstream.balance != "maglev":
            return ""
        return upstream.options.hash_key if self._carried else "source"

    def _source(self, origin: Origin, field: str = "") -> Source:
        placed = self._place(origin)
        name = placed.object if placed.kind else ""
        return Source(name, placed.file, placed.line, placed.column, placed.item, field)

    def _note_client(self, listener: Listener) -> None:
        if not self._ask.client:
            return
        trusted = self._is_trusted(listener)
        told = trusted and any(name.lower() == "x-forwarded-for" for name, _ in self._ask.headers)
        if not told:
            self._chooser = self._client_of(listener)
        verb = "believed and extended" if trusted else "replaced"
        self._notes.append(f"X-Forwarded-* headers from {ip_address(self._ask.client)} are {verb}")


def _proxies_of(listener: Listener) -> tuple[str, ...]:
    """Networks whose connections begin with a PROXY header."""
    if listener.has_hosts:
        return listener.http.proxy_protocol
    return listener.stream.options.proxy_protocol if listener.stream is not None else ()


def _is_everybody(networks: Sequence[str]) -> bool:
    """Whether they leave no address of a family out."""
    return any(ip_network(one, strict=False).prefixlen == 0 for one in networks)


def finds_nobody(told: Explanation, port: int) -> bool:
    """Whether no listener of that port takes what is asked, though none of them is just closed."""
    ports = ((step, {_port_of(step.bind), _port_of(step.published)}) for step in told.listeners)
    return not any(port in its and (step.verdict == "won" or step.closed) for step, its in ports)


def say_not_served(problem: Problem, origin: Origin) -> str:
    """Of an object that won nothing, so no step shows it. `origin` is where it stands now."""
    place = f"{origin.place} {problem.field}".rstrip()
    return f"not served: {origin.object}: {problem.what} ({problem.code})  [{place}]"


def _port_of(address: str) -> int:
    """Of `*:8080` or `*:53/udp`; 0 for a Unix socket, or where there is none."""
    port = "" if address.startswith("unix:") else address.rpartition(":")[2].removesuffix("/udp")
    return int(port or 0)


def _address_of(place: str) -> str:
    """Of `[::1]:53/udp`; `*` where it is all addresses."""
    address = place.rpartition(":")[0].strip("[]")
    return str(ip_address(address)) if is_address(address) else address


def _covers_address(place: str, address: str) -> bool:
    """Whether clients of this address reach that place. To a Unix socket something else leads them."""
    own = _address_of(place)
    if own in ANY_ADDRESS:
        return own == "*" or (":" in own) == (":" in address)
    return own == address or place.startswith("unix:")


def _port_text(listener: Listener) -> str:
    return f"{listener.port or listener.address}{'/udp' if listener.transport == 'udp' else ''}"


def _port_order(listener: Listener) -> tuple[int, str, str]:
    """By number, as people look for one; Unix sockets first."""
    return listener.port, listener.transport, listener.address


def _is_in(client: str, networks: Sequence[str]) -> bool:
    return client != "" and any(ip_address(client) in ip_network(one, strict=False) for one in networks)


def _judge_name(found: Named, verdict: Verdict, why: str) -> tuple[Verdict, str]:
    """What _judge_hosts says, unless HTTP takes the connection."""
    if verdict == "won" and found.host is not None:
        return "lost", f"{why}, but HTTP host {found.host.hostname} is more specific"
    if verdict == "won" and found.route is None:
        return "lost", f"{why}, but none of its routes takes what the client offers"
    return verdict, why


def _judge_hosts(
    hosts: Mapping[str, VirtualHost], host: str, chosen: VirtualHost | None
) -> Iterator[tuple[VirtualHost, Verdict, str]]:
    """The virtual hosts that come into question, in the order they are asked."""
    if host in hosts:
        yield hosts[host], "won", "exact name"
    labels = host.split(".")
    for index in range(1, len(labels)):
        candidate = hosts.get(f"*.{'.'.join(labels[index:])}")
        if candidate is None:
            continue
        if not covers(candidate, host):
            yield candidate, "lost", f"covers one label only, and {'.'.join(labels[:index])} is {index}"
        elif candidate is chosen:
            yield candidate, "won", f"covers {'.'.join(labels[:index])}"
        else:
            yield candidate, "not-reached", f"covers it too, but {chosen.hostname if chosen else ''} is more specific"
    if "*" in hosts:
        if chosen is hosts["*"]:
            yield chosen, "won", "takes what no other host takes"
        else:
            yield hosts["*"], "not-reached", "takes only what no other host takes"


def _why_route(failed: Condition | None, verdict: Verdict) -> str:
    if failed is not None and failed.kind == "path":
        return "path does not match"
    if failed is not None:
        return f"{failed.kind}: wanted {failed.wanted}, got {failed.got}"
    return "all conditions hold" if verdict == "won" else "would hold too, but stands after the winner"


def _judge_endpoint(endpoint: Endpoint, live: Mapping[str, Any] | None, source: Source) -> EndpointStep:
    state = "zero-weight" if endpoint.weight == 0 else "draining" if endpoint.draining else "ready"
    weight, active, health, tls_error, slow_share = endpoint.weight, None, "", "", 1.0
    failed: dict[str, Any] = {}
    if live is not None:
        weight, active, health = int(live.get("weight", weight)), live.get("active"), str(live.get("health", ""))
        state, tls_error = str(live.get("state", state)), str(live.get("tls_error", ""))
        slow_share = float(live.get("slow_share", 1))
        failed = {name: live[name] for name in ("ejected_for_ms", "failures_in_row", "last_failure") if name in live}
        if state == "ready" and weight == 0:
            state = "zero-weight"
    return EndpointStep(
        endpoint.key, state, weight, endpoint.target, active, health, source, tls_error, slow_share=slow_share, **failed
    )


def _choose(upstream: Upstream, steps: Sequence[EndpointStep], client: str) -> tuple[EndpointStep, ...]:
    """With the one marked that the client's address leads to; none while nobody is ready: then it is a makeshift."""
    resting = ("draining", "zero-weight")  # out of the table, unless nobody else is in it
    anybody = any(one.weight and one.state not in resting for one in steps)
    shares = [Share(one.key, 0 if anybody and one.state in resting else one.weight) for one in steps]
    h = hash_client(client)

    def serves(index: int) -> bool:
        return steps[index].state == "ready"

    if upstream.affinity == "client-ip":
        chosen = choose_by_rendezvous(shares, h, serves)
    else:
        chosen = choose_by_maglev(shares, maglev_table(shares), h, serves)
    return tuple(
        msgspec.structs.replace(one, chosen=True) if index == chosen else one for index, one in enumerate(steps)
    )


def _why_unavailable(upstream: Upstream, endpoints: Sequence[EndpointStep]) -> tuple[str, str]:
    """(reason, why) of an upstream that cannot serve.

    Draining endpoints, untested ones and ejected ones serve while there is no ready one.
    """
    if any(one.state in _SERVING or (one.state == "draining" and one.weight) for one in endpoints):
        return "", ""
    if not endpoints:
        return "no-endpoint", upstream.unavailable or f"{upstream.name} has no endpoints"
    if _all_fail(endpoints):
        if upstream.health_check.when_all_fail == "serve":
            return "", ""
        return "no-healthy-endpoint", f"all endpoints of {upstream.name} fail their health checks"
    return "no-endpoint", f"none of the {len(endpoints)} endpoints of {upstream.name} takes requests"


_SERVING = ("ready", "untested", "ejected")


def all_fail(states: Collection[str]) -> bool:
    """Whether all those endpoints fail their health checks that would serve otherwise."""
    return "unhealthy" in states and not any(state in _SERVING for state in states)


def _all_fail(endpoints: Sequence[EndpointStep]) -> bool:
    return all_fail({one.state for one in endpoints})


_SHOWN_WHEN_SET = ("https_redirect", "grpc_web")


def _listener_and_route_options(listener: Listener, route: Route, defaults: Defaults) -> Iterator[OptionStep]:
    for field in option_fields(RouteOptions):
        value = getattr(route.options, field.attribute)
        set_by = _set_by(field, value, defaults.route, "route", f"route {route.name}")
        if value is None and field.attribute == "max_body_bytes":
            continue
        if value is None:
            value, set_by = getattr(BUILT_IN_ROUTE_OPTIONS, field.attribute), "built in"
        if value or field.attribute not in _SHOWN_WHEN_SET:
            yield OptionStep(field.key, field.format(value), set_by)
    for field in option_fields(HttpOptions):
        if field.attribute == "max_body_bytes" and route.options.max_body_bytes is not None:
            continue
        value = getattr(listener.http, field.attribute)
        set_by = _set_by(field, value, defaults.http, "http", f"listener {listener.name}")
        name = "client_idle_timeout" if field.key == "idle_timeout" else field.key
        yield OptionStep(name, field.format(value), set_by)


def _carried_options(
    listener: Listener, options: StreamOptions | DatagramOptions, defaults: Defaults
) -> Iterator[OptionStep]:
    is_datagram = isinstance(options, DatagramOptions)
    common = defaults.datagram if is_datagram else defaults.stream_of(has_hosts=listener.has_hosts)
    section = "datagram" if is_datagram else "stream"
    for field in option_fields(type(options)):
        value = getattr(options, field.attribute)
        set_by = _set_by(field, value, common, section, f"listener {listener.name}")
        yield OptionStep(field.key, field.format(value), set_by)


_OF_REQUESTS = frozenset(
    {"idle_timeout_ms", "max_requests_per_connection", "max_streams_per_connection", "max_queue", "queue_timeout_ms"}
)
"""Options of an upstream that mean nothing to what is only carried: it shares no connection and waits in no queue."""


def _upstream_options(upstream: Upstream, defaults: Defaults, carries: Transport | None) -> Iterator[OptionStep]:
    """`carries`: by what the bytes come that are carried there; None for requests."""
    for field in option_fields(UpstreamOptions):
        value = getattr(upstream.options, field.attribute)
        if not _is_looked_at(upstream, field.attribute, value, carries):
            continue
        set_by = _set_by(field, value, defaults.upstream, "upstream", f"upstream {upstream.name}")
        yield OptionStep(f"upstream.{field.key}", field.format(value), set_by)
    if upstream.proxy_protocol != "none" and carries != "udp":
        header = ", ".join((upstream.proxy_protocol, *upstream.proxy_values))
        yield OptionStep("upstream.proxy_protocol", header, f"upstream {upstream.name}")
    if upstream.transparent:
        yield OptionStep("upstream.transparent", "true", f"upstream {upstream.name}")
    if upstream.health_check.type != "off":
        yield OptionStep("upstream.health_check", describe_check(upstream.health_check), f"upstream {upstream.name}")


def _set_by(field: OptionField, value: object, defaults: msgspec.Struct, section: str, own: str) -> str:
    """Who says it: a part of the model, the settings for all of its kind, or nobody. `own` names the part."""
    if value != getattr(defaults, field.attribute):
        return own
    return "built in" if value == field.default else f"settings defaults.{section}"


def _is_looked_at(upstream: Upstream, attribute: str, value: object, carries: Transport | None) -> bool:
    """Whether an option means something to what comes, and beside what the upstream says otherwise."""
    if carries is not None and attribute in _OF_REQUESTS:
        return False
    if attribute == "connect_timeout_ms":
        return carries != "udp"
    if attribute == "max_streams_per_connection":
        return upstream.protocol != "http1"
    if attribute == "hash_key":
        return upstream.balance == "maglev" and upstream.affinity == "none"
    if attribute == "affinity_timeout_ms":
        return upstream.affinity != "none"
    return attribute != "slow_start_ms" or (
        bool(value) and upstream.balance != "maglev" and upstream.affinity == "none"
    )


def _how_long(upstream: Upstream) -> str:
    timeout = upstream.options.affinity_timeout_ms
    return f", until it has been silent for {format_duration(timeout)}" if timeout else ""


def _say_age(milliseconds: int) -> str:
    """`57s`, `3m`, `5h`: in the largest unit of which there are two."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds // 1000}s"


def _as_it_says(origin: Origin) -> Origin:
    return origin


def _printable(text: str) -> str:
    """Bytes that are no UTF-8 cannot be written to JSON or a terminal; they become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
