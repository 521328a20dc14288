"""Bad input: options, providers, hooks and events that are not as they should be. Nothing is raised, nothing leaks."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import bson
import pytest
from bson import Code, Int64
from bson.raw_bson import RawBSONDocument
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import StatusCode
from pymongo.errors import OperationFailure
from pymongo.monitoring import CommandStartedEvent, TopologyOpenedEvent

from opentelemetry_mongo_events import Config, event_listeners
from opentelemetry_mongo_events._config import OPTIONS, config_from
from opentelemetry_mongo_events._telemetry import instruments, telemetry
from tests.clients import connect
from tests.events import (
    check_out_failed,
    check_out_started,
    checked_in,
    checked_out,
    connection_closed,
    connection_created,
    connection_ready,
    failed,
    heartbeat_failed,
    heartbeat_started,
    heartbeat_succeeded,
    pool_cleared,
    pool_closed,
    pool_created,
    pool_ready,
    started,
    succeeded,
)
from tests.spans import Spans, attributes, commands_of, connections_of, table_of

if TYPE_CHECKING:
    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.logs import Logs
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer


@pytest.fixture
def commands(listeners: Any) -> Any:
    return commands_of(listeners)


def of_kind(listeners: Any, kind: str) -> Any:
    return next(each for each in listeners if type(each).__name__ == kind)


# ---------------------------------------------------------------------------------------------------------------------
# Options.


WRONG: dict[str, Any] = {
    "an object": object(),
    "a class": int,
    "bytes": b"raw",
    "a dictionary": {"masked": 1},
    "a list of a number": [3],
    "a tuple of nothing": (None,),
    "an ellipsis": ...,
    "a complex number": 1j,
    "no number": float("nan"),
    "an infinite number": float("inf"),
    "a negative number": -1,
    "a fraction below 0": -0.5,
    "a number of too many digits": -(10**5000),
    "a function": len,
    "no end": itertools.repeat("ping"),
    "an error": ValueError("nonsense"),
}
NONSENSE = ("nonsense", " ", "-1", "1e400", "nan", "null", "[]", "\udcff", "x" * 10_000)
# Any text is a list of names.
OTHER_OPTIONS = [name for name in OPTIONS if name != "exclude_commands"]


def is_told(message: str, source: str, option: str) -> bool:
    """Whether a warning names the option, the value, what is allowed, and what is used."""
    allowed = OPTIONS[option].metadata["allowed"]
    default = "none" if option == "exclude_commands" else OPTIONS[option].default
    begin, end = f"invalid {source}: ", f"; expected {allowed}; using the default, {default}"
    return message.startswith(begin) and message.endswith(end) and 1 <= len(message[len(begin) : -len(end)]) <= 100


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_wrong_for_an_option_is_one_warning_and_the_default(
    option: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert config_from({}, {option: WRONG[kind]}) == Config()
    (message,) = caplog.messages
    assert is_told(message, option, option)


@pytest.mark.parametrize("text", NONSENSE)
@pytest.mark.parametrize("option", OTHER_OPTIONS)
def test_what_is_wrong_in_a_variable_is_one_warning_and_the_default(
    option: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in (f"OTEL_PYTHON_MONGO_EVENTS_{option.upper()}", OPTIONS[option].metadata["other_variable"]):
        if variable is not None:
            assert config_from({variable: text}, {}) == Config()
            (message,) = caplog.messages
            assert is_told(message, variable, option)
            caplog.clear()


@pytest.mark.parametrize("source", ["keywords", "environment"])
def test_where_every_option_is_wrong_the_application_works(
    source: str,
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY")
    keywords: dict[str, Any] = {}
    if source == "keywords":
        keywords = dict.fromkeys(OPTIONS, 1j) | {"querytext": "raw", "tracer": spans.provider}
    else:
        for option in OTHER_OPTIONS:
            monkeypatch.setenv(f"OTEL_PYTHON_MONGO_EVENTS_{option.upper()}", "nonsense")
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider, **keywords)
    with connect(server.uri) as client:
        client.shop.orders.insert_one({"_id": 1})
        assert client.shop.orders.find_one({}) == {"_id": 1}

    # The first selection waits, and may do so for long enough; and the discovery ends at any time.
    commands = [name for name in spans.names if name not in ("select server", "mongodb.client.discovery")]
    assert commands[:2] == ["insert orders", "find orders"]
    assert attributes(spans.one("find orders"))["db.query.text"].startswith('{"find":"orders"')
    unknown = [message for message in caplog.messages if message.startswith("unknown option")]
    assert [message.partition(";")[0] for message in sorted(unknown)] == (
        ["unknown option: querytext (did you mean query_text?)", "unknown option: tracer"]
        if source == "keywords"
        else []
    )
    assert len(caplog.messages) - len(unknown) == (len(OPTIONS) if source == "keywords" else len(OTHER_OPTIONS))


NO_TIMEOUTS: list[Any] = [0, -1.0, float("inf"), float("nan"), True, "1 min", []]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"commands": "maybe"}, "invalid commands: 'maybe'; expected true or false; using the default, True"),
        ({"commands": 2}, "invalid commands: 2; expected true or false; using the default, True"),
        (
            {"require_parent_span": []},
            "invalid require_parent_span: []; expected true or false; using the default, False",
        ),
        *(
            (
                {"exclude_commands": value},
                (
                    f"invalid exclude_commands: {value!r}; expected a list of command names or a comma-separated "
                    "string; using the default, none"
                ),
            )
            for value in (3, b"ping", {"ping": 1}, ["ping", 3], True)
        ),
        *(
            (
                {"events": value},
                f"invalid events: {value!r}; expected span, log, both or none; using the default, span",
            )
            for value in ("logs", "", True, ["span", "log"])
        ),
        *(
            (
                {"episode_timeout": value},
                (
                    f"invalid episode_timeout: {value!r}; expected a number of seconds greater than 0; "
                    "using the default, 60.0"
                ),
            )
            for value in NO_TIMEOUTS
        ),
        *(
            (
                {"query_text": value},
                f"invalid query_text: {value!r}; expected masked, raw or off; using the default, masked",
            )
            for value in ("plain", "", True, 1, b"raw")
        ),
        *(
            (
                {"query_text_max_length": value},
                (
                    f"invalid query_text_max_length: {value!r}; expected an integer of 0 or more; "
                    "using the default, 4096"
                ),
            )
            for value in (-1, "-1", 1.5, 4096.0, "4k", "", True, [4096])
        ),
    ],
)
def test_a_value_that_cant_be_used_is_one_warning_and_the_default(
    keywords: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert config_from({}, keywords) == Config()
    assert caplog.messages == [message]

    caplog.clear()
    assert Config(**keywords) == Config()
    assert caplog.messages == [message]


def test_a_variable_that_cant_be_used_is_one_warning_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": "x" * 1000}, {}) == Config()
    assert caplog.messages == [
        f"invalid OTEL_PYTHON_MONGO_EVENTS_COMMANDS: '{'x' * 99}; expected true or false; using the default, True"
    ]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cant_even_be_shown_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from({}, {"commands": Unprintable()}) == Config()
    assert caplog.messages == [
        "invalid commands: a value of type Unprintable; expected true or false; using the default, True"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exclude_comands", "unknown option: exclude_comands (did you mean exclude_commands?)"),
        ("capture_statement", "unknown option: capture_statement (use query_text instead)"),
        ("zzz", "unknown option: zzz"),
    ],
)
def test_an_unknown_option_is_one_warning_that_tells_what_is_meant(
    name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert config_from({}, {name: 1}) == Config()
    (told,) = caplog.messages
    assert told == f"{message}; expected one of {', '.join(OPTIONS)}; ignored"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("QUERY_TXT", " (did you mean OTEL_PYTHON_MONGO_EVENTS_QUERY_TEXT?)"),
        ("query_text", ""),
        ("ZZZ", ""),
        ("", ""),
    ],
)
def test_an_unknown_variable_is_one_warning_that_tells_what_is_meant(
    name: str, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    variable = f"OTEL_PYTHON_MONGO_EVENTS_{name}"
    environ = {variable: "off", "OTEL_PYTHON_MONGO": "1", "OTEL_PYTHON_MONGO_EVENTS_EMPTY": ""}

    assert config_from(environ, {}) == Config()
    assert caplog.messages == [f"unknown environment variable: {variable}{hint}; ignored"]


def test_a_config_replaces_unknown_variables_too(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_QUERY_TXT": "off"}, {}, Config()) == Config()
    assert caplog.messages == []


PROVIDERS_AND_HOOKS = (
    "tracer_provider, meter_provider, logger_provider, request_hook, response_hook, failed_hook, config"
)


def test_the_warning_lists_all_that_is_allowed(
    instrumentor: MongoEventsInstrumentor, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(client_nam="billing")
    event_listeners(client_nam="billing")

    for_all = f"{', '.join(OPTIONS)}, {PROVIDERS_AND_HOOKS}"
    assert caplog.messages == [
        f"unknown option: client_nam; expected one of {for_all}; ignored",
        f"unknown option: client_nam (did you mean client_name?); expected one of {for_all}, client_name; ignored",
    ]


@pytest.mark.parametrize("name", ["", " ", 7])
def test_a_name_that_cant_be_used_is_a_warning(name: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert event_listeners(client_name=name) != []
    assert caplog.messages == [f"invalid client_name: {name!r}; expected a non-empty string; ignored"]


# ---------------------------------------------------------------------------------------------------------------------
# Providers and hooks.


@pytest.mark.parametrize(
    ("keyword", "allowed"),
    [
        ("tracer_provider", "a TracerProvider instance"),
        ("meter_provider", "a MeterProvider instance"),
        ("logger_provider", "a LoggerProvider instance"),
        ("request_hook", "a function that takes a span and an event and isn't async"),
        ("response_hook", "a function that takes a span and an event and isn't async"),
        ("failed_hook", "a function that takes a span and an event and isn't async"),
        ("config", "a Config instance"),
    ],
)
def test_a_keyword_that_cant_be_used_is_one_warning_and_left_out(
    instrumentor: MongoEventsInstrumentor, caplog: pytest.LogCaptureFixture, keyword: str, allowed: str
) -> None:
    wrong: dict[str, Any] = {keyword: 3}
    instrumentor.instrument(**wrong)

    assert instrumentor.is_instrumented_by_opentelemetry
    assert caplog.messages == [f"invalid {keyword}: 3; expected {allowed}; ignored"]


class Gives:
    """What gives something, whatever it is asked for."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        return self._given

    get_meter = get_logger = get_tracer


class Older:
    """A provider of an older API, or of a mistake."""

    def get_tracer(self, name: str) -> None: ...

    def get_meter(self, name: str) -> None: ...

    def get_logger(self, name: str) -> None: ...


class Uncallable:
    start_span = create_histogram = emit = None


class PoorMeter:
    """A meter that can't give advice for its histograms."""

    def create_histogram(self, name: str, unit: str = "", description: str = "") -> None: ...


PROVIDERS: dict[str, Any] = {
    "a text": "opentelemetry",
    "false": False,
    "an object": object(),
    "a class of the SDK's": TracerProvider,
    "another class of the SDK's": MeterProvider,
    "a class of the API's": trace.NoOpTracerProvider,
    "another class of the API's": NoOpMeterProvider,
    "an older one": Older(),
    "one that gives nothing": Gives(None),
    "one that gives a text": Gives("tracer"),
    "one that gives what can't be called": Gives(Uncallable()),
    "one that gives another thing": Gives(PoorMeter()),
}


@pytest.mark.parametrize("what", PROVIDERS)
@pytest.mark.parametrize("keyword", ["tracer_provider", "meter_provider", "logger_provider"])
def test_a_provider_that_cant_be_used_is_one_warning_and_left_out(
    keyword: str,
    what: str,
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    spans: Spans,
) -> None:
    keywords: dict[str, Any] = {"tracer_provider": spans.provider, "events": "both"} | {keyword: PROVIDERS[what]}
    instrumentor.instrument(**keywords)
    with connect(server.uri) as client:
        client.admin.command("ping")

    warnings = [message for message in caplog.messages if not message.startswith("events=both requires")]
    assert len(warnings) == 1
    allowed = {"tracer": "a TracerProvider", "meter": "a MeterProvider", "logger": "a LoggerProvider"}
    assert warnings[0].startswith(f"invalid {keyword}: ")
    assert warnings[0].endswith(f"; expected {allowed[keyword.partition('_')[0]]} instance; ignored")
    assert ("ping admin" in spans.names) is (keyword != "tracer_provider")


def test_providers_that_are_mistaken_for_one_another_are_a_warning_each(
    server: ScriptedServer, spans: Spans, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    provider: Any = spans.provider
    other: Any = metrics.provider
    listeners = event_listeners(tracer_provider=other, meter_provider=provider, logger_provider=provider)
    with connect(server.uri, event_listeners=listeners) as client:
        client.admin.command("ping")

    assert [message.partition(":")[0] for message in caplog.messages] == [
        "invalid tracer_provider",
        "invalid meter_provider",
        "invalid logger_provider",
    ]


@pytest.mark.parametrize("given", [None, "tracer", PoorMeter()])
def test_a_global_provider_that_cant_be_used_is_a_warning(
    given: Any, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What `set_tracer_provider` and its like have been given.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: given and Gives(given))
    monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: given and Gives(given))
    monkeypatch.setattr(instruments, "_registry", instruments._Registry())
    with connect(server.uri, event_listeners=event_listeners()) as client:
        client.admin.command("ping")

    assert sorted(caplog.messages) == [
        "the global MeterProvider is invalid and receives no telemetry",
        "the global TracerProvider is invalid and receives no telemetry",
    ]


def test_a_global_logger_provider_that_cant_be_used_is_a_warning(
    server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logs: Logs
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError

    monkeypatch.setattr(telemetry, "get_logger", fail)
    listeners = event_listeners(tracer_provider=spans.provider, events="both")
    with connect(server.uri, event_listeners=listeners) as client:
        client.admin.command("ping")

    assert caplog.messages == ["the global LoggerProvider is invalid and receives no telemetry"]
    assert "ping admin" in spans.names


def test_what_is_given_and_fits_is_no_warning(
    instrumentor: MongoEventsInstrumentor, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk._logs import LoggerProvider

    meter_provider = MeterProvider(shutdown_on_exit=False)
    logger_provider = LoggerProvider(shutdown_on_exit=False)
    instrumentor.instrument(
        tracer_provider=spans.provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
        request_hook=print,
        skip_dep_check=True,
    )

    assert caplog.messages == []


async def asynchronous(span: Any, event: Any) -> None:
    span.set_attribute("hook", 1)


def generating(span: Any, event: Any) -> Any:
    yield span.set_attribute("hook", 1)


class Asynchronous:
    async def __call__(self, span: Any, event: Any) -> None:
        span.set_attribute("hook", 1)


NO_HOOKS: dict[str, Any] = {
    "a text": "hook",
    "an object": object(),
    "async": asynchronous,
    "a part of an async one": functools.partial(asynchronous, event=None),
    "an object whose call is async": Asynchronous(),
    "a generator": generating,
    "without arguments": lambda: None,
    "with one": lambda span: None,
    "with three": lambda span, event, more: None,
    "by keywords": lambda *, span, event: None,
}
HOOKS: dict[str, Any] = {
    "with any": lambda *arguments: None,
    "with a default": lambda span, event, more=3: None,
    "built in": print,
    "a class": type("Hook", (), {"__init__": lambda self, span, event: None}),
    "a part of one": functools.partial(lambda more, span, event: None, 3),
    "that tells no signature": dict.update,
    "that returns something": lambda span, event: event,
}


@pytest.mark.parametrize("kind", ["request_hook", "response_hook", "failed_hook"])
@pytest.mark.parametrize("what", NO_HOOKS)
def test_what_is_no_hook_is_one_warning_and_left_out(
    what: str, kind: str, server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    hook: Any = {kind: NO_HOOKS[what]}
    with connect(server.uri, event_listeners=event_listeners(tracer_provider=spans.provider, **hook)) as client:
        client.admin.command("ping")
        with pytest.raises(OperationFailure):
            client.admin.command("unheardOf")

    (message,) = [each.getMessage() for each in caplog.records if each.name == "opentelemetry_mongo_events"]
    assert message.startswith(f"invalid {kind}: ")
    assert message.endswith("; expected a function that takes a span and an event and isn't async; ignored")
    assert spans.names[:2] == ["ping admin", "unheardOf admin"]


@pytest.mark.parametrize("what", HOOKS)
def test_what_may_be_a_hook_is_no_warning(what: str, caplog: pytest.LogCaptureFixture) -> None:
    event_listeners(request_hook=HOOKS[what])

    assert caplog.messages == []


def test_a_hook_that_returns_a_coroutine_is_told_once(
    server: ScriptedServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    listeners = event_listeners(
        tracer_provider=spans.provider, request_hook=lambda span, event: asynchronous(span, event)
    )
    with connect(server.uri, event_listeners=listeners) as client:
        for _ in range(3):
            client.admin.command("ping")
    gc.collect()  # one that nobody awaited would be a warning now

    assert spans.names[:3] == ["ping admin"] * 3
    told = [each.getMessage() for each in caplog.records if each.name == "opentelemetry_mongo_events"]
    assert [message.partition(";")[0] for message in told] == ["request_hook raised NotAwaitedError"]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, RecursionError, StopIteration])
def test_hooks_that_raise_cost_nothing(
    error: type[BaseException], server: ScriptedServer, spans: Spans, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(span: Any, event: Any) -> None:
        raise error

    listeners = event_listeners(
        tracer_provider=spans.provider,
        meter_provider=metrics.provider,
        request_hook=hook,
        response_hook=hook,
        failed_hook=hook,
    )
    with connect(server.uri, event_listeners=listeners) as client:
        for _ in range(2):
            client.admin.command("ping")
            with pytest.raises(OperationFailure):
                client.admin.command("unheardOf")

    assert spans.names[:4] == ["ping admin", "unheardOf admin"] * 2
    measured = metrics.values("db.client.operation.duration", "db.operation.name")
    assert (measured["ping"], measured["unheardOf"], len(table_of(listeners))) == (2, 2, 0)
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"{hook} raised {error.__name__}" for hook in ("request_hook", "response_hook", "failed_hook")
    ]


@pytest.mark.parametrize("kind", ["request_hook", "response_hook", "failed_hook"])
def test_a_hook_that_spoils_its_span_costs_that_span_alone(
    kind: str, server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    def spoil(span: Any, event: Any) -> None:
        span._attributes = None
        span._events = None

    listeners = event_listeners(
        tracer_provider=spans.provider,
        meter_provider=metrics.provider,
        **{kind: spoil},  # type: ignore[arg-type]
    )
    with connect(server.uri, event_listeners=listeners) as client:
        client.admin.command("ping")
        with pytest.raises(OperationFailure):
            client.admin.command("unheardOf")

    measured = metrics.values("db.client.operation.duration", "db.operation.name")
    assert (measured["ping"], measured["unheardOf"], len(table_of(listeners))) == (1, 1, 0)


def test_a_hook_that_blocks_holds_up_its_own_command_only(server: ScriptedServer, spans: Spans) -> None:
    reached, goes_on = threading.Event(), threading.Event()

    def hook(span: Any, event: Any) -> None:
        if event.command_name == "find":
            reached.set()
            goes_on.wait(10)

    listeners = event_listeners(tracer_provider=spans.provider, request_hook=hook)
    with connect(server.uri, event_listeners=listeners) as client, ThreadPoolExecutor(1) as threads:
        held_up = threads.submit(client.shop.orders.find_one, {})
        assert reached.wait(5)
        client.admin.command("ping")
        assert spans.names == ["ping admin"]
        goes_on.set()
        assert held_up.result(5) is None


def test_a_hook_that_ends_the_span_is_not_held_against_it(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    commands = commands_of(event_listeners(tracer_provider=spans.provider, request_hook=lambda span, event: span.end()))
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", {"cursor": {"id": 12, "firstBatch": []}}))

    assert (spans.names, caplog.messages) == (["find orders"], [])


def test_a_hook_that_is_interrupted_ends_the_span(spans: Spans) -> None:
    def interrupted(span: Any, event: Any) -> None:
        raise KeyboardInterrupt

    listeners = event_listeners(tracer_provider=spans.provider, response_hook=interrupted)
    commands_of(listeners).started(started({"find": "orders"}))
    with pytest.raises(KeyboardInterrupt):
        commands_of(listeners).succeeded(succeeded("find"))

    assert (spans.names, len(table_of(listeners))) == (["find orders"], 0)


# ---------------------------------------------------------------------------------------------------------------------
# Events.


@pytest.mark.parametrize("failure", [None, "alice", 3, {"code": float("nan")}, {"code": float("inf")}])
def test_a_failure_that_cant_be_read_ends_its_span(commands: Any, spans: Spans, failure: Any) -> None:
    commands.started(started({"find": "orders"}))
    commands.failed(failed("find", failure))

    span = spans.one("find orders")
    assert (span.status.status_code, attributes(span)["error.type"]) == (StatusCode.ERROR, "_OTHER")


class Hostile(dict[str, Any]):
    """A document that can't be looked into."""

    def get(self, *_: Any) -> Any:
        raise RuntimeError


def test_a_document_that_raises_ends_its_span(commands: Any, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", Hostile(ok=1)))
    commands.started(started({"find": "orders"}))
    commands.failed(failed("find", Hostile(ok=0)))

    assert spans.names == ["find orders"] * 2
    assert [span.status.status_code for span in spans.finished] == [StatusCode.UNSET, StatusCode.ERROR]
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "CommandEvents.succeeded raised RuntimeError",
        "CommandEvents.failed raised RuntimeError",
    ]


def test_a_command_that_raises_is_passed_over(commands: Any, spans: Spans) -> None:
    commands.started(started(Hostile(find="orders")))
    commands.succeeded(succeeded("find"))

    assert spans.names == []


@pytest.mark.parametrize("field", ["txnNumber", "lsid", "autocommit", "documents", "getMore", "collection", "cursors"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 3.5, False])
def test_an_odd_field_costs_no_span(commands: Any, spans: Spans, field: str, value: Any) -> None:
    for name in ("insert", "getMore", "killCursors", "explain"):
        commands.started(started({name: "orders", "autocommit": False} | {field: value}))
        commands.succeeded(succeeded(name))

    assert len(spans.finished) == 4
    assert commands.guard.failures == {}


@pytest.mark.parametrize("reply", [None, b"raw", 3, {}])
def test_an_odd_reply_ends_its_span(commands: Any, spans: Spans, reply: Any) -> None:
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", reply))

    assert spans.one("find orders").status.status_code is StatusCode.UNSET


def test_an_odd_address_is_left_out(commands: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}, address=None))
    commands.succeeded(succeeded("find", address=None))

    assert "server.address" not in attributes(spans.one("find orders"))


def test_an_end_without_a_start_is_passed_over(commands: Any, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    commands.succeeded(succeeded("find"))
    commands.failed(failed("find", {}))

    assert (spans.names, caplog.messages) == ([], [])


def test_an_odd_command_spoils_the_name_of_no_other(commands: Any, spans: Spans) -> None:
    odd_and_right: list[dict[str, Any]] = [
        {"explain": "orders"},
        {"explain": {"find": "orders"}},
        {"getMore": "users", "collection": "orders"},
        {"getMore": 7, "collection": "users"},
    ]
    for command in odd_and_right:
        name = next(iter(command))
        commands.started(started(command))
        commands.succeeded(succeeded(name))

    assert spans.names == ["explain shop", "explain orders", "getMore orders", "getMore users"]


def test_odd_heartbeats_are_passed_over(
    watching: list[Any], metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeats = of_kind(watching, "HeartbeatEvents")
    address = ("db.example", 27017)
    heartbeats.succeeded(heartbeat_succeeded(address, duration=-1.0))
    heartbeats.failed(heartbeat_failed(address, TimeoutError(), duration=-1.0))
    assert [point.sum for point in metrics.points("mongodb.client.heartbeat.duration")] == [0, 0]
    assert caplog.messages == []

    for _ in range(2):
        heartbeats.succeeded(heartbeat_succeeded(("db.example",), duration=1.0))
    assert len(caplog.messages) == 1


def test_an_odd_event_of_a_pool_is_passed_over(
    listeners: Any, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    pools = of_kind(listeners, "PoolEvents")
    pools.connection_check_out_started(check_out_started())
    for _ in range(3):
        pools.connection_checked_out(checked_out(1, None))

    assert len(caplog.messages) == 1
    assert metrics.connections() == (0, 0)


def lacking(event: Any, name: str) -> Any:
    """The event, of a class of its own, without one of its attributes."""

    def missing(_: Any) -> Any:
        raise AttributeError(name)

    event.__class__ = type("Lacking", (type(event),), {"__slots__": (), name: property(missing)})
    return event


IDENTITY = ["request_id", "connection_id"] + ["server_connection_id"] * hasattr(
    CommandStartedEvent, "server_connection_id"
)


@pytest.mark.parametrize("name", ["command", "command_name", "database_name", "operation_id", "service_id", *IDENTITY])
def test_a_start_that_lacks_something_leaves_nothing_open(name: str, listeners: Any, spans: Spans) -> None:
    for _ in range(2):
        commands_of(listeners).started(lacking(started({"getMore": 5, "collection": "orders"}), name))
        commands_of(listeners).succeeded(succeeded("getMore"))

    assert len(table_of(listeners)) == 0
    assert set(spans.names) <= {"getMore orders"}


@pytest.mark.parametrize("kind", ["succeeded", "failed"])
@pytest.mark.parametrize(
    "name", ["reply", "failure", "command_name", "duration_micros", "operation_id", "service_id", *IDENTITY]
)
def test_an_end_that_lacks_something_ends_its_span(
    name: str, kind: str, listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    commands, pools = commands_of(listeners), connections_of(listeners)
    pools.connection_checked_out(checked_out(1))
    commands.started(started({"find": "orders"}))
    end: Any = succeeded("find") if kind == "succeeded" else failed("find", {"code": 1})
    getattr(commands, kind)(lacking(end, name))
    # Where it can't be told which one it was, the connection tells that it is over.
    assert len(table_of(listeners)) == (name in IDENTITY)
    pools.connection_checked_in(checked_in(1))

    assert (spans.names, len(table_of(listeners))) == (["find orders"], 0)
    assert metrics.one("db.client.operation.duration").count == 1
    status = spans.one().status.status_code
    assert status is (StatusCode.ERROR if kind == "failed" or name in IDENTITY else StatusCode.UNSET)


@pytest.mark.parametrize("kind", ["succeeded", "failed"])
@pytest.mark.parametrize("duration", ["long", None, -(10**9), 10**300, float("nan")])
def test_a_duration_that_is_none_ends_the_span(
    duration: Any, kind: str, listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    commands: Any = commands_of(listeners)
    commands.started(started({"find": "orders"}))
    end: Any = succeeded("find") if kind == "succeeded" else failed("find", {"code": 1})
    end.__class__ = type("Odd", (type(end),), {"__slots__": (), "duration_micros": property(lambda _: duration)})
    getattr(commands, kind)(end)

    assert (spans.names, len(table_of(listeners))) == (["find orders"], 0)
    assert metrics.one("db.client.operation.duration").sum >= 0


def test_events_of_classes_of_ones_own_are_events(commands: Any, spans: Spans) -> None:
    start, end = started({"find": "orders"}), succeeded("find")
    for event in (start, end):
        event.__class__ = type("Mine", (type(event),), {"__slots__": ()})
    commands.started(start)
    commands.succeeded(end)

    assert spans.names == ["find orders"]


@pytest.mark.parametrize("database", [None, 3, b"shop"])
def test_a_database_whose_name_is_no_text_is_told_as_another(
    database: Any, commands: Any, spans: Spans, metrics: Metrics
) -> None:
    commands.started(started({"find": "orders"}, database=database))
    commands.succeeded(succeeded("find"))

    assert attributes(spans.one("find orders"))["db.namespace"] == "_OTHER"
    assert metrics.values("db.client.operation.duration", "db.namespace") == {"_OTHER": 1}


def test_a_command_whose_name_is_no_text_is_told_as_another(commands: Any, spans: Spans) -> None:
    commands.started(started({b"find": "orders"}))
    commands.succeeded(succeeded(b"find"))  # type: ignore[arg-type]

    assert spans.names == ["_OTHER shop"]


@pytest.mark.parametrize("odd", [[], {}, ["shop"]])
def test_what_can_be_no_name_is_none(odd: Any, commands: Any, listeners: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}, database=odd))
    commands.succeeded(succeeded("find"))
    commands.started(started({"find": odd}))
    commands.succeeded(succeeded("find"))

    assert (spans.names, len(table_of(listeners))) == (["find orders", "find shop"], 0)
    assert attributes(spans.one("find orders"))["db.namespace"] == "_OTHER"


def test_a_name_may_be_of_a_class_that_can_be_no_key(
    commands: Any, listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    """`bson.Code` is a text that has no hash."""
    commands.started(started({"find": Code("orders")}, database=Code("shop")))
    commands.succeeded(succeeded("find"))
    commands.started(started({"getMore": Int64(7), "collection": Code("orders")}))
    commands.succeeded(succeeded("getMore"))

    assert (spans.names, len(table_of(listeners))) == (["find orders", "getMore orders"], 0)
    told = attributes(spans.one("find orders"))
    assert {type(told[name]) for name in ("db.namespace", "db.collection.name", "db.query.summary")} == {str}
    assert metrics.values("db.client.operation.duration", "db.collection.name", "db.namespace") == {
        ("orders", "shop"): 2
    }


def test_a_start_that_comes_twice_is_one_command(commands: Any, listeners: Any, spans: Spans, metrics: Metrics) -> None:
    event = started({"find": "orders"})
    commands.started(event)
    commands.started(event)
    for _ in range(2):
        commands.succeeded(succeeded("find"))

    assert (spans.names, len(table_of(listeners))) == (["find orders"], 0)
    assert metrics.one("db.client.operation.duration").count == 1


def test_raw_documents_are_read_as_others_and_broken_ones_end_their_span(commands: Any, spans: Spans) -> None:
    raw = RawBSONDocument(bson.encode({"find": "orders", "filter": {"email": "alice@example.org"}}))
    reply = RawBSONDocument(bson.encode({"ok": 1, "cursor": {"id": 0, "firstBatch": [{}, {}]}}))
    commands.started(started(raw))
    commands.succeeded(succeeded("find", reply))

    told = attributes(spans.one())
    assert (told["db.query.text"], told["db.response.returned_rows"]) == (
        '{"find":"orders","filter":{"email":"?"}}',
        2,
    )

    # Its length is right, and a string in it is longer than the document.
    broken = bytearray(bson.encode({"ok": 1, "cursor": "1234"}))
    broken[-10:-6] = b"\xff\xff\xff\x7f"
    commands.started(started({"find": "bills"}))
    commands.succeeded(succeeded("find", RawBSONDocument(bytes(broken))))
    assert spans.names == ["find orders", "find bills"]


def test_a_huge_command_and_a_huge_reply_are_told_in_a_few_characters(commands: Any, spans: Spans) -> None:
    documents = [{"_id": number, "text": "x" * 100} for number in range(100_000)]
    commands.started(started({"insert": "orders", "documents": documents}))
    commands.succeeded(succeeded("insert", {"ok": 1, "cursor": {"id": 0, "firstBatch": documents}}))

    told = attributes(spans.one("insert orders"))
    assert (told["db.operation.batch.size"], told["db.response.returned_rows"]) == (100_000, 100_000)
    assert len(told["db.query.text"]) < 200


ADDRESSES: list[Any] = [None, (), ("h",), ("h", 1, 2), "h:1", 3, ["h", 1], (None, None), (b"h", 1), ("h", "1")]


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_no_address_makes_a_listener_raise(address: Any, watching: list[Any], spans: Spans, metrics: Metrics) -> None:
    told: dict[str, list[tuple[str, Any]]] = {
        "PoolEvents": [
            ("pool_created", pool_created(address, maxPoolSize="many")),
            ("pool_ready", pool_ready(address)),
            ("connection_created", connection_created(1, address)),
            ("connection_ready", connection_ready(1, address)),
            ("connection_check_out_started", check_out_started(address)),
            ("connection_checked_out", checked_out(1, address)),
            ("connection_check_out_started", check_out_started(address)),
            ("connection_check_out_failed", check_out_failed("timeout", address)),
            ("pool_cleared", pool_cleared(address)),
            ("connection_checked_in", checked_in(1, address)),
            ("connection_closed", connection_closed(1, address)),
            ("pool_closed", pool_closed(address)),
        ],
        "HeartbeatEvents": [
            ("started", heartbeat_started(address)),
            ("succeeded", heartbeat_succeeded(address, duration=1.0)),
            ("failed", heartbeat_failed(address, TimeoutError(), duration=1.0)),
        ],
        "CommandEvents": [
            ("started", started({"find": "orders"}, address=address)),
            ("failed", failed("find", {"code": 1}, address=address)),
        ],
    }
    told["ConnectionEvents"] = told["PoolEvents"]
    for kind, events in told.items():
        for method, event in events:
            getattr(of_kind(watching, kind), method)(event)

    metrics.collected()
    assert len(table_of(watching)) == 0
    assert all(span.end_time is not None for span in spans.finished)


@pytest.mark.parametrize("event", [None, 3, object(), TopologyOpenedEvent(None)], ids=["None", "3", "object", "opened"])  # type: ignore[arg-type]
def test_no_event_makes_a_listener_raise(event: Any, watching: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    for listener in watching:
        for base in type(listener).__mro__:
            if base.__module__ == "pymongo.monitoring":
                for method in [name for name in vars(base) if not name.startswith("_")]:
                    getattr(listener, method)(event)

    assert len(caplog.messages) == len(set(caplog.messages))


def test_free_threaded_python_3_13_is_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "HAS_GIL", False)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    telemetry._warn_of_free_threaded_3_13.cache_clear()
    try:
        for _ in range(2):
            event_listeners()
    finally:
        telemetry._warn_of_free_threaded_3_13.cache_clear()

    assert [record.getMessage() for record in caplog.records] == [
        (
            "free-threaded Python 3.13 isn't supported: its OrderedDict isn't thread-safe, so the process may crash. "
            "Use Python 3.14t or newer, or enable the GIL (PYTHON_GIL=1)"
        )
    ]
