"""Annotations by which other load balancers are told what to do for a Service of type LoadBalancer.

They count where lb stands in for those: on Services of type LoadBalancer that are lb's. An entry says which of lb's own
annotations its value stands for; what says the same in lb's own words wins. What has no entry is told (LB5007).

Sources: AWS Load Balancer Controller, docs/guide/service/annotations.md and `pkg/service`; MetalLB, usage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from lb.model.health import HealthCheck, mistakes, split_statuses
from lb.objects.core import Service
from lb.objects.view import Stored
from lb.problems import Problem, Problems
from lb.translate.annotations import (
    ANNOTATIONS,
    GUARDED,
    NarrowedError,
    Part,
    Said,
    Values,
    example_of,
    field_of,
    parse_addresses,
    parse_count,
    read_annotations,
    report_without_effect,
)
from lb.translate.options import Options

LOAD_BALANCER_CLASS = "lb/lb"
"""`spec.loadBalancerClass` of the Services that are lb's."""

SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""The older way to say `spec.loadBalancerSourceRanges`, which wins over it."""

_AWS = "service.beta.kubernetes.io/aws-load-balancer-"

PREFIXES = (
    "cloud.google.com/",
    "load-balancer.hetzner.cloud/",
    "metallb.io/",
    "metallb.universe.tf/",
    "networking.gke.io/",
    "service.beta.kubernetes.io/",
)
"""Of annotations that tell a load balancer how to serve a Service."""


class VendorAnnotation(NamedTuple):
    """An annotation of another load balancer."""

    name: str
    read: Callable[[str], Iterable[Said]]
    """What it says, in the parts and fields of lb's own annotations. ValueError with a text for people."""
    text: str
    """For the documentation."""
    says: Part | None = None
    """The part that a mistake must not leave to the default."""


def read_service(stored: Stored, service: Service, options: Options, problems: Problems) -> tuple[Values, bool]:
    """What a Service's annotations say, and whether it is a load balancer's and lb's: then other load balancers' count
    as well."""
    values = read_annotations(stored, "Service", problems)
    if not is_served(service, values, options):
        return values, False
    said: list[Said] = []
    mistakes: dict[str, str] = {}
    without_effect: list[str] = []
    annotations = service.metadata.annotations or {}
    for entry in VENDOR_ANNOTATIONS:
        if entry.name in annotations:
            said += _read(stored, entry, annotations[entry.name].strip(), without_effect, mistakes, problems)
    known = {entry.name for entry in VENDOR_ANNOTATIONS} | {SOURCE_RANGES}
    without_effect += [name for name in annotations if name.startswith(PREFIXES) and name not in known]
    report_without_effect(stored, without_effect, problems)
    mistakes = {part: mistake for part, mistake in mistakes.items() if getattr(values, part) is None}
    return msgspec.structs.replace(values.over(said), mistakes={**mistakes, **values.mistakes}), True


def is_served(service: Service, values: Values, options: Options) -> bool:
    """By its class; without one by its annotation, and without that by the operator's word for all of them."""
    if service.spec.type != "LoadBalancer":
        return False
    wanted = service.spec.load_balancer_class
    if wanted:
        return wanted == LOAD_BALANCER_CLASS or wanted in options.take_over
    return bool(options.load_balancers if values.load_balancer is None else values.load_balancer)


def left_to_others(stored: Stored, service: Service, values: Values) -> Problem:
    """The note that lb does not listen for a Service of type LoadBalancer."""
    wanted = service.spec.load_balancer_class
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    field = "spec.loadBalancerClass" if wanted else "spec.type"
    if wanted:
        what = f"Service {name} of type LoadBalancer is of class {wanted}, which is another load balancer's"
        fix = f"--take-over {wanted} serves all of that class"
    elif values.load_balancer is False:
        field = field_of("load_balancer", "")
        what = f"Service {name} of type LoadBalancer is left to others by its annotation lb/load-balancer"
        fix = 'if lb should serve it, write lb/load-balancer: "true"'
    else:
        what = f"Service {name} of type LoadBalancer has no class, and nobody asks lb to serve it"
        fix = 'lb/load-balancer: "true" on it, or --load-balancers for all of them, has lb serve it'
    return Problem("LB2005", stored.origin, what, "lb does not listen for it", fix, field)


def _read(
    stored: Stored,
    entry: VendorAnnotation,
    value: str,
    without_effect: list[str],
    mistakes: dict[str, str],
    problems: Problems,
) -> Iterator[Said]:
    why = "the default is used"
    try:
        for one in entry.read(value):
            if one.part is not None:
                yield one
            else:
                without_effect.append(f"{entry.name} ({one.field})" if one.field else entry.name)
        return
    except NarrowedError as error:
        yield Said(entry.says, "", error.value)
        what, why = str(error), error.effect
    except ValueError as error:
        what = str(error)
        if entry.says in GUARDED:
            mistakes[entry.says] = f"{entry.name}: {error}"
            why = GUARDED[entry.says]
    field = f"metadata.annotations[{entry.name}]"
    problems.add("LB5001", stored.origin, f"{entry.name}: {what}", why=why, fix=_fix(entry), field=field)


def _fix(entry: VendorAnnotation) -> str:
    """What to write there: as in lb's own annotation, where the entry only names it."""
    named = re.fullmatch(r"As `(lb/[a-z-]+)`\.", entry.text)
    if named is None:
        return entry.text
    return example_of(next(one for one in ANNOTATIONS if one.name == named[1]), entry.name)


def _says(part: Part, field: str, parse: Callable[[str], object]) -> Callable[[str], Iterable[Said]]:
    return lambda value: (Said(part, field, parse(value)),)


def _checks(field: str, parse: Callable[[str], object]) -> Callable[[str], Iterable[Said]]:
    def read(value: str) -> Iterable[Said]:
        parsed = parse(value)
        check = msgspec.structs.replace(HealthCheck("http"), **{field: parsed})
        for _, mistake in mistakes(check, has_tls=False):
            raise ValueError(mistake)
        return (Said("health", field, parsed),)

    return read


def _nothing(_: str) -> Iterable[Said]:
    """For what lb does anyway."""
    return ()


def _only(served: str, value: str, name: str) -> Iterable[Said]:
    """Of what can be said, lb does one thing anyway; the rest has no effect."""
    return () if value == served else (Said(None, f"{name}: {value}", value),)


def _seconds(value: str) -> int:
    return parse_count(value) * 1000


def _port(value: str) -> int:
    return 0 if value == "traffic-port" else parse_count(value)


def _target_type(value: str) -> str:
    if value not in ("ip", "instance"):
        raise ValueError(f"{value!r} is neither ip nor instance")
    return "endpoints" if value == "ip" else "nodeports"


def _kind(value: str) -> Iterable[Said]:
    return (Said("targets", "", "endpoints"),) if value == "nlb-ip" else ()


def _proxy_protocol(value: str) -> object:
    if value != "*":
        raise ValueError(f"{value!r} is not *")
    return "v2", ()


def _check_protocol(value: str) -> Iterable[Said]:
    kinds = {"tcp": ("tcp", ""), "http": ("http", "off"), "https": ("http", "unverified")}
    if value.lower() not in kinds:
        raise ValueError(f"{value!r} is not tcp, http or https")
    kind, tls = kinds[value.lower()]
    return (Said("health", "type", kind), *((Said("health", "tls", tls),) if tls else ()))


def _attributes(value: str) -> Iterator[Said]:
    """`KEY=VALUE,KEY=VALUE`"""
    for one in filter(None, map(str.strip, value.split(","))):
        key, equals, word = one.partition("=")
        if not equals:
            raise ValueError(f"{one!r} is not like KEY=VALUE")
        read = _ATTRIBUTES.get(key.strip())
        yield from read(word.strip()) if read is not None else (Said(None, key.strip(), word),)


def _drain(value: str) -> Iterable[Said]:
    return (
        Said("stream", "drain_timeout_ms", _seconds(value)),
        Said("datagram", "drain_timeout_ms", _seconds(value)),
    )


_ATTRIBUTES: dict[str, Callable[[str], Iterable[Said]]] = {
    "deregistration_delay.timeout_seconds": _drain,
    "deregistration_delay.connection_termination.enabled": lambda value: _only("true", value, "connection_termination"),
    "proxy_protocol_v2.enabled": lambda value: (Said("proxy_protocol", "", ("v2" if value == "true" else "none", ())),),
    "load_balancing.cross_zone.enabled": lambda value: _only("true", value, "cross_zone"),
    "target_health_state.unhealthy.connection_termination.enabled": lambda value: (
        Said("health", "open_flows", "reset" if value == "true" else "keep"),
    ),
    "target_health_state.unhealthy.draining_interval_seconds": lambda value: _only(
        "0", value, "unhealthy.draining_interval_seconds"
    ),
}

_INSIDE_AWS = "Means nothing outside of AWS."
_SHARING = "lb lets Services share an address on different ports without it."

VENDOR_ANNOTATIONS: tuple[VendorAnnotation, ...] = (
    VendorAnnotation(
        "metallb.universe.tf/loadBalancerIPs",
        _says("addresses", "", parse_addresses),
        "As `lb/addresses`.",
        "addresses",
    ),
    VendorAnnotation(
        "metallb.io/loadBalancerIPs", _says("addresses", "", parse_addresses), "As `lb/addresses`.", "addresses"
    ),
    VendorAnnotation("metallb.universe.tf/allow-shared-ip", _nothing, _SHARING),
    VendorAnnotation("metallb.io/allow-shared-ip", _nothing, _SHARING),
    VendorAnnotation("metallb.io/ip-allocated-from-pool", _nothing, "MetalLB's own note on what it has done."),
    VendorAnnotation("metallb.universe.tf/ip-allocated-from-pool", _nothing, "MetalLB's own note on what it has done."),
    VendorAnnotation(f"{_AWS}type", _kind, "`nlb-ip` as `lb/targets: endpoints`."),
    VendorAnnotation(f"{_AWS}name", _nothing, _INSIDE_AWS),
    VendorAnnotation(f"{_AWS}additional-resource-tags", _nothing, _INSIDE_AWS),
    VendorAnnotation(
        f"{_AWS}scheme",
        lambda value: _only("internet-facing", value, "scheme"),
        "`internet-facing` is what lb does; for `internal` say where to listen with `lb/addresses`.",
    ),
    VendorAnnotation(f"{_AWS}enable-tcp-udp-listener", _nothing, "TCP and UDP ports may always have one number."),
    VendorAnnotation(
        f"{_AWS}nlb-target-type",
        _says("targets", "", _target_type),
        "`ip` as `lb/targets: endpoints`, `instance` as `nodeports`.",
    ),
    VendorAnnotation(
        f"{_AWS}target-group-attributes",
        _attributes,
        "`deregistration_delay.timeout_seconds` as `lb/tcp-drain-timeout` and `lb/udp-drain-timeout`; "
        "`proxy_protocol_v2.enabled` as `lb/proxy-protocol`; "
        "`target_health_state.unhealthy.connection_termination.enabled` as `lb/health-check-open-flows`, `true` is "
        "`reset`; where it is not set they are kept, which NLB does not do. Connections are ended when the delay is "
        "over, those of unhealthy targets at once or never (not after `draining_interval_seconds`), and targets of all "
        "zones are used.",
    ),
    VendorAnnotation(
        f"{_AWS}attributes",
        _attributes,
        "`load_balancing.cross_zone.enabled: true` is what lb does.",
    ),
    VendorAnnotation(
        f"{_AWS}proxy-protocol",
        _says("proxy_protocol", "", _proxy_protocol),
        "`*` as `lb/proxy-protocol: v2`.",
        "proxy_protocol",
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-protocol",
        _check_protocol,
        "`tcp`, `http`, or `https` (whoever answers) as `lb/health-check`.",
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-port", _checks("port", _port), "`traffic-port` or a number: `lb/health-check-port`."
    ),
    VendorAnnotation(f"{_AWS}healthcheck-path", _checks("path", str), "As `lb/health-check-path`."),
    VendorAnnotation(
        f"{_AWS}healthcheck-success-codes",
        _checks("statuses", split_statuses),
        "As `lb/health-check-statuses`.",
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-interval", _checks("interval_ms", _seconds), "Seconds: `lb/health-check-interval`."
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-timeout", _checks("timeout_ms", _seconds), "Seconds: `lb/health-check-timeout`."
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-healthy-threshold", _checks("rise", parse_count), "As `lb/health-check-rise`."
    ),
    VendorAnnotation(
        f"{_AWS}healthcheck-unhealthy-threshold", _checks("fall", parse_count), "As `lb/health-check-fall`."
    ),
)
