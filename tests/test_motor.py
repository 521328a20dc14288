"""Motor: PyMongo in threads, behind a future."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.spans import Spans, table_of
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
