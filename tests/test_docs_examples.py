"""What the examples of the documentation say that they do, they do. That each of them runs, `test_docs` looks at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from tests.clients import answers, connect
from tests.metrics import Metrics
from tests.pages import ROOT
from tests.spans import Spans
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer


@pytest.fixture(autouse=True)
def restored(instrumentor: MongoEventsInstrumentor) -> None:
    """Whatever an example does to the instrumentor."""


def example(page: str, name: str) -> Any:
    """What the snippet of a page makes under that name; what it has instrumented isn't any more."""
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    (snippet,) = [each for each in snippets if re.search(rf"^(class )?{name}\b", each, re.MULTILINE)]
    made: dict[str, Any] = {}
    exec(compile(snippet, page, "exec"), made)
    if MongoEventsInstrumentor().is_instrumented_by_opentelemetry:
        MongoEventsInstrumentor().uninstrument()
    return made[name]


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
