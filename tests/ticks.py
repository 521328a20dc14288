"""A clock that ticks while a program runs, as a greenlet or a thread: it tells how long the program stood still.

It imports nothing that is patched, and is imported before or after the patching.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 0.05


class Ticks:
    """Ticks while whoever calls it waits for something.

    Attributes:
        longest: The longest time from one tick to the next, in seconds, without that in which the machine had no
            processor for its thread.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.monotonic()
        self._delay = _delay()

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Tick until `condition` is true; AssertionError if it isn't in time."""
        deadline = self._last + seconds
        while not condition():
            assert self._last < deadline, f"not within {seconds} s, and at most {self.longest} s between two ticks"
            time.sleep(_SECONDS)  # not another name of it, which would be that from before the patching
            now, delay = time.monotonic(), _delay()
            self.longest = max(self.longest, now - self._last - (delay - self._delay))
            self._last, self._delay = now, delay

    def on(self, seconds: float) -> None:
        """Tick for as long as that."""
        end = self._last + seconds
        self.until(lambda: self._last >= end)

    def forever(self) -> None:
        """Tick until the program ends."""
        self.until(lambda: False, float("inf"))


def _delay() -> float:
    """For how many seconds this thread was ready to run and didn't; 0 where nobody tells."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
