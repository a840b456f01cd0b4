"""Origins as one line of text: `Ingress shop/web (web.yaml:12:3)`. What the line cannot say exactly is a mapping."""

from __future__ import annotations

import re

import msgspec

from lb.model.form import BUILT_IN
from lb.problems import Origin

_OBJECT = re.compile(r"(?P<kind>\w+) (?:(?P<namespace>[^/ ]+)/)?(?P<name>[^/ ]+)(?: \((?P<place>.+)\))?")
_PLACE = re.compile(r"(?P<file>.+?)(?::(?P<line>[0-9]+)(?::(?P<column>[0-9]+))?)?(?: (?P<item>\S+))?")


def write_origin(origin: Origin) -> str | dict[str, object]:
    """The shortest form that `read_origin` turns back into the same Origin."""
    if origin == Origin():
        return BUILT_IN
    text = f"{origin.object} ({origin.place})" if origin.kind and origin.place else (origin.place or origin.object)
    if _parse(text) == origin:
        return text
    return {
        field.name: value
        for field in msgspec.structs.fields(Origin)
        if (value := getattr(origin, field.name)) != field.default
    }


def read_origin(value: object) -> Origin:
    """The Origin of what `write_origin` wrote. ValueError with a text for people otherwise."""
    if isinstance(value, str):
        return _parse(value)
    try:
        return msgspec.convert(value, Origin)
    except msgspec.ValidationError as error:
        raise ValueError(f"is no origin such as `Ingress shop/web (web.yaml:12:3)`: {error}") from error


def _parse(text: str) -> Origin:
    if text == BUILT_IN:
        return Origin()
    found = _OBJECT.fullmatch(text)
    if found is None:
        return _parse_place(text)
    place = _parse_place(found["place"] or "")
    return msgspec.structs.replace(place, kind=found["kind"], namespace=found["namespace"] or "", name=found["name"])


def _parse_place(text: str) -> Origin:
    found = _PLACE.fullmatch(text)
    if found is None:
        return Origin(file=text)
    return Origin(
        file=found["file"],
        line=int(found["line"] or 0),
        column=int(found["column"] or 0),
        item=found["item"] or "",
    )
