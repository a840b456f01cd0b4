"""The root of the model: one value that says everything lb serves.

A Config is never changed once built: a new build makes a new Config and shares with the old one every part that did
not change. `compile` relies on it: a VirtualHost or Upstream that *is* the same object as before is not compiled again.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from lb.certs.expiry import Lists
from lb.model.listener import Listener
from lb.model.route import VirtualHost
from lb.model.tls import Certificate
from lb.model.upstream import Upstream


class Config(msgspec.Struct, frozen=True):
    """Everything lb serves."""

    listeners: dict[str, Listener] = {}
    """By name. A listener names the host set it serves."""
    hosts: dict[str, dict[str, VirtualHost]] = {}
    """Host set name -> hostname (`shop.example.com`, `*.example.com`, `*`) -> virtual host."""
    upstreams: dict[str, Upstream] = {}
    """By name (`shop/web:http` for a Service port)."""
    certificates: dict[str, Certificate] = {}
    """By name (`shop/web-tls` for a Secret)."""

    def revocation_lists(self) -> Iterator[Lists]:
        """All that clients and endpoints are verified by."""
        for listener in self.listeners.values():
            for name, host in listener.tls.hosts.items() if listener.tls is not None else ():
                if host.clients.crl:
                    yield Lists(f"clients of {name} on {listener.name}", host.clients.crl, listener.origin)
        for upstream in self.upstreams.values():
            if upstream.tls is not None and upstream.tls.crl:
                yield Lists(f"the endpoints of {upstream.name}", upstream.tls.crl, upstream.origin)
