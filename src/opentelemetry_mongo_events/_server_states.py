"""What a client knows of its servers, by its heartbeats and by what its topologies tell."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry_mongo_events._attributes import server_attributes
from opentelemetry_mongo_events._identity import Identity, identity
from opentelemetry_mongo_events._process_state import keep_track, living

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId
    from pymongo.topology_description import TopologyDescription

    from opentelemetry_mongo_events._attributes import Address
    from opentelemetry_mongo_events._telemetry import Switch


class ServerState:
    """One server, as one client's monitor sees it.

    Attributes:
        identity: The driver's own tuple: another one in each client.
        attributes: Those of its metrics: host and port.
        round_trip: How many seconds its last heartbeat took that wasn't awaited; None before the first.
        others: The switches of other listeners which saw it first.
    """

    __slots__ = ("attributes", "identity", "others", "round_trip")

    def __init__(self, identity: Identity, others: Sequence[Switch]) -> None:
        self.identity = identity
        self.attributes = server_attributes(identity.address)
        self.round_trip: float | None = None
        self.others = others

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which saw this server first, reports its heartbeats."""
        return any(switch.of("heartbeats") for switch in self.others)


class TopologyState:
    """One client's servers.

    Attributes:
        servers: How many there are of each type.
        replica_set: The set's name, if it is one.
        others: The switches of other listeners which saw it first.
    """

    __slots__ = ("_settings", "others", "replica_set", "servers")

    def __init__(self, others: Sequence[Switch]) -> None:
        self._settings: weakref.ref[Any] | None = None
        self.servers: Counter[str] = Counter()
        self.replica_set: str | None = None
        self.others = others

    def change(self, description: TopologyDescription) -> None:
        """Take what it is now. The description itself isn't kept."""
        servers = description.server_descriptions().values()
        self.servers = Counter(server.server_type_name for server in servers)
        self.replica_set = description.replica_set_name
        # A direct connection has a set's name too, and no primary; nor has a client that nobody has used yet.
        if description.topology_type_name.startswith("ReplicaSet") and any(
            server.is_server_type_known or server.error is not None for server in servers
        ):
            self.servers["RSPrimary"] += 0  # a set without one says so
        # A client that is garbage-collected publishes nothing. Its settings go with it.
        settings = getattr(description, "_topology_settings", None)
        self._settings = None if settings is None else weakref.ref(settings)

    @property
    def is_over(self) -> bool:
        """Whether its client was garbage-collected."""
        return self._settings is not None and self._settings() is None

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which saw this topology first, reports it."""
        return any(switch.of("topology") for switch in self.others)


class ServerStates:
    """The servers and topologies that one list of listeners sees."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self._servers: dict[int, ServerState] = {}
        self._topologies: dict[ObjectId, TopologyState] = {}
        keep_track(self)

    def server(self, address: Address) -> ServerState:
        """The server with that address."""
        server = self._servers.get(id(address))
        if server is None:
            self._sweep()
            others = [each.switch for each in living(ServerStates) if each is not self and id(address) in each._servers]
            server = self._servers[id(address)] = ServerState(identity(address), others)
        return server

    def close_server(self, address: Address) -> None:
        """The client has it no more."""
        self._servers.pop(id(address), None)

    def topology(self, topology_id: ObjectId) -> TopologyState:
        """The topology with that id."""
        topology = self._topologies.get(topology_id)
        if topology is None:
            self._sweep()
            others = [
                each.switch for each in living(ServerStates) if each is not self and topology_id in each._topologies
            ]
            topology = self._topologies[topology_id] = TopologyState(others)
        return topology

    def close_topology(self, topology_id: ObjectId) -> None:
        """Its client was closed."""
        self._topologies.pop(topology_id, None)

    def servers(self) -> list[ServerState]:
        """All servers."""
        self._sweep()
        return list(self._servers.values())

    def topologies(self) -> list[TopologyState]:
        """All topologies."""
        self._sweep()
        return list(self._topologies.values())

    def forget(self) -> None:
        """Drop all: after a fork they are the parent's."""
        self._servers = {}
        self._topologies = {}

    def _sweep(self) -> None:
        for key, server in self._servers.copy().items():
            if server.identity.is_alone:
                self._servers.pop(key, None)
        for topology_id, topology in self._topologies.copy().items():
            if topology.is_over:
                self._topologies.pop(topology_id, None)
