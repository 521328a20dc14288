"""Background events: what happens to servers, topologies and pools outside of any command."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from opentelemetry._logs import SeverityNumber

from opentelemetry_mongo_events._runtime.clock import moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import Logger
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from opentelemetry_mongo_events._runtime.clock import Moment
    from opentelemetry_mongo_events._telemetry.attributes import Attributes


class BackgroundEvent:
    """Something that happened to a server, a topology or a pool in the background.

    Attributes:
        name: The event's name.
        attributes: The event's attributes.
        at: When it happened, by `time.monotonic()`.
        nanoseconds: When it happened, in nanoseconds since the epoch.
        server: The `id()` of the server's address, if the event concerns one server.
        is_warning: Whether its log record has the severity `WARN`, not `INFO`.
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
        """Add the event to a span, with its own time or with the given one."""
        span.add_event(self.name, self.attributes, self.nanoseconds if nanoseconds is None else nanoseconds)

    def record(self, logger: Logger, context: Context) -> Callable[[], None]:
        """Return a function that emits the event, with its current attributes, as a log record."""
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
