"""The background worker: it looks after what is open and emits log records, so that neither keeps the driver waiting.

Its thread exists only while something is open or a record waits.

Nothing here is created at import that could block, and nothing that could is kept: gevent and eventlet may replace
`threading` at any time later (`opentelemetry-instrument` imports this package before the application's first line
runs), and a primitive from before would block the whole OS thread instead of one greenlet. So each thread makes the
lock that it waits with as it starts, and a thread from before the patching is replaced by the next `wake()`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import track

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT: Final = 1_000
_PATIENCE: Final = 5.0

_CURRENT: Final = "current"

# A context variable, not a thread-local: a thread-local from before a monkey patch is shared by all greenlets.
_is_emitting: ContextVar[bool] = ContextVar("opentelemetry_mongo_events_is_emitting", default=False)


class _WorkerThread:
    """One thread, and what it waits with.

    Attributes:
        implementation: Whose `threading` made it: another one once gevent or eventlet has patched it.
        thread: The thread.
    """

    def __init__(self, run: Callable[[_WorkerThread], None]) -> None:
        self.implementation: object = threading.Lock
        # A plain lock is the one primitive that a finalizer or a signal handler can release on the very thread that is
        # about to do so itself. It is locked while there is nothing new.
        self._bell = threading.Lock()
        self._bell.acquire()
        self.thread = threading.Thread(target=run, args=(self,), name="opentelemetry_mongo_events", daemon=True)

    def ring(self) -> None:
        """Have it look again. Runs on any thread, and never blocks."""
        with contextlib.suppress(RuntimeError):  # it is released already
            self._bell.release()

    def wait(self, seconds: float) -> bool:
        """Wait until it rings, for so many seconds at most; whether it rang."""
        return self._bell.acquire(timeout=seconds)


class BackgroundWorker:
    """Runs the thread.

    There is no lock: each step is one operation of a dictionary or a deque. A finalizer or a signal handler may come
    here while its thread is here already.

    Args:
        look: Looks after what is open, on the thread; never raises. Returns in how many seconds it must look again, or
            None where nothing is open.
        end: Ends what is open, at the exit of the interpreter; never raises.

    Attributes:
        guard: Counts the records that could not be emitted.
    """

    def __init__(self, look: Callable[[], float | None], end: Callable[[], None]) -> None:
        self.guard = Guard()
        self._look = look
        self._end = end
        self._dropped = itertools.count()
        self._process: int | None = None
        self.forget()

    def forget(self) -> None:
        """After a fork what waits is the parent's, and the thread isn't here.

        It is done once: the driver starts threads in a child, too, and one may come here before this is called.
        """
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads: dict[str, _WorkerThread] = {}

    @property
    def thread(self) -> threading.Thread | None:
        """The thread; None while there is none."""
        worker = self._threads.get(_CURRENT)
        return None if worker is None else worker.thread

    def emit(self, record: Callable[[], object]) -> None:
        """Have a log record emitted, after those that wait. Runs on any thread, calls nothing else and never raises.

        There is none for what a log pipeline that uses MongoDB does as it takes a record: each would make the next.
        """
        if _is_emitting.get():
            return
        self.forget()
        if len(self._waiting) < _LIMIT:
            self._waiting.append(record)
        elif next(self._dropped) == 0:
            self._waiting.append(_warn)
        self.wake()

    def wake(self) -> None:
        """Have it look after what is open now, and start the thread if there is none. Runs on any thread."""
        track(self)
        self.forget()
        # A finalizer may come here as the interpreter is torn down. A thread that starts then never runs, and
        # who starts it waits for good.
        if sys.is_finalizing():
            return
        while True:
            worker = self._threads.get(_CURRENT)
            if worker is None:
                self._start()
                return
            if worker.implementation is not threading.Lock:
                # It was started before gevent or eventlet patched `threading`: it ends when it wakes.
                self._threads.pop(_CURRENT, None)
                worker.ring()
                continue
            worker.ring()
            # One that has just found nothing to do may not have heard it.
            if self._threads.get(_CURRENT) is worker:
                return

    def flush(self) -> None:
        """Wait until the records that wait now are emitted, for 5 seconds at most. Runs on any thread; never raises."""
        if _is_emitting.get() or (self.thread is None and not self._waiting):
            return
        done = threading.Event()
        self._waiting.append(done.set)
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

    def _start(self) -> None:
        # No more threads, the interpreter is about to exit, or it is one that has no daemons. A greenlet can't be
        # waited for everywhere either.
        with contextlib.suppress(Exception):
            worker = _WorkerThread(self._run)
            if self._threads.setdefault(_CURRENT, worker) is not worker:
                return  # another thread has started one
            # What is registered last runs first: before the SDK, which was set up meanwhile, is shut down.
            atexit.unregister(self.at_exit)
            atexit.register(self.at_exit)
            try:
                worker.thread.start()
            except BaseException:
                self._threads.pop(_CURRENT, None)
                raise

    def _run(self, worker: _WorkerThread) -> None:
        try:
            while self._threads.get(_CURRENT) is worker:
                seconds = self._look()
                for _ in range(len(self._waiting)):
                    self._emit_next()
                if seconds is None and not self._waiting:
                    # Who wakes it from now on starts another one; who did before has rung.
                    self._threads.pop(_CURRENT, None)
                    if not worker.wait(0) or self._threads.setdefault(_CURRENT, worker) is not worker:
                        return
                else:
                    worker.wait(seconds or 0)
        finally:
            # What a log or a span pipeline raises that is no exception, as `SystemExit`, ends the thread.
            if self._threads.get(_CURRENT) is worker:
                self._threads.pop(_CURRENT, None)

    def _emit_here(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._emit_next():
            pass

    def _emit_next(self) -> bool:
        """Emit the record that has waited longest; False where none waits."""
        try:
            record = self._waiting.popleft()
        except IndexError:
            return False
        token = _is_emitting.set(True)
        try:
            self.guard.run("a log record", record)
        finally:
            _is_emitting.reset(token)
        return True


def _warn() -> None:
    warn(
        "%s log records wait for the log pipeline: those that come meanwhile are dropped (this is logged once)",
        f"{_LIMIT:,}",
    )
