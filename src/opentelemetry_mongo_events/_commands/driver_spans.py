"""PyMongo's own operation spans: adds to them what would be on the command spans that this package doesn't create.

An operation span covers all commands of one call of the driver, and is the current span while they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import Span, get_current_span

from opentelemetry_mongo_events._telemetry.other_tracers import is_driver_span
from opentelemetry_mongo_events._telemetry.semconv import ATTEMPT, SELECTION_WAIT_TIME, WAIT_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry_mongo_events._servers.events import BackgroundEvent


def current_operation_span() -> Span | None:
    """Return the driver's span of the current operation; None if there is none, or it isn't recorded.

    Runs on the thread, or in the task, of the command.
    """
    span = get_current_span()
    return span if is_driver_span(span) and span.is_recording() else None


def add_waits_and_attempt(span: Span, wait_time: float | None, selection_wait_time: float | None, attempt: int) -> None:
    """Add what is known of a command when it starts. Runs on the thread, or in the task, of the command.

    Args:
        span: The operation span.
        wait_time: The seconds that the command waited for its connection; None if it didn't.
        selection_wait_time: The seconds that it waited for its server; None if it didn't.
        attempt: The number of the attempt, from 1.
    """
    if wait_time is not None:
        span.set_attribute(WAIT_TIME, round(_present(span, WAIT_TIME) + wait_time, 6))
    if selection_wait_time is not None:
        span.set_attribute(SELECTION_WAIT_TIME, round(_present(span, SELECTION_WAIT_TIME) + selection_wait_time, 6))
    if attempt > 1:
        # An operation may send several commands, each with its own attempts.
        span.set_attribute(ATTEMPT, max(_present(span, ATTEMPT), attempt))


def add_events(span: Span, background_events: Iterable[BackgroundEvent]) -> None:
    """Add the events of a command's server when the command has ended, unless the span has ended before."""
    if span.is_recording():
        for background_event in background_events:
            background_event.add_to(span)


def _present(span: Span, name: str) -> float:
    """Return the number that an earlier command of the operation has set; 0 if there is none."""
    # The API's spans can only be written; the SDK's can be read.
    value = (getattr(span, "attributes", None) or {}).get(name)
    return value if isinstance(value, int | float) else 0
