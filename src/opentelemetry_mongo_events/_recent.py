"""A bounded memory of what came last."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping that forgets its oldest entry when it is full.

    Used from any thread without a lock: each step is one operation of the dictionary, and a lock held while a process
    forks, or while a finalizer runs a command, would never be released.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V) -> None:
        """Remember `value`, as the newest."""
        self._entries.pop(key, None)  # a key that is there already would keep its place
        self._entries[key] = value
        while len(self._entries) > self._limit:
            with contextlib.suppress(KeyError):  # other threads have emptied it meanwhile
                self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        """The value of `key`, or None."""
        return self._entries.get(key)

    def pop(self, key: K) -> V | None:
        """The value of `key`, or None; it is forgotten."""
        return self._entries.pop(key, None)
