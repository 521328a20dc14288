"""Which listener takes a command that several of them see."""

from __future__ import annotations

import threading


class _Claim(threading.local):
    key: object = None
    owner: object = None


# PyMongo calls a client's listeners one after another, on one thread, with one event: so the last claim of a thread is
# the one that matters. It is process-wide because the listeners that share a client know nothing of each other.
_claim = _Claim()


def claim(key: object, owner: object) -> bool:
    """Claim a command for `owner`; False where another listener of the same client has it.

    The driver calls globally registered listeners first, so these win over a client's own.
    """
    if _claim.owner is not owner and _claim.key == key:
        return False
    _claim.key = key
    _claim.owner = owner
    return True


def unclaim(owner: object) -> None:
    """Give the claim up, if it is `owner`'s: it has served its purpose, and its request id may come again."""
    if _claim.owner is owner:
        _claim.key = None
