"""What happens in the background, and where it lands: on open command spans, in an episode, in the log pipeline.

It belongs to no request, so nothing here looks at the current span or context: a driver's task has a stranger's.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from opentelemetry._logs import SeverityNumber

from opentelemetry_mongo_events._commands.open_commands import OpenCommands
from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._runtime.process import living
from opentelemetry_mongo_events._servers.outages import keeper
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry._logs import Logger
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from opentelemetry_mongo_events._commands.description import Attributes
    from opentelemetry_mongo_events._runtime.clock import Moment
    from opentelemetry_mongo_events._servers.state import TopologyState
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


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

    def record(self, logger: Logger, context: Context) -> Callable[[], None]:
        """What emits it, as it is known now, as a log record with an event name."""
        severity = SeverityNumber.WARN if self.is_warning else SeverityNumber.INFO
        return functools.partial(
            logger.emit,
            timestamp=self.nanoseconds,
            observed_timestamp=time.time_ns(),
            context=context,
            severity_number=severity,
            severity_text=severity.name,
            attributes=self.attributes,
            event_name=self.name,
        )


def land(
    incident: Incident,
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
        for table in living(OpenCommands):
            for command in table.on(addresses):
                command.note(incident)
    if telemetry.logger is not None:
        episode = None if topology is None else topology.episode
        keeper.emit(incident.record(telemetry.logger, NO_PARENT if episode is None else episode.context))
