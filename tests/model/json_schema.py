"""A validator for the part of JSON Schema (draft 7) that ours uses. A keyword it does not know is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": float,
}
_TEXTS = {"$schema", "title", "description", "default", "definitions"}


def errors(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None, path: str = "$") -> list[str]:
    """What is wrong with `value`, as texts with paths."""
    root = root or schema
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in _TEXTS:
            continue
        if keyword == "$ref":
            found += errors(root["definitions"][wanted.removeprefix("#/definitions/")], value, root, path)
        elif keyword in ("anyOf", "oneOf", "allOf"):
            found += _combine(keyword, [errors(one, value, root, path) for one in wanted])
        elif keyword == "required":
            found += [f"{path}: no {name}" for name in wanted if isinstance(value, dict) and name not in value]
        elif keyword == "properties":
            for name in wanted.keys() & (value.keys() if isinstance(value, dict) else ()):
                found += errors(wanted[name], value[name], root, f"{path}.{name}")
        elif keyword == "additionalProperties":
            found += _additional(schema, wanted, value, root, path)
        elif keyword == "items":
            for index, one in enumerate(value if isinstance(value, list) else ()):
                found += errors(wanted, one, root, f"{path}[{index}]")
        elif not _holds(keyword, wanted, value):
            found.append(f"{path}: {value!r} breaks {keyword} {wanted!r}")
    return found


def _combine(keyword: str, results: list[list[str]]) -> list[str]:
    good = sum(1 for result in results if not result)
    enough = {"anyOf": good >= 1, "oneOf": good == 1, "allOf": good == len(results)}[keyword]
    return [] if enough else [f"{keyword}: {results}"]


def _additional(schema: dict[str, Any], wanted: Any, value: Any, root: dict[str, Any], path: str) -> list[str]:
    rest = [name for name in (value if isinstance(value, dict) else ()) if name not in schema.get("properties", {})]
    if wanted is False:
        return [f"{path}: {name} is not known" for name in rest]
    return [error for name in rest for error in errors(wanted, value[name], root, f"{path}.{name}")]


def _holds(keyword: str, wanted: Any, value: Any) -> bool:
    if keyword == "type":
        return any(_is(one, value) for one in ([wanted] if isinstance(wanted, str) else wanted))
    if keyword == "const":
        return type(value) is type(wanted) and value == wanted
    if keyword == "enum":
        return value in wanted
    if keyword == "pattern":
        return not isinstance(value, str) or re.search(wanted, value) is not None
    if keyword in ("minimum", "maximum"):
        return not _is("integer", value) or (value >= wanted if keyword == "minimum" else value <= wanted)
    if keyword == "maxProperties":
        return not isinstance(value, dict) or len(value) <= wanted
    raise AssertionError(f"keyword {keyword} is not known to this validator")


def _is(kind: str, value: Any) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
