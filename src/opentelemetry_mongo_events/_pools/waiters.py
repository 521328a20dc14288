"""The threads and tasks that wait for a connection, and whether each of them still waits.

The driver publishes that a checkout started, and then that it succeeded or failed. It publishes nothing if a waiting
task is cancelled or a waiting thread is interrupted. So each waiter is stored with its thread or task, and counting
looks at their stacks, to leave out those that have left the driver's checkout.
"""

from __future__ import annotations

import sys
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._runtime.process import HAS_GIL
from opentelemetry_mongo_events._runtime.stacks import Runner, attribute, current_task, frames, thread_frames

if TYPE_CHECKING:
    import types

    from opentelemetry_mongo_events._driver.identity import Identity

# If metrics aren't collected, waiters that are gone are removed at this number of entries, and then each time that it
# has doubled.
_CLEANUP_THRESHOLD: Final = 64

# The driver's method that gets a connection from a pool; the second is its name in PyMongo 4.0 and 4.1.
_CHECKOUT: Final = frozenset({"_get_conn", "_get_socket"})


class _Waiter:
    """A thread or task that waits.

    Attributes:
        since: When it began to wait, by `time.perf_counter()`.
        runner: The thread or task.
        outer: The wait around this one: while a connection is being created, a hook may check out another one.
    """

    __slots__ = ("outer", "runner", "since")

    def __init__(self, runner: Runner, outer: _Waiter | None) -> None:
        self.since = perf_counter()
        self.runner = runner
        self.outer = outer


class Waiters:
    """The waiters of one pool. There is no lock, because each thread or task writes its own entry only.

    Args:
        identity: The pool's address.
    """

    __slots__ = ("_cleanup_threshold", "_identity", "_waiting")

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._waiting: dict[int, _Waiter] = {}
        self._cleanup_threshold = _CLEANUP_THRESHOLD

    def begin(self) -> None:
        """Note that the current thread or task begins to wait."""
        task = current_task()
        runner = Runner(task)
        key = runner.thread if task is None else id(task)
        outer = self._waiting.get(key)
        if outer is not None:
            outer = _without_abandoned(outer, sum(map(self._is_checkout, frames(sys._getframe()))))
        self._waiting[key] = _Waiter(runner, outer)
        if len(self._waiting) > self._cleanup_threshold:
            self.count()
            self._cleanup_threshold = max(_CLEANUP_THRESHOLD, 2 * len(self._waiting))

    def end(self) -> float | None:
        """Note that the current thread or task no longer waits.

        Returns:
            When it began to wait, by `time.perf_counter()`; None if that isn't known.
        """
        task = current_task()
        key = threading.get_ident() if task is None else id(task)
        waiter = self._waiting.pop(key, None)
        if waiter is None:
            return None
        if waiter.outer is not None:
            self._waiting[key] = waiter.outer
        return waiter.since

    def count(self) -> int:
        """Return how many threads and tasks wait. Called on any thread.

        Waiters outside of the checkout aren't counted but kept, because they may be about to enter it. Waiters whose
        thread or task is gone are removed.
        """
        waiting = self._waiting.copy().items()
        threads = thread_frames() if waiting else {}
        count = 0
        for key, waiter in waiting:
            stack = waiter.runner.frames(threads)
            if stack is not None:
                # Without the GIL it isn't possible to find out whether it has left the checkout.
                count += _depth(waiter) if not HAS_GIL or any(map(self._is_checkout, stack)) else 0
            elif self._waiting.get(key) is waiter:  # not one that began meanwhile, with the same key
                self._waiting.pop(key, None)
        return count

    def _is_checkout(self, frame: types.FrameType) -> bool:
        """Whether a frame is the driver's, and checks out a connection of this pool."""
        if frame.f_code.co_name not in _CHECKOUT or not frame.f_globals.get("__name__", "").startswith("pymongo."):
            return False
        return getattr(attribute(frame, "f_locals").get("self"), "address", None) is self._identity.address


def _depth(waiter: _Waiter | None) -> int:
    """Return the number of nested waits."""
    depth = 0
    while waiter is not None:
        depth += 1
        waiter = waiter.outer
    return depth


def _without_abandoned(waiter: _Waiter | None, checkouts: int) -> _Waiter | None:
    """Drop abandoned waits: the innermost ones, until there are no more nested waits than checkouts on the stack."""
    while _depth(waiter) > checkouts:
        waiter = waiter.outer if waiter is not None else None
    return waiter
