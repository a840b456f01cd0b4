"""Access log formats as programs; run here by a small interpreter, by the data plane in tests/wire."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from lb.observe.access import NUMBERS, FormatError, Step, compile_format

FIELDS = (
    "time", "time_clf", "client", "client_port", "listener", "method", "host", "target", "protocol", "status",
    "bytes_in", "bytes_out", "duration", "first_byte", "connect", "queue", "virtual_host", "route", "upstream",
    "endpoint", "attempts", "failed_attempts", "reason", "request_id", "user_agent", "referer", "generation",
    "tls_version",
    "tls_cipher",
    "server_name",
    "client_subject",
    "client_verify",
    "client_serial",
    "client_fingerprint",
    "client_san",
    "grpc_status",
    "tls_error",
    "alpn",
)  # fmt: skip


def run(program: list[Step], values: dict[str, str]) -> str:
    out = ""
    for step in program:
        if isinstance(step, bytes):
            out += step.decode()
        else:
            field, escape = step
            out += json.dumps(values[field])[1:-1] if escape == "json" else values[field]
    return out


def test_json_has_every_field_once_with_its_type() -> None:
    values = {field: "7" if field in NUMBERS else f'a "{field}"' for field in FIELDS}
    line = run(compile_format("json", FIELDS), values)
    assert line.endswith("}\n")
    record = json.loads(line)
    assert list(record) == [field for field in FIELDS if field != "time_clf"]
    assert {field for field, value in record.items() if value == 7} == NUMBERS
    assert record["target"] == 'a "target"'


def test_combined_is_what_log_tools_expect() -> None:
    values = {
        "client": "192.0.2.1", "time_clf": "22/Nov/2026:21:00:00 +0000", "method": "GET", "target": "/a",
        "protocol": "HTTP/1.1", "status": "200", "bytes_out": "17", "referer": "-", "user_agent": "curl/8",
    }  # fmt: skip
    program = compile_format("combined", FIELDS)
    expected = '192.0.2.1 - - [22/Nov/2026:21:00:00 +0000] "GET /a HTTP/1.1" 200 17 "-" "curl/8"\n'
    assert run(program, values) == expected
    assert ("user_agent", "clf") in program, "a client must not be able to forge lines"


def test_templates() -> None:
    assert compile_format("100%% %{status}|%{host:json}|%{target:raw}", FIELDS) == [
        b"100% ",
        ("status", "clf"),
        b"|",
        ("host", "json"),
        b"|",
        ("target", "raw"),
        b"\n",
    ]
    assert compile_format("%{status}", FIELDS) == [("status", "clf"), b"\n"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("combind", "did you mean `combined`"),
        ("", "neither json, combined nor a template"),
        ("%{statsu}", "unknown field `statsu`; did you mean `status`"),
        ("%{zzz}", "known: time, "),
        ("%{status:jsn}", "unknown escape `jsn`; did you mean `json`"),
        ("a %{status", "`%{status` is not closed"),
    ],
)
def test_mistakes_are_told(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        compile_format(text, FIELDS)


def test_the_fields_here_are_those_of_the_engine() -> None:
    """Read from the stub, so that this holds without a build, too."""
    stub = ast.parse(Path("lb/_fastpath/engine.pyi").read_text())
    texts = [ast.get_source_segment(Path("lb/_fastpath/engine.pyi").read_text(), node) or "" for node in stub.body]
    described = " ".join(texts[index + 1] for index, text in enumerate(texts) if text.startswith("LOG_FIELDS"))
    assert set(FIELDS) <= set(re.findall(r"\w+", described))
