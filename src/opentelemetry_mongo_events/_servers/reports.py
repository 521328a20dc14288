"""Where an event of a server is reported: on open command spans, in the log pipeline.

It belongs to no request, so nothing here looks at the current span or context: a driver's task has a stranger's.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._servers.outages import background_worker
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._servers.state import TopologyState
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


class Subscriber(Protocol):
    """What wants to know of events."""

    def note(self, incident: BackgroundEvent, addresses: Collection[int]) -> None:
        """Something happened to the servers with those addresses. Runs on any thread, also under the driver's locks."""


_subscribers: Final[dict[weakref.ref[Subscriber], None]] = {}


def subscribe(subscriber: Subscriber) -> None:
    """Tell `subscriber` of events, for as long as it lives."""
    # One operation of a dictionary each: a thread may come or go while another one looks.
    _subscribers[weakref.ref(subscriber, lambda gone: _subscribers.pop(gone, None))] = None


def land(
    incident: BackgroundEvent,
    telemetry: Telemetry | None,
    topology: TopologyState | None,
    addresses: Collection[int] = (),
) -> None:
    """Bring an incident to open command spans and into the log pipeline; an episode has it by its topology's note.

    Runs on any thread, also where the driver holds locks: nothing is called here that could wait.

    Args:
        incident: What happened.
        telemetry: Where it goes; None where nothing does.
        topology: Whose episode, if one is open, a log record is part of.
        addresses: The identities of the addresses of those servers whose open commands it explains.
    """
    if telemetry is None:
        return
    if addresses and telemetry.config.events in SPAN_EVENTS:
        for reference in list(_subscribers):
            subscriber = reference()
            if subscriber is not None:
                subscriber.note(incident, addresses)
    if telemetry.logger is not None:
        episode = None if topology is None else topology.period
        background_worker.emit(incident.record(telemetry.logger, NO_PARENT if episode is None else episode.context))
