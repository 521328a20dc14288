"""Heartbeats as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo.monitoring import (
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
)

from opentelemetry_mongo_events import _semconv as names
from opentelemetry_mongo_events._driver import is_cancelled_heartbeat
from opentelemetry_mongo_events._guard import Guard, guarded
from opentelemetry_mongo_events._telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry_mongo_events._attributes import Attributes
    from opentelemetry_mongo_events._server_states import ServerState, ServerStates


class HeartbeatEvents(ServerHeartbeatListener):
    """Measures heartbeats. Runs on the thread, or in the task, of a server's monitor; never raises.

    A monitor's task copied the context of whoever used the client first, so nothing here looks at the current one.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._servers = servers

    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Nothing to note."""

    @guarded
    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        """Measure it. One that was awaited lasts as long as the server waited for news, and is no round trip."""
        server = self._servers.server(event.connection_id)
        if not event.awaited:
            server.round_trip = max(0.0, event.duration)
        self._measure(event, server, {})

    @guarded
    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """Measure it, with the class of the error; one that the driver gave up by itself is none."""
        if is_cancelled_heartbeat(event):
            return
        server = self._servers.server(event.connection_id)
        self._measure(event, server, {names.ERROR_TYPE: type(event.reply).__name__})

    def _measure(
        self, event: ServerHeartbeatSucceededEvent | ServerHeartbeatFailedEvent, server: ServerState, error: Attributes
    ) -> None:
        telemetry = self._servers.switch.of("heartbeats")
        if telemetry is None or server.is_reported_by_another:
            return
        telemetry.instruments.heartbeat_duration.record(
            max(0.0, event.duration),
            server.attributes | {names.HEARTBEAT_AWAITED: bool(event.awaited)} | error,
            NO_PARENT,
        )
