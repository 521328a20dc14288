"""The edge to the driver: what goes wrong in telemetry stays here."""

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
"""What is held up. A function that awaits nothing is never cancelled, so a `CancelledError` is a failure of its own."""

_KINDS: Final = 100
_OTHER_KINDS: Final = ("any other place", "an exception of any other class")


class Guard:
    """Counts the failures of telemetry by kind and logs the first of each.

    A kind is a place (a listener's method, a hook) and the name of an exception's class. There are 100 kinds at most;
    what comes after is one more.

    The log names the exception's class and the lines of code it went through, never its message: that may hold what the
    application stores in its database.
    """

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str], int] = {}

    def failed(self, place: str, error: BaseException) -> None:
        """Note that `error` was raised in `place`. Runs on the thread that failed; never raises."""
        kind = (place, type(error).__qualname__)
        if kind not in self.failures and len(self.failures) >= _KINDS:
            kind = _OTHER_KINDS
        count = self.failures.get(kind, 0)
        # Counted first: a log handler that itself uses MongoDB comes back here.
        self.failures[kind] = count + 1
        if count:
            return
        lines = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
        warn(
            "%s raised %s; the application goes on, further failures of this kind are not logged\n%s",
            *kind,
            lines,
        )

    def run(self, place: str, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function`; an exception of it is noted under `place` and goes no further.

        So is a coroutine that it returns, as one that is `async` does: nobody would await it.
        """
        try:
            returned = function(*args, **kwargs)
            if returned is not None and inspect.iscoroutine(returned):
                returned.close()
                raise NotAwaitedError
        except FAILURES as error:
            self.failed(place, error)


class NotAwaitedError(TypeError):
    """What was called returned a coroutine."""


class Guarded(Protocol):
    """What has a guard."""

    @property
    def guard(self) -> Guard: ...


class NeverCopied:
    """A listener of which there is no copy: it stands for what it knows.

    Who saves and restores what is registered with the driver makes deep copies of it, as the driver's own tests do.
    """

    def __deepcopy__(self, memo: object) -> Self:
        return self


G = TypeVar("G", bound=Guarded)
E = TypeVar("E")


def guarded(method: Callable[[G, E], None]) -> Callable[[G, E], None]:
    """Make a listener's method one that never raises into the driver.

    PyMongo prints a traceback for each event whose listener raises, so an error in a hot listener would flood stderr.
    """

    @functools.wraps(method)
    def call(self: G, event: E) -> None:
        try:
            method(self, event)
        except FAILURES as error:
            self.guard.failed(method.__qualname__, error)

    return call
