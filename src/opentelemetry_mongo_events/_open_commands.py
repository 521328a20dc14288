"""The commands that are open, each with all that it takes to end it."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import weakref
from typing import TYPE_CHECKING, Final, TypeAlias

from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._semconv import ERROR_TYPE, INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from opentelemetry_mongo_events._held_connections import HeldConnection
    from opentelemetry_mongo_events._telemetry import Telemetry

_logger = logging.getLogger("opentelemetry_mongo_events")

LIMIT: Final = 10_000


# What tells open commands apart: request id, address, the server's id of the connection, and the connection itself
# where the current thread or task is known to hold it. The request id alone would not do: PyMongo takes it from an
# unseeded random generator, and all further replies of an exhaust cursor have the id 0. Nor would the server's id of
# the connection: old drivers don't tell it, and there are servers that give all connections the same.
Key: TypeAlias = tuple[int, "tuple[str, int | None] | None", "int | None", "HeldConnection | None"]


class OpenCommand:
    """A command that was sent and whose outcome is awaited."""

    __slots__ = ("attempt", "continued_cursor", "key", "operation_id", "span", "telemetry")

    def __init__(
        self,
        key: Key,
        operation_id: int | None,
        attempt: int,
        continued_cursor: int | None,
        span: Span,
        telemetry: Telemetry,
    ) -> None:
        self.key = key
        self.operation_id = operation_id
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

    It has no lock: each step is one operation of a dictionary. A lock would deadlock where a finalizer or a signal
    handler runs a command while it is held, and in the child of a process that forks meanwhile.
    """

    __slots__ = ("__weakref__", "_commands", "_untraced", "untraced")

    def __init__(self) -> None:
        self._commands: dict[Key, OpenCommand] = {}
        self._untraced = itertools.count(1)
        self.untraced = 0
        """How many commands got no span because the table was full."""
        _tables().add(self)

    def __len__(self) -> int:
        return len(self._commands)

    def has_room(self) -> bool:
        """Whether one more command may be opened; if not, it is counted, and the first is a warning."""
        if len(self._commands) < LIMIT:
            return True
        self.untraced = next(self._untraced)
        if self.untraced == 1:
            _logger.warning(
                "%s commands are open: those that start now get no span until some have ended (this is logged once)",
                f"{LIMIT:,}",
            )
        return False

    def add(self, command: OpenCommand) -> None:
        """Note an open command. One that has the same key can't be told apart any more: it is ended as interrupted."""
        displaced = self._commands.pop(command.key, None)
        self._commands[command.key] = command
        held = command.key[3]
        if held is not None:
            held.command = command
        if displaced is not None:
            _detach(displaced)
            displaced.interrupt()

    def take(self, key: Key) -> OpenCommand | None:
        """Take the command out, or None where it isn't known: not observed when it started, or ended before."""
        command = self._commands.pop(key, None)
        if command is not None:
            _detach(command)
        return command

    def take_abandoned(self, held: HeldConnection) -> OpenCommand | None:
        """Take out the command that is still attached to a connection which its thread or task gives back."""
        command = held.command
        if command is None or self._commands.get(command.key) is not command:
            return None
        return self.take(command.key)

    def forget(self) -> None:
        """Drop all without ending them: after a fork they are the parent's."""
        self._commands = {}


def _detach(command: OpenCommand) -> None:
    held = command.key[3]
    if held is not None and held.command is command:
        held.command = None


@functools.cache
def _tables() -> weakref.WeakSet[OpenCommands]:
    """All tables. What is registered with `os` can't be taken out again, so it is registered once, for all of them."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=_forget_all)
    return weakref.WeakSet()


def _forget_all() -> None:
    for table in _tables():
        table.forget()
