"""Access log formats: what the user writes, turned into the program that the data plane runs for each record.

A program is a list of literal bytes and (field, escape) pairs; lb/_fastpath/engine.pyi describes both. The fields are
the engine's (LOG_FIELDS), handed in by whoever starts it. This file knows nothing of files and rings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

Step = bytes | tuple[str, str]

COMBINED = (
    '%{client} - - [%{time_clf}] "%{method} %{target} %{protocol}" %{status} %{bytes_out} "%{referer}" "%{user_agent}"'
)

NAMED = {"combined": COMBINED}
"""Formats that have a name, besides `json`."""

NUMBERS = frozenset(
    (
        "status",
        "bytes_in",
        "bytes_out",
        "duration",
        "first_byte",
        "connect",
        "queue",
        "attempts",
        "generation",
        "client_port",
        "grpc_status",
    )
)
"""Fields that are numbers in JSON, or null for what did not happen."""

ONLY_TEXT = frozenset({"time_clf"})
"""Fields that a JSON record does not repeat: the same moment is there as `time`."""

ESCAPES = ("clf", "json", "raw")

_PLACEHOLDER = re.compile(r"%(?:%|\{(?P<field>[^}:]*)(?::(?P<escape>[^}]*))?\})")


class FormatError(ValueError):
    """A format that names something unknown. The text says what would be right."""


def compile_format(text: str, fields: Sequence[str]) -> list[Step]:
    """The program for `json`, `combined` or a template. FormatError."""
    if text == "json":
        return _join(_json_steps(fields))
    if text not in NAMED and "%{" not in text:
        near = difflib.get_close_matches(text, ("json", *NAMED), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise FormatError(f"access log format `{text}` is neither json, combined nor a template with %{{field}}{hint}")
    return _join([*_template_steps(NAMED.get(text, text), fields), b"\n"])


def _json_steps(fields: Sequence[str]) -> list[Step]:
    steps: list[Step] = []
    for field in fields:
        if field in ONLY_TEXT:
            continue
        steps.append(f'{"," if steps else "{"}"{field}":'.encode())
        steps += [(field, "json")] if field in NUMBERS else [b'"', (field, "json"), b'"']
    return [*steps, b"}\n"]


def _template_steps(text: str, fields: Sequence[str]) -> list[Step]:
    """Values are escaped as `clf` unless the template says otherwise, so that no client can forge lines."""
    steps: list[Step] = []
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        steps.append(_literal(text[end : found.start()]))
        end = found.end()
        if found["field"] is None:
            steps.append(b"%")
            continue
        _check("field", found["field"], fields)
        escape = found["escape"] or "clf"
        _check("escape", escape, ESCAPES)
        steps.append((found["field"], escape))
    return [*steps, _literal(text[end:])]


def _literal(text: str) -> bytes:
    if (stray := text.find("%{")) >= 0:
        raise FormatError(f"access log format: `{text[stray:]}` is not closed; fields are written %{{status}}")
    return text.encode()


def _check(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise FormatError(f"access log format: unknown {what} `{name}`; {hint}")


def _join(steps: Sequence[Step]) -> list[Step]:
    """Neighbouring literals as one, none empty."""
    joined: list[Step] = []
    for step in steps:
        if isinstance(step, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += step
        elif step:
            joined.append(step)
    return joined
