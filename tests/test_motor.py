"""Motor: PyMongo in threads, behind a future."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pymongo
import pytest

from opentelemetry_mongo_events import event_listeners
from tests.spans import Spans, attributes, seconds, table_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.servers.scripted import ScriptedServer

motor_asyncio = pytest.importorskip("motor.motor_asyncio", exc_type=ImportError)


async def test_commands_are_children_of_the_task_that_awaits_them(
    server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    client = motor_asyncio.AsyncIOMotorClient(server.uri, event_listeners=listeners)
    try:

        async def request(number: int) -> None:
            with spans.tracer.start_as_current_span(f"request {number}"):
                await client.shop[f"c{number}"].insert_many([{"_id": each} for each in range(3)])
                assert len(await client.shop[f"c{number}"].find(batch_size=2).to_list(None)) == 3

        await asyncio.gather(*(request(number) for number in range(20)))
    finally:
        client.close()

    for number in range(20):
        parent = spans.one(f"request {number}").context
        for name in ("insert", "find", "getMore"):
            assert spans.one(f"{name} c{number}").parent == parent
    assert len(table_of(listeners)) == 0


@pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7 logs its server selections")
async def test_a_task_that_waits_for_a_server_is_the_parent_of_the_wait(server: ScriptedServer, spans: Spans) -> None:
    listeners = event_listeners(tracer_provider=spans.provider, selections=True)
    client = motor_asyncio.AsyncIOMotorClient(server.uri, event_listeners=listeners, heartbeatFrequencyMS=500)
    try:
        await client.admin.command("ping")
        await asyncio.to_thread(server.stop)
        await eventually(lambda: not client.delegate.topology_description.has_readable_server())
        spans.clear()
        with spans.tracer.start_as_current_span("request"):
            waiting = asyncio.ensure_future(client.shop.orders.find_one({}))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            await waiting
    finally:
        client.close()

    selection = spans.one("select server")
    assert selection.parent == spans.one("request").context == spans.one("find orders").parent
    waited = attributes(spans.one("find orders"))["mongodb.client.server_selection.wait_time"]
    assert waited == pytest.approx(seconds(selection), abs=0.001)


async def test_its_clients_are_instrumented_too(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    client = motor_asyncio.AsyncIOMotorClient(server.uri)
    try:
        await client.shop.orders.find_one({})
        assert spans.names == ["find orders"]
    finally:
        client.close()


async def test_a_future_that_is_cancelled_leaves_nothing(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    # The thread goes on: its command ends as it would have.
    client = motor_asyncio.AsyncIOMotorClient(server.uri, event_listeners=listeners)
    try:
        await client.admin.command("ping")
        frozen = server.freeze("find")
        task = asyncio.ensure_future(client.shop.command("find", "orders"))
        assert await asyncio.to_thread(frozen.reached.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(table_of(listeners)) == 1

        frozen.release()
        await client.shop.orders.find_one({})
        await eventually(lambda: len(table_of(listeners)) == 0)
        assert spans.names == ["ping admin", "find orders", "find orders"]
    finally:
        client.close()
