"""Short words for what the tests of decoding ask."""

from __future__ import annotations

from lb.objects.decode import Decoded, decode
from lb.objects.meta import Object
from lb.problems import Problem


def problems(decoded: Decoded) -> list[Problem]:
    """All problems of a file: syntax errors, objects that are left out, doubts about others."""
    parts = decoded.parts()
    return [*decoded.errors, *(rejected.problem for rejected in parts.rejected), *parts.doubts]


def objects(decoded: Decoded) -> list[Object]:
    """All objects of a file that has no problems."""
    assert problems(decoded) == []
    return [stored.object for stored in decoded.parts().stored]


def only_problem(data: str | bytes, file: str = "a.yaml") -> Problem:
    """The one problem of a file."""
    found = problems(decode(data.encode() if isinstance(data, str) else data, file))
    assert len(found) == 1, found
    return found[0]
