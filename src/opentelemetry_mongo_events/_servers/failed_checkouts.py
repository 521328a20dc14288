"""Failed checkouts, after which the driver repeats an operation: kept for the command of the next attempt.

If no connection can be checked out, no command is sent. The command of the next attempt reports the number of the
attempt, and how long all of the checkouts took.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.operations import current_attempt

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

# A command links to at most this number of failed checkouts, the most recent ones.
_MAX_SPANS: Final = 16


class _State(Enum):
    """The state of the operation's last checkout."""

    FAILED = 1
    STARTED = 2
    SUCCEEDED = 3


class FailedCheckouts(NamedTuple):
    """The consecutive failed checkouts of one operation.

    Attributes:
        operation: A weak reference to the operation.
        follow_command: Whether the operation had sent a command before. If not, the first failed checkout was its first
            attempt.
        state: The state of the operation's last checkout.
        event_id: The `id()` of the event of the last failure.
        number: The number of failed checkouts.
        seconds: Their total duration.
        spans: The recorded spans of the last of them.
    """

    operation: weakref.ref[Any]
    follow_command: bool
    state: _State
    event_id: int
    number: int
    seconds: float
    spans: tuple[SpanContext, ...] = ()


_failed: ContextVar[FailedCheckouts | None] = ContextVar("opentelemetry_mongo_events_failed_checkouts", default=None)

failed_before: Final = _failed.get
"""Returns the previous failed checkouts of the current thread or task, or None. None is the usual case.

If it is None, `checkout_succeeded()` need not be called.
"""


# If a client has several listeners, these functions are called more than once for the same event. Only the first call
# has an effect.


def checkout_started(failed: FailedCheckouts) -> None:
    """Note that a checkout starts in the current thread or task, which had failed checkouts before.

    Args:
        failed: The failed checkouts. They are discarded unless the driver is retrying their operation.
    """
    attempt = None if failed.state is _State.SUCCEEDED else current_attempt()
    is_repeated = attempt is not None and failed.operation() is attempt.operation
    _failed.set(failed._replace(state=_State.STARTED) if is_repeated else None)


def checkout_failed(event: object, seconds: float) -> None:
    """Note that a checkout of the current thread or task failed.

    Args:
        event: The driver's event.
        seconds: The duration of the checkout.
    """
    failed = _failed.get()
    if failed is None:
        attempt = current_attempt()
        if attempt is not None:
            new = FailedCheckouts(
                weakref.ref(attempt.operation), not attempt.is_first, _State.FAILED, id(event), 1, seconds
            )
            _failed.set(new)
    elif failed.state is _State.STARTED:
        number, seconds = failed.number + 1, failed.seconds + seconds
        _failed.set(failed._replace(state=_State.FAILED, event_id=id(event), number=number, seconds=seconds))


def add_span(event: object, span: SpanContext) -> None:
    """Add the span of a failed checkout.

    Args:
        event: The driver's event. `checkout_failed()` must have been called with it.
        span: The span.
    """
    failed = _failed.get()
    if failed is not None and failed.state is _State.FAILED and failed.event_id == id(event):
        _failed.set(failed._replace(spans=(*failed.spans, span)[-_MAX_SPANS:]))


def checkout_succeeded() -> FailedCheckouts | None:
    """Note that the current thread or task has checked out a connection.

    Returns:
        The failed checkouts of the same operation right before this one; None if there are none.
    """
    failed = _failed.get()
    if failed is None or failed.state is _State.FAILED:
        return None
    _failed.set(failed._replace(state=_State.SUCCEEDED))
    return failed
