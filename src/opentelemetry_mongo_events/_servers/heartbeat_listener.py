"""The listener for heartbeats: measures them, and reports failures and recoveries as background events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pymongo.errors import NetworkTimeout
from pymongo.monitoring import (
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
)

from opentelemetry_mongo_events._driver.listeners import ServersListener
from opentelemetry_mongo_events._driver.versions import is_cancelled_heartbeat
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.errors import error_attributes
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.outages import begin_discovery, watch
from opentelemetry_mongo_events._servers.reports import report
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry_mongo_events._servers.state import ServerState, ServerStates
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


class HeartbeatEvents(NeverCopied, ServersListener, ServerHeartbeatListener):
    """Measures heartbeats, and reports failures and recoveries.

    Methods are called on the thread, or in the task, of a server's monitor. They never raise. They never read the
    current context, because a monitor's task has a copy of an unrelated one: that of the client's first caller.

    Args:
        servers: The state of the servers.
        guard: Counts and logs the failures of this listener.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._servers = servers

    @guarded
    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Begin the discovery with the first heartbeat.

        If the topology isn't known yet, `TopologyEvents` begins the discovery later, with this heartbeat's time.
        """
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
        """Measure the heartbeat, and report the first one, or the first one after a failure.

        An awaited heartbeat lasts until the server's state changes, so its duration is not a round trip time.
        """
        server = self._servers.heartbeat_from(event.connection_id)
        if not server.finish_heartbeat():
            return
        if not event.awaited:
            server.round_trip = max(0.0, event.duration)
        topology = server.topology
        reply = event.reply
        is_usable = topology.can_use(reply) if topology is not None else reply.is_writable or reply.is_readable
        if is_usable:
            server.answers.append(time.monotonic())
        else:
            server.answers.clear()
        telemetry = self._measure(event, server, {})
        if server.is_failing is not False:
            server.is_failing = False
            self._report(names.HEARTBEAT_SUCCEEDED, event, server, telemetry)

    @guarded
    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """Measure and report the heartbeat, unless the driver itself cancelled it."""
        if is_cancelled_heartbeat(event):
            return
        server = self._servers.heartbeat_from(event.connection_id)
        if not server.finish_heartbeat():
            return
        telemetry = self._measure(event, server, {names.ERROR_TYPE: type(event.reply).__name__})
        if isinstance(event.reply, NetworkTimeout):
            server.note_timeout(event.duration)
        server.is_failing = True
        server.answers.clear()
        self._report(names.HEARTBEAT_FAILED, event, server, telemetry)

    def _measure(
        self, event: ServerHeartbeatSucceededEvent | ServerHeartbeatFailedEvent, server: ServerState, error: Attributes
    ) -> Telemetry | None:
        """Record the heartbeat's duration. Return where to report the heartbeat, or None to not report it."""
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
        background_event = BackgroundEvent(name, attributes, server=address, is_warning=has_failed)
        server.note(background_event)
        report(background_event, telemetry, topology, (address,) if has_failed else ())
