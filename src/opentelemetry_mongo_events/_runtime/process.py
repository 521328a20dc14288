"""The state of this process: all of it that is alive, which a forked child forgets."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sized


class ProcessState(Protocol):
    """What is true in the process that made it only."""

    def forget(self) -> None:
        """Drop all of it. Runs in a forked child, where no other thread is."""


S = TypeVar("S", bound=ProcessState)

_known: Final[dict[type[ProcessState], dict[weakref.ref[ProcessState], None]]] = {}
_watching: Final[dict[str, object]] = {}

# Whose the state is, by its id; and a lock for each process that takes it over. What is forgotten may have a finalizer
# that closes a client, of which this package is told on the same thread.
_owner: Final[dict[str, int]] = {}
_taking_over: Final[dict[int, threading.RLock]] = {}


def track(state: ProcessState) -> None:
    """Know `state` for as long as it lives."""
    # One operation of a dictionary each: a thread may come or go while another one looks.
    kind = _known.setdefault(type(state), {})
    kind[weakref.ref(state, lambda gone: kind.pop(gone, None))] = None
    # What is registered with `os` can't be taken out again, so it is registered once, for all of them.
    _owner.setdefault("process", os.getpid())
    this = object()
    if _watching.setdefault("forks", this) is this and hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=take_over)


class SharedLock:
    """A re-entrant lock for what is shared by the whole process.

    The real lock is created when it is needed, and another one in a forked child (where the first may be held for good)
    and once gevent or eventlet has patched `threading` (a lock from before would block the whole OS thread, not one
    greenlet).
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[int, object], threading.RLock] = {}

    def __call__(self) -> threading.RLock:
        """The lock, to be used in a `with` statement."""
        key = os.getpid(), threading.Lock
        # One operation of a dictionary: of several threads, one creates it.
        return self._locks.get(key) or self._locks.setdefault(key, threading.RLock())


def instances(kind: type[S]) -> list[S]:
    """All states of that kind which are alive, the oldest first. Runs on any thread."""
    return [state for reference in list(_known.get(kind, ())) if isinstance(state := reference(), kind)]


def peers(state: ProcessState) -> Sized:
    """All of its kind that are alive, itself among them, to be counted at any time and on any thread."""
    return _known[type(state)]


def take_over() -> None:
    """In a forked child, forget what is its parent's, unless that is done. Runs on any thread.

    For whatever may come before this package is told of a fork: the driver is told first, and starts threads.
    """
    process = os.getpid()
    if _owner.get("process") == process:
        return
    with _taking_over.setdefault(process, threading.RLock()):
        if _owner.get("process") != process:
            _forget_all()
            _owner["process"] = process


def _forget_all() -> None:
    for reference in [reference for kind in list(_known.values()) for reference in list(kind)]:
        state = reference()
        if state is not None:
            state.forget()


# Without it, the frames of a running thread can't be read: they change meanwhile, and their memory may be reused.
HAS_GIL: Final[bool] = getattr(sys, "_is_gil_enabled", lambda: True)()
