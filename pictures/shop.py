"""What happens to the shop in the pictures of its traces: it loses its primary, and its pool is too small."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pymongo.monitoring import ServerHeartbeatListener

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.monitoring import (
        ServerHeartbeatFailedEvent,
        ServerHeartbeatStartedEvent,
        ServerHeartbeatSucceededEvent,
    )

    from tests.servers.processes import Jaeger

SERVICE: Final = "shop"
DISCOVERY: Final = "mongodb.client.discovery"
OUTAGE: Final = "mongodb.client.outage"


def failover(jaeger: Jaeger) -> tuple[str, str]:
    """The primary dies with an order on its way, and another one is elected; the traces of outage and order."""
    failed = FailedHeartbeats()
    with (
        tracing(jaeger) as provider,
        ThreadPoolExecutor(1) as threads,  # what it waits for ends before it, also after a Ctrl-C
        ScriptedReplicaSet(3) as replica_set,
        connect(
            replica_set.uri,
            event_listeners=[failed, *event_listeners(tracer_provider=provider)],
            heartbeatFrequencyMS=500,
        ) as client,
    ):
        primary, next_primary, _ = replica_set.members
        trace_of(jaeger, DISCOVERY)
        frozen = primary.freeze("insert")

        def order() -> None:
            with provider.get_tracer(SERVICE).start_as_current_span("POST /orders"):
                client.shop.orders.insert_one({"product": "espresso cup"})

        ordering = threads.submit(order)
        assert frozen.reached.wait(10)
        time.sleep(0.2)  # so long the first attempt is seen to last
        primary.stop()
        until(lambda: failed.count >= 4)
        replica_set.elect(next_primary)
        ordering.result()
        order_names = ("POST /orders", "insert orders", "select server", "insert orders")
        return trace_of(jaeger, OUTAGE), trace_of(jaeger, *order_names)


def wait(jaeger: Jaeger) -> str:
    """A request waits for the only connection, at first in vain; its trace."""
    with (
        tracing(jaeger) as provider,
        ThreadPoolExecutor(2) as threads,
        ScriptedServer() as server,
        connect(
            server.uri,
            event_listeners=event_listeners(tracer_provider=provider),
            maxPoolSize=1,
            waitQueueTimeoutMS=400,
        ) as client,
    ):
        tracer = provider.get_tracer(SERVICE)

        def report() -> None:
            with tracer.start_as_current_span("GET /report"):
                list(client.shop.orders.aggregate([{"$match": {"sold": True}}]))

        def cart() -> None:
            with tracer.start_as_current_span("GET /cart"):
                client.shop.carts.find_one({"user": "alice@example.org"})

        frozen = server.freeze("aggregate")
        server.fail("find", delay=0.03)  # so long it takes
        reporting = threads.submit(report)
        assert frozen.reached.wait(10)
        asking = threads.submit(cart)
        host, port = server.address
        checkout = f"checkout {host}:{port}"
        trace_of(jaeger, checkout)
        time.sleep(0.1)  # so long the driver's second attempt waits
        frozen.release()
        reporting.result()
        asking.result()
        return trace_of(jaeger, "GET /cart", checkout, "find carts")


@contextmanager
def tracing(jaeger: Jaeger) -> Iterator[TracerProvider]:
    """A tracer provider whose spans are in Jaeger as soon as they end."""
    provider = TracerProvider(resource=Resource({SERVICE_NAME: SERVICE}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{jaeger.otlp_http_endpoint}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield provider
    finally:
        provider.shutdown()


def trace_of(jaeger: Jaeger, *names: str) -> str:
    """The id of the trace that has just these spans, once it is there."""

    def found(traces: list[dict[str, Any]]) -> list[str]:
        return [
            trace["traceID"]
            for trace in traces
            if sorted(span["operationName"] for span in trace["spans"]) == sorted(names)
        ]

    (trace_id,) = found(jaeger.wait_for_traces(SERVICE, lambda traces: bool(found(traces))))
    return trace_id


class FailedHeartbeats(ServerHeartbeatListener):
    """How many heartbeats have failed."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Nothing to count."""

    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        """Nothing to count."""

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """Count it."""
        self.count += 1
