"""The listener for topologies: reports their changes, and begins and ends discoveries and outages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pymongo.errors import NotPrimaryError
from pymongo.monitoring import (
    TopologyClosedEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
    TopologyOpenedEvent,
)

from opentelemetry_mongo_events._driver.events_executor import balance, deliver_promptly
from opentelemetry_mongo_events._driver.listeners import ServersListener
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.difference import difference_between
from opentelemetry_mongo_events._servers.errors import error_attributes
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.outages import CLOSED, Cause, begin_discovery, begin_outage, end, watch
from opentelemetry_mongo_events._servers.reports import report
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import server_attributes

if TYPE_CHECKING:
    from collections.abc import Collection

    from pymongo.server_description import ServerDescription
    from pymongo.topology_description import TopologyDescription

    from opentelemetry_mongo_events._runtime.clock import Moment
    from opentelemetry_mongo_events._servers.difference import Difference
    from opentelemetry_mongo_events._servers.state import ServerState, ServerStates, TopologyState
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# Seconds. The driver publishes a failed checkout just before it marks the server as unknown.
_TOLERANCE: Final = 0.1


class TopologyEvents(NeverCopied, ServersListener, TopologyListener):
    """Tracks which servers a client has, and their types.

    There is no separate `ServerListener`, because the topology's descriptions contain those of its servers.

    Methods are called on the driver's thread, or in its task, that delivers the queued events. The first event makes
    the driver deliver all later ones within 0.05 s. Methods never raise.

    Args:
        guard: Counts and logs the failures of this listener.

    Attributes:
        servers: The state of the servers and topologies.
    """

    def __init__(self, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self.servers = servers

    @guarded
    def opened(self, event: TopologyOpenedEvent) -> None:
        """Add the topology. If a client has several listeners, the first one to see the topology reports it."""
        self.servers.topology(event.topology_id)
        deliver_promptly()

    @guarded
    def description_changed(self, event: TopologyDescriptionChangedEvent) -> None:
        """Update the topology's state, and report what changed."""
        topology = self.servers.topology(event.topology_id)
        before, after = event.previous_description, event.new_description
        if topology.has_description(after):
            return  # the client has this listener twice
        telemetry = self._telemetry(topology)
        difference = difference_between(before, after)
        was_available, previous_primary = topology.is_available, topology.primary
        topology.update(after)
        opened = [self.servers.join(server.address, topology) for server in difference.opened]
        unavailable = self._update_availability(topology, difference)
        if telemetry is not None:
            self._discover(topology, telemetry, opened, difference)
            # A topology's type becomes unknown again only when its client is closed.
            if was_available and not topology.is_available and after.topology_type_name != "Unknown":
                cause = Cause(_cause(difference), previous_primary)
                begin_outage(topology, telemetry, self.servers.switch, difference.when.at, unavailable, cause)
        _TopologyChange(topology, telemetry, difference.when).report(before, after, difference)
        if topology.is_available:
            if not was_available:
                topology.recover(difference.when.at)
            topology.is_discovered = True
            end(topology, difference.when.at, ended_by=[id(new.address) for _, new in difference.changed])
        watch()
        for server in difference.closed:
            self.servers.close_server(server.address)

    @guarded
    def closed(self, event: TopologyClosedEvent) -> None:
        """Forget the topology, and end its open discovery or outage."""
        topology = self.servers.topology(event.topology_id)
        if not topology.is_new:  # a client that is closed twice publishes this event twice
            _TopologyChange(topology, self._telemetry(topology)).report_closed()
        self.servers.close_topology(event.topology_id)
        balance()
        end(topology, time.monotonic(), CLOSED)

    def _update_availability(self, topology: TopologyState, difference: Difference) -> list[ServerState]:
        """Note which servers became unavailable or available; return all that are unavailable."""
        for before, after in difference.changed:
            server = self.servers.join(after.address, topology)
            if topology.can_use(after):
                server.unavailable_since = None
            elif topology.can_use(before):
                server.unavailable_since = difference.when.at
                if type(after.error).__name__ == "WaitQueueTimeoutError":  # up to PyMongo 4.10
                    server.unresponsive = (difference.when.at - _TOLERANCE, difference.when.at)
        for closed in difference.closed:
            if topology.can_use(closed):
                self.servers.server(closed.address).unavailable_since = difference.when.at
        return [server for server in topology.members.copy().values() if server.unavailable_since is not None]

    def _discover(
        self, topology: TopologyState, telemetry: Telemetry, opened: list[ServerState], difference: Difference
    ) -> None:
        """Begin the discovery: with the first heartbeat or, without a heartbeat listener, with the first change."""
        heartbeats = [server.first_heartbeat_at for server in opened if server.first_heartbeat_at is not None]
        # Behind a load balancer there is nothing to discover.
        if heartbeats or (difference.changed and topology.type != "LoadBalanced"):
            started = min(heartbeats, default=difference.when.at)
            begin_discovery(topology, telemetry, self.servers.switch, started)

    def _telemetry(self, topology: TopologyState) -> Telemetry | None:
        """Return where to report a topology, or None."""
        return None if topology.is_reported_by_another else self.servers.switch.of("topology")


def _cause(difference: Difference) -> str:
    """Return the class name of the error that made the last server unavailable."""
    for before, after in difference.changed:
        if after.error is not None:
            return type(after.error).__name__
        if before.is_writable and after.is_server_type_known:
            return NotPrimaryError.__name__  # a command would have failed with this error
    return names.OTHER  # the server is no longer part of the topology


class _TopologyChange:
    """A change of one topology, to be reported as metrics and background events.

    Args:
        topology: The topology.
        telemetry: Where to report the change; None to only keep its events for the topology's discovery or outage.
        when: When the topology changed; None for now.
    """

    __slots__ = ("_telemetry", "_topology", "_when")

    def __init__(self, topology: TopologyState, telemetry: Telemetry | None, when: Moment | None = None) -> None:
        self._topology = topology
        self._telemetry = telemetry
        self._when = when

    def report(self, before: TopologyDescription, after: TopologyDescription, difference: Difference) -> None:
        """Report each difference, in the order in which the driver detects them."""
        types = before.topology_type_name, after.topology_type_name
        is_first = self._topology.is_new and bool(difference.opened)
        if is_first:
            self._topology.is_new = False
            self._report(names.TOPOLOGY_OPENED, {})
            self._report_type(*types)
        for old, new in difference.changed:
            self._report_server_type(old, new)
        for server in difference.opened:
            self._report(names.SERVER_OPENED, server_attributes(server.address))
        for server in difference.closed:
            self._report(names.SERVER_CLOSED, server_attributes(server.address))
        if not is_first:
            self._report_type(*types)

    def report_closed(self) -> None:
        """Report that the topology was closed."""
        self._report(names.TOPOLOGY_CLOSED, {})

    def _report_type(self, previous_type: str, new_type: str) -> None:
        """Report the topology's type, if it changed."""
        if previous_type == new_type:
            return
        topology = self._topology
        if self._telemetry is not None:
            self._telemetry.instruments.add(
                names.MONGODB_CLIENT_TOPOLOGY_CHANGES, topology.replica_set, previous_type, new_type
            )
        self._report(
            names.TOPOLOGY_CHANGED,
            {names.TOPOLOGY_PREVIOUS_TYPE: previous_type, names.TOPOLOGY_TYPE: new_type},
            list(topology.members),
            is_warning=(previous_type, new_type) == ("ReplicaSetWithPrimary", "ReplicaSetNoPrimary"),
        )

    def _report_server_type(self, old: ServerDescription, new: ServerDescription) -> None:
        """Report a server whose type changed."""
        attributes = server_attributes(new.address)
        types = (old.server_type_name, new.server_type_name)
        if self._telemetry is not None:
            self._telemetry.instruments.add(names.MONGODB_CLIENT_SERVER_CHANGES, *new.address, *types)
        attributes |= {names.SERVER_PREVIOUS_TYPE: types[0], names.SERVER_TYPE: types[1]}
        if new.error is not None:
            attributes |= error_attributes(new.error)
        self._report(
            names.SERVER_CHANGED,
            attributes,
            (id(new.address),),
            server=id(new.address),
            is_warning=old.is_writable and not new.is_writable,
        )

    def _report(
        self,
        name: str,
        attributes: Attributes,
        addresses: Collection[int] = (),
        *,
        server: int | None = None,
        is_warning: bool = False,
    ) -> None:
        """Report one background event.

        Args:
            name: The event's name.
            attributes: The event's attributes, without the topology's.
            addresses: The `id()`s of the addresses of the servers whose open commands the event may explain.
            server: The `id()` of the server's address, if the event concerns one server.
            is_warning: Whether its log record has the severity `WARN`, not `INFO`.
        """
        background_event = BackgroundEvent(
            name, attributes | self._topology.attributes, self._when, server=server, is_warning=is_warning
        )
        self._topology.note(background_event)
        report(background_event, self._telemetry, self._topology, addresses)
