"""The JSON Schema of the native file (draft 7, which editors understand), made from the model's own fields and texts.

The texts are the docstrings that follow the fields; they are read from the source, so that there is one of each.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeGuard, get_args

import msgspec

from lb.model.datagram import Datagram, DatagramOptions
from lb.model.form import API_VERSION, BUNDLES, KIND, PATH_KINDS, OptionField, option_fields
from lb.model.health import CheckType, HealthCheck
from lb.model.listener import HttpOptions, Listener, ListenerProtocol
from lb.model.route import (
    Forward,
    Match,
    PathKind,
    PathMatch,
    Respond,
    Route,
    RouteOptions,
    VirtualHost,
)
from lb.model.stream import Mode, NameRoute, Stream, StreamOptions, StreamRoute
from lb.model.tls import Certificate, ClientCertificates, ListenerTls, TlsHost, TlsPolicy, UpstreamTls
from lb.model.units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size
from lb.model.upstream import Balance, Endpoint, Protocol, ProxyProtocol, ProxyValue, Upstream, UpstreamOptions
from lb.problems import Origin

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
REFERENCE = "#/definitions/{name}"

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}


def make_schema(settings: Mapping[str, Any]) -> Schema:
    """The schema of a native file; `settings` is that of its `settings:` section."""
    return {
        "$schema": DRAFT,
        "title": "lb native configuration file",
        "description": "What lb serves: listeners, hosts with their routes, and upstreams.",
        **_object(
            {
                "apiVersion": {"const": API_VERSION},
                "kind": {"const": KIND},
                "metadata": {"type": "object", "description": "Passed over."},
                "settings": {
                    "description": "Settings of the daemon, read only from the file that -c names.",
                    **settings,
                },
                "listeners": _map_of("listener", "Listeners by name."),
                "hosts": _host_sets(),
                "upstreams": _map_of("upstream", "Upstreams by name."),
                "certificates": _map_of("certificate", "Certificates by name."),
            },
            required=("apiVersion", "kind"),
        ),
        "definitions": _definitions(),
    }


@cache
def field_texts(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring behind each field of a struct, on one line."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    texts: dict[str, str] = {}
    name = ""
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and name:
            texts[name] = " ".join(str(statement.value.value).split())
            name = ""
        else:
            name = ""
    return texts


def _definitions() -> Schema:
    return {
        "duration": {"description": "500ms, 5s, 1m30s, 1h or 0.", "anyOf": [_pattern(DURATION_PATTERN), {"const": 0}]},
        "size": {"description": "Bytes: 512, 32Ki, 1Mi.", "anyOf": [_pattern(SIZE_PATTERN), _number()]},
        "origin": {
            "description": "Where it came from: `Ingress shop/web (web.yaml:12:3)`.",
            "anyOf": [_TEXT, _object({field.name: {} for field in msgspec.structs.fields(Origin)})],
        },
        "listener": _listener(),
        "name_route": _name_route(),
        "host": _host(),
        "route": _route(),
        "upstream": _upstream(),
        "endpoint": _endpoint(),
        "certificate": _certificate(),
        "tls_host": _tls_host(),
    }


def _listener() -> Schema:
    texts = field_texts(Listener)
    return _object(
        {
            "port": {**_number(65_535), "description": "TCP or UDP port; needed unless the address is a Unix socket."},
            "address": {**_TEXT, "description": texts["address"]},
            "protocol": {"enum": list(get_args(ListenerProtocol)), "default": "http"},
            "tls": _object(
                {
                    "hosts": _map_of("tls_host", field_texts(ListenerTls)["hosts"]),
                    "certificates": {
                        "description": "Certificates, or directories of them, that serve the names they are for.",
                        "anyOf": [_TEXT, {"type": "array", "items": _TEXT}],
                    },
                    "policy": {
                        "enum": list(get_args(TlsPolicy)),
                        "default": "intermediate",
                        "description": field_texts(ListenerTls)["policy"],
                    },
                    "hsts": {**_TEXT, "description": field_texts(ListenerTls)["hsts"]},
                },
                text=_class_text(ListenerTls),
            ),
            "host_set": {**_TEXT, "default": "default", "description": texts["host_set"]},
            "http": _object(_options(HttpOptions), text=f"{_class_text(HttpOptions)} 0 means no limit."),
            "stream": _carried(Stream, StreamOptions),
            "datagram": _carried(Datagram, DatagramOptions),
            "origin": _reference("origin"),
        },
        text=_class_text(Listener),
    )


def _carried(section: type[msgspec.Struct], options: type[msgspec.Struct]) -> Schema:
    fields = {
        "forward": _forward(),
        "name": {**_TEXT, "description": "What logs, metrics and `explain` show; the listener's name by default."},
        "origin": _reference("origin"),
        "field": {**_TEXT, "description": field_texts(StreamRoute)["field"]},
    }
    text = _class_text(section)
    if section is not Stream:
        return _object(fields | _options(options), required=("forward",), text=text)
    routes = {"anyOf": [_TEXT, _reference("name_route"), {"type": "array", "items": _reference("name_route")}]}
    names = {
        "type": ["object", "null"],
        "description": field_texts(Stream)["names"],
        "additionalProperties": routes,
    }
    either = [{"required": [key]} for key in ("forward", "names")]
    return {**_object(fields | {"names": names} | _options(options), text=text), "anyOf": either}


def _name_route() -> Schema:
    texts = field_texts(NameRoute)
    fields = {
        "forward": _forward(),
        "mode": {"enum": list(get_args(Mode)), "default": "passthrough", "description": texts["mode"]},
        "alpn": {"type": "array", "items": _TEXT, "description": texts["alpn"]},
        "name": {**_TEXT, "description": "What logs, metrics and `explain` show; LISTENER/SERVER-NAME by default."},
        "origin": _reference("origin"),
        "field": {**_TEXT, "description": field_texts(StreamRoute)["field"]},
    }
    return _object(fields, required=("forward",), text=_class_text(NameRoute))


def _forward() -> Schema:
    return {
        "description": _class_text(Forward),
        "anyOf": [_TEXT, _map(_number()), {"type": "array", "items": _map(_number(), most=1)}],
    }


def _certificate() -> Schema:
    texts = field_texts(Certificate)
    fields = {
        "chain": {**_TEXT, "description": texts["chain"]},
        "key": {**_TEXT, "description": "The leaf's private key, not encrypted."},
        "ocsp": {**_TEXT, "description": texts["ocsp"]},
        "cert_file": {**_TEXT, "description": "File with the chain, and with the key when no other file is named."},
        "key_file": {**_TEXT, "description": "File with the private key."},
        "ocsp_file": {**_TEXT, "description": "File with an OCSP response (DER)."},
        "directory": {**_TEXT, "description": "Directory with certificates and their keys; each is NAME/FILE."},
        "origin": _reference("origin"),
    }
    ways = [{"required": [key]} for key in ("chain", "cert_file", "directory")]
    return {**_object(fields, text=_class_text(Certificate)), "oneOf": ways}


def _tls_host() -> Schema:
    names = {"type": "array", "items": _TEXT, "description": field_texts(TlsHost)["certificates"]}
    clients = _object(_options(ClientCertificates) | _bundle_files(), text=_class_text(ClientCertificates))
    full = _object({"certificates": names, "clients": clients})
    return {"description": _class_text(TlsHost), "anyOf": [_TEXT, names, full]}


def _bundle_files() -> Schema:
    return {f"{key}_file": {**_TEXT, "description": f"File with the text of `{key}`."} for key in BUNDLES}


def _host_sets() -> Schema:
    hosts = {"type": ["object", "null"], "additionalProperties": _reference("host")}
    text = "Host sets by name; each maps hostnames (`shop.example.com`, `*.example.com`, `*`) to their routes."
    return {"type": ["object", "null"], "description": text, "additionalProperties": hosts}


def _host() -> Schema:
    routes = {
        "type": ["array", "null"],
        "items": _reference("route"),
        "description": "The first one that matches wins.",
    }
    one_label = {**_FLAG, "default": True, "description": "Whether a wildcard covers one label only, or any number."}
    text = _class_text(VirtualHost)
    return {"description": text, "anyOf": [routes, _object({"one_label": one_label, "routes": routes})]}


def _route() -> Schema:
    texts = field_texts(Match)
    kinds = _object({key: {**_TEXT, "description": _kind_text(kind)} for key, kind in PATH_KINDS.items()})
    fields = {
        "path": {
            "description": "A prefix, or another kind of condition.",
            "anyOf": [_pattern("^/"), {**kinds, "maxProperties": 1}],
        },
        "methods": {"type": "array", "items": _TEXT, "description": texts["methods"]},
        "headers": _conditions("Headers that must have these values; names without case."),
        "query": _conditions("Query parameters that must have these raw values."),
        "forward": _forward(),
        "respond": {
            "description": _class_text(Respond),
            "anyOf": [
                {"type": "integer", "minimum": 200, "maximum": 599},
                _object(
                    {"status": {"type": "integer", "minimum": 200, "maximum": 599}, "body": _TEXT, "why": _TEXT},
                    required=("status",),
                ),
            ],
        },
        "name": {**_TEXT, "description": field_texts(Route)["name"]},
        "origin": _reference("origin"),
        "field": {**_TEXT, "description": field_texts(Route)["field"]},
    }
    either = [{"required": ["forward"]}, {"required": ["respond"]}]
    return {**_object(fields | _options(RouteOptions), text=_class_text(Route)), "oneOf": either}


def _conditions(text: str) -> Schema:
    present = _object({"present": {"const": True}}, required=("present",))
    condition = {"anyOf": [_TEXT, present]}
    return {"description": text, "anyOf": [_map(condition), {"type": "array", "items": _map(condition, most=1)}]}


def _upstream() -> Schema:
    texts = field_texts(Upstream)
    endpoints = {"type": ["array", "null"], "items": _reference("endpoint")}
    fields = {
        "endpoints": endpoints,
        "balance": {"enum": list(get_args(Balance)), "default": "round-robin"},
        "affinity": {"enum": ["none", "client-ip"], "default": "none", "description": texts["affinity"]},
        "protocol": {"enum": list(get_args(Protocol)), "default": "http1", "description": texts["protocol"]},
        "proxy_protocol": {
            "enum": list(get_args(ProxyProtocol)),
            "default": "none",
            "description": texts["proxy_protocol"],
        },
        "proxy_values": {
            "type": "array",
            "items": {"enum": list(get_args(ProxyValue))},
            "default": [],
            "description": texts["proxy_values"],
        },
        "transparent": {**_FLAG, "default": False, "description": texts["transparent"]},
        "resolve": {**_TEXT, "description": texts["resolve"]},
        "unavailable": {**_TEXT, "description": texts["unavailable"]},
        "tls": _object(_options(UpstreamTls) | _bundle_files(), text=_class_text(UpstreamTls)),
        "health_check": _health_check(),
        "origin": _reference("origin"),
    }
    full = _object(fields | _options(UpstreamOptions))
    return {"description": _class_text(Upstream), "anyOf": [{"type": "array", "items": _reference("endpoint")}, full]}


def _health_check() -> Schema:
    short = {"enum": list(get_args(CheckType)), "description": field_texts(HealthCheck)["type"]}
    full = _object(_options(HealthCheck))
    full["properties"]["type"]["default"] = "http"
    return {"description": field_texts(Upstream)["health_check"], "anyOf": [short, full]}


def _endpoint() -> Schema:
    texts = field_texts(Endpoint)
    fields = {
        "address": {**_TEXT, "description": "10.0.0.1:8080, [fd00::1]:8080 or unix:/path."},
        "port": {**_number(65_535), "description": "Only when it is not part of the address."},
        "weight": {**_number(), "default": 1},
        "draining": {**_FLAG, "default": False, "description": texts["draining"]},
        "target": {**_TEXT, "description": texts["target"]},
        "origin": _reference("origin"),
    }
    return {"description": _class_text(Endpoint), "anyOf": [_TEXT, _object(fields, required=("address",))]}


def struct_schema(struct: type[msgspec.Struct]) -> Schema:
    """The schema of a struct written with the keys of form.py, such as the daemon's settings."""
    required = [field.key for field in option_fields(struct) if field.default is msgspec.NODEFAULT]
    return _object(_options(struct), required=required, text=_class_text(struct))


def _options(options: type[msgspec.Struct]) -> Schema:
    texts = field_texts(options)
    return {field.key: _option(field, texts.get(field.attribute, "")) for field in option_fields(options)}


def _option(field: OptionField, text: str) -> Schema:
    about: Schema = {"description": text} if text else {}
    default = _default(field)
    if default is not None:
        about["default"] = default
    return {**_option_type(field), **about}


def _option_type(field: OptionField) -> Schema:
    if field.unit != "plain":
        return {"allOf": [_reference(field.unit)]}
    if _is_struct(field.type):
        return struct_schema(field.type)
    arguments = get_args(field.type)
    if arguments and _is_struct(arguments[0]):
        return {"type": "array", "items": struct_schema(arguments[0])}
    (found,), _ = msgspec.json.schema_components((field.type,))
    (kind,) = (one for one in found.get("anyOf", [found]) if one != {"type": "null"})
    return {"minimum": 0, **kind} if kind.get("type") == "integer" else kind


def _is_struct(kind: object) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _default(field: OptionField) -> object:
    """The default as it would be written; None when there is none to tell."""
    value = field.default
    if value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct) or value is None:
        return None
    if isinstance(value, tuple):
        return list(value)
    if field.unit == "plain" or not isinstance(value, int):
        return value
    return format_duration(value) if field.unit == "duration" else format_size(value)


def _kind_text(kind: str) -> str:
    """The paragraph of PathMatch's docstring that says what a kind means."""
    lines = inspect.cleandoc(PathMatch.__doc__ or "").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"{kind} "))
    starts = tuple(f"{one} " for one in get_args(PathKind))
    paragraph = [lines[start].removeprefix(kind)]
    for line in lines[start + 1 :]:
        if line.startswith(starts) or not line:
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split())


def _class_text(struct: type[msgspec.Struct]) -> str:
    """The first sentence of its docstring: the next ones speak of units and other matters of the model."""
    text = " ".join(inspect.cleandoc(struct.__doc__ or "").split())
    return text.partition(". ")[0].removesuffix(".") + "."


def _object(properties: Schema, *, required: Iterable[str] = (), text: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if text:
        schema["description"] = text
    if names := list(required):
        schema["required"] = names
    return schema


def _map_of(name: str, text: str) -> Schema:
    return {"type": ["object", "null"], "description": text, "additionalProperties": _reference(name)}


def _map(values: Schema, most: int = 0) -> Schema:
    return {"type": "object", "additionalProperties": values, **({"maxProperties": most} if most else {})}


def _reference(name: str) -> Schema:
    return {"$ref": REFERENCE.format(name=name)}


def _pattern(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _number(most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": 0, **({"maximum": most} if most is not None else {})}
