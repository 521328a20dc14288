"""The connections that the current thread or task holds: which one a command runs on, and what was open on it.

Command events carry no driver connection id, and the pool's events no request id. The two meet here: a connection is
noted when the driver hands it to a thread or task, a command that starts there is attached to it, and a connection that
is given back with a command still attached tells of a command whose end was never published.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry_mongo_events._open_commands import OpenCommand

# A thread or task holds one connection, or a few where a hook runs a command of its own. More are left behind by
# cursors that were closed by somebody else; these are forgotten first.
_LIMIT: Final = 16


class HeldConnection:
    """A connection, and the command that is open on it.

    `owner` tells listeners apart: two of them may see one client, and each keeps its own notes.
    """

    __slots__ = ("address", "command", "connection_id", "owner", "server_connection_id")

    def __init__(self, owner: object, address: Any, connection_id: int) -> None:
        self.owner = owner
        self.address = address
        self.connection_id = connection_id
        self.server_connection_id: int | None = None
        self.command: OpenCommand | None = None


# A tuple, not a list: a task starts with a copy of its parent's context, and what it holds is not its parent's.
_held: ContextVar[tuple[HeldConnection, ...]] = ContextVar("opentelemetry_mongo_events_held_connections", default=())


def hold(owner: object, address: Any, connection_id: int) -> None:
    """Note that the current thread or task got a connection."""
    held = _held.get()
    if held:
        newest = held[-1]
        if (
            newest.command is None
            and newest.connection_id == connection_id
            and newest.address == address
            and newest.owner is owner
        ):
            return  # a client that has the listener twice tells everything twice
    _held.set((*held[-_LIMIT + 1 :], HeldConnection(owner, address, connection_id)))


def release(owner: object, address: Any, connection_id: int) -> HeldConnection | None:
    """Note that a connection was given back; what was noted of it, if it was this thread or task that held it."""
    held = _held.get()
    for index in range(len(held) - 1, -1, -1):
        connection = held[index]
        if connection.connection_id == connection_id and connection.address == address and connection.owner is owner:
            _held.set(held[:index] + held[index + 1 :])
            return connection
    return None


def held_connection(owner: object, address: Any, server_connection_id: int | None) -> HeldConnection | None:
    """The connection that a command which starts now runs on.

    The newest one to that address which is free: a connection runs one command at a time. The server's own id of the
    connection, where it is known, tells a pinned cursor's connection from another one.
    """
    for connection in reversed(_held.get()):
        if connection.address == address and connection.command is None and connection.owner is owner:
            known = connection.server_connection_id
            if known is None or known == server_connection_id:
                connection.server_connection_id = server_connection_id
                return connection
    return None


def holder(owner: object, address: Any, request_id: int) -> HeldConnection | None:
    """The connection on which the current thread or task has that command open."""
    for connection in reversed(_held.get()):
        command = connection.command
        if (
            command is not None
            and connection.owner is owner
            and connection.address == address
            and command.command_id[0] == request_id
        ):
            return connection
    return None
