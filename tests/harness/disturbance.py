"""What storms have in common: one endpoint at a time goes and comes back, or is not in the table. Knows no protocol."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from tests.harness.serving import Serving


class Endpoint(Protocol):
    """A server of a test, by TCP or UDP."""

    @property
    def key(self) -> str: ...
    def close(self) -> None: ...


EndpointT = TypeVar("EndpointT", bound=Endpoint)


@contextmanager
def disturbed(
    site: Serving,
    servers: list[EndpointT],
    open_again: Callable[[int], EndpointT],
    *,
    seed: int,
    dying: float,
    **fields: object,
) -> Iterator[None]:
    """Meanwhile one of `servers` after the other dies (a share `dying` of the times), and `open_again` gives it by its
    place; or the upstream `servers`, which has these fields, lacks it.
    """
    over = threading.Event()
    failures: list[BaseException] = []

    def disturb() -> None:
        chance = random.Random(seed)
        try:
            for number in itertools.count(1):
                if over.wait(0.05):
                    return
                which = chance.randrange(len(servers))
                if chance.random() < dying:
                    servers[which].close()
                    over.wait(0.02)
                    servers[which] = open_again(which)
                else:
                    keys = [server.key for server in servers]
                    site.native.upstream("servers", keys[:which] + keys[which + 1 :], **fields)
                    site.native.upstream("beside", [f"127.0.0.1:{number}"])  # so that there is always a new table
                    site.apply()
        except BaseException as error:
            failures.append(error)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        yield
    finally:
        over.set()
        disturbing.join()
    assert failures == []
