"""The line in which handshakes wait for a turn with time left."""

from __future__ import annotations

import pytest

from lb._fastpath.testing import handshakes_in_line


@pytest.mark.parametrize(
    ("coming", "order"),
    [
        ("", []),
        ("ccc", [0, 1, 2]),
        ("eee", [0, 1, 2]),
        ("ccee", [2, 3, 0, 1]),
        ("cecec", [1, 3, 0, 2, 4]),
        ("cce-e", [2, 4, 0, 1]),
        ("ce--ec", [1, 0, 4, 5]),
        ("ec-ec-", [0, 3, 1, 4]),
    ],
)
def test_endpoints_go_before_clients_and_the_oldest_of_each_first(coming: str, order: list[int]) -> None:
    """Those with endpoints serve requests that wait: their time for connecting must not run out in the line."""
    assert handshakes_in_line(coming) == order
