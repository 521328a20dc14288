"""The MongoDB drivers' own tests of connection pools: what happens in PyMongo's pools, asked of our metrics and spans.

They are no part of the project: `MONGODB_SPECIFICATIONS` names a checkout of github.com/mongodb/specifications.
The format: source/connection-monitoring-and-pooling/tests/README.md in there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from pymongo import common, monitoring
from pymongo.errors import PyMongoError
from pymongo.hello import Hello
from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
)
from pymongo.server_description import ServerDescription
from pymongo.topology_description import updated_topology_description

from tests.clients import connect
from tests.metrics import POOL, Metrics
from tests.pools import held, pools
from tests.spans import Spans, attributes
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Tracer
    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedServer

if not os.environ.get("MONGODB_SPECIFICATIONS"):
    pytest.skip("MONGODB_SPECIFICATIONS names no checkout of mongodb/specifications", allow_module_level=True)

VECTORS = Path(os.environ["MONGODB_SPECIFICATIONS"]) / "source/connection-monitoring-and-pooling/tests/cmap-format"

Vector = dict[str, Any]

# The first PyMongo that does what a vector is about, and what it doesn't do before.
SINCE = {"pool-clear-interrupting-pending-connections": ((4, 11), "interrupts no connection that is being made")}

# Where PyMongo may publish what a vector expects in another order.
IN_ANOTHER_ORDER = {
    # A connection that isn't made is closed first, and the pool is cleared for it then.
    "pool-create-min-size-error",
    # Since 4.19 a connection is given back first, and that is published then: the next one may have it already.
    "pool-checkout-returned-connection-maxConnecting",
    "pool-create-max-size",
    "wait-queue-fairness",
}

# What the events of early drivers don't have.
MAY_LACK = {"duration", "interrupt_connections"}


def vectors() -> list[Any]:
    """The parameters of a test: one for each vector.

    Raises:
        FileNotFoundError: There are none.
    """
    parameters = []
    for path in sorted(VECTORS.glob("*.json")):
        vector = json.loads(path.read_text(encoding="utf-8")) | {"name": path.stem}
        since, otherwise = SINCE.get(path.stem, ((), ""))
        hindered = pymongo.version_tuple < since
        marks = [pytest.mark.skip(reason=f"PyMongo {pymongo.version} {otherwise}")] if hindered else []
        parameters.append(pytest.param(vector, id=path.stem, marks=marks))
    if not parameters:
        raise FileNotFoundError(f"no test vectors in {VECTORS}")
    return parameters


# ---------------------------------------------------------------------------------------------------------------------
# The driver's side.


class Recorder(ConnectionPoolListener):
    """Keeps what the driver published. It comes after the listeners that are tested: what is here, they know."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    @property
    def events(self) -> list[Any]:
        return self._events.copy()

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if type(event) in kinds]

    def ids(self, kind: type) -> Counter[int]:
        """The connections with such an event, and how often they had it."""
        return Counter(event.connection_id for event in self.of(kind))

    @property
    def waiting(self) -> int:
        """How many checkouts have started and not ended."""
        ended = self.of(ConnectionCheckedOutEvent, ConnectionCheckOutFailedEvent)
        return len(self.of(ConnectionCheckOutStartedEvent)) - len(ended)

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are idle and used."""
        made = self.ids(ConnectionReadyEvent) - self.ids(ConnectionClosedEvent)
        used = self.ids(ConnectionCheckedOutEvent) - self.ids(ConnectionCheckedInEvent)
        return (made - used).total(), used.total()

    def _record(self, event: Any) -> None:
        # By its type, and not by the method: PyMongo 4.0 and 4.1 mistake one for another.
        self._events.append(event)

    pool_created = pool_ready = pool_cleared = pool_closed = _record
    connection_created = connection_ready = connection_closed = connection_checked_in = _record
    connection_check_out_started = connection_check_out_failed = connection_checked_out = _record


class NoMonitor:
    """What a client monitors its server with: it never looks. A vector says itself when its pool is ready."""

    def __init__(self, **_: Any) -> None: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def request_check(self) -> None: ...
    def cancel_check(self) -> None: ...


@contextlib.contextmanager
def client_of(
    vector: Vector, server: ScriptedServer, listeners: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MongoClient[Any]]:
    """A client that has a pool with the vector's options, which is not ready."""
    options = vector.get("poolOptions", {}).copy()
    # How often the driver's thread that keeps the pool filled looks at it; with a negative interval there is none.
    interval = options.pop("backgroundThreadIntervalMS", 50) / 1000
    monkeypatch.setattr(common, "KILL_CURSOR_FREQUENCY", interval)
    monkeypatch.setattr(common, "MIN_HEARTBEAT_INTERVAL", 0.05)
    client = connect(server.uri, connect=False, event_listeners=listeners, _monitor_class=NoMonitor, **options)
    # The driver fills the pools of servers that it knows.
    known = ServerDescription((server.host, server.port), Hello(server.default_answer({"hello": 1})))
    topology = client._topology
    topology._description = updated_topology_description(topology._description, known)
    with client:
        if interval < 0:
            topology.open()
        else:
            client._get_topology()
        (pool,) = pools(client)
        try:
            yield client
        finally:
            pool.close()  # up to 4.8 the client doesn't, and whoever waits is to be told
    client._kill_cursors_executor.join(5)


class Operations:
    """A vector's operations, and what they leave behind."""

    def __init__(self, pool: Any, recorder: Recorder, metrics: Metrics, tracer: Tracer) -> None:
        self._pool = pool
        self._recorder = recorder
        self._metrics = metrics
        self._tracer = tracer
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._results: dict[str, list[Future[None]]] = {}
        self._out: dict[object, AbstractContextManager[Any]] = {}

    def run(self, operations: Iterable[Mapping[str, Any]]) -> None:
        """Run them in order; after each one what the pool holds, and who waits for it, is measured.

        Raises:
            PyMongoError: One failed, here or in a thread that was waited for.
        """
        for operation in operations:
            arguments = {name: value for name, value in operation.items() if name not in ("name", "thread")}
            method = getattr(self, f"_{_snake_case(operation['name'])}")
            if "thread" in operation:
                thread = operation["thread"]
                self._results[thread].append(self._threads[thread].submit(method, **arguments))
            else:
                method(**arguments)
            until(self._is_measured)

    def join(self) -> None:
        """Wait until all threads have run what they were given."""
        for thread in self._threads.values():
            thread.shutdown()

    def give_back(self) -> None:
        """Give back what is still out."""
        for label in list(self._out):
            self._check_in(label)

    def _is_measured(self) -> bool:
        pending = sum(self._metrics.values(PENDING, POOL).values())
        return (pending, self._metrics.connections()) == (self._recorder.waiting, self._recorder.connections)

    def _start(self, target: str) -> None:
        self._threads[target] = ThreadPoolExecutor(1, target)
        self._results[target] = []

    def _wait(self, ms: int) -> None:
        time.sleep(ms / 1000)

    def _wait_for_thread(self, target: str) -> None:
        for result in self._results[target]:
            result.result()

    def _wait_for_event(self, event: str, count: int, timeout: int = 5000) -> None:
        until(lambda: len(self._recorder.of(event_type(event))) >= count, timeout / 1000)

    def _check_out(self, label: str | None = None) -> None:
        with self._tracer.start_as_current_span("request"):
            # By its name before 4.4, with the credentials that it took up to 4.1.
            checkout = self._pool.checkout() if hasattr(self._pool, "checkout") else self._pool.get_socket({})
            checkout.__enter__()
        self._out[label or checkout] = checkout

    def _check_in(self, connection: object) -> None:
        self._out.pop(connection).__exit__(None, None, None)

    def _ready(self) -> None:
        self._pool.ready()

    def _clear(self, interruptInUseConnections: bool = False) -> None:  # noqa: N803 - as the vectors have it
        if interruptInUseConnections:
            self._pool.reset(interrupt_connections=True)
        else:
            self._pool.reset()

    def _close(self) -> None:
        self._pool.close()


def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def event_type(name: str) -> type:
    """PyMongo's type of an event, by the name that the vectors have for it."""
    kind: type = getattr(monitoring, f"{name.replace('ConnectionPool', 'Pool')}Event")
    return kind


def assert_published(vector: Vector, events: Iterable[Any]) -> None:
    """Assert that the driver published what a vector expects; other events may follow."""
    ignored = tuple(map(event_type, vector.get("ignore", ())))
    expected = [(event_type(each["type"]), each) for each in vector["events"]]
    published = [event for event in events if not isinstance(event, ignored)][: len(expected)]
    if vector["name"] in IN_ANOTHER_ORDER:
        expected.sort(key=lambda each: each[0].__name__)
        published.sort(key=lambda event: type(event).__name__)
    assert list(map(type, published)) == [kind for kind, _ in expected]
    for event, (_, fields) in zip(published, expected, strict=True):
        for field, value in fields.items():
            assert field == "type" or is_told(event, field, value), (event, field)


def is_told(event: Any, field: str, expected: Any) -> bool:
    """Whether an event says so; 42 stands for anything."""
    name = {"interruptInUseConnections": "interrupt_connections"}.get(field, _snake_case(field))
    if name in MAY_LACK and not hasattr(event, name):
        return True
    actual = getattr(event, name)
    return actual is not None if expected == 42 else bool(actual == expected)


# ---------------------------------------------------------------------------------------------------------------------
# Our side.

PENDING = "db.client.connection.pending_requests"

Measurements = dict[str, dict[tuple[Any, ...], Any]]


def measured(metrics: Metrics, server: ScriptedServer) -> Measurements:
    """All that is measured: sums, or numbers of measurements, by the values of the attributes in the keys' order.

    The database and the server, which are attributes of all of them, are left out.
    """
    told: Measurements = {}
    identity = {"db.system.name": "mongodb", "server.address": server.host, "server.port": server.port}
    for name, metric in metrics.collected().items():
        points: Sequence[Any] = metric.data.data_points
        for point in points:
            assert point.attributes.items() >= identity.items()
            key = tuple(value for name, value in sorted(point.attributes.items()) if name not in identity)
            told.setdefault(name, {})[key] = point.count if hasattr(point, "bucket_counts") else point.value
    return told


def expected_measurements(vector: Vector, recorder: Recorder, pool: str) -> Measurements:
    """What is to be measured where nobody waits, after what the driver published."""

    def count(kind: type, *attributes: str) -> Counter[tuple[Any, ...]]:
        return Counter((pool, *(getattr(event, name) for name in attributes)) for event in recorder.of(kind))

    failures = count(ConnectionCheckOutFailedEvent, "reason")
    expected: Measurements = {
        "db.client.connection.create_time": count(ConnectionReadyEvent),
        "db.client.connection.wait_time": count(ConnectionCheckedOutEvent),
        "db.client.connection.use_time": count(ConnectionCheckedInEvent),
        "db.client.connection.timeouts": +Counter({(pool,): failures[pool, "timeout"]}),
        "mongodb.client.connection.checkout_failures": failures,
        "mongodb.client.connection.closed": count(ConnectionClosedEvent, "reason"),
        "mongodb.client.pool.cleared": count(PoolClearedEvent),
    }
    is_open = not recorder.of(PoolClosedEvent)
    if is_open:
        options = vector.get("poolOptions", {})
        expected["db.client.connection.limit"] = {(pool,): options.get("maxPoolSize", 100)}
        expected["db.client.connection.idle.min"] = {(pool,): options.get("minPoolSize", 0)}
    idle, used = recorder.connections
    if is_open or idle or used:
        expected["db.client.connection.count"] = {(pool, "idle"): idle, (pool, "used"): used}
        expected[PENDING] = {(pool,): 0}
    return {name: values for name, values in expected.items() if values}


def assert_traced(spans: Spans, recorder: Recorder, server: ScriptedServer) -> None:
    """Assert that each checkout that failed is a span in its caller's, and that there are no others."""
    pool = f"{server.host}:{server.port}"
    failures = recorder.of(ConnectionCheckOutFailedEvent)
    callers = [span.context for span in spans.named("request") if span.status.status_code is StatusCode.ERROR]
    told = [span for span in spans.finished if span.name != "request"]
    assert Counter(span.parent.span_id for span in told if span.parent) == Counter(each.span_id for each in callers)
    assert Counter(attributes(span)["error.type"] for span in told) == Counter(each.reason for each in failures)
    for span in told:
        reason = attributes(span)["error.type"]
        assert (span.name, span.kind) == (f"checkout {pool}", SpanKind.INTERNAL)
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        assert attributes(span) == {
            "db.system.name": "mongodb",
            "server.address": server.host,
            "server.port": server.port,
            POOL: pool,
            "error.type": reason,
        }
    lengths = sorted((span.end_time or 0) - (span.start_time or 0) for span in told)
    if hasattr(ConnectionCheckOutFailedEvent, "duration"):
        assert lengths == pytest.approx(sorted(each.duration * 1e9 for each in failures), abs=1000)


@pytest.mark.parametrize("vector", vectors())
def test_what_happens_in_a_pool_is_told(
    vector: Vector,
    server: ScriptedServer,
    listeners: Any,
    spans: Spans,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "failPoint" in vector:
        server.default_answer(vector["failPoint"])
    threads = set(threading.enumerate())
    recorder = Recorder()
    pool = f"{server.host}:{server.port}"
    with client_of(vector, server, [*listeners, recorder], monkeypatch) as client:
        (driver_pool,) = pools(client)
        operations = Operations(driver_pool, recorder, metrics, spans.tracer)
        error = vector.get("error")
        with pytest.raises(PyMongoError, match=re.escape(error["message"])) if error else contextlib.nullcontext():
            operations.run(vector["operations"])
        operations.join()

        assert_published(vector, recorder.events)
        assert measured(metrics, server) == expected_measurements(vector, recorder, pool)
        assert metrics.connections() == held(client)
        assert_traced(spans, recorder, server)
        operations.give_back()

    assert not recorder.waiting
    assert measured(metrics, server) == expected_measurements(vector, recorder, pool)
    assert metrics.points("db.client.connection.count") == []
    server.wait_for(lambda server: server.open_connections == 0)
    assert not [thread for thread in {*threading.enumerate()} - threads if thread.name.startswith("pymongo_")]
