"""`AsyncMongoClient`: tasks, cancellation, and the driver's own background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import StatusCode
from pymongo import monitoring

from opentelemetry_mongo_events._driver import client_internals, registration
from opentelemetry_mongo_events._driver.versions import TOPOLOGY_LISTENERS_NEED_A_LOOP
from opentelemetry_mongo_events._servers import outages
from tests.clients import aconnect
from tests.events import QuietTopologyListener
from tests.servers.scripted import ScriptedServer
from tests.spans import Spans, attributes, events, table_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pymongo import AsyncMongoClient

    from opentelemetry_mongo_events import MongoEventsInstrumentor


pytestmark = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")

# In 4.9 and 4.10 the client waits in a blocking select, where no cancellation arrives.
cancellable = pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="PyMongo 4.11")


@pytest.fixture
async def aclient(server: ScriptedServer, listeners: Any) -> AsyncIterator[AsyncMongoClient[Any]]:
    async with aconnect(server.uri, event_listeners=listeners) as client:
        yield client


async def reached(frozen: Any) -> None:
    """Wait, without holding up the event loop, until the server holds a command."""
    assert await asyncio.to_thread(frozen.reached.wait, 5)


def arrivals(server: ScriptedServer, expected: int) -> bool:
    return len(server.received("find")) == expected


async def test_each_task_is_the_parent_of_its_own_commands(aclient: AsyncMongoClient[Any], spans: Spans) -> None:
    async def request(number: int) -> None:
        with spans.tracer.start_as_current_span(f"request {number}"):
            await aclient.shop[f"c{number}"].insert_one({})
            await asyncio.sleep(0)
            await aclient.shop[f"c{number}"].find_one({})

    await asyncio.gather(*(request(number) for number in range(50)))

    for number in range(50):
        parent = spans.one(f"request {number}").context
        for name in ("insert", "find"):
            span = spans.one(f"{name} c{number}")
            assert (span.parent, span.status.status_code) == (parent, StatusCode.UNSET)


async def test_a_getmore_links_to_its_find(aclient: AsyncMongoClient[Any], spans: Spans) -> None:
    await aclient.shop.orders.insert_many([{"_id": number} for number in range(3)])
    assert len(await aclient.shop.orders.find(batch_size=2).to_list()) == 3

    assert [link.context for link in spans.one("getMore orders").links] == [spans.one("find orders").context]


@cancellable
async def test_a_cancelled_command_ends_its_span(
    aclient: AsyncMongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    frozen = server.freeze("find")
    task = asyncio.create_task(aclient.shop.command("find", "orders"))
    await reached(frozen)
    assert len(table_of(listeners)) == 1

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    # 4.20.1 publishes a failure, versions before it no end at all.
    span = spans.one("find orders")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] in ("interrupted", "CancelledError")
    assert len(table_of(listeners)) == 0


@cancellable
async def test_many_cancelled_commands_leave_nothing(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    async with aconnect(server.uri, event_listeners=listeners, maxPoolSize=20) as client:
        server.freeze("find", times=None)
        for _ in range(10):
            tasks = [asyncio.create_task(client.shop.command("find", "orders")) for _ in range(20)]
            arrived = len(server.received("find")) + len(tasks)
            await eventually(functools.partial(arrivals, server, arrived))
            for task in tasks:
                task.cancel()
            for task in tasks:
                with pytest.raises(asyncio.CancelledError):
                    await task
        server.reset()

    finds = spans.named("find orders")
    assert len(finds) == len(server.received("find")) == 200
    assert {attributes(span)["error.type"] for span in finds} <= {"interrupted", "CancelledError"}
    assert len(table_of(listeners)) == 0


@cancellable
async def test_a_timeout_around_a_command_ends_its_span(
    aclient: AsyncMongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    await aclient.admin.command("ping")
    server.freeze("find")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(aclient.shop.command("find", "orders"), 0.05)

    assert spans.one("find orders").status.status_code is StatusCode.ERROR
    assert len(table_of(listeners)) == 0


@cancellable
@pytest.mark.parametrize("role", ["standalone", "load_balanced"])
async def test_a_cursor_that_each_time_another_task_goes_on_with_leaves_nothing(
    role: Any, listeners: Any, spans: Spans
) -> None:
    # As `asyncio.wait_for` makes a task before Python 3.12: the cursor's connection was given to the first of them.
    cursor_type = pymongo.CursorType.EXHAUST if role == "standalone" else pymongo.CursorType.NON_TAILABLE
    with ScriptedServer(role=role) as server:
        async with aconnect(server.uri, event_listeners=listeners) as client:
            await client.shop.orders.insert_many([{"_id": number} for number in range(5)])
            cursor = client.shop.orders.find(batch_size=2, cursor_type=cursor_type)
            for _ in range(2):
                await asyncio.create_task(cursor.next())
            frozen = server.freeze("getMore")
            task = asyncio.create_task(cursor.next())
            await reached(frozen)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            span = spans.one("getMore orders")
            assert attributes(span)["error.type"] in ("interrupted", "CancelledError")
            assert len(table_of(listeners)) == 0
            frozen.release()
            await cursor.close()


@cancellable
async def test_a_cancelled_authentication_ends_its_span(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    frozen = server.freeze("saslStart")
    async with aconnect(
        server.uri, event_listeners=listeners, username="alice", password="secret", authMechanism="SCRAM-SHA-256"
    ) as client:
        task = asyncio.create_task(client.admin.command("ping"))
        await reached(frozen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert spans.one("saslStart admin").status.status_code is StatusCode.ERROR
        assert len(table_of(listeners)) == 0


@cancellable
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_task_whose_event_loop_is_thrown_away_ends_its_span(
    server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    # The garbage collector ends the task, in a context of its own.
    async def leave_a_command_open() -> None:
        client = aconnect(server.uri, event_listeners=listeners)
        frozen = server.freeze("find")
        left_behind.append(asyncio.ensure_future(client.shop.command("find", "orders")))
        await reached(frozen)

    left_behind: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_command_open())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert len(table_of(listeners)) == 1
    left_behind.clear()
    del loop
    for _ in range(3):  # PyPy's collector needs more than one to end a task that another one refers to
        gc.collect()

    if pymongo.version_tuple < (4, 20, 1):
        # A known limit: there is no end, and the connection is given back by somebody who doesn't hold it.
        assert len(table_of(listeners)) == 1
        table_of(listeners).forget()
    else:
        assert attributes(spans.one("find orders"))["error.type"] == "GeneratorExit"
        assert len(table_of(listeners)) == 0


async def test_what_the_driver_sends_in_the_background_is_nobodys_child(
    aclient: AsyncMongoClient[Any], server: ScriptedServer, spans: Spans
) -> None:
    # Its background task was started by the first request, and copied that one's context.
    await aclient.shop.orders.insert_many([{"_id": number} for number in range(5)])
    spans.clear()
    with spans.tracer.start_as_current_span("first request"):
        cursor = aclient.shop.orders.find(batch_size=2)
        await cursor.next()
        del cursor  # never closed: the driver's background task closes it
        gc.collect()

    await asyncio.to_thread(server.wait_for, lambda each: each.received("killCursors"))
    await eventually(lambda: spans.named("killCursors orders"))

    assert spans.one("killCursors orders").parent is None
    assert spans.one("find orders").parent == spans.one("first request").context


async def test_a_cursor_that_another_task_closes_leaves_nothing(
    aclient: AsyncMongoClient[Any], listeners: Any, spans: Spans
) -> None:
    await aclient.shop.orders.insert_many([{"_id": number} for number in range(5)])
    cursor = aclient.shop.orders.find(batch_size=2, cursor_type=pymongo.CursorType.EXHAUST)
    await cursor.next()
    await asyncio.create_task(cursor.close())
    await aclient.admin.command("ping")

    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}
    assert len(table_of(listeners)) == 0


async def test_a_dropped_connection_ends_what_was_open(
    aclient: AsyncMongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    frozen = server.freeze("find")
    task = asyncio.create_task(aclient.shop.command("find", "orders"))
    with contextlib.suppress(Exception):
        if pymongo.version_tuple >= (4, 11):
            await reached(frozen)
            server.drop_connections()
        else:
            frozen.release()
        await task

    assert len(table_of(listeners)) == 0
    assert len(spans.named("find orders")) == len(server.received("find"))


class Mine(QuietTopologyListener):
    """A listener of the application's own."""


@pytest.mark.usefixtures("quick_driver")
def test_a_client_can_be_made_where_no_loop_runs(
    server: ScriptedServer,
    instrumentor: MongoEventsInstrumentor,
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY", "true")
    instrumentor.instrument(tracer_provider=spans.provider)
    clients = [aconnect(server.uri, heartbeatFrequencyMS=500, serverSelectionTimeoutMS=1000) for _ in range(2)]

    async def use() -> None:
        if TOPOLOGY_LISTENERS_NEED_A_LOOP:
            instrumentor.instrument_client(clients[0])  # all is added without it
            instrumentor.uninstrument_client(clients[0])
        for client in clients:
            await client.admin.command("ping")
        await asyncio.to_thread(server.stop)
        await eventually(lambda: len(outages._periods.open) == 2)
        for client in clients:
            await client.close()

    asyncio.run(use())

    assert len(spans.named("ping admin")) == 2
    told = ["uninstrument_client() has no effect"] * TOPOLOGY_LISTENERS_NEED_A_LOOP
    assert [message.partition(":")[0] for message in caplog.messages] == told
    for outage in spans.named("mongodb.client.outage"):
        assert attributes(outage)["mongodb.client.outage.failed_heartbeat_count"] == events(outage).count(
            "heartbeat.failed"
        )
    assert len(spans.named("mongodb.client.outage")) == 2
    for discovery in spans.named("mongodb.client.discovery"):
        assert attributes(discovery)["mongodb.client.discovery.outcome"] == "discovered"
        assert {"topology.opened", "server.opened", "heartbeat.succeeded", "server.changed"} <= set(events(discovery))
    assert len(spans.named("mongodb.client.discovery")) == 2
    assert all(not deferred._waiting for deferred in registration._TopologyListeners.ours)


@pytest.mark.skipif(not TOPOLOGY_LISTENERS_NEED_A_LOOP, reason="earlier versions can have the listeners at once")
def test_one_that_is_never_used_is_forgotten(
    server: ScriptedServer, instrumentor: MongoEventsInstrumentor, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, topology=True)
    deferred = registration._TopologyListeners.ours[-1]
    unused, used = aconnect(server.uri), aconnect(server.uri)
    assert len(deferred._waiting) == 2
    del unused
    gc.collect()
    another = aconnect(server.uri)
    assert len(deferred._waiting) == 2

    async def use(*clients: AsyncMongoClient[Any]) -> None:
        await clients[0].admin.command("ping")
        for client in clients:
            await client.close()

    asyncio.run(use(used, another))
    assert len(spans.named("mongodb.client.discovery")) == 1
    assert len(deferred._waiting) == 1
    deferred._waiting.clear()


@pytest.mark.skipif(not TOPOLOGY_LISTENERS_NEED_A_LOOP, reason="earlier versions can have the listeners at once")
def test_one_whose_parts_are_unknown_is_one_warning(
    server: ScriptedServer,
    instrumentor: MongoEventsInstrumentor,
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, topology=True)
    monkeypatch.setattr(client_internals, "_PREFIX", "_Unknown__")
    client = aconnect(server.uri)

    async def use() -> None:
        await client.admin.command("ping")
        await client.close()

    asyncio.run(use())
    (message,) = caplog.messages
    assert message.startswith(
        "outages are not reported for an AsyncMongoClient that was created without a running event loop:"
    )
    assert spans.names == ["ping admin", "endSessions admin"]


def test_listeners_of_others_are_as_they_would_be_without_this(
    instrumentor: MongoEventsInstrumentor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY", "true")
    instrumentor.instrument(tracer_provider=spans.provider)
    mine = Mine()
    monitoring.register(mine)
    registered: Any = monitoring._LISTENERS.topology_listeners

    def made() -> list[Any]:
        """What an asyncio client gets that is made here."""
        namespace: dict[str, Any] = {"__name__": "pymongo.asynchronous.mongo_client", "registered": registered}
        exec("listeners = registered[:]", namespace)  # as the driver's module does
        return list(namespace["listeners"])

    async def in_a_loop() -> list[Any]:
        return made()

    kinds = [type(each).__name__ for each in registered[:]]
    assert kinds[-2:] == ["TopologyEvents", "Mine"]
    assert [type(each).__name__ for each in asyncio.run(in_a_loop())] == kinds
    if TOPOLOGY_LISTENERS_NEED_A_LOOP:
        assert made() == [mine]
    assert registered[-1] is mine
