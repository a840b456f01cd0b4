"""What sources bring, waiting for the next build.

The store belongs to the build that runs, in a worker thread; sources bring changes whenever they find them, in the
event loop. So changes wait here, and the build takes them in before it reads the store. Owns that order and nothing
else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from lb.objects.meta import Key
from lb.objects.view import Stored
from lb.sources.files import FileSource, Reading
from lb.sources.store import Store


class Inbox:
    """Changes of a store, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, change: Callable[[], None]) -> None:
        """Let `change` happen in the next build."""
        self._waiting.append(change)

    def take_in(self) -> None:
        """Let all that wait happen. Called by the build."""
        while self._waiting:
            self._waiting.popleft()()


class Files(FileSource):
    """Files whose readings go through the inbox, in the order in which they were made: what was read later wins."""

    def __init__(self, paths: Sequence[str], store: Store, inbox: Inbox) -> None:
        super().__init__(paths, store)
        self._inbox = inbox
        self._one_at_a_time = threading.Lock()
        self._is_settled = True

    def load(self, force: bool = False) -> Reading:
        """As in FileSource, but from any number of threads."""
        with self._one_at_a_time:
            return self._send(super().load(force))

    def load_whole(self) -> Reading:
        """As in FileSource, but from any number of threads."""
        with self._one_at_a_time:
            return self._send(super().load_whole())

    def _send(self, reading: Reading) -> Reading:
        """Before the next one is made: between loading and `apply` another thread may read what is newer."""
        self._is_settled = super().is_settled
        self._inbox.add(partial(super().apply, reading))
        return reading

    def apply(self, reading: Reading) -> None:
        """Nothing is left to do: what was loaded is in the inbox."""

    @property
    def is_settled(self) -> bool:
        """As in FileSource, whoever reads meanwhile."""
        return self._is_settled


class Names(Store):
    """The store as the resolver of names sees it: it reads at once and writes through the inbox."""

    def __init__(self, store: Store, inbox: Inbox) -> None:
        super().__init__()
        self._store = store
        self._inbox = inbox

    def get(self, kind: str, namespace: str, name: str) -> Stored | None:
        return self._store.get(kind, namespace, name)

    def put(self, stored: Stored) -> None:
        self._inbox.add(partial(self._store.put, stored))

    def drop(self, key: Key) -> None:
        self._inbox.add(partial(self._store.drop, key))
