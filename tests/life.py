"""A client's life with everything in it that the reference has a name for."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._servers.selection_listener import _selections
from opentelemetry_mongo_events._telemetry import semconv
from tests.clients import connect
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo import MongoClient

    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
    from tests.spans import Spans


def live_through_all(
    replica_set: ScriptedReplicaSet, spans: Spans, metrics: Metrics, listeners: list[Any]
) -> dict[str, Any]:
    """The life of a replica set's client, with the `quick_driver`; the metrics at its end."""
    options: dict[str, Any] = {"heartbeatFrequencyMS": 500, "maxPoolSize": 1, "waitQueueTimeoutMS": 200}
    primary, second, third = replica_set.members
    with connect(replica_set.uri, event_listeners=listeners, **options) as client:
        send_each_kind(client, primary)
        wait_in_vain(client, primary)
        third.stop()
        until(lambda: "heartbeat.failed" in told_of(metrics))
        primary.fail("find", close_connection=True)  # it is repeated, on a server that is Unknown for a moment
        client.shop.orders.find_one({})
        replica_set.step_down()
        until(lambda: client.primary is None)
        until(lambda: ("RSPrimary", 0) in server_counts(metrics))
        wait_for_a_primary(client, lambda: replica_set.elect(second))
        assert client.primary == second.address
        until(lambda: spans.named(semconv.OUTAGE))
        until(lambda: metrics.points("mongodb.client.outage.duration"))
        return metrics.collected()  # before the client is closed, and its pools with it


def send_each_kind(client: MongoClient[Any], primary: ScriptedServer) -> None:
    """Commands of all kinds, two of which fail."""
    client.shop.orders.insert_many([{"_id": number} for number in range(5)])
    assert len(list(client.shop.orders.find(batch_size=2))) == 5
    primary.fail("insert", write_errors=[{"code": 11000, "errmsg": "E11000 index: email_1 dup key: {}"}])
    primary.fail("count", code=59)
    with contextlib.suppress(PyMongoError):
        client.shop.orders.insert_one({})
    with contextlib.suppress(PyMongoError):
        client.shop.command("count", "orders")
    with client.start_session() as session, session.start_transaction():
        client.shop.orders.insert_one({}, session=session)


def wait_for_a_primary(client: MongoClient[Any], elect: Callable[[], None]) -> None:
    """One command gives up, the next one is sent when there is a primary again."""
    with pymongo.timeout(0.2), contextlib.suppress(PyMongoError):
        client.shop.orders.insert_one({})
    background_worker.flush()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.shop.orders.insert_one, {})
        until(lambda: _selections.open)
        time.sleep(0.05)  # a short wait has no span
        elect()
        waiting.result()


def wait_in_vain(client: MongoClient[Any], server: ScriptedServer) -> None:
    """One command keeps the only connection, another one gets none."""
    with ThreadPoolExecutor(1) as threads:
        frozen = server.freeze("find")
        held = threads.submit(client.shop.orders.find_one, {})
        assert frozen.reached.wait(20)
        with contextlib.suppress(PyMongoError):
            client.shop.orders.insert_one({})
        frozen.release()
        held.result()


def told_of(metrics: Metrics) -> set[str]:
    """Whether a heartbeat has failed."""
    points = metrics.points("mongodb.client.heartbeat.duration")
    return {"heartbeat.failed" for point in points if "error.type" in point.attributes}


def server_counts(metrics: Metrics) -> set[tuple[str, int]]:
    """How many servers there are of each type."""
    return {
        (point.attributes["mongodb.client.server.type"], point.value)
        for point in metrics.points("mongodb.client.server.count")
    }
