"""The connection of a command, and the end of one that was interrupted."""

from __future__ import annotations

import contextvars
import gc
import weakref
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider, StatusCode

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._commands.held_connections import held_connections
from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS
from opentelemetry_mongo_events._servers.selections import set_delay
from tests.events import (
    ADDRESS,
    check_out_started,
    checked_in,
    checked_out,
    connection_closed,
    connection_created,
    connection_ready,
    failed,
    started,
    succeeded,
)
from tests.spans import Spans, attributes, commands_of, connections_of, table_of


class Driver:
    """The two listeners, to be called as the driver calls them."""

    def __init__(self, listeners: Any) -> None:
        self.commands: Any = commands_of(listeners)
        self.connections: Any = connections_of(listeners)
        self.table = table_of(listeners)


@pytest.fixture
def driver(listeners: Any) -> Driver:
    return Driver(listeners)


def test_a_command_has_the_drivers_id_of_its_connection(driver: Driver, spans: Spans) -> None:
    driver.connections.connection_checked_out(checked_out(4))
    driver.commands.started(started({"find": "orders"}))
    driver.commands.succeeded(succeeded("find"))
    driver.connections.connection_checked_in(checked_in(4))

    assert attributes(spans.one())["db.mongodb.driver_connection_id"] == 4


def test_a_command_whose_end_is_never_published_ends_when_its_connection_is_given_back(
    driver: Driver, spans: Spans
) -> None:
    # As up to PyMongo 4.20.0, after a cancelled task or an interrupted thread.
    driver.connections.connection_checked_out(checked_out(4))
    driver.commands.started(started({"find": "orders"}))
    driver.connections.connection_checked_in(checked_in(4))
    driver.connections.connection_closed(connection_closed(4))

    span = spans.one("find orders")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert attributes(span)["error.type"] == "interrupted"
    assert len(driver.table) == 0


def test_an_interrupted_command_doesnt_keep_its_id_from_another_client(driver: Driver, spans: Spans) -> None:
    other = Spans()
    for each in (driver, Driver(event_listeners(tracer_provider=other.provider))):
        each.connections.connection_checked_out(checked_out(4))
        each.commands.started(started({"getMore": 12, "collection": "orders"}, request_id=0))
        each.connections.connection_checked_in(checked_in(4))

    assert (spans.names, other.names) == (["getMore orders"], ["getMore orders"])


def test_authentication_whose_end_is_never_published_ends_when_its_connection_is_closed(
    driver: Driver, spans: Spans
) -> None:
    # The driver authenticates before a connection is checked out, so it never comes to be checked in.
    driver.connections.connection_created(connection_created(4))
    driver.commands.started(started({"saslStart": 1}, database="admin"))
    driver.connections.connection_closed(connection_closed(4))

    told = attributes(spans.one("saslStart admin"))
    assert (told["error.type"], told["db.mongodb.driver_connection_id"]) == ("interrupted", 4)
    assert len(driver.table) == 0


def test_a_connection_that_was_made_is_held_again_when_it_is_checked_out(driver: Driver, spans: Spans) -> None:
    driver.connections.connection_created(connection_created(4))
    driver.commands.started(started({"saslStart": 1}, database="admin"))
    driver.commands.succeeded(succeeded("saslStart"))
    driver.connections.connection_ready(connection_ready(4))
    driver.commands.started(started({"ping": 1}))
    driver.commands.succeeded(succeeded("ping"))
    driver.connections.connection_checked_out(checked_out(4))
    driver.commands.started(started({"find": "orders"}))
    driver.commands.succeeded(succeeded("find"))
    driver.connections.connection_checked_in(checked_in(4))

    assert [attributes(span).get("db.mongodb.driver_connection_id") for span in spans.finished] == [4, None, 4]


def test_a_command_of_a_hook_is_not_taken_for_the_one_around_it(spans: Spans) -> None:
    def hook(span: Any, event: Any) -> None:
        if event.command_name == "find":
            made.connections.connection_checked_out(checked_out(5))
            made.commands.started(started({"ping": 1}, request_id=2, server_connection_id=8))
            made.commands.succeeded(succeeded("ping", request_id=2, server_connection_id=8))
            made.connections.connection_checked_in(checked_in(5))

    made = Driver(event_listeners(tracer_provider=spans.provider, request_hook=hook))
    made.connections.connection_checked_out(checked_out(4))
    made.commands.started(started({"find": "orders"}))
    assert len(made.table) == 1

    made.commands.failed(failed("find", {"errtype": "AutoReconnect"}))
    made.connections.connection_checked_in(checked_in(4))

    assert [(span.name, attributes(span)["db.mongodb.driver_connection_id"]) for span in spans.finished] == [
        ("ping shop", 5),
        ("find orders", 4),
    ]
    assert attributes(spans.one("find orders"))["error.type"] == "AutoReconnect"


def test_a_connection_that_somebody_else_gives_back_ends_nothing(driver: Driver, spans: Spans) -> None:
    driver.connections.connection_checked_out(checked_out(4))
    driver.commands.started(started({"find": "orders"}))
    driver.connections.connection_checked_in(checked_in(99))
    driver.connections.connection_closed(connection_closed(99))
    assert spans.names == []

    driver.commands.succeeded(succeeded("find"))
    driver.connections.connection_checked_in(checked_in(4))
    assert spans.one("find orders").status.status_code is StatusCode.UNSET


def test_two_clients_of_one_server_have_connections_of_one_number(driver: Driver, spans: Spans) -> None:
    first, second = ("".join(["db.", "example"]), 27017), ("".join(["db.", "example"]), 27017)
    driver.connections.connection_checked_out(checked_out(1, second))
    driver.connections.connection_checked_out(checked_out(1, first))
    driver.commands.started(started({"find": "orders"}, address=first))
    # As the garbage collector does, in the middle of another client's command.
    driver.connections.connection_checked_in(checked_in(1, second))
    driver.connections.connection_closed(connection_closed(1, second))
    assert spans.names == []

    driver.commands.succeeded(succeeded("find", address=first))
    driver.connections.connection_checked_in(checked_in(1, first))
    assert spans.one("find orders").status.status_code is StatusCode.UNSET


def test_a_connection_of_another_clients_that_was_taken_elsewhere_ends_nothing(driver: Driver, spans: Spans) -> None:
    first, second = ("".join(["db.", "example"]), 27017), ("".join(["db.", "example"]), 27017)
    driver.connections.connection_checked_out(checked_out(1, first))
    driver.commands.started(started({"find": "orders"}, address=first))
    driver.connections.connection_checked_in(checked_in(1, second))
    assert spans.names == []

    driver.commands.succeeded(succeeded("find", address=first))
    driver.connections.connection_checked_in(checked_in(1, first))
    assert spans.one("find orders").status.status_code is StatusCode.UNSET


def run(driver: Driver, connection_id: int, request_id: int = 1, **checkout: Any) -> None:
    """One command on a connection that is checked out for it."""
    identity: dict[str, Any] = {"request_id": request_id, "server_connection_id": 70 + connection_id}
    driver.connections.connection_check_out_started(check_out_started())
    driver.connections.connection_checked_out(checked_out(connection_id, **checkout))
    driver.commands.started(started({"find": "orders"}, **identity))
    driver.commands.succeeded(succeeded("find", **identity))
    driver.connections.connection_checked_in(checked_in(connection_id))


def told(spans: Spans) -> list[tuple[Any, Any]]:
    """The connection of each command, and how long it waited for that."""
    each = [attributes(span) for span in spans.finished]
    return [
        (known["db.mongodb.driver_connection_id"], known.get("mongodb.client.connection.wait_time")) for known in each
    ]


@pytest.mark.skipif(not POOL_EVENTS_HAVE_DURATIONS, reason="older drivers don't say how long a checkout took")
def test_a_connection_that_is_checked_out_again_tells_nothing_of_the_last_time(driver: Driver, spans: Spans) -> None:
    run(driver, 4, duration=0.5)
    run(driver, 4, duration=0.0001)
    run(driver, 5, duration=0.25)

    assert told(spans) == [(4, 0.5), (4, None), (5, 0.25)]


def test_a_delay_that_no_command_has_told_is_not_that_of_the_next_checkout(driver: Driver, spans: Spans) -> None:
    driver.connections.connection_checked_out(checked_out(4, duration=0.5))
    driver.connections.connection_checked_in(checked_in(4))
    run(driver, 4, duration=0.0001)

    assert told(spans) == [(4, None)]


def test_the_record_of_a_connection_that_was_returned_is_not_used_again(driver: Driver) -> None:
    # A task or thread that has a copy of the context has the record, too.
    run(driver, 4)
    (first,) = held_connections()
    run(driver, 4)
    (second,) = held_connections()

    assert second is not first


def test_a_task_runs_its_commands_on_its_own_connection_and_not_on_its_parents(driver: Driver, spans: Spans) -> None:
    run(driver, 4, duration=0.0001)
    task = contextvars.copy_context()  # it has the record of the parent's connection, too

    driver.connections.connection_checked_out(checked_out(4, duration=0.0001))
    driver.commands.started(started({"find": "parents"}, request_id=2))
    task.run(run, driver, 5, 3, duration=0.0001)
    task.run(run, driver, 5, 4, duration=0.0001)
    driver.commands.succeeded(succeeded("find", request_id=2))
    driver.connections.connection_checked_in(checked_in(4))
    task.run(run, driver, 4, 5, duration=0.0001)

    assert [connection_id for connection_id, _ in told(spans)] == [4, 5, 5, 4, 4]
    assert (driver.connections.guard.failures, len(driver.table)) == ({}, 0)


def test_a_thread_that_ran_a_command_keeps_nothing_of_a_listener(spans: Spans) -> None:
    driver = Driver(event_listeners(tracer_provider=spans.provider))
    run(driver, 4)
    table = weakref.ref(driver.table)
    assert held_connections()

    del driver
    gc.collect()
    assert table() is None


@pytest.mark.parametrize("is_on", [True, False])
def test_without_anything_to_receive_it_no_connection_is_tracked(is_on: bool, spans: Spans) -> None:
    providers = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}
    driver = Driver(event_listeners(**providers if is_on else {"tracer_provider": spans.provider}))
    if not is_on:
        driver.commands._switch.telemetry = None
    driver.connections.connection_checked_out(checked_out(4))
    assert held_connections() == ()
    driver.connections.connection_checked_in(checked_in(4))
    run(driver, 4)

    assert (held_connections(), spans.names, driver.connections.guard.failures) == ((), [], {})


def test_an_odd_event_is_passed_over(driver: Driver, spans: Spans) -> None:
    odd: Any = object()
    set_delay(1.5, ADDRESS)
    driver.connections.connection_check_out_started(odd)
    driver.connections.connection_checked_out(odd)
    run(driver, 4, duration=0.0001)
    driver.connections.connection_checked_out(checked_out(4))
    driver.connections.connection_checked_in(odd)
    driver.connections.connection_checked_in(checked_in(4))

    assert told(spans) == [(4, None)]
    assert sorted(place for place, _ in driver.connections.guard.failures) == [
        "ConnectionEvents.connection_check_out_started",
        "ConnectionEvents.connection_checked_in",
        "ConnectionEvents.connection_checked_out",
    ]


def test_a_wait_for_a_server_is_told_even_if_that_for_the_connection_is_unknown(driver: Driver, spans: Spans) -> None:
    set_delay(1.5, ADDRESS)
    driver.connections.connection_check_out_started(check_out_started())
    driver.connections.connection_checked_out(checked_out(4, duration=None))
    driver.commands.started(started({"find": "orders"}))
    driver.commands.succeeded(succeeded("find"))
    driver.connections.connection_checked_in(checked_in(4))

    assert attributes(spans.one())["mongodb.client.server_selection.wait_time"] == 1.5
