"""The MongoDB drivers' own tests of server discovery: for the events that they expect of a driver, what ours tell.

They are no part of the project: `MONGODB_SPECIFICATIONS` names a checkout of github.com/mongodb/specifications.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pymongo
import pytest
from bson import json_util
from opentelemetry.trace import SpanKind, StatusCode
from pymongo.hello import Hello
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
from pymongo.server_description import ServerDescription

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._servers.heartbeat_listener import HeartbeatEvents
from opentelemetry_mongo_events._servers.outages import _periods
from opentelemetry_mongo_events._servers.topology_listener import TopologyEvents
from tests.clients import connect
from tests.events import heartbeat_started, heartbeat_succeeded
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.util.types import AnyValue

    from tests.logs import Logs
    from tests.metrics import Metrics
    from tests.spans import Spans

if not os.environ.get("MONGODB_SPECIFICATIONS"):
    pytest.skip("MONGODB_SPECIFICATIONS names no checkout of mongodb/specifications", allow_module_level=True)

VECTORS = Path(os.environ["MONGODB_SPECIFICATIONS"]) / "source/server-discovery-and-monitoring/tests/monitoring"

Document: TypeAlias = dict[str, Any]

tells_of_its_end = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 tells of closed topologies")


# ---------------------------------------------------------------------------------------------------------------------
# The driver's events, as the vectors write them.

KINDS: dict[type, str] = {
    ServerOpeningEvent: "server_opening_event",
    ServerDescriptionChangedEvent: "server_description_changed_event",
    ServerClosedEvent: "server_closed_event",
    TopologyOpenedEvent: "topology_opening_event",
    TopologyDescriptionChangedEvent: "topology_description_changed_event",
    TopologyClosedEvent: "topology_closed_event",
}
OPENED_OR_CLOSED = ("server_opening_event", "server_closed_event")


class Event(NamedTuple):
    """An event of the driver's: its name in the vectors, and what they say of it."""

    kind: str
    document: Document

    @property
    def types(self) -> tuple[str, str] | None:
        """The type of the server or the topology before and after, if it is such an event."""
        if "newDescription" not in self.document:
            return None
        before, after = self.document["previousDescription"], self.document["newDescription"]
        key = "topologyType" if "topologyType" in after else "type"
        return before[key], after[key]


def server(description: Mapping[str, Any]) -> Document:
    """What a vector says of a server, as far as every driver has it."""
    # A driver needs no type for a server that others say is the primary; PyMongo has none.
    kind = description["type"].replace("PossiblePrimary", "Unknown")
    hosts = sorted(description["hosts"] + description["passives"] + description["arbiters"])
    return {"address": description["address"], "type": kind, "hosts": hosts} | {
        key: description[key] for key in ("primary", "setName") if key in description
    }


def topology(description: Mapping[str, Any]) -> Document:
    """What a vector says of a topology."""
    servers = sorted((server(each) for each in description["servers"]), key=lambda each: each["address"])
    return {**description, "servers": servers}


def expected(event: Mapping[str, Any]) -> Event:
    """An event of a vector's."""
    ((kind, document),) = event.items()
    describe = server if kind.startswith("server") else topology
    told = {key: describe(value) if key.endswith("Description") else value for key, value in document.items()}
    return Event(kind, {key: value for key, value in told.items() if key != "topologyId"})


def host_and_port(address: Any) -> str:
    return f"{address[0]}:{address[1]}"


def described(description: Any) -> Document:
    """What the driver says of a server or a topology, as a vector does."""
    set_name = {"setName": description.replica_set_name} if description.replica_set_name else {}
    if not isinstance(description, ServerDescription):
        servers = sorted(map(described, description.server_descriptions().values()), key=lambda each: each["address"])
        return {"topologyType": description.topology_type_name, "servers": servers} | set_name
    primary = {"primary": host_and_port(description.primary)} if description.primary else {}
    return {
        "address": host_and_port(description.address),
        "type": description.server_type_name,
        "hosts": sorted(map(host_and_port, description.all_hosts)),
        **primary,
        **set_name,
    }


def arranged(events: Iterable[Event]) -> list[Event]:
    """The events, in an order that the format leaves open: that of servers which are opened, or closed, together."""
    runs = [(kind, list(run)) for kind, run in groupby(events, lambda event: event.kind)]
    return [
        event
        for kind, run in runs
        for event in (sorted(run, key=lambda each: each.document["address"]) if kind in OPENED_OR_CLOSED else run)
    ]


class Published(ServerListener, TopologyListener):
    """What the driver publishes, to be compared with what it has to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.topology_id: str | None = None

    def opened(self, event: Any) -> None:
        self._keep(event)

    def description_changed(self, event: Any) -> None:
        self._keep(event)

    def closed(self, event: Any) -> None:
        self._keep(event)

    def _keep(self, event: Any) -> None:
        document: Document = {}
        if hasattr(event, "server_address"):
            document["address"] = host_and_port(event.server_address)
        if hasattr(event, "new_description"):
            document["previousDescription"] = described(event.previous_description)
            document["newDescription"] = described(event.new_description)
        self.events.append(Event(KINDS[type(event)], document))
        self.topology_id = str(event.topology_id)


# ---------------------------------------------------------------------------------------------------------------------
# What ours tell of them.

NAMES = {
    "server_opening_event": "mongodb.client.server.opened",
    "server_description_changed_event": "mongodb.client.server.changed",
    "server_closed_event": "mongodb.client.server.closed",
    "topology_opening_event": "mongodb.client.topology.opened",
    "topology_description_changed_event": "mongodb.client.topology.changed",
    "topology_closed_event": "mongodb.client.topology.closed",
}
ADDRESS, PORT = "server.address", "server.port"
SERVER_TYPES = ("mongodb.client.server.previous_type", "mongodb.client.server.type")
TOPOLOGY_TYPES = ("mongodb.client.topology.previous_type", "mongodb.client.topology.type")
SET = "mongodb.client.replica_set.name"
TOPOLOGY = "mongodb.client.topology.id"
HEARTBEAT = "mongodb.client.heartbeat.succeeded"


class Told(NamedTuple):
    """An event of ours, without the id of its topology."""

    name: str
    attributes: Mapping[str, AnyValue]


def changes(events: Iterable[Event]) -> Iterator[list[Event]]:
    """The events, by the change of the topology that they are about."""
    change: list[Event] = []
    for event in events:
        is_told = any(each.kind == "topology_description_changed_event" for each in change)
        if is_told and event.kind in ("server_description_changed_event", "server_closed_event"):
            yield change
            change = []
        change.append(event)
    yield change


def told(events: Iterable[Event]) -> list[list[Told]]:
    """What ours tell of the driver's events, by the changes of the topology; a type that stays is no change."""
    return [
        [
            Told(NAMES[event.kind], _attributes(event) | _set(change))
            for event in change
            if event.types is None or event.types[0] != event.types[1]
        ]
        for change in changes(events)
    ]


def _attributes(event: Event) -> Document:
    attributes: Document = {}
    if "address" in event.document:
        host, port = event.document["address"].split(":")
        attributes = {ADDRESS: host, PORT: int(port)}
    if event.types is not None:
        keys = SERVER_TYPES if event.kind.startswith("server") else TOPOLOGY_TYPES
        attributes |= dict(zip(keys, event.types, strict=True))
    return attributes


def _set(change: Iterable[Event]) -> Document:
    """The replica set, as it is known after a change."""
    (changed,) = (event for event in change if event.kind == "topology_description_changed_event")
    set_name = changed.document["newDescription"].get("setName")
    return {SET: set_name} if set_name else {}


def of_ours(name: str | None, attributes: Any) -> Told:
    """A log record, or an event of a span."""
    return Told(name or "", {key: value for key, value in attributes.items() if key != TOPOLOGY})


def in_any_order(events: Iterable[Told]) -> list[Told]:
    return sorted(events, key=repr)


def in_an_order(events: Iterable[Told]) -> list[Told]:
    """The events as they came, but for those of servers which were opened, or closed, together."""
    runs = [(name, list(run)) for name, run in groupby(events, lambda event: event.name)]
    return [
        event for name, run in runs for event in (in_any_order(run) if name.endswith(("opened", "closed")) else run)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A client's life.


class SilentMonitor:
    """A monitor of the driver's that asks nobody anything."""

    def __init__(self, server_description: ServerDescription, topology: Any, **_: object) -> None:
        self.address = server_description.address
        self.topology = weakref.proxy(topology)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


class Life:
    """The life of a client as a vector has it: what its servers answer comes from there, and all else is the driver's.

    Attributes:
        vector: The file.
        expected: The driver's events that it expects.
        published: The driver's events that came.
        client: The driver's own; None when nothing is left of it.
        topology_events: Our listener.
        heard: When the first heartbeat began and when the last one was over, since the epoch.
    """

    def __init__(self, vector: Document, listeners: list[Any], *, is_late: bool) -> None:
        self.vector = vector
        self.expected = [expected(event) for phase in vector["phases"] for event in phase["outcome"]["events"]]
        self.published = Published()
        self.topology_events = next(each for each in listeners if isinstance(each, TopologyEvents))
        self.heard: list[int] = []
        self._monitors: dict[str, SilentMonitor] = {}
        """Those of all servers that there ever were, by their addresses."""
        self._heartbeat_events = next(each for each in listeners if isinstance(each, HeartbeatEvents))
        self._is_late = is_late
        observed = {"event_listeners": [self.published, *listeners]}
        self.client: Any = connect(vector["uri"], **observed, _monitor_class=self._monitor)

    def _monitor(self, **options: Any) -> SilentMonitor:
        monitor = SilentMonitor(**options)
        self._monitors[host_and_port(monitor.address)] = monitor
        return monitor

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            self.client.close()

    def go_on(self) -> None:
        """Let the servers answer, and see that the driver publishes what it has to."""
        if not self._is_late:
            self.hand_over()
        for phase in self.vector["phases"]:
            for address, response in phase.get("responses", ()):
                self._heartbeat(address, response)
                if not self._is_late:
                    self.hand_over()
        self.hand_over()
        assert arranged(self.published.events) == arranged(self.expected)

    def _heartbeat(self, address: str, response: Document) -> None:
        monitor = self._monitors[address]
        self.heard = self.heard or [time.time_ns()]
        self._heartbeat_events.started(heartbeat_started(monitor.address))
        reply: Hello[Any] = Hello(response)
        description = ServerDescription(monitor.address, reply, 0.001)
        self._heartbeat_events.succeeded(heartbeat_succeeded(monitor.address, duration=0.001, reply=reply))
        monitor.topology.on_change(description)
        self.heard[1:] = [time.time_ns()]

    def hand_over(self) -> None:
        """Do what the driver has a thread for, which does it about once a second."""
        topology = self.client._topology
        sys.modules[type(topology).__module__].process_events_queue(weakref.ref(topology._events))

    def close(self) -> list[Event]:
        """Close the client, and its monitors with it.

        Returns:
            What the driver publishes of that.
        """
        before = len(self.published.events)
        self.client.close()
        self._monitors.clear()
        return self.published.events[before:]


def vectors() -> list[Any]:
    paths = sorted(VECTORS.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no test vectors in {VECTORS}")
    return [pytest.param(json_util.loads(path.read_text(encoding="utf-8")), id=path.stem) for path in paths]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's threads do nothing that a vector needs, and a close waits for them."""
    monkeypatch.setattr(f"{pymongo.MongoClient.__module__}.periodic_executor.PeriodicExecutor.open", lambda _: None)


@pytest.fixture(params=vectors())
def vector(request: pytest.FixtureRequest) -> Document:
    vector: Document = request.param
    return vector


@pytest.fixture(params=["at once", "late"])
def life(
    request: pytest.FixtureRequest, vector: Document, spans: Spans, metrics: Metrics, no_threads: None
) -> Iterator[Life]:
    """One whose events are handed over as soon as they are there, or after all that happens."""
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)
    with Life(vector, listeners, is_late=request.param == "late") as life:
        yield life


@pytest.fixture(params=["at once", "late"])
def logged_life(request: pytest.FixtureRequest, vector: Document, logs: Logs, no_threads: None) -> Iterator[Life]:
    """The same; the events are log records."""
    listeners = event_listeners(logger_provider=logs.provider, events="log", topology=True)
    with Life(vector, listeners, is_late=request.param == "late") as life:
        yield life


def logged(logs: Logs) -> list[Told]:
    """The log records of servers and topologies."""
    return [of_ours(record.event_name, record.attributes) for record in logs.records if record.event_name != HEARTBEAT]


# ---------------------------------------------------------------------------------------------------------------------


def test_each_event_of_the_driver_is_one_of_ours(logged_life: Life, logs: Logs) -> None:
    logged_life.go_on()

    expected = [event for change in told(logged_life.expected) for event in change]
    assert in_any_order(logged(logs)) == in_any_order(expected)
    assert {(record.attributes or {})[TOPOLOGY] for record in logs.records if record.event_name != HEARTBEAT} == {
        logged_life.published.topology_id
    }


def test_they_come_in_the_order_of_the_drivers(logged_life: Life, logs: Logs) -> None:
    logged_life.go_on()

    expected = [event for change in told(logged_life.expected) for event in change]
    assert in_an_order(logged(logs)) == in_an_order(expected)


@tells_of_its_end
def test_the_end_is_told(logged_life: Life, logs: Logs) -> None:
    logged_life.go_on()
    before = len(logged(logs))

    published = logged_life.close()

    kinds = [event.kind for event in published]
    assert kinds.count("server_closed_event") == len(logged_life.expected[-1].document["newDescription"]["servers"])
    assert kinds[-2:] == ["topology_description_changed_event", "topology_closed_event"]
    (expected,) = told(published)
    assert in_an_order(logged(logs)[before:]) == in_an_order(expected)


@tells_of_its_end
def test_a_topology_that_is_closed_again_was_not_opened_again(logged_life: Life, logs: Logs) -> None:
    logged_life.go_on()
    logged_life.close()
    before = len(logged(logs))

    published = logged_life.close()

    kinds = [event.kind for event in published]
    assert kinds.count("topology_opening_event") == 0
    assert kinds.count("topology_closed_event") == 1
    assert [event.name for event in logged(logs)[before:] if event.name == "mongodb.client.topology.opened"] == []


def test_changes_are_counted(life: Life, metrics: Metrics) -> None:
    life.go_on()

    events = [event for change in told(life.expected) for event in change]
    for counter, name, keys in (
        ("mongodb.client.server.changes", "mongodb.client.server.changed", (ADDRESS, PORT, *SERVER_TYPES)),
        ("mongodb.client.topology.changes", "mongodb.client.topology.changed", (*TOPOLOGY_TYPES, SET)),
    ):
        expected = Counter(tuple(event.attributes.get(key) for key in keys) for event in events if event.name == name)
        assert metrics.values(counter, *keys) == expected


def test_servers_are_counted(life: Life, metrics: Metrics) -> None:
    life.go_on()

    after = life.expected[-1].document["newDescription"]
    expected = Counter((each["type"], after.get("setName")) for each in after["servers"])
    if after["topologyType"] == "ReplicaSetNoPrimary":
        expected["RSPrimary", after["setName"]] = 0
    assert metrics.servers(SERVER_TYPES[1], SET) == expected


def test_the_discovery_is_a_span(life: Life, spans: Spans) -> None:
    life.go_on()

    if not life.heard:  # there are no heartbeats behind a load balancer
        assert spans.finished == []
        return
    # In each vector the first server that answers can be read from.
    began, first, *_ = told(life.expected)
    span = spans.one("mongodb.client.discovery")
    assert spans.finished == [span]
    assert span.kind is SpanKind.INTERNAL
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    inaccuracy = 20_000_000
    assert life.heard[0] - inaccuracy <= span.start_time <= span.end_time <= life.heard[1] + inaccuracy

    events = [of_ours(event.name, event.attributes) for event in span.events]
    heartbeats = [event for event in events if event.name == HEARTBEAT]
    assert [event.attributes[ADDRESS] for event in heartbeats] == ["a"]
    others = [event for event in events if event.name != HEARTBEAT]
    # What there was before the first heartbeat is part of it where it was just before.
    assert in_an_order(others[-len(first) :]) == in_an_order(first)
    assert all(event in began for event in others[: -len(first)])


def test_nothing_stays_open(life: Life, metrics: Metrics) -> None:
    life.go_on()
    assert dict(_periods.open) == {}

    if not life.close():
        # The driver tells nothing of it. It is known when nothing is left of the client.
        life.client = None
        gc.collect()

    states = life.topology_events.servers
    assert [server.attributes for server in states.servers()] == []
    assert states.topologies() == []
    assert metrics.points("mongodb.client.server.count") == []
    assert metrics.points("mongodb.client.server.round_trip_time") == []
    assert dict(_periods.open) == {}
    until(lambda: background_worker.thread is None)


def test_a_server_that_was_closed_is_measured_no_more(life: Life, metrics: Metrics) -> None:
    life.go_on()

    servers = {each["address"] for each in life.expected[-1].document["newDescription"]["servers"]}
    measured = metrics.values("mongodb.client.server.round_trip_time", ADDRESS, PORT)
    assert {host_and_port(address) for address in measured} <= servers
