"""What the examples of the documentation say that they do, they do. That each of them runs, `test_docs` looks at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._driver.versions import TOPOLOGY_LISTENERS_NEED_A_LOOP
from tests.clients import answers, connect
from tests.metrics import Metrics
from tests.pages import ROOT
from tests.spans import Spans, span_id
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer


@pytest.fixture(autouse=True)
def restored(instrumentor: MongoEventsInstrumentor) -> None:
    """Whatever an example does to the instrumentor."""


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def example(page: str, name: str) -> Any:
    """What the snippet of a page makes under that name; what it has instrumented isn't any more."""
    (snippet,) = [each for each in snippets(page) if re.search(rf"^(class )?{name}\b", each, re.MULTILINE)]
    made: dict[str, Any] = {}
    exec(compile(snippet, page, "exec"), made)
    if MongoEventsInstrumentor().is_instrumented_by_opentelemetry:
        MongoEventsInstrumentor().uninstrument()
    return made[name]


def run(page: str, phrase: str, uri: str) -> None:
    """Run the snippet of a page that has that phrase in it, with a server."""
    (snippet,) = [each for each in snippets(page) if phrase in each]
    made: dict[str, Any] = {}
    try:
        exec(compile(snippet.replace("mongodb://localhost:27017", uri), page, "exec"), made)
    finally:
        made["client"].close()


def told(metrics: Metrics) -> dict[str, set[frozenset[str]]]:
    """The attributes' names of each series, by metric, but for heartbeats, which come when they come."""
    return {
        name: {frozenset(point.attributes or ()) for point in metric.data.data_points}
        for name, metric in metrics.collected().items()
        if name.startswith("db.client.")
    }


def series_of_a_client(server: ScriptedServer, metrics: Metrics) -> dict[str, set[frozenset[str]]]:
    """Those of what went well and of what didn't."""
    listeners = event_listeners(meter_provider=metrics.provider)
    with connect(server.uri, event_listeners=listeners) as client:
        server.fail("count", code=59)
        client.shop.orders.insert_one({})
        client.shop.orders.find_one({})
        client.shop.command("count", "orders", check=False)
        return told(metrics)


def test_views_without_collections_leave_all_else_as_it_is(server: ScriptedServer) -> None:
    plain, viewed = Metrics(), Metrics(views=example("docs/metrics.md", "without_collections"))
    usual = series_of_a_client(server, plain)

    expected = {name: {series - {"db.collection.name"} for series in every} for name, every in usual.items()}
    assert series_of_a_client(server, viewed) == expected != usual


def test_views_for_buckets_change_and_drop_what_they_name(server: ScriptedServer) -> None:
    page = "docs/sampling-and-cost.md"
    metrics = Metrics(views=[example(page, "coarse"), example(page, "no_rows")])
    series = series_of_a_client(server, metrics)

    bounds = {point.explicit_bounds for point in metrics.points("db.client.operation.duration")}
    assert bounds == {(0.01, 0.1, 1, 10)}
    assert "db.client.response.returned_rows" not in series
    assert "db.client.connection.use_time" in series


@pytest.mark.usefixtures("quick_driver")
def test_a_sampler_that_keeps_outages_keeps_these_only(server: ScriptedServer) -> None:
    keep = example("docs/sampling-and-cost.md", "KeepOutages")
    spans = Spans(keep(ALWAYS_OFF))
    listeners = event_listeners(tracer_provider=spans.provider, topology=True)
    with connect(server.uri, event_listeners=listeners, serverSelectionTimeoutMS=100) as client:
        until(lambda: answers(client))
        server.stop()
        until(lambda: not answers(client))
        server.start()
        until(lambda: answers(client))
        spans.wait_for("mongodb.client.outage")

    assert sorted(spans.names) == ["mongodb.client.discovery", "mongodb.client.outage"]


@pytest.fixture
def everywhere(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Spans of the global provider."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: spans.provider)
    monkeypatch.setattr(trace, "get_tracer", spans.provider.get_tracer)
    return spans


def test_what_is_asked_first_shows_the_listeners_that_the_page_names(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY")
    monkeypatch.delenv("OTEL_PYTHON_MONGO_EVENTS_SELECTIONS")
    page = "docs/troubleshooting.md"
    run(page, "client.options.event_listeners", server.uri)

    shown, provider = capsys.readouterr().out.splitlines()
    text = " ".join((ROOT / page).read_text().split())
    (named,) = re.findall(r"An instrumented client has the listeners (.*?), except", text)
    newer = set() if TOPOLOGY_LISTENERS_NEED_A_LOOP else {"DeferredListener"}
    assert set(re.findall(r"`(\w+)`", named)) - newer == set(re.findall(r"'(\w+)'", shown))
    assert provider in ("ProxyTracerProvider", "TracerProvider")


def test_a_context_that_is_taken_along_to_a_thread_is_the_parent(server: ScriptedServer, everywhere: Spans) -> None:
    run("docs/troubleshooting.md", "contextvars", server.uri)

    ping = everywhere.one("ping shop")
    assert ping.parent is not None
    assert ping.parent.span_id == span_id(everywhere.one("GET /report"))
