"""Keeps errors in telemetry away from the driver: they are counted and logged, never raised."""

from __future__ import annotations

import asyncio
import functools
import inspect
import traceback
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from opentelemetry_mongo_events._runtime.log import warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

P = ParamSpec("P")

FAILURES: Final = (Exception, asyncio.CancelledError)
"""The exceptions that are caught. Code that awaits nothing is never cancelled, so its `CancelledError` is an error."""

_MAX_KINDS: Final = 100
_OTHER_KIND: Final = ("any other place", "an exception of any other class")


class Guard:
    """Counts errors in telemetry by kind and logs the first of each kind.

    A kind is a place (a listener's method, a hook) and the name of an exception class. At most 100 kinds are kept; all
    further ones are counted together, as one more.

    The log has the class of the exception and the lines of its traceback, but never its message, which may contain data
    from the application's database.

    Attributes:
        failures: The number of errors of each kind.
    """

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str], int] = {}

    def failed(self, place: str, error: BaseException) -> None:
        """Count an error that was raised in `place`. Runs on the thread that raised it; never raises."""
        kind = (place, type(error).__qualname__)
        if kind not in self.failures and len(self.failures) >= _MAX_KINDS:
            kind = _OTHER_KIND
        count = self.failures.get(kind, 0)
        # Counted before logging: a log handler that uses MongoDB itself may call this method again.
        self.failures[kind] = count + 1
        if count:
            return
        lines = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
        warn(
            "%s raised %s; the error is suppressed, and this kind of error is not logged again\n%s",
            *kind,
            lines,
        )

    def run(self, place: str, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function`. If it raises, count the error under `place` and suppress it.

        Returning a coroutine, as an `async` function does, is an error too: it would never be awaited.
        """
        try:
            returned = function(*args, **kwargs)
            if returned is not None and inspect.iscoroutine(returned):
                returned.close()
                raise NotAwaitedError
        except FAILURES as error:
            self.failed(place, error)


class NotAwaitedError(TypeError):
    """A function returned a coroutine, which would never be awaited."""


class Guarded(Protocol):
    """An object that has a guard."""

    @property
    def guard(self) -> Guard: ...


class NeverCopied:
    """A listener that a deep copy returns unchanged, since its state must not be split.

    Code that saves and restores the listeners registered with the driver deep-copies them, as PyMongo's own tests do.
    """

    def __deepcopy__(self, memo: object) -> Self:
        return self


G = TypeVar("G", bound=Guarded)
E = TypeVar("E")


def guarded(method: Callable[[G, E], None]) -> Callable[[G, E], None]:
    """Decorate a listener's method so that it never raises into the driver.

    PyMongo prints a traceback for each event whose listener raises, so an error in a frequently called method would
    flood stderr.
    """

    @functools.wraps(method)
    def call(self: G, event: E) -> None:
        try:
            method(self, event)
        except FAILURES as error:
            self.guard.failed(method.__qualname__, error)

    return call
