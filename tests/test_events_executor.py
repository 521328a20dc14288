"""How the driver delivers the events of topologies, and how long the close of a client takes."""

from __future__ import annotations

import contextlib
import gc
import queue
import statistics
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pymongo
import pytest

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._driver import events_executor
from opentelemetry_mongo_events._driver.events_executor import deliver_promptly, speed_up
from tests.clients import aconnect, connect
from tests.events import QuietTopologyListener
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer
    from tests.spans import Spans

DISCOVERY = "mongodb.client.discovery"


def close_times(uri: str, count: int, **options: Any) -> list[float]:
    times = []
    for _ in range(count):
        client = connect(uri, **options)
        client.admin.command("ping")
        began = time.perf_counter()
        client.close()
        times.append(time.perf_counter() - began)
    return times


def test_a_client_is_closed_at_once(server: ScriptedServer, watching: list[Any], spans: Spans) -> None:
    """Without the change it takes half a second."""
    assert statistics.median(close_times(server.uri, 5, event_listeners=watching)) < 0.15
    if pymongo.version_tuple >= (4, 9):  # earlier versions drop the events that are waiting
        assert len(spans.named(DISCOVERY)) == 5


def test_so_is_one_that_was_instrumented_later(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    for listeners in ([], [QuietTopologyListener()]):
        times = []
        for _ in range(3):
            client = connect(server.uri, event_listeners=listeners)
            client.admin.command("ping")
            instrumentor.instrument_client(client, tracer_provider=spans.provider, topology=True)
            time.sleep(0.55)  # the driver's executor sleeps before it looks at its interval again
            began = time.perf_counter()
            client.close()
            times.append(time.perf_counter() - began)
        assert statistics.median(times) < 0.15


def test_a_change_is_known_promptly(server: ScriptedServer, watching: list[Any], spans: Spans) -> None:
    """Without the change it takes up to a second."""
    delays: list[float] = []

    class Timed(QuietTopologyListener):
        def description_changed(self, event: Any) -> None:
            (server,) = event.new_description.server_descriptions().values()
            delays.append(time.monotonic() - server.last_update_time)

    with connect(server.uri, event_listeners=[*watching, Timed()], heartbeatFrequencyMS=500) as client:
        client.admin.command("ping")
        until(lambda: len(delays) >= 2)
        for act in (server.stop, server.start) * 2:
            known = len(delays)
            act()
            until(lambda known=known: len(delays) > known)  # type: ignore[misc]

    assert statistics.median(delays) < 0.3


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
async def test_the_queue_of_an_asynchronous_client_is_long(
    server: ScriptedServer, watching: list[Any], spans: Spans
) -> None:
    client = aconnect(server.uri, event_listeners=watching)
    await client.admin.command("ping")
    await eventually(lambda: spans.named(DISCOVERY))
    events: Any = client._topology._events
    assert events.maxsize == 10_000
    # More events than the driver's own queue takes: without the change the loop stands still here.
    description = client.topology_description
    for _ in range(300):
        events.put((lambda *_: None, (description,)))
    await eventually(events.empty)
    await client.close()


def test_many_clients_cost_no_more_than_some(
    server: ScriptedServer, watching: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_executor, "_PROMPT_CLIENTS", 2)

    def intervals() -> list[float]:
        running = [each for reference in list(events_executor._executors) if (each := reference())]
        return sorted({each._min_interval for each in running if not each._stopped})

    until(lambda: gc.collect() is not None and intervals() == [], seconds=20)
    with contextlib.ExitStack() as clients:
        for number in range(4):
            options: dict[str, Any] = {"event_listeners": watching, "connect": False}
            client = clients.enter_context(connect(server.uri, **options))
            until(lambda count=number + 1: len(events_executor._executors) >= count)  # type: ignore[misc]
        until(lambda: intervals() == [0.1])  # of four clients, each has twice the interval
        client.close()
        events_executor.balance()
        assert intervals() == [pytest.approx(0.075)]


def test_what_is_not_as_expected_is_left_alone() -> None:
    unknown = SimpleNamespace(_interval=1, _min_interval=0.5)
    events: Any = SimpleNamespace(maxsize=100)
    speed_up(unknown, events)
    assert (unknown._interval, unknown._min_interval, events.maxsize) == (1, 0.5, 100)

    class PeriodicExecutor:
        _interval: Any = "1 s"
        _min_interval: Any = 0.01

    PeriodicExecutor.__module__ = "pymongo.periodic_executor"
    executor = PeriodicExecutor()
    unbounded: queue.Queue[Any] = queue.Queue()
    speed_up(executor, unbounded)
    assert (executor._interval, executor._min_interval, unbounded.maxsize) == ("1 s", 0.01, 0)
    deliver_promptly()  # no executor calls it


def test_without_it_all_else_works(
    server: ScriptedServer, spans: Spans, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_executor, "_EXECUTORS", ())
    listeners = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)
    with connect(server.uri, event_listeners=listeners) as client:
        client.admin.command("ping")
        spans.wait_for(DISCOVERY)


def test_another_listener_that_blocks_does_not_fill_the_memory(server: ScriptedServer, watching: list[Any]) -> None:
    goes_on = threading.Event()

    class Blocking(QuietTopologyListener):
        def description_changed(self, event: Any) -> None:
            goes_on.wait(10)

    with connect(server.uri, event_listeners=[*watching, Blocking()]) as client:
        client.admin.command("ping")
        events: Any = client._topology._events
        assert events.maxsize == 10_000
        goes_on.set()
