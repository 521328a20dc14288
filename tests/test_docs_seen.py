"""The tables of the reference, compared with what is emitted while a client goes through all that they tell of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pymongo
import pytest
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.trace import SpanKind, StatusCode

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._commands import transactions as transactions_module
from opentelemetry_mongo_events._telemetry import semconv
from opentelemetry_mongo_events._telemetry.instruments import Instruments
from tests.life import live_through_all
from tests.pages import ROOT, column, rows
from tests.spans import attributes, end, linked, span_id, start

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.logs import Logs
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedReplicaSet
    from tests.spans import Spans

pytestmark = [
    pytest.mark.usefixtures("quick_driver"),
    pytest.mark.skipif(pymongo.version_tuple < (4, 18), reason="an older driver tells less"),
]

TYPES: Final = {"string": str, "int": int, "double": float, "boolean": bool}
EPISODES: Final = (semconv.DISCOVERY, semconv.OUTAGE)
SECTIONS: Final = ("## Commands", "## Transactions", "## Connection pools", "## Servers and heartbeats")
METRICS: Final = "docs/metrics.md"


class Life(NamedTuple):
    """What was seen of it: the spans, and the metrics by name."""

    spans: list[ReadableSpan]
    metrics: dict[str, Any]


@pytest.fixture
def life(replica_set: ScriptedReplicaSet, spans: Spans, metrics: Metrics) -> Life:
    listeners = event_listeners(
        tracer_provider=spans.provider, meter_provider=metrics.provider, topology=True, selections=True
    )
    measured = live_through_all(replica_set, spans, metrics, listeners)
    return Life(spans.finished, measured)


def commands(life: Life) -> list[ReadableSpan]:
    return [
        span for span in life.spans if "db.operation.name" in attributes(span) and span.name != semconv.SELECT_SERVER
    ]


def assert_types_are_those_of(page: str, told: Iterable[tuple[str, Any]], heading: str = "## Attributes") -> None:
    """Each attribute of the page was seen, and no other, and each value is of the type that the page says."""
    types = {name: TYPES[kind] for name, kind in column(page, heading, "Type").items()}
    seen: dict[str, set[type]] = {}
    for name, value in told:
        seen.setdefault(name, set()).add(type(value))
    assert seen == {name: {kind} for name, kind in types.items()}


def test_the_attributes_of_commands(life: Life) -> None:
    told = [(name, value) for span in commands(life) for name, value in attributes(span).items()]
    assert_types_are_those_of("docs/spans.md", told)

    when = column("docs/spans.md", "## Attributes", "When")
    (kind,) = re.findall(r"^- \*\*Kind\*\*: `(\w+)`", (ROOT / "docs/spans.md").read_text(), re.MULTILINE)
    for span in commands(life):
        present = attributes(span).keys()
        for name, condition in when.items():
            if condition in ("always", "except for a Unix socket"):
                assert name in present, f"{span.name} has no {name}"
        assert ("error.type" in present) == (span.status.status_code is StatusCode.ERROR)
        assert ("db.response.status_code" in present) <= ("error.type" in present)
        assert span.kind is SpanKind[kind]
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == semconv.SCOPE


def test_the_span_of_a_failed_checkout(life: Life) -> None:
    checkouts = [span for span in life.spans if span.name.startswith("checkout ")]

    assert checkouts
    for span in checkouts:
        assert span.kind is SpanKind.INTERNAL
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span).keys() == {
            "db.system.name",
            "server.address",
            "server.port",
            "db.client.connection.pool.name",
            "error.type",
        }
        assert span.status.description is None


def test_the_span_of_a_transaction(life: Life) -> None:
    page, heading = "docs/spans.md", "## Transactions"
    transactions = [span for span in life.spans if span.name == semconv.TRANSACTION]
    told = [(name, value) for span in transactions for name, value in attributes(span).items()]
    assert_types_are_those_of(page, told, heading)

    when = column(page, heading, "When")
    outcomes = [cells[0].strip("`") for cells in rows(page, heading, 1)]
    assert outcomes == [
        transactions_module._COMMITTED,
        transactions_module._ABORTED,
        transactions_module._UNKNOWN,
        transactions_module._ABANDONED,
    ]
    for span in transactions:
        assert span.kind is SpanKind.INTERNAL
        assert {name for name, condition in when.items() if condition == "always"} <= attributes(span).keys()
        assert ("error.type" in attributes(span)) == (span.status.status_code is StatusCode.ERROR)
        number = attributes(span)["db.mongodb.txn_number"]
        links = [linked(each) for each in commands(life) if attributes(each).get("db.mongodb.txn_number") == number]
        assert links
        assert all(span_id(span) in each for each in links)


def test_the_span_of_a_server_selection(life: Life) -> None:
    page, heading = "docs/spans.md", "## Server selections"
    selections = [span for span in life.spans if span.name == semconv.SELECT_SERVER]
    told = [(name, value) for span in selections for name, value in attributes(span).items()]
    assert_types_are_those_of(page, told, heading)

    when = column(page, heading, "When")
    errors = {cells[0].strip("`") for cells in rows(page, heading, 1)}
    for span in selections:
        present = attributes(span).keys()
        assert {name for name, condition in when.items() if condition == "always"} <= present
        assert span.kind is SpanKind.INTERNAL
        assert ("error.type" in present) == (span.status.status_code is StatusCode.ERROR)
        assert ("error.type" in present) != ("server.address" in present)
        assert ("server.port" in present) == ("server.address" in present)
        assert attributes(span).get("error.type") in {None, *errors}
        assert span.status.description is None


def test_a_server_selection_is_linked_as_it_is_said_to_be(life: Life) -> None:
    outage = max((span for span in life.spans if span.name == semconv.OUTAGE), key=start)
    waited = [span for span in life.spans if span.name == semconv.SELECT_SERVER and start(span) > start(outage)]
    (command,) = [
        span
        for span in commands(life)
        if "mongodb.client.server_selection.wait_time" in attributes(span) and start(span) > start(outage)
    ]

    assert len(waited) == 2
    assert {span_id(span) for span in waited} <= set(linked(outage))
    assert all(linked(span) == [span_id(outage)] for span in waited)
    assert span_id(outage) not in linked(command)
    assert max(end(span) for span in waited) <= start(command)


def test_the_attributes_of_events_and_episodes(life: Life) -> None:
    episodes = [span for span in life.spans if span.name in EPISODES]
    assert {span.name for span in episodes} == set(EPISODES)
    happened = [event for span in life.spans for event in span.events]

    told = [(name, value) for span in episodes for name, value in attributes(span).items()]
    told += [(name, value) for event in happened for name, value in (event.attributes or {}).items()]
    assert_types_are_those_of("docs/outages.md", told)
    for span in episodes:
        status = StatusCode.ERROR if span.name == semconv.OUTAGE else StatusCode.UNSET
        assert (span.kind, span.parent, span.status.status_code) == (SpanKind.INTERNAL, None, status)
    names = {cells[0].strip("`") for cells in rows("docs/outages.md", "## Events")}
    assert {event.name.removeprefix("mongodb.client.") for event in happened} <= names


def test_the_severities_of_events(replica_set: ScriptedReplicaSet, spans: Spans, metrics: Metrics, logs: Logs) -> None:
    listeners = event_listeners(
        tracer_provider=spans.provider,
        meter_provider=metrics.provider,
        logger_provider=logs.provider,
        topology=True,
        selections=True,
        events="log",
    )
    live_through_all(replica_set, spans, metrics, listeners)

    seen: dict[str, set[str]] = {}
    for name, record in zip(logs.names, logs.records, strict=True):
        seen.setdefault(name, set()).add(record.severity_text)
    said = {
        name: {word.strip("`,") for word in cell.split() if word.startswith("`")}
        for name, cell in column("docs/outages.md", "## Events", "Severity").items()
    }
    assert seen == said


# ---------------------------------------------------------------------------------------------------------------------
# Metrics.


class Recorded(NoOpMeter):
    """A meter that keeps how each instrument was made."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.made: dict[str, tuple[str, str]] = {}

    def create_histogram(self, name: str, unit: str = "", *args: Any, **options: Any) -> Any:
        bounds = options["explicit_bucket_boundaries_advisory"]
        self.made[name] = (f"histogram, {bounds[0]:,} to {bounds[-1]:,}", unit)
        return super().create_histogram(name, unit)

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", *args: Any) -> Any:
        self.made[name] = ("observable counter", unit)
        return super().create_observable_counter(name, callbacks, unit)

    def create_observable_up_down_counter(self, name: str, callbacks: Any = None, unit: str = "", *args: Any) -> Any:
        self.made[name] = ("observable up-down counter", unit)
        return super().create_observable_up_down_counter(name, callbacks, unit)

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", *args: Any) -> Any:
        self.made[name] = ("observable gauge", unit)
        return super().create_observable_gauge(name, callbacks, unit)


class Recording(NoOpMeterProvider):
    def __init__(self) -> None:
        self.meter = Recorded()

    def get_meter(self, *args: Any, **options: Any) -> Recorded:
        return self.meter


def test_each_metric_is_made_as_it_is_said_to_be() -> None:
    provider = Recording()
    Instruments(provider)

    said = {cells[0].strip("`"): (cells[1], cells[2]) for section in SECTIONS for cells in rows(METRICS, section)}
    assert provider.meter.made == said


# What the pages say in place of the names of attributes.
SHORT: Final = {
    "system": {"db.system.name"},
    "namespace": {"db.namespace"},
    "collection": {"db.collection.name"},
    "operation": {"db.operation.name"},
    "server": {"server.address", "server.port"},
    "error": {"error.type", "db.response.status_code"},
    "`error.type`": {"error.type"},
    "pool": set(semconv.POOL_ATTRIBUTES),
    "state": {"db.client.connection.state"},
    "close reason": {"mongodb.client.connection.close_reason"},
    "awaited": {"mongodb.client.heartbeat.awaited"},
    "server type": {"mongodb.client.server.type"},
    "replica set": {"mongodb.client.replica_set.name"},
    "outcome": {"mongodb.client.transaction.outcome"},
}
# And in place of the names of metrics.
OF: Final = {
    "commands": {"db.client.operation.duration", "db.client.response.returned_rows"},
    "failed commands": {"db.client.operation.duration"},
    "failed commands and heartbeats": {"db.client.operation.duration", "mongodb.client.heartbeat.duration"},
    "servers": {"mongodb.client.server.round_trip_time", "mongodb.client.server.changes"},
    "heartbeats": {"mongodb.client.heartbeat.duration"},
}


def seen_by_metric(life: Life) -> dict[str, set[str]]:
    return {
        name: {key for point in metric.data.data_points for key in point.attributes or ()}
        for name, metric in life.metrics.items()
    }


def test_each_metric_has_the_attributes_that_it_is_said_to_have(life: Life) -> None:
    def names(metric: str, words: str) -> Iterator[str]:
        kind = metric.split(".")[2]  # whose type it is that changes
        changes = {"previous type": {f"mongodb.client.{kind}.previous_type"}, "type": {f"mongodb.client.{kind}.type"}}
        for word in words.split(", "):
            yield from (SHORT | changes)[word]

    said = {
        name: set(names(name, cells[3]))
        for section in SECTIONS
        for cells in rows(METRICS, section)
        if (name := cells[0].strip("`"))
    }
    assert seen_by_metric(life) == said


def test_each_attribute_is_of_the_metrics_that_it_is_said_to_be_of(life: Life) -> None:
    seen = seen_by_metric(life)
    pools = {cells[0].strip("`") for cells in rows(METRICS, "## Connection pools")}

    def of(words: str) -> Iterator[str]:
        for word in words.split(", "):
            if word.startswith("`"):
                yield from [name for name in seen if name.endswith(f".{word.strip('`')}")]
            else:
                yield from (OF | {"pools": pools})[word]

    for attribute, words in column(METRICS, "## Attributes", "Metrics").items():
        assert {name for name, keys in seen.items() if attribute in keys} == set(of(words)), attribute
