"""Durations and sizes as people write them: `500ms`, `5s`, `32Ki`. Inside the model they are milliseconds and bytes."""

from __future__ import annotations

import re

_DURATION_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_SIZE_UNITS = {
    "Ti": 1 << 40,
    "Gi": 1 << 30,
    "Mi": 1 << 20,
    "Ki": 1 << 10,
    "T": 10**12,
    "G": 10**9,
    "M": 10**6,
    "k": 1_000,
}

# More digits say nothing, and Python reads neither a float nor an integer of any size.
DURATION_PATTERN = r"^([0-9]{1,18}(\.[0-9]{1,18})?(ms|s|m|h))+$"
SIZE_PATTERN = r"^[0-9]{1,18}(\.[0-9]{1,18})?(Ti|Gi|Mi|Ki|T|G|M|k)?$"

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(Ti|Gi|Mi|Ki|T|G|M|k)?")


def format_duration(milliseconds: int) -> str | int:
    """`75s`, `1h`, `1500ms`: in the largest unit that needs no fraction, up to hours. Zero is 0."""
    for unit, size in _DURATION_UNITS.items():
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return 0


def parse_duration(value: object) -> int:
    """Milliseconds of `1h30m`, `1.5s`, `500ms` or 0. ValueError with a text for people otherwise."""
    if value == 0 and not isinstance(value, bool):
        return 0
    if not isinstance(value, str) or re.fullmatch(DURATION_PATTERN, value) is None:
        raise ValueError(f"{value!r} is not a duration such as 500ms, 5s, 1m or 1h")
    return sum(_multiply(number, _DURATION_UNITS[unit]) for number, unit in _DURATION_PART.findall(value))


def format_size(size_bytes: int) -> str | int:
    """`32Ki`, `1Gi`, or plain bytes when no binary unit fits."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size_bytes and size_bytes % _SIZE_UNITS[unit] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit]}{unit}"
    return size_bytes


def parse_size(value: object) -> int:
    """Bytes of `32Ki`, `1.5M` or 512. ValueError with a text for people otherwise."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a size such as 512, 32Ki or 1Mi")
    number, unit = found.groups()
    return _multiply(number, _SIZE_UNITS[unit] if unit else 1)


def _multiply(number: str, size: int) -> int:
    # Whole numbers stay exact whatever their size.
    return int(number) * size if number.isdigit() else round(float(number) * size)
