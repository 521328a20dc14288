"""Discoveries and outages of a real driver, and what they tell of its commands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from pymongo.errors import PyMongoError
from pymongo.hello import Hello
from pymongo.server_description import ServerDescription

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._servers import outages
from opentelemetry_mongo_events._servers.difference import Difference
from opentelemetry_mongo_events._servers.topology_listener import _cause
from tests.broken import Picky
from tests.clients import aconnect, answers, connect
from tests.forks import in_child
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
from tests.spans import Spans, attributes, end, event, events, linked, seconds, span_id, start, table_of, trace_id
from tests.waiting import collected, eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.sampling import SamplingResult

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics

DISCOVERY = "mongodb.client.discovery"
OUTAGE = "mongodb.client.outage"
PRIMARY: dict[str, Any] = {"ok": 1, "isWritablePrimary": True, "setName": "rs", "hosts": ["127.0.0.1:1"]}
OUTCOME = "mongodb.client.outage.outcome"
OUTAGES = "mongodb.client.outage.duration"
CHANGED = "mongodb.client.server.changed"

SECONDARY = pymongo.ReadPreference.SECONDARY
TYPE = "mongodb.client.server.type"

# The shortest that the driver allows.
OFTEN: dict[str, Any] = {"heartbeatFrequencyMS": 500}
# A close waits as long as that for a server.
CLOSED_WITHOUT_SERVER = OFTEN | {"serverSelectionTimeoutMS": 1000}

is_asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
tells_of_its_end = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 tells of closed topologies")


pytestmark = pytest.mark.usefixtures("quick_driver")


def open_outages() -> list[outages.Period]:
    """The outages that are open now."""
    return [period for period in list(outages._periods.open) if period.name == OUTAGE]


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """At the end of each test nothing is open, and nobody looks after it."""
    yield
    # Up to PyMongo 4.8 nothing tells of a client's end but the garbage collector.
    until(lambda: collected() and (outages._periods.open, background_worker.thread) == ({}, None))
    until(lambda: "opentelemetry_mongo_events" not in [thread.name for thread in threading.enumerate()])


def listeners_with(spans: Spans, metrics: Metrics, **options: Any) -> list[Any]:
    return event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Discoveries.


def test_a_discovery_is_a_root_span_with_all_that_happened_in_it(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    before = time.time_ns()
    with spans.tracer.start_as_current_span("request"), connect(server.uri, event_listeners=watching) as client:
        client.admin.command("ping")
        discovery = spans.wait_for(DISCOVERY)

    kind, status = discovery.kind, discovery.status.status_code
    assert (discovery.parent, kind, status) == (None, SpanKind.INTERNAL, StatusCode.UNSET)
    assert attributes(discovery) == {
        "db.system.name": "mongodb",
        "mongodb.client.topology.type": "Unknown",
        "mongodb.client.discovery.outcome": "discovered",
    }
    assert events(discovery) == [
        "topology.opened",
        "server.opened",
        "heartbeat.succeeded",
        "server.changed",
        "topology.changed",
    ]
    assert before <= start(discovery) <= end(discovery) <= end(spans.one("ping admin"))
    about = {"server.address": "127.0.0.1", "server.port": server.port}
    topology = event(discovery, "topology.opened")
    assert topology.keys() == {"mongodb.client.topology.id"}
    assert event(discovery, "server.opened") == about | topology
    assert event(discovery, "server.changed") == about | topology | {
        "mongodb.client.server.previous_type": "Unknown",
        "mongodb.client.server.type": "Standalone",
    }
    assert event(discovery, "topology.changed") == topology | {
        "mongodb.client.topology.previous_type": "Unknown",
        "mongodb.client.topology.type": "Single",
    }
    heartbeat = event(discovery, "heartbeat.succeeded")
    assert 0 < heartbeat.pop("mongodb.client.heartbeat.duration") < (time.time_ns() - before) / 1e9
    assert heartbeat == about | topology | {"mongodb.client.heartbeat.awaited": False}


def test_a_healthy_idle_client_says_nothing_after_its_discovery(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(replica_set.uri, event_listeners=watching, **OFTEN):
        spans.wait_for(DISCOVERY)
        heartbeats = ("mongodb.client.heartbeat.duration", "mongodb.client.heartbeat.awaited")
        until(lambda: metrics.values(*heartbeats).get(True, 0) > 5)
        assert spans.names == [DISCOVERY]


def test_a_discovery_ends_with_the_first_readable_server(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    replica_set.step_down()
    with connect(replica_set.uri, event_listeners=watching):
        discovery = spans.wait_for(DISCOVERY)

    assert event(discovery, "server.changed")["mongodb.client.server.type"] == "RSSecondary"
    assert attributes(discovery) == {
        "db.system.name": "mongodb",
        "mongodb.client.topology.type": "ReplicaSetNoPrimary",
        "mongodb.client.replica_set.name": replica_set.name,
        "mongodb.client.discovery.outcome": "discovered",
    }
    assert spans.names == [DISCOVERY]  # there was no primary to lose


def test_a_discovery_that_fails_at_first_tells_why(server: ScriptedServer, watching: list[Any], spans: Spans) -> None:
    server.stop()
    with connect(server.uri, event_listeners=watching, serverSelectionTimeoutMS=1000, **OFTEN) as client:
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        server.start()
        until(lambda: answers(client))
        discovery = spans.wait_for(DISCOVERY)

    assert seconds(discovery) > 0.3
    assert discovery.status.status_code is StatusCode.UNSET
    told = events(discovery)
    assert told[:3] == ["topology.opened", "server.opened", "heartbeat.failed"]
    assert told[-3:] == ["heartbeat.succeeded", "server.changed", "topology.changed"]
    failed = event(discovery, "heartbeat.failed")
    assert failed["error.type"] == "AutoReconnect"
    assert f"127.0.0.1:{server.port}: [Errno 111] Connection refused" in failed["mongodb.client.error.message"]
    stamps = [each.timestamp for each in discovery.events]
    assert stamps == sorted(stamps)
    assert (stamps[0], stamps[-1]) == (start(discovery), end(discovery))


def test_a_client_that_never_connects_is_told_piece_by_piece(spans: Spans, metrics: Metrics) -> None:
    listeners = listeners_with(spans, metrics, episode_timeout=0.5)
    with connect("mongodb://127.0.0.1:1", event_listeners=listeners, **OFTEN):
        until(lambda: len(spans.named(DISCOVERY)) >= 2)
    until(lambda: collected() and outages._periods.open == {})

    first, second, *_, last = spans.named(DISCOVERY)
    assert linked(first) == []
    assert linked(second) == [span_id(first)]
    assert start(second) == pytest.approx(end(first), abs=1e6)
    assert seconds(first) == pytest.approx(0.5, abs=0.001)
    assert "heartbeat.failed" in events(first)
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, None)
    assert attributes(first)["error.type"] == "AutoReconnect"
    assert attributes(first)["mongodb.client.discovery.outcome"] == "timeout"
    if pymongo.version_tuple >= (4, 9):
        assert attributes(last)["mongodb.client.discovery.outcome"] == "closed"
    assert metrics.points(OUTAGES) == []


@tells_of_its_end
def test_a_client_that_was_not_used_discovers_nothing(watching: list[Any], spans: Spans) -> None:
    with connect("mongodb://127.0.0.1:1", event_listeners=watching, connect=False):
        pass
    assert spans.names == []


# ---------------------------------------------------------------------------------------------------------------------
# Outages.


def test_a_failover_is_an_outage(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(replica_set.uri, event_listeners=watching, **OFTEN) as client:
        client.admin.command("ping")
        lost = replica_set.members[0]
        until(lambda: len(spans.named(DISCOVERY)) == 1)
        stepped_down = time.time_ns()
        replica_set.step_down()
        time.sleep(0.3)
        elected = time.time_ns()
        replica_set.elect(replica_set.members[1])
        client.shop.orders.insert_one({})
        outage = spans.wait_for(OUTAGE)

    assert (outage.parent, outage.kind) == (None, SpanKind.INTERNAL)
    assert (outage.status.status_code, outage.status.description) == (StatusCode.ERROR, None)
    assert stepped_down <= start(outage) <= elected <= end(outage)
    assert end(outage) - elected < 0.5e9
    replica_set_is = {"mongodb.client.replica_set.name": replica_set.name}
    assert attributes(outage) == replica_set_is | {
        "db.system.name": "mongodb",
        "mongodb.client.topology.type": "ReplicaSetNoPrimary",
        "server.address": "127.0.0.1",
        "server.port": lost.port,
        "error.type": "NotPrimaryError",
        "mongodb.client.outage.outcome": "recovered",
        "mongodb.client.outage.failed_heartbeat_count": 0,
        "mongodb.client.outage.previous_primary.address": f"127.0.0.1:{lost.port}",
        "mongodb.client.outage.primary.address": f"127.0.0.1:{replica_set.members[1].port}",
    }
    assert events(outage) == ["server.changed", "topology.changed"] * 2
    assert (
        event(outage, "server.changed").items()
        >= {
            "server.port": lost.port,
            "mongodb.client.server.previous_type": "RSPrimary",
            "mongodb.client.server.type": "RSSecondary",
        }.items()
    )
    measured = metrics.one(OUTAGES)
    assert (measured.count, dict(measured.attributes)) == (1, replica_set_is)
    assert measured.sum == pytest.approx(seconds(outage), abs=0.001)
    assert list(measured.explicit_bounds) == [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300]
    (exemplar,) = measured.exemplars
    assert exemplar.span_id == span_id(outage)


def test_a_command_that_finds_the_step_down_is_linked_from_the_outage(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    primary = replica_set.members[0]
    with connect(replica_set.uri, event_listeners=watching) as client:  # every ten seconds: no heartbeat tells it
        client.shop.orders.insert_one({})
        spans.wait_for(DISCOVERY)
        primary.fail("insert", code=10107, code_name="NotWritablePrimary", labels=["RetryableWriteError"])
        hello = primary.freeze("hello", times=None)
        inserted = ThreadPoolExecutor(1)
        waiting = inserted.submit(client.shop.orders.insert_one, {})
        until(lambda: len(spans.named("insert orders")) == 2)
        hello.release()
        waiting.result(5)
        inserted.shutdown()
        outage = spans.wait_for(OUTAGE)

    _, failed, repeated = spans.named("insert orders")
    assert attributes(failed)["error.type"] == "10107"
    assert linked(outage) == [span_id(failed)]
    if pymongo.version_tuple >= (4, 18):  # else nothing tells that it is another attempt
        assert linked(repeated)[-1] == span_id(failed)
    changed = event(outage, "server.changed")
    assert changed["error.type"] == "NotPrimaryError"
    assert "mongodb.client.error.message" not in changed  # it quotes the server's reply
    assert start(outage) <= end(failed) + 50_000_000  # its own time, not that at which the driver reports it
    assert "heartbeat.failed" not in events(outage)


def test_a_killed_standalone_is_an_outage_with_its_failed_heartbeats(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=watching, serverSelectionTimeoutMS=1000, **OFTEN) as client:
        client.shop.orders.insert_one({})
        spans.wait_for(DISCOVERY)
        server.stop()
        with pytest.raises(PyMongoError):
            client.shop.orders.insert_one({})
        # A command that finds out first cancels the heartbeat that waits: it is the next one that fails.
        until(lambda: metrics.values("mongodb.client.heartbeat.duration", "error.type").keys() != {None})
        server.start()
        until(lambda: answers(client))
        outage = spans.wait_for(OUTAGE)

    told = events(outage)
    assert {"heartbeat.failed", "pool.cleared", "server.changed", "heartbeat.succeeded"} == set(told)
    assert told.count("server.changed") == 2  # it was lost, and it came back; what failed in between is no change
    assert told[-2:] == ["heartbeat.succeeded", "server.changed"]
    assert told.count("heartbeat.succeeded") == 1
    assert (
        event(outage, "server.changed").items()
        >= {
            "mongodb.client.server.previous_type": "Standalone",
            "mongodb.client.server.type": "Unknown",
        }.items()
    )
    assert event(outage, "server.changed")["error.type"]
    stamps = [each.timestamp for each in outage.events]
    assert stamps == sorted(stamps)
    assert start(outage) <= stamps[0] <= stamps[-1] <= end(outage)
    assert dict(metrics.one(OUTAGES).attributes) == {"server.address": "127.0.0.1", "server.port": server.port}
    about = attributes(outage)
    assert (about["error.type"], about[OUTCOME]) == (event(outage, "server.changed")["error.type"], "recovered")
    assert about["mongodb.client.outage.failed_heartbeat_count"] == told.count("heartbeat.failed")
    assert (
        not {"mongodb.client.outage.primary.address", "mongodb.client.outage.previous_primary.address"} & about.keys()
    )


def test_a_command_that_fails_on_the_network_is_linked_from_the_outage(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    with connect(
        server.uri, event_listeners=watching, serverSelectionTimeoutMS=1000, retryReads=False, **OFTEN
    ) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        frozen = server.freeze("count")
        with ThreadPoolExecutor(1) as threads:
            counting = threads.submit(client.shop.command, "count", "orders")
            assert frozen.reached.wait(5)
            server.stop()
            frozen.release()
            assert isinstance(counting.exception(5), PyMongoError)
        server.start()
        until(lambda: answers(client))
        outage = spans.wait_for(OUTAGE)

    count = spans.one("count orders")
    assert count.status.status_code is StatusCode.ERROR
    assert linked(outage) == [span_id(count)]


def test_failed_checkouts_are_linked_from_the_outage(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    options: dict[str, Any] = {"serverSelectionTimeoutMS": 1000, "retryReads": False, "maxPoolSize": 1}
    with connect(server.uri, event_listeners=watching, **OFTEN, **options) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        frozen = server.freeze("count", times=None)
        with ThreadPoolExecutor(3) as threads:
            first = threads.submit(client.shop.command, "count", "orders")
            assert frozen.reached.wait(5)
            waiting = threads.submit(client.shop.command, "count", "orders")
            until(lambda: metrics.one("db.client.connection.pending_requests").value == 1)
            server.stop()
            frozen.release()
            for each in (first, waiting):
                assert isinstance(each.exception(5), PyMongoError)
        server.start()
        until(lambda: answers(client))
        outage = spans.wait_for(OUTAGE)

    (checkout,) = [span for span in spans.finished if span.name.startswith("checkout ")]
    assert {span_id(spans.one("count orders")), span_id(checkout)} == set(linked(outage))


# ---------------------------------------------------------------------------------------------------------------------
# What is told on the spans of commands.


def test_a_command_that_is_open_tells_what_happened_to_its_server(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    with connect(server.uri, event_listeners=watching, retryReads=False, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        frozen = server.freeze("count")
        with ThreadPoolExecutor(1) as threads:
            counting = threads.submit(client.shop.command, "count", "orders")
            assert frozen.reached.wait(5)
            broken = server.fail("hello", close_connection=True, times=None)
            until(open_outages)
            broken.times = 0
            spans.wait_for(OUTAGE)
            frozen.release()
            counting.result(5)
        client.admin.command("ping")

    count = spans.one("count orders")
    told = events(count)
    assert told[0] == "heartbeat.failed"
    assert {"pool.cleared", "server.changed"} <= set(told) <= {"heartbeat.failed", "pool.cleared", "server.changed"}
    failed = event(count, "heartbeat.failed")
    assert failed.items() >= {"server.port": server.port, "error.type": "AutoReconnect"}.items()
    assert event(count, "server.changed")["mongodb.client.server.type"] == "Unknown"
    assert all(start(count) <= each.timestamp <= end(count) for each in count.events)
    # What began later, and what ended before, has none of it.
    assert [events(ping) for ping in spans.named("ping admin")] == [[], []]


def test_a_topology_that_changes_is_told_on_the_commands_of_all_its_servers(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    primary, secondary, _ = replica_set.members
    with (
        connect(replica_set.uri, event_listeners=watching) as client,
        connect(f"{secondary.uri}", event_listeners=watching) as another,
    ):
        client.admin.command("ping")
        another.admin.command("ping")
        until(lambda: len(spans.named(DISCOVERY)) == 2)
        frozen = [member.freeze("count", times=None) for member in replica_set.members]
        with ThreadPoolExecutor(2) as threads:
            counting = threads.submit(client.shop.command, "count", "orders", read_preference=SECONDARY)
            elsewhere = threads.submit(another.shop.command, "count", "bills")
            until(lambda: sum(freeze.reached.is_set() for freeze in frozen) > 0)
            until(lambda: len(_open(watching)) == 2)
            try:
                replica_set.step_down()
                until(open_outages)
                replica_set.elect(primary)
                spans.wait_for(OUTAGE)
            finally:
                for freeze in frozen:
                    freeze.release()
            counting.result(5)
            elsewhere.result(5)

    assert [name for name in events(spans.one("count orders")) if name == "topology.changed"] == [
        "topology.changed"
    ] * 2
    assert events(spans.one("count bills")) == []  # a client of its own, which has no primary to lose


def _open(listeners: Any) -> list[Any]:
    return [*table_of(listeners).by_id.values(), *table_of(listeners).duplicates.values()]


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of topology.


def test_a_sharded_cluster_is_out_once_its_last_mongos_is(watching: list[Any], spans: Spans) -> None:
    with ScriptedServer(role="mongos") as first, ScriptedServer(role="mongos") as second:
        uri = f"mongodb://127.0.0.1:{first.port},127.0.0.1:{second.port}"
        with connect(uri, event_listeners=watching, **OFTEN) as client:
            client.admin.command("ping")
            discovery = spans.wait_for(DISCOVERY)
            until(lambda: len(client.nodes) == 2)
            first.stop()
            until(lambda: len(client.nodes) == 1)
            assert outages._periods.open == {}
            second.stop()
            until(open_outages)
            second.start()
            until(lambda: answers(client))
            outage = spans.wait_for(OUTAGE)

    assert event(discovery, "topology.changed")["mongodb.client.topology.type"] == "Sharded"
    assert attributes(outage)["mongodb.client.topology.type"] == "Sharded"
    lost = [dict(each.attributes or {}) for each in outage.events if each.name == "mongodb.client.server.changed"]
    assert {each["server.port"] for each in lost} == {second.port}


def test_a_set_without_any_primary_is_out_once_nothing_can_be_read(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    replica_set.step_down()
    with connect(replica_set.uri, event_listeners=watching, readPreference="secondary", **OFTEN) as client:
        spans.wait_for(DISCOVERY)
        until(lambda: len(client.nodes) == 3)
        for member in replica_set.members[:2]:
            member.stop()
        until(lambda: len(client.nodes) == 1)
        assert outages._periods.open == {}
        replica_set.members[2].stop()
        until(open_outages)
        replica_set.members[0].start()
        outage = spans.wait_for(OUTAGE)

    assert event(outage, "server.changed")["mongodb.client.server.previous_type"] == "RSSecondary"


def test_behind_a_load_balancer_there_is_nothing_to_discover(
    watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with ScriptedServer(role="load_balanced") as server:
        with connect(server.uri, event_listeners=watching) as client:
            client.admin.command("ping")
            until(lambda: metrics.servers(TYPE) == {"LoadBalancer": 1})
            server.drop_connections()
            until(lambda: answers(client))
        assert {DISCOVERY, OUTAGE} & set(spans.names) == set()


def test_a_direct_connection_to_a_secondary_is_out_when_it_is_gone(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    secondary = replica_set.members[1]
    uri = f"mongodb://127.0.0.1:{secondary.port}/?directConnection=true"
    with connect(uri, event_listeners=watching, **OFTEN) as client:
        client.admin.command("ping")
        replica_set.step_down()
        replica_set.elect(replica_set.members[2])
        secondary.stop()
        until(open_outages)
        secondary.start()
        until(lambda: answers(client))
        outage = spans.wait_for(OUTAGE)

    assert (
        attributes(outage).items()
        >= {
            "mongodb.client.topology.type": "Single",
            "server.port": secondary.port,
        }.items()
    )


def test_another_set_than_the_one_that_is_asked_for_is_never_discovered(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    uri = replica_set.uri.replace(f"replicaSet={replica_set.name}", "replicaSet=another")
    with connect(uri, event_listeners=watching, serverSelectionTimeoutMS=1000) as client:
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 0})
    if pymongo.version_tuple < (4, 9):
        outages.end_all("exit")
    discovery = spans.wait_for(DISCOVERY)

    assert discovery.status.status_code is StatusCode.ERROR
    assert events(discovery).count("server.closed") == 3
    if pymongo.version_tuple >= (4, 9):
        assert metrics.servers(TYPE) == {}


def test_a_server_that_is_removed_from_its_set_is_told(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(replica_set.uri, event_listeners=watching, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 2})
        removed = replica_set.members.pop()
        replica_set.elect(replica_set.members[0])
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 1})
        round_trips = metrics.points("mongodb.client.server.round_trip_time")
        assert removed.port not in {point.attributes["server.port"] for point in round_trips}
        replica_set.members.append(removed)
    assert spans.named(OUTAGE) == []


def test_no_error_caused_the_outage_of_a_primary_that_left_its_set() -> None:
    primary, unknown = (ServerDescription(("127.0.0.1", 1), Hello(hello), 0.1) for hello in (PRIMARY, {}))
    lost = Difference(moment(), [], [], [primary])
    assert _cause(lost) == "_OTHER"
    assert _cause(lost._replace(changed=[(unknown, unknown)])) == "_OTHER"


def test_two_clients_of_one_server_have_an_outage_each(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    options: dict[str, Any] = {"event_listeners": watching} | OFTEN
    with connect(server.uri, **options) as one, connect(server.uri, **options) as two:
        assert answers(one)
        assert answers(two)
        until(lambda: len(spans.named(DISCOVERY)) == 2)
        server.stop()
        until(lambda: len(open_outages()) == 2)
        server.start()
        until(lambda: answers(one) and answers(two))
        until(lambda: len(spans.named(OUTAGE)) == 2)

    topologies = {event(outage, "server.changed")["mongodb.client.topology.id"] for outage in spans.named(OUTAGE)}
    assert len(topologies) == 2
    assert metrics.one(OUTAGES).count == 2


def test_nothing_is_remembered_of_clients_that_are_gone(server: ScriptedServer, watching: list[Any]) -> None:
    states = watching[-1].servers

    def is_empty() -> bool:
        gc.collect()
        # Asking for them looks after those that are gone.
        return not (states.servers() or states.topologies() or states._servers or states._topologies)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver warns of those that weren't closed
        for number in range(40):
            client = connect(server.uri, event_listeners=watching)
            client.admin.command("ping")
            if number % 2:
                client.close()
        assert len(states._topologies) > 0
        del client
        until(is_empty, seconds=20)


# ---------------------------------------------------------------------------------------------------------------------
# How an episode ends that doesn't end well.


def lose(server: ScriptedServer) -> None:
    """Make a server unreachable, and wait until that is an outage that knows of the change which began it."""
    server.stop()
    until(lambda: any(CHANGED in names_noted(outage) for outage in open_outages()))


def names_noted(episode: outages.Period) -> list[str]:
    return [incident.name for incident in list(episode._events)]


def assert_ended(spans: Spans, metrics: Metrics, outcome: str) -> None:
    outage = spans.wait_for(OUTAGE)
    assert (outage.status.status_code, outage.status.description) == (StatusCode.ERROR, None)
    assert attributes(outage)[OUTCOME] == outcome
    assert attributes(outage)["error.type"] in ("AutoReconnect", "OSError")
    assert "server.changed" in events(outage)
    measured = metrics.one(OUTAGES)
    assert (measured.count, measured.attributes.keys()) == (1, {"server.address", "server.port"})


@tells_of_its_end
def test_it_ends_with_its_client(server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics) -> None:
    with connect(server.uri, event_listeners=watching, **CLOSED_WITHOUT_SERVER) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
    assert_ended(spans, metrics, "closed")
    assert events(spans.one(OUTAGE))[-3:] == ["server.closed", "topology.changed", "topology.closed"]


def test_it_ends_when_its_client_is_garbage_collected(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    client = connect(server.uri, event_listeners=watching, **OFTEN)
    client.admin.command("ping")
    spans.wait_for(DISCOVERY)
    lose(server)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver warns that it wasn't closed
        del client
        until(lambda: collected() and spans.named(OUTAGE))
    assert_ended(spans, metrics, "collected")


@pytest.mark.parametrize("has_worked", [True, False])
def test_a_client_that_is_collected_before_the_driver_reports(
    has_worked: bool, server: ScriptedServer, watching: list[Any], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching[-1], "description_changed", lambda event: None)  # it is collected before that
    if not has_worked:
        server.stop()
    listening = {"event_listeners": watching, "serverSelectionTimeoutMS": 300}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver warns that it wasn't closed
        client = connect(server.uri, connect=False, **listening, **OFTEN)
        topology_id = client._topology._topology_id
        # Its discovery begins with the first heartbeat.
        watching[-1].servers.prepare(topology_id, client.topology_description)
        with contextlib.suppress(PyMongoError):
            client.admin.command("ping")
        if has_worked:
            time.sleep(0.6)  # there are more heartbeats
        until(lambda: outages._periods.open != {})
        settings, at = weakref.ref(client._topology._settings), time.time_ns()
        del client
        until(lambda: collected() and settings() is None)
        gone = time.time_ns()
        until(lambda: collected() and spans.named(DISCOVERY))

    discovery = spans.one(DISCOVERY)
    about = attributes(discovery)
    if has_worked:
        assert about["mongodb.client.discovery.outcome"] == "discovered"
        assert discovery.status.status_code is StatusCode.UNSET
        assert seconds(discovery) < 0.4
    else:
        assert (about["mongodb.client.discovery.outcome"], about["error.type"]) == ("collected", "AutoReconnect")
        assert discovery.status.status_code is StatusCode.ERROR
        assert at <= end(discovery) <= gone + 0.4e9  # and not when that was noticed


def test_the_discovery_of_a_client_that_is_used_late_shows_when_it_was_opened(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    with connect(server.uri, connect=False, event_listeners=watching, **OFTEN) as client:
        time.sleep(0.3)
        client.admin.command("ping")
        discovery = spans.wait_for(DISCOVERY)

    assert events(discovery)[:2] == ["topology.opened", "server.opened"]
    assert [event.timestamp for event in discovery.events][:2] == [start(discovery)] * 2


def test_it_ends_when_the_instrumentation_is_taken_off(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    providers: Any = {"tracer_provider": spans.provider, "meter_provider": metrics.provider}
    instrumentor.instrument(topology=True, **providers)
    with connect(server.uri, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
        instrumentor.uninstrument()
        outage = spans.wait_for(OUTAGE)
        assert attributes(outage)[OUTCOME] == "uninstrumented"
        server.start()
        until(lambda: answers(client))
        instrumentor.instrument(topology=True, **providers)
        assert_ended(spans, metrics, "uninstrumented")
        # The next one is told as ever.
        lose(server)
        server.start()
        until(lambda: len(spans.named(OUTAGE)) == 2)


def test_an_outage_that_begins_while_the_instrumentation_is_taken_off_ends_at_once(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, slow: Slow
) -> None:
    slow.goes_on.set()
    spans = Spans(slow)
    instrumentor.instrument(topology=True, tracer_provider=spans.provider)
    with connect(server.uri, **CLOSED_WITHOUT_SERVER) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        slow.reached.clear()
        slow.goes_on.clear()
        server.stop()
        assert slow.reached.wait(5)
        instrumentor.uninstrument()
        slow.goes_on.set()
        assert attributes(spans.wait_for(OUTAGE))[OUTCOME] == "uninstrumented"


def test_it_goes_on_in_another_span_when_it_takes_too_long(
    server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    listeners = listeners_with(spans, metrics, episode_timeout=0.6)
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
        until(lambda: len(spans.named(OUTAGE)) == 1)
        server.start()
        until(lambda: answers(client))
        until(lambda: attributes(spans.named(OUTAGE)[-1])[OUTCOME] == "recovered")

    pieces = spans.named(OUTAGE)
    assert len(pieces) > 1
    assert {attributes(piece)[OUTCOME] for piece in pieces[:-1]} == {"timeout"}
    assert len({attributes(piece)["error.type"] for piece in pieces}) == 1
    for before, after in itertools.pairwise(pieces):
        assert linked(after) == [span_id(before)]
        assert start(after) == pytest.approx(end(before), abs=1e6)
    measured = metrics.one(OUTAGES)
    assert measured.count == 1
    assert measured.sum == pytest.approx(sum(map(seconds, pieces)), abs=0.01 * len(pieces))


class Slow(Picky):
    """A sampler that takes its time for an episode."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any) -> SamplingResult:
        if name in (DISCOVERY, OUTAGE):
            self.reached.set()
            self.goes_on.wait(5)
        return super().should_sample(parent_context, trace_id, name, *rest, **more)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.goes_on.set()


def test_a_span_that_takes_long_to_start_holds_up_no_other_client(
    server: ScriptedServer, watching: list[Any], spans: Spans, slow: Slow
) -> None:
    listeners = event_listeners(tracer_provider=Spans(slow).provider, topology=True)
    with (
        connect("mongodb://127.0.0.1:1", event_listeners=listeners),
        connect(server.uri, event_listeners=watching, **OFTEN) as client,
    ):
        assert slow.reached.wait(5)
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
        server.start()
        until(lambda: answers(client))
        spans.wait_for(OUTAGE)
        slow.goes_on.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_that_is_forked_while_the_first_span_starts_has_its_own_episodes(
    server: ScriptedServer, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "_periods", outages._Periods())  # as in a process that had none
    listeners = event_listeners(tracer_provider=Spans(slow).provider, topology=True)
    with connect("mongodb://127.0.0.1:1", event_listeners=listeners):
        assert slow.reached.wait(5)

        def child() -> bool:
            spans = Spans()
            mine = event_listeners(tracer_provider=spans.provider, topology=True)
            with connect(server.uri, event_listeners=mine) as client:
                client.admin.command("ping")
                spans.wait_for(DISCOVERY)
            return True

        assert in_child(child)
        slow.goes_on.set()
    until(lambda: collected() and background_worker.thread is None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_has_no_part_in_its_parents_outage(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=watching, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)

        def child() -> bool:
            background_worker.at_exit()
            return spans.named(OUTAGE) == [] and outages._periods.open == {}

        assert in_child(child)
        server.start()
        until(lambda: answers(client))
        assert attributes(spans.wait_for(OUTAGE))[OUTCOME] == "recovered"


SHORT = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry_mongo_events import event_listeners
from pymongo import MongoClient

provider = TracerProvider()
told = lambda span: f"{span.name} {span.status.status_code.name} {(span.end_time - span.start_time) / 1e9 < 0.3}\\n"
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=told)))
client = MongoClient(sys.argv[1], event_listeners=event_listeners(tracer_provider=provider, topology=True))
client.admin.command("ping")
"""


def test_a_program_that_exits_before_the_driver_tells_of_its_server_has_a_good_discovery(
    server: ScriptedServer,
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SHORT, server.uri], capture_output=True, text=True, check=True, timeout=30
    )

    assert sorted(run.stdout.splitlines()) == [f"{DISCOVERY} UNSET True", "ping admin UNSET True"]
    assert run.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# The same of an asynchronous client.


@is_asynchronous
async def test_a_failover_under_asynchronous_writes(
    replica_set: ScriptedReplicaSet, watching: list[Any], spans: Spans
) -> None:
    lost = replica_set.members[0]
    with spans.tracer.start_as_current_span("request"):
        client = aconnect(replica_set.uri, event_listeners=watching, **OFTEN)
        await client.shop.orders.insert_one({})
    await eventually(lambda: spans.named(DISCOVERY))
    frozen = lost.freeze("count")
    # A read that a secondary answers as well, once the primary is one.
    preferred = pymongo.ReadPreference.PRIMARY_PREFERRED
    counting = asyncio.create_task(client.shop.command("count", "orders", read_preference=preferred))
    await eventually(frozen.reached.is_set)
    await client.shop.orders.insert_one({})  # on a second connection, which is there from now on
    lost.fail("insert", close_connection=True)
    hello = lost.freeze("hello", times=None)  # it is the write that finds out
    writing = [asyncio.create_task(client.shop.orders.insert_one({}))]
    await eventually(open_outages)
    writing += [asyncio.create_task(client.shop.orders.insert_one({})) for _ in range(5)]
    replica_set.step_down()
    hello.release()
    replica_set.elect(replica_set.members[1])
    await asyncio.gather(*writing)
    await eventually(lambda: spans.named(OUTAGE))
    frozen.release()
    await counting
    await client.close()

    outage, discovery = spans.one(OUTAGE), spans.one(DISCOVERY)
    assert discovery.parent is outage.parent is None  # its tasks copied the context of the request
    assert trace_id(outage) != trace_id(spans.one("request"))
    assert attributes(outage)[OUTCOME] == "recovered"
    assert attributes(outage)["error.type"] == "AutoReconnect"
    assert {"server.changed", "topology.changed"} <= set(events(outage))
    (failed,) = [insert for insert in spans.named("insert orders") if insert.status.status_code is StatusCode.ERROR]
    assert linked(outage) == [span_id(failed)]
    assert {"server.changed", "topology.changed"} <= set(events(spans.one("count orders")))


@is_asynchronous
async def test_an_outage_ends_with_its_asynchronous_client(
    server: ScriptedServer, watching: list[Any], spans: Spans, metrics: Metrics
) -> None:
    client = aconnect(server.uri, event_listeners=watching, **CLOSED_WITHOUT_SERVER)
    await client.admin.command("ping")
    await eventually(lambda: spans.named(DISCOVERY))
    server.stop()
    await eventually(open_outages)
    await client.close()
    await eventually(lambda: spans.named(OUTAGE))

    assert_ended(spans, metrics, "closed")
