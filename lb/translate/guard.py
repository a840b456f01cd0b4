"""What lb does not get through itself costs only the object that it stumbles over.

Translation of one object writes nothing that others read before it returns: its part is a value, and what the parts
share are caches of what was made whole. So an exception on the way leaves nothing behind, and here is where it ends.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from lb.problems import Origin, Problem

_PartT = TypeVar("_PartT")

FAULT = "LB7001"
"""The code of such a problem."""

_LONGEST_TEXT = 300
"""Of what an exception says: it may quote the object."""


def guarded(
    make: Callable[[], _PartT], instead: Callable[[Problem], _PartT], origin: Origin, why: str, subject: str = "it"
) -> _PartT:
    """What `make` gives; when it fails, what `instead` makes of the problem. `why` says what that means."""
    try:
        return make()
    except MemoryError:  # no object's fault, and the next one would suffer from it as well
        raise
    except Exception as error:
        return instead(_fault(error, origin, why, subject))


def stays_or_nothing(stays: bool) -> str:
    """What becomes of an object, for `why`."""
    return "its last good version stays in use" if stays else "it is left out; everything else is served"


def _fault(error: Exception, origin: Origin, why: str, subject: str) -> Problem:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Problem(
        FAULT,
        origin,
        f"lb fails on {subject}: {text[:_LONGEST_TEXT].removesuffix(': ').rstrip(':')}",
        why,
        "this is a fault of lb, not of the object: report it with the traceback that lb's log and `lb check` show; "
        "another way of writing the object may avoid it",
        trace="".join(traceback.format_exception(error)),
    )
