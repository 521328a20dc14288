"""Pool metrics on a real driver: whatever happens, the counts are those of its own pools."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode
from pymongo.errors import AutoReconnect, ConnectionFailure, PyMongoError

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._driver.identity import COUNTS_REFERENCES
from tests.clients import aconnect, connect
from tests.forks import in_child
from tests.metrics import POOL, STATE, Metrics
from tests.pools import held, pools
from tests.spans import Spans, attributes
from tests.waiting import collected, eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo import MongoClient

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.servers.scripted import ScriptedServer

PENDING = "db.client.connection.pending_requests"
FAILURES = "mongodb.client.connection.checkout_failures"
CLOSED = "mongodb.client.connection.closed"
REASON = "mongodb.client.connection.close_reason"

asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="a task can be cancelled since PyMongo 4.11")
counts_references = pytest.mark.skipif(
    not COUNTS_REFERENCES, reason="on PyPy only the events of topologies, off here, tell that a client is gone"
)
tells_of_closed_pools = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 tells of closed pools")


def pending(metrics: Metrics) -> int:
    return sum(metrics.values(PENDING, POOL).values())


@contextlib.contextmanager
def in_use(client: MongoClient[Any], server: ScriptedServer, commands: int = 1) -> Iterator[None]:
    """Connections that are out, each with a command that the server doesn't answer."""
    frozen = server.freeze("find", times=commands)
    before = len(server.received("find"))
    with ThreadPoolExecutor(commands) as threads:
        results = [threads.submit(client.shop.command, "find", "orders") for _ in range(commands)]
        try:
            server.wait_for(lambda server: len(server.received("find")) == before + commands)
            yield
        finally:
            frozen.release()
            for result in results:
                with contextlib.suppress(PyMongoError):
                    result.result()


def test_connections_are_idle_or_used(client: MongoClient[Any], server: ScriptedServer, metrics: Metrics) -> None:
    client.admin.command("ping")
    pool = f"127.0.0.1:{server.port}"
    assert metrics.values("db.client.connection.count", POOL, STATE) == {(pool, "idle"): 1, (pool, "used"): 0}

    with in_use(client, server, 3):
        assert metrics.connections() == held(client) == (0, 3)

    assert metrics.connections() == held(client) == (3, 0)


def test_the_times_of_a_connection_are_measured(
    client: MongoClient[Any], server: ScriptedServer, metrics: Metrics
) -> None:
    with in_use(client, server):
        time.sleep(0.05)

    address = {"server.address": "127.0.0.1", "server.port": server.port}
    pool = {"db.system.name": "mongodb", POOL: f"127.0.0.1:{server.port}", **address}
    for name, at_least in (
        ("db.client.connection.create_time", 0),
        ("db.client.connection.wait_time", 0),
        ("db.client.connection.use_time", 0.05),
    ):
        metric = metrics.collected()[name]
        point = metrics.one(name)
        assert (metric.unit, point.count, dict(point.attributes)) == ("s", 1, pool)
        assert at_least < point.sum < 5
        assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


@pytest.mark.parametrize(
    ("options", "maximum", "minimum"),
    [
        ({}, 100, 0),
        ({"maxPoolSize": 7, "minPoolSize": 2}, 7, 2),
        ({"maxPoolSize": 0}, None, 0),
        ({"maxPoolSize": None}, None, 0),
    ],
)
def test_a_pool_has_the_limits_of_its_client(
    options: dict[str, Any],
    maximum: int | None,
    minimum: int,
    server: ScriptedServer,
    listeners: Any,
    metrics: Metrics,
) -> None:
    pool = f"127.0.0.1:{server.port}"
    with connect(server.uri, event_listeners=listeners, **options) as client:
        client.admin.command("ping")

        assert metrics.values("db.client.connection.limit", POOL) == ({} if maximum is None else {pool: maximum})
        assert metrics.values("db.client.connection.idle.min", POOL) == {pool: minimum}


def test_a_pool_is_filled_in_the_background(server: ScriptedServer, listeners: Any, metrics: Metrics) -> None:
    with connect(server.uri, event_listeners=listeners, minPoolSize=3) as client:
        until(lambda: held(client) == (3, 0))
        until(lambda: metrics.connections() == (3, 0))


def test_who_waits_is_pending(server: ScriptedServer, listeners: Any, metrics: Metrics) -> None:
    with connect(server.uri, event_listeners=listeners, maxPoolSize=1) as client, ThreadPoolExecutor(4) as threads:
        client.admin.command("ping")
        with in_use(client, server):
            waiting = [threads.submit(client.admin.command, "ping") for _ in range(4)]
            until(lambda: pending(metrics) == 4)
        for result in waiting:
            result.result()

        assert pending(metrics) == 0
        assert metrics.connections() == held(client) == (1, 0)


def test_the_wait_stands_on_the_command_that_it_delayed(
    server: ScriptedServer, listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=listeners, maxPoolSize=1) as client, ThreadPoolExecutor(1) as threads:
        client.admin.command("ping")
        with in_use(client, server):
            waiting = threads.submit(client.shop.command, "count", "orders")
            until(lambda: pending(metrics) == 1)
            time.sleep(0.1)
        waiting.result()

        assert 0.1 <= attributes(spans.one("count orders"))["mongodb.client.connection.wait_time"] < 5


def test_a_checkout_that_times_out_is_a_span_of_its_own(
    server: ScriptedServer, listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    with connect(
        server.uri, event_listeners=listeners, maxPoolSize=1, waitQueueTimeoutMS=100, retryReads=False
    ) as client:
        client.admin.command("ping")
        with in_use(client, server), spans.tracer.start_as_current_span("request"), pytest.raises(ConnectionFailure):
            client.shop.orders.find_one()

    pool = f"127.0.0.1:{server.port}"
    span = spans.one(f"checkout {pool}")
    assert span.parent == spans.one("request").context
    assert span.kind is SpanKind.INTERNAL
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert attributes(span) == {
        "db.system.name": "mongodb",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        POOL: pool,
        "error.type": "timeout",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0.1 <= (span.end_time - span.start_time) / 1e9 < 5
    assert metrics.values(FAILURES, POOL, "error.type") == {(pool, "timeout"): 1}
    assert metrics.values("db.client.connection.timeouts", POOL) == {pool: 1}
    assert pending(metrics) == 0


def test_a_failed_checkout_is_told_where_its_caller_wants_it(server: ScriptedServer, metrics: Metrics) -> None:
    spans = Spans()
    made = event_listeners(
        tracer_provider=spans.provider, meter_provider=metrics.provider, require_parent_span=True, commands=False
    )
    with connect(server.uri, event_listeners=made, maxPoolSize=1, waitQueueTimeoutMS=10, retryReads=False) as client:
        client.admin.command("ping")
        with in_use(client, server):
            with pytest.raises(ConnectionFailure):
                client.shop.orders.find_one()  # no parent
            with (
                suppress_instrumentation(),
                spans.tracer.start_as_current_span("request"),
                pytest.raises(ConnectionFailure),
            ):
                client.shop.orders.find_one()
            assert [name for name in spans.names if name != "request"] == []
            with spans.tracer.start_as_current_span("request"), pytest.raises(ConnectionFailure):
                client.shop.orders.find_one()

    assert len(spans.named(f"checkout 127.0.0.1:{server.port}")) == 1
    assert sum(metrics.values(FAILURES, "error.type").values()) == 3


def test_a_server_that_goes_away_takes_its_connections_along(
    client: MongoClient[Any], server: ScriptedServer, metrics: Metrics, spans: Spans
) -> None:
    with in_use(client, server, 3):
        client.admin.command("ping")
        assert metrics.connections() == held(client) == (1, 3)
        server.stop()
    until(lambda: metrics.connections() == held(client) == (0, 0))

    assert metrics.values("mongodb.client.pool.cleared", POOL) == {f"127.0.0.1:{server.port}": 1}
    assert sum(metrics.values(CLOSED, REASON).values()) == 4

    server.start()
    client.admin.command("ping")
    assert metrics.connections() == held(client) == (1, 0)


def test_a_client_that_has_its_listeners_twice_is_measured_once(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    with connect(server.uri, event_listeners=[*listeners, *listeners]) as client:
        client.admin.command("ping")
        with in_use(client, server):
            assert metrics.connections() == held(client) == (0, 1)
        assert metrics.connections() == held(client) == (1, 0)

        for name, count in (("create_time", 1), ("wait_time", 2), ("use_time", 2)):
            assert metrics.one(f"db.client.connection.{name}").count == count


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo interrupts connections since 4.9")
def test_connections_that_a_clear_interrupts_are_given_back(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    with (
        connect(
            server.uri, event_listeners=listeners, heartbeatFrequencyMS=500, connectTimeoutMS=300, retryReads=False
        ) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        client.admin.command("ping")
        frozen = server.freeze("find", times=2)
        results = [threads.submit(client.shop.command, "find", "orders") for _ in range(2)]
        server.wait_for(lambda server: len(server.received("find")) == 2)
        hello = server.freeze("hello", times=None)  # the monitor gives up, and with it those who wait for an answer
        for result in results:
            assert isinstance(result.exception(timeout=5), PyMongoError)
        until(lambda: metrics.connections() == held(client) == (0, 0))

        assert metrics.values("mongodb.client.pool.cleared", POOL) == {f"127.0.0.1:{server.port}": 1}
        hello.release()
        frozen.release()
        client.admin.command("ping")
        until(lambda: metrics.connections() == held(client))


@tells_of_closed_pools
def test_a_pool_that_closes_while_connections_are_out_keeps_those(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    client = connect(server.uri, event_listeners=listeners)
    client.admin.command("ping")
    with in_use(client, server, 2):
        client.close()
        assert metrics.connections() == (0, 2)
        assert metrics.points("db.client.connection.limit") == []

    assert metrics.points("db.client.connection.count") == []
    assert metrics.values(CLOSED, REASON).get("poolClosed", 0) >= 1


@tells_of_closed_pools
def test_nothing_is_left_of_a_client_that_was_closed(server: ScriptedServer, listeners: Any, metrics: Metrics) -> None:
    for _ in range(20):
        with connect(server.uri, event_listeners=listeners) as client:
            client.admin.command("ping")

    for name in ("count", "max", "idle.min", "pending_requests"):
        assert metrics.points(f"db.client.connection.{name}") == []


@counts_references
def test_nothing_is_left_of_a_client_that_was_garbage_collected(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    # Its monitor's thread holds it until the next heartbeat.
    client = connect(server.uri, event_listeners=listeners, heartbeatFrequencyMS=500)
    client.admin.command("ping")
    with connect(server.uri, event_listeners=listeners) as other:
        other.admin.command("ping")
        assert metrics.connections() == (2, 0)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the driver warns that it wasn't closed
            del client
            until(lambda: collected() and metrics.connections() == held(other))
        assert metrics.values("db.client.connection.limit", POOL) == {f"127.0.0.1:{server.port}": 100}


@counts_references
def test_a_connection_that_is_never_given_back_keeps_no_pool(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    client = connect(server.uri, event_listeners=listeners, heartbeatFrequencyMS=500)
    client.admin.command("ping")
    (pool,) = pools(client)
    with pool.checkout() if hasattr(pool, "checkout") else pool.get_socket({}) as connection:  # before 4.5
        connection.pin_cursor()  # as a cursor does behind a load balancer: it is the cursor that gives it back
    assert metrics.connections() == held(client) == (0, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver warns that it wasn't closed
        del client, pool, connection
        until(lambda: collected() and metrics.points("db.client.connection.count") == [])


@counts_references
def test_a_garbage_collected_client_is_noticed_by_all_that_saw_it(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, metrics: Metrics
) -> None:
    instrumentor.instrument(meter_provider=metrics.provider)
    own = event_listeners(meter_provider=metrics.provider)
    client = connect(server.uri, event_listeners=own, heartbeatFrequencyMS=500)
    client.admin.command("ping")
    assert metrics.connections() == (1, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del client
        until(lambda: collected() and metrics.points("db.client.connection.count") == [])


def test_two_clients_of_one_server_are_told_apart(server: ScriptedServer, listeners: Any, metrics: Metrics) -> None:
    pool = f"127.0.0.1:{server.port}"
    with (
        connect(server.uri, event_listeners=listeners, maxPoolSize=3) as first,
        connect(server.uri, event_listeners=listeners, maxPoolSize=5) as second,
    ):
        for client in (first, second):
            client.admin.command("ping")
        with in_use(first, server):
            assert metrics.values("db.client.connection.count", POOL, STATE) == {(pool, "idle"): 1, (pool, "used"): 1}
            # Both have number 1.
            assert (held(first), held(second)) == ((0, 1), (1, 0))
            assert metrics.values("db.client.connection.limit", POOL) == {pool: 8}

        if pymongo.version_tuple >= (4, 9):
            first.close()
            assert metrics.values("db.client.connection.limit", POOL) == {pool: 5}
            assert metrics.connections() == held(second) == (1, 0)


def test_one_without_a_limit_makes_all_of_that_name_so(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    with (
        connect(server.uri, event_listeners=listeners, maxPoolSize=0) as first,
        connect(server.uri, event_listeners=listeners, maxPoolSize=5) as second,
    ):
        for client in (first, second):
            client.admin.command("ping")

        assert metrics.points("db.client.connection.limit") == []


def test_a_client_can_have_a_name(server: ScriptedServer, metrics: Metrics) -> None:
    made = [
        event_listeners(meter_provider=metrics.provider, client_name=name, commands=False)
        for name in ("shop", "billing")
    ]
    with connect(server.uri, event_listeners=made[0]) as shop, connect(server.uri, event_listeners=made[1]) as billing:
        shop.admin.command("ping")
        with in_use(billing, server):
            assert metrics.values("db.client.connection.count", POOL, STATE) == {
                (f"shop/127.0.0.1:{server.port}", "idle"): 1,
                (f"shop/127.0.0.1:{server.port}", "used"): 0,
                (f"billing/127.0.0.1:{server.port}", "idle"): 0,
                (f"billing/127.0.0.1:{server.port}", "used"): 1,
            }


def test_a_pool_that_two_listeners_see_is_counted_once(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider)
    own = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider)
    with connect(server.uri, event_listeners=own, maxPoolSize=1, waitQueueTimeoutMS=10, retryReads=False) as client:
        client.admin.command("ping")
        with in_use(client, server):
            assert metrics.connections() == held(client) == (0, 1)
            with pytest.raises(ConnectionFailure):
                client.shop.orders.find_one()
        assert metrics.one("db.client.connection.wait_time").count == 2
        assert metrics.one(FAILURES).value == 1
        assert len(spans.named(f"checkout 127.0.0.1:{server.port}")) == 1
        assert sum(metrics.values("db.client.operation.duration").values()) == 2

        # Its own ones go on where the instrumentor stops, with what is true by then.
        instrumentor.uninstrument()
        client.admin.command("ping")
        assert metrics.connections() == held(client) == (1, 0)
        assert metrics.one("db.client.connection.wait_time").count == 3


def test_what_happened_while_it_was_off_is_counted(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, metrics: Metrics
) -> None:
    instrumentor.instrument(meter_provider=metrics.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        assert metrics.connections() == (1, 0)
        instrumentor.uninstrument()
        assert metrics.points("db.client.connection.count") == []

        with in_use(client, server, 3):
            other = Metrics()
            instrumentor.instrument(meter_provider=other.provider)
            assert other.connections() == held(client) == (0, 3)
        assert other.connections() == held(client) == (3, 0)
        assert metrics.points("db.client.connection.count") == []
        # Of what ran then, only what ended since.
        assert other.one("db.client.connection.use_time").count == 3
        assert other.points("db.client.connection.wait_time") == []


def test_pools_can_be_switched_off(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider, pools=False)
    with connect(server.uri) as client:
        client.admin.command("ping")

    assert not [name for name in metrics.collected() if "connection" in name or "pool" in name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_counts_its_own_pools_only(
    client: MongoClient[Any], server: ScriptedServer, metrics: Metrics
) -> None:
    with in_use(client, server, 3):
        client.admin.command("ping")
        assert metrics.connections() == (1, 3)

        def child() -> bool:
            before = metrics.connections()
            for _ in range(3):
                with contextlib.suppress(AutoReconnect):  # PyMongo 4.0 makes its pool anew at the second try
                    client.admin.command("ping")
            return (before, metrics.connections(), held(client)) == ((0, 0), (1, 0), (1, 0))

        assert in_child(child)
        assert metrics.connections() == held(client) == (1, 3)


def test_an_interrupted_waiter_waits_no_more(server: ScriptedServer, listeners: Any, metrics: Metrics) -> None:
    seen = []

    def interrupt() -> None:
        until(lambda: pending(metrics) == 1)
        seen.append("waiting")
        signal.pthread_kill(main, signal.SIGINT)
        # One that comes just before the wait in the system begins is not seen before it ends.
        while not interrupted.wait(10):
            signal.pthread_kill(main, signal.SIGINT)

    interrupted = threading.Event()
    main = threading.get_ident()
    with connect(server.uri, event_listeners=listeners, maxPoolSize=1) as client, in_use(client, server):
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            client.admin.command("ping")
        interrupted.set()
        interrupter.join()

        assert (seen, pending(metrics)) == (["waiting"], 0)
        assert metrics.connections() == held(client)


@asynchronous
@pytest.mark.parametrize("kind", ["task", "wait_for", "asynchronous generator"])
async def test_a_cancelled_waiter_waits_no_more(
    kind: str, server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    goes_on = asyncio.Event()

    async def documents() -> Any:
        yield await client.shop.command("count", "orders")

    async def request() -> None:
        with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
            if kind == "task":
                await client.shop.command("count", "orders")
            elif kind == "wait_for":
                await asyncio.wait_for(client.shop.command("count", "orders"), 30)
            else:
                async for _ in documents():
                    pass
        await goes_on.wait()

    async with aconnect(server.uri, event_listeners=listeners, maxPoolSize=1) as client:
        frozen = server.freeze("find")
        running = asyncio.create_task(client.shop.command("find", "orders"))
        await eventually(lambda: server.received("find"))
        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await eventually(lambda: pending(metrics) == 3)

        for task in tasks[:2]:
            task.cancel()
        await eventually(lambda: pending(metrics) == 1)
        assert not any(task.done() for task in tasks)

        frozen.release()
        await running
        await eventually(lambda: pending(metrics) == 0)
        goes_on.set()
        await asyncio.gather(*tasks)
        assert metrics.connections() == held(client) == (1, 0)


@asynchronous
async def test_waiters_that_nobody_counts_are_forgotten(
    server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    from opentelemetry_mongo_events._pools.listener import PoolEvents

    table = next(listener for listener in listeners if isinstance(listener, PoolEvents))._pools
    async with aconnect(server.uri, event_listeners=listeners, maxPoolSize=1) as client:
        frozen = server.freeze("find")
        running = asyncio.create_task(client.shop.command("find", "orders"))
        await eventually(lambda: server.received("find"))
        for _ in range(20):
            tasks = [asyncio.create_task(client.admin.command("ping")) for _ in range(50)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        [pool] = table.pools()
        assert len(pool.waiters._waiting) <= 128
        assert pending(metrics) == 0
        frozen.release()
        await running


def test_a_reset_of_all_connections_is_counted(
    client: MongoClient[Any], server: ScriptedServer, metrics: Metrics
) -> None:
    with in_use(client, server, 2):
        server.drop_connections()
        until(lambda: held(client) == (0, 0))
        with contextlib.suppress(AutoReconnect):
            client.admin.command("ping")
    until(lambda: metrics.connections() == held(client))


@asynchronous
@pytest.mark.parametrize("turns", range(1, 6))
async def test_a_task_that_is_cancelled_as_the_driver_closes_what_it_doesnt_want_leaves_nothing(
    turns: int, server: ScriptedServer, listeners: Any, metrics: Metrics
) -> None:
    # A task that closes a connection and is cancelled just then has the driver forget to tell.
    async with aconnect(server.uri, event_listeners=listeners, maxPoolSize=2, maxIdleTimeMS=20) as client:
        await asyncio.gather(*(client.admin.command("ping") for _ in range(2)))
        await asyncio.sleep(0.03)
        task = asyncio.create_task(client.admin.command("ping"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert metrics.connections()[1] == held(client)[1] == 0

    await eventually(lambda: metrics.points("db.client.connection.count") == [])
