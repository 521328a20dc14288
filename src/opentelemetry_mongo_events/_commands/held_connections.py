"""The connections that the current thread or task holds: which one a command runs on, and what was open on it.

Command events carry no driver connection id, and the pool's events no request id. The two meet here: a connection is
noted when the driver hands it to a thread or task, a command that starts there is attached to it, and a connection that
is given back with a command still attached tells of a command whose end was never published.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry_mongo_events._driver.identity import Identity, identity

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.versions import CommandId

# A thread or task holds one connection, or a few where a hook runs a command of its own. More are left behind by
# cursors that were closed by somebody else; these are forgotten first.
_LIMIT: Final = 16


class HeldCommand(Protocol):
    """A command that is open on a connection."""

    command_id: CommandId


class HeldConnection:
    """A connection, and the command that is open on it.

    Attributes:
        owner: Tells listeners apart: two of them may see one client, and each keeps its own notes.
        identity: That of its pool. Not the address itself: one that is never given back, and stays noted here as long
            as its thread lives, would make it look as if its client did.
        connection_id: The driver's number of the connection; None where another thread or task was given it.
        being_made: Whether the driver is still making it: it authenticates on a connection before it hands it out.
        server_connection_id: The server's number, once a command has told it.
        command: What is open on it.
        wait_time: How many seconds were waited for it; None once a command has told it, or where it isn't known.
    """

    __slots__ = ("being_made", "command", "connection_id", "identity", "owner", "server_connection_id", "wait_time")

    def __init__(self, owner: object, identity: Identity, connection_id: int | None, being_made: bool) -> None:
        self.owner = owner
        self.identity = identity
        self.connection_id = connection_id
        self.being_made = being_made
        self.server_connection_id: int | None = None
        self.command: HeldCommand | None = None
        self.wait_time: float | None = None


# A tuple, not a list: a task starts with a copy of its parent's context, and what it holds is not its parent's.
_held: ContextVar[tuple[HeldConnection, ...]] = ContextVar("opentelemetry_mongo_events_held_connections", default=())

held_here: Final = _held.get
"""Those which the current thread or task holds, the newest last."""


def hold(owner: object, address: Any, connection_id: int | None, *, being_made: bool = False) -> HeldConnection:
    """Note that the current thread or task got a connection."""
    connection = HeldConnection(owner, identity(address), connection_id, being_made)
    held = _held.get()
    _held.set((*held[-_LIMIT + 1 :], connection) if held else (connection,))
    return connection


def release(owner: object, address: Any, connection_id: int, *, being_made: bool = False) -> HeldConnection | None:
    """Note that a connection was given back, or is made; what was noted of it, if it was held here.

    One that was given to another thread or task, and is given back in this one, is the one on which a command is open
    here.
    """
    unknown = None
    for connection in reversed(_held.get()):
        if connection.identity.address is address and connection.owner is owner and connection.being_made is being_made:
            if connection.connection_id == connection_id:
                let_go(connection)
                return connection
            if connection.connection_id is None and connection.command is not None and unknown is None:
                unknown = connection
    if unknown is not None:
        let_go(unknown)
    return unknown


def let_go(connection: HeldConnection) -> None:
    """Forget a connection."""
    held = _held.get()
    if held and held[-1] is connection:  # as a rule
        _held.set(held[:-1])
    else:
        _held.set(tuple([each for each in held if each is not connection]))


def held_connection(owner: object, command_id: CommandId) -> HeldConnection | None:
    """The connection that a command which starts now runs on.

    The newest one to that address which is free: a connection runs one command at a time. The server's own id of the
    connection, where it is known, tells a pinned cursor's connection from another one.
    """
    _, address, server_connection_id = command_id
    held = _held.get()
    if not held:
        return None
    for connection in reversed(held):
        # Without a number it was noted for one command, which has ended; a copied context may still hold it.
        if connection.connection_id is None:
            continue
        if connection.identity.address is address and connection.command is None and connection.owner is owner:
            known = connection.server_connection_id
            if known is None or known == server_connection_id:
                connection.server_connection_id = server_connection_id
                return connection
    return None


def holder(owner: object, command_id: CommandId) -> HeldConnection | None:
    """The connection on which the current thread or task has that command open."""
    for connection in reversed(_held.get()):
        command = connection.command
        if command is not None and connection.owner is owner and command.command_id == command_id:
            return connection
    return None
