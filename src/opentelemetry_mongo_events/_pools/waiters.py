"""Who waits for a connection, and whether they still do.

The driver publishes that a checkout started, and then that it succeeded or failed; nothing where a waiting task is
cancelled or a waiting thread interrupted. So each waiter is noted with what it runs in, and when they are counted,
those that have left the driver's checkout are found by their stacks.
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

# Where nobody counts them, those that are gone are looked for when there are so many, and then at twice what is left.
_MANY: Final = 64

# Before 3.12 (3.11 only) a frame's object is made when somebody asks for it, see `_undisturbed`.
_FRAMES_ARE_MADE_WHEN_ASKED_FOR: Final = (3, 11) <= sys.version_info < (3, 12)


# What gets a connection out of a pool; the second is its name in PyMongo 4.0 and 4.1.
_CHECKOUT: Final = frozenset({"_get_conn", "_get_socket"})


class _Waiter:
    """Somebody who waits.

    Attributes:
        since: Since when, by `time.perf_counter()`.
        thread: In which thread.
        runs_in: The asyncio task or the greenlet; None for a thread.
        outer: The wait around this one: while a connection is made, a hook may ask for another one.
    """

    __slots__ = ("outer", "runs_in", "since", "thread")

    def __init__(self, thread: int, runs_in: weakref.ref[Any] | None, outer: _Waiter | None) -> None:
        self.since = perf_counter()
        self.thread = thread
        self.runs_in = runs_in
        self.outer = outer


class Waiters:
    """The waiters of one pool. Each thread or task writes its own entry only, so there is no lock."""

    __slots__ = ("_identity", "_many", "_waiting")

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._waiting: dict[int, _Waiter] = {}
        self._many = _MANY

    def begin(self) -> None:
        """The current thread or task waits from now on."""
        thread = threading.get_ident()
        runs_in = _runs_in()
        key = thread if runs_in is None else id(runs_in)
        outer = self._waiting.get(key)
        if outer is not None:
            outer = _outermost(outer, sum(map(self._is_checkout, _frames(sys._getframe()))))
        self._waiting[key] = _Waiter(thread, None if runs_in is None else weakref.ref(runs_in), outer)
        if len(self._waiting) > self._many:
            self.count()
            self._many = max(_MANY, 2 * len(self._waiting))

    def end(self) -> float | None:
        """The current thread or task waits no more: since when it did, by `time.perf_counter()`, if that is known."""
        runs_in = _runs_in()
        key = threading.get_ident() if runs_in is None else id(runs_in)
        waiter = self._waiting.pop(key, None)
        if waiter is None:
            return None
        if waiter.outer is not None:
            self._waiting[key] = waiter.outer
        return waiter.since

    def count(self) -> int:
        """How many wait. Runs on any thread.

        Those that have left the checkout are kept: one may be about to enter it. Those whose thread or task is gone are
        forgotten.
        """
        waiting = self._waiting.copy().items()
        threads = _threads() if waiting else {}
        count = 0
        for key, waiter in waiting:
            stack = _stack(waiter, threads)
            if stack is not None:
                # Without the GIL, nobody knows whether it has left.
                count += _depth(waiter) if not HAS_GIL or any(map(self._is_checkout, stack)) else 0
            elif self._waiting.get(key) is waiter:  # and not one that began meanwhile
                self._waiting.pop(key, None)
        return count

    def _is_checkout(self, frame: types.FrameType) -> bool:
        """Whether a frame is the driver's, and gets a connection out of this pool."""
        if frame.f_code.co_name not in _CHECKOUT or not frame.f_globals.get("__name__", "").startswith("pymongo."):
            return False
        return getattr(_of(frame, "f_locals").get("self"), "address", None) is self._identity.address


def _threads() -> dict[int, types.FrameType]:
    """What each thread does, by its id."""
    return _undisturbed(sys._current_frames)


def _undisturbed(look: Callable[[], T]) -> T:
    """Look at what other threads do, by one call that runs no Python code: none of them goes on meanwhile.

    Python 3.11 makes a frame's object when somebody asks for it, and to make one may begin a garbage collection, in
    which other threads come to run. Then the frame that is looked at may be gone, which crashes the program. And all
    frames are asked for under a lock of the interpreter: a thread that starts or ends by then waits for that lock, and
    doesn't let this one go on, so the program stands still for good (python/cpython#106883). Versions before it make no
    such objects, and later ones collect between two steps of the program only.
    """
    if not _FRAMES_ARE_MADE_WHEN_ASKED_FOR or not gc.isenabled():
        return look()
    # In one step: nobody else finds the collector off, and nobody's word on it is overruled.
    steps: tuple[Callable[[], Any], ...] = (gc.disable, look, gc.enable)
    try:
        return list(map(operator.methodcaller("__call__"), steps))[1]  # type: ignore[no-any-return]
    except BaseException:  # an audit hook may refuse it
        gc.enable()
        raise


def _of(part: object, name: str) -> Any:
    """An attribute of a frame, or of what has one."""
    return _undisturbed(functools.partial(getattr, part, name))


def _depth(waiter: _Waiter | None) -> int:
    depth = 0
    while waiter is not None:
        depth += 1
        waiter = waiter.outer
    return depth


def _outermost(waiter: _Waiter | None, checkouts: int) -> _Waiter | None:
    """Those of nested waiters for which there is a checkout on the stack: the inner ones gave up."""
    while _depth(waiter) > checkouts:
        waiter = waiter.outer if waiter is not None else None
    return waiter


def _runs_in() -> Any:
    """The current task; else the current greenlet, where there are greenlets, which share a thread; else None."""
    # Without a loop, `current_task()` raises, which costs more than to ask for the loop first.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if task is not None:
        return task
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


def _stack(waiter: _Waiter, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType] | None:
    """What a waiter does now; None if it does nothing any more."""
    if waiter.runs_in is None:
        return _frames(threads[waiter.thread]) if waiter.thread in threads else None
    runs_in = waiter.runs_in()
    if runs_in is None:
        return None
    if hasattr(runs_in, "get_coro"):  # a task, of whatever make
        if runs_in.done():
            return None
        coroutine = runs_in.get_coro()
        if getattr(coroutine, "cr_running", False):
            return _running(waiter, threads)
        return _awaiting(coroutine)
    if runs_in.dead:
        return None
    # A greenlet has no frame of its own while it runs: it is what its thread does.
    return _frames(runs_in.gr_frame) if runs_in.gr_frame is not None else _running(waiter, threads)


def _running(waiter: _Waiter, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType]:
    """What the thread of a waiter does that is running now.

    gevent and eventlet give each greenlet an identifier in place of its thread's: then it may be any thread.
    """
    if waiter.thread in threads:
        return _frames(threads[waiter.thread])
    return itertools.chain.from_iterable(map(_frames, threads.values()))


def _frames(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = _of(frame, "f_back")


def _awaiting(awaitable: Any) -> Iterator[types.FrameType]:
    """The frames of a suspended task, from its coroutine to what it waits for."""
    seen: set[int] = set()
    while awaitable is not None and id(awaitable) not in seen:
        seen.add(id(awaitable))
        if isinstance(awaitable, types.CoroutineType):
            frame, awaitable = _of(awaitable, "cr_frame"), awaitable.cr_await
        elif isinstance(awaitable, types.AsyncGeneratorType):
            frame, awaitable = _of(awaitable, "ag_frame"), awaitable.ag_await
        elif isinstance(awaitable, types.GeneratorType):
            frame, awaitable = _of(awaitable, "gi_frame"), awaitable.gi_yieldfrom
        else:
            # `anext()` and `__await__()` give wrappers that tell nobody what they wrap but the garbage collector.
            frame, awaitable = None, next(filter(_is_suspended, gc.get_referents(awaitable)), None)
        if frame is not None:
            yield frame


def _is_suspended(value: object) -> bool:
    return isinstance(value, (types.CoroutineType, types.AsyncGeneratorType, types.GeneratorType))
