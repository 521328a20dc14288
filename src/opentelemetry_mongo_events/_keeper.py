"""The one thread of this package's own: it looks after what is open, and emits log records.

So neither keeps the driver waiting. The thread is there only while something is open, or a record waits.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._guard import Guard
from opentelemetry_mongo_events._log import warn
from opentelemetry_mongo_events._process_state import keep_track

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT: Final = 1_000
_PATIENCE: Final = 5.0


class Keeper:
    """Runs the thread.

    Args:
        look: Looks after what is open, on the thread; never raises. Returns in how many seconds it must look again, or
            None where nothing is open.
        end: Ends what is open, at the exit of the interpreter; never raises.

    Attributes:
        guard: Counts the records that could not be emitted.
        thread: The thread; None while there is none.
    """

    def __init__(self, look: Callable[[], float | None], end: Callable[[], None]) -> None:
        self.guard = Guard()
        self._look = look
        self._end = end
        self._dropped = itertools.count()
        self._emitting = threading.local()
        self._process: int | None = None
        self.forget()

    def forget(self) -> None:
        """After a fork what waits is the parent's. The lock may have been held there, and the thread isn't here.

        It is done once: the driver starts threads in a child, too, and one may come here before this is called.
        """
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        # Not a lock and a list: a finalizer or a signal handler may come here while its thread is here already.
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        """Nothing that isn't this package's own is called while it is held."""
        self.thread: threading.Thread | None = None

    def emit(self, record: Callable[[], object]) -> None:
        """Have a log record emitted, after those that wait. Runs on any thread, calls nothing else and never raises.

        There is none for what a log pipeline that uses MongoDB does as it takes a record: each would make the next.
        """
        if hasattr(self._emitting, "now"):
            return
        self.forget()
        if self._waiting.qsize() < _LIMIT:
            self._waiting.put(record)
        elif next(self._dropped) == 0:
            self._waiting.put(_warn)
        self.wake()

    def wake(self) -> None:
        """Have it look after what is open now, and start the thread if there is none. Runs on any thread."""
        keep_track(self)
        self.forget()
        # First: a thread that finds nothing to do, under the lock, is no more.
        if self._waiting.empty():
            self._waiting.put(_nothing)
        # A finalizer may come here as the interpreter is torn down. A thread that starts then never runs, and
        # who starts it waits for good; so does who waits for the lock of a thread that is no more.
        if sys.is_finalizing():
            return
        with self._lock:
            # What a log or a span pipeline raises that is no exception, as `SystemExit`, ends the thread.
            if self.thread is not None and self.thread.is_alive():
                return
            # What is registered last runs first: before the SDK, which was set up meanwhile, is shut down.
            atexit.unregister(self.at_exit)
            atexit.register(self.at_exit)
            self.thread = None
            # No more threads, the interpreter is about to exit, or it is one that has no daemons.
            with contextlib.suppress(RuntimeError):
                thread = threading.Thread(target=self._run, name="opentelemetry_mongo_events", daemon=True)
                thread.start()
                self.thread = thread

    def flush(self) -> None:
        """Wait until the records that wait now are emitted, for 5 seconds at most. Runs on any thread; never raises."""
        if hasattr(self._emitting, "now") or (self.thread is None and self._waiting.empty()):
            return
        done = threading.Event()
        self._waiting.put(done.set)
        self.wake()
        thread = self.thread
        if thread is None or thread.ident == threading.get_ident() or sys.is_finalizing():
            self._emit_here()
        else:
            done.wait(_PATIENCE)

    def at_exit(self) -> None:
        """End what is open, and let no record get lost."""
        self._end()
        self.flush()

    def _run(self) -> None:
        while True:
            seconds = self._look()
            with self._lock:
                if seconds is None and self._waiting.empty():
                    self.thread = None
                    return
            with contextlib.suppress(queue.Empty):
                self._emit(self._waiting.get(timeout=seconds or 0.0))

    def _emit_here(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(queue.Empty):
            while time.monotonic() < deadline:
                self._emit(self._waiting.get_nowait())

    def _emit(self, record: Callable[[], object]) -> None:
        self._emitting.now = True
        try:
            self.guard.run("a log record", record)
        finally:
            del self._emitting.now


def _nothing() -> None:
    """Wakes the thread."""


def _warn() -> None:
    warn(
        "%s log records wait for the log pipeline: those that come meanwhile are dropped (this is logged once)",
        f"{_LIMIT:,}",
    )
