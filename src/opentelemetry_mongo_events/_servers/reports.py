"""Reports background events on the spans of open commands, and as log records.

A background event belongs to no request. This module never reads the current span or context, because the driver's task
has a copy of an unrelated one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._servers.state import TopologyState
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


class Subscriber(Protocol):
    """An object that receives background events."""

    def note(self, background_event: BackgroundEvent, addresses: Collection[int], /) -> None:
        """Receive an event of the servers with these addresses.

        Called on any thread, possibly while the driver holds locks.

        Args:
            background_event: The event.
            addresses: The `id()`s of the servers' addresses.
        """


_subscribers: Final[dict[weakref.ref[Subscriber], None]] = {}


def subscribe(subscriber: Subscriber) -> None:
    """Send background events to `subscriber` for as long as it is alive."""
    # Adding and removing are one dictionary operation each: other threads may read the dictionary at the same time.
    _subscribers[weakref.ref(subscriber, lambda gone: _subscribers.pop(gone, None))] = None


def report(
    background_event: BackgroundEvent,
    telemetry: Telemetry | None,
    topology: TopologyState | None,
    addresses: Collection[int] = (),
) -> None:
    """Add an event to the spans of open commands, and emit it as a log record.

    Discoveries and outages receive their events from `TopologyState.note`, not from here.

    Called on any thread, possibly while the driver holds locks, so nothing here may block.

    Args:
        background_event: The event.
        telemetry: Where to report it; None to not report it.
        topology: The topology whose discovery or outage, if one is open, is the parent of the log record.
        addresses: The `id()`s of the addresses of the servers whose open commands the event may explain.
    """
    if telemetry is None:
        return
    if addresses and telemetry.config.events in SPAN_EVENTS:
        for reference in list(_subscribers):
            subscriber = reference()
            if subscriber is not None:
                subscriber.note(background_event, addresses)
    if telemetry.logger is not None:
        period = None if topology is None else topology.period
        context = NO_PARENT if period is None else period.context
        background_worker.submit("a log record", background_event.record(telemetry.logger, context))
