"""Where another one traces the same commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from pymongo import monitoring

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from tests.clients import connect
from tests.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        "opentelemetry-instrumentation-pymongo traces MongoDB commands already, "
        "so opentelemetry-mongo-events makes no command spans. "
    )
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo" in message
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=mongo_events" in message


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
    assert caplog.messages[0].startswith("PyMongo itself traces MongoDB commands already")
    assert "OTEL_PYTHON_INSTRUMENTATION_MONGODB_ENABLED" in caplog.text
