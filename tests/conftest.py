"""What every test gets: servers to talk to, and a place where the spans arrive."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import inspect
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import Logger
from pymongo import MongoClient, common, monitoring

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._commands.claims import DRIVER_SPANS, METRICS, SPANS
from opentelemetry_mongo_events._commands.held_connections import _held
from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.process import instances
from opentelemetry_mongo_events._servers.state import ServerStates
from tests.clients import connect
from tests.events import ADDRESS, ADDRESSES, TOPOLOGY_ID
from tests.metrics import Metrics
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
from tests.spans import Spans, table_of, transactions_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.logs import Logs


def pytest_configure() -> None:
    # What a shell starts in the background ignores it, and so would the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _limit(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _limit(item)  # again: pytest has cancelled it if the test failed


def pytest_runtest_logfinish() -> None:
    faulthandler.cancel_dump_traceback_later()


def _limit(item: pytest.Item) -> None:
    """End a process that stands still for long: pytest-timeout interrupts a test once, and not what follows."""
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0]) if marker and marker.args else item.config.getoption("timeout")
    seconds = float(item.config.getini("timeout")) if seconds is None else seconds
    if seconds:
        faulthandler.dump_traceback_later(2 * seconds + 30, exit=True, file=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # On any other Python a missing nx-27017 is a failure.
    if sys.version_info >= (3, 15) and importlib.util.find_spec("nx_27017") is None:
        for item in items:
            if item.get_closest_marker("nx"):
                item.add_marker(pytest.mark.skip(reason="nx-27017 does not support Python 3.15 yet"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    # With listeners for topologies a client's close waits up to half a second: a test that wants them says so.
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY", "false")
    # A client that is used for the first time waits for its server, and that may take long enough for a span.
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_SELECTIONS", "false")


@pytest.fixture(autouse=True)
def nothing_left_by_another_test() -> None:
    """A test may leave a command open or a connection checked out, and the next one have its number."""
    SPANS._last.set(None)
    METRICS._last.set(None)
    DRIVER_SPANS._last.set(None)
    _held.set(())
    # Its listeners may not be collected yet, and would report what has the same address.
    for pools in instances(PoolStates):
        pools._current.pop(id(ADDRESS), None)
    for servers in instances(ServerStates):
        servers._topologies.pop(TOPOLOGY_ID, None)
        for address in (ADDRESS, *ADDRESSES):
            servers._servers.pop(id(address), None)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def logs() -> Logs:
    if "event_name" not in inspect.signature(Logger.emit).parameters:
        pytest.skip("OpenTelemetry 1.38 has log records with an event name")
    from tests.logs import Logs

    return Logs()


@pytest.fixture
def quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver hands its events over once a second, and looks after a lost server twice: here ten times as often."""
    monkeypatch.setattr(common, "EVENTS_QUEUE_FREQUENCY", 0.1)
    monkeypatch.setattr(common, "MIN_HEARTBEAT_INTERVAL", 0.05)


@pytest.fixture
def listeners(spans: Spans, metrics: Metrics) -> Iterator[Any]:
    """The listeners of one client; at the end of the test nothing may be open in them."""
    made = event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider)
    yield made
    assert len(table_of(made)) == 0
    assert transactions_of(made).open == {}


@pytest.fixture
def watching(spans: Spans, metrics: Metrics) -> list[Any]:
    """The listeners of one client, those for topologies among them."""
    return event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True)


@pytest.fixture
def primary(listeners: Any) -> Iterator[ScriptedServer]:
    with ScriptedServer(role="primary") as server:
        yield server


@pytest.fixture
def replica_set() -> Iterator[ScriptedReplicaSet]:
    with ScriptedReplicaSet(3) as replica_set:
        yield replica_set


@pytest.fixture
def client(server: ScriptedServer, listeners: Any) -> Iterator[MongoClient[Any]]:
    """A client that is observed by `event_listeners()`."""
    with connect(server.uri, event_listeners=listeners) as client:
        yield client


@pytest.fixture
def instrumentor() -> Iterator[MongoEventsInstrumentor]:
    """The instrumentor, off before and after the test; at its end nothing may be open."""
    instrumentor = MongoEventsInstrumentor()
    registered = [list(each) for each in monitoring._LISTENERS]
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    with contextlib.suppress(StopIteration):
        assert len(table_of(registered_listeners())) == 0
    # What no application can do: the clients of other tests are none of the instrumentor's.
    for listeners, before in zip(monitoring._LISTENERS, registered, strict=True):
        listeners[:] = before
    MongoEventsInstrumentor._registered = frozenset()
    MongoEventsInstrumentor._listeners = None


def registered_listeners() -> list[Any]:
    """What the driver copies into each new client."""
    registered = monitoring._LISTENERS
    return [listener for kind in registered for listener in kind]
