"""Servers and topologies as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pymongo.monitoring import (
    ServerClosedEvent,
    ServerDescriptionChangedEvent,
    ServerListener,
    ServerOpeningEvent,
    TopologyClosedEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
    TopologyOpenedEvent,
)

from opentelemetry_mongo_events import _semconv as names
from opentelemetry_mongo_events._guard import Guard, guarded
from opentelemetry_mongo_events._log import warn

if TYPE_CHECKING:
    from opentelemetry_mongo_events._server_states import ServerStates, TopologyState
    from opentelemetry_mongo_events._telemetry import Telemetry

# Each server costs up to three events when it is found, and two when it is lost.
_MANY: Final = 20


class ServerEvents(ServerListener):
    """Counts how often servers change their type.

    Runs on a thread, or in a task, of the driver's that hands the events over about once a second; never raises.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._servers = servers

    def opened(self, event: ServerOpeningEvent) -> None:
        """Nothing to note."""

    @guarded
    def description_changed(self, event: ServerDescriptionChangedEvent) -> None:
        """Count a change of the type: a server that stays unknown is published at each failure."""
        before, after = event.previous_description.server_type_name, event.new_description.server_type_name
        telemetry = _telemetry(self._servers, self._servers.topology(event.topology_id))
        if before != after and telemetry is not None:
            host, port = event.server_address
            telemetry.instruments.add(names.MONGODB_CLIENT_SERVER_CHANGES, host, port, before, after)

    @guarded
    def closed(self, event: ServerClosedEvent) -> None:
        """Forget it."""
        self._servers.close_server(event.server_address)


class TopologyEvents(TopologyListener):
    """Follows which servers a client has, and counts how often the topology changes its type.

    Runs on a thread, or in a task, of the driver's that hands the events over about once a second; never raises.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._servers = servers
        self._warned = False

    @guarded
    def opened(self, event: TopologyOpenedEvent) -> None:
        """Know it, so that the first listener which sees it reports it."""
        self._servers.topology(event.topology_id)

    @guarded
    def description_changed(self, event: TopologyDescriptionChangedEvent) -> None:
        """Take what it is now; count a change of its type."""
        topology = self._servers.topology(event.topology_id)
        topology.change(event.new_description)
        servers = sum(topology.servers.values())
        if servers > _MANY:
            self._warn(servers)
        before, after = event.previous_description.topology_type_name, event.new_description.topology_type_name
        telemetry = _telemetry(self._servers, topology)
        if before != after and telemetry is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_TOPOLOGY_CHANGES, topology.replica_set, before, after)

    def _warn(self, servers: int) -> None:
        if self._warned:
            return
        self._warned = True
        warn(
            "a topology has %s servers. PyMongo queues at most 100 events of servers and topologies for their "
            "listeners, and waits when the queue is full: where many servers change at once, an AsyncMongoClient may "
            "stand still. The option topology=False keeps these listeners off (this is logged once)",
            servers,
        )

    @guarded
    def closed(self, event: TopologyClosedEvent) -> None:
        """Forget it."""
        self._servers.close_topology(event.topology_id)


def _telemetry(servers: ServerStates, topology: TopologyState) -> Telemetry | None:
    """Where a topology is reported, if anywhere."""
    return None if topology.is_reported_by_another else servers.switch.of("topology")
