"""How the verbs are asked for JSON: `-o json`, and `--json`, which says the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def output_option(plain: str) -> Callable[[FunctionT], FunctionT]:
    """Adds `-o FORM`. The function gets it as `output: str`, which is `plain` or `json`."""

    def add(function: FunctionT) -> FunctionT:
        @functools.wraps(function)
        def collect(*given: Any, output: str, as_json: bool, **named: Any) -> Any:  # noqa: ANN401  # click's own
            return function(*given, output="json" if as_json else output, **named)

        collect = click.option("--json", "as_json", is_flag=True, hidden=True)(collect)
        form = click.Choice([plain, "json"])
        return click.option("-o", "--output", type=form, default=plain, show_default=True)(collect)  # type: ignore[return-value]  # click's decorators keep the function

    return add
