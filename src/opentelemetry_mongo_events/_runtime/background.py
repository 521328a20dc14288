"""The background thread that checks what is open and does what would make the driver wait.

The thread exists only while something is open or a task is waiting.

No blocking primitive is created at import, and none is kept for long: gevent and eventlet may patch `threading` at any
later time (`opentelemetry-instrument` imports this package before the application's first line runs), and a primitive
from before the patching would block the whole OS thread instead of one greenlet. Each thread therefore has a lock of
its own to wait on, and the next `wake()` replaces a thread that was started before the patching.
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

# The number of tasks that may wait.
_LIMIT: Final = 1_000
# Seconds.
_FLUSH_TIMEOUT: Final = 5.0

# The only key of `BackgroundWorker._threads`. The current thread is in a dictionary because its operations are atomic.
_CURRENT: Final = "current"

# A context variable, not a thread-local: a thread-local from before a monkey patch is shared by all greenlets.
_is_working: ContextVar[bool] = ContextVar("opentelemetry_mongo_events_is_working", default=False)


class _WorkerThread:
    """A thread and the lock that it waits on.

    Args:
        run: Runs on the thread, with this object as its argument.

    Attributes:
        implementation: The `threading.Lock` at the time of creation. gevent and eventlet replace it when they patch.
        thread: The thread.
    """

    def __init__(self, run: Callable[[_WorkerThread], None]) -> None:
        self.implementation: object = threading.Lock
        # Only a plain lock can be released by a finalizer or signal handler that interrupts a thread which is just
        # about to release it. It is locked while there is no notification.
        self._notification = threading.Lock()
        self._notification.acquire()
        self.thread = threading.Thread(target=run, args=(self,), name="opentelemetry_mongo_events", daemon=True)

    def notify(self) -> None:
        """End the thread's current or next `wait()`. Runs on any thread; never blocks."""
        with contextlib.suppress(RuntimeError):  # it has been notified already
            self._notification.release()

    def wait(self, seconds: float) -> bool:
        """Wait for a notification, for at most that many seconds. Returns whether there was one."""
        return self._notification.acquire(timeout=seconds)


class BackgroundWorker:
    """Starts the background thread when there is work, and gives it the work.

    There is no lock: each step is a single operation of a dictionary or a deque. A finalizer or signal handler may
    call a method while it interrupts another call on the same thread.

    Attributes:
        guard: Counts the tasks that failed.
    """

    def __init__(self) -> None:
        self.guard = Guard()
        self._checks: list[tuple[Callable[[], float | None], Callable[[], None]]] = []
        self._dropped = itertools.count()
        self._process: int | None = None
        self.forget()

    def forget(self) -> None:
        """Reset after a fork: the waiting tasks are the parent's, and its thread does not exist in the child.

        This happens once per process, at the first call: the driver starts threads in a child, and one of them may use
        this worker before the fork handler runs.
        """
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self._waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self._threads: dict[str, _WorkerThread] = {}

    @property
    def thread(self) -> threading.Thread | None:
        """The background thread, or None while there is none."""
        worker = self._threads.get(_CURRENT)
        return None if worker is None else worker.thread

    def register(self, check: Callable[[], float | None], end_all: Callable[[], None]) -> None:
        """Register a check of something that may be open.

        Args:
            check: Checks what is open. Runs on the background thread; never raises. Returns the seconds until the next
                check is due, or None if nothing is open.
            end_all: Ends what is open, at the exit of the interpreter; never raises. What was registered last is ended
                first, and its tasks are done before the next one is called.
        """
        self._checks.append((check, end_all))

    def submit(self, name: str, task: Callable[[], object]) -> bool:
        """Queue a task. Runs on any thread, without calling any other code; never raises.

        Tasks are ignored while the telemetry pipeline handles another one: if the pipeline uses MongoDB, each task
        would lead to the next.

        Args:
            name: What the task does, for the log if it fails.
            task: Runs on the background thread, or on one that flushes if there is none.

        Returns:
            Whether it was queued: False if it is ignored, or if too many tasks wait.
        """
        if _is_working.get():
            return False
        self.forget()
        has_room = len(self._waiting) < _LIMIT
        if has_room:
            self._waiting.append((name, task))
        elif next(self._dropped) == 0:
            self._waiting.append(("a warning", _warn_of_dropped_tasks))
        self.wake()
        return has_room

    @property
    def is_working(self) -> bool:
        """Whether the current thread, task or greenlet does a task: what it causes itself is not to be recorded."""
        return _is_working.get()

    def run(self, name: str, task: Callable[[], object]) -> None:
        """Do a task on the current thread. Never raises."""
        token = _is_working.set(True)
        try:
            self.guard.run(name, task)
        finally:
            _is_working.reset(token)

    def wake(self) -> None:
        """Make the thread check what is open now, and start it if there is none. Runs on any thread."""
        track(self)
        self.forget()
        # A finalizer may call this while the interpreter is torn down. A thread started then never runs, and `start()`
        # never returns.
        if sys.is_finalizing():
            return
        while True:
            worker = self._threads.get(_CURRENT)
            if worker is None:
                self._start()
                return
            if worker.implementation is not threading.Lock:
                # Started before gevent or eventlet patched `threading`. It ends when it wakes up.
                self._threads.pop(_CURRENT, None)
                worker.notify()
                continue
            worker.notify()
            # A thread that has just found nothing to do may have missed the notification.
            if self._threads.get(_CURRENT) is worker:
                return

    def flush(self) -> None:
        """Wait until all tasks queued so far are done, for at most 5 seconds. Runs on any thread; never raises."""
        if _is_working.get() or (self.thread is None and not self._waiting):
            return
        done = threading.Event()
        self._waiting.append(("a flush", done.set))
        self.wake()
        thread = self.thread
        if thread is None or thread.ident == threading.get_ident() or sys.is_finalizing():
            self._work_on_this_thread()
        else:
            done.wait(_FLUSH_TIMEOUT)

    def at_exit(self) -> None:
        """End what is open and do the waiting tasks. Runs when the interpreter exits."""
        for _, end_all in reversed(self._checks):
            end_all()
            self.flush()

    def _start(self) -> None:
        # Starting fails if there are too many threads, if the interpreter is about to exit, or if it does not allow
        # daemon threads. Under gevent or eventlet, some places don't allow waiting for the start either.
        with contextlib.suppress(Exception):
            worker = _WorkerThread(self._run)
            if self._threads.setdefault(_CURRENT, worker) is not worker:
                return  # another caller has started a thread
            # Register again, as the last handler runs first: this one has to run before an SDK that was set up in the
            # meantime is shut down.
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
                due = [check() for check, _ in self._checks]
                seconds = min((each for each in due if each is not None), default=None)
                for _ in range(len(self._waiting)):
                    self._work_on_next()
                if seconds is None and not self._waiting:
                    # From here on `wake()` starts another thread; an earlier `wake()` has notified this one.
                    self._threads.pop(_CURRENT, None)
                    if not worker.wait(0) or self._threads.setdefault(_CURRENT, worker) is not worker:
                        return
                else:
                    worker.wait(seconds or 0)
        finally:
            # The thread also ends if a log or span pipeline raises something like `SystemExit`.
            if self._threads.get(_CURRENT) is worker:
                self._threads.pop(_CURRENT, None)

    def _work_on_this_thread(self) -> None:
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while time.monotonic() < deadline and self._work_on_next():
            pass

    def _work_on_next(self) -> bool:
        """Do the oldest waiting task. Returns False if there is none."""
        try:
            name, task = self._waiting.popleft()
        except IndexError:
            return False
        self.run(name, task)
        return True


def _warn_of_dropped_tasks() -> None:
    warn(
        "%s log records and failed server selections are waiting for the telemetry pipeline: new ones are dropped "
        "until some have been processed (logged once)",
        f"{_LIMIT:,}",
    )


background_worker: Final = BackgroundWorker()
"""The background worker of this process."""
