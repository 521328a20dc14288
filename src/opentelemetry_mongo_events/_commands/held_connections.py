"""Tracks the connections that each thread or task holds, to find the connection of each command.

Command events have no driver connection id, and pool events have no request id. This module connects the two: it
records a connection when the driver hands it to a thread or task, and a command that starts there is assigned to the
connection. If a connection is returned while a command is assigned to it, the driver never published the command's end.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._driver.versions import CommandId
    from opentelemetry_mongo_events._servers.failed_checkouts import FailedCheckouts

# A thread or task holds one connection, or a few if a hook runs commands of its own. More records remain if another
# thread or task closes cursors and returns their connections; the oldest ones are dropped first.
_LIMIT: Final = 16


class HeldCommand(Protocol):
    """A command in progress on a connection."""

    command_id: CommandId


class Delays(NamedTuple):
    """What delayed the first command on a connection that was checked out.

    Attributes:
        wait_time: The seconds that the checkout took, and those before it that failed; None if that is unknown or too
            short to be reported.
        selection_wait_time: The seconds that the selection of the server waited before; None if it didn't wait.
        failed_checkouts: The checkouts of the same operation that failed before; None if there are none.
    """

    wait_time: float | None = None
    selection_wait_time: float | None = None
    failed_checkouts: FailedCheckouts | None = None


NO_DELAYS: Final = Delays()


class HeldConnection:
    """A connection, and the command in progress on it.

    Args:
        owner: Identifies the listener.
        address: The driver's address object of the pool.
        connection_id: The driver's id of the connection; None if another thread or task checked it out.
        is_establishing: Whether the driver is still establishing the connection. It authenticates before it hands out
            the connection.

    Attributes:
        owner: The argument; None once the connection was returned. Several listeners may receive the events of a
            client, and each has its own records.
        pool: The `id()` of the address object. If the connection is never returned, this record exists as long as the
            thread, and a reference to the address would make the client seem to exist as long, too.
        connection_id: The argument.
        is_establishing: The argument.
        server_connection_id: The server's id of the connection; None until a command has reported it.
        command: The command in progress.
        delays: What delayed the next command; None if nothing did, as for nearly every command.
    """

    __slots__ = (
        "command",
        "connection_id",
        "delays",
        "is_establishing",
        "owner",
        "pool",
        "server_connection_id",
    )

    def __init__(
        self, owner: object, address: Address | None, connection_id: int | None, is_establishing: bool = False
    ) -> None:
        self.owner: object | None = owner
        self.pool = id(address)
        self.connection_id = connection_id
        self.is_establishing = is_establishing
        self.server_connection_id: int | None = None
        self.command: HeldCommand | None = None
        self.delays: Delays | None = None


# A tuple, not a list: a task starts with a copy of its parent's context, but must not change its parent's connections.
_held: ContextVar[tuple[HeldConnection, ...]] = ContextVar("opentelemetry_mongo_events_held_connections", default=())

held_connections: Final = _held.get
"""Returns the connections that the current thread or task holds, the newest last.

A connection that was returned may be left there until the next one is checked out, which is faster than to remove it.
Its record has no owner, and is never used again: other threads and tasks may have copied the context, with the record.
"""


def hold(connection: HeldConnection) -> None:
    """Record that the current thread or task holds a connection."""
    held = _held.get()
    if not held or (held[-1].owner is None and len(held) == 1):  # the usual case
        _held.set((connection,))
    else:
        held = tuple([other for other in held if other.owner is not None])
        _held.set((*held[-_LIMIT + 1 :], connection))


def release(owner: object, address: Any, connection_id: int, *, is_establishing: bool = False) -> HeldConnection | None:
    """Record that a connection was returned, or that it was established.

    If another thread or task checked the connection out and the current one returns it, it is the connection without an
    id on which the current thread or task has a command in progress.

    Returns:
        The record of the connection, or None if the current thread or task doesn't hold it.
    """
    without_id = None
    for connection in reversed(_held.get()):
        if (
            connection.owner is owner
            and connection.pool == id(address)
            and connection.is_establishing is is_establishing
        ):
            if connection.connection_id == connection_id:
                forget(connection)
                return connection
            if connection.connection_id is None and connection.command is not None and without_id is None:
                without_id = connection
    if without_id is not None:
        forget(without_id)
    return without_id


def forget(connection: HeldConnection) -> None:
    """Remove a connection from those that the current thread or task holds."""
    connection.owner = None
    held = _held.get()
    if held and held[-1] is connection:  # the usual case
        _held.set(held[:-1])
    else:
        _held.set(tuple([other for other in held if other is not connection]))


def find_free_connection(owner: object, command_id: CommandId) -> HeldConnection | None:
    """Find the connection for a command that starts now in the current thread or task.

    This is the newest connection to the address without a command in progress: a connection runs one command at a time.
    The server's id of the connection, if known, distinguishes a connection that is pinned to a cursor from others.
    """
    _, address, server_connection_id = command_id
    held = _held.get()
    if not held:
        return None
    for connection in reversed(held):
        # A connection without an id was recorded for a single command, which has ended. A copied context may still have
        # the record.
        if connection.connection_id is None:
            continue
        if connection.pool == id(address) and connection.command is None and connection.owner is owner:
            known = connection.server_connection_id
            if known is None or known == server_connection_id:
                connection.server_connection_id = server_connection_id
                return connection
    return None


def find_connection_of(owner: object, command_id: CommandId) -> HeldConnection | None:
    """Find the connection on which the current thread or task has a command in progress."""
    for connection in reversed(_held.get()):
        command = connection.command
        if command is not None and connection.owner is owner and command.command_id == command_id:
            return connection
    return None
