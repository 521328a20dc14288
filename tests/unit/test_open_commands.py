"""The table of open commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from opentelemetry_mongo_events import _open_commands
from opentelemetry_mongo_events._held_connections import HeldConnection
from opentelemetry_mongo_events._open_commands import Key, OpenCommand, OpenCommands
from tests.spans import Spans, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = ("db.example", 27017)


@pytest.fixture
def open_command(spans: Spans) -> Callable[..., OpenCommand]:
    def opened(request_id: int, connection: int | None = 7, held: Any = None) -> OpenCommand:
        key: Key = (request_id, ADDRESS, connection, held)
        return OpenCommand(key, request_id, 1, None, spans.tracer.start_span(f"{request_id}"), None)  # type: ignore[arg-type]

    return opened


def test_what_is_added_can_be_taken_once(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    command = open_command(1)
    table.add(command)

    assert (table.take(command.key), table.take(command.key), len(table)) == (command, None, 0)


@pytest.mark.parametrize("connections", [(1, 2), (7, 7), (None, None)])
def test_one_request_id_on_two_connections_is_two_commands(
    open_command: Callable[..., OpenCommand], connections: tuple[int | None, int | None]
) -> None:
    table = OpenCommands()
    first, second = (open_command(0, each, HeldConnection(table, ADDRESS, 1)) for each in connections)
    table.add(first)
    table.add(second)

    assert (table.take(second.key), table.take(first.key)) == (second, first)


def test_what_is_displaced_is_ended(open_command: Callable[..., OpenCommand], spans: Spans) -> None:
    table = OpenCommands()
    held = HeldConnection(table, ADDRESS, 1)
    first, second = open_command(0, held=held), open_command(0, held=held)
    table.add(first)
    table.add(second)

    assert attributes(spans.one("0")) == {"error.type": "interrupted"}
    assert held.command is second
    assert (table.take(second.key), len(table)) == (second, 0)


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

    assert table.take((1, ADDRESS, 7, None)) is not None
    assert table.has_room()


def test_ten_thousand_is_the_limit() -> None:
    assert _open_commands.LIMIT == 10_000


def test_what_is_attached_to_a_connection_can_be_taken_from_it(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    held = HeldConnection(table, ADDRESS, 1)
    command = open_command(1, held=held)
    table.add(command)

    assert (table.take_abandoned(held), table.take_abandoned(held), len(table)) == (command, None, 0)


def test_what_was_forgotten_is_not_taken_from_its_connection(open_command: Callable[..., OpenCommand]) -> None:
    table = OpenCommands()
    held = HeldConnection(table, ADDRESS, 1)
    table.add(open_command(1, held=held))

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
