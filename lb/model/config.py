"""The root of the model: one value that says everything lb serves.

A Config is never changed once built: a new build makes a new Config and shares with the old one every part that did
not change. `compile` relies on it: a VirtualHost or Upstream that *is* the same object as before is not compiled again.
"""

from __future__ import annotations

import msgspec

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
