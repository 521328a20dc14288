"""The table of open commands."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context

from opentelemetry_mongo_events._commands import open_commands
from opentelemetry_mongo_events._commands.held_connections import (
    HeldConnection,
    find_connection_of,
    find_free_connection,
    hold,
)
from opentelemetry_mongo_events._commands.open_commands import OpenCommand, OpenCommands
from opentelemetry_mongo_events._commands.outcome import Outcome
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._servers import reports
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._telemetry.telemetry import telemetry_from
from tests.spans import Spans, attributes, events

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry_mongo_events._driver.versions import CommandId

ADDRESS = ("db.example", 27017)


def held_connection(table: OpenCommands, connection_id: int | None) -> HeldConnection:
    held = HeldConnection(table, ADDRESS, connection_id)
    hold(held)
    return held


@pytest.fixture
def table() -> OpenCommands:
    return OpenCommands()


@pytest.fixture
def open_command(spans: Spans, table: OpenCommands) -> Callable[..., OpenCommand]:
    def opened(request_id: int, held: HeldConnection | None = None) -> OpenCommand:
        held = held or held_connection(table, 1)
        command_id: CommandId = (request_id, ADDRESS, 42)
        span = spans.tracer.start_span(f"{request_id}")
        telemetry = telemetry_from({}, other_tracers=None)
        return OpenCommand(command_id, held, span, None, Context(), telemetry)

    return opened


def test_what_is_added_can_be_taken_once(table: OpenCommands, open_command: Callable[..., OpenCommand]) -> None:
    command = open_command(1)
    table.add(command)
    assert command.held.command is command

    assert table.take(command.command_id, command.held) is command
    assert command.held.command is None
    assert (table.take(command.command_id, command.held), len(table)) == (None, 0)


def test_a_command_that_ends_where_its_connection_is_not_held_is_found(
    table: OpenCommands, open_command: Callable[..., OpenCommand]
) -> None:
    command = open_command(1)
    table.add(command)

    assert table.take(command.command_id, None) is command
    assert (command.held.command, len(table)) == (None, 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_one_id_on_several_connections_is_several_commands(
    table: OpenCommands, open_command: Callable[..., OpenCommand], order: tuple[int, ...]
) -> None:
    commands = [open_command(0) for _ in order]
    for command in commands:
        table.add(command)
    assert len(table) == 3

    for number in order:
        assert table.take(commands[number].command_id, commands[number].held) is commands[number]
    assert len(table) == 0
    assert table.take(commands[0].command_id, None) is None


def test_a_connection_of_another_thread_is_forgotten_with_its_command(
    table: OpenCommands, open_command: Callable[..., OpenCommand]
) -> None:
    held = held_connection(table, None)
    command = open_command(1, held)
    table.add(command)
    assert find_connection_of(table, command.command_id) is held

    table.take(command.command_id, held)

    assert find_connection_of(table, command.command_id) is None
    assert find_free_connection(table, (1, ADDRESS, 42)) is None


def test_a_full_table_takes_no_more_and_says_so_once(
    table: OpenCommands,
    open_command: Callable[..., OpenCommand],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(open_commands, "LIMIT", 2)
    commands = [open_command(number) for number in (1, 2)]
    for command in commands:
        assert table.has_room()
        table.add(command)

    assert [table.has_room() for _ in range(3)] == [False] * 3
    assert table.rejected == 3
    assert caplog.messages == [
        "2 commands are in progress: new ones are not instrumented until some have ended (logged once)"
    ]

    table.take(commands[0].command_id, commands[0].held)
    assert table.has_room()


def test_ten_thousand_is_the_limit() -> None:
    assert open_commands.LIMIT == 10_000


def test_what_is_open_on_a_connection_can_be_taken_from_it(
    table: OpenCommands, open_command: Callable[..., OpenCommand]
) -> None:
    command = open_command(1)
    assert table.take_abandoned(command.held) is None
    table.add(command)

    assert table.take_abandoned(command.held) is command
    assert (table.take_abandoned(command.held), len(table)) == (None, 0)


def test_what_was_forgotten_is_not_taken_from_its_connection(
    table: OpenCommands, open_command: Callable[..., OpenCommand]
) -> None:
    command = open_command(1)
    table.add(command)

    table.forget()

    assert (table.take_abandoned(command.held), len(table)) == (None, 0)


def test_a_span_that_a_hook_has_ended_stays_as_it_is(open_command: Callable[..., OpenCommand], spans: Spans) -> None:
    command = open_command(1)
    assert command.span is not None
    command.span.end()

    command.close(Outcome({"a": 1}, "an error"))

    assert attributes(spans.one("1")) == {}


def test_a_command_keeps_what_happens_to_its_server_from_its_start_on(
    spans: Spans, open_command: Callable[..., OpenCommand]
) -> None:
    command = open_command(1)
    command.note(BackgroundEvent("before", {}, moment(command.since - 0.001)))
    for number in range(100):
        command.note(BackgroundEvent(f"{number}", {}, moment(command.since + number)))
    command.close(Outcome({}, None))

    # The first ones tell why it is slow.
    assert events(spans.one()) == [f"{number}" for number in range(32)]


def test_commands_are_found_by_the_drivers_own_address(
    table: OpenCommands, open_command: Callable[..., OpenCommand]
) -> None:
    commands = [open_command(number, held_connection(table, number)) for number in (0, 0, 1)]
    for command in commands:
        table.add(command)

    here, elsewhere = BackgroundEvent("here", {}), BackgroundEvent("elsewhere", {})
    table.note(here, {id(ADDRESS)})
    table.note(elsewhere, {id(("db.example", int("27017")))})
    assert [command.events for command in commands] == [(here,)] * 3


class Gone:
    """What nothing refers to."""


def test_a_table_that_is_gone_is_told_of_no_event() -> None:
    """As where it was collected, and the callback that forgets it has still to run."""
    gone = Gone()
    reference: weakref.ref[Any] = weakref.ref(gone)
    subscribers: dict[weakref.ref[Any], None] = reports._subscribers
    subscribers[reference] = None
    del gone
    gc.collect()
    assert reference() is None
    try:
        reports.report(BackgroundEvent("here", {}), telemetry_from({}, other_tracers=None), None, {id(ADDRESS)})
    finally:
        del subscribers[reference]
