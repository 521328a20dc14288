"""The table of open commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from opentelemetry_mongo_events import _open_commands
from opentelemetry_mongo_events._held_connections import HeldConnection
from opentelemetry_mongo_events._open_commands import CommandId, OpenCommand, OpenCommands
from tests.spans import Spans, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = ("db.example", 27017)


@pytest.fixture
def open_command(spans: Spans) -> Callable[..., OpenCommand]:
    def opened(request_id: int, held: Any = None, connection: int | None = 42) -> OpenCommand:
        command_id: CommandId = (request_id, ADDRESS, connection)
        return OpenCommand(command_id, held, request_id, 1, None, spans.tracer.start_span(f"{request_id}"), None)  # type: ignore[arg-type]

    return opened


def connection(table: OpenCommands) -> HeldConnection:
    return HeldConnection(table, ADDRESS, 1)


def test_what_is_added_can_be_taken_once(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    held = connection(table)
    command = open_command(1, held)
    table.add(command)
    assert held.command is command

    assert table.take(command.command_id, held) is command
    assert held.command is None
    assert (table.take(command.command_id, held), len(table)) == (None, 0)


def test_a_command_that_ends_where_its_connection_is_not_known_is_found(
    open_command: Callable[..., OpenCommand],
) -> None:
    table = OpenCommands()
    held = connection(table)
    command = open_command(1, held)
    table.add(command)

    assert (table.take(command.command_id, None), held.command, len(table)) == (command, None, 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_one_id_on_several_connections_is_several_commands(
    open_command: Callable[..., OpenCommand], order: tuple[int, ...]
) -> None:
    table = OpenCommands()
    connections = [connection(table) for _ in order]
    commands = [open_command(0, held) for held in connections]
    for command in commands:
        table.add(command)
    assert len(table) == 3

    for number in order:
        assert table.take(commands[number].command_id, connections[number]) is commands[number]
    assert len(table) == 0


def test_twins_on_unknown_connections_both_end(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    first, second = open_command(0), open_command(0)
    table.add(first)
    table.add(second)

    assert {table.take(first.command_id, None), table.take(first.command_id, None)} == {first, second}
    assert len(table) == 0


def test_what_is_displaced_is_ended(open_command: Callable[..., OpenCommand], spans: Spans) -> None:
    table = OpenCommands()
    commands = [open_command(0) for _ in range(3)]
    for command in commands:
        table.add(command)

    assert attributes(spans.one("0")) == {"error.type": "interrupted"}
    assert len(table) == 2
    assert {table.take(commands[0].command_id, None) for _ in range(2)} == {commands[0], commands[2]}


def test_a_full_table_takes_no_more_and_says_so_once(
    open_command: Callable[..., OpenCommand], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_open_commands, "LIMIT", 2)
    table = OpenCommands()
    for number in (1, 2):
        assert table.has_room()
        table.add(open_command(number))

    assert [table.has_room() for _ in range(3)] == [False] * 3
    assert table.untraced == 3
    assert caplog.messages == [
        "2 commands are open: those that start now get no span until some have ended (this is logged once)"
    ]

    assert table.take((1, ADDRESS, 42), None) is not None
    assert table.has_room()


def test_ten_thousand_is_the_limit() -> None:
    assert _open_commands.LIMIT == 10_000


def test_what_is_open_on_a_connection_can_be_taken_from_it(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    held = connection(table)
    assert table.take_abandoned(held) is None
    command = open_command(1, held)
    table.add(command)

    assert (table.take_abandoned(held), table.take_abandoned(held), len(table)) == (command, None, 0)


def test_what_was_forgotten_is_not_taken_from_its_connection(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    held = connection(table)
    table.add(open_command(1, held))

    table.forget()

    assert (table.take_abandoned(held), len(table)) == (None, 0)


def test_after_a_fork_the_child_forgets_all_of_it(open_command: Callable[..., OpenCommand]) -> None:
    tables = [OpenCommands(), OpenCommands()]
    for table in tables:
        table.add(open_command(1))

    _open_commands._forget_all()

    assert [len(table) for table in tables] == [0, 0]


def test_where_there_is_no_fork_none_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)

    assert len(_open_commands._tables.__wrapped__()) == 0


def test_a_span_that_a_hook_has_ended_stays_as_it_is(open_command: Callable[..., OpenCommand], spans: Spans) -> None:
    command = open_command(1)
    command.span.end()

    command.close({"a": 1}, "an error")

    assert attributes(spans.one("1")) == {}
