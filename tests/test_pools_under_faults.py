"""Pools under load while the server is killed, frozen and revived: in the end all counts are the driver's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.clients import aconnect, connect
from tests.metrics import POOL, Metrics
from tests.pools import held
from tests.spans import Spans, table_of
from tests.waiting import collected, until

if TYPE_CHECKING:
    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedServer

PENDING = "db.client.connection.pending_requests"
OPTIONS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 500,
    "socketTimeoutMS": 400,
    "waitQueueTimeoutMS": 100,
    "heartbeatFrequencyMS": 500,
}


class Load:
    """Threads and tasks that use clients of one server, whatever comes of it, until they are told to stop."""

    def __init__(self, uri: str, listeners: Any) -> None:
        self._uri = uri
        self._listeners = listeners
        self._over = threading.Event()
        self.clients: list[MongoClient[Any]] = [
            connect(uri, event_listeners=listeners, maxPoolSize=3, minPoolSize=number, **OPTIONS) for number in range(2)
        ]
        self.failures = 0
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(12)]
        if pymongo.version_tuple >= (4, 9):
            self._threads.append(threading.Thread(target=lambda: asyncio.run(self._run_tasks())))

    def start(self) -> None:
        self.clients[0].shop.orders.insert_many([{"_id": number} for number in range(30)])
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            client = chance.choice(self.clients)
            try:
                if chance.random() < 0.5:
                    list(client.shop.orders.find(batch_size=7))
                else:
                    client.admin.command("ping")
            except PyMongoError:
                self.failures += 1

    async def _run_tasks(self) -> None:
        chance = random.Random(0)
        async with aconnect(self._uri, event_listeners=self._listeners, maxPoolSize=2, **OPTIONS) as client:

            async def read() -> None:
                with contextlib.suppress(PyMongoError):
                    async for _ in client.shop.orders.find(batch_size=7):
                        pass

            while not self._over.is_set():
                tasks = [asyncio.create_task(read()) for _ in range(10)]
                await asyncio.sleep(chance.random() * 0.05)
                for task in chance.sample(tasks, 4):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_the_counts_are_the_drivers_whatever_happened(
    server: ScriptedServer, spans: Spans, metrics: Metrics, caplog: Any
) -> None:
    # A record of the driver's keeps an exception, with all that is in its frames.
    caplog.set_level(logging.CRITICAL + 1, "pymongo")
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider)
    load = Load(server.uri, listeners)
    load.start()
    pause = threading.Event()
    for fault in ("drop", "freeze", "kill", "drop", "freeze"):
        pause.wait(0.2)
        metrics.collected()  # while they run
        if fault == "drop":
            server.drop_connections()
        elif fault == "freeze":
            frozen = server.freeze("find", "ping", times=5)
            pause.wait(0.5)
            frozen.release()
        else:
            server.stop()
            pause.wait(0.3)
            server.start()
    load.stop()

    # The driver fills its pools in the background. And a task that is cancelled just as it gets a connection may leave
    # that to the garbage collector, in the driver's own pool too.
    until(lambda: collected() and metrics.connections() == held(*load.clients))
    assert load.failures > 0
    assert held(*load.clients)[1] == 0
    assert sum(metrics.values(PENDING, POOL).values()) == 0
    assert len(table_of(listeners)) == 0

    commands = [name for name in spans.names if not name.startswith("checkout ")]
    failed = len(spans.names) - len(commands)
    assert sum(metrics.values("db.client.operation.duration", POOL).values()) == len(commands)
    assert sum(metrics.values("mongodb.client.connection.checkout_failures", POOL).values()) == failed
    waits, uses = (metrics.one(f"db.client.connection.{name}_time").count for name in ("wait", "use"))
    assert len(commands) - 50 < uses <= waits

    for client in load.clients:
        client.close()
    if pymongo.version_tuple >= (4, 9):
        until(lambda: collected() and metrics.points("db.client.connection.count") == [])
    assert [message for message in caplog.messages if "opentelemetry" in message] == []
