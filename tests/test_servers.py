"""Metrics of servers, topologies and heartbeats on a real driver."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson import ObjectId
from pymongo.errors import PyMongoError
from pymongo.monitoring import (
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
    TopologyClosedEvent,
)

from opentelemetry_mongo_events._driver.identity import identity
from opentelemetry_mongo_events._driver.versions import is_cancelled_heartbeat
from opentelemetry_mongo_events._runtime import process
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.state import ServerState, ServerStates, TopologyState, note_failure
from opentelemetry_mongo_events._telemetry.telemetry import Switch
from tests.clients import aconnect, answers, connect
from tests.events import (
    ADDRESS,
    TOPOLOGY_ID,
    heartbeat_failed,
    heartbeat_started,
    heartbeat_succeeded,
    topology_changed,
)
from tests.forks import in_child
from tests.spans import event, events
from tests.waiting import collected, eventually, until

if TYPE_CHECKING:
    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
    from tests.spans import Spans

HEARTBEATS = "mongodb.client.heartbeat.duration"
AWAITED = "mongodb.client.heartbeat.awaited"
COUNT = "mongodb.client.server.count"
TYPE = "mongodb.client.server.type"
SET = "mongodb.client.replica_set.name"
ROUND_TRIP = "mongodb.client.server.round_trip_time"
SERVER_CHANGES = ("mongodb.client.server.changes", "mongodb.client.server.previous_type", TYPE)
TOPOLOGY_CHANGES = (
    "mongodb.client.topology.changes",
    "mongodb.client.topology.previous_type",
    "mongodb.client.topology.type",
)

tells_of_its_end = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 tells of closed topologies")


pytestmark = pytest.mark.usefixtures("quick_driver")


def test_a_standalone_is_counted_and_its_heartbeats_are_measured(
    server: ScriptedServer, watching: list[Any], metrics: Metrics, spans: Spans
) -> None:
    about = {"server.address": "127.0.0.1", "server.port": server.port}
    with connect(server.uri, event_listeners=watching, heartbeatFrequencyMS=500) as client:
        client.admin.command("ping")
        until(lambda: metrics.servers(TYPE, SET) == {("Standalone", None): 1})
        until(lambda: metrics.values(HEARTBEATS, AWAITED).keys() == {True, False})

        round_trip = metrics.one(ROUND_TRIP)
        assert dict(round_trip.attributes) == about
        assert 0 < round_trip.value < 0.5
        for point in metrics.points(HEARTBEATS):
            assert dict(point.attributes) == about | {AWAITED: point.attributes[AWAITED]}
            assert list(point.exemplars) == []
        assert metrics.values(*SERVER_CHANGES) == {("Unknown", "Standalone"): 1}
        assert metrics.values(*TOPOLOGY_CHANGES) == {("Unknown", "Single"): 1}

    # A healthy server is no span, once it is found.
    assert sorted(spans.names) == ["endSessions admin", "mongodb.client.discovery", "ping admin"]


def test_a_failover_is_told_by_the_types(
    replica_set: ScriptedReplicaSet, watching: list[Any], metrics: Metrics
) -> None:
    with connect(replica_set.uri, event_listeners=watching, heartbeatFrequencyMS=500) as client:
        client.admin.command("ping")
        name = replica_set.name
        until(lambda: metrics.servers(TYPE, SET) == {("RSPrimary", name): 1, ("RSSecondary", name): 2})

        replica_set.step_down()
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 0, "RSSecondary": 3})
        replica_set.elect(replica_set.members[1])
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 2})

        server_changes, topology_changes = metrics.values(*SERVER_CHANGES), metrics.values(*TOPOLOGY_CHANGES)
        assert server_changes["RSPrimary", "RSSecondary"] == 1
        assert server_changes["RSSecondary", "RSPrimary"] == 1
        assert topology_changes["ReplicaSetWithPrimary", "ReplicaSetNoPrimary"] == 1
        assert metrics.points(TOPOLOGY_CHANGES[0])[0].attributes[SET] == name


def test_a_heartbeat_that_fails_has_its_error(server: ScriptedServer, watching: list[Any], metrics: Metrics) -> None:
    with connect(
        server.uri, event_listeners=watching, heartbeatFrequencyMS=500, serverSelectionTimeoutMS=1000
    ) as client:
        client.admin.command("ping")
        until(lambda: metrics.servers(TYPE) == {"Standalone": 1})
        server.stop()
        until(lambda: metrics.servers(TYPE) == {"Unknown": 1})

        failed = {point.attributes.get("error.type") for point in metrics.points(HEARTBEATS)} - {None}
        assert failed
        assert failed <= {"AutoReconnect", "NetworkTimeout", "ConnectionResetError", "OSError"}
        until(lambda: metrics.values(*SERVER_CHANGES).get(("Standalone", "Unknown")) == 1)


def test_a_type_that_no_server_has_any_more_is_told_as_none(
    server: ScriptedServer, watching: list[Any], metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=watching, heartbeatFrequencyMS=500) as client:
        client.admin.command("ping")
        until(lambda: metrics.values(COUNT, TYPE).get("Standalone") == 1)
        server.stop()
        until(lambda: metrics.values(COUNT, TYPE) == {"Standalone": 0, "Unknown": 1})
        server.start()
        until(lambda: metrics.values(COUNT, TYPE) == {"Standalone": 1, "Unknown": 0})


def test_a_client_that_never_connects_has_an_unknown_server(watching: list[Any], metrics: Metrics) -> None:
    with connect("mongodb://127.0.0.1:1", event_listeners=watching, serverSelectionTimeoutMS=100) as client:
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        until(lambda: metrics.servers(TYPE) == {"Unknown": 1})

        assert {point.attributes["error.type"] for point in metrics.points(HEARTBEATS)} == {"AutoReconnect"}
        assert metrics.points(ROUND_TRIP) == []
        assert metrics.points(SERVER_CHANGES[0]) == []


def test_a_set_that_is_not_reached_has_no_primary(watching: list[Any], metrics: Metrics) -> None:
    with connect(
        "mongodb://127.0.0.1:1/?replicaSet=rs0", event_listeners=watching, serverSelectionTimeoutMS=100
    ) as client:
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        until(lambda: metrics.servers(TYPE, SET) == {("Unknown", "rs0"): 1, ("RSPrimary", "rs0"): 0})


def test_a_client_that_was_not_used_says_nothing_of_a_primary(watching: list[Any], metrics: Metrics) -> None:
    with connect("mongodb://127.0.0.1:1/?replicaSet=rs0", event_listeners=watching, connect=False):
        until(lambda: metrics.servers(TYPE, SET) == {("Unknown", "rs0"): 1})


def test_a_direct_connection_to_a_secondary_says_nothing_of_a_primary(
    replica_set: ScriptedReplicaSet, watching: list[Any], metrics: Metrics
) -> None:
    port, name = replica_set.members[1].port, replica_set.name
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true&replicaSet={name}"
    with connect(uri, event_listeners=watching) as client:
        client.admin.command("ping")
        until(lambda: metrics.servers(TYPE, SET) == {("RSSecondary", name): 1})


@tells_of_its_end
def test_nothing_is_left_of_clients_that_were_closed(
    server: ScriptedServer, watching: list[Any], metrics: Metrics
) -> None:
    clients = [connect(server.uri, event_listeners=watching, heartbeatFrequencyMS=500) for _ in range(5)]
    for client in clients:
        client.admin.command("ping")
    until(lambda: metrics.servers(TYPE) == {"Standalone": 5})
    assert len(metrics.points(ROUND_TRIP)) == 1
    for client in clients:
        client.close()

    until(lambda: metrics.points(COUNT) == [])
    until(lambda: metrics.points(ROUND_TRIP) == [])
    # Closing a client gives its heartbeats up; that tells nothing of the server.
    assert {point.attributes.get("error.type") for point in metrics.points(HEARTBEATS)} == {None}


def test_nothing_is_left_of_a_client_that_was_garbage_collected(
    server: ScriptedServer, watching: list[Any], metrics: Metrics
) -> None:
    client = connect(server.uri, event_listeners=watching, heartbeatFrequencyMS=500)
    client.admin.command("ping")
    until(lambda: metrics.servers(TYPE) == {"Standalone": 1})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver warns that it wasn't closed
        del client
        until(lambda: collected() and metrics.points(COUNT) == [])
        until(lambda: collected() and metrics.points(ROUND_TRIP) == [])


def test_what_two_listeners_see_is_told_once(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, watching: list[Any], metrics: Metrics
) -> None:
    instrumentor.instrument(meter_provider=metrics.provider, topology=True)
    with connect(server.uri, event_listeners=watching) as client:
        client.admin.command("ping")
        until(lambda: metrics.servers(TYPE) == {"Standalone": 1})

        assert metrics.values(*SERVER_CHANGES) == {("Unknown", "Standalone"): 1}
        assert metrics.values(*TOPOLOGY_CHANGES) == {("Unknown", "Single"): 1}
        assert metrics.values(HEARTBEATS, AWAITED)[False] == 1
        assert len(metrics.points(ROUND_TRIP)) == 1

        instrumentor.uninstrument()
        assert metrics.servers(TYPE) == {"Standalone": 1}


class Counts(ServerHeartbeatListener):
    """Counts heartbeats, but for those that the driver gives up."""

    ended = failures = 0

    def started(self, event: ServerHeartbeatStartedEvent) -> None: ...

    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        self.ended += 1

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        if not is_cancelled_heartbeat(event):
            self.ended += 1
            self.failures += 1


def test_what_a_listener_sees_twice_is_told_once(
    server: ScriptedServer, watching: list[Any], metrics: Metrics, spans: Spans
) -> None:
    counts = Counts()
    with connect(
        server.uri,
        event_listeners=[*watching, *watching, counts],
        heartbeatFrequencyMS=500,
        serverSelectionTimeoutMS=1000,
    ) as client:
        client.admin.command("ping")
        spans.wait_for("mongodb.client.discovery")
        server.stop()
        assert not answers(client)
        until(lambda: counts.failures > 0)
        server.start()
        until(lambda: answers(client))
        outage = spans.wait_for("mongodb.client.outage")
        # Up to PyMongo 4.8 a close clears the pools as well.
        assert metrics.one("mongodb.client.pool.cleared").value == 1

    assert metrics.values(*SERVER_CHANGES)["Standalone", "Unknown"] == 1
    assert metrics.values(*TOPOLOGY_CHANGES)["Unknown", "Single"] == 1
    assert sum(point.count for point in metrics.points(HEARTBEATS)) == counts.ended
    told = events(outage)
    assert [told.count(each) for each in ("pool.cleared", "server.changed", "heartbeat.succeeded")] == [1, 2, 1]


def test_it_is_known_how_often_a_client_looks_after_its_servers(server: ScriptedServer, watching: list[Any]) -> None:
    with connect(server.uri, event_listeners=watching, heartbeatFrequencyMS=90_000) as client:
        client.admin.command("ping")
        until(lambda: [each.heartbeat_frequency for each in watching[-1].servers.topologies()] == [90.0])


def test_nothing_is_told_while_it_is_off(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, metrics: Metrics
) -> None:
    instrumentor.instrument(meter_provider=metrics.provider, topology=True)
    instrumentor.uninstrument()
    with connect(server.uri) as client:
        client.admin.command("ping")
        assert metrics.collected() == {}

        # What it is by then is known: the listeners went on.
        instrumentor.instrument(meter_provider=metrics.provider, topology=True)
        until(lambda: metrics.servers(TYPE) == {"Standalone": 1})
        assert len(metrics.points(ROUND_TRIP)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_has_its_own_servers_only(server: ScriptedServer, watching: list[Any], metrics: Metrics) -> None:
    with connect(server.uri, event_listeners=watching) as client:
        client.admin.command("ping")
        until(lambda: metrics.servers(TYPE) == {"Standalone": 1})

        def child() -> bool:
            forgotten = "Standalone" not in metrics.servers(TYPE) and metrics.points(ROUND_TRIP) == []
            with connect(server.uri, event_listeners=watching) as own:
                own.admin.command("ping")
                # From PyMongo 4.3 on the one from before is in the child like a new one that nobody has used.
                until(lambda: metrics.servers(TYPE) in ({"Standalone": 1}, {"Standalone": 1, "Unknown": 1}))
            return forgotten

        assert in_child(child)
        assert metrics.servers(TYPE) == {"Standalone": 1}


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
async def test_an_asynchronous_client_tells_the_same(
    server: ScriptedServer, watching: list[Any], metrics: Metrics, spans: Spans
) -> None:
    with spans.tracer.start_as_current_span("request"):
        client = aconnect(server.uri, event_listeners=watching, heartbeatFrequencyMS=500)
        await client.admin.command("ping")
    await eventually(lambda: metrics.servers(TYPE) == {"Standalone": 1})
    await eventually(lambda: metrics.values(HEARTBEATS, AWAITED).get(True, 0) > 0)
    # Its monitors copied the context of whoever used it first.
    assert all(list(point.exemplars) == [] for point in metrics.points(HEARTBEATS))
    await client.close()
    await eventually(lambda: metrics.points(COUNT) == [])


def test_a_child_forgets_the_servers(watching: list[Any], metrics: Metrics) -> None:
    topology = next(listener for listener in watching if type(listener).__name__ == "TopologyEvents")
    heartbeats = next(listener for listener in watching if type(listener).__name__ == "HeartbeatEvents")
    address = ("db.example", 27017)
    topology.description_changed(topology_changed(2))
    heartbeats.succeeded(heartbeat_succeeded(address, duration=1.0))
    assert metrics.servers(TYPE) == {"Unknown": 2}
    assert metrics.one(ROUND_TRIP).value == 1

    process._forget_all()

    assert metrics.points(COUNT) == metrics.points(ROUND_TRIP) == []


def test_what_happened_before_the_topology_was_told_is_part_of_its_discovery(watching: list[Any], spans: Spans) -> None:
    topology: Any = next(each for each in watching if type(each).__name__ == "TopologyEvents")
    heartbeats: Any = next(each for each in watching if type(each).__name__ == "HeartbeatEvents")
    changed = topology_changed(1)
    (address,) = changed.new_description.server_descriptions()
    heartbeats.started(heartbeat_started(address))
    heartbeats.failed(heartbeat_failed(address, TimeoutError("timed out"), duration=1.0))
    topology.description_changed(changed)
    topology.closed(TopologyClosedEvent(changed.topology_id))

    told = event(spans.one("mongodb.client.discovery"), "heartbeat.failed")
    assert told["mongodb.client.topology.id"] == str(changed.topology_id)


class LeavingServer(ServerState):
    """A server whose topology is closed, on another thread, whenever somebody has looked at it."""

    is_seen = False

    @property
    def topology(self) -> TopologyState | None:
        self.is_seen = not self.is_seen
        return TopologyState(ObjectId(bytes(12)), ()) if self.is_seen else None

    @topology.setter
    def topology(self, topology: TopologyState | None) -> None:
        pass


def test_a_server_may_be_closed_at_any_moment(spans: Spans) -> None:
    states = ServerStates(Switch())
    server = LeavingServer(identity(ADDRESS))
    states._servers[id(ADDRESS)] = server
    with spans.tracer.start_as_current_span("find") as span:
        for use in (
            lambda: states.heartbeat_from(ADDRESS),
            lambda: server.note(BackgroundEvent("mongodb.client.pool.cleared", {})),
            lambda: note_failure(ADDRESS, span.get_span_context()),
            lambda: states.close_server(ADDRESS),
        ):
            server.is_seen = False
            use()
    assert server.is_closed


def test_of_two_threads_that_see_a_server_or_a_topology_first_one_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a monitor and a thread of commands do. Two states of one server would each know half of it."""
    states, address, topology_id = ServerStates(Switch()), ("".join(["db.", "example"]), 27017), ObjectId()
    made: list[object] = []

    def sweep_as_another_makes_it() -> None:
        if not made:
            made.append(None)
            made.extend([states.server(address), states.topology(topology_id)])

    monkeypatch.setattr(states, "_sweep", sweep_as_another_makes_it)
    assert states.server(address) is made[1]
    made.clear()
    states.forget()
    assert states.topology(topology_id) is made[2]


def test_what_happened_as_a_topology_was_told_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    states = ServerStates(Switch())
    topology = states.topology(ObjectId())
    server = states.server(("".join(["db.", "example"]), 27017))
    server.note(BackgroundEvent("first", {}))
    server.topology = topology  # on the thread of the topology, which has yet to take what is there
    server.note(BackgroundEvent("second", {}))

    assert [incident.name for incident in topology.events] == ["first", "second"]
    assert not server.events


def test_a_topology_is_prepared_before_its_first_event_arrives() -> None:
    states = ServerStates(Switch())
    description = topology_changed(2).new_description
    topology = states.prepare(TOPOLOGY_ID, description)

    assert states.prepare(TOPOLOGY_ID, description) is topology
    assert (len(topology.members), topology.is_new, topology.is_discovered) == (2, True, False)
    assert {server.topology for server in states.servers()} == {topology}
