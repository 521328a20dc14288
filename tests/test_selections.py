"""Server selections that wait or fail, on a real driver."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.context import attach, detach
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from pymongo import ReadPreference, common
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError
from pymongo.hello import Hello
from pymongo.monitoring import TopologyClosedEvent, TopologyDescriptionChangedEvent, TopologyOpenedEvent
from pymongo.server_description import ServerDescription
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._driver import selection_log
from opentelemetry_mongo_events._runtime import background
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._servers import selection_listener
from opentelemetry_mongo_events._servers.selection_listener import _selections
from opentelemetry_mongo_events._servers.selections import begin_checkout, set_delay, take_delay
from opentelemetry_mongo_events._servers.state import note_failure
from tests.clients import aconnect, connect
from tests.events import ADDRESS, TOPOLOGY_ID
from tests.forks import in_child
from tests.programs import PREAMBLE, run
from tests.spans import Spans, attributes, end, linked, seconds, span_id, start, trace_id
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer

SELECT = "select server"
DISCOVERY = "mongodb.client.discovery"
OUTAGE = "mongodb.client.outage"
WAIT_TIME = "mongodb.client.server_selection.wait_time"
ERROR = "error.type"
TIMEOUT = "ServerSelectionTimeoutError"

# A client that looks for its server often, and gives up soon.
IMPATIENT: dict[str, Any] = {"heartbeatFrequencyMS": 500, "serverSelectionTimeoutMS": 300}
PATIENT: dict[str, Any] = {"heartbeatFrequencyMS": 500}

pytestmark = [
    pytest.mark.usefixtures("quick_driver"),
    pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7 logs its server selections"),
]
asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    until(lambda: (_selections.open, background_worker.thread) == ({}, None))
    assert _selections.guard.failures == {}
    assert selection_log._log.guard.failures == {}


@pytest.fixture
def selecting(spans: Spans, metrics: Metrics) -> list[Any]:
    """The listeners of one client, those for selections among them."""
    return event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, selections=True)


@pytest.fixture
def watching(spans: Spans, metrics: Metrics) -> list[Any]:
    """Those for topologies, too."""
    return event_listeners(
        tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True, selections=True
    )


def lose(client: Any, server: ScriptedServer) -> None:
    """Stop the server, and wait until the client knows."""
    server.stop()
    until(lambda: not client.topology_description.has_readable_server())


def fail(client: Any, command: str = "count") -> None:
    """Run a command that finds no server."""
    with pytest.raises(ServerSelectionTimeoutError):
        client.admin.command(command)
    background_worker.flush()


def later(seconds: float, act: Any) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def is_in(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    return start(outer) <= start(inner) <= end(inner) <= end(outer)


def selections_of(spans: Spans, operation: str) -> list[ReadableSpan]:
    return [span for span in spans.named(SELECT) if attributes(span)["db.operation.name"] == operation]


# ---------------------------------------------------------------------------------------------------------------------
# What there is of a selection.


def test_a_selection_that_failed_is_a_span_of_the_caller(
    server: ScriptedServer, selecting: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        with spans.tracer.start_as_current_span("request"):
            fail(client, "count")
        server.start()

    (selection,) = selections_of(spans, "count")
    request = spans.one("request")
    assert selection.parent is not None
    assert selection.parent.span_id == span_id(request)
    assert is_in(selection, request)
    assert 0.3 <= seconds(selection) < 2
    assert selection.kind is SpanKind.INTERNAL
    assert selection.status.status_code is StatusCode.ERROR
    assert selection.status.description is None
    assert attributes(selection) == {
        "db.system.name": "mongodb",
        "db.operation.name": "count",
        "mongodb.client.server_selection.selector": "primary",
        "mongodb.client.topology.type": "Single",
        ERROR: TIMEOUT,
    }
    assert selection.events == ()
    assert str(server.port) not in repr(attributes(selection))
    assert metrics.values(WAIT_TIME, ERROR)[TIMEOUT] == 1


def test_a_selection_that_waited_is_a_span_and_an_attribute_of_its_command(
    server: ScriptedServer, selecting: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.shop.orders.insert_one({})
        lose(client, server)
        spans.clear()
        before = metrics.values(WAIT_TIME, ERROR).get(None, 0)  # the first one may have waited
        with spans.tracer.start_as_current_span("request"):
            later(0.2, server.start)
            client.shop.orders.insert_one({})
            client.shop.orders.insert_one({})

    selection = spans.one(SELECT)
    first, second = spans.named("insert orders")
    assert attributes(selection) == {
        "db.system.name": "mongodb",
        "db.operation.name": "insert",
        "mongodb.client.server_selection.selector": "writable",
        "mongodb.client.topology.type": "Single",
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    assert selection.status.status_code is StatusCode.UNSET
    assert is_in(selection, spans.one("request"))
    assert end(selection) <= start(first)
    assert attributes(first)[WAIT_TIME] == pytest.approx(seconds(selection), abs=0.001)
    assert WAIT_TIME not in attributes(second)
    assert metrics.values(WAIT_TIME, ERROR) == {None: before + 1}


def test_a_measurement_has_the_span_as_its_exemplar_and_the_replica_set(
    replica_set: ScriptedReplicaSet, selecting: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(replica_set.uri, event_listeners=selecting, **PATIENT) as client:
        client.shop.orders.insert_one({})
        spans.clear()
        replica_set.step_down()
        until(lambda: client.primary is None)
        later(0.2, lambda: replica_set.elect(replica_set.members[1]))
        with spans.tracer.start_as_current_span("request"):
            client.shop.orders.insert_one({})

    selection = spans.one(SELECT)
    assert (
        attributes(selection).items()
        >= {
            "mongodb.client.replica_set.name": replica_set.name,
            "mongodb.client.topology.type": "ReplicaSetNoPrimary",
            "server.port": replica_set.members[1].port,
        }.items()
    )
    (point,) = metrics.points(WAIT_TIME)
    assert point.attributes == {"mongodb.client.replica_set.name": replica_set.name}
    assert {exemplar.span_id for exemplar in point.exemplars} >= {span_id(selection)}


def test_a_selection_that_finds_a_server_at_once_is_nothing(
    server: ScriptedServer, selecting: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        spans.clear()
        measured = metrics.values(WAIT_TIME)
        for _ in range(10):
            client.admin.command("ping")

        assert spans.names == ["ping admin"] * 10
        assert not any(WAIT_TIME in attributes(ping) for ping in spans.finished)
        assert metrics.values(WAIT_TIME) == measured


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (ReadPreference.SECONDARY, "secondary"),
        (pymongo.read_preferences.Nearest(tag_sets=[{"secret": "city"}]), "nearest"),
    ],
)
def test_the_selector_is_the_mode_of_the_read_preference(
    replica_set: ScriptedReplicaSet, selecting: list[Any], spans: Spans, read: Any, name: str
) -> None:
    with connect(replica_set.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        for member in replica_set.members:
            member.stop()
        until(lambda: not client.topology_description.known_servers)
        with pytest.raises(ServerSelectionTimeoutError):
            client.shop.orders.with_options(read_preference=read).find_one({})
        background_worker.flush()
        for member in replica_set.members:
            member.start()

    (selection,) = selections_of(spans, "find")
    assert attributes(selection)["mongodb.client.server_selection.selector"] == name
    assert "city" not in repr(attributes(selection))


def test_an_application_that_asks_for_the_servers_address_waits_without_a_command(
    server: ScriptedServer, selecting: list[Any], spans: Spans
) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        later(0.1, server.start)
        assert client.address == server.address
        client.admin.command("ping")

        assert spans.names == [SELECT, "ping admin"]
    assert WAIT_TIME not in attributes(spans.one("ping admin"))


def test_a_wait_belongs_to_the_checkout_that_follows() -> None:
    begin_checkout(ADDRESS)
    assert take_delay() is None

    set_delay(1.5, ADDRESS)
    begin_checkout(ADDRESS)
    assert (take_delay(), take_delay()) == (1.5, None)

    set_delay(1.5, ADDRESS)
    begin_checkout(("another.example", 27017))
    assert take_delay() is None

    set_delay(1.5, ADDRESS)
    begin_checkout(ADDRESS)  # and is cancelled
    begin_checkout(ADDRESS)
    assert take_delay() is None


@pytest.mark.skipif(pymongo.version_tuple < (4, 18), reason="before 4.18 a selection that may not wait logs nothing")
def test_a_selection_that_may_not_wait(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        with pymongo.timeout(0.001):
            time.sleep(0.01)
            with pytest.raises(PyMongoError):
                client.admin.command("count", "orders")
        background_worker.flush()
        server.start()

    (selection,) = selections_of(spans, "count")
    assert attributes(selection)[ERROR] == TIMEOUT


# ---------------------------------------------------------------------------------------------------------------------
# What it has to do with discoveries and outages.


def test_the_first_selection_links_to_the_discovery_and_back(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    frozen = server.freeze("hello")
    later(0.1, frozen.release)
    with connect(server.uri, event_listeners=watching, **PATIENT) as client:
        client.admin.command("ping")
        discovery = spans.wait_for(DISCOVERY)

    selection = spans.one(SELECT)
    assert attributes(selection)["mongodb.client.topology.type"] == "Unknown"
    assert linked(selection) == [span_id(discovery)]
    assert linked(discovery) == [span_id(selection)]
    assert trace_id(selection) != trace_id(discovery)


def test_a_write_that_waited_for_a_primary_links_to_the_outage_and_a_read_does_not(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    with connect(replica_set.uri, event_listeners=watching, readPreference="secondaryPreferred", **PATIENT) as client:
        client.shop.orders.insert_one({})
        spans.wait_for(DISCOVERY)
        spans.clear()
        replica_set.step_down()
        until(lambda: client.primary is None)
        time.sleep(0.3)  # the driver's events are late
        with spans.tracer.start_as_current_span("request"), ThreadPoolExecutor(2) as threads:
            writing = threads.submit(client.shop.orders.insert_one, {})
            client.shop.orders.find_one({})
            until(lambda: len(_selections.open) == 1)
            time.sleep(0.05)
            replica_set.elect(replica_set.members[1])
            writing.result(10)
        outage = spans.wait_for(OUTAGE)

    selection = spans.one(SELECT)
    assert linked(selection) == [span_id(outage)]
    assert linked(outage) == [span_id(selection)]
    assert linked(spans.one("find orders")) == []
    assert linked(spans.one("insert orders")) == []
    assert WAIT_TIME in attributes(spans.one("insert orders"))
    assert WAIT_TIME not in attributes(spans.one("find orders"))


def test_an_outage_links_to_those_that_it_made_fail(server: ScriptedServer, watching: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=watching, **IMPATIENT) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        spans.clear()
        lose(client, server)
        with ThreadPoolExecutor(20) as threads:
            for outcome in [threads.submit(client.admin.command, "count") for _ in range(20)]:
                with pytest.raises(ServerSelectionTimeoutError):
                    outcome.result(10)
        background_worker.flush()
        server.start()
        outage = spans.wait_for(OUTAGE)

    failed = [span_id(each) for each in selections_of(spans, "count")]
    assert len(failed) == 20
    assert len(linked(outage)) == 16
    assert set(linked(outage)) <= set(failed)


@pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="up to 4.10 the driver loses the server because of it")
def test_an_outage_has_no_link_to_a_checkout_that_timed_out_because_the_pool_was_full(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    options = {"maxPoolSize": 1, "waitQueueTimeoutMS": 50, "retryReads": False}
    with connect(server.uri, event_listeners=watching, **PATIENT, **options) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        frozen = server.freeze("count")
        with ThreadPoolExecutor(1) as threads:
            counting = threads.submit(client.shop.command, "count", "orders")
            assert frozen.reached.wait(10)
            with pytest.raises(PyMongoError):
                client.admin.command("ping")
            frozen.release()
            counting.result(5)
        lose(client, server)
        server.start()
        outage = spans.wait_for(OUTAGE)

    assert attributes(spans.one(f"checkout 127.0.0.1:{server.port}"))[ERROR] == "timeout"
    assert linked(outage) == []


def test_an_outage_links_to_a_checkout_that_timed_out_because_the_server_was_frozen(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    options = {"maxPoolSize": 1, "waitQueueTimeoutMS": 50, "retryReads": False, "connectTimeoutMS": 1000}
    with connect(server.uri, event_listeners=watching, **PATIENT, **options) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        frozen = [server.freeze("count"), server.freeze("hello", times=None)]
        with ThreadPoolExecutor(1) as threads:
            counting = threads.submit(client.shop.command, "count", "orders")
            assert all(each.reached.wait(10) for each in frozen)
            with pytest.raises(PyMongoError):
                client.admin.command("ping")
            until(lambda: not client.topology_description.has_readable_server())
            for each in frozen:
                each.release()
            counting.exception(5)
        outage = spans.wait_for(OUTAGE)

    checkout = spans.one(f"checkout 127.0.0.1:{server.port}")
    assert attributes(checkout)[ERROR] == "timeout"
    assert span_id(checkout) in linked(outage)


def test_an_outage_links_to_a_checkout_whose_timeout_made_the_driver_lose_the_server(
    watching: list[Any], spans: Spans
) -> None:
    """As PyMongo up to 4.10 does."""
    listener = watching[-2]
    unknown, healthy, lost = (
        ServerDescription(ADDRESS),
        ServerDescription(ADDRESS, Hello({"ok": 1, "maxWireVersion": 21, "helloOk": True})),
        ServerDescription(ADDRESS, error=pymongo.errors.WaitQueueTimeoutError("the pool is full")),
    )
    first, second, third = (
        TopologyDescription(TOPOLOGY_TYPE.Single, {ADDRESS: server}, None, None, None, None)
        for server in (unknown, healthy, lost)
    )
    listener.opened(TopologyOpenedEvent(TOPOLOGY_ID))
    listener.description_changed(TopologyDescriptionChangedEvent(first, second, TOPOLOGY_ID))
    checkout = spans.tracer.start_span("checkout").get_span_context()
    note_failure(ADDRESS, checkout, is_timeout=True)
    listener.description_changed(TopologyDescriptionChangedEvent(second, third, TOPOLOGY_ID))
    listener.closed(TopologyClosedEvent(TOPOLOGY_ID))

    assert linked(spans.one(OUTAGE)) == [checkout.span_id]


# ---------------------------------------------------------------------------------------------------------------------
# Whose selections are instrumented, and how.


def fail_once(server: ScriptedServer, listeners: list[Any] | None) -> None:
    options: dict[str, Any] = {} if listeners is None else {"event_listeners": listeners}
    with connect(server.uri, **options, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        fail(client)
        server.start()


@pytest.mark.parametrize("options", [{"selections": False}, {"exclude_commands": "count, ping, endSessions"}])
def test_no_span_where_none_is_wanted(
    server: ScriptedServer, spans: Spans, metrics: Metrics, options: dict[str, Any]
) -> None:
    chosen = {"selections": True} | options
    fail_once(server, event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, **chosen))

    assert spans.named(SELECT) == []
    assert bool(metrics.points(WAIT_TIME)) == chosen["selections"]


@pytest.mark.usefixtures("selecting")
def test_a_client_without_listeners_has_none(server: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    fail_once(server, None)

    assert spans.names == []
    assert metrics.points(WAIT_TIME) == []


def test_without_the_other_listeners_there_are_selections(
    server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    off: dict[str, Any] = dict.fromkeys(("commands", "pools", "heartbeats", "topology"), False)
    only = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, selections=True, **off)
    assert len(only) == 1
    fail_once(server, only)

    assert set(spans.names) == {SELECT}
    assert metrics.values(WAIT_TIME, ERROR)[TIMEOUT] >= 1


def test_without_an_sdk_for_traces_it_is_measured(server: ScriptedServer, metrics: Metrics) -> None:
    fail_once(server, event_listeners(meter_provider=metrics.provider, selections=True))

    assert metrics.values(WAIT_TIME, ERROR)[TIMEOUT] >= 1


def test_a_caller_that_suppresses_it_or_has_no_span(server: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    listeners = event_listeners(
        tracer_provider=spans.provider,
        meter_provider=metrics.provider,
        selections=True,
        require_parent_span=True,
    )
    with connect(server.uri, event_listeners=listeners, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        fail(client)
        assert spans.named(SELECT) == []
        assert metrics.values(WAIT_TIME, ERROR)[TIMEOUT] == 1
        with spans.tracer.start_as_current_span("request"), suppress_instrumentation():
            fail(client)
        assert spans.named(SELECT) == []
        assert metrics.values(WAIT_TIME, ERROR)[TIMEOUT] == 1
        with spans.tracer.start_as_current_span("request"):
            fail(client)
        server.start()

    assert len(selections_of(spans, "count")) == 1


def test_the_instrumentor_and_the_clients_own_listeners_make_one_span(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, selecting: list[Any]
) -> None:
    mine = Spans()
    instrumentor.instrument(tracer_provider=mine.provider, selections=True)
    with connect(server.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        fail(client)
        assert (len(selections_of(mine, "count")), len(selections_of(spans, "count"))) == (1, 0)
        instrumentor.uninstrument()
        fail(client)
        assert (len(selections_of(mine, "count")), len(selections_of(spans, "count"))) == (1, 1)
        server.start()


def test_it_ends_where_it_began(instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, selections=True)
    with connect(server.uri, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        with ThreadPoolExecutor(1) as threads:
            pinging = threads.submit(client.admin.command, "ping")
            until(lambda: len(_selections.open) == 1)
            instrumentor.uninstrument()
            time.sleep(0.05)
            server.start()
            pinging.result(10)

    assert spans.names == [SELECT]
    assert spans.one().status.status_code is StatusCode.UNSET


def test_a_background_thread_of_the_driver_has_no_parent(
    server: ScriptedServer, selecting: list[Any], spans: Spans
) -> None:
    """It may have copied the context of any caller."""
    with connect(server.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        with spans.tracer.start_as_current_span("request"):
            context = copy_context()
            thread = threading.Thread(target=context.run, args=(fail, client), name="pymongo_kill_cursors_thread")
            thread.start()
            thread.join()
        server.start()

    (selection,) = selections_of(spans, "count")
    assert selection.parent is None


def test_an_existing_client(server: ScriptedServer, spans: Spans, instrumentor: MongoEventsInstrumentor) -> None:
    with connect(server.uri, **IMPATIENT) as client:
        client.admin.command("ping")
        instrumentor.instrument_client(client, tracer_provider=spans.provider, selections=True)
        lose(client, server)
        fail(client)
        instrumentor.uninstrument_client(client)
        fail(client)
        server.start()

    assert [attributes(each)["db.operation.name"] for each in spans.named(SELECT)] == ["count"]


def test_a_child_forgets_those_of_its_parent(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        with ThreadPoolExecutor(1) as threads:
            pinging = threads.submit(client.shop.command, "count", "orders")
            until(lambda: len(_selections.open) == 1)
            assert in_child(lambda: not _selections.open and not _selections.is_waiting())
            time.sleep(0.05)
            server.start()
            pinging.result(10)

    assert len(selections_of(spans, "count")) == 1


# ---------------------------------------------------------------------------------------------------------------------
# How one ends of which the driver tells no end.


class Interrupted(BaseException):  # as KeyboardInterrupt is none
    """Raised in another thread."""


def interrupt(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))


def test_a_thread_that_was_interrupted(
    server: ScriptedServer, selecting: list[Any], spans: Spans, metrics: Metrics
) -> None:
    goes_on = threading.Event()
    was_interrupted = threading.Event()

    def work() -> None:
        try:
            client.admin.command("ping")
        except Interrupted:
            was_interrupted.set()
        goes_on.wait(10)

    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: len(_selections.open) == 1)
        time.sleep(0.1)  # it is on its way to the driver's lock
        interrupt(thread)
        assert was_interrupted.wait(10)
        until(lambda: not _selections.open)
        background_worker.flush()
        goes_on.set()
        thread.join()
        server.start()

    (selection,) = selections_of(spans, "ping")
    assert (selection.status.status_code, attributes(selection)[ERROR]) == (StatusCode.ERROR, "interrupted")
    assert metrics.values(WAIT_TIME, ERROR)["interrupted"] == 1


def test_the_next_selection_of_the_same_thread_ends_it_at_once(replica_set: ScriptedReplicaSet, spans: Spans) -> None:
    """A selector of the application's that raises ends a wait, too."""
    state = "found"
    was_interrupted, goes_on = threading.Event(), threading.Event()

    def choose(servers: Any) -> Any:
        if state == "broken":
            raise Interrupted
        return servers if state == "found" else []

    listeners = event_listeners(tracer_provider=spans.provider, selections=True)
    with connect(replica_set.uri, event_listeners=listeners, server_selector=choose, **IMPATIENT) as client:
        client.admin.command("ping")
        spans.clear()
        with ThreadPoolExecutor(1) as threads:

            def work() -> None:
                with pytest.raises(Interrupted):
                    client.admin.command("count")
                was_interrupted.set()
                assert goes_on.wait(10)
                with pytest.raises(ServerSelectionTimeoutError):
                    client.admin.command("ping")

            state = "lost"
            working = threads.submit(work)
            until(lambda: len(_selections.open) == 1)
            state = "broken"
            assert was_interrupted.wait(10)
            state = "lost"
            goes_on.set()
            working.result(10)
            state = "found"
        background_worker.flush()

    (interrupted,), (failed,) = selections_of(spans, "count"), selections_of(spans, "ping")
    assert attributes(interrupted)[ERROR] == "interrupted"
    assert attributes(failed)[ERROR] == TIMEOUT
    assert end(interrupted) <= start(failed)


def test_a_thread_that_has_ended(
    server: ScriptedServer, selecting: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only thing that can be found out without the GIL."""
    monkeypatch.setattr(selection_listener, "HAS_GIL", False)
    was_interrupted, goes_on = threading.Event(), threading.Event()

    def work() -> None:
        try:
            client.admin.command("count", "orders")
        except Interrupted:
            was_interrupted.set()
            goes_on.wait(10)

    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: len(_selections.open) == 1)
        time.sleep(0.1)
        interrupt(thread)
        assert was_interrupted.wait(10)
        time.sleep(0.6)
        assert len(_selections.open) == 1
        goes_on.set()
        thread.join()
        until(lambda: selections_of(spans, "count"))
        server.start()

    (selection,) = selections_of(spans, "count")
    assert attributes(selection)[ERROR] == "interrupted"


def test_a_wait_that_takes_long_goes_on(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        later(1.2, server.start)  # it is looked after twice
        client.admin.command("ping")

    (selection,) = selections_of(spans, "ping")
    assert selection.status.status_code is StatusCode.UNSET
    assert seconds(selection) > 1


def test_so_many_wait_and_no_more(
    server: ScriptedServer, selecting: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        monkeypatch.setattr(selection_listener, "_LIMIT", 0)
        fail(client)
        assert spans.names == []
        monkeypatch.undo()
        server.start()


def test_one_that_failed_and_cannot_be_reported_holds_up_no_outage(
    server: ScriptedServer, watching: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server.uri, event_listeners=watching, **IMPATIENT) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(client, server)
        spans.clear()
        monkeypatch.setattr(background_worker, "submit", lambda *_: False)
        fail(client)
        assert selections_of(spans, "count") == []
        assert [dict(each.waiting) for each in watching[-1]._servers.topologies()] == [{}]
        server.start()
        spans.wait_for(OUTAGE)


def test_it_ends_once(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        spans.clear()
        with ThreadPoolExecutor(1) as threads:
            pinging = threads.submit(client.admin.command, "ping")
            until(lambda: len(_selections.open) == 1)
            (selection,) = _selections.open
            _selections.end_all()
            _selections._end_later(selection, time.monotonic(), "never")
            _selections._end_interrupted(selection, time.monotonic())
            server.start()
            pinging.result(10)
        background_worker.flush()

    assert [attributes(each)[ERROR] for each in selections_of(spans, "ping")] == ["interrupted"]
    assert WAIT_TIME not in attributes(spans.one("ping admin"))


EXITS = """
client = MongoClient(URI, serverSelectionTimeoutMS=20_000, heartbeatFrequencyMS=500)
client.admin.command("ping")
os.write(1, b"connected\\n")
while client.topology_description.has_readable_server():
    time.sleep(0.01)
time.sleep(0.3)
threading.Thread(target=client.admin.command, args=("count",), daemon=True).start()
from opentelemetry_mongo_events._servers.selection_listener import _selections
while not _selections.open:
    time.sleep(0.01)
time.sleep(0.05)
"""


def test_a_program_that_ends_meanwhile(server: ScriptedServer) -> None:
    program = PREAMBLE.replace(".instrument()", ".instrument(selections=True)") + EXITS
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, program, server.uri, "on", options=["-W", "ignore"])
        server.wait_for(lambda server: server.received("ping"))
        time.sleep(0.2)
        server.stop()
        ended = running.result(50)

    assert (ended.code, ended.error) == (0, "")
    assert ended.lines[-2:] == [f"{SELECT}: interrupted", f"{OUTAGE}: exit"]


def in_a_loop(call: Any) -> Any:
    """Call something as the driver's own function does that waits for a server."""
    made: dict[str, Any] = {"__name__": "pymongo.topology"}
    exec("def _select_servers_loop(call):\n    return call()", made)  # for its name and its module
    return made["_select_servers_loop"](call)


def test_what_a_signal_handler_selects_does_not_end_the_wait_around_it(
    server: ScriptedServer, selecting: list[Any], spans: Spans
) -> None:
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")
        spans.clear()
        fields = {
            "topologyDescription": client.topology_description,
            "clientId": client._topology._topology_id,
            "selector": object(),
            "operation": "insert",
            "serverHost": "127.0.0.1",
            "serverPort": server.port,
        }

        def select() -> None:
            _selections.started(fields)
            _selections.waiting(fields)
            in_a_loop(lambda: _selections.started(fields))
            in_a_loop(lambda: _selections.waiting(fields))
            in_a_loop(lambda: _selections.failed(fields))
            _selections.succeeded(fields)
            assert len(_selections.open) == 1
            time.sleep(0.02)

        in_a_loop(select)
        _selections.succeeded(fields)

    selection = spans.one(SELECT)
    assert attributes(selection)["mongodb.client.server_selection.selector"] == "_OTHER"
    assert attributes(selection)["server.port"] == server.port
    assert seconds(selection) >= 0.02


@asynchronous
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 lets tasks share a context")
async def test_tasks_that_share_a_context(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    client = aconnect(server.uri, event_listeners=selecting, **PATIENT)
    await client.admin.command("ping")
    await asyncio.to_thread(server.stop)
    await eventually(lambda: not client.topology_description.has_readable_server())
    spans.clear()
    shared: Any = {"context": copy_context()}
    both = [asyncio.get_running_loop().create_task(client.admin.command("count"), **shared) for _ in range(2)]
    await eventually(lambda: len(_selections.open) == 2)
    await asyncio.sleep(0.1)
    await asyncio.to_thread(server.start)
    await asyncio.gather(*both)
    await client.close()

    assert [attributes(each).get(ERROR) for each in selections_of(spans, "count")] == [None, None]


class NoServer:
    """A `server_selector` that finds no server after `lose()`.

    Nothing wakes those that wait for a server then. A task that is cancelled just as it wakes up may leave the driver's
    lock locked for good, with or without this package (seen with Python 3.11.7), or ignore the cancellation.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_lost = False
        self._monkeypatch = monkeypatch

    def lose(self) -> None:
        self.is_lost = True
        self._monkeypatch.setattr(common, "MIN_HEARTBEAT_INTERVAL", 20)

    def __call__(self, servers: Any) -> Any:
        return [] if self.is_lost else servers


@asynchronous
async def test_so_many_that_are_cancelled_at_once_are_all_recorded(
    replica_set: ScriptedReplicaSet, selecting: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_LIMIT", 5)
    choose = NoServer(monkeypatch)
    client = aconnect(replica_set.uri, event_listeners=selecting, server_selector=choose)
    await client.admin.command("ping")
    spans.clear()
    choose.lose()
    tasks = [asyncio.create_task(client.admin.command("count")) for _ in range(50)]
    await eventually(lambda: len(_selections.open) == 50)
    await asyncio.sleep(0.13)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: not _selections.open)
    await asyncio.to_thread(background_worker.flush)
    choose.is_lost = False
    await client.close()

    assert len(selections_of(spans, "count")) == 50


def test_it_is_looked_after_at_intervals_whatever_wakes_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(_selections, "_check", looks.append)
    monkeypatch.setattr(_selections, "_next_check", 0.0)
    unseen: Any = object()
    monkeypatch.setitem(_selections.open, unseen, None)
    due = [_selections.check() for _ in range(3)]
    monkeypatch.undo()

    assert len(looks) == 1
    assert all(each is not None and 0.3 < each <= 0.5 for each in due)


class Curious(SpanProcessor):
    """Uses MongoDB whenever a selection ends."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.count = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.name == SELECT:
            self.count += 1
            with contextlib.suppress(Exception):
                self.client.admin.command("ping")


def test_a_span_processor_that_uses_mongodb_makes_no_endless_loop(
    server: ScriptedServer, selecting: list[Any], spans: Spans
) -> None:
    closed = connect(server.uri, event_listeners=selecting, serverSelectionTimeoutMS=50)
    closed.admin.command("ping")
    closed.close()
    with connect(server.uri, event_listeners=selecting, **IMPATIENT) as client:
        client.admin.command("ping")
        lose(client, server)
        curious = Curious(closed)
        spans.provider.add_span_processor(curious)
        fail(client)
        time.sleep(1.5)
        server.start()
    until(lambda: background_worker.thread is None)

    assert curious.count <= 3


def test_a_selection_inside_of_another_one_is_left_out(replica_set: ScriptedReplicaSet, spans: Spans) -> None:
    """A selector of the application's that uses another client."""
    listeners = event_listeners(tracer_provider=spans.provider, selections=True)
    is_lost = False
    inside: list[float] = []

    def choose(servers: Any) -> Any:
        if not is_lost:
            return servers
        if _selections.open and not inside:
            inside.append(time.monotonic())
            with pytest.raises(ServerSelectionTimeoutError):
                other.admin.command("count")
        return []

    with (
        connect(replica_set.uri, event_listeners=listeners, server_selector=choose, **IMPATIENT) as client,
        connect("127.0.0.1:1", event_listeners=listeners, serverSelectionTimeoutMS=50) as other,
    ):
        client.admin.command("ping")
        spans.clear()
        is_lost = True
        fail(client, "ping")
        is_lost = False

    assert inside
    assert selections_of(spans, "count") == []
    assert [attributes(each)[ERROR] for each in selections_of(spans, "ping")] == [TIMEOUT]


@asynchronous
async def test_tasks_wait_beside_each_other(server: ScriptedServer, selecting: list[Any], spans: Spans) -> None:
    client = aconnect(server.uri, event_listeners=selecting, **PATIENT)
    await client.admin.command("ping")
    await asyncio.to_thread(server.stop)
    await eventually(lambda: not client.topology_description.has_readable_server())
    spans.clear()

    async def request(number: int) -> None:
        with spans.tracer.start_as_current_span(f"request {number}"):
            await client.shop.orders.find_one({"_id": number})

    requests = [asyncio.create_task(request(number)) for number in range(10)]
    await eventually(lambda: len(_selections.open) == 10)
    await asyncio.to_thread(server.start)
    await asyncio.gather(*requests)
    await client.close()

    parents = {span_id(span): span.name for span in spans.finished}
    told = sorted(parents[each.parent.span_id] for each in spans.named(SELECT) if each.parent is not None)
    assert told == sorted(f"request {number}" for number in range(10))
    assert all(WAIT_TIME in attributes(find) for find in spans.named("find orders"))


@asynchronous
@pytest.mark.parametrize("how", ["cancel", "wait_for"])
async def test_a_task_that_was_cancelled(
    how: str, replica_set: ScriptedReplicaSet, selecting: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = NoServer(monkeypatch)
    client = aconnect(replica_set.uri, event_listeners=selecting, server_selector=choose)
    await client.admin.command("ping")
    spans.clear()
    choose.lose()
    if how == "cancel":
        pinging = asyncio.ensure_future(client.admin.command("ping"))
        await eventually(lambda: len(_selections.open) == 1)
        pinging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pinging
    else:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.admin.command("ping"), 0.13)
    await eventually(lambda: not _selections.open)
    await asyncio.to_thread(background_worker.flush)
    choose.is_lost = False
    await client.close()

    told = [attributes(each)[ERROR] for each in selections_of(spans, "ping")]
    assert told == ["interrupted"]


@asynchronous
async def test_the_tasks_of_the_driver_keep_no_selection(
    server: ScriptedServer, selecting: list[Any], spans: Spans
) -> None:
    """They copy the context in which the client was first used, which is that of a selection that waits."""
    frozen = server.freeze("hello")
    client = aconnect(server.uri, event_listeners=selecting, **PATIENT)
    token = attach({"request": object()})  # type: ignore[arg-type]  # as good as a context
    detach(token)
    pinging = asyncio.create_task(client.admin.command("ping"))
    await eventually(lambda: frozen.reached.is_set() and _selections.open)
    frozen.release()
    await pinging
    gc.collect()
    kinds = {type(each).__name__ for each in gc.get_objects() if type(each).__name__ == "Selection"}
    await client.close()

    assert kinds == set()
    assert spans.named("ping admin")


# ---------------------------------------------------------------------------------------------------------------------
# The log of the application.


class Records(logging.Handler):
    """What a handler is given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[tuple[Any, ...]] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if '"operation": "ping"' in message or '"operation": "count"' in message:
            fields = record.msg._kwargs  # type: ignore[union-attr]  # of the driver
            self.told.append((record.levelno, str.__str__(fields["message"]), record.filename, record.funcName))


def configure(name: str, logger: logging.Logger) -> None:
    if name == "debug":
        logger.setLevel(logging.DEBUG)
    elif name == "parent":
        logging.getLogger("pymongo").setLevel(logging.DEBUG)
    elif name == "disabled":
        logger.setLevel(logging.DEBUG)
        logger.disabled = True
    elif name == "filter":
        logger.setLevel(logging.DEBUG)
        logger.addFilter(lambda record: "succeeded" in record.getMessage())
    elif name == "logging.disable":
        logger.setLevel(logging.DEBUG)
        logging.disable(logging.DEBUG)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("pymongo.serverSelection")
    parent = logging.getLogger("pymongo")
    yield logger
    for each in (logger, parent):
        each.setLevel(logging.NOTSET)
    logger.filters.clear()
    logger.disabled = False
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["none", "debug", "parent", "disabled", "filter", "logging.disable"])
def test_the_log_of_the_application_stays_as_it_is(
    name: str, server: ScriptedServer, spans: Spans, logger: logging.Logger
) -> None:
    configure(name, logger)
    told = []
    for is_on in (False, True):
        listeners = event_listeners(tracer_provider=spans.provider, selections=is_on)
        with connect(server.uri, event_listeners=listeners, **IMPATIENT) as client:
            client.admin.command("ping")
            client.admin.command("count", "orders")
            lose(client, server)
            handler = Records()
            logger.addHandler(handler)
            try:
                fail(client, "count")
                later(0.1, server.start)
                client.admin.command("ping")
            finally:
                logger.removeHandler(handler)
            told.append(handler.told)

    assert told[0] == told[1]
    assert bool(told[0]) == (name in ("debug", "parent", "filter"))
    assert len(selections_of(spans, "count")) == 1


def test_a_level_that_is_set_later_counts(server: ScriptedServer, selecting: list[Any], logger: logging.Logger) -> None:
    handler = Records()
    logger.addHandler(handler)
    try:
        with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
            client.admin.command("ping")
            assert handler.told == []
            logger.setLevel(logging.DEBUG)
            client.admin.command("ping")
    finally:
        logger.removeHandler(handler)

    assert [message for _, message, *_ in handler.told] == ["Server selection started", "Server selection succeeded"]


def test_a_logger_whose_methods_take_no_other_arguments(
    server: ScriptedServer, selecting: list[Any], logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []

    class Structured(logging.Logger):
        def debug(self, msg: object, *args: object) -> None:  # type: ignore[override]  # as applications do
            logged.append(str(msg))

    monkeypatch.setattr(logger, "__class__", Structured)
    logger.setLevel(logging.DEBUG)
    with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
        client.admin.command("ping")

    assert any("Server selection succeeded" in message for message in logged)


def test_only_the_driver_gets_another_answer(
    server: ScriptedServer, selecting: list[Any], logger: logging.Logger
) -> None:
    logger.setLevel(logging.WARNING)
    handler = Records()
    handler.emit = handler.told.append  # type: ignore[method-assign, assignment]  # all of them
    logger.addHandler(handler)
    try:
        with connect(server.uri, event_listeners=selecting, **PATIENT) as client:
            client.admin.command("ping")
            assert not logger.isEnabledFor(logging.DEBUG)
            logger.log(logging.DEBUG, "by its level")
            logging.LoggerAdapter(logger, {}).debug("by an adapter")
    finally:
        logger.removeHandler(handler)

    assert handler.told == []


def test_a_message_of_another_kind_is_left_alone(
    selecting: list[Any], logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    assert selecting
    logger.setLevel(logging.DEBUG)
    logger.debug("%s of %s", 1, 2)
    logger.debug(pymongo.logger.LogMessage(message="Something new"))

    assert [record.funcName for record in caplog.records] == ["test_a_message_of_another_kind_is_left_alone"] * 2
    assert caplog.messages[0] == "1 of 2"


def test_a_message_that_is_not_understood_is_ignored(
    selecting: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert selecting
    guard = Guard()
    with monkeypatch.context() as expected:
        expected.setattr(selection_log._log, "guard", guard)
        logging.getLogger("pymongo.serverSelection").debug(pymongo.logger.LogMessage(something="new"))

    assert guard.failures == {("a server selection", "KeyError"): 1}
    assert "a server selection raised KeyError; the error is suppressed" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# A log that isn't known.


@pytest.fixture
def unobserved(monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    """The log, as if nobody had looked at it."""
    monkeypatch.setattr(selection_log, "_log", selection_log._Log())
    for name in ("debug", "isEnabledFor"):
        if name in vars(logger):
            monkeypatch.delitem(vars(logger), name)


def change_the_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("pymongo.serverSelection")
    monkeypatch.setattr(logger, "debug", logger.debug)


def change_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymongo.logger, "LogMessage", type("LogMessage", (), {"__init__": lambda *_, **__: None}))


def change_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    class LogMessage:
        def __init__(self, **fields: Any) -> None:
            self._kwargs = list(fields)

    monkeypatch.setattr(pymongo.logger, "LogMessage", LogMessage)


def change_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymongo.logger, "_SERVER_SELECTION_LOGGER", logging.getLogger("pymongo.other"))


@pytest.mark.usefixtures("unobserved")
@pytest.mark.parametrize(
    "change", [change_the_logger, change_the_class, change_the_fields, change_the_name], ids=lambda each: each.__name__
)
def test_a_log_that_is_not_known_is_left_alone_with_one_warning(
    change: Any, monkeypatch: pytest.MonkeyPatch, spans: Spans, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    change(monkeypatch)
    before = dict(vars(logging.getLogger("pymongo.serverSelection")))
    both = [event_listeners(tracer_provider=spans.provider, selections=True) for _ in range(2)]
    fail_once(server, both[0])

    assert {name: before[name] for name in before if name != "_cache"} == {
        name: value for name, value in vars(logging.getLogger("pymongo.serverSelection")).items() if name != "_cache"
    }
    assert spans.named(SELECT) == []
    assert spans.named("ping admin")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "opentelemetry_mongo_events"]
    assert message == (
        f"server selections are not instrumented: PyMongo {pymongo.version} logs them in an unsupported format, or "
        "another package has modified the logger pymongo.serverSelection"
    )


@pytest.mark.usefixtures("unobserved")
def test_an_older_driver_has_no_such_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(selection_log, "version_tuple", (4, 6, 3))
    assert event_listeners(selections=True)

    assert vars(logging.getLogger("pymongo.serverSelection")).keys().isdisjoint(("debug", "isEnabledFor"))
    assert caplog.messages == []


def test_a_description_that_leads_to_no_listeners() -> None:
    assert list(selection_log.listeners_of(object())) == []  # type: ignore[arg-type]  # a driver that changed
