"""Looks at the stacks of other threads, asyncio tasks and greenlets."""

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
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

# Python 3.11 creates frame objects on access, see `_without_collection`.
_FRAMES_ARE_CREATED_ON_ACCESS: Final = (3, 11) <= sys.version_info < (3, 12)


class Runner:
    """The thread, asyncio task or greenlet that was running when this object was created.

    Args:
        task: The current task or greenlet, from `current_task()`.

    Attributes:
        thread: The id of the thread.
        task: A weak reference to the asyncio task or the greenlet; None for a plain thread.
    """

    __slots__ = ("task", "thread")

    def __init__(self, task: object | None) -> None:
        self.thread = threading.get_ident()
        self.task: weakref.ref[Any] | None = None if task is None else weakref.ref(task)

    def frames(self, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType] | None:
        """Return the frames of its stack; None if the thread or task is gone or done. Called on any thread.

        Without the GIL, the frames of another thread that is running can't be read.

        Args:
            threads: The result of `thread_frames()`.
        """
        if self.task is None:
            return frames(threads[self.thread]) if self.thread in threads else None
        task = self.task()
        if task is None:
            return None
        if hasattr(task, "get_coro"):  # an asyncio task, or one of a library that extends asyncio
            if task.done():
                return None
            coroutine = task.get_coro()
            if getattr(coroutine, "cr_running", False):
                return self._running(threads)
            return _awaiting(coroutine)
        if task.dead:
            return None
        # While a greenlet runs it has no frame of its own: its frames are those of its thread.
        return frames(task.gr_frame) if task.gr_frame is not None else self._running(threads)

    def _running(self, threads: dict[int, types.FrameType]) -> Iterator[types.FrameType] | None:
        """Return the frames of its thread, in which it is running now; None if the thread is gone.

        gevent and eventlet replace the thread's id by one for each greenlet, so the thread may then be any of them.
        """
        if self.thread in threads:
            return frames(threads[self.thread])
        if threading.get_ident() in threads:  # ids are those of threads: the main greenlet may outlive its thread
            return None
        return itertools.chain.from_iterable(map(frames, threads.values()))


def current_task() -> Any:
    """Return the current asyncio task, else the current greenlet if greenlet is imported, else None."""
    # Without a loop `current_task()` raises, which costs more than getting the loop first.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if task is not None:
        return task
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


def thread_frames() -> dict[int, types.FrameType]:
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


def attribute(owner: object, name: str) -> Any:
    """Return an attribute of a frame, or of an object that has a frame."""
    return _without_collection(functools.partial(getattr, owner, name))


def frames(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    """Yield a frame and its callers, from the innermost to the outermost."""
    while frame is not None:
        yield frame
        frame = attribute(frame, "f_back")


def _awaiting(awaitable: Any) -> Iterator[types.FrameType]:
    """Yield the frames of a suspended task, from its coroutine to the innermost awaitable."""
    seen: set[int] = set()
    while awaitable is not None and id(awaitable) not in seen:
        seen.add(id(awaitable))
        if isinstance(awaitable, types.CoroutineType):
            frame, awaitable = attribute(awaitable, "cr_frame"), awaitable.cr_await
        elif isinstance(awaitable, types.AsyncGeneratorType):
            frame, awaitable = attribute(awaitable, "ag_frame"), awaitable.ag_await
        elif isinstance(awaitable, types.GeneratorType):
            frame, awaitable = attribute(awaitable, "gi_frame"), awaitable.gi_yieldfrom
        else:
            # `anext()` and `__await__()` return wrappers whose content only the garbage collector can access.
            frame, awaitable = None, next(filter(_is_suspended, gc.get_referents(awaitable)), None)
        if frame is not None:
            yield frame


def _is_suspended(value: object) -> bool:
    return isinstance(value, (types.CoroutineType, types.AsyncGeneratorType, types.GeneratorType))
