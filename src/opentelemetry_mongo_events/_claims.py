"""Which listener takes a command that several of them see."""

from __future__ import annotations

import threading
from typing import Final


class Claim(threading.local):
    """The last command that was claimed on this thread.

    PyMongo calls a client's listeners one after another, on one thread, with one event: so the last claim of a thread
    is the one that matters. It is process-wide because the listeners that share a client know nothing of each other.
    """

    key: object = None
    owner: object = None

    def take(self, key: object, owner: object) -> bool:
        """Claim a command for `owner`; False where another listener of the same client has it.

        The driver calls globally registered listeners first, so these win over a client's own.
        """
        if self.owner is not owner and self.key == key:
            return False
        self.key = key
        self.owner = owner
        return True

    def give_up(self, owner: object) -> None:
        """Give the claim up, if it is `owner`'s: it has served its purpose, and its request id may come again."""
        if self.owner is owner:
            self.key = None
            self.owner = None  # which lives no longer for having claimed something once


# Two, for a listener whose spans stand down still counts.
SPANS: Final = Claim()
METRICS: Final = Claim()


def give_up(owner: object) -> None:
    """Give up all that is `owner`'s: its command has ended."""
    SPANS.give_up(owner)
    METRICS.give_up(owner)
