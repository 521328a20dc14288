"""Telemetry that fails, blocks or is shut down: the application goes on, and what can be told still is."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import StatusCode
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._pools.state import PoolState
from tests.broken import BrokenMeterProvider, BrokenTracerProvider, LinklessTracerProvider, Picky, TelemetryError
from tests.clients import answers, connect
from tests.events import check_out_failed, checked_out, connection_closed, connection_created, connection_ready
from tests.metrics import Metrics
from tests.spans import Spans, attributes, event, linked, span_id, table_of
from tests.test_outages import CLOSED_WITHOUT_SERVER, DISCOVERY, OFTEN, OUTAGE, TYPE, listeners_with, lose
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer

COMMANDS = ["insert orders", "find orders", "getMore orders", "insert orders", "unheardOf shop"]
MEASURED = {"insert": 2, "find": 1, "getMore": 1, "unheardOf": 1}
DURATION = "db.client.operation.duration"


@pytest.fixture(autouse=True)
def quiet_driver(quick_driver: None, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The driver prints a traceback for each event whose listener raises, and so does a thread that dies."""
    yield
    assert "Traceback" not in capfd.readouterr().err


def work(client: MongoClient[Any]) -> None:
    """What an application does, with what it expects of it."""
    orders = client.shop.orders
    orders.delete_many({})
    assert orders.insert_many([{"_id": number} for number in range(3)]).inserted_ids == [0, 1, 2]
    assert [order["_id"] for order in orders.find(batch_size=2)] == [0, 1, 2]
    with pytest.raises(DuplicateKeyError):
        orders.insert_one({"_id": 1})
    with pytest.raises(OperationFailure):
        client.shop.command("unheardOf")


def made(spans: Spans) -> list[str]:
    """The commands of `work` that have a span."""
    return [name for name in spans.names if name in COMMANDS]


def measured(metrics: Metrics) -> dict[str, int]:
    """The commands of `work`, and how often they were measured."""
    values = metrics.values(DURATION, "db.operation.name")
    return {name: count for name, count in values.items() if name in MEASURED}


def heartbeats(metrics: Metrics) -> int:
    return sum(point.count for point in metrics.points("mongodb.client.heartbeat.duration"))


def threads_of_the_driver() -> set[str]:
    """Those that call listeners, by their names."""
    names = {thread.name for thread in threading.enumerate()}
    return names & {"pymongo_events_thread", "pymongo_server_monitor_thread"}


# ---------------------------------------------------------------------------------------------------------------------
# Providers that raise.


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        *(
            (method, TelemetryError)
            for method in ("start_span", "is_recording", "set_attribute", "set_status", "end", "add_event", "add_link")
        ),
        ("start_span", asyncio.CancelledError),
        ("end", asyncio.CancelledError),
    ],
)
def test_a_span_of_which_a_method_raises(
    broken: str,
    error: type[BaseException],
    server: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = BrokenTracerProvider(spans.provider, broken, error=error)
    listeners = event_listeners(tracer_provider=provider, meter_provider=metrics.provider, topology=True)
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client:
        work(client)
        assert len(threads_of_the_driver()) == 2
        lose(server)
        until(lambda: not client.topology_description.has_readable_server())
        server.start()
        until(lambda: answers(client))
        until(lambda: metrics.points("mongodb.client.outage.duration"))
        assert len(threads_of_the_driver()) == 2

    assert measured(metrics) == MEASURED
    assert metrics.one("mongodb.client.outage.duration").count == 1
    if broken not in ("start_span", "is_recording"):
        assert made(spans) == COMMANDS
        statuses = [span.status.status_code for span in spans.finished if span.name in COMMANDS]
        failed = StatusCode.UNSET if broken == "set_status" else StatusCode.ERROR
        assert statuses == [StatusCode.UNSET] * 3 + [failed] * 2
        assert {DISCOVERY, OUTAGE} <= set(spans.names)
    if broken == "add_link":
        assert event(spans.one(OUTAGE), "server.changed")
    assert len(table_of(listeners)) == 0
    raised = [message for message in caplog.messages if f"raised {error.__name__}; the error is suppressed" in message]
    assert len(raised) == len(set(raised))


@pytest.mark.parametrize("has_method", [True, False], ids=["the API's method", "no method"])
def test_spans_that_take_no_links_after_their_start_lose_only_these(
    has_method: bool,
    replica_set: ScriptedReplicaSet,
    spans: Spans,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    provider = LinklessTracerProvider(spans.provider, has_method=has_method)
    listeners = event_listeners(tracer_provider=provider, meter_provider=metrics.provider, topology=True)
    primary = replica_set.members[0]
    with connect(replica_set.uri, event_listeners=listeners, **OFTEN) as client:
        work(client)
        primary.fail("count", close_connection=True)
        replica_set.step_down()
        with pytest.raises(PyMongoError):
            client.shop.command("count", "orders")
        until(lambda: client.primary is None)
        replica_set.elect(primary)
        outage = spans.wait_for(OUTAGE)

    find, more = spans.named("find orders")[0], spans.one("getMore orders")
    assert linked(more) == [span_id(find)]  # given at the start
    assert linked(outage) == []
    assert attributes(outage)["mongodb.client.outage.outcome"] == "recovered"
    assert outage.status.status_code is StatusCode.ERROR
    assert event(outage, "topology.changed")
    assert measured(metrics) == MEASURED
    assert metrics.one("mongodb.client.outage.duration").count == 1
    assert caplog.messages == []
    assert [str(each.message) for each in recwarn if "add_link" in str(each.message)] == []


@pytest.mark.parametrize(
    "broken", [DURATION, "db.client.response.returned_rows", "db.client.connection.use_time", "all"]
)
def test_a_measurement_that_raises(broken: str, server: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    histograms = (
        DURATION,
        "db.client.response.returned_rows",
        "db.client.connection.create_time",
        "db.client.connection.wait_time",
        "db.client.connection.use_time",
        "mongodb.client.heartbeat.duration",
        "mongodb.client.outage.duration",
    )
    provider = BrokenMeterProvider(metrics.provider, *(histograms if broken == "all" else [broken]))
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=provider, topology=True)
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client:
        work(client)
        lose(server)
        until(lambda: not client.topology_description.has_readable_server())
        server.start()
        until(lambda: answers(client))
        outage = spans.wait_for(OUTAGE)
        assert metrics.connections() == (1, 0)

    assert made(spans) == COMMANDS
    assert measured(metrics) == ({} if broken in (DURATION, "all") else MEASURED)
    # What a heartbeat tells, and how a connection ended, hang on no measurement.
    assert event(outage, "heartbeat.failed")
    assert sum(metrics.values("mongodb.client.connection.closed", "db.client.connection.pool.name").values()) >= 1
    for name in set(histograms) - {broken} if broken != "all" else ():
        assert metrics.points(name), name


def test_a_connection_that_is_closed_while_it_is_out_is_counted_though_its_use_cant_be_measured(
    metrics: Metrics,
) -> None:
    provider = BrokenMeterProvider(metrics.provider, "db.client.connection.use_time")
    listeners: Any = event_listeners(meter_provider=provider)
    pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
    for tell, told in (
        (pools.connection_created, connection_created(1)),
        (pools.connection_ready, connection_ready(1)),
        (pools.connection_checked_out, checked_out(1)),
        (pools.connection_closed, connection_closed(1)),
    ):
        tell(told)

    assert metrics.one("mongodb.client.connection.closed").value == 1


@pytest.mark.parametrize("broken", ["set_status", "end"])
def test_the_span_of_a_failed_checkout_ends_whatever_raises(broken: str, spans: Spans) -> None:
    listeners: Any = event_listeners(tracer_provider=BrokenTracerProvider(spans.provider, broken))
    pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
    pools.connection_check_out_failed(check_out_failed("timeout"))

    assert spans.names == ["checkout db.example:27017"]


class Raises(SpanProcessor):
    """A span processor that fails as a span starts or ends."""

    def __init__(self, *, at_start: bool) -> None:
        self.at_start = at_start

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.at_start:
            raise TelemetryError

    def on_end(self, span: Any) -> None:
        if not self.at_start:
            raise TelemetryError


@pytest.mark.parametrize("at_start", [True, False])
def test_a_span_processor_that_raises(at_start: bool, server: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    spans.provider.add_span_processor(Raises(at_start=at_start))
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)
    with connect(server.uri, event_listeners=listeners) as client:
        work(client)

    assert made(spans) == ([] if at_start else COMMANDS)
    assert measured(metrics) == MEASURED
    assert len(table_of(listeners)) == 0


class Raising(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise RuntimeError

    def get_description(self) -> str:
        return "raising"


def test_a_sampler_that_raises_costs_the_spans(
    server: ScriptedServer, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    spans = Spans(Raising())
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider)
    with connect(server.uri, event_listeners=listeners) as client:
        work(client)

    assert (spans.names, measured(metrics), len(table_of(listeners))) == ([], MEASURED, 0)
    assert len(caplog.messages) == 1


def test_what_happens_is_told_even_if_no_span_can_be_started(replica_set: ScriptedReplicaSet, metrics: Metrics) -> None:
    sampler = Picky()
    sampler.raises = True
    spans = Spans(sampler)
    watching = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)
    changes = ("mongodb.client.topology.changes", "mongodb.client.topology.previous_type")
    with connect(replica_set.uri, event_listeners=watching, **OFTEN):
        until(lambda: metrics.values(*changes).get("Unknown") == 1)
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 2})
        replica_set.step_down()
        until(lambda: metrics.values(*changes).get("ReplicaSetWithPrimary") == 1)
        removed = replica_set.members.pop()
        replica_set.elect(replica_set.members[0])
        until(lambda: metrics.servers(TYPE) == {"RSPrimary": 1, "RSSecondary": 1})
        replica_set.members.append(removed)
    assert spans.names == []


def test_an_outage_whose_next_span_can_not_be_started_ends_all_the_same(
    server: ScriptedServer, metrics: Metrics
) -> None:
    sampler = Picky()
    spans = Spans(sampler)
    listeners = listeners_with(spans, metrics, episode_timeout=0.6)
    with connect(server.uri, event_listeners=listeners, **CLOSED_WITHOUT_SERVER) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
        sampler.raises = True
        assert attributes(spans.wait_for(OUTAGE))["mongodb.client.outage.outcome"] == "timeout"


class Exits(SpanProcessor):
    """A span processor that ends the thread in which an outage's span ends, once."""

    has_exited = False

    def on_end(self, span: ReadableSpan) -> None:
        if attributes(span).get("mongodb.client.outage.outcome") == "timeout" and not self.has_exited:
            self.has_exited = True
            sys.exit()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_was_ended_by_an_exporter_is_replaced(server: ScriptedServer, spans: Spans) -> None:
    exits = Exits()
    spans.provider.add_span_processor(exits)
    listeners = event_listeners(tracer_provider=spans.provider, topology=True, episode_timeout=0.6)
    with connect(server.uri, event_listeners=listeners, **CLOSED_WITHOUT_SERVER) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)
        lose(server)
        until(lambda: exits.has_exited)
        until(lambda: len(spans.named(OUTAGE)) >= 3)


class NoExemplars:
    """An exemplar filter that fails, until it doesn't."""

    fails = True

    def should_sample(self, *_: Any, **__: Any) -> bool:
        if self.fails:
            raise TelemetryError
        return False


def test_an_exemplar_filter_that_raises_costs_the_measurement(server: ScriptedServer, spans: Spans) -> None:
    exemplars = NoExemplars()
    metrics = Metrics(exemplar_filter=exemplars)
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)
    with connect(server.uri, event_listeners=listeners) as client:
        work(client)
        spans.wait_for(DISCOVERY)
        exemplars.fails = False  # the SDK asks as it reads, too
        assert metrics.connections() == (1, 0)
        assert measured(metrics) == {}
        work(client)
        assert measured(metrics) == MEASURED

    assert made(spans) == COMMANDS * 2


def test_a_reading_that_raises_costs_that_metric_alone(
    client: MongoClient[Any], metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(client)

    def fail(_: object) -> None:
        raise TelemetryError

    monkeypatch.setattr(PoolState, "connections", fail)
    work(client)
    collected = metrics.collected()

    assert "db.client.connection.count" not in collected
    assert {"db.client.connection.limit", "db.client.connection.pending_requests", DURATION} <= collected.keys()


# ---------------------------------------------------------------------------------------------------------------------
# Exporters that block, and a collector that is dead.


class Blocks(SpanExporter):
    """An exporter that takes as long as it is told to, for spans of that name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached, self.goes_on = threading.Event(), threading.Event()
        self.exported: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        if any(span.name == self.name for span in spans):
            self.reached.set()
            self.goes_on.wait(20)
        self.exported += [span.name for span in spans]
        return SpanExportResult.SUCCESS


@pytest.fixture
def blocking(request: pytest.FixtureRequest) -> Iterator[Blocks]:
    blocking = Blocks(request.param)
    yield blocking
    blocking.goes_on.set()


def blocked(processor: Any, exporter: SpanExporter, metrics: Metrics) -> tuple[TracerProvider, list[Any]]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(exporter))
    return provider, event_listeners(tracer_provider=provider, meter_provider=metrics.provider, topology=True)


@pytest.mark.parametrize("blocking", ["find orders"], indirect=True)
def test_an_exporter_that_blocks_a_command_blocks_nobody_else(
    blocking: Blocks, server: ScriptedServer, metrics: Metrics
) -> None:
    _, listeners = blocked(SimpleSpanProcessor, blocking, metrics)
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(client.shop.orders.find_one, {})
        assert blocking.reached.wait(5)
        # Other threads, the driver's monitor and whoever collects metrics go on.
        assert client.shop.bills.find_one({}) is None
        before = heartbeats(metrics)
        until(lambda: heartbeats(metrics) > before)
        assert not slow.done()
        blocking.goes_on.set()
        assert slow.result(5) is None

    assert "find bills" in blocking.exported


@pytest.mark.parametrize("blocking", [DISCOVERY], indirect=True)
def test_an_exporter_that_blocks_the_drivers_own_thread_blocks_no_command(
    blocking: Blocks, server: ScriptedServer, metrics: Metrics
) -> None:
    _, listeners = blocked(SimpleSpanProcessor, blocking, metrics)
    client = connect(server.uri, event_listeners=listeners, **OFTEN)
    work(client)
    assert blocking.reached.wait(5)
    work(client)
    started = time.monotonic()
    client.close()

    assert time.monotonic() - started < 10  # the driver waits a second for its thread
    assert not blocking.goes_on.is_set()


@pytest.mark.parametrize("blocking", ["find orders"], indirect=True)
def test_an_exporter_that_blocks_its_own_thread_blocks_nobody(
    blocking: Blocks, server: ScriptedServer, metrics: Metrics
) -> None:
    provider, listeners = blocked(
        lambda exporter: BatchSpanProcessor(exporter, schedule_delay_millis=10), blocking, metrics
    )
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client:
        work(client)
        assert blocking.reached.wait(5)
        work(client)
    assert not blocking.goes_on.is_set()
    blocking.goes_on.set()
    provider.shutdown()

    assert measured(metrics) == {name: 2 * count for name, count in MEASURED.items()}


@pytest.fixture(params=["refuses", "hangs"])
def collector(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a collector where nobody listens, or nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_a_collector_that_is_dead(processor: Any, collector: str, server: ScriptedServer) -> None:
    traces = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    measurements = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    records = pytest.importorskip("opentelemetry.exporter.otlp.proto.http._log_exporter")
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    timeout = 0.1  # of each export
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(processor(traces.OTLPSpanExporter(f"{collector}/v1/traces", timeout=timeout)))
    reader = PeriodicExportingMetricReader(
        measurements.OTLPMetricExporter(f"{collector}/v1/metrics", timeout=timeout), export_interval_millis=50
    )
    meter_provider = MeterProvider([reader], shutdown_on_exit=False)
    logger_provider = LoggerProvider(shutdown_on_exit=False)
    logger_provider.add_log_record_processor(
        SimpleLogRecordProcessor(records.OTLPLogExporter(f"{collector}/v1/logs", timeout=timeout))
    )
    listeners = event_listeners(
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
        events="both",
        topology=True,
    )
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client:
        work(client)
        assert len(threads_of_the_driver()) == 2
        server.drop_connections()
        until(lambda: answers(client))
        work(client)
        assert len(threads_of_the_driver()) == 2
    assert len(table_of(listeners)) == 0
    for provider in (tracer_provider, meter_provider, logger_provider):
        provider.shutdown()


def test_a_collector_that_hangs_blocks_no_command_whose_spans_are_sent_by_a_thread(server: ScriptedServer) -> None:
    traces = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(10)
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = traces.OTLPSpanExporter(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces", timeout=30)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=10))
        with connect(server.uri, event_listeners=event_listeners(tracer_provider=provider)) as client:
            work(client)
            connection, _ = listener.accept()  # the exporter waits for its answer
            with connection:
                started = time.monotonic()
                work(client)
                assert time.monotonic() - started < 10
                listener.close()
                exporter.shutdown()
        provider.shutdown()


# ---------------------------------------------------------------------------------------------------------------------
# Providers that are shut down.


@pytest.mark.filterwarnings("ignore::UserWarning")  # an SDK warns of what it is given after its shutdown
def test_providers_that_are_shut_down_while_commands_run(server: ScriptedServer, spans: Spans) -> None:
    from opentelemetry.sdk._logs import LoggerProvider

    metrics, logger_provider = Metrics(), LoggerProvider(shutdown_on_exit=False)
    spans.provider.add_span_processor(BatchSpanProcessor(Blocks("")))
    listeners = event_listeners(
        tracer_provider=spans.provider,
        meter_provider=metrics.provider,
        logger_provider=logger_provider,
        topology=True,
        events="both",
    )
    goes_on = threading.Event()
    with connect(server.uri, event_listeners=listeners, **OFTEN) as client, ThreadPoolExecutor(4) as threads:

        def request(number: int) -> int:
            done = 0
            while not goes_on.is_set() or done < 3:
                assert client.shop[f"c{number}"].insert_one({"_id": done}).inserted_id == done
                assert client.shop[f"c{number}"].find_one({"_id": done}) == {"_id": done}
                done += 1
            return done

        running = [threads.submit(request, number) for number in range(4)]
        until(lambda: len(spans.names) > 8)
        for provider in (spans.provider, metrics.provider, logger_provider):
            provider.shutdown()
        goes_on.set()
        assert min(each.result(20) for each in running) >= 3
        server.drop_connections()
        until(lambda: answers(client))
        work(client)

    assert len(table_of(listeners)) == 0
