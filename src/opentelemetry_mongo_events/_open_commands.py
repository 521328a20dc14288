"""The commands that are open, each with all that it takes to end it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, TypeAlias

from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._held_connections import let_go
from opentelemetry_mongo_events._log import warn
from opentelemetry_mongo_events._process_state import keep_track
from opentelemetry_mongo_events._semconv import ERROR_TYPE, INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from opentelemetry_mongo_events._held_connections import HeldConnection
    from opentelemetry_mongo_events._telemetry import Telemetry

LIMIT: Final = 10_000


# Request id, address, and the server's id of the connection.
CommandId: TypeAlias = tuple[int, "tuple[str, int | None] | None", "int | None"]


class OpenCommand:
    """A command that was sent and whose outcome is awaited."""

    __slots__ = ("attempt", "command_id", "continued_cursor", "held", "operation_id", "span", "telemetry", "txn_number")

    def __init__(
        self,
        command_id: CommandId,
        held: HeldConnection,
        operation_id: int | None,
        txn_number: int | None,
        attempt: int,
        continued_cursor: int | None,
        span: Span,
        telemetry: Telemetry,
    ) -> None:
        self.command_id = command_id
        self.held = held
        self.operation_id = operation_id
        self.txn_number = txn_number
        self.attempt = attempt
        self.continued_cursor = continued_cursor
        self.span = span
        self.telemetry = telemetry

    def close(self, attributes: Mapping[str, AttributeValue], error: str | None) -> None:
        """End the span, with what the outcome adds to it and, if it is an error, the status description `error`.

        A hook may have ended the span before: then it stays as it is.
        """
        if not self.span.is_recording():
            return
        try:
            for name, value in attributes.items():
                self.span.set_attribute(name, value)
            if error is not None:
                self.span.set_status(Status(StatusCode.ERROR, error))
        finally:
            self.span.end()

    def interrupt(self) -> None:
        """End the span of a command whose outcome will never be known."""
        self.close({ERROR_TYPE: INTERRUPTED}, INTERRUPTED)


class OpenCommands:
    """A bounded table of the open commands, used from any thread.

    Command ids come twice: PyMongo takes request ids from an unseeded random generator, all further replies of an
    exhaust cursor have the id 0, and there are drivers that tell no server's id of the connection and servers that give
    all connections the same. So a command whose id is taken stands in a second table, under the connection that its
    thread or task holds.

    There is no lock: each step is one operation of a dictionary. A lock would deadlock where a finalizer or a signal
    handler runs a command while it is held, and in the child of a process that forks meanwhile.
    """

    __slots__ = ("__weakref__", "_commands", "_twins", "_untraced", "untraced")

    def __init__(self) -> None:
        self._commands: dict[CommandId, OpenCommand] = {}
        self._twins: dict[tuple[CommandId, HeldConnection], OpenCommand] = {}
        self._untraced = itertools.count(1)
        self.untraced = 0
        """How many commands got no span because the table was full."""
        keep_track(self)

    def __len__(self) -> int:
        return len(self._commands) + len(self._twins)

    def has_room(self) -> bool:
        """Whether one more command may be opened; if not, it is counted, and the first is a warning."""
        if len(self) < LIMIT:
            return True
        self.untraced = next(self._untraced)
        if self.untraced == 1:
            warn(
                "%s commands are open: those that start now get no span until some have ended (this is logged once)",
                f"{LIMIT:,}",
            )
        return False

    def add(self, command: OpenCommand) -> None:
        """Note an open command, here and on its connection."""
        command.held.command = command
        if self._commands.setdefault(command.command_id, command) is not command:
            self._twins[command.command_id, command.held] = command

    def take(self, command_id: CommandId, held: HeldConnection | None) -> OpenCommand | None:
        """Take a command out.

        Args:
            command_id: Its id.
            held: The connection on which the current thread or task has it open, if it does. The driver may also end a
                command in another context: that of the garbage collector, for a task whose event loop is gone.

        Returns:
            The command, or None where it isn't known: it was not observed when it started, or has ended before.
        """
        command = self._commands.get(command_id)
        if command is not None and (held is None or command.held is held):
            command = self._commands.pop(command_id, None)
        else:
            command = None if held is None else self._twins.pop((command_id, held), None)
        if command is not None:
            command.held.command = None
            if command.held.connection_id is None:
                let_go(command.held)
        return command

    def take_abandoned(self, held: HeldConnection) -> OpenCommand | None:
        """Take out the command that is still open on a connection which its thread or task gives back."""
        command = held.command
        return None if command is None else self.take(command.command_id, held)

    def forget(self) -> None:
        """Drop all without ending them: after a fork they are the parent's."""
        self._commands = {}
        self._twins = {}
