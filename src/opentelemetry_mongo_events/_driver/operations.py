"""Finds the operation for which the driver checks out a connection, so that its attempts can be recognized.

The driver retries an operation in a loop. Its pool events don't contain the operation, but they are published on the
caller's thread or in the caller's task, so the loop is on the current stack.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._runtime.stacks import attribute, frames

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

# The driver's method that retries an operation, since PyMongo 4.6.
_LOOP: Final = "run"

# The modules whose code may run between that method and the listeners. Other code is a listener of the application or a
# wrapper. A checkout that it causes is not part of the operation.
_BETWEEN: Final = ("pymongo.", f"{__name__.partition('.')[0]}.", "contextlib")


class Attempt(NamedTuple):
    """An attempt of an operation.

    Attributes:
        operation: Identifies the operation: the function that the driver calls in each attempt. Each operation has its
            own function object, which exists at least as long as the operation.
        is_first: Whether it is the first attempt.
    """

    operation: Callable[..., Any]
    is_first: bool


def current_attempt() -> Attempt | None:
    """Return the attempt for which the current thread or task checks out a connection.

    Inspecting the stack is slow, so call this rarely.

    Returns:
        The attempt; None if the checkout doesn't belong to one (for example if a cursor is closed), or if this version
        of PyMongo retries operations in an unknown way.
    """
    codes = set()
    for frame in itertools.takewhile(_is_between, frames(sys._getframe(1))):
        loop = attribute(frame, "f_locals").get("self") if frame.f_code.co_name == _LOOP else None
        operation, is_retrying = getattr(loop, "_func", None), getattr(loop, "_is_retrying", None)
        if callable(operation) and callable(is_retrying):
            # The operation's function already has a connection. A checkout inside it is for something else.
            is_inside = getattr(operation, "__code__", None) in codes
            return None if is_inside else Attempt(operation, not is_retrying())
        codes.add(frame.f_code)
    return None


def _is_between(frame: types.FrameType) -> bool:
    """Whether a frame may be between the driver's loop and the listeners."""
    return bool(frame.f_globals.get("__name__", "").startswith(_BETWEEN))
