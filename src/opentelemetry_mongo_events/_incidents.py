"""What happens in the background, and where it lands: on open command spans, in an episode, in the log pipeline.

It belongs to no request, so nothing here looks at the current span or context: a driver's task has a stranger's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from opentelemetry._logs import SeverityNumber

from opentelemetry_mongo_events._clock import moment
from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._guard import Guard
from opentelemetry_mongo_events._open_commands import OpenCommands
from opentelemetry_mongo_events._process_state import keep_track, living
from opentelemetry_mongo_events._telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry._logs import Logger
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from opentelemetry_mongo_events._attributes import Attributes
    from opentelemetry_mongo_events._clock import Moment
    from opentelemetry_mongo_events._server_states import TopologyState
    from opentelemetry_mongo_events._telemetry import Telemetry


class Incident:
    """Something that happened in the background.

    Attributes:
        name: The event's name.
        attributes: The event's attributes.
        at: When, by `time.monotonic()`.
        nanoseconds: When, since the epoch.
        server: The identity of its server's address, if it is one server's.
        is_warning: Whether it is bad news.
    """

    __slots__ = ("at", "attributes", "is_warning", "name", "nanoseconds", "server")

    def __init__(
        self,
        name: str,
        attributes: Attributes,
        when: Moment | None = None,
        *,
        server: int | None = None,
        is_warning: bool = False,
    ) -> None:
        self.name = name
        self.attributes = attributes
        self.at, self.nanoseconds = moment() if when is None else when
        self.server = server
        self.is_warning = is_warning

    def add_to(self, span: Span, nanoseconds: int | None = None) -> None:
        """Add it to a span as an event, with its own time or another one."""
        span.add_event(self.name, self.attributes, self.nanoseconds if nanoseconds is None else nanoseconds)

    def log(self, logger: Logger, context: Context) -> None:
        """Emit it as a log record with an event name."""
        severity = SeverityNumber.WARN if self.is_warning else SeverityNumber.INFO
        logger.emit(
            timestamp=self.nanoseconds,
            observed_timestamp=time.time_ns(),
            context=context,
            severity_number=severity,
            severity_text=severity.name,
            attributes=self.attributes,
            event_name=self.name,
        )


class _HandedOn:
    """Log records that could not be emitted where they were made, for whoever comes next."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.emitting = threading.local()
        self.records: deque[tuple[Incident, Logger, Context]] = deque(maxlen=1_000)

    def forget(self) -> None:
        """After a fork they are the parent's."""
        self.records = deque(maxlen=1_000)


_handed_on: Final = _HandedOn()


def land(
    incident: Incident,
    telemetry: Telemetry | None,
    topology: TopologyState | None,
    addresses: Collection[int] = (),
    *,
    under_locks: bool = False,
) -> None:
    """Bring an incident to open command spans and into the log pipeline; an episode has it by its topology's note.

    Args:
        incident: What happened.
        telemetry: Where it goes; None where nothing does.
        topology: Whose episode, if one is open, a log record is part of.
        addresses: The identities of the addresses of those servers whose open commands it explains.
        under_locks: Whether the driver holds locks, so that nothing may be called here that could wait.
    """
    if telemetry is None:
        return
    if addresses and telemetry.config.events in SPAN_EVENTS:
        for table in living(OpenCommands):
            for command in table.on(addresses):
                command.note(incident)
    if telemetry.logger is None:
        return
    episode = None if topology is None else topology.episode
    keep_track(_handed_on)
    _handed_on.records.append((incident, telemetry.logger, NO_PARENT if episode is None else episode.context))
    if not under_locks:
        hand_over()


def hand_over() -> None:
    """Emit the log records that had to wait. Runs wherever the driver holds no lock; never raises.

    A log pipeline that itself uses MongoDB comes back here, and may make more records: these wait for the next one.
    """
    records, emitting = _handed_on.records, _handed_on.emitting
    if not records or hasattr(emitting, "now"):
        return
    emitting.now = True
    try:
        for _ in range(len(records)):
            with contextlib.suppress(IndexError):  # another thread was quicker
                _handed_on.guard.run("a log record", Incident.log, *records.popleft())
    finally:
        del emitting.now
