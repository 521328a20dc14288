"""Metrics of commands on a real driver: every command that is not suppressed counts, once."""

from __future__ import annotations

import asyncio
import contextvars
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.clients import aconnect, connect
from tests.events import started, succeeded
from tests.metrics import Metrics
from tests.spans import Spans, commands_of, table_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from pymongo import MongoClient

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.servers.scripted import ScriptedServer

DURATION = "db.client.operation.duration"
ROWS = "db.client.response.returned_rows"
OPERATION = "db.operation.name"


def point(metrics: Metrics, name: str, operation: str) -> Any:
    """The only data point of a metric for an operation."""
    found = [each for each in metrics.points(name) if each.attributes[OPERATION] == operation]
    assert len(found) == 1, found
    return found[0]


def test_a_command_is_measured_as_the_contract_says(
    client: MongoClient[Any], server: ScriptedServer, metrics: Metrics
) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(3)])
    for _ in range(2):
        assert len(list(client.shop.orders.find())) == 3

    about = {
        "db.system.name": "mongodb",
        "db.namespace": "shop",
        "db.collection.name": "orders",
        "db.operation.name": "find",
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    assert {name: metric.unit for name, metric in metrics.collected().items() if name in (DURATION, ROWS)} == {
        DURATION: "s",
        ROWS: "{row}",
    }
    duration = point(metrics, DURATION, "find")
    assert (duration.count, dict(duration.attributes)) == (2, about)
    assert duration.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert 0 < duration.sum < 5

    rows = point(metrics, ROWS, "find")
    assert (rows.count, rows.sum, dict(rows.attributes)) == (2, 6, about)
    assert rows.explicit_bounds == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
    assert metrics.values(ROWS, OPERATION) == {"find": 2}


def test_an_exemplar_leads_to_the_span(client: MongoClient[Any], spans: Spans, metrics: Metrics) -> None:
    with spans.tracer.start_as_current_span("request"):
        client.shop.orders.find_one()

    collected = metrics.collected()  # once: an exemplar is handed out and forgotten
    for name in (DURATION, ROWS):
        [measured] = collected[name].data.data_points
        [exemplar] = measured.exemplars
        context = spans.one("find orders").context
        assert context is not None
        assert (exemplar.trace_id, exemplar.span_id) == (context.trace_id, context.span_id)


def test_an_error_is_told_by_its_code(
    client: MongoClient[Any], server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    client.shop.users.insert_one({"_id": 1})
    with pytest.raises(DuplicateKeyError):
        client.shop.users.insert_one({"_id": 1})
    server.fail("count", code=59, code_name="CommandNotFound")
    with pytest.raises(OperationFailure):
        client.shop.command("count", "users")
    server.fail("distinct", close_connection=True)
    with pytest.raises(PyMongoError):
        client.shop.command("distinct", "users", key="a")

    told = metrics.values(DURATION, OPERATION, "error.type", "db.response.status_code")
    hang_up = "AutoReconnect" if pymongo.version_tuple >= (4, 18) else "OSError"
    assert told == {
        ("insert", None, None): 1,
        ("insert", "11000", "11000"): 1,
        ("count", "59", "59"): 1,
        ("distinct", hang_up, None): 1,
    }
    assert metrics.points(ROWS) == []


def test_what_has_no_span_is_measured_all_the_same(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, metrics: Metrics
) -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    for options in (
        {"tracer_provider": spans.provider},
        {"exclude_commands": "ping, find"},
        {"require_parent_span": True},
    ):
        instrumentor.instrument(meter_provider=metrics.provider, **options)
        with connect(server.uri) as client:
            client.admin.command("ping")
        instrumentor.uninstrument()

    assert metrics.values(DURATION, OPERATION)["ping"] == 3


def test_a_command_without_a_span_that_fails_is_measured(server: ScriptedServer, metrics: Metrics) -> None:
    made = event_listeners(tracer_provider=Spans(sampler=ALWAYS_OFF).provider, meter_provider=metrics.provider)
    server.fail("ping", code=2)
    with connect(server.uri, event_listeners=made) as client, pytest.raises(OperationFailure):
        client.admin.command("ping")

    (failed,) = (point for point in metrics.points(DURATION) if "error.type" in point.attributes)
    assert (failed.attributes[OPERATION], failed.attributes["error.type"], failed.count) == ("ping", "2", 1)


def test_what_is_suppressed_is_not_measured(client: MongoClient[Any], metrics: Metrics) -> None:
    with suppress_instrumentation():
        client.admin.command("ping")

    assert metrics.points(DURATION) == []


def test_an_unsampled_commands_exemplar_leads_to_its_caller(server: ScriptedServer, metrics: Metrics) -> None:
    callers = Spans()
    made = event_listeners(tracer_provider=Spans(sampler=ALWAYS_OFF).provider, meter_provider=metrics.provider)
    with connect(server.uri, event_listeners=made) as client:
        with callers.tracer.start_as_current_span("request"):
            client.admin.command("ping")
        assert len(table_of(made)) == 0

    context = callers.one("request").context
    [exemplar] = point(metrics, DURATION, "ping").exemplars
    assert context is not None
    assert exemplar.span_id == context.span_id


def test_commands_are_measured_while_their_spans_stand_down(
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opentelemetry_mongo_events._telemetry import other_tracers

    monkeypatch.setattr(other_tracers, "_contrib_is_active", lambda: True)
    own, theirs = Spans(), Metrics()
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider)
    made = event_listeners(tracer_provider=own.provider, meter_provider=theirs.provider)
    with connect(server.uri, event_listeners=made) as client:
        client.shop.orders.find_one()
    assert len(table_of(made)) == 0

    # The client's own listener was asked for by hand: it makes the span, and the instrumentor has counted already.
    assert (spans.names, own.names[:1]) == ([], ["find orders"])
    assert metrics.values(DURATION, OPERATION)["find"] == 1
    assert DURATION not in theirs.collected()


@pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="a task can be cancelled since PyMongo 4.11")
async def test_a_cancelled_command_counts_with_its_time(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    async with aconnect(server.uri, event_listeners=listeners) as client:
        frozen = server.freeze("find")
        task = asyncio.create_task(client.shop.command("find", "orders"))
        await eventually(frozen.reached.is_set)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        frozen.release()

    found = point(metrics, DURATION, "find")
    kind = "interrupted" if pymongo.version_tuple[:3] <= (4, 20, 0) else "CancelledError"
    assert (found.count, found.attributes["error.type"]) == (1, kind)
    assert 0.05 <= found.sum < 5


def test_what_the_driver_sends_in_the_background_has_no_exemplar(spans: Spans, metrics: Metrics) -> None:
    made = event_listeners(tracer_provider=Spans(sampler=ALWAYS_OFF).provider, meter_provider=metrics.provider)
    commands: Any = commands_of(made)

    def close_cursors() -> None:
        commands.started(started({"killCursors": "orders", "cursors": [12]}))
        commands.succeeded(succeeded("killCursors"))

    with spans.tracer.start_as_current_span("request"):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(close_cursors,), name="pymongo_killer")
        thread.start()
        thread.join()

    found = point(metrics, DURATION, "killCursors")
    assert (found.count, list(found.exemplars)) == (1, [])


def test_no_more_than_a_thousand_collections_are_remembered(metrics: Metrics) -> None:
    made = event_listeners(tracer_provider=Spans(sampler=ALWAYS_OFF).provider, meter_provider=metrics.provider)
    commands: Any = commands_of(made)
    for number in range(2_000):
        commands.started(started({"find": f"c{number}"}))
        commands.succeeded(succeeded("find"))

    assert len(commands._descriptions) == 1_000


@pytest.mark.parametrize("micros", [-5, 0])
def test_a_duration_is_never_negative(micros: int, listeners: Any, metrics: Metrics) -> None:
    commands: Any = commands_of(listeners)
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", micros=micros))

    assert metrics.one(DURATION).sum == 0


def test_without_a_meter_provider_nothing_is_opened_for_a_metric(server: ScriptedServer) -> None:
    made = event_listeners(tracer_provider=Spans(sampler=ALWAYS_OFF).provider)
    commands: Any = commands_of(made)
    commands.started(started({"find": "orders"}))

    assert len(table_of(made)) == 0


@pytest.mark.parametrize(
    "given", ["", "meter_provider=metrics.get_meter_provider(), tracer_provider=trace.get_tracer_provider()"]
)
def test_global_providers_that_are_set_later_get_all(server: ScriptedServer, tmp_path: Path, given: str) -> None:
    script = tmp_path / "later.py"
    script.write_text(LATER.replace("GIVEN", given))
    done = run_script(script, server.uri)

    # The second ping is measured too, where the machine takes its time.
    assert done.pop("ping") in (2, 3)
    assert done == {"pools": {"idle": 2, "used": 0}, "names": ["127.0.0.1"], "spans": ["ping admin"] * 3}


LATER = """
import json, sys, time
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from pymongo import MongoClient

MongoEventsInstrumentor().instrument(GIVEN)
with MongoClient(sys.argv[1]) as first:
    first.admin.command("ping")  # nobody measures yet
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    exporter = InMemorySpanExporter()
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    time.sleep(0.01)
    first.admin.command("ping")  # it has a span by now
    time.sleep(0.1)
    first.admin.command("ping")
    # Asked for by the provider that is the global one by now: the same instruments.
    MongoEventsInstrumentor().uninstrument()
    listeners = event_listeners(meter_provider=metrics.get_meter_provider())
    with MongoClient(sys.argv[1], event_listeners=listeners) as second:
        second.admin.command("ping")
        MongoEventsInstrumentor().instrument()
        data = reader.get_metrics_data()
found = {m.name: m.data.data_points for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
print(json.dumps({
    "ping": sum(p.count for p in found["db.client.operation.duration"]),
    "pools": {p.attributes["db.client.connection.state"]: p.value for p in found["db.client.connection.count"]},
    "names": [p.attributes["server.address"] for p in found["db.client.operation.duration"]],
    "spans": [span.name for span in exporter.get_finished_spans() if span.name == "ping admin"],
}))
"""


def run_script(script: Path, *args: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *args], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)
