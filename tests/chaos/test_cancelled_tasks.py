"""Tasks that are cancelled wherever they are."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pymongo
import pytest

from tests.chaos.load import OPERATIONS, Load, cancellable, prepare
from tests.chaos.rounds import Round
from tests.chaos.witness import check_connections
from tests.clients import aconnect
from tests.servers.scripted import ScriptedServer

if TYPE_CHECKING:
    from tests.chaos.rounds import Rounds

# In 4.9 and 4.10 the client waits in a blocking select, where no cancellation arrives.
pytestmark = [
    pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="PyMongo 4.11"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("quick_driver"),
]

AT_ONCE = 50


async def cancel_tasks(uri: str, observed: Round, seed: int, count: int) -> Load:
    """Start tasks and cancel them, each at some pause of the event loop, until so many were cancelled."""
    chance = random.Random(seed)
    load = Load(uri, observed.listeners, observed.spans.tracer, seed, clients=0, threads=0, tasks=0)
    operations = cancellable(OPERATIONS)
    async with aconnect(uri, event_listeners=observed.listeners, maxPoolSize=5) as client:
        await prepare(client)
        while load.cancelled < count:
            tasks = [
                asyncio.create_task(load.do(client, random.Random(chance.random()), operations)) for _ in range(AT_ONCE)
            ]
            for task in chance.sample(tasks, AT_ONCE):
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
                load.cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(observed.check_open_pools)
    return load


def test_cancelled_tasks(rounds: Rounds) -> None:
    for seed in rounds:
        observed = Round()
        with ScriptedServer() as server:
            load = asyncio.run(cancel_tasks(server.uri, observed, seed, rounds.times(250)))
            observed.check()
            check_connections(observed.commands)
            assert load.ours == []
            del load
