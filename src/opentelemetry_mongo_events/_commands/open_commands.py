"""The table of open commands: commands in progress, each with everything that is needed to end its span."""

from __future__ import annotations

import itertools
from time import monotonic
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._commands.driver_spans import add_events
from opentelemetry_mongo_events._commands.held_connections import (
    find_connection_of,
    find_free_connection,
    forget,
    held_connections,
)
from opentelemetry_mongo_events._commands.outcome import INTERRUPTED
from opentelemetry_mongo_events._config import RAW
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import track
from opentelemetry_mongo_events._servers.reports import subscribe
from opentelemetry_mongo_events._telemetry.semconv import DB_RESPONSE_STATUS_CODE, ERROR_TYPE, RETURNED_ROWS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from opentelemetry.trace import Span

    from opentelemetry_mongo_events._commands.held_connections import HeldConnection
    from opentelemetry_mongo_events._commands.outcome import Outcome
    from opentelemetry_mongo_events._commands.transactions import TransactionCommand
    from opentelemetry_mongo_events._driver.versions import CommandId
    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# The number of commands that can be open.
LIMIT: Final = 10_000

# The number of background events that a command keeps: the first ones explain why it is slow.
_MAX_EVENTS: Final = 32

_ERROR_ATTRIBUTES: Final = (ERROR_TYPE, DB_RESPONSE_STATUS_CODE)
_EMPTY: Final = Context()


class OpenCommand:
    """A command that was sent and whose outcome is still unknown.

    Attributes:
        command_id: The key in the table of open commands.
        held: The connection that it runs on.
        span: Its span; None if no span is recorded.
        metric_attributes: The attributes of its metrics; None if it is not measured.
        context: The context in which it started, for exemplars if there is no span.
        telemetry: The telemetry that was in effect when it started. It ends there, whatever is in effect by then.
        since: When it started, by `time.monotonic()`, the clock that the driver uses, too.
        txn_number: The number of the transaction or retryable write that it is part of.
        attempt: The number of the attempt of its operation, from 1.
        operation_span: PyMongo's own span of its operation, if that gets what would be on the span.
        continued_cursor: The id of the cursor that a `getMore` continues.
        events: The events of its server since it started.
        transaction: The command as a part of its transaction; None if it is not part of one.
    """

    # Defaults in the class, as few commands need other values: each assignment to an instance attribute takes time.
    txn_number: int | None = None
    attempt: int = 1
    operation_span: Span | None = None
    continued_cursor: int | None = None
    events: Sequence[BackgroundEvent] = ()
    transaction: TransactionCommand | None = None

    def __init__(
        self,
        command_id: CommandId,
        held: HeldConnection,
        span: Span | None,
        metric_attributes: Attributes | None,
        context: Context,
        telemetry: Telemetry,
    ) -> None:
        self.command_id = command_id
        self.held = held
        self.span = span
        self.metric_attributes = metric_attributes
        self.context = context
        self.telemetry = telemetry
        self.since = monotonic()

    def close(self, outcome: Outcome, seconds: float | None = None) -> None:
        """End the span and record the metrics.

        Args:
            outcome: How the command ended.
            seconds: The duration by the driver; None if the driver reports none.
        """
        span = self.span
        try:
            if span is not None and span.is_recording():  # unless a hook has ended it
                try:
                    if outcome.error is not None:  # first, as the rest may fail
                        span.set_status(Status(StatusCode.ERROR, self._status_description(outcome)))
                    for name, value in outcome.attributes.items():
                        span.set_attribute(name, value)
                    for background_event in self.events:
                        background_event.add_to(span)
                finally:
                    span.end()
            elif self.operation_span is not None:
                add_events(self.operation_span, self.events)
        finally:
            try:
                if self.metric_attributes is not None:
                    self._measure(self.metric_attributes, outcome, seconds)
            finally:
                if self.transaction is not None:
                    self.transaction.end(outcome)

    def _measure(self, attributes: Attributes, outcome: Outcome, seconds: float | None) -> None:
        # The context makes exemplars refer to this span.
        context = self.context if self.span is None else set_span_in_context(self.span, _EMPTY)
        instruments = self.telemetry.instruments
        rows = outcome.attributes.get(RETURNED_ROWS)
        try:
            if rows is not None and outcome.error is None:
                instruments.returned_rows.record(rows, attributes, context)  # type: ignore[arg-type]  # an int
        finally:
            if outcome.error is not None:
                attributes = attributes | {
                    key: outcome.attributes[key] for key in _ERROR_ATTRIBUTES if key in outcome.attributes
                }
            if seconds is None:
                seconds = monotonic() - self.since
            instruments.operation_duration.record(max(0.0, seconds), attributes, context)

    def note(self, background_event: BackgroundEvent) -> None:
        """Keep an event of its server, unless it occurred before the command started. Runs on a thread of the driver.

        The event is added to the span when the span ends, by the thread that ends it. No other thread uses the span.
        """
        if background_event.at >= self.since and len(self.events) < _MAX_EVENTS:
            self.events = (*self.events, background_event)

    def interrupt(self) -> None:
        """End a command whose outcome will never be reported."""
        self.close(INTERRUPTED)

    def _status_description(self, outcome: Outcome) -> str | None:
        """Return what the status says in addition to `error.type`, as the conventions ask for."""
        config = self.telemetry.config
        if outcome.message and config.query_text == RAW:
            return f"{outcome.error}: {outcome.message[: config.query_text_max_length]}"
        return None if outcome.error == outcome.attributes.get(ERROR_TYPE) else outcome.error


class OpenCommands:
    """A bounded table of the open commands. May be used on any thread.

    Command ids are not unique. PyMongo's request ids are random numbers, and all further replies of an exhaust cursor
    have the request id 0. Older drivers don't report the server's id of the connection, and some servers give all
    connections the same id. A command whose id is already in the table is therefore added to a second table, with the
    connection that its thread or task holds as a part of the key.

    There is no lock: each step is a single dictionary operation. A lock would cause a deadlock if a finalizer or a
    signal handler ran a command while the lock was held, or if the process forked at that time.

    Attributes:
        by_id: The commands by id.
        duplicates: The commands whose id was already in `by_id`, by id and connection.
        rejected: The number of commands that were not instrumented because the table was full.
    """

    __slots__ = ("__weakref__", "_rejections", "by_id", "duplicates", "rejected")

    def __init__(self) -> None:
        self.by_id: dict[CommandId, OpenCommand] = {}
        self.duplicates: dict[tuple[CommandId, HeldConnection], OpenCommand] = {}
        self._rejections = itertools.count(1)
        self.rejected = 0
        track(self)
        subscribe(self)

    def __len__(self) -> int:
        return len(self.by_id) + len(self.duplicates)

    def has_room(self) -> bool:
        """Return whether another command can be added. If not, count it as rejected, and log the first one."""
        if len(self.by_id) < LIMIT - len(self.duplicates):
            return True
        self.rejected = next(self._rejections)
        if self.rejected == 1:
            warn(
                "%s commands are in progress: new ones are not instrumented until some have ended (logged once)",
                f"{LIMIT:,}",
            )
        return False

    def add(self, command: OpenCommand) -> None:
        """Add a command, and assign it to its connection."""
        command.held.command = command
        if self.by_id.setdefault(command.command_id, command) is not command:
            self.duplicates[command.command_id, command.held] = command

    def take_current(self, command_id: CommandId) -> OpenCommand | None:
        """Remove and return the command that ends in the current thread or task.

        Returns:
            The command, or None if it was not added or has already ended.
        """
        command = self.by_id.get(command_id)
        if command is None and not self.duplicates:
            return None
        connections = held_connections()
        held = connections[-1] if connections else None
        if command is not None and command.held is held:  # the usual case
            held.command = None
            if held.connection_id is None:
                forget(held)
            return self.by_id.pop(command_id, None)
        held = find_connection_of(self, command_id)
        if held is None and find_free_connection(self, command_id) is not None:
            return None  # the command that ends ran on that connection, and was not added
        return self.take(command_id, held)

    def take(self, command_id: CommandId, held: HeldConnection | None) -> OpenCommand | None:
        """Remove and return a command.

        Args:
            command_id: The id of the command.
            held: The connection on which the current thread or task has the command in progress; None if it has none.
                The driver may end a command in another context, too: in that of the garbage collector, if the event
                loop of the command's task no longer exists.

        Returns:
            The command, or None if it was not added or has already ended.
        """
        command = self.by_id.get(command_id)
        if command is not None and (held is None or command.held is held):
            command = self.by_id.pop(command_id, None)
        else:
            command = None if held is None else self.duplicates.pop((command_id, held), None)
        if command is not None:
            command.held.command = None
            if command.held.connection_id is None:
                forget(command.held)
        return command

    def take_abandoned(self, held: HeldConnection) -> OpenCommand | None:
        """Remove and return the command that is still in progress on a connection which is being returned."""
        command = held.command
        return None if command is None else self.take(command.command_id, held)

    def note(self, background_event: BackgroundEvent, addresses: Collection[int]) -> None:
        """Add an event of some servers to the commands in progress there. Runs on any thread.

        Args:
            background_event: The event.
            addresses: The `id()`s of the servers' addresses, which are the driver's tuples.
        """
        for table in (self.by_id.copy(), self.duplicates.copy()):
            for command in table.values():
                if id(command.command_id[1]) in addresses:
                    command.note(background_event)

    def forget(self) -> None:
        """Discard all commands without ending them: after a fork, they are the parent's."""
        self.by_id = {}
        self.duplicates = {}
