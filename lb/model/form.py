"""The words of the native file: its keys and what each of them takes, derived from the model's own fields.

The reader, the writer and the JSON Schema all take their keys from here. An option `response_timeout_ms` is written
`response_timeout: 5s`, `max_head_bytes` is written `max_head: 32Ki`; every other option has its own name.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, get_type_hints

import msgspec

from lb.model.units import format_duration, format_size

API_VERSION = "lb/v1"
KIND = "Config"

TOP_KEYS = ("apiVersion", "kind", "metadata", "settings", "listeners", "hosts", "upstreams", "certificates")
LISTENER_KEYS = ("port", "address", "protocol", "host_set", "http", "tls", "stream", "datagram", "origin")
STREAM_KEYS = ("forward", "name", "origin", "field")
"""Of `stream`, which also has `names`, and `datagram`, beside their options."""
NAME_ROUTE_KEYS = ("forward", "mode", "alpn", "name", "origin", "field")
HOST_KEYS = ("one_label", "routes")
ROUTE_KEYS = ("path", "methods", "headers", "query", "forward", "respond", "name", "origin", "field")
UPSTREAM_KEYS = (
    "endpoints", "balance", "affinity", "protocol", "resolve", "unavailable", "tls", "health_check",
    "proxy_protocol", "proxy_values", "transparent", "origin",
)  # fmt: skip
ENDPOINT_KEYS = ("address", "port", "weight", "draining", "target", "origin")

NARROWING_KEYS = frozenset(
    {"address", "host_set", "allow", "clients", "path", "methods", "headers", "query", "alpn", "tls"}
)
"""Keys without which a listener, a name or a route would be for more clients or requests than was meant, or an upstream
be spoken to without TLS. Not `address` of endpoints, which none goes without.
"""

CERTIFICATE_KEYS = ("chain", "key", "ocsp", "cert_file", "key_file", "ocsp_file", "directory", "origin")
TLS_KEYS = ("certificates", "hosts", "policy", "hsts")
BUNDLES = ("ca", "crl")
"""Keys whose text may stand in a file: `ca_file`, `crl_file`. Whoever reads the native file puts it in their place."""

NETWORKS = ("trusted_proxies", "allow", "proxy_protocol")
"""Options that list networks."""

HIDDEN = "hidden"
"""What stands for a private key where it is not shown."""

PATH_KINDS = {"prefix": "prefix", "exact": "exact", "string_prefix": "string-prefix"}
"""Key in the file -> PathKind. `path: /x` is short for `path: {prefix: /x}`."""

BUILT_IN = "built-in"
"""`origin: built-in` is the empty Origin: made by lb itself."""

Unit = Literal["duration", "size", "plain"]


_ZERO_IS_NONE = frozenset({"retries", "linger_timeout_ms", "max_queue", "https_redirect", "slow_start_ms"})
"""Options of which 0 says none at all; of the others it says that there is no limit."""


class OptionField(NamedTuple):
    """One option of HttpOptions, RouteOptions, UpstreamOptions, HealthCheck, or of the daemon's settings."""

    attribute: str
    key: str
    unit: Unit
    type: object
    default: object
    """msgspec.NODEFAULT when there is none."""

    def format(self, value: object) -> str:
        """The value as people read it, with its unit. 0 is `no limit` but for what counts or allows something."""
        if value is None:
            return "default"
        if isinstance(value, tuple):
            return ", ".join(map(str, value)) or "none"
        if not isinstance(value, int) or isinstance(value, bool):
            return str(value).lower()
        if value == 0 and self.attribute not in _ZERO_IS_NONE:
            return "no limit"
        return str({"duration": format_duration, "size": format_size}.get(self.unit, int)(value))


@cache
def option_fields(options: type[msgspec.Struct]) -> tuple[OptionField, ...]:
    """The options of a struct in the order they are declared."""
    hints = get_type_hints(options)
    return tuple(
        OptionField(field.name, _key(field.name), _unit(field.name), hints[field.name], _default(field))
        for field in msgspec.structs.fields(options)
    )


def default_route_name(host_set: str, hostname: str, index: int) -> str:
    """The name of a route whose `name` is left out: `shop.example.com:0`, or `other/shop.example.com:0`."""
    return f"{hostname}:{index}" if host_set == "default" else f"{host_set}/{hostname}:{index}"


def default_name_of(listener: str, server_name: str, index: int) -> str:
    """The same for a route by server name: `https/db.example.com`, and `https/db.example.com:1` for its second one."""
    return f"{listener}/{server_name}:{index}" if index else f"{listener}/{server_name}"


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _unit(attribute: str) -> Unit:
    if attribute.endswith("_ms"):
        return "duration"
    return "size" if attribute.endswith("_bytes") else "plain"


def _key(attribute: str) -> str:
    return attribute.removesuffix("_ms").removesuffix("_bytes")
