"""The admin API: one table of operations, from which come the routes, parameter checks and the OpenAPI document.

A handler takes the daemon and decoded arguments, and returns a value of schema.py or raises Refused. Everything that
changes something is refused unless the application says that the transport is trusted (the Unix socket, whose file mode
decides who may).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lb import __version__
from lb.admin import flows as carried
from lb.admin import schema, views
from lb.admin.daemon import Daemon
from lb.model.explanation import Explanation
from lb.observe import logs
from lb.pipeline import Build
from lb.problems import SEVERITIES

log = structlog.stdlib.get_logger(__name__)

MAX_BODY_BYTES = 65_536


class Refused(Exception):
    """The request cannot be served: becomes a problem document."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Arguments(NamedTuple):
    """What a request brought."""

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    accept: str
    lines: list[tuple[str, str]]
    """Query parameters as they came, for those that may repeat."""


class Parameter(NamedTuple):
    """A query parameter; its default tells its type."""

    name: str
    default: str | int
    help: str


class Operation(NamedTuple):
    """One row of the API."""

    method: Literal["GET", "POST", "PUT"]
    path: str
    summary: str
    handler: Callable[[Daemon, Arguments], Awaitable[Any]]
    answer: Any
    """Type of the answer, or None for a Response of another content type."""
    parameters: tuple[Parameter, ...] = ()
    body: Any = None


# -- Handlers


async def livez(daemon: Daemon, arguments: Arguments) -> schema.Liveness:
    return schema.Liveness()


async def readyz(daemon: Daemon, arguments: Arguments) -> Response:
    answer = views.readiness(daemon)
    return _json(answer, HTTPStatus.OK if answer.ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def metrics(daemon: Daemon, arguments: Arguments) -> Response:
    ready, _ = daemon.readiness()
    text, content_type = await daemon.metrics.render(arguments.accept, ready=ready)
    return Response(text, headers={"content-type": content_type})


async def status(daemon: Daemon, arguments: Arguments) -> schema.Status:
    return views.status(daemon)


async def config(daemon: Daemon, arguments: Arguments) -> schema.ConfigStatus:
    return views.config_status(daemon)


async def problems(daemon: Daemon, arguments: Arguments) -> schema.Page[schema.ProblemInfo]:
    query = arguments.query
    if query["severity"] and query["severity"] not in SEVERITIES:
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"`severity` is one of {', '.join(SEVERITIES)}, not `{query['severity']}`"
        )
    return views.problems(daemon, query["severity"], query["offset"], query["limit"])


async def listeners(daemon: Daemon, arguments: Arguments) -> tuple[schema.ListenerInfo, ...]:
    return views.listeners(daemon)


async def load_balancers(daemon: Daemon, arguments: Arguments) -> tuple[schema.LoadBalancerInfo, ...]:
    return views.load_balancers(daemon, arguments.query["name"])


async def certificates(daemon: Daemon, arguments: Arguments) -> schema.Page[schema.CertificateInfo]:
    return views.certificates(daemon, arguments.query["offset"], arguments.query["limit"])


async def routes(daemon: Daemon, arguments: Arguments) -> schema.Page[schema.RouteInfo]:
    query = arguments.query
    return views.routes(daemon, query["host"], query["upstream"], query["offset"], query["limit"])


async def upstreams(daemon: Daemon, arguments: Arguments) -> schema.Page[schema.UpstreamInfo]:
    return views.upstreams(daemon, arguments.query["offset"], arguments.query["limit"])


async def upstream(daemon: Daemon, arguments: Arguments) -> schema.UpstreamDetail:
    name = arguments.path["name"]
    _check_upstream(daemon, name)
    return views.upstream(daemon, name)


async def flows(daemon: Daemon, arguments: Arguments) -> schema.Flows:
    with _refusing(daemon, arguments.query):
        return await carried.look(daemon.engine, arguments.query)


async def end_flows(daemon: Daemon, arguments: Arguments) -> schema.FlowsEnded:
    which: dict[str, str] = msgspec.structs.asdict(arguments.body)
    filters = {name: value for name, value in which.items() if value}
    with _refusing(daemon, which):
        try:
            ended = await carried.end(daemon.engine, which)
        except carried.Unanswered as error:
            log.warning("flows not all ended", **filters, why=str(error))
            raise
    log.info("flows ended", **filters, connections=ended.connections, sessions=ended.sessions)
    return ended


@contextmanager
def _refusing(daemon: Daemon, asked: Mapping[str, Any]) -> Iterator[None]:
    """Says why a question about flows has no answer."""
    config = daemon.pipeline.config
    try:
        yield
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
    except KeyError as error:
        what = error.args[0]
        known = config.listeners if what == "listener" else config.upstreams
        name = asked[what]
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no {what} {name}{views.names_like(known, name)}") from None
    except carried.Unanswered as error:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None


async def explain(daemon: Daemon, arguments: Arguments) -> Explanation:
    query = arguments.query
    if not query["url"]:
        raise Refused(HTTPStatus.BAD_REQUEST, "`url` is missing, such as ?url=http://shop.example.com/cart")
    lines = [value for name, value in arguments.lines if name == "header"]
    try:
        alpn = [value for name, value in arguments.lines if name == "alpn" and value]
        return views.explain(daemon, query["url"], query["method"], lines, query["client"], alpn)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None


async def reload(daemon: Daemon, arguments: Arguments) -> Build:
    return await daemon.reload()


async def change_endpoint(daemon: Daemon, arguments: Arguments) -> schema.UpstreamDetail:
    change: schema.EndpointChange = arguments.body
    _check_upstream(daemon, change.upstream)
    keys = [one["key"] for one in daemon.engine.endpoint_stats(change.upstream)]
    if change.endpoint and change.endpoint not in keys:
        hint = views.names_like(keys, change.endpoint)
        raise Refused(HTTPStatus.NOT_FOUND, f"upstream {change.upstream} has no endpoint {change.endpoint}{hint}")
    if change.state is None and change.weight is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "give `state`, `weight` or both")
    for key in [change.endpoint] if change.endpoint else keys:
        try:
            async with daemon.pipeline.lock:  # a table that is being made would miss it
                daemon.engine.set_endpoint(change.upstream, key, admin=change.state, weight=change.weight)
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, f"{key} has gone from {change.upstream} meanwhile") from None
        log.info("endpoint changed", upstream=change.upstream, endpoint=key, state=change.state, weight=change.weight)
    return views.upstream(daemon, change.upstream)


async def change_log_level(daemon: Daemon, arguments: Arguments) -> schema.LevelChange:
    change: schema.LevelChange = arguments.body
    logs.set_level(change.level)
    log.info("log level changed", level=change.level)
    return change


async def openapi(daemon: Daemon, arguments: Arguments) -> Response:
    return _json(openapi_document())


# -- The table

PAGING = (Parameter("offset", 0, "How many to skip."), Parameter("limit", 100, "How many to return, at most 1000."))

OPERATIONS = (
    Operation("GET", "/livez", "Whether the process answers", livez, schema.Liveness),
    Operation("GET", "/readyz", "Whether lb takes new requests; 503 when not", readyz, schema.Readiness),
    Operation("GET", "/metrics", "Metrics in Prometheus or OpenMetrics text", metrics, None),
    Operation("GET", "/v1/status", "The daemon at a glance", status, schema.Status),
    Operation("GET", "/v1/config", "What was built, what serves, what was refused", config, schema.ConfigStatus),
    Operation(
        "GET",
        "/v1/problems",
        "What is wrong with the input",
        problems,
        schema.Page[schema.ProblemInfo],
        (Parameter("severity", "", "error, warning or note; empty for all."), *PAGING),
    ),
    Operation("GET", "/v1/listeners", "Listeners and where they are", listeners, tuple[schema.ListenerInfo, ...]),
    Operation(
        "GET",
        "/v1/load-balancers",
        "Services of type LoadBalancer, and ConfigMaps of ports: where lb listens, to whom it sends, and why not",
        load_balancers,
        tuple[schema.LoadBalancerInfo, ...],
        (Parameter("name", "", "Only this NAMESPACE/NAME."),),
    ),
    Operation(
        "GET",
        "/v1/certificates",
        "Certificates, those that expire first before the others",
        certificates,
        schema.Page[schema.CertificateInfo],
        PAGING,
    ),
    Operation(
        "GET",
        "/v1/routes",
        "Routes, host by host in the order in which they are tried",
        routes,
        schema.Page[schema.RouteInfo],
        (
            Parameter("host", "", "Only this hostname, as the routes name it (`*.example.com`)."),
            Parameter("upstream", "", "Only routes that lead to this upstream."),
            *PAGING,
        ),
    ),
    Operation("GET", "/v1/upstreams", "Upstreams by name", upstreams, schema.Page[schema.UpstreamInfo], PAGING),
    Operation("GET", "/v1/upstreams/{name:path}", "One upstream and its endpoints", upstream, schema.UpstreamDetail),
    Operation(
        "GET",
        "/v1/flows",
        "TCP connections and UDP sessions that are carried now, and totals by endpoint",
        flows,
        schema.Flows,
        (
            Parameter("listener", "", "Only of this listener."),
            Parameter("client", "", "Only of clients with this address, in this network, or `unix`."),
            Parameter("endpoint", "", "Only to this endpoint, as `/v1/upstreams` names it."),
            Parameter("upstream", "", "Only to this upstream."),
            Parameter("sort", "age", "age, idle or bytes: the greatest first."),
            Parameter("limit", carried.DEFAULT_LIMIT, f"How many to describe, at most {carried.FLOWS_MOST}."),
        ),
    ),
    Operation(
        "GET",
        "/v1/explain",
        "Which route serves a request, and why not another one",
        explain,
        Explanation,
        (
            Parameter("url", "", "What the client asks for, such as http://shop.example.com/cart?x=1."),
            Parameter("method", "GET", "Request method."),
            Parameter("header", "", "A request header, `Name: value`; may repeat."),
            Parameter("client", "", "IP address of the client."),
            Parameter("alpn", "", "A protocol that the client offers by ALPN; may repeat."),
        ),
    ),
    Operation("POST", "/v1/reload", "Read all sources again, now", reload, Build),
    Operation(
        "POST",
        "/v1/endpoints",
        "Drain, shut or weigh endpoints",
        change_endpoint,
        schema.UpstreamDetail,
        body=schema.EndpointChange,
    ),
    Operation(
        "POST",
        "/v1/flows/end",
        "End TCP connections and UDP sessions that are carried",
        end_flows,
        schema.FlowsEnded,
        body=schema.FlowsEnd,
    ),
    Operation(
        "PUT", "/v1/log-level", "Level of lb's own log", change_log_level, schema.LevelChange, body=schema.LevelChange
    ),
    Operation("GET", "/openapi.json", "This API as an OpenAPI document", openapi, None),
)


# -- From the table to the application


def make_app(daemon: Daemon, *, may_change: bool) -> Starlette:
    """The ASGI application. Without `may_change` every operation but GET is refused."""
    # Starlette types handlers for Exception only, whatever the key.
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _failed}
    return Starlette(
        routes=[
            Route(operation.path, _endpoint(daemon, operation, may_change), methods=[operation.method])
            for operation in OPERATIONS
        ],
        exception_handlers=handlers,
    )


def _endpoint(daemon: Daemon, operation: Operation, may_change: bool) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if operation.method != "GET" and not may_change:
            return _problem(HTTPStatus.FORBIDDEN, "changes are taken on the Unix socket only; here you may read")
        try:
            answer = await operation.handler(daemon, await _arguments(request, operation))
        except Refused as refused:
            return _problem(refused.status, str(refused))
        return answer if isinstance(answer, Response) else _json(answer)

    return endpoint


async def _arguments(request: Request, operation: Operation) -> Arguments:
    return Arguments(
        path=request.path_params,
        query={parameter.name: _query_value(request, parameter) for parameter in operation.parameters},
        body=await _body(request, operation.body) if operation.body else None,
        accept=request.headers.get("accept", ""),
        lines=request.query_params.multi_items(),
    )


def _query_value(request: Request, parameter: Parameter) -> str | int:
    text = request.query_params.get(parameter.name)
    if text is None:
        return parameter.default
    if isinstance(parameter.default, str):
        return text
    if not (text.isascii() and text.isdigit()):
        raise Refused(HTTPStatus.BAD_REQUEST, f"`{parameter.name}` must be a number, not `{text}`")
    return int(text)


async def _body(request: Request, kind: type) -> object:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:  # a wrong type is one, too
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body: {error}") from None


def _check_upstream(daemon: Daemon, name: str) -> None:
    known = daemon.pipeline.config.upstreams
    if name not in known:
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no upstream {name}{views.names_like(known, name)}")


def _json(value: object, status: HTTPStatus = HTTPStatus.OK, content_type: str = "application/json") -> Response:
    return Response(_encode(value), status, {"content-type": content_type, "cache-control": "no-store"})


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # the name of a file need not be UTF-8
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")


def _problem(status: HTTPStatus, detail: str) -> Response:
    return _json(schema.ErrorDocument(status.phrase, status.value, detail), status, "application/problem+json")


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _problem(HTTPStatus(error.status_code), f"{request.method} {request.url.path}: {error.detail}")


async def _failed(request: Request, error: Exception) -> Response:
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "lb's own log tells why")


# -- OpenAPI


def openapi_document() -> dict[str, Any]:
    """The API in OpenAPI 3.1."""
    types = [kind for operation in OPERATIONS for kind in (operation.answer, operation.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        (*types, schema.ErrorDocument), ref_template="#/components/schemas/{name}"
    )
    found = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        answer = next(found) if operation.answer is not None else None
        body = next(found) if operation.body is not None else None
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _openapi_operation(operation, path, answer, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lb admin API", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _openapi_operation(operation: Operation, path: str, answer: object, body: object) -> dict[str, Any]:
    content = {"application/json": {"schema": answer}} if answer is not None else {"text/plain": {}}
    problem = {"$ref": "#/components/schemas/ErrorDocument"}
    document: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "parameters": [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            for _ in range("{name}" in path)
        ]
        + [
            {
                "name": parameter.name,
                "in": "query",
                "description": parameter.help,
                "schema": {
                    "type": "integer" if isinstance(parameter.default, int) else "string",
                    "default": parameter.default,
                },
            }
            for parameter in operation.parameters
        ],
        "responses": {
            "200": {"description": "OK", "content": content},
            "default": {"description": "Why not", "content": {"application/problem+json": {"schema": problem}}},
        },
    }
    if body is not None:
        document["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return document
