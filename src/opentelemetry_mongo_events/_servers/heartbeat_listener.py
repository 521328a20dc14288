"""Heartbeats as metrics, and as incidents where they fail."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pymongo.monitoring import (
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
)

from opentelemetry_mongo_events._driver.versions import is_cancelled_heartbeat
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.errors import error_attributes
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.outages import begin_discovery, mark_recovering, watch
from opentelemetry_mongo_events._servers.reports import land
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry_mongo_events._servers.state import ServerState, ServerStates
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


class HeartbeatEvents(NeverCopied, ServerHeartbeatListener):
    """Measures heartbeats. Runs on the thread, or in the task, of a server's monitor; never raises.

    A monitor's task copied the context of whoever used the client first, so nothing here looks at the current one.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._servers = servers

    @guarded
    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """The first one begins the discovery; if the topology isn't known by then, it will begin with it."""
        server = self._servers.heartbeat_from(event.connection_id)
        server.awaits_heartbeat = True
        topology = server.topology
        if topology is None or topology.is_discovered or topology.is_reported_by_another:
            return
        telemetry = self._servers.switch.of("topology")
        if telemetry is not None:
            begin_discovery(topology, telemetry, self._servers.switch, time.monotonic())
            watch()

    @guarded
    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        """Measure it. One that was awaited lasts as long as the server waited for news, and is no round trip."""
        server = self._servers.heartbeat_from(event.connection_id)
        if not server.answer():
            return
        if not event.awaited:
            server.round_trip = max(0.0, event.duration)
        topology = server.topology
        reply = event.reply
        is_usable = topology.uses(reply) if topology is not None else reply.is_writable or reply.is_readable
        server.answered_at = time.monotonic() if is_usable else None
        if topology is not None and is_usable:
            mark_recovering(topology)
        telemetry = self._measure(event, server, {})
        if server.is_failing is not False:
            server.is_failing = False
            self._report(names.HEARTBEAT_SUCCEEDED, event, server, telemetry)

    @guarded
    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """Measure it, with the class of the error; one that the driver gave up by itself is none."""
        if is_cancelled_heartbeat(event):
            return
        server = self._servers.heartbeat_from(event.connection_id)
        if not server.answer():
            return
        telemetry = self._measure(event, server, {names.ERROR_TYPE: type(event.reply).__name__})
        server.is_failing = True
        server.answered_at = None
        self._report(names.HEARTBEAT_FAILED, event, server, telemetry)

    def _measure(
        self, event: ServerHeartbeatSucceededEvent | ServerHeartbeatFailedEvent, server: ServerState, error: Attributes
    ) -> Telemetry | None:
        """Measure a heartbeat where it is reported, if anywhere."""
        telemetry = self._servers.switch.of("heartbeats")
        if telemetry is None or server.is_reported_by_another:
            return None
        self.guard.run(
            "a heartbeat's duration",
            telemetry.instruments.heartbeat_duration.record,
            max(0.0, event.duration),
            server.attributes | {names.HEARTBEAT_AWAITED: bool(event.awaited)} | error,
            NO_PARENT,
        )
        return telemetry

    def _report(
        self,
        name: str,
        event: ServerHeartbeatSucceededEvent | ServerHeartbeatFailedEvent,
        server: ServerState,
        telemetry: Telemetry | None,
    ) -> None:
        topology = server.topology
        attributes: Attributes = {
            **server.event_attributes,
            names.HEARTBEAT_DURATION: max(0.0, event.duration),
            names.HEARTBEAT_AWAITED: bool(event.awaited),
        }
        has_failed = isinstance(event, ServerHeartbeatFailedEvent)
        if has_failed:
            attributes |= error_attributes(event.reply)
        address = id(event.connection_id)
        incident = BackgroundEvent(name, attributes, server=address, is_warning=has_failed)
        server.note(incident)
        land(incident, telemetry, topology, (address,) if has_failed else ())
