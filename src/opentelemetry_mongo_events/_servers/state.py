"""The state of each client's servers and topologies, as learned from heartbeats and topology descriptions."""

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
from opentelemetry_mongo_events._telemetry.attributes import server_attributes, target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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

_MAX_ANSWERS: Final = 16
_MAX_FAILURES: Final = 16
_MAX_EVENTS: Final = 128
_MAX_DELAYS: Final = 16


class OngoingPeriod(ABC):
    """A topology's open discovery or outage; implemented by `Period` in `outages`.

    Attributes:
        context: The context that contains its span, for log records and measurements.
        span_context: The context of its span; None if the span isn't recorded.
        started: When its span started, by `time.monotonic()`.
    """

    __slots__ = ("context", "span_context", "started")

    context: Context
    span_context: SpanContext | None
    started: float

    @abstractmethod
    def note(self, background_event: BackgroundEvent) -> None:
        """Add a background event. Called on any thread."""

    @abstractmethod
    def add_failure(self, server: ServerState, failure: Failure) -> None:
        """Add a command or a checkout that failed on a server. Called on any thread."""

    @abstractmethod
    def add_delay(self, delay: Delay) -> None:
        """Add a server selection that waited. Called on any thread."""


class Failure(NamedTuple):
    """A command or a checkout that failed because its server became unavailable.

    Attributes:
        at: When it failed, by `time.monotonic()`.
        span_context: The context of its span, or of the caller's span if the command has none.
        is_timeout: Whether it is a checkout that timed out: the server may be unresponsive, or the pool just full.
    """

    at: float
    span_context: SpanContext
    is_timeout: bool = False


class Delay(NamedTuple):
    """A server selection that waited for a server.

    Attributes:
        since: When the wait began, by `time.monotonic()`.
        at: When it ended.
        span_context: The context of its span.
    """

    since: float
    at: float
    span_context: SpanContext


class PastPeriod(NamedTuple):
    """A discovery or an outage that has ended.

    Attributes:
        started: When its span started, by `time.monotonic()`.
        at: When it ended.
        span_context: The context of its span; None if the span wasn't recorded.
    """

    started: float
    at: float
    span_context: SpanContext | None


class ServerState:
    """One server of one client.

    Times are in seconds, by `time.monotonic()`, which the driver uses too.

    Attributes:
        identity: The driver's address tuple, which is a different object in each client.
        attributes: The attributes of its metrics: host and port.
        first_heartbeat_at: When its first heartbeat event arrived; None before that.
        is_closed: Whether the client has removed it. A heartbeat may still arrive after that.
        awaits_heartbeat: Whether a heartbeat is in progress; None if none was seen to start.
        is_failing: Whether its last heartbeat failed; None before the first one.
        answers: When its last heartbeats succeeded; empty if the last one failed, or if the client can't use it.
        round_trip: The duration of its last heartbeat that wasn't awaited, in seconds; None before the first one.
        failures: The last commands and checkouts that failed on it.
        events: Its background events from before its topology was known.
        unavailable_since: When it became unavailable; None if it is available.
        unresponsive: The start and the end of the time in which its last heartbeats timed out, or in which the driver
            marked it as unknown because a checkout had timed out; None if neither has happened.
        topology: Its topology; None until it is known. The driver reports it a moment after the first heartbeat.
        others: The switches of other listeners that received its heartbeats first.
    """

    __slots__ = (
        "answers",
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
        "unresponsive",
    )

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.attributes = server_attributes(identity.address)
        self.first_heartbeat_at: float | None = None
        self.is_closed = False
        self.awaits_heartbeat: bool | None = None
        self.is_failing: bool | None = None
        self.answers: deque[float] = deque(maxlen=_MAX_ANSWERS)
        self.round_trip: float | None = None
        self.failures: deque[Failure] = deque(maxlen=_MAX_FAILURES)
        self.events: deque[BackgroundEvent] = deque(maxlen=_MAX_EVENTS)
        self.unavailable_since: float | None = None
        self.unresponsive: tuple[float, float] | None = None
        self.topology: TopologyState | None = None
        self.others: Sequence[Switch] = ()

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which received its heartbeats first, reports them."""
        return any(switch.of("heartbeats") for switch in self.others)

    @property
    def event_attributes(self) -> Attributes:
        """The attributes of its events: those of its metrics, and of its topology once that is known."""
        topology = self.topology
        return self.attributes | ({} if topology is None else topology.attributes)

    def note_timeout(self, seconds: float) -> None:
        """Note that a heartbeat of this duration timed out. Call this before updating `is_failing`."""
        now = time.monotonic()
        since = self.unresponsive[0] if self.unresponsive is not None and self.is_failing else now - seconds
        self.unresponsive = (since, now)

    def was_unresponsive(self, at: float, until: float) -> bool:
        """Whether it was unresponsive from `at` or earlier to `until` or later."""
        return self.unresponsive is not None and self.unresponsive[0] <= at and self.unresponsive[1] >= until

    def finish_heartbeat(self) -> bool:
        """Note that a heartbeat has ended.

        Returns:
            False if the end has already been noted (the client has this listener twice), or if the server is closed.
        """
        if self.is_closed or self.awaits_heartbeat is False:
            return False
        if self.awaits_heartbeat:
            self.awaits_heartbeat = False
        return True

    def note(self, background_event: BackgroundEvent) -> None:
        """Keep an event for the open discovery or outage, or for one whose start is reported later."""
        if not self.is_closed:
            self.events.append(background_event)
        topology = self.topology  # read once: another thread may close it
        if topology is not None:
            self.hand_over(topology)

    def hand_over(self, topology: TopologyState) -> None:
        """Move its events to its topology. The threads of the monitor and the topology may call this concurrently."""
        with contextlib.suppress(IndexError):
            while True:
                background_event = self.events.popleft()
                background_event.attributes = background_event.attributes | topology.attributes
                topology.note(background_event)


class TopologyState:
    """The topology of one client: all servers that are known to it.

    Attributes:
        topology_id: The driver's id of the topology, as text.
        type: The driver's name of the topology's type.
        servers: The number of servers of each type.
        reported: The replica sets and server types that metrics have reported, each with the value 0. That value is
            reported when no such server is left.
        members: The servers, by the `id()` of their addresses.
        replica_set: The name of the replica set; None if it isn't one.
        primary: The address of the replica set's primary, as text; None if there is none.
        is_closed: Whether the client was closed.
        is_available: Whether there is a writable server or, if there never was one, a readable one.
        is_discovered: Whether it has ever been available, so that its discovery is over.
        is_new: Whether its opening has yet to be reported.
        events: Recent background events of the topology and its servers.
        waiting: The server selections that are waiting, as an ordered set.
        delays: The last server selections that waited.
        period: The open discovery or outage; None if there is none.
        past_period: The last discovery or outage that has ended; None before that.
        last_seen: When its last event arrived, by `time.monotonic()`.
        heartbeat_frequency: The driver's interval between two heartbeats of a server, in seconds; 0 if it isn't known.
        others: The switches of other listeners that saw the topology first.
        settings: A reference to the client's settings, which live as long as the client; None if they aren't known.
    """

    __slots__ = (
        "_description",
        "_gone",
        "_had_writable",
        "delays",
        "events",
        "heartbeat_frequency",
        "is_available",
        "is_closed",
        "is_discovered",
        "is_new",
        "last_seen",
        "members",
        "others",
        "past_period",
        "period",
        "primary",
        "replica_set",
        "reported",
        "servers",
        "settings",
        "topology_id",
        "type",
        "waiting",
    )

    def __init__(self, topology_id: ObjectId, others: Sequence[Switch]) -> None:
        self.settings: weakref.ref[Any] | None = None
        self._gone: list[float] = []
        self._description: weakref.ref[TopologyDescription] | None = None
        self._had_writable = False
        self.topology_id = str(topology_id)
        self.type = "Unknown"
        self.servers: Counter[str] = Counter()
        self.reported: dict[tuple[str | None, str], int] = {}
        self.members: dict[int, ServerState] = {}
        self.replica_set: str | None = None
        self.primary: str | None = None
        self.is_closed = False
        self.is_available = False
        self.is_discovered = False
        self.is_new = True
        self.events: deque[BackgroundEvent] = deque(maxlen=_MAX_EVENTS)
        self.waiting: dict[object, None] = {}
        self.delays: deque[Delay] = deque(maxlen=_MAX_DELAYS)
        self.period: OngoingPeriod | None = None
        self.past_period: PastPeriod | None = None
        self.last_seen = time.monotonic()
        self.heartbeat_frequency = 0.0
        self.others = others

    def has_description(self, description: TopologyDescription) -> bool:
        """Whether this description, the same object, is the current one."""
        return self._description is not None and self._description() is description

    def update(self, description: TopologyDescription) -> None:
        """Update the state from a new description, without keeping the description alive."""
        self.last_seen = time.monotonic()
        self._description = weakref.ref(description)
        self.type = description.topology_type_name
        servers = description.server_descriptions().values()
        counts = Counter(server.server_type_name for server in servers)
        self.replica_set = description.replica_set_name
        self.primary = next((target(s.address) for s in servers if s.server_type_name == "RSPrimary"), None)
        # For a replica set without a primary, 0 primaries are reported. A direct connection also has the set's name but
        # never has a primary, and a client that hasn't been used yet doesn't know whether there is one.
        if self.type.startswith("ReplicaSet") and (
            not servers or any(server.is_server_type_known or server.error is not None for server in servers)
        ):
            counts["RSPrimary"] += 0
        self.servers = counts
        self.set_settings(description)
        self._had_writable |= any(server.is_writable for server in servers)
        self.is_available = description.has_writable_server() or any(self.can_use(server) for server in servers)

    def set_settings(self, description: TopologyDescription) -> None:
        """Keep a weak reference to the client's settings, which shows when the client is garbage-collected."""
        settings = getattr(description, "_topology_settings", None)
        if settings is not None and (self.settings is None or self.settings() is not settings):
            self.settings = weakref.ref(settings, self._when_gone)
        self.heartbeat_frequency = getattr(settings, "heartbeat_frequency", 0.0)

    @property
    def _when_gone(self) -> Callable[[object], None]:
        """A function that notes the time. It doesn't refer to this object, to avoid a reference cycle."""
        note, now = self._gone.append, time.monotonic  # the modules may be gone when it is called
        return lambda _: note(now())

    @property
    def gone_at(self) -> float | None:
        """When the client was garbage-collected, by `time.monotonic()`; None if it wasn't."""
        return self._gone[0] if self._gone else None

    def can_use(self, server: ServerDescription | Hello[Any]) -> bool:
        """Whether a server makes the topology available: it is writable, or readable if none was ever writable."""
        return server.is_writable or (server.is_readable and not self._had_writable)

    def note(self, background_event: BackgroundEvent) -> None:
        """Keep an event for the open discovery or outage, or for one whose start is reported later."""
        self.events.append(background_event)
        period = self.period
        if period is not None:
            period.note(background_event)

    def note_delay(self, delay: Delay) -> None:
        """Keep a selection for the open discovery or outage, or for one whose start is reported later."""
        self.delays.append(delay)
        period = self.period
        if period is not None:
            period.add_delay(delay)

    def period_during(self, since: float, at: float) -> SpanContext | None:
        """Return the span context of the last discovery or outage between two times; None if there is none."""
        period, past = self.period, self.past_period
        if period is not None and period.started <= at:
            return period.span_context
        if past is not None and past.started <= at and past.at >= since:
            return past.span_context
        return None

    def recover(self, at: float) -> None:
        """Note that it is available again since `at`. Earlier failures then don't count for the next outage."""
        for server in list(self.members.values()):
            server.unavailable_since = None
            with contextlib.suppress(IndexError):  # another thread that closes the server empties the deque
                while server.failures[0].at <= at:
                    server.failures.popleft()

    @property
    def lacks_server(self) -> bool:
        """Whether the client is open, but none of its servers makes the topology available."""
        return not self.is_available and not self.is_closed

    @property
    def attributes(self) -> Attributes:
        """The attributes of its events: the topology's id and the replica set's name."""
        attributes: Attributes = {names.TOPOLOGY_ID: self.topology_id}
        if self.replica_set is not None:
            attributes[names.REPLICA_SET] = self.replica_set
        return attributes

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which saw the topology first, reports it."""
        return any(switch.of("topology") for switch in self.others)


class ServerStates:
    """The servers and topologies that one set of listeners has seen.

    Args:
        switch: Holds the telemetry that the listeners report to.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self._servers: dict[int, ServerState] = {}
        self._topologies: dict[ObjectId, TopologyState] = {}
        track(self)

    def heartbeat_from(self, address: Address) -> ServerState:
        """Return the server with this address, and note that one of its heartbeats started or ended."""
        server = self.server(address)
        if server.first_heartbeat_at is None:
            server.others = [
                each.switch
                for each in instances(ServerStates)
                if each is not self
                and (other := each.known(address)) is not None
                and other.first_heartbeat_at is not None
            ]
            server.first_heartbeat_at = time.monotonic()
        topology = server.topology
        if topology is not None:
            topology.last_seen = time.monotonic()
        return server

    def server(self, address: Address) -> ServerState:
        """Return the server with this address; add it if it is new."""
        server = self._servers.get(id(address))
        if server is None:
            self._sweep()
            # `setdefault` is atomic: if several threads get here, all get the same server.
            server = self._servers.setdefault(id(address), ServerState(identity(address)))
        return server

    def known(self, address: Address | None) -> ServerState | None:
        """Return the server with this address, or None if it hasn't been seen."""
        return self._servers.get(id(address))

    def close_server(self, address: Address) -> None:
        """Mark a server as removed by the client. It is forgotten once the driver no longer refers to its address."""
        server = self.server(address)
        server.is_closed = True
        server.events.clear()
        server.failures.clear()
        topology, server.topology = server.topology, None
        if topology is not None:
            topology.members.pop(id(address), None)

    def topology(self, topology_id: ObjectId) -> TopologyState:
        """Return the topology with this id; add it if it is new."""
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
        """Add the server with this address to a topology, and return it."""
        server = self.server(address)
        server.is_closed = False
        server.topology = topology
        topology.members[id(address)] = server
        server.hand_over(topology)
        server.identity.owner = topology.settings
        return server

    def prepare(self, topology_id: ObjectId, description: TopologyDescription) -> TopologyState:
        """Return the topology with this id. If it is new, add it and its servers, without reporting them yet.

        Its discovery can then begin with the first heartbeat, not later with the driver's first event.
        """
        topology = self.topology(topology_id)
        if topology.settings is None:
            topology.set_settings(description)
            for server in description.server_descriptions().values():
                self.join(server.address, topology)
        return topology

    def take_over(self, topology_id: ObjectId, description: TopologyDescription) -> None:
        """Add the topology of an existing client, and its servers, without reporting them as new."""
        topology = self.topology(topology_id)
        topology.is_new = False
        topology.update(description)
        topology.is_discovered = topology.is_available
        for server in description.server_descriptions().values():
            self.join(server.address, topology)

    def take_over_server(self, description: ServerDescription) -> None:
        """Set the outcome of the last heartbeat of an existing client's server, and its round trip time."""
        server = self.server(description.address)
        server.round_trip = description.round_trip_time
        if description.is_server_type_known or description.error is not None:
            server.is_failing = description.error is not None

    def close_topology(self, topology_id: ObjectId) -> None:
        """Close and forget a topology, with its servers: its client was closed."""
        topology = self.topology(topology_id)
        topology.is_closed = True
        self._topologies.pop(topology_id, None)
        for server in list(topology.members.copy().values()):
            self.close_server(server.identity.address)

    def servers(self) -> list[ServerState]:
        """Return all servers that the clients haven't removed."""
        self._sweep()
        return [server for server in self._servers.copy().values() if not server.is_closed]

    def topologies(self) -> list[TopologyState]:
        """Return all topologies."""
        self._sweep()
        return list(self._topologies.copy().values())

    def forget(self) -> None:
        """Forget everything after a fork: it belongs to the parent process."""
        self._servers = {}
        self._topologies = {}

    def _sweep(self) -> None:
        for key, server in self._servers.copy().items():
            if server.identity.is_unreferenced:
                self._servers.pop(key, None)
        for topology_id, topology in self._topologies.copy().items():
            if topology.gone_at is not None:
                self._topologies.pop(topology_id, None)


def note_failure(address: Address | None, span_context: SpanContext, *, is_timeout: bool = False) -> None:
    """Note that a command or a checkout failed because its server became unavailable; an outage may link to it.

    Called on the thread, or in the task, that called the driver.

    Args:
        address: The server's address.
        span_context: The context of the span of the command or checkout, or of the caller's span. It is ignored if it
            is not sampled.
        is_timeout: Whether it is a checkout that timed out.
    """
    if not span_context.trace_flags.sampled:
        return
    failure = Failure(time.monotonic(), span_context, is_timeout)
    for states in instances(ServerStates):
        server = states.known(address)
        if server is None:
            continue
        server.failures.append(failure)
        topology = server.topology
        period = None if topology is None else topology.period
        if period is not None:
            period.add_failure(server, failure)
