"""The JSON Schema takes what the reader takes."""

from __future__ import annotations

import msgspec
import pytest
import yaml
from hypothesis import given, settings

from lb.model.config import Config
from lb.model.form import option_fields
from lb.model.listener import HttpOptions
from lb.model.schema import field_texts, make_schema
from lb.model.text import to_content
from tests.model import test_text
from tests.model.json_schema import errors
from tests.model.strategies import configs

SCHEMA = make_schema({})
HEAD = "apiVersion: lb/v1\nkind: Config\n"


@given(config=configs())
@settings(max_examples=50, deadline=None)
def test_what_is_rendered_is_valid(config: Config) -> None:
    content = msgspec.json.decode(msgspec.json.encode(to_content(config)))
    assert errors(SCHEMA, content) == []


def test_hand_written_file_is_valid() -> None:
    assert errors(SCHEMA, yaml.safe_load(test_text.HAND_WRITTEN)) == []


SEEN_BY_THE_READER_ONLY = (
    "hosts.default.Shop.Example.com",
    "hosts.default.*.A.com",
    "hosts.default.a.*.com",
    "hosts.default.a[0].path",
    "hosts.default.a[0].methods",
    "hosts.default.a[0].headers.X A",
    "hosts.default.a[1].name",
    "upstreams.web[0].address",
    "upstreams.web[0].port",
    "listeners.http",
    "listeners.http.address",
    "listeners.http.stream",
    "listeners.db.stream",
    "listeners.dns.datagram",
    "listeners.dns.datagram.allow[0]",
    "listeners.dns.http",
    "listeners.dns.address",
    "listeners.db.stream.allow[1]",
    "listeners.db.stream.forward",
    "listeners.db.stream.names",
    "listeners.db.stream.names.B",
    "listeners.db.stream.names.a[0]",
    "listeners.db.stream.names.b",
    "listeners.db.stream.names.b.alpn",
    "listeners.web.stream",
    "listeners.web.stream.forward",
    "listeners.web.stream.handshake_timeout",
    "listeners.a.tls",
    "listeners.a.tls.hsts",
    "listeners.db.http",
    "upstreams",
    *(
        f"upstreams.web.health_check.{key}"
        for key in (
            "path", "service", "method", "host", "headers", "statuses", "interval", "fast_interval", "down_interval",
            "timeout", "rise", "port", "tls",
        )
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "text", [text for text, field, *_ in test_text.MISTAKES if field not in SEEN_BY_THE_READER_ONLY]
)
def test_mistakes_are_seen(text: str) -> None:
    assert errors(SCHEMA, yaml.safe_load(HEAD + text)) != []


def test_texts_are_those_of_the_fields() -> None:
    texts = field_texts(HttpOptions)
    assert texts["merge_slashes"] == "Match and forward `//` as `/`."
    http = SCHEMA["definitions"]["listener"]["properties"]["http"]["properties"]
    assert http["merge_slashes"] == {
        "description": "Match and forward `//` as `/`.",
        "type": "boolean",
        "default": True,
    }
    assert http["head_timeout"]["default"] == "10s"
    assert list(http) == [field.key for field in option_fields(HttpOptions)]
