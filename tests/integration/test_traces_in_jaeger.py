"""End to end: an unmodified script, a real server, and the trace as Jaeger gives it back."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.application import SCRIPT, run_demo, run_instrumented
from tests.clients import connect
from tests.servers.scripted import ScriptedServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.processes import Jaeger


def provider_for(jaeger: Jaeger, service: str) -> TracerProvider:
    """A tracer provider whose spans go to Jaeger, as those of a service."""
    provider = TracerProvider(resource=Resource({SERVICE_NAME: service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{jaeger.otlp_http_endpoint}/v1/traces")))
    return provider


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def references(span: dict[str, Any], kind: str) -> list[str]:
    return [each["spanID"] for each in span["references"] if each["refType"] == kind]


def test_a_trace_of_an_unmodified_script_arrives_in_jaeger(mongodb_uri: str, jaeger: Jaeger, tmp_path: Path) -> None:
    service = f"shop-{uuid.uuid4().hex}"
    run = run_instrumented(
        SCRIPT,
        mongodb_uri,
        tmp_path,
        *("--traces_exporter", "otlp", "--service_name", service),
        database=service,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp_http_endpoint,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

    found = jaeger.wait_for_traces(
        service,
        lambda traces: any(span["operationName"] == "POST /orders" for each in traces for span in each["spans"]),
    )
    trace = next(each for each in found if any(span["operationName"] == "POST /orders" for span in each["spans"]))
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in sorted(trace["spans"], key=lambda span: span["startTime"]):
        by_name.setdefault(span["operationName"], []).append(span)
    assert {name: len(spans) for name, spans in by_name.items()} == {
        "POST /orders": 1,
        "createIndexes users": 1,
        "insert users": 1,
        "insert orders": 1,
        "find orders": 1,
        "getMore orders": 2,
        f"thereIsNoSuchCommand {service}": 1,
    }

    (request,) = by_name["POST /orders"]
    for name, spans in by_name.items():
        parents = [references(span, "CHILD_OF") for span in spans]
        assert parents == ([[]] if name == "POST /orders" else [[request["spanID"]]] * len(spans))

    (find,) = by_name["find orders"]
    told = tags(find)
    assert isinstance(told.pop("server.port"), int)
    assert isinstance(told.pop("db.mongodb.cursor_id"), int)
    assert told.pop("mongodb.client.connection.wait_time", 0.001) >= 0.001
    assert isinstance(told.pop("db.mongodb.server_connection_id"), int)
    assert told == {
        "db.system.name": "mongodb",
        "db.namespace": service,
        "db.collection.name": "orders",
        "db.operation.name": "find",
        "db.query.summary": "find orders",
        "db.query.text": '{"find":"orders","filter":{},"batchSize":"?"}',
        "server.address": "127.0.0.1",
        "network.transport": "tcp",
        "db.mongodb.driver_connection_id": 1,
        "db.response.returned_rows": 2,
        "span.kind": "client",
        "otel.scope.name": "opentelemetry_mongo_events",
        "otel.scope.version": "0.1.0",
    }
    assert [references(span, "FOLLOWS_FROM") for span in by_name["getMore orders"]] == [[find["spanID"]]] * 2
    assert [tags(span)["db.response.returned_rows"] for span in by_name["getMore orders"]] == [2, 1]

    (duplicate,) = by_name["insert users"]
    assert {
        "error": True,
        "error.type": "11000",
        "otel.status_code": "ERROR",
        "mongodb.client.operation.write_error_count": 1,
        "db.operation.batch.size": 2,
    }.items() <= tags(duplicate).items()
    # The message of a mongod names the index, that of FerretDB does not.
    assert tags(duplicate)["otel.status_description"] in ("DuplicateKey", "DuplicateKey index email_1")
    (unknown,) = by_name[f"thereIsNoSuchCommand {service}"]
    assert {
        "error": True,
        "error.type": "59",
        "db.response.status_code": "59",
        "mongodb.client.error.code_name": "CommandNotFound",
        "otel.status_description": "CommandNotFound",
    }.items() <= tags(unknown).items()
    assert "alice" not in str(found)


def test_the_demo_sends_its_traces_where_it_is_told(jaeger: Jaeger) -> None:
    demo = run_demo(OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp_http_endpoint)

    assert demo.returncode == 0
    assert "were sent to" in demo.stdout
    assert all(line.startswith("shop: ") for line in demo.stderr.splitlines())

    def is_complete(found: list[dict[str, Any]]) -> bool:
        names = [span["operationName"] for trace in found for span in trace["spans"]]
        others = {"mongodb.client.outage", "select server", "endSessions admin"}
        return names.count("POST /orders") >= 3 and others <= set(names)

    jaeger.wait_for_traces("shop", is_complete)


async def test_tasks_of_an_async_client_arrive_each_in_its_own_trace(mongodb_uri: str, jaeger: Jaeger) -> None:
    pymongo = pytest.importorskip("pymongo", minversion="4.9")
    service = f"async-{uuid.uuid4().hex}"
    provider = provider_for(jaeger, service)
    tracer = provider.get_tracer("shop")
    listeners = event_listeners(tracer_provider=provider, exclude_commands="endSessions")

    async with pymongo.AsyncMongoClient(mongodb_uri, event_listeners=listeners) as client:

        async def request(number: int) -> None:
            with tracer.start_as_current_span("request"):
                await client[service].orders.insert_one({"_id": number})
                assert await client[service].orders.find_one({"_id": number}) == {"_id": number}

        await asyncio.gather(*(request(number) for number in range(30)))
    await asyncio.to_thread(provider.shutdown)

    traces = await asyncio.to_thread(
        jaeger.wait_for_traces,
        service,
        lambda found: len(found) == 30 and all(len(each["spans"]) == 3 for each in found),
    )
    for trace in traces:
        (parent,) = [span for span in trace["spans"] if span["operationName"] == "request"]
        commands = {span["operationName"]: span for span in trace["spans"] if span is not parent}
        assert commands.keys() == {"insert orders", "find orders"}
        assert all(references(span, "CHILD_OF") == [parent["spanID"]] for span in commands.values())

    if "MONGODB_URI" in os.environ:
        async with pymongo.AsyncMongoClient(mongodb_uri) as client:
            await client.drop_database(service)


def test_a_slow_request_shows_that_it_waited_for_a_connection(jaeger: Jaeger) -> None:
    service = f"waiting-{uuid.uuid4().hex}"
    provider = provider_for(jaeger, service)
    tracer = provider.get_tracer("shop")
    options: dict[str, Any] = {"maxPoolSize": 1, "waitQueueTimeoutMS": 400, "retryReads": False}
    with (
        ScriptedServer() as server,
        connect(server.uri, event_listeners=event_listeners(tracer_provider=provider), **options) as client,
        ThreadPoolExecutor(3) as threads,
    ):

        def request(name: str, command: str) -> None:
            with tracer.start_as_current_span(name):
                client.shop.command(command, "orders")

        frozen = server.freeze("find")
        first = threads.submit(request, "GET /report", "find")
        assert frozen.reached.wait(5)
        in_vain = threads.submit(request, "GET /cart", "count")
        assert isinstance(in_vain.exception(timeout=5), PyMongoError)
        waiting = threads.submit(request, "GET /orders", "count")
        time.sleep(0.2)
        frozen.release()
        first.result()
        waiting.result()
    provider.shutdown()

    traces = jaeger.wait_for_traces(service, lambda found: len(found) >= 3)
    by_name = {span["operationName"]: span for trace in traces for span in trace["spans"]}
    (checkout,) = [span for name, span in by_name.items() if name.startswith("checkout ")]
    assert references(checkout, "CHILD_OF") == [by_name["GET /cart"]["spanID"]]
    assert checkout["duration"] > 390_000  # microseconds
    assert {"error": True, "error.type": "timeout"}.items() <= tags(checkout).items()
    count = by_name["count orders"]
    assert references(count, "CHILD_OF") == [by_name["GET /orders"]["spanID"]]
    waited = tags(count)["mongodb.client.connection.wait_time"]
    assert 0.15 < waited < by_name["GET /orders"]["duration"] / 1e6
