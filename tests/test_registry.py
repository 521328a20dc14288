"""The registry of telemetry names in `semconv/`, compared with what clients emit that go through all of it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
import socket
import tempfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import pymongo
import pytest
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.metrics.export import Gauge, Histogram, Sum
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from pymongo import common, read_preferences, server_selectors
from pymongo.errors import PyMongoError
from pymongo.monitoring import ConnectionCheckOutFailedReason, ConnectionClosedReason
from pymongo.server_type import SERVER_TYPE
from pymongo.topology_description import TOPOLOGY_TYPE

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._telemetry import semconv
from opentelemetry_mongo_events._version import __version__
from tests.clients import answers, connect
from tests.life import live_through_all, wait_in_vain
from tests.metrics import Metrics
from tests.pages import ROOT, rows
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
from tests.spans import Spans, attributes
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.metrics.export import Metric
    from pymongo import MongoClient

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.skipif(pymongo.version_tuple < (4, 18), reason="an older driver tells less")

Attributes = dict[str, Any]

MANIFEST: Final = yaml.safe_load((ROOT / "semconv/manifest.yaml").read_text())
REGISTRY: Final = yaml.safe_load((ROOT / "semconv/mongodb-client.yaml").read_text())
TYPES: Final = {"string": str, "int": int, "double": float, "boolean": bool}
OFFICIAL_INTS: Final = {"db.operation.batch.size", "db.response.returned_rows", "net.peer.port", "server.port"}
# Constants that are values, and not names.
VALUES: Final = {
    semconv.IDLE,
    semconv.INTERRUPTED,
    semconv.MONGODB,
    semconv.OTHER,
    semconv.SCHEMA_URL,
    semconv.SCOPE,
    semconv.USED,
}
# Types of spans that are not the names of spans.
COMPOSED: Final = {f"mongodb.client.{name}" for name in ("checkout", "command", "select_server", "transaction")}
# Conditions that all commands of these lives meet.
ALWAYS_MET: Final = {("spans", "mongodb.client.command", "db.mongodb.driver_connection_id")}
# The Python package of the conventions may still have the name that this metric had up to 1.44.
FORMER_NAMES: Final = {"db.client.connection.limit": "db.client.connection.max"}


# ---------------------------------------------------------------------------------------------------------------------
# What is in the registry.


def enum(key: str) -> set[str]:
    """The values of an attribute."""
    (kind,) = [each["type"] for each in REGISTRY["attributes"] if each["key"] == key]
    return {member["value"] for member in kind["members"]}


def resolved(signal: Mapping[str, Any]) -> dict[str, Attributes]:
    """The references of a signal by their attributes, those of groups included; its own have precedence."""
    found: dict[str, Attributes] = {}
    groups = {group["id"]: group for group in REGISTRY["attribute_groups"]}
    for each in signal["attributes"]:
        if "ref_group" in each:
            found |= resolved(groups[each["ref_group"]])
    for each in signal["attributes"]:
        if "ref" in each:
            found[each["ref"]] = found.get(each["ref"], {}) | each
    return found


def named(kind: str, key: str) -> dict[str, Any]:
    by_name = {signal[key]: signal for signal in REGISTRY[kind]}
    assert len(by_name) == len(REGISTRY[kind])
    return by_name


METRICS: Final = named("metrics", "name") | named("metric_refinements", "ref")
SPANS: Final = named("spans", "type")
SIGNALS: Final = {
    (kind, name): resolved(signal)
    for kind, signals in {"spans": SPANS, "events": named("events", "name"), "metrics": METRICS}.items()
    for name, signal in signals.items()
}
DEFINED: Final = {each["key"]: each["type"] for each in REGISTRY["attributes"]}
USED: Final = {key for references in SIGNALS.values() for key in references}


def span_names(kind: str) -> list[str]:
    """The forms of the names of a type of span."""
    return re.findall(r"`([^`]+)`", SPANS[kind]["name"]["note"])


def span_type(name: str, attributes: Mapping[str, Any]) -> str:
    """The type of the span whose name has one of the forms that the registry says."""

    def fits(form: str) -> bool:
        return re.sub(r"\{([\w.]+)\}", lambda match: str(attributes.get(match[1], match[0])), form) == name

    found = [each for each in SPANS if any(fits(form) for form in span_names(each))]
    assert len(found) == 1, f"{name} is of the types {found}"
    return found[0]


# ---------------------------------------------------------------------------------------------------------------------
# What is seen.


class _NotesStarts(Sampler):
    """Samples all spans, and keeps the attributes that they start with."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Attributes]] = []

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None, *args: Any
    ) -> SamplingResult:
        self.started.append((name, dict(attributes or {})))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, *args)

    def get_description(self) -> str:
        return "notes starts"


class Seen:
    """What was emitted in several lives.

    Attributes:
        samples: The attributes of each span, event and data point, by kind and name of the signal.
        opted_in: Those of clients that emit the old names, too.
        started: The attributes with which the spans of each type started.
        kinds: The kinds of the spans of each type.
        instruments: The instruments and units of the metrics.
        descriptions: The descriptions of the metrics.
    """

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], list[Attributes]] = defaultdict(list)
        self.opted_in: dict[tuple[str, str], list[Attributes]] = defaultdict(list)
        self.started: dict[str, set[str]] = defaultdict(set)
        self.kinds: dict[str, set[str]] = defaultdict(set)
        self.instruments: dict[str, tuple[str, str]] = {}
        self.descriptions: dict[str, str] = {}

    @contextlib.contextmanager
    def watch(self, *, opted_in: bool = False, **options: Any) -> Iterator[tuple[list[Any], Spans, Metrics]]:
        """Listeners for one client, whose telemetry is kept when its life is over."""
        from tests.logs import Logs

        all_signals: dict[str, Any] = {"topology": True, "selections": True, "events": "both"}
        sampler = _NotesStarts()
        spans, metrics, logs = Spans(sampler), Metrics(), Logs()
        listeners = event_listeners(
            tracer_provider=spans.provider,
            meter_provider=metrics.provider,
            logger_provider=logs.provider,
            **all_signals | options,
        )
        yield listeners, spans, metrics
        self.keep(metrics.collected())
        samples = self.opted_in if opted_in else self.samples
        for record in logs.records:
            samples["events", record.event_name].append(dict(record.attributes))
        for span in spans.finished:
            kind = span_type(span.name, attributes(span))
            samples["spans", kind].append(attributes(span))
            self.kinds[kind].add(span.kind.name.lower())
            for event in span.events:
                samples["events", event.name].append(dict(event.attributes or {}))
        for name, at_start in sampler.started:
            self.started[span_type(name, at_start)] |= at_start.keys()

    def keep(self, metrics: Mapping[str, Metric]) -> None:
        """Keep what was measured; some of it is gone once the client is closed."""
        for name, metric in metrics.items():
            self.instruments[name] = (instrument(metric), metric.unit or "")
            self.descriptions[name] = metric.description or ""
            self.samples["metrics", name] += [dict(point.attributes or {}) for point in metric.data.data_points]

    def all(self) -> Iterator[tuple[tuple[str, str], Attributes]]:
        """Each sample with its signal."""
        for samples in (self.samples, self.opted_in):
            for signal, each in samples.items():
                yield from ((signal, sample) for sample in each)


def instrument(metric: Metric) -> str:
    """The kind of its instrument, in the words of the registry."""
    data = metric.data
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "updowncounter"
    return {Histogram: "histogram", Gauge: "gauge"}[type(data)]


OPTIONS: Final[dict[str, Any]] = {"heartbeatFrequencyMS": 500, "maxPoolSize": 1, "waitQueueTimeoutMS": 200}


def lose(client: MongoClient[Any], server: ScriptedServer) -> None:
    """A client's only server is gone for a while."""
    server.stop()
    until(lambda: not client.nodes)
    with pymongo.timeout(0.1), contextlib.suppress(PyMongoError):
        client.shop.orders.find_one({})
    server.start()
    until(lambda: answers(client))


def live_in_replica_set(seen: Seen) -> None:
    with ScriptedReplicaSet(3) as replica_set, seen.watch() as (listeners, spans, metrics):
        seen.keep(live_through_all(replica_set, spans, metrics, listeners))


def live_on_unix_socket(seen: Seen, path: str) -> None:
    with (
        ScriptedServer(unix_socket=path) as server,
        seen.watch() as (listeners, spans, metrics),
        connect(server.uri, event_listeners=listeners, **OPTIONS) as client,
    ):
        client.shop.list_collection_names()
        with contextlib.suppress(PyMongoError):
            client.shop.command("createUser", "somebody", pwd="secret", roles=[])
        wait_in_vain(client, server)
        server.fail("hello", times=None, code=59)  # no network error
        until(lambda: metrics.servers(semconv.SERVER_TYPE).get("Unknown"))
        server.reset()
        until(lambda: len(spans.named(semconv.OUTAGE)) == 1)
        lose(client, server)
        until(lambda: len(spans.named(semconv.OUTAGE)) == 2)
        seen.keep(metrics.collected())


def live_in_cluster(seen: Seen) -> None:
    with (
        ScriptedServer(role="mongos") as one,
        ScriptedServer(role="mongos") as other,
        seen.watch() as (listeners, _, metrics),
        connect(f"{one.uri.rstrip('/')},127.0.0.1:{other.port}", event_listeners=listeners, **OPTIONS) as client,
    ):
        until(lambda: metrics.servers(semconv.SERVER_TYPE).get("Mongos") == 2)
        one.stop()
        other.stop()
        until(lambda: not client.nodes)
        until(lambda: metrics.servers(semconv.SERVER_TYPE).get("Unknown") == 2)


def live_without_topology(seen: Seen) -> None:
    with (
        ScriptedServer(server_connection_ids=False) as server,
        seen.watch(topology=False) as (listeners, _, _),
        connect(server.uri, event_listeners=listeners, **OPTIONS) as client,
    ):
        client.shop.orders.insert_one({})
        lose(client, server)


def live_without_server(seen: Seen) -> None:
    with socket.socket() as bound, seen.watch() as (listeners, _, metrics):
        bound.bind(("127.0.0.1", 0))
        with connect(f"mongodb://127.0.0.1:{bound.getsockname()[1]}", event_listeners=listeners, **OPTIONS):
            until(lambda: metrics.points("mongodb.client.heartbeat.duration"))


def live_with_old_names(seen: Seen) -> None:
    with (
        ScriptedServer() as server,
        seen.watch(opted_in=True, heartbeats=False) as (listeners, spans, _),
        connect(server.uri, event_listeners=listeners, **OPTIONS) as client,
    ):
        client.shop.orders.insert_one({})
        lose(client, server)
        until(lambda: spans.named(semconv.OUTAGE))


@pytest.fixture(scope="module")
def seen() -> Seen:
    seen = Seen()
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(common, "EVENTS_QUEUE_FREQUENCY", 0.1)
        patched.setattr(common, "MIN_HEARTBEAT_INTERVAL", 0.05)
        live_in_replica_set(seen)
        live_on_unix_socket(seen, f"{folder}/mongodb.sock")
        live_in_cluster(seen)
        live_without_topology(seen)
        live_without_server(seen)
        patched.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database/dup")
        live_with_old_names(seen)
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# Names.


def official_names() -> set[str]:
    """The attributes of the semantic conventions, those in development and the deprecated ones included."""
    found: set[str] = set()
    for package in ("opentelemetry.semconv.attributes", "opentelemetry.semconv._incubating.attributes"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            constants = vars(importlib.import_module(f"{package}.{module.name}")).values()
            found |= {value for value in constants if isinstance(value, str)}
    return found


def test_the_manifest_is_of_this_version_and_of_these_conventions() -> None:
    (dependency,) = MANIFEST["dependencies"]
    version = semconv.SCHEMA_URL.rpartition("/")[2]

    assert MANIFEST["schema_url"].rpartition("/")[2] == __version__
    assert dependency["schema_url"] == semconv.SCHEMA_URL
    assert f"/tags/v{version}.zip[" in dependency["registry_path"]


def test_each_name_is_in_the_code_and_each_of_the_code_is_here() -> None:
    constants = {value for name in semconv.__all__ if isinstance(value := getattr(semconv, name), str)}
    forms = {form for each in SPANS for form in span_names(each)}
    names = {name for _, name in SIGNALS} - COMPOSED | USED | {form for form in forms if "{" not in form}

    assert names == constants - VALUES


def test_what_is_defined_here_is_used_and_what_is_not_is_official() -> None:
    assert DEFINED.keys() <= USED
    assert [key for key in DEFINED if not key.startswith(("mongodb.client.", "db.mongodb."))] == []
    assert USED - DEFINED.keys() <= official_names()
    assert DEFINED.keys() & official_names() == set()


def test_the_sets_of_values_are_those_of_the_driver_and_of_the_reference() -> None:
    def constants(kind: type) -> set[str]:
        return {value for name, value in vars(kind).items() if name.isupper()}

    checkout = SIGNALS["spans", "mongodb.client.checkout"]["error.type"]
    failure = SIGNALS["metrics", "mongodb.client.connection.checkout_failures"]["error.type"]
    functions = inspect.getmembers(server_selectors, inspect.isfunction)
    selectors = {
        name.removesuffix("_server_selector")
        for name, function in functions
        if name.endswith("_server_selector") and len(inspect.signature(function).parameters) == 1
    }
    outcomes = {
        word.strip("`")
        for cells in rows("docs/outages.md", "## Discoveries and outages", 1)
        for word in re.findall(r"`\w+`", cells[0])
    }

    assert enum("mongodb.client.connection.close_reason") == constants(ConnectionClosedReason)
    assert set(checkout["examples"]) == set(failure["examples"]) == constants(ConnectionCheckOutFailedReason)
    assert enum("mongodb.client.server.type") == enum("mongodb.client.server.previous_type") == set(SERVER_TYPE._fields)
    assert enum("mongodb.client.topology.type") == set(TOPOLOGY_TYPE._fields)
    assert enum("mongodb.client.topology.previous_type") == set(TOPOLOGY_TYPE._fields)
    assert enum("mongodb.client.server_selection.selector") == {
        *read_preferences._MONGOS_MODES,
        *selectors,
        semconv.OTHER,
    }
    assert enum("mongodb.client.outage.outcome") == outcomes - {"discovered"}
    assert enum("mongodb.client.discovery.outcome") == outcomes - {"recovered"}
    assert enum("mongodb.client.transaction.outcome") == {
        cells[0].strip("`") for cells in rows("docs/spans.md", "## Transactions", 1)
    }


def test_all_is_in_development_and_emitted_by_default() -> None:
    def stabilities(part: Any) -> Iterator[str]:
        for each in part.values() if isinstance(part, dict) else part:
            if isinstance(each, (dict, list)):
                yield from stabilities(each)
        if isinstance(part, dict) and "stability" in part:
            yield part["stability"]

    assert set(stabilities(REGISTRY)) == {"development"}
    signals = [*REGISTRY["spans"], *REGISTRY["events"], *REGISTRY["metrics"]]
    assert [signal for signal in signals if signal["requirement_level"] != "recommended"] == []


# ---------------------------------------------------------------------------------------------------------------------
# What is emitted.


def test_each_signal_was_seen_and_no_other(seen: Seen) -> None:
    assert {signal for signal, _ in seen.all()} == SIGNALS.keys()


def test_each_attribute_was_seen_and_no_other(seen: Seen) -> None:
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    for signal, sample in seen.all():
        keys[signal] |= sample.keys()

    assert keys == {signal: set(references) for signal, references in SIGNALS.items()}


def test_each_value_is_of_its_type(seen: Seen) -> None:
    def is_valid(key: str, value: object) -> bool:
        kind = DEFINED.get(key, "int" if key in OFFICIAL_INTS else "string")
        return type(value) is TYPES[kind] if isinstance(kind, str) else value in enum(key)

    wrong = {(key, value) for _, sample in seen.all() for key, value in sample.items() if not is_valid(key, value)}
    assert wrong == set()


def levels(level: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The attributes with a requirement level, with their signals; a condition is told with some."""
    for signal, references in SIGNALS.items():
        for key, reference in references.items():
            told = reference.get("requirement_level", "recommended")
            if (told if isinstance(told, str) else next(iter(told))) == level:
                yield signal, key


def test_what_is_required_is_there(seen: Seen) -> None:
    required = set(levels("required"))

    assert [
        (signal, key)
        for signal, key in required
        if any(key not in sample for each, sample in seen.all() if each == signal)
    ] == []


def test_what_is_required_on_a_condition_is_not_always_there(seen: Seen) -> None:
    optional = set(levels("conditionally_required"))
    always = {
        (*signal, key)
        for signal, key in optional
        if all(key in sample for each, sample in seen.all() if each == signal)
    }

    assert always == ALWAYS_MET


def test_what_is_opt_in_is_there_with_the_option_only(seen: Seen) -> None:
    old = {
        value
        for name in semconv.__all__
        if name.startswith("OLD_") and isinstance(value := getattr(semconv, name), str)
    }

    assert set(levels("opt_in")) == {(("spans", "mongodb.client.command"), key) for key in old}
    assert [key for samples in seen.samples.values() for sample in samples for key in sample if key in old] == []


def test_nothing_is_recommended_only() -> None:
    """What isn't always there has a condition."""
    assert list(levels("recommended")) == []


def test_spans_are_of_their_kinds(seen: Seen) -> None:
    assert seen.kinds == {name: {span["kind"]} for name, span in SPANS.items()}


def test_what_a_sampler_sees_is_said_to_be_relevant_for_it(seen: Seen) -> None:
    relevant = {
        name: {key for key, reference in SIGNALS["spans", name].items() if reference.get("sampling_relevant")}
        for name in SPANS
    }
    assert seen.started == relevant


class _Meter(NoOpMeter):
    """Keeps the instruments that are made."""

    def __init__(self) -> None:
        super().__init__("kept")
        self.made: dict[str, tuple[str, str]] = {}

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        self.made[name] = ("counter", unit)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        self.made[name] = ("updowncounter", unit)

    def create_histogram(self, name: str, unit: str = "", description: str = "", **_: Any) -> Any:
        self.made[name] = ("histogram", unit)


def official_instruments(names: list[str]) -> dict[str, tuple[str, str]]:
    """The instruments and units of the metrics of the conventions."""
    module = importlib.import_module("opentelemetry.semconv._incubating.metrics.db_metrics")
    meter = _Meter()
    for name in {*names, *FORMER_NAMES.values()}:
        create = getattr(module, f"create_{name.replace('.', '_')}", None)
        if create is not None:
            create(meter)
    return {name: meter.made.get(name) or meter.made[FORMER_NAMES[name]] for name in names}


def test_instruments_and_units_are_those_of_here_and_of_the_conventions(seen: Seen) -> None:
    ours = {metric["name"]: (metric["instrument"], metric["unit"]) for metric in REGISTRY["metrics"]}

    assert seen.instruments == ours | official_instruments([metric["ref"] for metric in REGISTRY["metric_refinements"]])


def test_descriptions_are_those_of_the_registry(seen: Seen) -> None:
    ours = {
        metric["name"]: " ".join([metric["brief"], *([metric["note"]] if "note" in metric else [])])
        for metric in REGISTRY["metrics"]
    }

    assert {name: seen.descriptions[name] for name in ours} == ours
    assert [name for name, description in seen.descriptions.items() if not description.endswith(".")] == []
