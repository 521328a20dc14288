"""Which listener takes a command that several of them see."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any, Final


class Claim:
    """The last command that was claimed in this thread, task or greenlet.

    PyMongo calls a client's listeners one after another, in one thread or task, with one event: so its last claim is
    the one that matters. It is process-wide because the listeners that share a client know nothing of each other.

    Args:
        name: Of the context variable that holds it. Not a thread-local: greenlets share one that was made before
            `threading` was patched.
    """

    def __init__(self, name: str) -> None:
        self._last: ContextVar[tuple[object, weakref.ref[Any]] | None] = ContextVar(name, default=None)

    def take(self, key: object, owner: object) -> bool:
        """Claim a command for `owner`; False where another listener of the same client has it.

        The driver calls globally registered listeners first, so these win over a client's own.
        """
        last = self._last.get()
        if last is not None and last[0] == key and last[1]() not in (owner, None):
            return False
        # Weakly: a task that is created now keeps a copy of the context for as long as it lives.
        self._last.set((key, weakref.ref(owner)))
        return True

    def give_up(self, owner: object) -> None:
        """Give the claim up, if it is `owner`'s: it has served its purpose, and its request id may come again."""
        last = self._last.get()
        if last is not None and last[1]() is owner:
            self._last.set(None)


# Two, for a listener whose spans stand down still counts.
SPANS: Final = Claim("opentelemetry_mongo_events_claimed_span")
METRICS: Final = Claim("opentelemetry_mongo_events_claimed_metrics")


def give_up(owner: object) -> None:
    """Give up all that is `owner`'s: its command has ended."""
    SPANS.give_up(owner)
    METRICS.give_up(owner)
