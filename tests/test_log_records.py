"""Incidents as log records with an event name."""

from __future__ import annotations

import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.sdk._logs import LogRecordProcessor

from opentelemetry_mongo_events import _incidents, _telemetry, event_listeners
from opentelemetry_mongo_events._guard import Guard
from tests.clients import answers, connect
from tests.events import checked_in, checked_out, connection_ready, heartbeat_failed, pool_cleared
from tests.servers.scripted import ScriptedReplicaSet
from tests.spans import events, span_id, trace_id
from tests.test_outages import DISCOVERY, OFTEN, OUTAGE
from tests.waiting import until

if TYPE_CHECKING:
    from tests.logs import Logs
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer
    from tests.spans import Spans

has_log_records = pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters, reason="OpenTelemetry 1.38 has events"
)
pytestmark = pytest.mark.usefixtures("quick_driver")

INFO, WARN = SeverityNumber.INFO, SeverityNumber.WARN


def listeners_with(events: str, spans: Spans, logs: Logs) -> list[Any]:
    return event_listeners(tracer_provider=spans.provider, logger_provider=logs.provider, topology=True, events=events)


def run_through_an_outage(server: ScriptedServer, listeners: list[Any], spans: Spans) -> None:
    with connect(server.uri, event_listeners=listeners, serverSelectionTimeoutMS=300, **OFTEN) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        server.stop()
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
    assert [record.attributes["mongodb.client.replica_set"] for record in warnings] == [replica_set.name] * 2
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
        address = next(iter(listeners[0]._open._commands.values())).command_id[1]
        heartbeats = next(each for each in listeners if type(each).__name__ == "HeartbeatEvents")
        heartbeats.failed(heartbeat_failed(address, TimeoutError("timed out"), duration=1.0))
        frozen.release()
        counting.join()
        discovery = spans.wait_for(DISCOVERY)

    assert events(spans.one("count orders")) == (["heartbeat.failed"] if are_span_events else [])
    assert (events(discovery) != []) is are_span_events
    assert len(logs.named("heartbeat.failed")) == are_log_records
    assert (logs.records != []) is are_log_records


@has_log_records
def test_a_record_under_the_drivers_locks_waits_for_whoever_holds_none(spans: Spans, logs: Logs) -> None:
    listeners = listeners_with("log", spans, logs)
    pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
    pools.pool_cleared(pool_cleared())
    assert logs.names == []

    pools.connection_checked_in(checked_in(1))

    (cleared,) = logs.records
    assert cleared.event_name == "mongodb.client.pool.cleared"
    assert dict(cleared.attributes) == {"server.address": "db.example", "server.port": 27017}
    assert (cleared.severity_number, cleared.trace_id) == (INFO, 0)


class Broken(LogRecordProcessor):
    """A log pipeline that raises, whatever it is given."""

    def on_emit(self, log_record: Any) -> None:
        raise ConnectionError(log_record.log_record.event_name)

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@has_log_records
def test_a_log_pipeline_that_raises_costs_its_records_and_nothing_else(
    server: ScriptedServer,
    spans: Spans,
    logs: Logs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_incidents._handed_on, "guard", Guard())  # each kind of failure is logged once
    logs.provider.add_log_record_processor(Broken())
    run_through_an_outage(server, listeners_with("both", spans, logs), spans)

    assert events(spans.one(DISCOVERY))[-1] == "topology.changed"
    assert events(spans.one(OUTAGE))[-1] == "server.changed"
    (warning,) = [message for message in caplog.messages if "a log record raised" in message]
    assert warning.startswith("a log record raised ConnectionError; the application goes on")


@has_log_records
def test_a_connection_that_was_given_back_is_counted_so_whatever_a_log_pipeline_does(
    spans: Spans, metrics: Metrics, logs: Logs
) -> None:
    logs.provider.add_log_record_processor(Broken())
    providers: Any = {"tracer_provider": spans.provider, "meter_provider": metrics.provider}
    listeners: list[Any] = event_listeners(logger_provider=logs.provider, events="log", **providers)
    pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
    pools.connection_ready(connection_ready(1))
    pools.connection_checked_out(checked_out(1))
    pools.pool_cleared(pool_cleared())
    pools.connection_checked_in(checked_in(1))

    assert metrics.connections() == (1, 0)


class Stores(LogRecordProcessor):
    """A log pipeline that goes through the very pool that it tells of, which is cleared at once."""

    pools: Any

    def __init__(self) -> None:
        self.emitted = 0

    def on_emit(self, log_record: Any) -> None:
        self.emitted += 1
        self.pools.pool_cleared(pool_cleared())
        self.pools.connection_checked_in(checked_in(1))

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@has_log_records
def test_a_log_pipeline_that_makes_records_itself_is_not_asked_again_at_once(spans: Spans, logs: Logs) -> None:
    listeners = listeners_with("log", spans, logs)
    stores = Stores()
    stores.pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
    logs.provider.add_log_record_processor(stores)
    stores.pools.pool_cleared(pool_cleared())

    stores.pools.connection_checked_in(checked_in(1))
    assert stores.emitted == 1

    stores.pools.connection_checked_in(checked_in(1))
    assert stores.emitted == 2


def test_without_events_in_the_api_there_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logs: Logs
) -> None:
    class OlderLogger:
        def emit(self, record: Any) -> None: ...

    monkeypatch.setattr(_telemetry, "Logger", OlderLogger)
    event_listeners(logger_provider=logs.provider, events="both")
    event_listeners(logger_provider=logs.provider)

    assert caplog.messages == ["events=both needs opentelemetry-api 1.38 or newer: no log records are made"]
