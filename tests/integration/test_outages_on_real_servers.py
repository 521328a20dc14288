"""Outages of real servers, and a failover as Jaeger shows it."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pymongo.errors import PyMongoError
from pymongo.monitoring import TopologyListener

from opentelemetry_mongo_events import event_listeners
from tests.clients import aconnect, answers, connect
from tests.integration.test_traces_in_jaeger import provider_for, references, tags
from tests.servers.processes import FerretDB, NxServer
from tests.servers.scripted import ScriptedReplicaSet
from tests.spans import Spans, attributes, end, event, events, linked, seconds, span_id, start
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan
    from pymongo.monitoring import TopologyClosedEvent, TopologyDescriptionChangedEvent, TopologyOpenedEvent

    from tests.servers.processes import Jaeger, Process

DISCOVERY = "mongodb.client.discovery"
OUTAGE = "mongodb.client.outage"
SELECT = "select server"
WAIT_TIME = "mongodb.client.server_selection.wait_time"
OFTEN: dict[str, Any] = {"heartbeatFrequencyMS": 500}
selecting = pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7 logs its server selections")


class Loss(TopologyListener):
    """Notices when the driver reports that a client has lost its servers, which is up to a second late."""

    def __init__(self) -> None:
        self.is_reported = threading.Event()

    def opened(self, event: TopologyOpenedEvent) -> None:
        """Ignore the event."""

    def description_changed(self, event: TopologyDescriptionChangedEvent) -> None:
        """Check whether a server is left."""
        if event.previous_description.has_readable_server() and not event.new_description.has_readable_server():
            self.is_reported.set()

    def closed(self, event: TopologyClosedEvent) -> None:
        """Ignore the event."""


def assert_tells_of_the_kill(spans: Spans) -> ReadableSpan:
    outage = spans.one(OUTAGE)
    assert attributes(outage)["mongodb.client.outage.outcome"] == "recovered"
    assert outage.parent is None
    told = events(outage)
    assert {"server.changed", "heartbeat.failed", "heartbeat.succeeded"} <= set(told)
    assert told[-2:] == ["heartbeat.succeeded", "server.changed"]
    assert event(outage, "server.changed")["mongodb.client.server.previous_type"] == "Standalone"
    failed = [
        span
        for span in spans.finished
        if span.name.startswith(("insert ", "checkout ")) and span.status.status_code is StatusCode.ERROR
    ]
    assert {span_id(span) for span in failed} == set(linked(outage))
    assert {attributes(span)["error.type"] for span in failed} <= {"AutoReconnect", "OSError", "connectionError"}
    return outage


@pytest.mark.parametrize("kind", [NxServer, FerretDB])
def test_a_server_that_is_killed_and_comes_back(
    kind: type[Process], run_server: Callable[[Process], None], spans: Spans
) -> None:
    server: Any = kind()
    run_server(server)
    listeners = event_listeners(tracer_provider=spans.provider, topology=True)
    with connect(server.uri, event_listeners=listeners, retryWrites=False, **OFTEN) as client:

        def write(number: int) -> bool:
            try:
                client.shop.orders.insert_one({"number": number})
            except PyMongoError:
                return False
            return True

        assert write(0)
        spans.wait_for(DISCOVERY)
        server.stop()
        killed = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            writing = [threads.submit(write, number) for number in range(1, 5)]
            time.sleep(1)
            writing.append(threads.submit(write, 5))  # waits for a server
            server.start()
            written = [each.result() for each in writing]
        until(lambda: answers(client))
        lasted = time.monotonic() - killed
        spans.wait_for(OUTAGE)

    assert 1 - 0.5 < seconds(assert_tells_of_the_kill(spans)) < lasted + 0.5
    assert written[-1]


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
async def test_the_same_with_an_asynchronous_client(run_server: Callable[[Process], None], spans: Spans) -> None:
    server = FerretDB()
    run_server(server)
    listeners = event_listeners(tracer_provider=spans.provider, topology=True)
    client = aconnect(server.uri, event_listeners=listeners, retryWrites=False, **OFTEN)
    await client.shop.orders.insert_one({"number": 0})
    await eventually(lambda: spans.named(DISCOVERY))
    await asyncio.to_thread(server.stop)
    writing = [asyncio.create_task(client.shop.orders.insert_one({"number": number})) for number in range(1, 5)]
    await asyncio.sleep(1)
    writing.append(asyncio.create_task(client.shop.orders.insert_one({"number": 5})))  # waits for a server
    await asyncio.to_thread(server.start)
    outcomes = await asyncio.gather(*writing, return_exceptions=True)
    await client.admin.command("ping")
    await eventually(lambda: spans.named(OUTAGE))
    await client.close()

    assert_tells_of_the_kill(spans)
    assert not isinstance(outcomes[-1], BaseException)


@selecting
@pytest.mark.parametrize("kind", [NxServer, FerretDB])
def test_a_request_that_waits_while_its_server_is_killed_and_restarted(
    kind: type[Process], run_server: Callable[[Process], None], spans: Spans
) -> None:
    server: Any = kind()
    run_server(server)
    loss = Loss()
    listeners = event_listeners(tracer_provider=spans.provider, topology=True, selections=True)
    with connect(server.uri, event_listeners=[*listeners, loss], **OFTEN) as client:
        client.shop.orders.insert_one({"number": 0})
        spans.wait_for(DISCOVERY)
        spans.clear()
        server.stop()
        until(lambda: not client.topology_description.has_readable_server())
        with ThreadPoolExecutor(1) as threads:

            def order() -> None:
                with spans.tracer.start_as_current_span("POST /orders"):
                    client.shop.orders.insert_one({"number": 1})

            ordering = threads.submit(order)
            time.sleep(1)
            assert loss.is_reported.wait(20)
            server.start()
            ordering.result()
        outage = spans.wait_for(OUTAGE)

    request, selection, insert = spans.one("POST /orders"), spans.one(SELECT), spans.one("insert orders")
    assert selection.parent is not None
    assert insert.parent is not None
    assert selection.parent.span_id == insert.parent.span_id == span_id(request)
    assert start(request) <= start(selection) < end(selection) <= start(insert)
    assert seconds(selection) > 0.9
    assert selection.status.status_code is StatusCode.UNSET
    assert attributes(selection).items() >= {"db.operation.name": "insert", "server.port": server.ports[0]}.items()
    assert attributes(insert)[WAIT_TIME] == pytest.approx(seconds(selection), abs=0.001)
    assert linked(selection) == [span_id(outage)]
    assert linked(outage) == [span_id(selection)]


@selecting
def test_requests_that_wait_arrive_in_jaeger(jaeger: Jaeger, run_server: Callable[[Process], None]) -> None:
    server = FerretDB()
    run_server(server)
    service = f"selections-{uuid.uuid4().hex}"
    provider = provider_for(jaeger, service)
    ended = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(ended))
    tracer = provider.get_tracer("shop")
    loss = Loss()
    listeners = event_listeners(tracer_provider=provider, topology=True, selections=True)
    with (
        connect(server.uri, event_listeners=[*listeners, loss], **OFTEN) as client,
        ThreadPoolExecutor(2) as threads,
    ):

        def request(name: str, timeout: float) -> None:
            with tracer.start_as_current_span(name), pymongo.timeout(timeout):
                client.shop.orders.insert_one({})

        request("POST /first", 20)
        server.stop()
        assert loss.is_reported.wait(20)
        waiting = threads.submit(request, "POST /orders", 20)
        in_vain = threads.submit(request, "POST /impatient", 0.5)
        time.sleep(1.5)
        server.start()
        waiting.result()
        assert isinstance(in_vain.exception(), PyMongoError)
        until(lambda: OUTAGE in [span.name for span in ended.get_finished_spans()])
    provider.shutdown()

    def traces_of(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The spans of each trace by their names, by the name of its root."""
        traces = [{span["operationName"]: span for span in trace["spans"]} for trace in found]
        return {name: trace for trace in traces for name, span in trace.items() if not references(span, "CHILD_OF")}

    found = jaeger.wait_for_traces(
        service, lambda found: {OUTAGE, "POST /orders", "POST /impatient"} <= traces_of(found).keys()
    )
    traces = traces_of(found)
    outage = traces[OUTAGE][OUTAGE]
    assert traces["POST /orders"].keys() == {"POST /orders", SELECT, "insert orders"}
    assert traces["POST /impatient"].keys() == {"POST /impatient", SELECT}
    selections = [traces[name][SELECT] for name in ("POST /impatient", "POST /orders")]
    for name, selection in zip(("POST /impatient", "POST /orders"), selections, strict=True):
        assert references(selection, "CHILD_OF") == [traces[name][name]["spanID"]]
        assert references(selection, "FOLLOWS_FROM") == [outage["spanID"]]
        assert (
            tags(selection).items()
            >= {
                "span.kind": "internal",
                "db.operation.name": "insert",
                "mongodb.client.server_selection.selector": "writable",
                "mongodb.client.topology.type": "Single",
            }.items()
        )
    assert references(outage, "FOLLOWS_FROM") == [each["spanID"] for each in selections]

    failed, succeeded = selections
    # Jaeger marks a span with this tag in red.
    assert tags(failed).items() >= {"error": True, "error.type": "ServerSelectionTimeoutError"}.items()
    assert 0.4e6 < failed["duration"] < 1.4e6  # microseconds
    assert not {"error", "error.type"} & tags(succeeded).keys()
    assert tags(succeeded)["server.port"] == server.ports[0]
    assert succeeded["duration"] > 1.4e6
    waited = tags(traces["POST /orders"]["insert orders"])[WAIT_TIME]
    assert waited == pytest.approx(succeeded["duration"] / 1e6, abs=0.001)


def test_a_failover_arrives_in_jaeger(jaeger: Jaeger) -> None:
    service = f"failover-{uuid.uuid4().hex}"
    provider = provider_for(jaeger, service)
    tracer = provider.get_tracer("shop")
    listeners = event_listeners(tracer_provider=provider, topology=True)
    with ScriptedReplicaSet(3) as replica_set, connect(replica_set.uri, event_listeners=listeners) as client:
        primary, next_primary, _ = replica_set.members
        client.shop.orders.insert_one({})
        time.sleep(1.1)  # as long as the driver may take to tell of its discovery
        frozen = primary.freeze("count")
        with ThreadPoolExecutor(2) as threads:

            def request(name: str, work: Callable[..., Any], *args: Any, **options: Any) -> None:
                with tracer.start_as_current_span(name):
                    work(*args, **options)

            preferred = pymongo.ReadPreference.PRIMARY_PREFERRED
            reading = threads.submit(
                request, "GET /report", client.shop.command, "count", "orders", read_preference=preferred
            )
            assert frozen.reached.wait(5)
            client.shop.orders.insert_one({})  # on a second connection, which is there from now on
            primary.fail("insert", code=10107, code_name="NotWritablePrimary", labels=["RetryableWriteError"])
            hello = primary.freeze("hello", times=None)  # it is the write that finds out
            writing = threads.submit(request, "POST /orders", client.shop.orders.insert_one, {})
            time.sleep(1.2)
            replica_set.step_down()
            hello.release()
            time.sleep(0.3)
            replica_set.elect(next_primary)
            writing.result(10)
            time.sleep(1.1)
            frozen.release()
            reading.result(10)
    provider.shutdown()

    def is_complete(found: list[dict[str, Any]]) -> bool:
        names = [span["operationName"] for trace in found for span in trace["spans"]]
        return {OUTAGE, DISCOVERY, "GET /report", "POST /orders"} <= set(names)

    traces = jaeger.wait_for_traces(service, is_complete)
    spans = [span for trace in traces for span in trace["spans"]]
    (outage,) = [span for span in spans if span["operationName"] == OUTAGE]
    assert references(outage, "CHILD_OF") == []
    assert tags(outage).items() >= {"otel.status_code": "ERROR", "mongodb.client.replica_set.name": "rs0"}.items()
    assert outage["duration"] > 1_400_000  # microseconds

    def logs(span: dict[str, Any]) -> list[dict[str, Any]]:
        return [{field["key"]: field["value"] for field in log["fields"]} for log in span["logs"]]

    told = logs(outage)
    names = [log["event"].removeprefix("mongodb.client.") for log in told]
    # In between the old primary says that it is none any more.
    assert names[:2] == names[-2:] == ["server.changed", "topology.changed"]
    assert told[0]["server.port"] == primary.port
    assert told[0]["error.type"] == "NotPrimaryError"
    assert told[-2].items() >= {"server.port": next_primary.port, "mongodb.client.server.type": "RSPrimary"}.items()

    inserts = sorted(
        (span for span in spans if span["operationName"] == "insert orders"), key=lambda span: int(span["startTime"])
    )
    *_, failed, repeated = inserts
    assert tags(failed)["error.type"] == "10107"
    assert references(outage, "FOLLOWS_FROM") == [failed["spanID"]]
    assert failed["spanID"] in references(repeated, "FOLLOWS_FROM")
    (count,) = [span for span in spans if span["operationName"] == "count orders"]
    assert {log["event"] for log in logs(count)} == {
        "mongodb.client.server.changed",
        "mongodb.client.topology.changed",
    }
