"""A cluster on paper: objects written as YAML, translated and asked, without files, processes or sockets."""

from __future__ import annotations

from collections.abc import Sequence

from lb.model.config import Config
from lb.model.match import Request, match
from lb.model.normalize import Rejected, normalize_host, normalize_target
from lb.model.route import Forward, Respond
from lb.objects.decode import decode
from lb.objects.view import Changes
from lb.problems import Problem
from lb.sources.store import Store
from lb.translate.translation import LISTENER, Options, Translation, translate

FILE = "test.yaml"


def read_store(text: str, file: str = FILE) -> Store:
    """A store that holds the objects of a YAML or JSON text, all of which can be decoded."""
    decoded = decode(text.encode(), file)
    parts = decoded.parts()
    assert not decoded.errors, decoded.errors
    assert not parts.rejected, parts.rejected
    store = Store()
    store.replace_file(file, parts.stored, (), parts.unknown)
    return store


def translate_text(text: str, options: Options | None = None) -> Translation:
    """The translation of a text from nothing."""
    return translate(read_store(text), options or Options(), Changes(everything=True), None)


def ask(config: Config, url: str) -> str:
    """Who answers `host/path`: the name of the upstream, or the status of lb's own answer.

    503 is followed by the reason where the upstream has no endpoint.
    """
    host, slash, path = url.partition("/")
    normal_host = normalize_host(host.encode())
    target = normalize_target(f"{slash or '/'}{path}".encode())
    if isinstance(normal_host, Rejected) or isinstance(target, Rejected):
        return "400"
    found = match(config, LISTENER, Request(normal_host.decode(), target.path.decode()))
    if found.route is None:
        return "404"
    action = found.route.action
    if isinstance(action, Respond):
        return f"{action.status} {action.why}"
    assert isinstance(action, Forward)
    (weighted,) = action.upstreams
    upstream = config.upstreams[weighted.name]
    return upstream.name if upstream.endpoints else f"503 {upstream.unavailable}"


def codes(problems: Sequence[Problem], *without: str) -> list[str]:
    """`LB3001 Ingress shop/web spec.rules[0]…`, sorted, without the codes named."""
    return sorted(f"{one.code} {one.origin.object} {one.field}".rstrip() for one in problems if one.code not in without)


def backend(name: str, *addresses: str, namespace: str = "shop", port: int = 80) -> str:
    """A Service with one port `http` and, when it has addresses, a slice of ready endpoints."""
    service = f"""---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{ports: [{{name: http, port: {port}, targetPort: 8080}}]}}
"""
    if not addresses:
        return service
    endpoints = "".join(f"- {{addresses: ['{address}'], conditions: {{ready: true}}}}\n" for address in addresses)
    return f"""{service}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{endpoints}"""


def ingress(
    name: str,
    *rules: tuple[str, str, str, str],
    namespace: str = "shop",
    created: str = "",
    default: str = "",
    more: str = "",
) -> str:
    """An Ingress with rules (host, pathType, path, `service` or `service:port`), each a rule of its own.

    An empty host or path is left out. `more` is further YAML of `spec`, `default` the Service of the default backend.
    """
    created_line = f"\n  creationTimestamp: '{created}'" if created else ""
    spec = more
    if default:
        spec += f"  defaultBackend: {_service(default)}\n"
    if rules:
        spec += "  rules:\n"
    for host, kind, path, service in rules:
        host_part = f"host: '{host}', " if host else ""
        path_part = f"path: '{path}', " if path else ""
        spec += f"  - {{{host_part}http: {{paths: [{{{path_part}pathType: {kind}, backend: {_service(service)}}}]}}}}\n"
    return f"""---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {name}
  namespace: {namespace}{created_line}
spec:
{spec}"""


def _service(text: str) -> str:
    name, _, port = text.partition(":")
    port = port or "80"
    return f"{{service: {{name: {name}, port: {{{'number' if port.isdigit() else 'name'}: {port}}}}}}}"
