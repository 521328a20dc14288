"""Incidents as log records with an event name."""

from __future__ import annotations

import inspect
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.sdk._logs import LogRecordProcessor

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._telemetry import telemetry
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT
from tests.clients import answers, connect
from tests.conftest import registered_listeners
from tests.events import heartbeat_failed, heartbeat_started, pool_cleared
from tests.forks import in_child
from tests.servers.scripted import ScriptedReplicaSet
from tests.spans import events, span_id, trace_id
from tests.test_outages import DISCOVERY, OFTEN, OUTAGE
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.logs import Logs
    from tests.servers.scripted import ScriptedServer
    from tests.spans import Spans

has_log_records = pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters, reason="OpenTelemetry 1.38 has events"
)
pytestmark = pytest.mark.usefixtures("quick_driver")

INFO, WARN = SeverityNumber.INFO, SeverityNumber.WARN


def listeners_with(events: str, spans: Spans, logs: Logs) -> list[Any]:
    return event_listeners(tracer_provider=spans.provider, logger_provider=logs.provider, topology=True, events=events)


def pools_of(listeners: list[Any]) -> Any:
    return next(each for each in listeners if type(each).__name__ == "PoolEvents")


def run_through_an_outage(server: ScriptedServer, listeners: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=listeners, serverSelectionTimeoutMS=1000, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        server.stop()
        # A command that finds out first would cancel the heartbeat that waits.
        until(lambda: not client.topology_description.has_readable_server())
        assert not answers(client)
        server.start()
        until(lambda: answers(client))
        spans.wait_for(OUTAGE)


@has_log_records
def test_each_incident_is_a_record(server: ScriptedServer, spans: Spans, logs: Logs) -> None:
    before = time.time_ns()
    with spans.tracer.start_as_current_span("request"):
        run_through_an_outage(server, listeners_with("log", spans, logs), spans)

    assert set(logs.names) >= {
        "topology.opened",
        "topology.changed",
        "server.opened",
        "server.changed",
        "heartbeat.failed",
        "heartbeat.succeeded",
        "pool.cleared",
    }
    failed = logs.named("heartbeat.failed")[0]
    told = dict(failed.attributes)
    assert told.pop("mongodb.client.heartbeat.duration") >= 0
    assert "connection closed" in told.pop("mongodb.client.error.message") or "reset" in str(failed.attributes)
    assert isinstance(told.pop("mongodb.client.topology.id"), str)
    assert told == {
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "mongodb.client.heartbeat.awaited": True,
        "error.type": "AutoReconnect",
    }
    assert before < failed.timestamp <= failed.observed_timestamp <= time.time_ns()
    assert (failed.severity_number, failed.severity_text, failed.body) == (WARN, "WARN", None)
    severities = {
        (name, record.attributes.get("mongodb.client.server.type")): record.severity_number
        for name, record in zip(logs.names, logs.records, strict=True)
        if name != "heartbeat.failed"
    }
    assert severities.pop(("server.changed", "Unknown")) is WARN
    assert set(severities.values()) == {INFO}
    # They belong to no request; what came while the outage was known to be open belongs to it.
    assert trace_id(spans.one("request")) not in {record.trace_id for record in logs.records}
    outage = span_id(spans.one(OUTAGE))
    assert {record.span_id for record in logs.named("heartbeat.failed")} <= {0, outage}
    assert logs.named("server.changed")[-1].span_id == outage
    assert (events(spans.one(OUTAGE)), events(spans.one(DISCOVERY))) == ([], [])


@has_log_records
def test_a_lost_primary_is_a_warning(spans: Spans, logs: Logs) -> None:
    with (
        ScriptedReplicaSet(3) as replica_set,
        connect(replica_set.uri, event_listeners=listeners_with("both", spans, logs), **OFTEN) as client,
    ):
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        until(lambda: len(client.secondaries) == 2)
        replica_set.step_down()
        until(lambda: client.primary is None)
        replica_set.elect(replica_set.members[1])
        outage = spans.wait_for(OUTAGE)
    warnings = [record for record in logs.records if record.severity_number is WARN]

    assert [record.event_name for record in warnings] == [
        "mongodb.client.server.changed",
        "mongodb.client.topology.changed",
    ]
    assert [record.attributes["mongodb.client.replica_set.name"] for record in warnings] == [replica_set.name] * 2
    assert events(outage) == ["server.changed", "topology.changed"] * 2
    # Once for all of them: a client that is closed is no bad news.
    if pymongo.version_tuple >= (4, 9):
        assert logs.named("topology.closed")[-1].severity_number is INFO


@pytest.mark.parametrize(
    ("choice", "are_span_events", "are_log_records"),
    [("span", True, False), ("log", False, True), ("both", True, True), ("none", False, False)],
)
@has_log_records
def test_incidents_go_where_the_option_says(
    choice: str, are_span_events: bool, are_log_records: bool, server: ScriptedServer, spans: Spans, logs: Logs
) -> None:
    listeners = listeners_with(choice, spans, logs)
    frozen = server.freeze("count")
    with connect(server.uri, event_listeners=listeners, retryReads=False) as client:
        counting = threading.Thread(target=client.shop.command, args=("count", "orders"))
        counting.start()
        assert frozen.reached.wait(5)
        address = next(iter(listeners[0]._open.by_id.values())).command_id[1]
        heartbeats = next(each for each in listeners if type(each).__name__ == "HeartbeatEvents")
        heartbeats.started(heartbeat_started(address))
        heartbeats.failed(heartbeat_failed(address, TimeoutError("timed out"), duration=1.0))
        frozen.release()
        counting.join()
        discovery = spans.wait_for(DISCOVERY)

    assert events(spans.one("count orders")) == (["heartbeat.failed"] if are_span_events else [])
    assert (events(discovery) != []) is are_span_events
    assert len(logs.named("heartbeat.failed")) == are_log_records
    assert (logs.records != []) is are_log_records


@has_log_records
def test_a_record_of_a_pool_is_one_of_its_server(spans: Spans, logs: Logs) -> None:
    pools = pools_of(listeners_with("log", spans, logs))
    pools.pool_cleared(pool_cleared())

    (cleared,) = logs.records
    assert cleared.event_name == "mongodb.client.pool.cleared"
    assert dict(cleared.attributes) == {"server.address": "db.example", "server.port": 27017}
    assert (cleared.severity_number, cleared.trace_id) == (INFO, 0)


class Pipeline(LogRecordProcessor):
    """A log pipeline that does something first."""

    def __init__(self, do: Callable[[Any], object]) -> None:
        self._do = do

    def on_emit(self, log_record: Any) -> None:
        self._do(log_record.log_record)

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class Held:
    """What holds a log pipeline up until the end of the test."""

    def __init__(self, logs: Logs) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        logs.hold_up(Pipeline(self._wait))

    def _wait(self, _: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.reached.set()
        self.goes_on.wait(10)


@pytest.fixture
def held(logs: Logs) -> Iterator[Held]:
    held = Held(logs)
    yield held
    held.goes_on.set()
    background_worker.flush()


@has_log_records
def test_a_pipeline_that_takes_its_time_holds_up_no_recovery(
    server: ScriptedServer, spans: Spans, logs: Logs, held: Held
) -> None:
    run_through_an_outage(server, listeners_with("log", spans, logs), spans)
    assert held.reached.is_set()
    before = time.time_ns()
    held.goes_on.set()

    assert held.threads == {"opentelemetry_mongo_events"}
    # They tell what was so as they were made.
    recovered = logs.named("server.changed")[-1]
    assert recovered.timestamp <= recovered.observed_timestamp <= before
    assert recovered.span_id == span_id(spans.one(OUTAGE))


@has_log_records
def test_a_record_has_what_was_known_as_it_was_made(logs: Logs) -> None:
    incident = BackgroundEvent("mongodb.client.heartbeat.failed", {"server.port": 27017})
    record = incident.record(logs.provider.get_logger("test"), NO_PARENT)
    incident.attributes = incident.attributes | {"mongodb.client.topology.id": "6b06e1d075aa5b224a180f6e"}
    record()

    assert dict(logs.records[0].attributes) == {"server.port": 27017}


@has_log_records
def test_so_many_records_wait_and_no_more(
    spans: Spans, logs: Logs, held: Held, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_worker, "_dropped", itertools.count())
    pools = pools_of(listeners_with("log", spans, logs))
    pools.pool_cleared(pool_cleared())
    assert held.reached.wait(5)
    for _ in range(1_500):
        pools.pool_cleared(pool_cleared())
    assert caplog.messages == []
    held.goes_on.set()

    assert len(logs.records) == 1_001
    assert caplog.messages == [
        (
            "1,000 log records and failed server selections are waiting for the telemetry pipeline: new ones are "
            "dropped until some have been processed (logged once)"
        )
    ]


@has_log_records
def test_none_is_lost_when_the_instrumentation_is_taken_off(
    instrumentor: MongoEventsInstrumentor, spans: Spans, logs: Logs
) -> None:
    emitted: list[Any] = []

    def emit(record: Any) -> None:
        time.sleep(0.05)
        emitted.append(record)

    logs.provider.add_log_record_processor(Pipeline(emit))
    instrumentor.instrument(tracer_provider=spans.provider, logger_provider=logs.provider, events="log")
    pools = pools_of(registered_listeners())
    for _ in range(3):
        pools.pool_cleared(pool_cleared())
    instrumentor.uninstrument()

    assert len(emitted) == 3


@has_log_records
def test_a_pipeline_may_take_the_instrumentation_off(
    instrumentor: MongoEventsInstrumentor, spans: Spans, logs: Logs
) -> None:
    logs.provider.add_log_record_processor(Pipeline(lambda _: instrumentor.uninstrument()))
    instrumentor.instrument(tracer_provider=spans.provider, logger_provider=logs.provider, events="log")
    pools_of(registered_listeners()).pool_cleared(pool_cleared())

    started = time.monotonic()
    assert len(logs.records) == 1
    assert time.monotonic() - started < 2
    assert not instrumentor.is_instrumented_by_opentelemetry


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@has_log_records
def test_a_child_has_records_of_its_own_only(spans: Spans, logs: Logs, held: Held) -> None:
    pools = pools_of(listeners_with("log", spans, logs))
    for _ in range(3):
        pools.pool_cleared(pool_cleared())
    assert held.reached.wait(5)

    def child() -> bool:
        held.goes_on.set()
        pools.pool_cleared(pool_cleared(("other.example", 27017)))
        return [record.attributes["server.address"] for record in logs.records] == ["other.example"]

    assert in_child(child)
    held.goes_on.set()
    assert len(logs.records) == 3


def fail(record: Any) -> None:
    raise ConnectionError(record.event_name)


@has_log_records
def test_a_log_pipeline_that_raises_costs_its_records_and_nothing_else(
    server: ScriptedServer,
    spans: Spans,
    logs: Logs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_worker, "guard", Guard())  # each kind of failure is logged once
    logs.provider.add_log_record_processor(Pipeline(fail))
    run_through_an_outage(server, listeners_with("both", spans, logs), spans)
    background_worker.flush()

    assert events(spans.one(DISCOVERY))[-1] == "topology.changed"
    assert events(spans.one(OUTAGE))[-1] == "server.changed"
    (warning,) = [message for message in caplog.messages if "a log record raised" in message]
    assert warning.startswith("a log record raised ConnectionError; the error is suppressed")


@has_log_records
def test_a_pipeline_that_goes_through_the_pool_that_it_tells_of_makes_no_records(spans: Spans, logs: Logs) -> None:
    pools = pools_of(listeners_with("log", spans, logs))
    logs.provider.add_log_record_processor(Pipeline(lambda _: pools.pool_cleared(pool_cleared())))
    pools.pool_cleared(pool_cleared())
    assert len(logs.records) == 1

    pools.pool_cleared(pool_cleared())
    assert len(logs.records) == 2


def test_without_events_in_the_api_there_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logs: Logs
) -> None:
    class OlderLogger:
        def emit(self, record: Any) -> None: ...

    monkeypatch.setattr(telemetry, "Logger", OlderLogger)
    event_listeners(logger_provider=logs.provider, events="both")
    event_listeners(logger_provider=logs.provider)

    assert caplog.messages == ["events=both requires opentelemetry-api 1.38 or newer: no log records are emitted"]
