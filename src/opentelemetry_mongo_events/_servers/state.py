"""What a client knows of its servers, by its heartbeats and by what its topologies tell."""

from __future__ import annotations

import contextlib
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.identity import Identity, identity
from opentelemetry_mongo_events._runtime.process import instances, take_over, track
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import server_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext
    from pymongo.hello import Hello
    from pymongo.server_description import ServerDescription
    from pymongo.topology_description import TopologyDescription

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Switch

_FAILURES: Final = 16
_EVENTS: Final = 128


class OngoingPeriod(ABC):
    """What a topology is going through: a discovery or an outage.

    Attributes:
        context: That of its span, for what is part of it.
    """

    __slots__ = ("context",)

    context: Context

    @abstractmethod
    def note(self, incident: BackgroundEvent) -> None:
        """Something happened in it. Runs on any thread."""

    @abstractmethod
    def add_failure(self, server: ServerState, failure: Failure) -> None:
        """A command, or a checkout, failed in it or shortly before. Runs on any thread."""


class Failure(NamedTuple):
    """A command or a checkout that failed as one does on a server that goes away: when, by `time.monotonic()`."""

    at: float
    span_context: SpanContext


class ServerState:
    """One server, as one client's monitor sees it.

    Times are those of `time.monotonic()`, as the driver's own.

    Attributes:
        identity: The driver's own tuple: another one in each client.
        attributes: Those of its metrics: host and port.
        first_heartbeat_at: When its first heartbeat started; None before.
        is_closed: Whether the client has it no more. A heartbeat may come after that.
        is_asked: Whether a heartbeat is on its way; None where none was seen to start.
        is_failing: Whether its last heartbeat failed; None before the first.
        answered_at: When its last heartbeat said that it can be used; None where it said otherwise.
        round_trip: How many seconds its last heartbeat took that wasn't awaited; None before the first.
        failures: The last commands and checkouts that failed on it.
        incidents: What happened to it before its topology was known.
        unavailable_since: When it could no longer be used, if it can't.
        topology: The topology it is part of, once that is known: the driver tells it up to a second late.
        others: The switches of other listeners which heard it first.
    """

    __slots__ = (
        "answered_at",
        "attributes",
        "awaits_heartbeat",
        "events",
        "failures",
        "first_heartbeat_at",
        "identity",
        "is_closed",
        "is_failing",
        "others",
        "round_trip",
        "topology",
        "unavailable_since",
    )

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.attributes = server_attributes(identity.address)
        self.first_heartbeat_at: float | None = None
        self.is_closed = False
        self.awaits_heartbeat: bool | None = None
        self.is_failing: bool | None = None
        self.answered_at: float | None = None
        self.round_trip: float | None = None
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        self.events: deque[BackgroundEvent] = deque(maxlen=_EVENTS)
        self.unavailable_since: float | None = None
        self.topology: TopologyState | None = None
        self.others: Sequence[Switch] = ()

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which heard this server first, reports its heartbeats."""
        return any(switch.of("heartbeats") for switch in self.others)

    @property
    def event_attributes(self) -> Attributes:
        """Those of its events: also which topology it is part of, once that is known."""
        topology = self.topology
        return self.attributes | ({} if topology is None else topology.attributes)

    def answer(self) -> bool:
        """A heartbeat has ended; False if that is known, or the client has it no more."""
        if self.is_closed or self.awaits_heartbeat is False:
            return False
        if self.awaits_heartbeat:
            self.awaits_heartbeat = False
        return True

    def note(self, incident: BackgroundEvent) -> None:
        """Keep what happened to it, for an episode that is open or found out about later."""
        if not self.is_closed:
            self.events.append(incident)
        topology = self.topology  # once: it may be closed meanwhile
        if topology is not None:
            self.hand_over(topology)

    def hand_over(self, topology: TopologyState) -> None:
        """Have its topology keep what happened to it. Its monitor and its topology's thread may come here at once."""
        with contextlib.suppress(IndexError):
            while True:
                incident = self.events.popleft()
                incident.attributes = incident.attributes | topology.attributes
                topology.note(incident)


class TopologyState:
    """One client's servers.

    Attributes:
        topology_id: The driver's own, as text.
        type: The driver's name of its type.
        servers: How many there are of each type.
        told: Of which replica sets and types that was told, each with the 0 that it is where there are none any more.
        members: Its servers, by the identity of their addresses.
        replica_set: The set's name, if it is one.
        is_closed: Whether its client was closed.
        serves: Whether it has a writable server, or, where it never had one, a readable one.
        is_discovered: Whether it ever did, and its discovery is over.
        incidents: What happened to it and its servers lately.
        episode: What it is going through, if anything.
        last_sign: When anything was heard of it.
        heartbeat_frequency: How many seconds the driver leaves between two heartbeats of a server; 0 where unknown.
        others: The switches of other listeners which saw it first.
        settings: The client's settings, which live as long as it does; None where they aren't known.
    """

    __slots__ = (
        "_described",
        "_had_writable",
        "events",
        "heartbeat_frequency",
        "is_closed",
        "is_discovered",
        "is_new",
        "last_sign",
        "members",
        "others",
        "period",
        "replica_set",
        "reported",
        "servers",
        "serves",
        "settings",
        "topology_id",
        "type",
    )

    def __init__(self, topology_id: ObjectId, others: Sequence[Switch]) -> None:
        self.settings: weakref.ref[Any] | None = None
        self._described: weakref.ref[TopologyDescription] | None = None
        self._had_writable = False
        self.topology_id = str(topology_id)
        self.type = "Unknown"
        self.servers: Counter[str] = Counter()
        self.reported: dict[tuple[str | None, str], int] = {}
        self.members: dict[int, ServerState] = {}
        self.replica_set: str | None = None
        self.is_closed = False
        self.serves = False
        self.is_discovered = False
        self.is_new = True
        """Whether nothing but its opening was told yet."""
        self.events: deque[BackgroundEvent] = deque(maxlen=_EVENTS)
        self.period: OngoingPeriod | None = None
        self.last_sign = time.monotonic()
        self.heartbeat_frequency = 0.0
        self.others = others

    def has_description(self, description: TopologyDescription) -> bool:
        """Whether that is what it is already."""
        return self._described is not None and self._described() is description

    def describe(self, description: TopologyDescription) -> None:
        """Take what it is now. The description itself isn't kept."""
        self.last_sign = time.monotonic()
        self._described = weakref.ref(description)
        self.type = description.topology_type_name
        servers = description.server_descriptions().values()
        known = Counter(server.server_type_name for server in servers)
        self.replica_set = description.replica_set_name
        # A direct connection has a set's name too, and no primary; nor has a client that nobody has used yet.
        if self.type.startswith("ReplicaSet") and (
            not servers or any(server.is_server_type_known or server.error is not None for server in servers)
        ):
            known["RSPrimary"] += 0  # a set without one says so
        self.servers = known
        # A client that is garbage-collected publishes nothing. Its settings go with it.
        settings = getattr(description, "_topology_settings", None)
        self.settings = None if settings is None else weakref.ref(settings)
        self.heartbeat_frequency = getattr(settings, "heartbeat_frequency", 0.0)
        self._had_writable |= any(server.is_writable for server in servers)
        self.serves = description.has_writable_server() or any(self.uses(server) for server in servers)

    def uses(self, server: ServerDescription | Hello[Any]) -> bool:
        """Whether a server is one of those that it can't do without."""
        return server.is_writable or (server.is_readable and not self._had_writable)

    def note(self, incident: BackgroundEvent) -> None:
        """Keep what happened to it, for an episode that is open or found out about later."""
        self.events.append(incident)
        episode = self.period
        if episode is not None:
            episode.note(incident)

    def recover(self, at: float) -> None:
        """It can serve again since then: what was lost before, and failed, has no part in its next outage."""
        for server in list(self.members.values()):
            server.unavailable_since = None
            with contextlib.suppress(IndexError):  # a client that is being closed empties it
                while server.failures[0].at <= at:
                    server.failures.popleft()

    @property
    def lacks_server(self) -> bool:
        """Whether it is without a server that it needs."""
        return not self.serves and not self.is_closed

    @property
    def attributes(self) -> Attributes:
        """Those of its events: which topology it is, and which set."""
        attributes: Attributes = {names.TOPOLOGY_ID: self.topology_id}
        if self.replica_set is not None:
            attributes[names.REPLICA_SET] = self.replica_set
        return attributes

    @property
    def is_gone(self) -> bool:
        """Whether its client was garbage-collected."""
        return self.settings is not None and self.settings() is None

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
        track(self)

    def heartbeat_from(self, address: Address) -> ServerState:
        """The server with that address, of which there is a heartbeat."""
        server = self.server(address)
        if server.first_heartbeat_at is None:
            server.others = [
                each.switch
                for each in instances(ServerStates)
                if each is not self
                and (seen := each.known(address)) is not None
                and seen.first_heartbeat_at is not None
            ]
            server.first_heartbeat_at = time.monotonic()
        topology = server.topology
        if topology is not None:
            topology.last_sign = time.monotonic()
        return server

    def server(self, address: Address) -> ServerState:
        """The server with that address."""
        server = self._servers.get(id(address))
        if server is None:
            self._sweep()
            # One operation of a dictionary: of several threads, one makes it.
            server = self._servers.setdefault(id(address), ServerState(identity(address)))
        return server

    def known(self, address: Address | None) -> ServerState | None:
        """The server with that address, if it was seen before."""
        return self._servers.get(id(address))

    def close_server(self, address: Address) -> None:
        """The client has it no more. It is forgotten once the driver has let go of its address."""
        server = self.server(address)
        server.is_closed = True
        server.events.clear()
        server.failures.clear()
        topology, server.topology = server.topology, None
        if topology is not None:
            topology.members.pop(id(address), None)

    def topology(self, topology_id: ObjectId) -> TopologyState:
        """The topology with that id."""
        take_over()
        topology = self._topologies.get(topology_id)
        if topology is None:
            self._sweep()
            others = [
                each.switch for each in instances(ServerStates) if each is not self and topology_id in each._topologies
            ]
            topology = self._topologies.setdefault(topology_id, TopologyState(topology_id, others))
        return topology

    def join(self, address: Address, topology: TopologyState) -> ServerState:
        """The server with that address, which is part of that topology."""
        server = self.server(address)
        server.is_closed = False
        server.topology = topology
        topology.members[id(address)] = server
        server.hand_over(topology)
        server.identity.owner = topology.settings
        return server

    def take_over(self, topology_id: ObjectId, description: TopologyDescription) -> None:
        """Know a topology, and its servers, that have been what they are for a while."""
        topology = self.topology(topology_id)
        topology.is_new = False
        topology.describe(description)
        topology.is_discovered = topology.serves
        for server in description.server_descriptions().values():
            self.join(server.address, topology)

    def take_over_server(self, description: ServerDescription) -> None:
        """Know how a server's last heartbeat went, and how long its round trip is."""
        server = self.server(description.address)
        server.round_trip = description.round_trip_time
        if description.is_server_type_known or description.error is not None:
            server.is_failing = description.error is not None

    def close_topology(self, topology_id: ObjectId) -> None:
        """Its client was closed."""
        topology = self.topology(topology_id)
        topology.is_closed = True
        self._topologies.pop(topology_id, None)
        for server in list(topology.members.copy().values()):
            self.close_server(server.identity.address)

    def servers(self) -> list[ServerState]:
        """All servers that its clients have."""
        self._sweep()
        return [server for server in self._servers.copy().values() if not server.is_closed]

    def topologies(self) -> list[TopologyState]:
        """All topologies."""
        self._sweep()
        return list(self._topologies.copy().values())

    def forget(self) -> None:
        """Drop all: after a fork they are the parent's."""
        self._servers = {}
        self._topologies = {}

    def _sweep(self) -> None:
        for key, server in self._servers.copy().items():
            if server.identity.is_unreferenced:
                self._servers.pop(key, None)
        for topology_id, topology in self._topologies.copy().items():
            if topology.is_gone:
                self._topologies.pop(topology_id, None)


def note_failure(address: Address | None, span_context: SpanContext) -> None:
    """A command or a checkout failed on that server, as one does that goes away: an outage may link to it.

    Runs on the thread, or in the task, that called the driver.
    """
    failure = Failure(time.monotonic(), span_context)
    for states in instances(ServerStates):
        server = states.known(address)
        if server is None:
            continue
        server.failures.append(failure)
        topology = server.topology
        episode = None if topology is None else topology.period
        if episode is not None:
            episode.add_failure(server, failure)
