"""Servers and topologies as metrics, incidents and episodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pymongo.monitoring import (
    TopologyClosedEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
    TopologyOpenedEvent,
)

from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._servers.difference import difference_between
from opentelemetry_mongo_events._servers.errors import error_attributes
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.outages import begin_discovery, begin_outage, end, watch
from opentelemetry_mongo_events._servers.reports import land
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import server_attributes

if TYPE_CHECKING:
    from collections.abc import Collection

    from pymongo.server_description import ServerDescription
    from pymongo.topology_description import TopologyDescription

    from opentelemetry_mongo_events._servers.difference import Difference
    from opentelemetry_mongo_events._servers.state import ServerState, ServerStates, TopologyState
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# One that dies may be four changes within a second, and the driver's queue holds 100.
_MANY: Final = 25


class TopologyEvents(NeverCopied, TopologyListener):
    """Follows which servers a client has, and what they are.

    There is no `ServerListener` beside it: a topology's descriptions hold those of its servers, so all that it would be
    told is in them. The driver's queue for both is short and waits when it is full: this takes the fewest places in it.

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
        """Take what it is now, and tell what is different."""
        topology = self._servers.topology(event.topology_id)
        before, after = event.previous_description, event.new_description
        if topology.has_description(after):
            return  # the client has this listener twice
        telemetry = self._telemetry(topology)
        difference = difference_between(before, after)
        served = topology.serves
        topology.describe(after)
        found = [self._servers.join(server.address, topology) for server in difference.opened]
        lost = self._lost(topology, difference)
        if telemetry is not None:
            self._discover(topology, telemetry, found, difference)
            # A topology is of an unknown type again only when its client is closed.
            if served and not topology.serves and after.topology_type_name != "Unknown":
                begin_outage(topology, telemetry, self._servers.switch, difference.when.at, lost)
        self._tell(topology, telemetry, before, after, difference)
        if topology.serves:
            if not served:
                topology.recover(difference.when.at)
            topology.is_discovered = True
            end(topology, difference.when.at, ended_by=[id(new.address) for _, new in difference.changed])
        watch()
        for server in difference.closed:
            self._servers.close_server(server.address)
        if len(topology.members) > _MANY:
            self._warn(len(topology.members))

    @guarded
    def closed(self, event: TopologyClosedEvent) -> None:
        """Forget it; what it is going through ends with it."""
        topology = self._servers.topology(event.topology_id)
        if not topology.is_new:  # a client that is closed twice says so twice
            self._report(names.TOPOLOGY_CLOSED, {}, topology, self._telemetry(topology))
        self._servers.close_topology(event.topology_id)
        end(topology, time.monotonic(), "closed")

    def _lost(self, topology: TopologyState, difference: Difference) -> list[ServerState]:
        """Note which servers can't be used any more, or again; all that can't."""
        for before, after in difference.changed:
            server = self._servers.join(after.address, topology)
            if topology.uses(after):
                server.unavailable_since = None
            elif topology.uses(before):
                server.unavailable_since = difference.when.at
        for gone in difference.closed:
            if topology.uses(gone):
                self._servers.server(gone.address).unavailable_since = difference.when.at
        return [server for server in topology.members.copy().values() if server.unavailable_since is not None]

    def _tell(
        self,
        topology: TopologyState,
        telemetry: Telemetry | None,
        before: TopologyDescription,
        after: TopologyDescription,
        difference: Difference,
    ) -> None:
        """Tell each difference, in the order in which the driver finds them."""
        types = before.topology_type_name, after.topology_type_name
        is_first = topology.is_new and bool(difference.opened)
        if is_first:
            topology.is_new = False
            self._report(names.TOPOLOGY_OPENED, {}, topology, telemetry, difference)
            self._topology_changed(types, topology, telemetry, difference)
        for old, new in difference.changed:
            self._server_changed(old, new, topology, telemetry, difference)
        for server in difference.opened:
            self._report(names.SERVER_OPENED, server_attributes(server.address), topology, telemetry, difference)
        for server in difference.closed:
            self._report(names.SERVER_CLOSED, server_attributes(server.address), topology, telemetry, difference)
        if not is_first:
            self._topology_changed(types, topology, telemetry, difference)

    def _topology_changed(
        self, types: tuple[str, str], topology: TopologyState, telemetry: Telemetry | None, difference: Difference
    ) -> None:
        if types[0] == types[1]:
            return
        if telemetry is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_TOPOLOGY_CHANGES, topology.replica_set, *types)
        self._report(
            names.TOPOLOGY_CHANGED,
            {names.TOPOLOGY_PREVIOUS_TYPE: types[0], names.TOPOLOGY_TYPE: types[1]},
            topology,
            telemetry,
            difference,
            list(topology.members),
            is_warning=types == ("ReplicaSetWithPrimary", "ReplicaSetNoPrimary"),
        )

    def _server_changed(
        self,
        old: ServerDescription,
        new: ServerDescription,
        topology: TopologyState,
        telemetry: Telemetry | None,
        difference: Difference,
    ) -> None:
        attributes = server_attributes(new.address)
        types = (old.server_type_name, new.server_type_name)
        if telemetry is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_SERVER_CHANGES, *new.address, *types)
        attributes |= {names.SERVER_PREVIOUS_TYPE: types[0], names.SERVER_TYPE: types[1]}
        if new.error is not None:
            attributes |= error_attributes(new.error)
        self._report(
            names.SERVER_CHANGED,
            attributes,
            topology,
            telemetry,
            difference,
            (id(new.address),),
            server=id(new.address),
            is_warning=old.is_writable and not new.is_writable,
        )

    def _report(
        self,
        name: str,
        attributes: Attributes,
        topology: TopologyState,
        telemetry: Telemetry | None,
        difference: Difference | None = None,
        addresses: Collection[int] = (),
        *,
        server: int | None = None,
        is_warning: bool = False,
    ) -> None:
        when = None if difference is None else difference.when
        incident = BackgroundEvent(name, attributes | topology.attributes, when, server=server, is_warning=is_warning)
        topology.note(incident)
        land(incident, telemetry, topology, addresses)

    def _discover(
        self, topology: TopologyState, telemetry: Telemetry, found: list[ServerState], difference: Difference
    ) -> None:
        """Begin the discovery with the first heartbeat; where these are not observed, with what is known first."""
        heard = [server.first_heartbeat_at for server in found if server.first_heartbeat_at is not None]
        # There is nothing to discover behind a load balancer.
        if heard or (difference.changed and topology.type != "LoadBalanced"):
            begin_discovery(topology, telemetry, self._servers.switch, min(heard, default=difference.when.at))

    def _warn(self, servers: int) -> None:
        if self._warned:
            return
        self._warned = True
        warn(
            "a topology has %s servers. PyMongo queues at most 100 changes for its listeners, and a server that dies "
            "may be four within a second: where more than 25 die at once, an AsyncMongoClient may stand still for "
            "good, a MongoClient for a second or two. The option topology=False keeps these listeners off (this is "
            "logged once)",
            servers,
        )

    def _telemetry(self, topology: TopologyState) -> Telemetry | None:
        """Where a topology is reported, if anywhere."""
        return None if topology.is_reported_by_another else self._servers.switch.of("topology")
