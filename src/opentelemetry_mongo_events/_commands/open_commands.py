"""The commands that are open, each with all that it takes to end it."""

from __future__ import annotations

import itertools
from time import monotonic
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._commands.held_connections import held_connection, held_here, holder, let_go
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
    from opentelemetry_mongo_events._driver.versions import CommandId
    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

LIMIT: Final = 10_000

# Of those that happen while a command is open the first tell why it is slow.
_EVENTS: Final = 32

_ERRORS: Final = (ERROR_TYPE, DB_RESPONSE_STATUS_CODE)
_EMPTY: Final = Context()


class OpenCommand:
    """A command that was sent and whose outcome is awaited.

    Attributes:
        command_id: Under which it is found.
        held: The connection it runs on.
        span: Its span; None where none is recorded.
        measured: The attributes of its metrics; None where it is not measured.
        context: Where it started, for metrics without a span of its own.
        telemetry: Where it ends: whatever is in force by then, what was opened is closed.
        since: When it started, by `time.monotonic()`, as the driver's own times.
        txn_number: The number of the transaction or retryable write it is part of.
        attempt: 1, or a later attempt of its operation.
        continued_cursor: The cursor that a `getMore` goes on with.
        events: What happened meanwhile to its server.
    """

    # Those that few commands have are no instance's own until they are set: to set each takes its time.
    txn_number: int | None = None
    attempt: int = 1
    continued_cursor: int | None = None
    events: Sequence[BackgroundEvent] = ()

    def __init__(
        self,
        command_id: CommandId,
        held: HeldConnection,
        span: Span | None,
        measured: Attributes | None,
        context: Context,
        telemetry: Telemetry,
    ) -> None:
        self.command_id = command_id
        self.held = held
        self.span = span
        self.measured = measured
        self.context = context
        self.telemetry = telemetry
        self.since = monotonic()

    def close(self, outcome: Outcome, seconds: float | None = None) -> None:
        """End the span, with what the outcome adds to it, and measure.

        Args:
            outcome: How it ended.
            seconds: How long it took, as the driver has it; None where the driver says nothing.
        """
        span = self.span
        try:
            if span is not None and span.is_recording():  # a hook may have ended it: then it stays as it is
                try:
                    if outcome.error is not None:  # first: whatever of the rest can't be told
                        span.set_status(Status(StatusCode.ERROR, self._described(outcome)))
                    for name, value in outcome.attributes.items():
                        span.set_attribute(name, value)
                    for incident in self.events:
                        incident.add_to(span)
                finally:
                    span.end()
        finally:
            attributes = self.measured
            if attributes is not None:
                # The context makes the exemplar: it leads to this span.
                context = self.context if span is None else set_span_in_context(span, _EMPTY)
                instruments = self.telemetry.instruments
                rows = outcome.attributes.get(RETURNED_ROWS)
                try:
                    if rows is not None and outcome.error is None:
                        instruments.returned_rows.record(rows, attributes, context)  # type: ignore[arg-type]  # an int
                finally:
                    if outcome.error is not None:
                        attributes = attributes | {
                            key: outcome.attributes[key] for key in _ERRORS if key in outcome.attributes
                        }
                    if seconds is None:
                        seconds = monotonic() - self.since
                    instruments.operation_duration.record(max(0.0, seconds), attributes, context)

    def note(self, incident: BackgroundEvent) -> None:
        """Keep what happened to its server, unless that was before it. Runs on a thread of the driver's own.

        The span has it at its end, from the thread that ends it: no other thread ever touches a span.
        """
        if incident.at >= self.since and len(self.events) < _EVENTS:
            self.events = (*self.events, incident)

    def interrupt(self) -> None:
        """End a command whose outcome will never be known."""
        self.close(INTERRUPTED)

    def _described(self, outcome: Outcome) -> str | None:
        config = self.telemetry.config
        message = outcome.message[: config.query_text_max_length] if outcome.message else None
        return f"{outcome.error}: {message}" if message and config.query_text == RAW else outcome.error


class OpenCommands:
    """A bounded table of the open commands, used from any thread.

    Command ids come twice: PyMongo takes request ids from an unseeded random generator, all further replies of an
    exhaust cursor have the id 0, and there are drivers that tell no server's id of the connection and servers that give
    all connections the same. So a command whose id is taken stands in a second table, under the connection that its
    thread or task holds.

    There is no lock: each step is one operation of a dictionary. A lock would deadlock where a finalizer or a signal
    handler runs a command while it is held, and in the child of a process that forks meanwhile.
    """

    __slots__ = ("__weakref__", "_unobserved", "by_id", "duplicates", "unobserved")

    def __init__(self) -> None:
        self.by_id: dict[CommandId, OpenCommand] = {}
        """The commands by their ids, to be looked at."""
        self.duplicates: dict[tuple[CommandId, HeldConnection], OpenCommand] = {}
        """And those whose id was taken, by their connections too."""
        self._unobserved = itertools.count(1)
        self.unobserved = 0
        """How many commands were not observed because the table was full."""
        track(self)
        subscribe(self)

    def __len__(self) -> int:
        return len(self.by_id) + len(self.duplicates)

    def has_room(self) -> bool:
        """Whether one more command may be opened; if not, it is counted, and the first is a warning."""
        if len(self.by_id) < LIMIT - len(self.duplicates):
            return True
        self.unobserved = next(self._unobserved)
        if self.unobserved == 1:
            warn(
                "%s commands are open: those that start are not observed until some have ended (this is logged once)",
                f"{LIMIT:,}",
            )
        return False

    def add(self, command: OpenCommand) -> None:
        """Note an open command, here and on its connection."""
        command.held.command = command
        if self.by_id.setdefault(command.command_id, command) is not command:
            self.duplicates[command.command_id, command.held] = command

    def take_current(self, command_id: CommandId) -> OpenCommand | None:
        """Take out the command that ends in the current thread or task."""
        command = self.by_id.get(command_id)
        if command is None and not self.duplicates:
            return None
        here = held_here()
        held = here[-1] if here else None
        if command is not None and command.held is held:  # as a rule
            held.command = None
            if held.connection_id is None:
                let_go(held)
            return self.by_id.pop(command_id, None)
        held = holder(self, command_id)
        if held is None and held_connection(self, command_id) is not None:
            return None  # it ran on that connection, and was not opened
        return self.take(command_id, held)

    def take(self, command_id: CommandId, held: HeldConnection | None) -> OpenCommand | None:
        """Take a command out.

        Args:
            command_id: Its id.
            held: The connection on which the current thread or task has it open, if it does. The driver may also end a
                command in another context: that of the garbage collector, for a task whose event loop is gone.

        Returns:
            The command, or None where it isn't known: it was not observed when it started, or has ended before.
        """
        command = self.by_id.get(command_id)
        if command is not None and (held is None or command.held is held):
            command = self.by_id.pop(command_id, None)
        else:
            command = None if held is None else self.duplicates.pop((command_id, held), None)
        if command is not None:
            command.held.command = None
            if command.held.connection_id is None:
                let_go(command.held)
        return command

    def take_abandoned(self, held: HeldConnection) -> OpenCommand | None:
        """Take out the command that is still open on a connection which its thread or task gives back."""
        command = held.command
        return None if command is None else self.take(command.command_id, held)

    def note(self, incident: BackgroundEvent, addresses: Collection[int]) -> None:
        """Note what happened to servers on the commands that are open there. Runs on any thread.

        Args:
            incident: What happened.
            addresses: The identities of the servers' addresses: the driver's own tuples.
        """
        for table in (self.by_id.copy(), self.duplicates.copy()):
            for command in table.values():
                if id(command.command_id[1]) in addresses:
                    command.note(incident)

    def forget(self) -> None:
        """Drop all without ending them: after a fork they are the parent's."""
        self.by_id = {}
        self.duplicates = {}
