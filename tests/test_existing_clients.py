"""Clients that were made before: listeners are put into them, and know what had happened by then."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry import trace
from pymongo.monitoring import CommandListener, ConnectionPoolListener, ServerListener, TopologyListener

from opentelemetry_mongo_events import Config, MongoEventsInstrumentor, _existing_clients, event_listeners
from opentelemetry_mongo_events._driver import client_internals
from opentelemetry_mongo_events._driver.client_internals import UnknownDriverError
from tests.clients import aconnect, answers, connect
from tests.forks import in_child
from tests.metrics import POOL, Metrics
from tests.pools import held, pools
from tests.spans import Spans, attributes, events
from tests.test_outages import DISCOVERY, OFTEN, OUTAGE
from tests.test_pools import in_use, pending
from tests.waiting import collected, eventually, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer

TYPE = "mongodb.client.server.type"

is_asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="4.9 and 4.10 block the loop for a reply")
tells_of_its_end = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 tells of closed topologies")

pytestmark = pytest.mark.usefixtures("quick_driver")


@pytest.fixture
def living(server: ScriptedServer) -> Iterator[MongoClient[Any]]:
    """A client that was in use before anybody observed it."""
    with connect(server.uri, **OFTEN) as client:
        client.admin.command("ping")
        yield client
    MongoEventsInstrumentor._keywords = {}


@pytest.fixture
def observe(spans: Spans, metrics: Metrics) -> Callable[..., None]:
    def observe(client: object, **options: Any) -> None:
        MongoEventsInstrumentor().instrument_client(
            client, tracer_provider=spans.provider, meter_provider=metrics.provider, **options
        )

    return observe


Observe = Any


def listeners_of(client: Any) -> list[Any]:
    return list(client._event_listeners.event_listeners())


# ---------------------------------------------------------------------------------------------------------------------
# Commands and pools.


def test_commands_are_spans_from_then_on(living: MongoClient[Any], observe: Observe, spans: Spans) -> None:
    observe(living)
    living.shop.orders.insert_one({"total": 1})
    living.shop.orders.find_one()

    assert spans.names == ["insert orders", "find orders"]
    assert "db.query.text" in attributes(spans.one("find orders"))
    assert "db.mongodb.driver_connection_id" in attributes(spans.one("find orders"))


def test_a_command_that_was_open_is_none(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    with in_use(living, server):
        observe(living)

    assert spans.names == []
    assert caplog.messages == []
    assert answers(living)
    assert spans.names == ["ping admin"]


def test_connections_are_those_that_the_driver_has(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    with in_use(living, server, 3):
        pass
    with in_use(living, server, 2):
        observe(living, client_name="billing")
        assert metrics.connections() == held(living) == (1, 2)
        assert pending(metrics) == 0
    assert metrics.connections() == held(living) == (3, 0)

    with in_use(living, server, 4):
        assert metrics.connections() == held(living) == (0, 4)
    assert metrics.connections() == held(living) == (4, 0)
    pool = f"billing/127.0.0.1:{server.port}"
    assert metrics.values("db.client.connection.limit", POOL) == {pool: 100}
    # Of those that were out nobody knows since when.
    assert metrics.values("db.client.connection.use_time", POOL) == {pool: 4}


def nothing(self: object, event: Any) -> None:
    """What a listener does that isn't interested."""


class Pools(ConnectionPoolListener):
    """An application's own."""

    pool_created = pool_ready = pool_cleared = pool_closed = nothing
    connection_created = connection_ready = connection_closed = nothing
    connection_check_out_started = connection_check_out_failed = nothing
    connection_checked_out = connection_checked_in = nothing


@pytest.mark.parametrize("others", [[], [Pools()]])
def test_a_connection_that_was_out_is_known_to_be_closed_later(
    others: list[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=others, **OFTEN) as client:
        with in_use(client, server, 2):
            observe(client)
            assert metrics.connections() == held(client) == (0, 2)
        assert metrics.connections() == held(client) == (2, 0)

        server.stop()
        until(lambda: held(client) == (0, 0))
        until(lambda: metrics.connections() == (0, 0))
        server.start()


def test_a_connection_that_was_out_is_closed_as_it_comes_back(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    with in_use(living, server, 2):
        observe(living)
        server.stop()
    until(lambda: held(living) == (0, 0))
    until(lambda: metrics.connections() == (0, 0))
    server.start()


def test_a_pool_keeps_its_limits_and_its_idle_time(server: ScriptedServer, observe: Observe, metrics: Metrics) -> None:
    with connect(server.uri, maxPoolSize=7, minPoolSize=2, maxIdleTimeMS=60_000) as client:
        until(lambda: held(client)[0] >= 2)
        observe(client)

        pool = f"127.0.0.1:{server.port}"
        assert metrics.values("db.client.connection.limit", POOL) == {pool: 7}
        assert metrics.values("db.client.connection.idle.min", POOL) == {pool: 2}
        assert metrics.connections() == held(client)


def test_a_client_that_nobody_has_used_yet(server: ScriptedServer, observe: Observe, spans: Spans) -> None:
    with connect(server.uri, connect=False, **OFTEN) as client:
        observe(client, topology=True)
        assert getattr(client._topology, client_internals._executor_name(client._topology))._thread is None

        client.admin.command("ping")
        discovery = spans.wait_for(DISCOVERY)

    assert "ping admin" in spans.names
    assert events(discovery)[-2:] == ["server.changed", "topology.changed"]


@pytest.mark.parametrize("options", [{}, {"connect": False}])
def test_a_client_that_is_closed(options: dict[str, Any], server: ScriptedServer, observe: Observe) -> None:
    client = connect(server.uri, **options)
    observe(client, topology=True)
    client.close()
    closed = connect(server.uri, **options)
    closed.close()

    observe(closed, topology=True)
    closed.close()


def test_it_is_added_while_threads_use_the_client(
    living: MongoClient[Any], observe: Observe, spans: Spans, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()

    def use() -> int:
        count = 0
        while not stop.is_set():
            living.shop.orders.find_one()
            count += 1
        return count

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(use) for _ in range(8)]
        until(lambda: held(living)[0] + held(living)[1] >= 2)
        observe(living, topology=True)
        until(lambda: len(spans.named("find orders")) > 200)
        stop.set()
        assert all(result.result() for result in results)

    assert {span.status.is_ok for span in spans.finished} == {True}
    assert caplog.messages == []
    assert metrics.connections() == held(living)
    assert metrics.connections()[1] == 0


def test_a_connection_that_somebody_keeps_though_it_is_closed(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    closed = _connection(living)
    _pool(living).reset()
    _pool(living).ready()
    with in_use(living, server):
        assert closed.closed
        observe(living)
        assert metrics.connections() == held(living) == (0, 1)


def test_commands_alone(living: MongoClient[Any], observe: Observe, spans: Spans, metrics: Metrics) -> None:
    observe(living, pools=False, heartbeats=False)
    living.admin.command("ping")

    assert "db.mongodb.driver_connection_id" in attributes(spans.one("ping admin"))
    assert metrics.points("db.client.connection.count") == []


def test_pools_alone(living: MongoClient[Any], observe: Observe, spans: Spans, metrics: Metrics) -> None:
    observe(living, commands=False, heartbeats=False)
    living.admin.command("ping")

    assert spans.names == []
    assert metrics.connections() == held(living) == (1, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Servers and topologies.


def test_heartbeats_are_measured(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    observe(living)

    # Since 4.4 the driver awaits news: what it measured before is the only round trip for a while.
    assert metrics.one("mongodb.client.server.round_trip_time").value > 0
    until(lambda: metrics.values("mongodb.client.heartbeat.duration", "server.port").get(server.port, 0) > 1)


def test_what_was_discovered_is_no_discovery_and_an_outage_is_one(
    replica_set: ScriptedReplicaSet, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    with connect(replica_set.uri, **OFTEN) as client:
        client.admin.command("ping")
        until(lambda: len(client.nodes) == 3)
        observe(client, topology=True)
        assert metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 2}

        until(lambda: metrics.values("mongodb.client.heartbeat.duration").get(()) or 0 > 5)
        assert spans.names == []

        replica_set.step_down()
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 0, "RSSecondary": 3})
        replica_set.elect(replica_set.members[1])
        outage = spans.wait_for(OUTAGE)

    assert spans.names.count(DISCOVERY) == 0
    told = events(outage)
    assert told.count("topology.changed") == 2
    assert {"topology.opened", "server.opened"}.isdisjoint(told)
    assert attributes(outage)["mongodb.client.replica_set.name"] == replica_set.name


def test_a_server_that_is_lost_and_comes_back(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    observe(living, topology=True)
    assert metrics.servers(TYPE) == {"Standalone": 1}
    server.stop()
    until(lambda: metrics.servers(TYPE) == {"Unknown": 1})
    server.start()

    outage = spans.wait_for(OUTAGE)
    assert [each for each in events(outage) if each.startswith("heartbeat.")][-1] == "heartbeat.succeeded"
    assert "pool.cleared" in events(outage)


def test_a_client_in_the_middle_of_an_outage_looks_for_its_servers(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, spans: Spans
) -> None:
    server.stop()
    until(lambda: not living.nodes)
    observe(living, topology=True)
    server.start()

    spans.wait_for(DISCOVERY)
    assert OUTAGE not in spans.names


class Topologies(TopologyListener):
    """An application's own, which lets the driver wait."""

    def __init__(self) -> None:
        self.reported: list[str] = []
        self.goes_on = threading.Event()

    def opened(self, event: Any) -> None:
        self.reported.append("opened")

    def description_changed(self, event: Any) -> None:
        self.goes_on.wait(5)
        self.reported.append(event.new_description.topology_type_name)

    def closed(self, event: Any) -> None:
        self.reported.append("closed")


@pytest.mark.parametrize("is_full", [False, True])
def test_what_waits_for_other_listeners_is_older(
    is_full: bool,
    server: ScriptedServer,
    observe: Observe,
    spans: Spans,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Topologies()
    client: Any
    with connect(server.uri, event_listeners=[other], **OFTEN) as client:
        client.admin.command("ping")
        until(lambda: other.reported)
        waiting = client._topology._events
        with monkeypatch.context() as patch:
            if is_full:
                waiting.put((lambda: None, ()))
                patch.setattr(waiting, "maxsize", 1)
                patch.setattr(client_internals, "speed_up", lambda *_: None)
            observe(client, topology=True)
        added = [each for each in listeners_of(client) if isinstance(each, TopologyListener) and each is not other]
        assert len(added) == int(is_full)

        other.goes_on.set()
        until(waiting.empty)
        until(lambda: other.reported[-1] == "Single")
        assert metrics.servers(TYPE) == {"Standalone": 1}
        server.stop()
        until(lambda: metrics.servers(TYPE) == {"Unknown": 1})
        server.start()
        outage = spans.wait_for(OUTAGE)

    assert ("topology.opened" in events(outage), DISCOVERY in spans.names) == (False, False)


def test_a_listener_for_servers_alone_has_the_queue(server: ScriptedServer, observe: Observe, metrics: Metrics) -> None:
    class Servers(ServerListener):
        opened = description_changed = closed = nothing

    client: Any
    with connect(server.uri, event_listeners=[Servers()], **OFTEN) as client:
        client.admin.command("ping")
        of_the_driver = client._topology._events
        observe(client, topology=True)
        assert client._topology._events is of_the_driver
        server.stop()
        until(lambda: metrics.servers(TYPE) == {"Unknown": 1})
        server.start()


def test_nobody_waits_for_the_queue_that_is_made(living: Any, observe: Observe) -> None:
    observe(living, topology=True)

    assert living._topology._events.maxsize == 0


# ---------------------------------------------------------------------------------------------------------------------
# Once, and undone.


def test_twice_is_once(
    living: MongoClient[Any], observe: Observe, spans: Spans, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    observe(living)
    before = listeners_of(living)
    MongoEventsInstrumentor().instrument_client(living)
    assert caplog.messages == []
    MongoEventsInstrumentor.instrument_client(living, exclude_commands="ping", client_name="other")

    (message,) = caplog.messages
    assert message.endswith("the client is already instrumented; ignored: exclude_commands, client_name")
    assert listeners_of(living) == before
    living.admin.command("ping")
    assert spans.names == ["ping admin"]
    assert metrics.connections() == (1, 0)


def test_a_client_that_is_observed_by_the_instrumentor(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        before = listeners_of(client)
        instrumentor.instrument_client(client)
        assert listeners_of(client) == before
        client.admin.command("ping")
        assert spans.names == ["ping admin"]
        instrumentor.uninstrument()

        # Those of the instrumentor are there, and quiet.
        instrumentor.instrument_client(client, tracer_provider=spans.provider)
        client.admin.command("ping")
        assert spans.names == ["ping admin"] * 2

        instrumentor.instrument(tracer_provider=spans.provider)
        client.admin.command("ping")
        assert spans.names == ["ping admin"] * 3
    assert caplog.messages == []


def test_a_client_with_listeners_of_its_own(
    client: Any, observe: Observe, spans: Spans, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    before = listeners_of(client)
    observe(client)

    assert listeners_of(client) == before
    assert [message.split(";")[0] for message in caplog.messages] == [
        "instrument_client() has no effect: the client is already instrumented"
    ]
    client.admin.command("ping")
    assert (spans.names, metrics.connections()) == (["ping admin"], (1, 0))


def test_a_signal_that_is_not_observed_is_added(
    server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    mine = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, pools=False)
    with connect(server.uri, event_listeners=mine) as client:
        client.admin.command("ping")
        assert metrics.points("db.client.connection.count") == []
        observe(client)
        client.admin.command("ping")

        assert metrics.connections() == held(client) == (1, 0)
        assert spans.names == ["ping admin"] * 2


def test_other_listeners_of_any_kind_are_left_alone(server: ScriptedServer, observe: Observe, spans: Spans) -> None:
    class Other(CommandListener):
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.reported: list[str] = []

        def started(self, event: Any) -> None:
            self.reported.append(event.command_name)

        succeeded = failed = nothing

    other = Other()
    with connect(server.uri, event_listeners=[other]) as client:
        observe(client)
        client.admin.command("ping")

        assert other.reported == ["ping"]
        assert spans.names == ["ping admin"]


def test_it_is_undone_and_done_again(
    living: MongoClient[Any],
    server: ScriptedServer,
    observe: Observe,
    spans: Spans,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    observe(living, client_name="billing")
    added = listeners_of(living)
    with in_use(living, server):
        MongoEventsInstrumentor().uninstrument_client(living)
        assert spans.names == []
    assert spans.names == ["find orders"]  # it was open
    living.admin.command("ping")
    assert spans.names == ["find orders"]
    assert metrics.points("db.client.connection.count") == []

    other_spans, other_metrics = Spans(), Metrics()
    MongoEventsInstrumentor().instrument_client(
        living, tracer_provider=other_spans.provider, meter_provider=other_metrics.provider, client_name="shop"
    )
    living.admin.command("ping")
    assert (spans.names, other_spans.names) == (["find orders"], ["ping admin"])
    assert listeners_of(living) == added
    assert other_metrics.values("db.client.connection.limit", POOL) == {f"shop/127.0.0.1:{server.port}": 100}
    assert other_metrics.connections() == held(living)

    MongoEventsInstrumentor().uninstrument_client(living)
    assert caplog.messages == []
    MongoEventsInstrumentor().uninstrument_client(living)
    assert caplog.messages == [
        "uninstrument_client() has no effect: the client was not instrumented by instrument_client()"
    ]


def test_an_outage_ends_with_the_observation(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    observe(living, topology=True)
    server.stop()
    until(lambda: metrics.servers(TYPE) == {"Unknown": 1})
    MongoEventsInstrumentor().uninstrument_client(living)

    assert attributes(spans.wait_for(OUTAGE))["mongodb.client.outage.outcome"] == "uninstrumented"
    server.start()


def test_uninstrument_undoes_it_too(
    living: MongoClient[Any], observe: Observe, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    observe(living)
    MongoEventsInstrumentor().uninstrument()
    living.admin.command("ping")
    assert spans.names == []
    assert caplog.messages == []

    MongoEventsInstrumentor().uninstrument()
    (message,) = caplog.messages
    assert message.startswith("Attempting to uninstrument while already uninstrumented")


def test_uninstrument_undoes_both(
    instrumentor: MongoEventsInstrumentor, living: MongoClient[Any], server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    instrumentor.instrument_client(living)
    with connect(server.uri) as client:
        assert answers(client)
        assert answers(living)
        assert spans.names == ["ping admin"] * 2
        instrumentor.uninstrument()
        assert answers(client)
        assert answers(living)
    assert spans.names == ["ping admin"] * 2


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, ["buildInfo admin"]),
        ({"exclude_commands": "buildInfo"}, ["ping admin"]),
        ({"exclude_commands": None}, ["buildInfo admin"]),
        ({"config": Config(selections=False)}, ["ping admin", "buildInfo admin"]),
        ({"tracer_provider": trace.NoOpTracerProvider()}, []),
    ],
)
def test_what_is_not_given_is_as_it_was_given_to_instrument(
    keywords: dict[str, Any],
    expected: list[str],
    instrumentor: MongoEventsInstrumentor,
    living: MongoClient[Any],
    spans: Spans,
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, exclude_commands="ping")
    instrumentor.instrument_client(living, **keywords)
    living.admin.command("ping")
    living.admin.command("buildInfo")

    assert spans.names == expected


def test_what_was_given_to_instrument_is_forgotten_with_it(
    instrumentor: MongoEventsInstrumentor, living: MongoClient[Any], observe: Observe, spans: Spans
) -> None:
    instrumentor.instrument(exclude_commands="ping")
    instrumentor.uninstrument()
    observe(living)
    living.admin.command("ping")

    assert spans.names == ["ping admin"]


def test_what_cannot_be_used_is_left_out(
    living: MongoClient[Any], observe: Observe, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    observe(living, client_name=7, exclude_command="ping")
    living.admin.command("ping")

    assert spans.names == ["ping admin"]
    assert [message.split(";")[0] for message in caplog.messages] == [
        "invalid client_name: 7",
        "unknown option: exclude_command (did you mean exclude_commands?)",
    ]


def test_a_client_that_is_collected_leaves_nothing(server: ScriptedServer, observe: Observe) -> None:
    gc.collect()
    before = len(_existing_clients._clients.instrumented)
    client = connect(server.uri)
    observe(client)
    gone = weakref.ref(client._event_listeners)
    assert len(_existing_clients._clients.instrumented) == before + 1
    client.close()
    del client

    until(lambda: collected() and gone() is None)
    assert len(_existing_clients._clients.instrumented) <= before  # PyPy may have forgotten others as well


def test_a_child_process_goes_on(living: MongoClient[Any], observe: Observe, spans: Spans) -> None:
    observe(living)

    def child() -> bool:
        MongoEventsInstrumentor().uninstrument_client(living)
        observe(living)
        return True

    with _existing_clients._clients.lock():
        assert in_child(child)


def test_a_child_does_not_count_what_its_parent_had(
    living: MongoClient[Any], server: ScriptedServer, observe: Observe, metrics: Metrics
) -> None:
    def child() -> bool:
        observe(living)
        return metrics.connections() == (0, 0)

    with in_use(living, server):
        assert in_child(child)


# ---------------------------------------------------------------------------------------------------------------------
# What can't be done is said, and changes nothing.


@pytest.mark.parametrize("other", [None, 7, "mongodb://alice:secret@localhost/", MongoEventsInstrumentor])
@pytest.mark.parametrize("method", ["instrument_client", "uninstrument_client"])
def test_what_is_no_client_is_refused(method: str, other: object) -> None:
    with pytest.raises(TypeError, match=r"^expected a MongoClient, .*, got an object of type \w+$") as raised:
        getattr(MongoEventsInstrumentor(), method)(other)
    assert "secret" not in str(raised.value)


def _topology(client: Any) -> Any:
    return client._topology


def _gate_of_topology(client: Any) -> Any:
    return getattr(client._topology, "_sdam", client._topology)


def _pool(client: Any) -> Any:
    (pool,) = pools(client)
    return pool


def _connection(client: Any) -> Any:
    return client_internals.idle_connections(_pool(client))[0]


def _monitor(client: Any) -> Any:
    (server,) = client._topology._servers.values()
    return server._monitor


@pytest.mark.parametrize(
    ("part", "attribute", "value"),
    [
        (lambda client: client, "_event_listeners", None),
        (lambda client: client._event_listeners, "_EventListeners__command_listeners", ()),
        (lambda client: client._event_listeners, "_EventListeners__enabled_for_cmap", None),
        (_topology, "_listeners", None),
        (_topology, "_description", None),
        (_topology, "_opened", None),
        (_topology, "_events", object()),
        (_gate_of_topology, "_publish_tp", None),
        (_monitor, "_listeners", None),
        (_pool, "opts", None),
        (_pool, "address", ["127.0.0.1", 27017]),
        (_pool, "active_sockets", None),
        (_pool, "pid", None),
        (_pool, "state", "ready"),
        (_connection, "id", None),
        (_connection, "closed", None),
        (_connection, "active", None),
        (_connection, "idle_time_seconds", lambda: None),
        (_connection, "pool_ref", lambda: None),
        (lambda client: client_internals._publishing_flag(_pool(client))[0], "?", None),
    ],
)
def test_a_driver_that_is_made_otherwise_is_refused(
    part: Callable[[Any], Any],
    attribute: str,
    value: object,
    server: ScriptedServer,
    observe: Observe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect(server.uri) as client:
        client.admin.command("ping")
        holder = part(client)
        if attribute == "?":
            attribute = client_internals._publishing_flag(_pool(client))[1]
        before = _state(client)
        with monkeypatch.context() as patch:
            patch.setattr(holder, attribute, value)
            message = f"instrument_client() doesn't support the internals of PyMongo {pymongo.version} ("
            with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
                observe(client, topology=True)
        assert _state(client) == before
        observe(client, topology=True)


def _state(client: Any) -> Any:
    """What would be changed."""
    topology = client._topology
    return (
        {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(client._event_listeners).items()
        },
        _gate_of_topology(client)._publish_tp,
        topology._events,
        getattr(topology, client_internals._executor_name(topology)),
    )


def test_a_module_without_what_is_looked_for(living: MongoClient[Any]) -> None:
    with pytest.raises(UnknownDriverError, match="SomethingNew"):
        client_internals._from_module_of(living._topology, "SomethingNew")


def test_an_address_that_was_not_looked_up_yet(
    living: MongoClient[Any], observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `mongodb+srv` and `connect=False`."""
    with monkeypatch.context() as patch:
        patch.setattr(living, "_topology", None)
        patch.setattr(living, "_event_listeners", None)
        with pytest.raises(RuntimeError, match=r"not resolved its mongodb\+srv address yet"):
            observe(living)
        MongoEventsInstrumentor().uninstrument_client(living)


def test_a_listener_of_the_client_cannot_call_it(
    living: MongoClient[Any], observe: Observe, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_internals, "_LOCK_TIMEOUT", 0.01)
    before = _state(living)
    with living._topology._lock, pytest.raises(RuntimeError, match="timed out waiting for a lock"):
        observe(living)
    with _pool(living).lock, pytest.raises(RuntimeError, match="timed out waiting for a lock"):
        observe(living)
    assert _state(living) == before

    observe(living)
    living.admin.command("ping")
    assert spans.names == ["ping admin"]


def test_what_fails_half_way_is_quiet(
    living: MongoClient[Any], observe: Observe, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(client_internals, "_connections", fail)
        with pytest.raises(MemoryError):
            observe(living)
    living.admin.command("ping")
    assert spans.names == []
    observe(living)
    living.admin.command("ping")
    assert spans.names == ["ping admin"]


# ---------------------------------------------------------------------------------------------------------------------
# asyncio and Motor.


@asynchronous
async def test_an_asyncio_client(server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics) -> None:
    async with aconnect(server.uri, **OFTEN) as client:
        await client.admin.command("ping")
        frozen = server.freeze("find", times=2)
        tasks = [asyncio.create_task(client.shop.command("find", "orders")) for _ in range(2)]
        await eventually(lambda: len(server.received("find")) == 2)
        observe(client, topology=True)
        assert metrics.connections() == held(client) == (0, 2)
        frozen.release()
        await asyncio.gather(*tasks)
        assert metrics.connections() == held(client) == (2, 0)
        assert spans.names == []

        await client.admin.command("ping")
        assert spans.names == ["ping admin"]
        server.stop()
        await eventually(lambda: metrics.servers(TYPE) == {"Unknown": 1})
        assert metrics.connections() == held(client) == (0, 0)
        server.start()
        await eventually(lambda: spans.named(OUTAGE))
    assert DISCOVERY not in spans.names


@asynchronous
async def test_a_task_that_is_cancelled_gives_back_what_it_had_before(
    server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    async with aconnect(server.uri, **OFTEN) as client:
        server.freeze("find")
        task = asyncio.create_task(client.shop.command("find", "orders"))
        await eventually(lambda: server.received("find"))
        observe(client)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.admin.command("ping")

        assert metrics.connections() == held(client)
        assert spans.names == ["ping admin"]


@is_asynchronous
async def test_an_asyncio_client_that_nobody_has_used_yet(
    server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics
) -> None:
    async with aconnect(server.uri, **OFTEN) as client:
        await asyncio.get_running_loop().run_in_executor(None, lambda: observe(client, topology=True))
        await client.admin.command("ping")
        await eventually(lambda: spans.named(DISCOVERY))

        assert "ping admin" in spans.names
        assert metrics.connections() == held(client)


@is_asynchronous
async def test_an_asyncio_client_is_observed_from_within_its_loop(
    server: ScriptedServer, observe: Observe, spans: Spans
) -> None:
    async with aconnect(server.uri, **OFTEN) as client:
        await client.admin.command("ping")

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="only from its event loop"):
                observe(client)

        async def in_another_loop() -> None:
            elsewhere()

        await asyncio.get_running_loop().run_in_executor(None, elsewhere)
        if getattr(client, "_loop", None) is not None:
            await asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(in_another_loop()))
        observe(client)
        await client.admin.command("ping")
        assert spans.names == ["ping admin"]


@pytest.mark.newest
async def test_a_client_of_motor(server: ScriptedServer, observe: Observe, spans: Spans, metrics: Metrics) -> None:
    motor_asyncio = pytest.importorskip("motor.motor_asyncio")
    client = motor_asyncio.AsyncIOMotorClient(server.uri, **OFTEN)
    try:
        await client.admin.command("ping")
        observe(client)
        await client.admin.command("ping")

        assert spans.names == ["ping admin"]
        assert metrics.connections() == held(client.delegate)
        MongoEventsInstrumentor().uninstrument_client(client)
    finally:
        client.close()
