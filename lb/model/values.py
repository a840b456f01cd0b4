"""Values of a native file, read so that a mistake costs only the thing it stands in: what every section is made of.

A mistake is raised (MistakeError) and reported where something is given up for it (`_attempt`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from lb.model.address import is_network
from lb.model.form import NETWORKS, OptionField, option_fields
from lb.model.origins import read_origin
from lb.model.units import parse_duration, parse_size
from lb.problems import Origin, Problems

ResultT = TypeVar("ResultT")
OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)

_MAX_SUGGESTIONS = 1_000
"""Comparing a word with more names than this takes too long for what it helps."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 5.6.2."""


class MistakeError(Exception):
    """Something at `path` cannot be used."""

    def __init__(self, path: str, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.path = path
        self.what = what
        self.fix = fix


class ValueReader:
    """Knows where we are in the file, and the problems found so far. `path` is the place inside the document, such as
    `upstreams.web.endpoints[0]`; `lines` maps such paths to lines.
    """

    def __init__(self, origin: Origin, lines: Mapping[str, int]) -> None:
        self.problems = Problems()
        self._origin = origin
        self._lines = lines
        self._why = ""
        """What mistakes cost where we are."""

    # -- Values

    def _mapping(self, path: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise MistakeError(path, f"must be a mapping, not {_type_name(value)}")
        for key in value:
            if not isinstance(key, str):
                raise MistakeError(path, f"key {key!r} is not text", "write it in quotes")
        return value

    def _mapping_or_list(self, path: str, value: object, key: str) -> tuple[Mapping[str, Any], str]:
        """A list is short for a mapping with only `key`."""
        return ({key: value}, path) if isinstance(value, list) else (self._mapping(path, value), f"{path}.{key}")

    def _list(self, path: str, value: object) -> Sequence[Any]:
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise MistakeError(path, f"must be a list, not {_type_name(value)}")
        return value

    def _single(self, path: str, value: object) -> tuple[str, Any]:
        entries = list(self._mapping(path, value).items())
        if len(entries) != 1:
            raise MistakeError(path, f"must have one entry, not {len(entries)}")
        return entries[0]

    def _entries(self, path: str, value: object) -> list[tuple[str, Any]]:
        """Entries of a mapping, or of a list of mappings with one entry each (where a name stands twice)."""
        if isinstance(value, (list, tuple)):
            return [self._single(f"{path}[{index}]", one) for index, one in enumerate(value)]
        return list(self._mapping(path, value).items())

    def _text(self, path: str, value: object, hint: str = "in quotes") -> str:
        if not isinstance(value, str):
            raise MistakeError(path, f"must be text, not {_type_name(value)}", f"write it {hint}")
        return value

    def _token(self, path: str, value: object) -> str:
        text = self._text(path, value)
        if _TOKEN.fullmatch(text) is None:
            raise MistakeError(path, f"{text!r} is not a token (RFC 9110 5.6.2)")
        return text

    def _flag(self, path: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise MistakeError(path, f"must be true or false, not {_type_name(value)}")
        return value

    def _number(self, path: str, value: object, least: int, most: int | None = None) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise MistakeError(path, f"must be a whole number, not {_type_name(value)}")
        if value < least or (most is not None and value > most):
            bounds = f"{least} to {most}" if most is not None else f"{least} or more"
            raise MistakeError(path, f"{value} is out of range", f"write {bounds}")
        return value

    def _choice(self, path: str, value: object, choices: tuple[ResultT, ...]) -> ResultT:
        for choice in choices:
            if value == choice:
                return choice
        raise MistakeError(path, f"{value!r} is not known", suggest(str(value), [str(one) for one in choices]))

    # -- Options

    def _read_options(
        self, path: str, content: Mapping[str, Any], defaults: OptionsT, *, only_options: bool = False
    ) -> OptionsT:
        fields = {field.key: field for field in option_fields(type(defaults))}
        if only_options:
            self._report_unknown_keys(path, content, fields)
        values = {
            field.attribute: self._attempt(self._read_option, f"{path}.{key}", field, content[key])
            for key, field in fields.items()
            if key in content
        }
        return msgspec.structs.replace(defaults, **{name: value for name, value in values.items() if value is not None})

    def _read_option(self, path: str, field: OptionField, value: object) -> object:
        if field.attribute in NETWORKS:
            return self._read_networks(path, value)
        try:
            if field.unit == "duration":
                return parse_duration(value)
            if field.unit == "size":
                return parse_size(value)
            converted = msgspec.convert(value, field.type)
        except (ValueError, msgspec.ValidationError) as error:
            raise MistakeError(path, str(error), _example_of(field)) from None
        if isinstance(converted, int) and converted < 0:
            raise MistakeError(path, f"{converted} is less than 0", "write 0 or more")
        return converted

    def _read_networks(self, path: str, value: object) -> tuple[str, ...]:
        networks = (
            self._attempt(self._read_network, f"{path}[{index}]", one)
            for index, one in enumerate(self._list(path, value))
        )
        return tuple(one for one in networks if one is not None)

    def _read_network(self, path: str, value: object) -> str:
        text = self._text(path, value)
        if not is_network(text):
            raise MistakeError(path, f"{text!r} is no network", "write one such as 10.0.0.0/8, fd00::/8 or 10.0.0.1")
        return text

    # -- Places and problems

    def _read_each(
        self, path: str, value: object, read: Callable[[str, str, Any], ResultT]
    ) -> Iterator[tuple[str, ResultT]]:
        """The entries of a mapping, each read on its own: a mistake in one costs only that one."""
        if value is None:
            return
        entries = self._attempt(self._mapping, path, value)
        for name, one in (entries or {}).items():
            result = self._attempt(read, f"{path}.{name}", name, one)
            if result is not None:
                yield name, result

    def _attempt(self, read: Callable[..., ResultT], path: str, *arguments: object) -> ResultT | None:
        try:
            return read(path, *arguments)
        except MistakeError as mistake:
            self._report(mistake.path, mistake.what, mistake.fix)
            return None

    def _report(self, path: str, what: str, fix: str, why: str = "") -> None:
        self.problems.add("LB5003", self._place(path), what, why=why or self._why, fix=fix, field=path)

    def _report_unknown_keys(
        self, path: str, content: Mapping[str, Any], known: Collection[str], narrowing: Collection[str] = ()
    ) -> None:
        """`narrowing` are those without which what this stands in would let in more than was meant: one of them that is
        probably misspelt costs all of it.
        """
        for key in content:
            if key in known:
                continue
            place, what = f"{path}.{key}" if path else key, f"`{key}` is not known here"
            meant = _nearest(key, known)
            if meant in narrowing and meant not in content:
                raise MistakeError(place, what, suggest(key, known))
            self._report(place, what, suggest(key, known))

    def _read_origin(self, path: str, content: Mapping[str, Any]) -> Origin:
        if "origin" not in content:
            return self._place(path)
        try:
            return read_origin(content["origin"])
        except ValueError as error:
            raise MistakeError(f"{path}.origin", str(error)) from None

    def _place(self, path: str) -> Origin:
        """The file's origin with the line of `path`, or of the nearest thing around it whose line is known."""
        while path and path not in self._lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line = self._lines.get(path, 0)
        return msgspec.structs.replace(self._origin, line=line, column=0) if line else self._origin


def _example_of(field: OptionField) -> str:
    """How to write an option whose value cannot be read."""
    if field.unit != "plain":
        return f"write one such as `{field.key}: {'5s' if field.unit == 'duration' else '8Mi'}`"
    choices = [str(one) for one in _choices(field.type)]
    return f"write {' or '.join(choices)}" if choices else ""


def _choices(kind: object) -> Iterator[object]:
    """What a type takes, where that can be said in a few words."""
    plain = {int: "a whole number", bool: "true or false", str: "text, in quotes"}
    if isinstance(kind, type) and kind in plain:
        yield plain[kind]
    elif get_origin(kind) is Literal:
        yield from (f"`{one}`" for one in get_args(kind))
    elif isinstance(kind, UnionType) or get_origin(kind) is Union:
        for one in get_args(kind):
            yield from _choices(one)
    elif get_origin(kind) is tuple:
        yield "a list"


def option_keys(options: type[msgspec.Struct]) -> Iterator[str]:
    """As they are written in files."""
    return (field.key for field in option_fields(options))


def key_of(options: type[msgspec.Struct], attribute: str) -> str:
    return next(field.key for field in option_fields(options) if field.attribute == attribute)


def suggest(word: str, known: Collection[str]) -> str:
    """How to fix a word that is not known; empty when nothing is."""
    near = nearest(word, known)
    if near:
        return near
    return f"write one of {', '.join(f'`{one}`' for one in list(known)[:12])}" if known else ""


def nearest(word: str, known: Collection[str]) -> str:
    """The known word that was probably meant, as a question; empty: none is like it."""
    near = _nearest(word, known)
    return f"did you mean `{near}`?" if near else ""


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1) if len(known) <= _MAX_SUGGESTIONS else []
    return near[0] if near else ""


def _type_name(value: object) -> str:
    names = {type(None): "nothing", bool: "true or false", str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
