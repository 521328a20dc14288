"""A clock that ticks while a program runs, as a greenlet or a thread: it tells how long the program stood still.

It imports nothing that is patched, and is imported before or after the patching.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 0.05


class Ticks:
    """Ticks while whoever calls it waits for something.

    Attributes:
        longest: The longest time from one tick to the next, in seconds.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.monotonic()

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Tick until `condition` is true; AssertionError if it isn't in time."""
        deadline = self._last + seconds
        while not condition():
            assert self._last < deadline, f"not within {seconds} s, and at most {self.longest} s between two ticks"
            time.sleep(_SECONDS)  # not another name of it, which would be that from before the patching
            now = time.monotonic()
            self.longest = max(self.longest, now - self._last)
            self._last = now

    def on(self, seconds: float) -> None:
        """Tick for as long as that."""
        end = self._last + seconds
        self.until(lambda: self._last >= end)

    def forever(self) -> None:
        """Tick until the program ends."""
        self.until(lambda: False, float("inf"))
