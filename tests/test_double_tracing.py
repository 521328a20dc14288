"""Where another one traces the same commands."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.trace import StatusCode
from pymongo import monitoring
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._runtime.background import background_worker
from tests.clients import connect
from tests.spans import Spans, attributes, linked, span_id
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer


@pytest.fixture
def contrib(spans: Spans) -> Iterator[PymongoInstrumentor]:
    instrumentor = PymongoInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    # It can't be made to forget what it registered, so this is done for it.
    monitoring._LISTENERS.command_listeners.remove(instrumentor._commandtracer_instance)
    PymongoInstrumentor._commandtracer_instance = None
    instrumentor._commandtracer_instance = None


@pytest.mark.usefixtures("contrib")
def test_beside_the_other_instrumentation_there_is_one_span(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        client.shop.orders.find_one({})

    scopes = {span.instrumentation_scope.name for span in spans.finished if span.instrumentation_scope}
    assert scopes == {"opentelemetry.instrumentation.pymongo"}
    (message,) = [record.message for record in caplog.records if record.name == "opentelemetry_mongo_events"]
    assert message.startswith(
        "opentelemetry-instrumentation-pymongo already traces MongoDB commands, "
        "so opentelemetry-mongo-events creates no command spans. "
    )
    assert "remove the call PymongoInstrumentor().instrument() from the code" in message
    assert "if opentelemetry-instrument makes the call, set OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo" in message
    assert "command_spans=False (OTEL_PYTHON_MONGO_EVENTS_COMMAND_SPANS=false)" in message


def test_the_order_of_the_two_doesnt_matter_and_the_spans_come_back(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, request: pytest.FixtureRequest
) -> None:
    mine = Spans()
    instrumentor.instrument(tracer_provider=mine.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        contrib = request.getfixturevalue("contrib")
        client.shop.orders.find_one({})
        assert mine.names == ["ping admin"]

        contrib.uninstrument()
        client.shop.orders.find_one({})
        assert mine.names == ["ping admin", "find orders"]


def test_where_the_other_instrumentation_was_never_imported_nothing_stands_down(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.instrumentation.pymongo")
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        assert spans.names == ["ping admin"]


@pytest.mark.usefixtures("contrib")
def test_without_command_spans_there_is_no_warning_and_commands_are_measured(
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_COMMAND_SPANS", "false")
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider)
    with connect(server.uri) as client:
        client.shop.orders.find_one({})

    scopes = {span.instrumentation_scope.name for span in spans.finished if span.instrumentation_scope}
    assert scopes == {"opentelemetry.instrumentation.pymongo"}
    assert "find" in metrics.values("db.client.operation.duration", "db.operation.name")
    assert [record for record in caplog.records if record.name == "opentelemetry_mongo_events"] == []


@pytest.mark.usefixtures("contrib")
def test_listeners_that_were_asked_for_dont_stand_down(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    own = Spans()
    with connect(server.uri, event_listeners=event_listeners(tracer_provider=own.provider)) as client:
        client.shop.orders.find_one({})

        assert own.names == ["find orders"]


def test_under_a_span_of_the_driver_there_is_none_of_ours(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    driver: Any = spans.provider.get_tracer("PyMongo", "4.99.0")
    with connect(server.uri) as client:
        for _ in range(2):
            with driver.start_as_current_span("find shop.orders"):
                client.shop.orders.find_one({})
        client.shop.bills.find_one({})
        with spans.tracer.start_as_current_span("request"):
            client.shop.users.find_one({})

        assert spans.names == ["find shop.orders", "find shop.orders", "find bills", "find users", "request"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("PyMongo itself already traces MongoDB commands")
    assert "OTEL_PYTHON_INSTRUMENTATION_MONGODB_ENABLED" in caplog.text


def test_a_span_of_the_driver_counts_in_its_background_threads_too(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    driver: Any = spans.provider.get_tracer("PyMongo", "4.99.0")

    def kill() -> None:
        with driver.start_as_current_span("killCursors shop.orders"):
            client.shop.command("killCursors", "orders", cursors=[1])

    with connect(server.uri) as client:
        client.admin.command("ping")
        thread = threading.Thread(target=kill, name="pymongo_kill_cursors_thread")
        thread.start()
        thread.join()

        assert spans.names == ["ping admin", "killCursors shop.orders"]


# ---------------------------------------------------------------------------------------------------------------------
# What goes on without command spans.

OFTEN: dict[str, Any] = {"heartbeatFrequencyMS": 500, "serverSelectionTimeoutMS": 500, "retryReads": False}
OUTAGE = "mongodb.client.outage"


@pytest.fixture(params=["contrib", "the driver", "command_spans"])
def other(request: pytest.FixtureRequest) -> str:
    """Who traces commands: another one, or nobody."""
    if request.param == "contrib":
        request.getfixturevalue("contrib")
    return str(request.param)


@pytest.mark.usefixtures("quick_driver")
@pytest.mark.parametrize("is_measured", [True, False], ids=["with metrics", "without metrics"])
def test_an_outage_links_to_the_callers_span(
    is_measured: bool,
    other: str,
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instrumentor.instrument(
        tracer_provider=spans.provider,
        topology=True,
        selections=True,
        command_spans=other != "command_spans",
        meter_provider=metrics.provider if is_measured else None,
    )
    tracer: Any = spans.provider.get_tracer("PyMongo", "4.99.0") if other == "the driver" else spans.tracer
    with connect(server.uri, retryReads=False) as client:  # no heartbeat finds out first
        with tracer.start_as_current_span("healthy"):
            client.admin.command("ping")
        until(lambda: spans.named("mongodb.client.discovery"))
        server.fail("count", close_connection=True)
        server.fail("hello", close_connection=True, times=8)
        with tracer.start_as_current_span("failing"), pytest.raises(PyMongoError):
            client.admin.command("count", "orders")
        with tracer.start_as_current_span("waiting"):
            client.admin.command("ping")
        outage = spans.wait_for(OUTAGE)

    scopes = {span.instrumentation_scope.name for span in spans.named("ping admin") if span.instrumentation_scope}
    assert "opentelemetry_mongo_events" not in scopes
    assert span_id(spans.one("failing")) in linked(outage)
    if pymongo.version_tuple >= (4, 7):
        (selection,) = [each for each in spans.named("select server") if each.parent == _context(spans.one("waiting"))]
        assert selection.status.status_code is StatusCode.UNSET
        assert span_id(selection) in linked(outage)
    assert len(warnings_of(caplog)) == (other != "command_spans")
    operations = metrics.values("db.client.operation.duration", "db.operation.name")
    assert (operations.get("count"), operations.get("ping")) == ((1, 2) if is_measured else (None, None))


def _context(span: Any) -> Any:
    return span.get_span_context()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of this package: old versions of the other one make the SDK warn, too."""
    return [record.getMessage() for record in caplog.records if record.name == "opentelemetry_mongo_events"]


@pytest.mark.usefixtures("contrib")
def test_without_command_spans_there_is_no_warning(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Spans()
    instrumentor.instrument(tracer_provider=mine.provider, command_spans=False)
    with connect(server.uri) as client:
        client.admin.command("ping")

    assert [span.name for span in mine.finished] == []
    assert [attributes(span)["db.name"] for span in spans.finished if span.name == "admin.ping"] == ["admin"]
    assert warnings_of(caplog) == []


def test_what_failed_while_it_was_suppressed_or_off_is_not_noted(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    from opentelemetry_mongo_events._runtime.process import instances
    from opentelemetry_mongo_events._servers.state import ServerStates

    instrumentor.instrument(tracer_provider=spans.provider, command_spans=False)
    with connect(server.uri, **OFTEN) as client, spans.tracer.start_as_current_span("request"):
        client.admin.command("ping")
        server.fail("count", close_connection=True, times=2)
        with suppress_instrumentation(), pytest.raises(PyMongoError):
            client.admin.command("count", "orders")
        instrumentor.uninstrument()
        with pytest.raises(PyMongoError):
            client.admin.command("count", "orders")

        servers = [each for states in instances(ServerStates) for each in states.servers()]
        assert [list(each.failures) for each in servers if each.attributes["server.port"] == server.port] == [[]]
    background_worker.flush()
