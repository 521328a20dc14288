"""A day of the shop in little more than a minute: it loses its primary, and later a pool is too small."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from pymongo import ReadPreference
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.servers.scripted import ScriptedReplicaSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.metrics import MeterProvider

# How long each part lasts, in seconds.
CALM: Final = 18
WITHOUT_PRIMARY: Final = 6
RUSH: Final = 15


def day(provider: MeterProvider) -> None:
    """Let it pass, and measure it."""
    with (
        ScriptedReplicaSet(3) as replica_set,
        connect(
            replica_set.uri,
            event_listeners=event_listeners(meter_provider=provider),
            heartbeatFrequencyMS=1000,
            maxPoolSize=4,
            serverSelectionTimeoutMS=900,
            waitQueueTimeoutMS=500,
        ) as client,
    ):
        for server in replica_set:
            server.fail("find", "insert", times=None, delay=0.004)
            server.fail("aggregate", times=None, delay=0.08)
        shop = client.shop
        catalogue = shop.get_collection("products", read_preference=ReadPreference.SECONDARY_PREFERRED)
        primary, next_primary, _ = replica_set.members

        def browse() -> None:
            catalogue.find_one({"name": "espresso cup"})

        def order() -> None:
            shop.orders.insert_one({"product": "espresso cup"})

        def report() -> None:
            list(shop.orders.aggregate([{"$limit": 10}, {"$sortByCount": "$product"}]))

        with at_work(3, 0.05, browse), at_work(2, 0.04, order):
            time.sleep(CALM)
            primary.stop()
            time.sleep(WITHOUT_PRIMARY)
            replica_set.elect(next_primary)
            time.sleep(CALM / 3)
            primary.start()
            time.sleep(CALM * 2 / 3)
            with at_work(12, 0.02, report):
                time.sleep(RUSH)
            time.sleep(CALM / 2)


@contextlib.contextmanager
def at_work(customers: int, pause: float, task: Callable[[], None]) -> Iterator[None]:
    """So many threads, each of which does this again and again, with a pause in between."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(pause):
            with contextlib.suppress(PyMongoError):
                task()

    threads: list[Any] = [threading.Thread(target=work) for _ in range(customers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
