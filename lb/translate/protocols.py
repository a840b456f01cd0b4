"""What the endpoints of a Service port speak: HTTP/1, HTTP/2, or whatever TLS agrees on.

The Service's annotation `lb/backend-protocol` says it, else `appProtocol` of its port, else that of its EndpointSlices'
ports, which the endpoint controller copies from there and which Services without a selector have alone.

Sources: Service API, ServicePort.appProtocol (`kubernetes.io/h2c`, `kubernetes.io/ws`, `kubernetes.io/wss`); Gateway
API, GEP-1911. The names without a prefix are IANA's, and those that Contour, Kong and Istio read in the same place.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.model.upstream import Protocol


class AppProtocol(NamedTuple):
    """What an `appProtocol` says."""

    protocol: Protocol
    tls: bool = False


APP_PROTOCOLS = {
    "http": AppProtocol("http1"),
    "ws": AppProtocol("http1"),
    "kubernetes.io/ws": AppProtocol("http1"),
    "http2": AppProtocol("http2"),
    "h2c": AppProtocol("http2"),
    "grpc": AppProtocol("http2"),
    "kubernetes.io/h2c": AppProtocol("http2"),
    "https": AppProtocol("http1", tls=True),
    "wss": AppProtocol("http1", tls=True),
    "kubernetes.io/wss": AppProtocol("http1", tls=True),
    "grpcs": AppProtocol("http2", tls=True),
}
"""Those that lb knows; any other one, such as `mysql`, says nothing about HTTP."""

BACKEND_PROTOCOLS: dict[str, Protocol] = {"http1": "http1", "http2": "http2", "grpc": "http2", "auto": "auto"}
"""Values of `lb/backend-protocol`."""


def read_app_protocol(*names: str | None) -> tuple[str, AppProtocol]:
    """The first name that lb knows, and what it says; HTTP/1 without TLS if there is none."""
    for name in names:
        if name and name in APP_PROTOCOLS:
            return name, APP_PROTOCOLS[name]
    return "", AppProtocol("http1")
