"""What docs/moving.md says of the other instrumentation and of this one: both are run, on the same server."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import subprocess
import sys
import threading
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation import pymongo as other
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import StatusCode
from pymongo import monitoring
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import MongoEventsInstrumentor
from tests.application import console_metrics, console_spans, run_instrumented
from tests.clients import connect
from tests.pages import ROOT, rows, table
from tests.servers.processes import environment
from tests.spans import Spans, attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers.scripted import ScriptedServer

PAGE = "docs/moving.md"

# The page is about those versions of the other one that have the new names too, if they are asked for.
KNOWS_NEW_NAMES = "semconv_opt_in_mode" in inspect.signature(other.CommandTracer.__init__).parameters

pytestmark = pytest.mark.skipif(not KNOWS_NEW_NAMES, reason="an older version of the other one")


class Side:
    """One of the two, and a server of its own for what it is to see."""

    def __init__(self, instrumentor: Any, server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
        self.instrumentor = instrumentor
        self.is_here = isinstance(instrumentor, MongoEventsInstrumentor)
        self.server = server
        self.caplog = caplog

    def spans(self, *commands: dict[str, Any], sampler: Sampler | None = None, **keywords: Any) -> Spans:
        """The spans of those commands."""
        spans = Spans(sampler)
        self.instrumentor.instrument(tracer_provider=spans.provider, **keywords)
        try:
            with connect(self.server.uri) as client:
                for command in commands:
                    self.run(client, command)
        finally:
            self.instrumentor.uninstrument()
        return spans

    def run(self, client: Any, command: dict[str, Any]) -> None:
        """Run a command, whether or not it fails."""
        with contextlib.suppress(PyMongoError):
            client.shop.command(command)


FIND = {"find": "orders", "filter": {"total": {"$gt": 100}}}


def own(name: str, spans: Spans) -> list[Any]:
    """The spans of a command, whatever they are called there."""
    return [span for span in spans.finished if name in (span.name.split(" ")[0], span.name.rpartition(".")[2])]


@pytest.fixture
def there(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> Iterator[Side]:
    instrumentor = PymongoInstrumentor()
    yield Side(instrumentor, server, caplog)
    forget(instrumentor)


def forget(instrumentor: Any) -> None:
    """It can't be made to forget what it registered, so this is done for it."""
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    with contextlib.suppress(ValueError):  # it is registered no more, or never was
        monitoring._LISTENERS.command_listeners.remove(instrumentor._commandtracer_instance)
    instrumentor._commandtracer_instance = None


@pytest.fixture
def here(instrumentor: MongoEventsInstrumentor, server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> Side:
    return Side(instrumentor, server, caplog)


@pytest.fixture
def sides(there: Side, here: Side) -> tuple[Side, Side]:
    return there, here


def documented(heading: str) -> list[list[str]]:
    return [[cell.replace("`", "") for cell in cells] for cells in rows(PAGE, heading)]


def test_each_name_is_that_of_its_package(sides: tuple[Side, Side]) -> None:
    def names(side: Side) -> list[str]:
        spans = side.spans(FIND, {"ping": 1})
        (find,) = own("find", spans)
        with spans.tracer.start_as_current_span("request") as request:
            side.instrumentor.instrument(tracer_provider=spans.provider)
            with connect(side.server.uri) as client:
                client.admin.command("ping")
            side.instrumentor.uninstrument()
        ping = own("ping", spans)[-1]
        assert ping.parent == request.get_span_context()
        kind = type(side.instrumentor)
        module = kind.__module__ if not side.is_here else kind.__module__.rpartition(".")[0]
        assert getattr(import_module(module), kind.__name__) is kind
        (entry_point,) = [
            each
            for each in metadata.entry_points(group="opentelemetry_instrumentor")
            if each.value == f"{module}:{kind.__name__}"
        ]
        assert entry_point.dist is not None
        scope = find.instrumentation_scope.name
        return [
            entry_point.dist.name,
            f"{module}.{kind.__name__}",
            entry_point.name,
            scope,
            find.name,
            ping.name,
            find.kind.name,
            "the current span",
        ]

    there, here = map(names, sides)
    assert [cells[1:] for cells in documented("## Names")] == [list(pair) for pair in zip(there, here, strict=True)]


def test_each_keyword_of_the_other_one_has_its_place_here(here: Side) -> None:
    source = ast.parse(inspect.getsource(other))
    taken = {
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == "kwargs.get"
        and isinstance(node.args[0], ast.Constant)
    }
    documents = documented("## Keywords")

    assert {cells[0] for cells in documents} == taken
    given: dict[str, Any] = {
        cells[1]: (lambda *_: None) if cells[1].endswith("_hook") else "raw" for cells in documents
    }
    here.spans(**{name: value for name, value in given.items() if name != "tracer_provider"})
    assert [record.message for record in here.caplog.records if record.name == "opentelemetry_mongo_events"] == []


def test_the_other_one_reads_no_variable_of_its_own() -> None:
    source = inspect.getsource(other)

    assert "environ" not in source
    assert "getenv" not in source


def shown(side: Side, **keywords: Any) -> dict[str, Any]:
    (find,) = own("find", side.spans(FIND, **keywords))
    return attributes(find)


def test_each_attribute_of_the_other_one_has_its_place_here(sides: tuple[Side, Side]) -> None:
    old, new = map(shown, sides)
    pairs = {cells[0]: (cells[1], cells[2]) for cells in documented("## Attributes")}

    assert pairs.keys() == old.keys()
    for name, (new_name, what_differs) in pairs.items():
        assert new_name in new
        if what_differs == "none":
            assert new[new_name] == old[name]
    assert old["db.statement"] == new["db.operation.name"] == "find"


def test_the_old_names_have_the_values_that_they_have_there(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = sides
    old = shown(there)
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database/dup")

    assert old.items() <= shown(here).items()


def test_where_the_other_one_has_new_names_they_are_the_same(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    semconv = import_module("opentelemetry.instrumentation._semconv")
    stability = semconv._OpenTelemetrySemanticConventionStability
    monkeypatch.setattr(stability, "_initialized", False)
    monkeypatch.setattr(stability, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", {})
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database")

    def both(side: Side) -> tuple[dict[str, Any], dict[str, Any]]:
        spans = side.spans(FIND, {"thereIsNoSuchCommand": 1})
        (find,), (failed,) = own("find", spans), own("thereIsNoSuchCommand", spans)
        return attributes(find), attributes(failed)

    (old, old_failed), (new, new_failed) = map(both, sides)
    text = "db.query.text"
    assert {name: new.get(name) for name in old if name != text} == {name: old[name] for name in old if name != text}
    assert old_failed.keys() <= new_failed.keys()
    assert [
        [cell.strip("`") for cell in cells[1:]] for cells in rows(PAGE, "### The new names of the other package")
    ] == [
        [old_failed["error.type"], new_failed["error.type"]],
        [old[text], new[text]],
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What behaves otherwise: each line has a probe, which says what the page does.


def duplicate_key(side: Side) -> str:
    side.server.fail("insert", write_errors=[{"code": 11000}])
    (insert,) = own("insert", side.spans({"insert": "users", "documents": [{"_id": 1}]}))
    return f"`{insert.status.status_code.name}`"


def message(side: Side) -> str:
    side.server.fail("find", code=2, errmsg="what the server says")
    (find,) = own("find", side.spans(FIND))
    assert find.status.status_code is StatusCode.ERROR
    return "yes" if "what the server says" in (find.status.description or "") else "no"


def sampled(side: Side) -> str:
    seen: dict[str, set[str]] = {}

    class Looking(Sampler):
        def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> Any:
            seen[name] = set(kwargs.get("attributes") or (args[1] if len(args) > 1 else None) or ())
            return ALWAYS_ON.should_sample(parent_context, trace_id, name, *args, **kwargs)

        def get_description(self) -> str:
            return "Looking"

    (find,) = own("find", side.spans(FIND, sampler=Looking()))
    if not seen[find.name]:
        return "none"
    assert set(attributes(find)) - seen[find.name] == {"db.query.text", "db.response.returned_rows"}
    return "those known at the start"


def open_at_the_end(side: Side) -> str:
    spans = Spans()
    side.instrumentor.instrument(tracer_provider=spans.provider)
    frozen = side.server.freeze("find")
    with connect(side.server.uri) as client:
        thread = threading.Thread(target=side.run, args=(client, FIND))
        thread.start()
        assert frozen.reached.wait(20)
        side.instrumentor.uninstrument()
        frozen.release()
        thread.join()
    return "its span ends" if own("find", spans) else "its span never ends"


def second_hooks(side: Side) -> str:
    called: list[str] = []
    side.spans(FIND, request_hook=lambda span, event: called.append("first"))
    side.spans(FIND, request_hook=lambda span, event: called.append("second"))
    return {"first": "the old ones are kept", "second": "the new ones are used"}[called[-1]]


def hooks_of_what_is_not_recorded(side: Side) -> str:
    called: list[str] = []

    def hook(name: str) -> Callable[[Any, Any], None]:
        return lambda span, event: called.append(name)

    names = ("request_hook", "response_hook", "failed_hook")
    side.server.fail("ping", code=2)
    side.spans(FIND, {"ping": 1}, sampler=ALWAYS_OFF, **{name: hook(name) for name in names})
    return " and ".join(f"`{name}` is called" for name in names if name in called) or "none is called"


def raising_hook(side: Side) -> str:
    def hook(span: Any, event: Any) -> None:
        raise ValueError(f"a secret of {event.request_id}")

    side.caplog.clear()
    side.spans(FIND, FIND, request_hook=hook)
    formatted = [side.caplog.handler.format(record) for record in side.caplog.records]
    logged = [re.search(r"a secret of -?\d", each) is not None for each in formatted]
    calls = 3  # the client ends its session, too
    return {
        (True,) * calls: "logged each time, with its message",
        (False,): "logged once, without its message",
    }[tuple(logged)]


def misspelt(side: Side) -> str:
    side.caplog.clear()
    side.spans(request_hok=None, capture_statment=True)
    return "a warning" if side.caplog.records else "ignored"


def get_more(side: Side) -> str:
    spans = Spans()
    side.instrumentor.instrument(tracer_provider=spans.provider)
    with connect(side.server.uri) as client:
        client.shop.lines.insert_many([{} for _ in range(3)])
        assert len(list(client.shop.lines.find(batch_size=2))) == 3
        client.shop.lines.drop()
    side.instrumentor.uninstrument()
    names = {"db.collection.name", "db.mongodb.collection"}
    (found,) = own("getMore", spans)
    return "names its collection" if names & attributes(found).keys() else "names no collection"


def drop_user(side: Side) -> str:
    (dropped,) = own("dropUser", side.spans({"dropUser": "alice"}))
    told = attributes(dropped)
    collection = told.get("db.collection.name", told.get("db.mongodb.collection"))
    return "has no collection" if collection is None else f"has the collection `{collection}`"


PROBES: dict[str, Callable[[Side], str]] = {
    "a duplicate key": duplicate_key,
    "the message of an error in the status": message,
    "attributes that a sampler sees": sampled,
    "a command in progress at `uninstrument()`": open_at_the_end,
    "hooks of an `instrument()` after `uninstrument()`": second_hooks,
    "hooks of a span that isn't recorded": hooks_of_what_is_not_recorded,
    "a hook that raises": raising_hook,
    "a misspelt keyword": misspelt,
    "a `getMore`": get_more,
    "a `dropUser` of `alice`": drop_user,
}


def test_each_difference_has_a_probe() -> None:
    head, *lines = table(PAGE, "## Behavioral differences")

    assert head == ["Situation", "`opentelemetry-instrumentation-pymongo`", "`opentelemetry-mongo-events`"]
    assert [cells[0] for cells in lines] == list(PROBES)


@pytest.mark.parametrize("what", PROBES)
def test_a_difference_is_as_it_is_said_to_be(what: str, sides: tuple[Side, Side]) -> None:
    there, here = sides
    said = {cells[0]: cells[1:] for cells in rows(PAGE, "## Behavioral differences")}

    seen = PROBES[what](there)
    forget(there.instrumentor)
    assert [seen, PROBES[what](here)] == said[what]


# ---------------------------------------------------------------------------------------------------------------------
# The steps, in both ways: what the page says to set and to write is set and written.

FINDS = """
import os
from pymongo import MongoClient

with MongoClient(os.environ["MONGODB_URI"]) as client:
    client.shop.command({"find": "orders", "filter": {"total": {"$gt": 100}}})
"""
TO_THE_CONSOLE = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())]))
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)


def tenant(span, event):
    span.set_attribute("app.tenant", event.database_name)


"""
CONTRIB_ALONE = """
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
PymongoInstrumentor().instrument()
"""
NEW_METRIC = "db.client.operation.duration"


class Ran:
    """What came of a program at one of the steps."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        assert process.returncode == 0, process.stderr
        self.stderr = process.stderr
        found = {span["name"]: span["attributes"] for span in console_spans(process.stdout)}
        self.finds = {name: attributes for name, attributes in found.items() if "find" in name}
        self.names = set(self.finds)
        self.metrics = set(console_metrics(process.stdout))


def section(heading: str) -> str:
    """The text under a heading of the page."""
    text = (ROOT / PAGE).read_text().partition(f"\n{heading}\n")[2]
    assert text, heading
    return re.split(r"^#+ (?!\S+\.py$)", text, maxsplit=1, flags=re.MULTILINE)[0]


def block(heading: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL)
    return str(found)


def variables(*headings: str) -> dict[str, str]:
    """The environment after those steps, as their commands set and unset it."""
    environment: dict[str, str] = {}
    for heading in headings:
        text = section(heading)
        for exported, value, unset in re.findall(r"^(?:export (\w+)=(\S+)|unset (\w+))$", text, re.MULTILINE):
            if unset:
                environment.pop(unset, None)
            else:
                environment[exported] = value
    return environment


def change(heading: str) -> tuple[str, str]:
    """The code before and after the change that a step shows."""
    lines = block(heading, "diff").splitlines()
    return tuple("\n".join(line[1:] for line in lines if not line.startswith(sign)) for sign in "+-")  # type: ignore[return-value]


STEPS = [
    "### Step 1: install the new package",
    "### Step 2: emit the old and the new names",
    "### Step 3: switch over",
    "### Step 5: clean up",
]
BACK = "### Going back"


@pytest.fixture
def zero_code(server: ScriptedServer, tmp_path: Path) -> Callable[[dict[str, str]], Ran]:
    """Run the program under `opentelemetry-instrument`."""

    def run(environment: dict[str, str]) -> Ran:
        options = ("--traces_exporter", "console", "--metrics_exporter", "console")
        both = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""} | environment
        return Ran(run_instrumented(FINDS, server.uri, tmp_path, *options, **both))

    return run


@pytest.fixture
def in_code(server: ScriptedServer) -> Callable[..., Ran]:
    """Run the program with those calls in it."""

    def run(calls: str, variables: dict[str, str] | None = None) -> Ran:
        return Ran(
            subprocess.run(
                [sys.executable, "-c", TO_THE_CONSOLE + calls + FINDS],
                env=environment() | {"MONGODB_URI": server.uri} | (variables or {}),
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
        )

    return run


@pytest.mark.timeout(150)  # it starts many programs
def test_each_step_is_as_it_is_said_to_be_with_zero_code(zero_code: Callable[[dict[str, str]], Ran]) -> None:
    warned = zero_code({})
    assert (warned.names, len(warned.stderr.splitlines())) == ({"shop.find"}, 1)

    installed = zero_code(variables(*STEPS[:1]))
    assert (installed.names, installed.stderr) == ({"shop.find"}, "")
    assert NEW_METRIC in installed.metrics

    both = zero_code(variables(*STEPS[:2]))
    assert {"db.system", "db.system.name"} <= both.finds["shop.find"].keys()

    switched = zero_code(variables(*STEPS[:3]))
    assert (switched.names, switched.stderr) == ({"find orders"}, "")
    assert installed.finds["shop.find"].items() <= switched.finds["find orders"].items()

    cleaned = zero_code(variables(*STEPS))
    assert cleaned.names == {"find orders"}
    assert cleaned.finds["find orders"].keys().isdisjoint({"db.system", "db.statement"})

    back = zero_code(variables(*STEPS[:3], BACK))
    assert (back.names, back.stderr, NEW_METRIC in back.metrics) == ({"shop.find"}, "", False)


@pytest.mark.timeout(150)  # it starts many programs
def test_each_step_is_as_it_is_said_to_be_in_code(in_code: Callable[..., Ran]) -> None:
    # The installation alone changes nothing, nor does the variable.
    alone = in_code(CONTRIB_ALONE, variables(STEPS[2]))
    assert (alone.names, alone.stderr, alone.metrics) == ({"shop.find"}, "", set())

    calls = block(STEPS[0], "python")
    installed = in_code(calls)
    assert (installed.names, installed.stderr) == ({"shop.find"}, "")
    assert NEW_METRIC in installed.metrics

    # The warning that comes without `command_spans=False` has an advice that helps.
    warned = in_code(calls.replace("command_spans=False", ""))
    assert len(warned.stderr.splitlines()) == 1
    assert "remove the call PymongoInstrumentor().instrument() from the code" in warned.stderr

    opted_in = variables(STEPS[1])
    both = in_code(calls, opted_in)
    assert {"db.system", "db.system.name"} <= both.finds["shop.find"].keys()

    before, after = change(STEPS[2])
    old, switched = in_code(before), in_code(after, opted_in)
    assert (old.names, old.stderr) == ({"shop.find"}, "")
    assert (switched.names, switched.stderr) == ({"find orders"}, "")
    assert old.finds["shop.find"].items() <= switched.finds["find orders"].items()

    # The other package isn't needed any more.
    cleaned = in_code(f'import sys\nsys.modules["{other.__name__}"] = None\n' + after)
    assert cleaned.finds["find orders"].keys().isdisjoint({"db.system", "db.statement"})


def test_a_captured_statement_is_another_text(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = sides
    captured = shown(there, capture_statement=True)["db.statement"]
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database/dup")

    assert f"`{captured}`" in section(STEPS[2])
    assert json.loads(shown(here, query_text="raw")["db.statement"])["find"] == "orders"
    assert shown(here)["db.statement"] == "find"
