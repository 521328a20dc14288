"""The instrumentor: on, off and on again, and beside the listeners of one client."""

from __future__ import annotations

import copy
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import wrapt
from opentelemetry.instrumentation.utils import suppress_instrumentation
from pymongo import monitoring

from opentelemetry_mongo_events import Config, MongoEventsInstrumentor, _instrumentor, event_listeners
from tests.clients import connect
from tests.conftest import registered_listeners
from tests.programs import run
from tests.spans import Spans, attributes, table_of

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer


@pytest.fixture
def other() -> Spans:
    return Spans()


def test_clients_made_after_instrument_are_traced(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    registered_before = registered_listeners()
    with connect(server.uri) as before:
        instrumentor.instrument(tracer_provider=spans.provider)
        with connect(server.uri) as after:
            after.shop.orders.insert_one({})
            assert spans.names == ["insert orders"]
            before.shop.bills.insert_one({})

    # Nothing was registered when the first test of a run made its client; what was registered once, stays.
    assert len(spans.named("insert bills")) == len(registered_before) // 2


def test_nothing_is_traced_after_uninstrument(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        instrumentor.uninstrument()
        client.shop.orders.find_one({})

    assert spans.names == ["ping admin"]


def test_a_command_opened_before_the_stop_still_closes(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    called: list[str] = []
    instrumentor.instrument(
        tracer_provider=spans.provider, response_hook=lambda span, event: called.append(event.command_name)
    )
    with connect(server.uri) as client:
        client.admin.command("ping")
        frozen = server.freeze("find")
        thread = threading.Thread(target=client.shop.command, args=("find", "orders"))
        thread.start()
        assert frozen.reached.wait(5)
        assert len(table_of(registered_listeners())) == 1

        instrumentor.uninstrument()
        frozen.release()
        thread.join(5)

    assert spans.names == ["ping admin", "find orders"]
    assert called == ["ping", "find"]
    assert len(table_of(registered_listeners())) == 0


def test_the_providers_and_hooks_of_a_second_instrument_are_used(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, other: Spans
) -> None:
    instrumentor.instrument(
        tracer_provider=spans.provider, request_hook=lambda span, event: span.set_attribute("hook", "first")
    )
    with connect(server.uri) as client:
        client.shop.orders.find_one({})
        frozen = server.freeze("find")
        thread = threading.Thread(target=client.shop.command, args=("find", "bills"))
        thread.start()
        assert frozen.reached.wait(5)

        instrumentor.uninstrument()
        instrumentor.instrument(
            tracer_provider=other.provider, request_hook=lambda span, event: span.set_attribute("hook", "second")
        )
        frozen.release()
        thread.join(5)
        client.shop.users.find_one({})

        assert [(span.name, attributes(span)["hook"]) for span in spans.finished] == [
            ("find orders", "first"),
            ("find bills", "first"),
        ]
        assert [(span.name, attributes(span)["hook"]) for span in other.finished] == [("find users", "second")]


def test_instrument_registers_its_listeners_once(instrumentor: MongoEventsInstrumentor) -> None:
    for _ in range(3):
        instrumentor.instrument(topology=True)
        instrumentor.uninstrument()

    assert kinds(registered_listeners()) == [
        "CommandEvents",
        "ConnectionEvents",
        "HeartbeatEvents",
        "PoolEvents",
        "TopologyEvents",
    ]


def test_a_second_instrument_without_a_stop_changes_nothing(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, other: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    MongoEventsInstrumentor().instrument(tracer_provider=other.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        assert (spans.names, other.names) == (["ping admin"], [])


def test_suppressed_commands_have_no_span(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        with suppress_instrumentation():
            client.shop.orders.find_one({})
        client.shop.bills.find_one({})
        assert spans.names == ["find bills"]


def test_where_the_instrumentor_and_a_clients_own_listeners_see_a_command_there_is_one_span(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, other: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    own = event_listeners(tracer_provider=other.provider)
    with connect(server.uri, event_listeners=own) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(3)])
        list(client.shop.orders.find(batch_size=2))
        assert (spans.names, other.names) == (["insert orders", "find orders", "getMore orders"], [])

        instrumentor.uninstrument()
        client.shop.orders.find_one({})
        assert other.names == ["find orders"]
        assert len(spans.names) == 3

        instrumentor.instrument(tracer_provider=spans.provider)
        client.admin.command("ping")
        assert (spans.names[3:], other.names[1:]) == (["ping admin"], [])
    assert len(table_of(own)) == 0


def test_where_a_client_has_its_listeners_twice_there_is_one_span(
    server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    with connect(server.uri, event_listeners=listeners * 2) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(3)])
        list(client.shop.orders.find(batch_size=2))
        assert spans.names == ["insert orders", "find orders", "getMore orders"]


def test_where_a_client_has_two_sets_of_listeners_the_first_takes_its_commands(
    server: ScriptedServer, listeners: Any, spans: Spans, other: Spans
) -> None:
    second = event_listeners(tracer_provider=other.provider)
    with connect(server.uri, event_listeners=[*listeners, *second]) as client:
        client.shop.orders.find_one({})
        assert (spans.names, other.names) == (["find orders"], [])


def test_a_hook_that_runs_commands_doubles_nothing(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, other: Spans
) -> None:
    def hook(span: Any, event: Any) -> None:
        if event.command_name == "find":
            client.shop.audit.insert_one({})

    instrumentor.instrument(tracer_provider=spans.provider, request_hook=hook)
    own = event_listeners(tracer_provider=other.provider)
    with connect(server.uri, event_listeners=own) as client:
        client.shop.orders.find_one({})
        assert (spans.names, other.names) == (["insert audit", "find orders"], [])


def test_a_command_that_the_instrumentor_leaves_out_is_left_out_by_a_clients_own_listeners_too(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, other: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, exclude_commands="ping")
    with connect(server.uri, event_listeners=event_listeners(tracer_provider=other.provider)) as client:
        client.admin.command("ping")
        assert (spans.names, other.names) == ([], [])


def test_commands_can_be_switched_off(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider, commands=False)
    with connect(server.uri) as client:
        client.admin.command("ping")

    assert spans.names == []


@pytest.mark.parametrize(
    ("signal", "its_own"),
    [
        ("commands", ["CommandEvents", "ConnectionEvents"]),
        ("pools", ["PoolEvents"]),
        ("heartbeats", ["HeartbeatEvents"]),
        ("topology", ["TopologyEvents"]),
        ("selections", ["SelectionEvents"]),
    ],
)
def test_what_is_off_has_no_listener(
    signal: str, its_own: list[str], instrumentor: MongoEventsInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY")
    monkeypatch.delenv("OTEL_PYTHON_MONGO_EVENTS_SELECTIONS")
    signals = ["commands", "pools", "heartbeats", "topology", "selections"]
    everything = kinds(event_listeners())
    only: Any = {each: each == signal for each in signals}
    without: Any = {signal: False}
    assert kinds(event_listeners(**without)) == [kind for kind in everything if kind not in its_own]
    assert kinds(event_listeners(**only)) == its_own

    instrumentor.instrument(**without)
    assert kinds(registered_listeners()) == [kind for kind in everything if kind not in its_own]
    instrumentor.uninstrument()

    # Wanted later: for the clients that are made from then on.
    instrumentor.instrument()
    assert kinds(registered_listeners()) == everything


def kinds(listeners: Any) -> list[str]:
    """The names of their classes, without the one that is added since PyMongo 4.11 to those for topologies."""
    return sorted({type(listener).__name__ for listener in listeners} - {"DeferredListener"})


def test_a_deep_copy_of_what_is_registered_is_the_same_listeners(
    instrumentor: MongoEventsInstrumentor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver's own tests save what is registered so, and put the copies in its place.
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_TOPOLOGY", "true")
    instrumentor.instrument(tracer_provider=spans.provider)

    assert copy.deepcopy(monitoring._LISTENERS) == monitoring._LISTENERS
    assert len(registered_listeners()) >= 5


def test_one_list_of_listeners_serves_several_clients(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    with (
        connect(server.uri, event_listeners=listeners) as first,
        connect(server.uri, event_listeners=listeners) as second,
    ):
        first.shop.orders.find_one({})
        second.shop.bills.find_one({})
        assert spans.names == ["find orders", "find bills"]


def test_a_config_is_taken_as_a_whole(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_COMMANDS", "false")
    config = Config(exclude_commands=frozenset({"ping"}), selections=False, topology=False)
    instrumentor.instrument(tracer_provider=spans.provider, config=config)
    with connect(server.uri) as client:
        client.admin.command("ping")
        client.shop.orders.find_one({})
        assert spans.names == ["find orders"]


def test_options_come_from_the_environment(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_EXCLUDE_COMMANDS", "ping")
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, database/dup")
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.admin.command("ping")
        client.shop.orders.find_one({})
        told = attributes(spans.one("find orders"))

    assert (told["db.system"], told["db.statement"], told["net.peer.port"]) == ("mongodb", "find", server.port)


@pytest.mark.parametrize("opt_in", ["", "database", "http/dup", "database/dupe"])
def test_without_the_opt_in_there_are_no_old_names(
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
    opt_in: str,
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.shop.orders.find_one({})
        assert not attributes(spans.one("find orders")).keys() & {"db.system", "db.name", "net.peer.name"}


def test_listeners_are_registered_when_pymongo_is_imported(
    instrumentor: MongoEventsInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyMongo works with eventlet only if it is imported after the patching, so `instrument()` doesn't import it."""
    hooks: list[Any] = []
    with monkeypatch.context() as not_yet:
        not_yet.setattr(_instrumentor, "sys", SimpleNamespace(modules={}))
        not_yet.setattr(wrapt, "register_post_import_hook", lambda *hook: hooks.append(hook))
        instrumentor.instrument(topology=True)
    assert kinds(registered_listeners()) == []
    ((hook, module),) = hooks
    hook(sys.modules[module])

    assert (module, kinds(registered_listeners())) == (
        "pymongo",
        ["CommandEvents", "ConnectionEvents", "HeartbeatEvents", "PoolEvents", "TopologyEvents"],
    )


IMPORTED_LATER = """
import sys

from opentelemetry_mongo_events import MongoEventsInstrumentor

MongoEventsInstrumentor().instrument()
print("pymongo" in sys.modules)
import pymongo

listeners = pymongo.MongoClient(connect=False).options.event_listeners
print(*[type(listener).__name__ for listener in listeners])
"""


def test_a_program_may_import_pymongo_later() -> None:
    code, lines, error = run(IMPORTED_LATER)

    assert (code, error, lines[0]) == (0, "", "False")
    assert sorted({*lines[1].split()} - {"DeferredListener"}) == [
        "CommandEvents",
        "ConnectionEvents",
        "HeartbeatEvents",
        "PoolEvents",
        "TopologyEvents",
    ]


REFUSED = "expected a MongoClient, an AsyncMongoClient or a Motor client, got an object of type NoneType"

FIRST_IMPORTED_BY = """
from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners

MongoEventsInstrumentor().instrument()
try:
    {call}
except TypeError as error:
    print(error)
import pymongo

print(len(pymongo.MongoClient(connect=False).options.event_listeners) > 0)
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("event_listeners()", []),
        ("MongoEventsInstrumentor().instrument_client(None)", [REFUSED]),
        ("MongoEventsInstrumentor().uninstrument_client(None)", [REFUSED]),
    ],
    ids=["event_listeners", "instrument_client", "uninstrument_client"],
)
def test_a_call_may_be_the_first_to_import_pymongo(call: str, said: list[str]) -> None:
    """It runs the hook of `instrument()` then, which imports the same modules of this package as the call."""
    assert run(FIRST_IMPORTED_BY.format(call=call)) == (0, [*said, "True"], "")
