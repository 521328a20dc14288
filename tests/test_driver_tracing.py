"""Where PyMongo itself traces: nothing twice, and what would be on our span of a command is on its span."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import NonRecordingSpan, use_span
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._driver.versions import ATTEMPTS_SHARE_OPERATION_ID
from tests.conftest import registered_listeners
from tests.driver_tracing import SCOPE, DriverTracing, can_trace, in_an_operation, scope_of
from tests.events import ADDRESS, started, succeeded
from tests.spans import Spans, attributes, commands_of, events, linked, span_id
from tests.test_pools import in_use, pending
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer

OURS = "opentelemetry_mongo_events"
ATTEMPT = "mongodb.client.operation.attempt"
WAIT_TIME = "mongodb.client.connection.wait_time"
SELECTION_WAIT_TIME = "mongodb.client.server_selection.wait_time"

knows_attempts = pytest.mark.skipif(not ATTEMPTS_SHARE_OPERATION_ID, reason="before 4.18 attempts share no id")

pytestmark = [pytest.mark.usefixtures("quick_driver"), can_trace]


@pytest.fixture
def driver(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> DriverTracing:
    return DriverTracing(spans, monkeypatch)


@pytest.fixture(params=[False, None], ids=["command_spans=False", "detected"])
def instrument(
    request: pytest.FixtureRequest,
    instrumentor: MongoEventsInstrumentor,
    spans: Spans,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Any]:
    """Switches the instrumentation on, with the option or without: then it finds out, and warns of it once."""

    def instrument(**options: Any) -> None:
        told = {} if request.param is None else {"command_spans": request.param}
        instrumentor.instrument(tracer_provider=spans.provider, **told, **options)

    yield instrument
    warnings = [record.getMessage() for record in caplog.get_records("call") if record.name == OURS]
    tracers = [each.partition(" already traces")[0] for each in warnings]
    assert tracers == ([] if request.param is False else ["PyMongo itself"])


def ours(spans: Spans) -> list[str]:
    """The names of our spans."""
    return [span.name for span in spans.finished if scope_of(span) == OURS]


# ---------------------------------------------------------------------------------------------------------------------
# Nothing twice.


def test_each_command_has_one_span(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans
) -> None:
    instrument()
    with driver.connect(server.uri) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(5)])
        list(client.shop.orders.find(batch_size=2))
        client.admin.command("ping")
        cursor = client.shop.orders.find(batch_size=2)
        next(cursor)
        cursor.close()
        with client.start_session() as session:
            client.shop.orders.find_one({}, session=session)

    assert ours(spans) == []
    assert driver.commands == [
        *("insert", "find", "getMore", "getMore", "ping", "find", "killCursors", "find", "endSessions")
    ]


def test_what_the_driver_sends_in_background_has_one_span(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymongo.common.KILL_CURSOR_FREQUENCY", 0.1)
    instrument()
    with driver.connect(server.uri) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(5)])
        cursor = client.shop.orders.find(batch_size=2)
        next(cursor)
        del cursor
        gc.collect()
        server.wait_for(lambda server: server.received("killCursors"))
        until(lambda: "killCursors" in driver.commands)

    assert ours(spans) == []
    assert driver.commands.count("killCursors") == 1
    assert driver.operation("killCursors").parent is None


@pytest.mark.asyncio
async def test_the_same_for_asyncio(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans
) -> None:
    instrument()
    async with driver.aconnect(server.uri, maxPoolSize=1) as client:
        await client.shop.orders.insert_many([{"_id": number} for number in range(5)])
        await client.shop.orders.find(batch_size=2).to_list()

    assert ours(spans) == []
    assert driver.commands[:4] == ["insert", "find", "getMore", "getMore"]
    assert WAIT_TIME in attributes(driver.operation("insert"))  # for the first connection


def test_a_client_that_doesnt_trace_has_our_spans(
    instrumentor: MongoEventsInstrumentor, driver: DriverTracing, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with driver.connect(server.uri) as client:
        client.admin.command("ping")
    assert ours(spans) == []

    event = started({"find": "orders"})
    listener = commands_of(registered_listeners())
    listener.started(event)
    listener.succeeded(succeeded("find"))
    assert ours(spans) == ["find orders"]


# ---------------------------------------------------------------------------------------------------------------------
# What would be on the span of a command.


def test_the_wait_for_a_connection_is_on_the_operation_that_it_delayed(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    instrument(meter_provider=metrics.provider)
    with driver.connect(server.uri, maxPoolSize=1) as client, ThreadPoolExecutor(1) as threads:
        client.admin.command("ping")
        spans.clear()
        with in_use(client, server):
            waiting = threads.submit(client.shop.orders.distinct, "name")
            until(lambda: pending(metrics) == 1)
            time.sleep(0.1)
        waiting.result()
        client.shop.orders.estimated_document_count()

    assert 0.1 <= attributes(driver.operation("distinct"))[WAIT_TIME] < 5
    assert attributes(driver.operation("count")).get(WAIT_TIME, 0) < 0.1
    assert ours(spans) == []


def test_the_wait_for_a_server_is_on_the_operation_that_it_delayed(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans
) -> None:
    instrument(selections=True)
    with driver.connect(server.uri, heartbeatFrequencyMS=500) as client:
        client.shop.orders.insert_one({})
        server.stop()
        until(lambda: not client.topology_description.has_readable_server())
        spans.clear()
        timer = threading.Timer(0.2, server.start)
        timer.start()
        client.shop.orders.insert_one({})
        timer.join()

    selection, insert = spans.one("select server"), driver.operation("insert")
    assert selection.parent is not None
    assert selection.parent.span_id == span_id(insert)
    assert 0.1 <= attributes(insert)[SELECTION_WAIT_TIME] < 10
    assert ours(spans) == ["select server"]


@knows_attempts
def test_a_read_that_was_sent_twice_says_so(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans
) -> None:
    instrument()
    with driver.connect(server.uri) as client:
        server.fail("find", code=91)
        client.shop.orders.find_one()
        client.shop.bills.find_one()

    first, second = driver.operations[:2]
    assert driver.commands[:3] == ["find", "find", "find"]
    assert attributes(first)[ATTEMPT] == 2
    assert ATTEMPT not in attributes(second)


@knows_attempts
def test_a_write_that_was_sent_twice_says_so(
    instrument: Any, driver: DriverTracing, primary: ScriptedServer, spans: Spans
) -> None:
    instrument()
    with driver.connect(primary.uri) as client:
        primary.fail(
            "insert", write_concern_error={"code": 91, "errmsg": "shutdown"}, labels=["RetryableWriteError"], times=1
        )
        primary.reply("insert", [{"n": 1}, {"n": 1}])
        client.shop.orders.insert_one({})

    assert attributes(driver.operation("insert"))[ATTEMPT] == 2


def test_a_read_after_a_checkout_that_failed_says_so(
    instrument: Any, driver: DriverTracing, primary: ScriptedServer, spans: Spans
) -> None:
    credentials = {"username": "alice", "password": "secret", "authMechanism": "PLAIN"}
    instrument()
    with driver.connect(primary.uri, **credentials) as client:
        primary.fail("saslStart", close_connection=True, delay=0.1)
        client.shop.orders.find_one()

    find = driver.operation("find")
    assert attributes(find)[ATTEMPT] == 2
    assert 0.1 <= attributes(find)[WAIT_TIME] < 5
    (checkout,) = [span for span in spans.finished if span.name.startswith("checkout ")]
    assert checkout.parent is not None
    assert checkout.parent.span_id == span_id(find)


@pytest.mark.parametrize("is_measured", [True, False], ids=["with metrics", "without metrics"])
def test_what_happens_to_the_server_meanwhile_is_on_the_operation(
    is_measured: bool, instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    instrument(topology=True, **({"meter_provider": metrics.provider} if is_measured else {}))
    with driver.connect(server.uri, heartbeatFrequencyMS=500) as client:
        client.admin.command("ping")
        spans.wait_for("mongodb.client.discovery")
        frozen = server.freeze("distinct")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(client.shop.orders.distinct, "name")
            assert frozen.reached.wait(5)
            server.fail("hello", close_connection=True, times=8)
            spans.wait_for("mongodb.client.outage")
            frozen.release()
            waiting.result(5)
        client.admin.command("ping")

    distinct = driver.operation("distinct")
    assert events(distinct)[0] == "heartbeat.failed"
    assert events(distinct).count("pool.cleared") == 1
    assert not any(each.events for each in driver.operations if each is not distinct)


@pytest.mark.parametrize("is_measured", [True, False], ids=["with metrics", "without metrics"])
def test_an_outage_links_to_the_operation_that_found_it(
    is_measured: bool, instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    instrument(topology=True, **({"meter_provider": metrics.provider} if is_measured else {}))
    with driver.connect(server.uri, retryReads=False) as client:  # no heartbeat finds out first
        client.admin.command("ping")
        spans.wait_for("mongodb.client.discovery")
        server.fail("find", close_connection=True)
        server.fail("hello", close_connection=True, times=8)
        with pytest.raises(PyMongoError):
            client.shop.orders.find_one()
        client.admin.command("ping")  # which makes the driver look for its server
        outage = spans.wait_for("mongodb.client.outage")

    assert linked(outage) == [span_id(driver.operation("find"))]


def test_an_outage_links_to_an_operation_in_background(
    instrument: Any, driver: DriverTracing, server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymongo.common.KILL_CURSOR_FREQUENCY", 0.1)
    instrument(topology=True)
    with driver.connect(server.uri, heartbeatFrequencyMS=500) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(5)])
        spans.wait_for("mongodb.client.discovery")
        cursor = client.shop.orders.find(batch_size=2)
        next(cursor)
        server.fail("killCursors", close_connection=True)
        del cursor
        gc.collect()
        until(lambda: "killCursors" in driver.commands)
        server.fail("hello", close_connection=True, times=8)
        outage = spans.wait_for("mongodb.client.outage")

    assert linked(outage) == [span_id(driver.operation("killCursors"))]


# ---------------------------------------------------------------------------------------------------------------------
# What nothing is added to. The events are the driver's, in a span of the driver that the test has started.


@pytest.fixture
def listener(instrumentor: MongoEventsInstrumentor, spans: Spans) -> Any:
    """The instrumentor's listener, of which a client's command has waited for its connection."""
    instrumentor.instrument(tracer_provider=spans.provider, command_spans=False)
    return commands_of(registered_listeners())


def hold(listener: Any, wait_time: float = 0.25) -> Any:
    from opentelemetry_mongo_events._commands.held_connections import Delays, HeldConnection, hold

    held = HeldConnection(listener._open, ADDRESS, 1)
    held.delays = Delays(wait_time, 2 * wait_time)
    hold(held)
    return held


def test_the_commands_of_an_operation_add_up(listener: Any, spans: Spans) -> None:
    with in_an_operation(spans):
        for request_id in (1, 2):
            hold(listener)
            listener.started(started({"find": "orders"}, request_id=request_id))
            listener.succeeded(succeeded("find", request_id=request_id))

    assert attributes(spans.one()) == {WAIT_TIME: 0.5, SELECTION_WAIT_TIME: 1.0}


def test_a_span_of_the_application_stays_as_it_is(listener: Any, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("request"):
        hold(listener)
        listener.started(started({"find": "orders"}))
        assert len(listener._open) == 0
        listener.succeeded(succeeded("find"))

    assert attributes(spans.one()) == {}


def test_an_excluded_command_adds_nothing(instrumentor: MongoEventsInstrumentor, spans: Spans) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, exclude_commands="find")
    listener = commands_of(registered_listeners())
    with in_an_operation(spans):
        hold(listener)
        listener.started(started({"find": "orders"}))
        listener.succeeded(succeeded("find"))

    assert attributes(spans.one()) == {}


def test_an_operation_that_ended_before_its_command_gets_no_more(
    listener: Any, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    hold(listener)
    with in_an_operation(spans) as span:
        listener.started(started({"find": "orders"}))
        (command,) = listener._open.by_id.values()
        command.note(a_background_event())
    span.end()
    listener.succeeded(succeeded("find"))
    with use_span(span):
        listener.started(started({"find": "orders"}, request_id=2))
        listener.succeeded(succeeded("find", request_id=2))

    assert spans.one().events == ()
    assert [message for message in caplog.messages if "ended" in message and "add_event" in message] == []
    assert len(listener._open) == 0


def a_background_event() -> Any:
    from opentelemetry_mongo_events._servers.events import BackgroundEvent

    return BackgroundEvent("mongodb.client.pool.cleared", {})


def test_an_interrupted_command_still_tells_what_happened(listener: Any, spans: Spans) -> None:
    with in_an_operation(spans):
        held = hold(listener)
        listener.started(started({"find": "orders"}))
        (command,) = listener._open.by_id.values()
        command.note(a_background_event())
        interrupted = listener._open.take_abandoned(held)
        interrupted.interrupt()

    assert events(spans.one()) == ["pool.cleared"]


def test_two_listeners_of_a_client_add_once(spans: Spans) -> None:
    both = [commands_of(event_listeners(tracer_provider=spans.provider, command_spans=False)) for _ in range(2)]
    with in_an_operation(spans):
        for listener in both:
            hold(listener)
        for listener in both:
            listener.started(started({"find": "orders"}))
        assert [len(listener._open) for listener in both] == [1, 0]
        for listener in both:
            listener.succeeded(succeeded("find"))

    assert attributes(spans.one()) == {WAIT_TIME: 0.25, SELECTION_WAIT_TIME: 0.5}


def test_beside_a_span_of_ours_nothing_is_added(spans: Spans) -> None:
    both = [commands_of(event_listeners(tracer_provider=spans.provider)) for _ in range(2)]
    with in_an_operation(spans):
        for listener in both:
            hold(listener)
        for listener in both:
            listener.started(started({"find": "orders"}))
        for listener in both:
            listener.succeeded(succeeded("find"))

    assert attributes(spans.one("find orders")).items() >= {WAIT_TIME: 0.25, SELECTION_WAIT_TIME: 0.5}.items()
    assert attributes(spans.one("find shop.orders")) == {}


class Scope:
    name = SCOPE


class Unusable(NonRecordingSpan):
    """A span of another SDK, which can be written, badly, and not read."""

    instrumentation_scope = Scope()

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: object) -> None:
        raise ValueError(key)


def test_a_span_that_raises_is_no_error_of_the_command(listener: Any, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("request") as request, use_span(Unusable(request.get_span_context())):
        hold(listener)
        listener.started(started({"find": "orders"}))
        listener.succeeded(succeeded("find"))

    assert len(listener._open) == 0
    assert listener.guard.failures == {("an operation span", "ValueError"): 1}
