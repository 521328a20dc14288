"""Failed checkouts, after which the driver repeats an operation: kept for the command of the next attempt.

No command is sent if no connection can be checked out. The command of the next attempt reports that it isn't the first
one, and how long all of the checkouts took.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.operations import current_attempt

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

# The number of failed checkouts to which a command links: the last ones.
_MAX_SPANS: Final = 16


class _State(Enum):
    """What the operation's last checkout did."""

    FAILED = 1
    STARTED = 2
    SUCCEEDED = 3


class FailedCheckouts(NamedTuple):
    """The checkouts of one operation that failed, one after another.

    Attributes:
        operation: Refers to the operation, without keeping it.
        follow_command: Whether the operation had sent a command before. If not, the first of these was its first
            attempt.
        state: What the operation's last checkout did.
        event_id: The `id()` of the event of the last failure.
        number: How many there are.
        seconds: How long they took together.
        spans: The spans of the last ones. One that has no span, or whose span isn't recorded, is left out.
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
"""Returns the failed checkouts that the current thread or task had before; None if there are none, as usual.

Then `checkout_succeeded()` need not be called.
"""


# A client may have several listeners, which call these functions with the same event, one after another. So a second
# call has no effect.


def checkout_started(failed: FailedCheckouts) -> None:
    """Note that the current thread or task, which had failed checkouts before, starts to check out a connection.

    Args:
        failed: The failed checkouts. They are discarded unless the driver repeats their operation.
    """
    attempt = None if failed.state is _State.SUCCEEDED else current_attempt()
    is_repeated = attempt is not None and failed.operation() is attempt.operation
    _failed.set(failed._replace(state=_State.STARTED) if is_repeated else None)


def checkout_failed(event: object, seconds: float) -> None:
    """Note that a checkout of the current thread or task failed.

    Args:
        event: The driver's event.
        seconds: How long the checkout took.
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
        event: The driver's event, for which `checkout_failed()` was called before.
        span: The span.
    """
    failed = _failed.get()
    if failed is not None and failed.state is _State.FAILED and failed.event_id == id(event):
        _failed.set(failed._replace(spans=(*failed.spans, span)[-_MAX_SPANS:]))


def checkout_succeeded() -> FailedCheckouts | None:
    """Note that the current thread or task has checked out a connection.

    Returns:
        The checkouts of the same operation that failed right before; None if there are none.
    """
    failed = _failed.get()
    if failed is None or failed.state is _State.FAILED:
        return None
    _failed.set(failed._replace(state=_State.SUCCEEDED))
    return failed
