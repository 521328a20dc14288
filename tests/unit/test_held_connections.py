"""Which connection the current thread or task holds."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry_mongo_events._commands import held_connections
from opentelemetry_mongo_events._commands.held_connections import (
    HeldConnection,
    _held,
    find_connection_of,
    find_free_connection,
    release,
)

HERE = ("db.example", 27017)
THERE = ("db.example", 27018)


class Command:
    """All that is looked at of an open command."""

    def __init__(self, *command_id: Any) -> None:
        self.command_id = command_id


def hold(owner: object, address: Any, connection_id: int | None, *, is_establishing: bool = False) -> HeldConnection:
    connection = HeldConnection(owner, address, connection_id, is_establishing)
    held_connections.hold(connection)
    return connection


def ids() -> list[int | None]:
    return [connection.connection_id for connection in _held.get()]


def connection_id(owner: object, address: Any, server_connection_id: int | None) -> int | None:
    connection = find_free_connection(owner, (1, address, server_connection_id))
    return None if connection is None else connection.connection_id


def test_a_command_runs_on_the_newest_connection_to_its_address() -> None:
    owner = object()
    hold(owner, HERE, 1)
    hold(owner, HERE, 2)
    hold(owner, THERE, 3)

    assert connection_id(owner, HERE, None) == 2
    assert connection_id(owner, THERE, None) == 3
    assert connection_id(owner, ("elsewhere", 1), None) is None
    assert connection_id(object(), HERE, None) is None


def test_a_connection_runs_one_command_at_a_time() -> None:
    owner = object()
    hold(owner, HERE, 1)
    held = find_free_connection(owner, (1, HERE, 7))
    assert held is not None

    held.command = Command(5, HERE, 7)
    assert find_free_connection(owner, (1, HERE, 7)) is None
    assert find_connection_of(owner, (5, HERE, 7)) is held
    assert find_connection_of(owner, (6, HERE, 7)) is None
    assert find_connection_of(owner, (5, THERE, 7)) is None
    assert find_connection_of(owner, (5, HERE, 8)) is None
    assert find_connection_of(object(), (5, HERE, 7)) is None


def test_the_servers_own_id_tells_a_pinned_connection_from_a_newer_one() -> None:
    owner = object()
    hold(owner, HERE, 1)
    assert connection_id(owner, HERE, 71) == 1
    hold(owner, HERE, 2)
    assert connection_id(owner, HERE, 72) == 2

    assert connection_id(owner, HERE, 71) == 1
    assert connection_id(owner, HERE, 73) is None


def test_a_connection_that_is_given_back_is_no_longer_held() -> None:
    owner = object()
    hold(owner, HERE, 1)
    hold(owner, HERE, 2)

    released = release(owner, HERE, 1)

    assert released is not None
    assert ids() == [2]
    assert release(owner, HERE, 1) is None
    assert release(owner, THERE, 2) is None
    assert release(object(), HERE, 2) is None


def test_two_clients_of_one_server_have_connections_with_one_number() -> None:
    # The second is checked out in the middle of a command, by a hook, or while the first is pinned to a cursor.
    owner = object()
    first = hold(owner, HERE, 1)
    second = hold(owner, HERE, 1)

    assert release(owner, HERE, 1) is second
    assert release(owner, HERE, 1) is first


def test_a_connection_that_is_being_made_is_another_than_one_that_was_handed_out() -> None:
    owner = object()
    handed_out = hold(owner, HERE, 1)
    being_made = hold(owner, HERE, 1, is_establishing=True)

    assert release(owner, HERE, 1, is_establishing=True) is being_made
    assert release(owner, HERE, 1, is_establishing=True) is None
    assert release(owner, HERE, 1) is handed_out


def test_a_connection_that_was_given_to_another_thread_is_the_one_with_a_command_open() -> None:
    owner = object()
    hold(owner, HERE, 1)
    unknown = hold(owner, HERE, None)
    assert release(owner, HERE, 5) is None
    unknown.command = Command(5, HERE, 7)

    assert release(owner, HERE, 5, is_establishing=True) is None
    assert release(owner, THERE, 5) is None
    assert release(owner, HERE, 5) is unknown
    assert release(owner, HERE, 5) is None
    assert ids() == [1]


def test_a_connection_without_a_number_is_for_one_command() -> None:
    # A task that was started while the command was open has a copy of the note.
    owner = object()
    hold(owner, HERE, None)

    assert find_free_connection(owner, (1, HERE, 7)) is None


def test_connections_that_somebody_else_gave_back_are_forgotten_in_the_end() -> None:
    owner = object()
    for number in range(100):
        hold(owner, HERE, number)

    assert ids() == list(range(84, 100))


def test_a_task_holds_its_own_connections_and_not_its_parents() -> None:
    owner = object()
    hold(owner, HERE, 1)

    contextvars.copy_context().run(hold, owner, HERE, 2)

    assert ids() == [1]


def test_a_returned_connection_that_is_still_recorded_is_nobodys() -> None:
    # The listener leaves the record of the only connection there, without its owner.
    owner = object()
    hold(owner, HERE, 1).owner = None
    assert find_free_connection(owner, (1, HERE, 7)) is None
    assert release(owner, HERE, 1) is None

    hold(owner, HERE, 2)
    assert ids() == [2]

    hold(owner, HERE, 3).owner = None
    hold(owner, HERE, 4)
    assert ids() == [2, 4]
