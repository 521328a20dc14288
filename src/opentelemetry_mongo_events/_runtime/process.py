"""State that belongs to one process, and its reset in a forked child."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sized


class ProcessState(Protocol):
    """State that is valid only in the process that created it."""

    def forget(self) -> None:
        """Discard everything. Runs in a forked child, where the parent's other threads do not exist."""


S = TypeVar("S", bound=ProcessState)

_states: Final[dict[type[ProcessState], dict[weakref.ref[ProcessState], None]]] = {}
_fork_handler: Final[dict[str, object]] = {}

# The id of the process that owns the state, and a lock for each process that takes it over. The lock is re-entrant:
# discarded state may have a finalizer that closes a client, and the driver's events for that arrive on the same thread.
_owner: Final[dict[str, int]] = {}
_take_over_locks: Final[dict[int, threading.RLock]] = {}


def track(state: ProcessState) -> None:
    """Register `state` for as long as it exists, so that it is reset in a forked child. Runs on any thread."""
    # Each step is a single dictionary operation: states may be added and removed while another thread iterates.
    kind = _states.setdefault(type(state), {})
    kind[weakref.ref(state, lambda gone: kind.pop(gone, None))] = None
    # A fork handler can't be unregistered, so there is a single one for all states.
    _owner.setdefault("process", os.getpid())
    this = object()
    if _fork_handler.setdefault("forks", this) is this and hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=take_over)


class SharedLock:
    """A re-entrant lock for state that is shared by the whole process.

    The actual lock is created when it is needed. A new one is created in a forked child, where the first may be held
    forever, and once gevent or eventlet has patched `threading`: a lock from before the patching would block the whole
    OS thread instead of one greenlet.
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[int, object], threading.RLock] = {}

    def __call__(self) -> threading.RLock:
        """Return the lock, to be used in a `with` statement. Runs on any thread."""
        key = os.getpid(), threading.Lock
        # `setdefault` is atomic: if several threads create a lock, all of them get the same one.
        return self._locks.get(key) or self._locks.setdefault(key, threading.RLock())


def instances(kind: type[S]) -> list[S]:
    """Return all existing states of a class, the oldest first. Runs on any thread."""
    return [state for reference in list(_states.get(kind, ())) if isinstance(state := reference(), kind)]


def peers(state: ProcessState) -> Sized:
    """Return all existing states of the same class, `state` included. Any thread may take its length at any time."""
    return _states[type(state)]


def take_over() -> None:
    """Discard the state of the parent process in a forked child, unless that has been done. Runs on any thread.

    For code that may run before this package's fork handler: the driver's handler runs first and starts threads.
    """
    process = os.getpid()
    if _owner.get("process") == process:
        return
    with _take_over_locks.setdefault(process, threading.RLock()):
        if _owner.get("process") != process:
            _forget_all()
            _owner["process"] = process


def _forget_all() -> None:
    for reference in [reference for kind in list(_states.values()) for reference in list(kind)]:
        state = reference()
        if state is not None:
            state.forget()


# Without the GIL, the frames of a running thread can't be read: they change meanwhile, and their memory may be reused.
HAS_GIL: Final[bool] = getattr(sys, "_is_gil_enabled", lambda: True)()
