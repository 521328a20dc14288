"""A bounded memory of what came last."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dictionary that forgets its oldest entry when it is full, if `put` is how entries come into it.

    Used from any thread without a lock: each step is one operation of the dictionary, and a lock held while a process
    forks, or while a finalizer runs a command, would never be released.
    """

    __slots__ = ("_limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: K, value: V) -> None:
        """Remember `value`, as the newest."""
        self.pop(key, None)  # a key that is there already would keep its place
        self[key] = value
        while len(self) > self._limit:
            with contextlib.suppress(KeyError):  # other threads have emptied it meanwhile
                self.popitem(last=False)
