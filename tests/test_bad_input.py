"""Bad input: options, providers, hooks and events that are not as they should be. Nothing is raised, nothing leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import StatusCode

from opentelemetry_mongo_events import Config, event_listeners
from opentelemetry_mongo_events._config import OPTIONS, config_from
from tests.clients import connect
from tests.events import checked_out, failed, heartbeat_failed, heartbeat_succeeded, started, succeeded
from tests.spans import Spans, attributes, commands_of, table_of

if TYPE_CHECKING:
    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer


@pytest.fixture
def commands(listeners: Any) -> Any:
    return commands_of(listeners)


def of_kind(listeners: Any, kind: str) -> Any:
    return next(each for each in listeners if type(each).__name__ == kind)


# ---------------------------------------------------------------------------------------------------------------------
# Options.


NO_TIMEOUTS: list[Any] = [0, -1.0, float("inf"), float("nan"), True, "1 min", []]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"commands": "maybe"}, "commands='maybe' can't be used: true or false is allowed; the default, True, is used"),
        ({"commands": 2}, "commands=2 can't be used: true or false is allowed; the default, True, is used"),
        (
            {"require_parent_span": []},
            "require_parent_span=[] can't be used: true or false is allowed; the default, False, is used",
        ),
        *(
            (
                {"exclude_commands": value},
                (
                    f"exclude_commands={value!r} can't be used: a list of command names, or a text with commas between "
                    "them, is allowed; the default, none, is used"
                ),
            )
            for value in (3, b"ping", {"ping": 1}, ["ping", 3], True)
        ),
        *(
            (
                {"events": value},
                f"events={value!r} can't be used: span, log, both or none is allowed; the default, span, is used",
            )
            for value in ("logs", "", True, ["span", "log"])
        ),
        *(
            (
                {"episode_timeout": value},
                (
                    f"episode_timeout={value!r} can't be used: a number of seconds above 0 is allowed; "
                    "the default, 60.0, is used"
                ),
            )
            for value in NO_TIMEOUTS
        ),
        *(
            (
                {"query_text": value},
                f"query_text={value!r} can't be used: masked, raw or off is allowed; the default, masked, is used",
            )
            for value in ("plain", "", True, 1, b"raw")
        ),
        *(
            (
                {"query_text_max_length": value},
                (
                    f"query_text_max_length={value!r} can't be used: a whole number of characters, 0 or more, is "
                    "allowed; the default, 4096, is used"
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
        (
            f"OTEL_PYTHON_MONGO_EVENTS_COMMANDS='{'x' * 99} can't be used: true or false is allowed; "
            "the default, True, is used"
        )
    ]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cant_even_be_shown_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from({}, {"commands": Unprintable()}) == Config()
    assert caplog.messages == [
        "commands=a value of type Unprintable can't be used: true or false is allowed; the default, True, is used"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exclude_comands", "unknown option exclude_comands (is exclude_commands meant?)"),
        ("zzz", "unknown option zzz"),
    ],
)
def test_an_unknown_option_is_one_warning_that_tells_what_is_meant(
    name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert config_from({}, {name: 1}) == Config()
    (told,) = caplog.messages
    assert told == f"{message}: the options are {', '.join(OPTIONS)}"


@pytest.mark.parametrize("name", ["", " ", 7])
def test_a_name_that_cant_be_used_is_a_warning(name: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert event_listeners(client_name=name) != []
    assert caplog.messages == [
        f"client_name={name!r} can't be used: a text that isn't empty is allowed; it is left out"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Providers and hooks.


@pytest.mark.parametrize(
    ("keyword", "allowed"),
    [
        ("tracer_provider", "a TracerProvider is"),
        ("meter_provider", "a MeterProvider is"),
        ("logger_provider", "a LoggerProvider is"),
        ("request_hook", "a function of a span and an event, not an async one, is"),
        ("response_hook", "a function of a span and an event, not an async one, is"),
        ("failed_hook", "a function of a span and an event, not an async one, is"),
        ("config", "a Config is"),
    ],
)
def test_a_keyword_that_cant_be_used_is_one_warning_and_left_out(
    instrumentor: MongoEventsInstrumentor, caplog: pytest.LogCaptureFixture, keyword: str, allowed: str
) -> None:
    instrumentor.instrument(**{keyword: 3})

    assert instrumentor.is_instrumented_by_opentelemetry
    assert caplog.messages == [f"{keyword}=3 can't be used: {allowed} allowed; it is left out"]


class Broken:
    def get_tracer(self, name: str) -> None:
        """A provider of an older API, or of a mistake."""


@pytest.mark.parametrize("provider", [TracerProvider, Broken(), "opentelemetry"])
def test_a_provider_that_gives_no_tracer_is_one_warning_and_left_out(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, caplog: pytest.LogCaptureFixture, provider: Any
) -> None:
    instrumentor.instrument(tracer_provider=provider)
    with connect(server.uri) as client:
        client.admin.command("ping")

    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("can't be used: a TracerProvider is allowed; it is left out")


def test_what_is_given_and_fits_is_no_warning(
    instrumentor: MongoEventsInstrumentor, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk.metrics import MeterProvider

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


def test_hooks_that_raise_change_nothing(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    def hook(span: Any, event: Any) -> None:
        raise ValueError

    listeners = event_listeners(tracer_provider=spans.provider, request_hook=hook, response_hook=hook, failed_hook=hook)
    for _ in range(3):
        commands_of(listeners).started(started({"find": "orders"}))
        commands_of(listeners).succeeded(succeeded("find"))
        commands_of(listeners).started(started({"find": "orders"}))
        commands_of(listeners).failed(failed("find", {}))

    assert (spans.names, len(table_of(listeners))) == (["find orders"] * 6, 0)
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "request_hook raised ValueError",
        "response_hook raised ValueError",
        "failed_hook raised ValueError",
    ]


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
    for _ in range(3):
        pools.connection_checked_out(checked_out(1, None))

    assert len(caplog.messages) == 1
    assert metrics.connections() == (0, 0)
