"""A dictionary of bounded size that drops its oldest entries."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dictionary that drops its oldest entries when it is full, provided that entries are added with `put()`.

    It can be used on any thread. There is no lock, as each step is a single dictionary operation: a lock that is held
    while the process forks, or while a finalizer runs a command, would never be released.

    Args:
        limit: The maximum number of entries.
    """

    __slots__ = ("_limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: K, value: V) -> None:
        """Add an entry as the newest, replacing one of the same key."""
        self.pop(key, None)  # otherwise an existing key would keep its place
        self[key] = value
        while len(self) > self._limit:
            with contextlib.suppress(KeyError):  # other threads have emptied it in the meantime
                self.popitem(last=False)
