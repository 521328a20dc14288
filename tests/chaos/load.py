"""A mixed load: threads and tasks that use clients of one server, whatever comes of it, until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import sys
import threading
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pymongo
from pymongo import DeleteOne, InsertOne, UpdateOne

from tests.clients import aconnect, connect

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from opentelemetry.trace import Tracer

T = TypeVar("T")

DOCUMENTS: Final = 30

_PATIENCE: Final = 60
"""So many seconds an operation may take at most, with a driver whose timeouts are those below."""

OPTIONS: Final[dict[str, Any]] = {
    "serverSelectionTimeoutMS": 500,
    "connectTimeoutMS": 300,
    "socketTimeoutMS": 300,
    "waitQueueTimeoutMS": 200,
    "heartbeatFrequencyMS": 500,
    "maxPoolSize": 3,
}

# ---------------------------------------------------------------------------------------------------------------------
# The operations: coroutines for both kinds of client. With a `MongoClient` they run through without a pause.


async def _given(value: Any) -> Any:
    """What the call of a client's method gives, awaited where that client is asyncio's."""
    return await value if inspect.isawaitable(value) else value


async def _read(cursor: Any, rows: int) -> None:
    """Read some rows."""
    if not hasattr(cursor, "__aiter__"):
        for _ in range(rows):
            if next(cursor, None) is None:
                return
        return
    for _ in range(rows):
        if await anext(cursor, None) is None:
            return


async def _find(client: Any, chance: random.Random) -> None:
    """A cursor that is read to its end, or partly, and then closed, or left to the garbage collector."""
    cursor = client.shop.orders.find({"shelf": 1}, batch_size=chance.randint(2, 9))
    await _read(cursor, chance.choice((1, 10, DOCUMENTS + 1)))
    if chance.random() < 0.5:
        await _given(cursor.close())


async def _exhaust(client: Any, chance: random.Random) -> None:
    cursor = client.shop.orders.find(batch_size=7, cursor_type=pymongo.CursorType.EXHAUST)
    await _read(cursor, chance.choice((8, DOCUMENTS + 1)))
    await _given(cursor.close())


async def _aggregate(client: Any, chance: random.Random) -> None:
    cursor = await _given(client.shop.orders.aggregate([{"$match": {"shelf": 1}}], batchSize=chance.randint(5, 12)))
    await _read(cursor, chance.choice((6, DOCUMENTS + 1)))
    await _given(cursor.close())


async def _insert(client: Any, chance: random.Random) -> None:
    await _given(client.shop.visits.insert_one({"page": chance.randrange(9)}))


async def _insert_duplicates(client: Any, chance: random.Random) -> None:
    documents = [{"_id": chance.randrange(DOCUMENTS)} for _ in range(3)]
    await _given(client.shop.orders.insert_many(documents, ordered=chance.random() < 0.5))


async def _update(client: Any, chance: random.Random) -> None:
    await _given(client.shop.orders.update_one({"_id": chance.randrange(DOCUMENTS)}, {"$inc": {"total": 1}}))


async def _modify(client: Any, chance: random.Random) -> None:
    await _given(
        client.shop.orders.find_one_and_update(
            {"_id": chance.randrange(DOCUMENTS)}, {"$set": {"total": chance.random()}}
        )
    )


async def _write_in_bulk(client: Any, chance: random.Random) -> None:
    operations = [
        InsertOne({"_id": chance.randrange(9)}),
        UpdateOne({"_id": 1}, {"$set": {"seen": True}}),
        DeleteOne({"_id": chance.randrange(9)}),
    ]
    await _given(client.shop.carts.bulk_write(operations, ordered=chance.random() < 0.5))


async def _in_session(client: Any, chance: random.Random) -> None:
    session = client.start_session()
    try:
        await _given(client.shop.orders.find_one({"_id": chance.randrange(DOCUMENTS)}, session=session))
        await _given(client.shop.visits.insert_one({}, session=session))
    finally:
        await _given(session.end_session())


async def _transact(client: Any, chance: random.Random) -> None:
    session = client.start_session()
    try:
        await _given(session.start_transaction())
        await _given(client.shop.visits.insert_one({}, session=session))
        await _given(client.shop.orders.find_one({"_id": 1}, session=session))
        await _given(session.commit_transaction() if chance.random() < 0.7 else session.abort_transaction())
    finally:
        await _given(session.end_session())


async def _fail(client: Any, chance: random.Random) -> None:
    await _given(client.shop.command("thereIsNoSuchCommand"))


async def _ping(client: Any, chance: random.Random) -> None:
    await _given(client.admin.command("ping"))


OPERATIONS: Final[tuple[Any, ...]] = (
    *(_find, _exhaust, _aggregate, _insert, _insert_duplicates, _update, _modify),
    *(_write_in_bulk, _in_session, _fail, _ping),
)
ON_REPLICA_SETS: Final = (*OPERATIONS, _transact)


def cancellable(operations: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those that may be cancelled: 4.20.0 never takes the connection of a cancelled exhaust cursor back."""
    left_out = {_exhaust} if pymongo.version_tuple[:3] == (4, 20, 0) else set()
    return tuple(operation for operation in operations if operation not in left_out)


def run_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run an operation with a `MongoClient`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits for something")


async def prepare(client: Any, operations: tuple[Any, ...] = OPERATIONS) -> None:
    """Make the documents, and run each operation once."""
    await _given(client.shop.orders.insert_many([{"_id": number, "shelf": 1} for number in range(DOCUMENTS)]))
    chance = random.Random(0)
    for operation in operations:
        with contextlib.suppress(pymongo.errors.OperationFailure, pymongo.errors.BulkWriteError):
            await operation(client, chance)


# ---------------------------------------------------------------------------------------------------------------------


def passes_through(error: BaseException, package: str = "opentelemetry_mongo_events") -> bool:
    """Whether an exception came out of, or through, the package."""
    return any(f"{package}/" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))


class Load:
    """Threads, and an event loop with tasks, that run operations of their own seeds.

    Args:
        uri: Where the server is.
        listeners: Those of each client.
        tracer: For the spans that the commands are children of.
        seed: Of what is done.
        operations: What is done.

    Attributes:
        clients: Those that live as long as the load, of threads; others come and go meanwhile.
        failures: The classes of the exceptions that the operations raised.
        ours: Exceptions that came through the package.
        cancelled: How many tasks were cancelled.
    """

    def __init__(
        self,
        uri: str,
        listeners: list[Any],
        tracer: Tracer,
        seed: int,
        operations: tuple[Any, ...] = OPERATIONS,
        *,
        clients: int = 2,
        threads: int = 8,
        tasks: int = 10,
        **options: Any,
    ) -> None:
        self._uri = uri
        self._options = OPTIONS | {"event_listeners": listeners} | options
        self._tracer = tracer
        self._seed = seed
        self._operations = operations
        self._tasks = tasks
        self._over = threading.Event()
        self.clients = [connect(uri, minPoolSize=number, **self._options) for number in range(clients)]
        self.failures: Counter[str] = Counter()
        self.ours: list[BaseException] = []
        self.cancelled = 0
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]
        if clients:
            self._threads.append(threading.Thread(target=self._run_clients_that_come_and_go, daemon=True))
        if tasks and pymongo.version_tuple >= (4, 9):
            self._threads.append(threading.Thread(target=lambda: asyncio.run(self._run_tasks()), daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let all come to their ends. The clients of threads stay open.

        Raises:
            AssertionError: Some don't; the message tells where they are.
        """
        self._over.set()
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic()))
        frames = sys._current_frames()
        stuck = [frames[thread.ident or 0] for thread in self._threads if thread.is_alive()]
        assert not stuck, "\n".join("".join(traceback.format_stack(frame)) for frame in stuck)

    async def do(self, client: Any, chance: random.Random, operations: tuple[Any, ...]) -> None:
        """Run an operation."""
        operation = chance.choice(operations)
        try:
            with self._tracer.start_as_current_span("operation"):
                await operation(client, chance)
        except Exception as error:  # the driver's, of many classes where replies are garbled
            self._note(error)

    async def _close(self, client: Any, *, once_more: bool = True) -> None:
        """Close a client: at the second try, where the reply to its last command is garbled."""
        try:
            await _given(client.close())
        except Exception as error:
            self._note(error)
            if once_more:
                await self._close(client, once_more=False)

    def _note(self, error: Exception) -> None:
        self.failures[type(error).__name__] += 1
        if passes_through(error):
            self.ours.append(error)

    def _run(self, number: int) -> None:
        chance = random.Random(f"{self._seed} thread {number}")
        while not self._over.is_set():
            run_through(self.do(chance.choice(self.clients), chance, self._operations))

    def _run_clients_that_come_and_go(self) -> None:
        chance = random.Random(f"{self._seed} clients")
        while not self._over.is_set():
            client = connect(self._uri, **self._options)
            for _ in range(chance.randrange(5)):
                run_through(self.do(client, chance, self._operations))
            if chance.random() < 0.5:
                run_through(self._close(client))
            del client

    async def _run_tasks(self) -> None:
        chance = random.Random(f"{self._seed} tasks")
        while not self._over.is_set():
            client = aconnect(self._uri, **self._options)
            for _ in range(10):
                if not self._over.is_set():
                    await self._run_some_tasks(client, chance)
            await self._close(client)

    async def _run_some_tasks(self, client: Any, chance: random.Random) -> None:
        operations = cancellable(self._operations)
        tasks = [
            asyncio.create_task(self.do(client, random.Random(chance.random()), operations)) for _ in range(self._tasks)
        ]
        await asyncio.sleep(chance.random() * 0.05)
        for task in chance.sample(tasks, len(tasks) // 3):
            self.cancelled += task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
