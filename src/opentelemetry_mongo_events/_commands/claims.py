"""Decides which of a client's listeners handles a command when several of them receive it."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any, Final


class Claim:
    """The command that was last claimed in the current thread, task or greenlet.

    PyMongo calls a client's listeners one after another, in the same thread or task, with the same event. So only the
    last claim matters. Claims are process-wide because the listeners that share a client have no references to each
    other.

    Args:
        name: The name of the context variable that stores the claim. A thread-local would not do: if it was created
            before gevent or eventlet patched `threading`, all greenlets share it.
    """

    def __init__(self, name: str) -> None:
        self._last: ContextVar[tuple[object, weakref.ref[Any]] | None] = ContextVar(name, default=None)

    def take(self, key: object, owner: object) -> bool:
        """Claim a command.

        The driver calls globally registered listeners first, so they take precedence over a client's own listeners.

        Args:
            key: Identifies the command.
            owner: Identifies the listener.

        Returns:
            False if another listener of the same client has claimed the command.
        """
        last = self._last.get()
        if last is not None and last[0] == key and last[1]() not in (owner, None):
            return False
        # A weak reference: a task that is created now keeps its copy of the context as long as it exists.
        self._last.set((key, weakref.ref(owner)))
        return True

    def give_up(self, owner: object) -> None:
        """Give up the claim if it is `owner`'s: its command has ended, and the request id may occur again."""
        last = self._last.get()
        if last is not None and last[1]() is owner:
            self._last.set(None)


# Three claims: a listener whose spans are disabled by another instrumentation still measures commands, and adds to
# PyMongo's own spans.
SPANS: Final = Claim("opentelemetry_mongo_events_claimed_span")
METRICS: Final = Claim("opentelemetry_mongo_events_claimed_metrics")
DRIVER_SPANS: Final = Claim("opentelemetry_mongo_events_claimed_driver_span")


def give_up(owner: object) -> None:
    """Give up all claims if they are `owner`'s: its command has ended."""
    SPANS.give_up(owner)
    METRICS.give_up(owner)
    DRIVER_SPANS.give_up(owner)
