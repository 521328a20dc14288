"""The threads and tasks that wait for a connection, and whether each of them still waits.

The driver publishes that a checkout started, and then that it succeeded or failed. It publishes nothing if a waiting
task is cancelled or a waiting thread is interrupted. So each waiter is stored with its thread or task, and counting
looks at their stacks, to leave out those that have left the driver's checkout.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import operator
import sys
import threading
import types
import weakref
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry_mongo_events._runtime.process import HAS_GIL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry_mongo_events._driver.identity import Identity

T = TypeVar("T")

# If metrics aren't collected, waiters that are gone are removed at this number of entries, and then each time that it
# has doubled.
_CLEANUP_THRESHOLD: Final = 64

# Python 3.11 creates frame objects on access, see `_without_collection`.
_FRAMES_ARE_CREATED_ON_ACCESS: Final = (3, 11) <= sys.version_info < (3, 12)


# The driver's method that gets a connection from a pool; the second is its name in PyMongo 4.0 and 4.1.
_CHECKOUT: Final = frozenset({"_get_conn", "_get_socket"})


class _Waiter:
    """A thread or task that waits.

    Attributes:
        since: When it began to wait, by `time.perf_counter()`.
        thread: The id of its thread.
        task: The asyncio task or the greenlet; None for a plain thread.
        outer: The wait around this one: while a connection is being created, a hook may check out another one.
    """

    __slots__ = ("outer", "since", "task", "thread")

    def __init__(self, thread: int, task: weakref.ref[Any] | None, outer: _Waiter | None) -> None:
        self.since = perf_counter()
        self.thread = thread
        self.task = task
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
        thread = threading.get_ident()
        task = _current_task()
        key = thread if task is None else id(task)
        outer = self._waiting.get(key)
        if outer is not None:
            outer = _without_abandoned(outer, sum(map(self._is_checkout, _frames(sys._getframe()))))
        self._waiting[key] = _Waiter(thread, None if task is None else weakref.ref(task), outer)
        if len(self._waiting) > self._cleanup_threshold:
            self.count()
            self._cleanup_threshold = max(_CLEANUP_THRESHOLD, 2 * len(self._waiting))

    def end(self) -> float | None:
        """Note that the current thread or task no longer waits.

        Returns:
            When it began to wait, by `time.perf_counter()`; None if that isn't known.
        """
        task = _current_task()
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
        threads = _thread_frames() if waiting else {}
        count = 0
        for key, waiter in waiting:
            stack = _stack(waiter, threads)
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
        return getattr(_attribute(frame, "f_locals").get("self"), "address", None) is self._identity.address


def _thread_frames() -> dict[int, types.FrameType]:
    """Return the current frame of each thread, by thread id."""
    return _without_collection(sys._current_frames)


def _without_collection(look: Callable[[], T]) -> T:
    """Call `look`, which inspects other threads and runs no Python code, so that no other thread runs meanwhile.

    Python 3.11 creates frame objects on access. Creating one may start a garbage collection, during which other threads
    run, and the frame that is being inspected may then be gone, which crashes the process. Besides,
    `sys._current_frames()` holds a lock of the interpreter: a thread that starts or ends during the collection waits
    for that lock without releasing the GIL, so the process deadlocks (python/cpython#106883). Earlier versions don't
    create frame objects on access, and later ones collect garbage only between two instructions of the program.
    """
    if not _FRAMES_ARE_CREATED_ON_ACCESS or not gc.isenabled():
        return look()
    # One call that runs no Python code: no other thread sees the collector disabled, or changes that in between.
    calls: tuple[Callable[[], Any], ...] = (gc.disable, look, gc.enable)
    try:
        return list(map(operator.methodcaller("__call__"), calls))[1]  # type: ignore[no-any-return]
    except BaseException:  # an audit hook may refuse `look`
        gc.enable()
        raise


def _attribute(owner: object, name: str) -> Any:
    """Return an attribute of a frame, or of an object that has a frame."""
    return _without_collection(functools.partial(getattr, owner, name))


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


def _current_task() -> Any:
    """Return the current asyncio task, else the current greenlet if greenlet is imported, else None."""
    # Without a loop `current_task()` raises, which costs more than getting the loop first.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if task is not None:
        return task
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


def _stack(waiter: _Waiter, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType] | None:
    """Return the frames of a waiter; None if its thread or task is gone or done."""
    if waiter.task is None:
        return _frames(threads[waiter.thread]) if waiter.thread in threads else None
    task = waiter.task()
    if task is None:
        return None
    if hasattr(task, "get_coro"):  # an asyncio task, or one of a library that extends asyncio
        if task.done():
            return None
        coroutine = task.get_coro()
        if getattr(coroutine, "cr_running", False):
            return _running(waiter, threads)
        return _awaiting(coroutine)
    if task.dead:
        return None
    # While a greenlet runs it has no frame of its own: its frames are those of its thread.
    return _frames(task.gr_frame) if task.gr_frame is not None else _running(waiter, threads)


def _running(waiter: _Waiter, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType] | None:
    """Return the frames of a waiter that is running now: those of its thread; None if its thread is gone.

    gevent and eventlet replace the thread's id by one for each greenlet, so the thread may then be any of them.
    """
    if waiter.thread in threads:
        return _frames(threads[waiter.thread])
    if threading.get_ident() in threads:  # ids are those of threads: the main greenlet may outlive its thread
        return None
    return itertools.chain.from_iterable(map(_frames, threads.values()))


def _frames(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = _attribute(frame, "f_back")


def _awaiting(awaitable: Any) -> Iterator[types.FrameType]:
    """Yield the frames of a suspended task, from its coroutine to the innermost awaitable."""
    seen: set[int] = set()
    while awaitable is not None and id(awaitable) not in seen:
        seen.add(id(awaitable))
        if isinstance(awaitable, types.CoroutineType):
            frame, awaitable = _attribute(awaitable, "cr_frame"), awaitable.cr_await
        elif isinstance(awaitable, types.AsyncGeneratorType):
            frame, awaitable = _attribute(awaitable, "ag_frame"), awaitable.ag_await
        elif isinstance(awaitable, types.GeneratorType):
            frame, awaitable = _attribute(awaitable, "gi_frame"), awaitable.gi_yieldfrom
        else:
            # `anext()` and `__await__()` return wrappers whose content only the garbage collector can access.
            frame, awaitable = None, next(filter(_is_suspended, gc.get_referents(awaitable)), None)
        if frame is not None:
            yield frame


def _is_suspended(value: object) -> bool:
    return isinstance(value, (types.CoroutineType, types.AsyncGeneratorType, types.GeneratorType))
