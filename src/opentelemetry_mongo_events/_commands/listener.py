"""The command listener: starts a span on `started`, ends and measures it on `succeeded` or `failed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, get_current_span
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from opentelemetry_mongo_events._commands.claims import DRIVER_SPANS, METRICS, SPANS, give_up
from opentelemetry_mongo_events._commands.description import (
    Description,
    add_batch_and_transaction,
    collection_name,
    continued_cursor,
    describe,
    killed_cursors,
    transaction_number,
)
from opentelemetry_mongo_events._commands.driver_spans import add_waits_and_attempt, current_operation_span
from opentelemetry_mongo_events._commands.held_connections import (
    NO_DELAYS,
    HeldConnection,
    find_connection_of,
    find_free_connection,
    held_connections,
    hold,
)
from opentelemetry_mongo_events._commands.open_commands import LIMIT, OpenCommand, OpenCommands
from opentelemetry_mongo_events._commands.outcome import (
    FAILED,
    SUCCEEDED,
    Outcome,
    failure_outcome,
    is_retryable_write_error,
    reply_outcome,
)
from opentelemetry_mongo_events._config import OFF, RAW
from opentelemetry_mongo_events._driver.command_names import BATCHES, COLLECTION_COMMANDS
from opentelemetry_mongo_events._driver.values import plain_text
from opentelemetry_mongo_events._driver.versions import (
    ATTEMPTS_SHARE_OPERATION_ID,
    CommandId,
    command_id,
    raised_for,
    runs_in_background,
)
from opentelemetry_mongo_events._query_text.text import query_text
from opentelemetry_mongo_events._runtime.bounded_dict import BoundedDict
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard, NeverCopied, guarded
from opentelemetry_mongo_events._runtime.process import peers
from opentelemetry_mongo_events._servers.errors import is_loss_of_server
from opentelemetry_mongo_events._servers.state import note_failure
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.semconv import DRIVER_CONNECTION_ID, SERVER_CONNECTION_ID
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from opentelemetry_mongo_events._commands.transactions import Transactions
    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._servers.failed_checkouts import FailedCheckouts
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Switch, Telemetry

# The number of cursors, of failed attempts and of descriptions that each listener remembers.
_REMEMBERED: Final = 1_000

# Commands that the driver may also send by itself, in a background thread or task.
_BACKGROUND_COMMANDS: Final = frozenset({"authenticate", "endSessions", "killCursors", "saslContinue", "saslStart"})

Hook = Callable[[Span, Any], object]


def _cursor_key(address: Address | None, cursor: int) -> tuple[Any, ...]:
    # Copies the address: the reference count of the driver's address object tells whether its pool still exists.
    return (cursor, *(address or ()))


def _claim_key(identifier: CommandId) -> tuple[int, int, int | None]:
    # All listeners of a client receive the same address object. It is not stored, for the same reason.
    request_id, address, server_connection_id = identifier
    return request_id, id(address), server_connection_id


def _add_query_text(span: Span, command_name: str, command: Mapping[str, Any], telemetry: Telemetry) -> None:
    config = telemetry.config
    is_raw = config.query_text == RAW
    text = query_text(command_name, command, is_raw, config.query_text_max_length)
    if text is not None:
        span.set_attribute(names.DB_QUERY_TEXT, text)
        if is_raw and telemetry.old_names:
            span.set_attribute(names.OLD_STATEMENT, text)


class _Predecessors(NamedTuple):
    """What a command continues.

    Attributes:
        links: Links to the spans that it continues; None if there are none.
        attempt: The number of the attempt of its operation, from 1.
        continued_cursor: The id of the cursor that a `getMore` continues.
    """

    links: list[Link] | None = None
    attempt: int = 1
    continued_cursor: int | None = None


_NO_PREDECESSORS: Final = _Predecessors()


class CommandEvents(NeverCopied, CommandListener):
    """Starts and ends the spans of commands, and measures them.

    Runs on the thread, or in the task, that called the driver; never raises.

    `started` and `succeeded` run for each command. They contain all that every command needs, and only what few
    commands need is in other methods. `started` is long for that reason: each method that it is split into adds a call
    to every command, about 60 ns on CPython 3.11.

    Args:
        switch: Holds the telemetry in effect.
        open_commands: The table of open commands, which `ConnectionEvents` shares.
        transactions: The transactions in progress, which it shares, too.
        guard: Counts and logs the failures of this listener.
    """

    def __init__(self, switch: Switch, open_commands: OpenCommands, transactions: Transactions, guard: Guard) -> None:
        self.guard = guard
        self._switch = switch
        self._open = open_commands
        self._transactions = transactions
        self._cursors: BoundedDict[tuple[Any, ...], SpanContext] = BoundedDict(_REMEMBERED)
        self._descriptions: BoundedDict[tuple[Any, ...], Description] = BoundedDict(_REMEMBERED)
        self._peers = peers(open_commands)
        self._has_claimed = False
        self._failed_attempts: BoundedDict[tuple[int | None, str, int | None], tuple[SpanContext, int]] = BoundedDict(
            _REMEMBERED
        )

    def started(self, event: CommandStartedEvent) -> None:
        """Start the command's span, and add the command to the table of open commands.

        There is no span if the command is excluded, traced by another instrumentation or not sampled.
        """
        try:
            command_name = event.command_name
            may_be_background = command_name in _BACKGROUND_COMMANDS
            if may_be_background and command_name == "killCursors":  # even if it isn't instrumented, it closes cursors
                for cursor in killed_cursors(event.command):
                    self._cursors.pop(_cursor_key(event.connection_id, cursor), None)
            telemetry = self._switch.telemetry
            if telemetry is None or not telemetry.config.commands:
                return
            meter_check, tracer_check = telemetry.instruments.provider_check, telemetry.tracer_check
            is_measured = meter_check.found_sdk or (perf_counter() >= meter_check.next_check and bool(meter_check))
            is_traced = tracer_check.found_sdk or (perf_counter() >= tracer_check.next_check and bool(tracer_check))
            if not is_measured and not is_traced:
                return
            context = get_current()
            if context and not is_instrumentation_enabled():
                return
            if may_be_background and runs_in_background():
                context = NO_PARENT
            identifier = command_id(event)
            table = self._open
            has_other_listeners = len(self._peers) > 1
            if has_other_listeners:
                self._has_claimed = True
                is_measured = is_measured and METRICS.take(_claim_key(identifier), table)
            is_excluded, operation_span = False, None
            if is_traced and (has_other_listeners or telemetry.filters_commands):
                is_traced = self._is_traced(identifier, context, telemetry, has_other_listeners)
                is_excluded = command_name in telemetry.config.exclude_commands
                if not is_traced and not is_excluded:
                    operation_span = self._operation_span(identifier, telemetry, has_other_listeners)
            if not is_measured and not is_traced and operation_span is None and not self._transactions.open:
                return
            command, (_, address, server_connection_id) = event.command, identifier
            connections = held_connections()
            held = connections[-1] if connections else None
            if held is not None:
                if (  # the usual case
                    held.server_connection_id is None
                    and held.owner is table
                    and held.pool == id(address)
                    and held.command is None
                    and held.connection_id is not None
                ):
                    held.server_connection_id = server_connection_id
                else:
                    held = find_free_connection(table, identifier)
            if (table.by_id or table.duplicates) and not self._can_be_added(held, identifier):
                return
            delays = NO_DELAYS
            if held is not None and held.delays is not None:
                delays, held.delays = held.delays, None  # only the first command on a connection reports them

            collection = command.get(command_name)
            if type(collection) is not str or command_name not in COLLECTION_COMMANDS:
                collection = collection_name(command_name, command)
            database = event.database_name
            if type(database) is not str:
                database = plain_text(database)  # type: ignore[assignment]  # `describe` replaces other types
            kind = (command_name, database, collection, address, telemetry.old_names)
            description = self._descriptions.get(kind) or self._describe(*kind)
            txn_number = command.get("txnNumber")
            predecessors = _NO_PREDECESSORS
            span = transaction = None
            if txn_number is not None and command.get("autocommit") is False:
                transaction = self._transactions.command_started(
                    command_name, command, address, telemetry, context, is_traced=is_traced, is_measured=is_measured
                )
            if is_traced and not is_excluded:
                attributes = description.attributes.copy()
                if command_name in BATCHES or txn_number is not None:
                    add_batch_and_transaction(attributes, command_name, command)
                if server_connection_id is not None:
                    attributes[SERVER_CONNECTION_ID] = server_connection_id
                if held is not None:
                    attributes[DRIVER_CONNECTION_ID] = held.connection_id
                if delays is not NO_DELAYS:
                    if delays.wait_time is not None:
                        attributes[names.WAIT_TIME] = delays.wait_time
                    if delays.selection_wait_time is not None:
                        attributes[names.SELECTION_WAIT_TIME] = delays.selection_wait_time
                if self._failed_attempts or delays.failed_checkouts is not None or command_name == "getMore":
                    predecessors = self._find_predecessors(event, attributes, delays.failed_checkouts)
                links: Sequence[Link] | None = predecessors.links
                if transaction is not None:
                    links = transaction.add_link(links)
                try:
                    span = telemetry.tracer.start_span(description.name, context, SpanKind.CLIENT, attributes, links)
                    if not span.is_recording():
                        span = None
                except FAILURES as error:  # the command is measured anyway
                    self.guard.failed("CommandEvents.started", error)
            elif operation_span is not None:
                if self._failed_attempts or delays.failed_checkouts is not None:
                    predecessors = self._find_predecessors(event, {}, delays.failed_checkouts)
                told = (delays.wait_time, delays.selection_wait_time, predecessors.attempt)
                self.guard.run("an operation span", add_waits_and_attempt, operation_span, *told)
            if span is None and not is_measured and transaction is None and operation_span is None:
                return
            if held is None:
                held = HeldConnection(table, address, None)
                hold(held)
            open_command = OpenCommand(
                identifier, held, span, description.metric_attributes if is_measured else None, context, telemetry
            )
            if txn_number is not None:
                open_command.txn_number = transaction_number(command)
                open_command.transaction = transaction
            if operation_span is not None:
                open_command.operation_span = operation_span
            if predecessors is not _NO_PREDECESSORS:
                open_command.attempt = predecessors.attempt
                open_command.continued_cursor = predecessors.continued_cursor
            table.add(open_command)
            if span is not None:
                if telemetry.config.query_text != OFF:
                    try:
                        _add_query_text(span, command_name, command, telemetry)
                    except FAILURES as error:  # the hook is called anyway
                        self.guard.failed("CommandEvents.started", error)
                if telemetry.request_hook is not None:
                    self.guard.run("request_hook", telemetry.request_hook, span, event)
            if has_other_listeners:  # the hook may have run commands, which replaced the claims
                self._renew_claims(open_command, is_traced=is_traced)
        except FAILURES as error:
            self.guard.failed("CommandEvents.started", error)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """End the command's span with the outcome in the reply, and measure the command."""
        try:
            table = self._open
            if self._has_claimed:  # even if the command was not added, or the other listeners no longer exist
                give_up(table)
            # A command that was added always ends, even if instrumentation is off or suppressed by now.
            command = table.take_current(command_id(event)) if table.by_id or table.duplicates else None
            if command is None:
                return
            outcome, seconds = SUCCEEDED, None
            try:
                outcome = reply_outcome(event.command_name, event.reply)
                if outcome.error is not None:
                    self._note_failure(command, outcome)
                    if command.operation_span is not None:
                        self._remember_retryable_write(command, command.operation_span, event)
                if command.span is not None and (
                    outcome.cursor or command.continued_cursor is not None or command.txn_number is not None
                ):
                    self._remember(command, command.span, outcome, event)
                if command.metric_attributes is not None:
                    seconds = event.duration_micros / 1e6
            finally:
                if command.telemetry.response_hook is None:
                    command.close(outcome, seconds)
                else:
                    self._close(command, outcome, seconds, "response_hook", command.telemetry.response_hook, event)
        except FAILURES as error:
            self.guard.failed("CommandEvents.succeeded", error)

    @guarded
    def failed(self, event: CommandFailedEvent) -> None:
        """End the command's span as an error, and measure the command."""
        if self._has_claimed:
            give_up(self._open)
        command = self._open.take_current(command_id(event))
        if command is None:
            self._note_failure_without_span(event)
            return
        outcome, seconds = FAILED, None
        try:
            outcome = failure_outcome(event.command_name, event.failure, raised_for(event.failure))
            self._note_failure(command, outcome)
            span = command.span
            if span is not None:
                self._remember_cursor(command, span, 0)
                self._remember_attempt(command, span, event)
            elif command.operation_span is not None:
                self._remember_attempt(command, command.operation_span, event)
            seconds = event.duration_micros / 1e6
        finally:
            self._close(command, outcome, seconds, "failed_hook", command.telemetry.failed_hook, event)

    def _describe(
        self, command_name: str, database: str, collection: str | None, address: Address | None, old_names: bool
    ) -> Description:
        """Describe a kind of command and cache the description: creating one takes as long as starting a span."""
        description = describe(command_name, database, collection, address, old_names)
        # A copy of the address, as in `_cursor_key`.
        address = None if address is None else (address[0], address[1])
        self._descriptions.put((command_name, database, collection, address, old_names), description)
        return description

    def _is_traced(
        self, identifier: CommandId, context: Context, telemetry: Telemetry, has_other_listeners: bool
    ) -> bool:
        """Return whether this listener is to start a span for the command, unless its name is excluded."""
        config = telemetry.config
        if not config.command_spans:
            return False
        # The span that is current, even if the command is to have no parent: the driver's own is current as it starts.
        if telemetry.other_tracers is not None and telemetry.other_tracers.found(get_current_span()):
            return False
        if has_other_listeners and not SPANS.take(_claim_key(identifier), self._open):
            return False
        return not config.require_parent_span or get_current_span(context).get_span_context().is_valid

    def _operation_span(self, identifier: CommandId, telemetry: Telemetry, has_other_listeners: bool) -> Span | None:
        """Return PyMongo's own span to which this listener is to add what would be on the command's span."""
        span, config = current_operation_span(), telemetry.config
        if span is None:
            return None
        if config.command_spans and telemetry.other_tracers is None:
            return None  # requested explicitly, and another one of the client's listeners has the command's span
        if has_other_listeners and not DRIVER_SPANS.take(_claim_key(identifier), self._open):
            return None
        return span

    def _renew_claims(self, command: OpenCommand, *, is_traced: bool) -> None:
        if command.metric_attributes is not None:
            METRICS.take(_claim_key(command.command_id), self._open)
        if is_traced:
            SPANS.take(_claim_key(command.command_id), self._open)

    def _can_be_added(self, held: HeldConnection | None, identifier: CommandId) -> bool:
        """Return whether the command can be added to the table, in which there are others."""
        table = self._open
        if identifier not in table.by_id and not table.duplicates and len(table.by_id) < LIMIT:
            return True
        connection = find_connection_of(table, identifier)
        if connection is not None and (held is None or held.connection_id == connection.connection_id):
            return False  # it is in progress on its connection: the client has this listener twice
        return table.has_room()

    def _find_predecessors(
        self, event: CommandStartedEvent, attributes: Attributes, failed_checkouts: FailedCheckouts | None
    ) -> _Predecessors:
        """Find what the command continues (failed attempts, a cursor), and add the attributes for it."""
        command_name, command, address = event.command_name, event.command, event.connection_id
        links = []
        attempt = 1
        failed_attempt = self._failed_attempts.pop(
            (event.operation_id, command_name, transaction_number(command)), None
        )
        if failed_attempt is not None:
            attempt = failed_attempt[1] + 1
            links.append(Link(failed_attempt[0]))
        if failed_checkouts is not None:
            links.extend(map(Link, failed_checkouts.spans))
            # If commands were sent before, and none is remembered, it isn't known how many there were.
            if failed_attempt is not None or not failed_checkouts.follow_command:
                attempt += failed_checkouts.number
        if attempt > 1:
            attributes[names.ATTEMPT] = attempt
        cursor = continued_cursor(command) if command_name == "getMore" else None
        if cursor is not None:
            attributes[names.CURSOR_ID] = cursor
            opening_span = self._cursors.get(_cursor_key(address, cursor))
            if opening_span is not None:
                links.append(Link(opening_span))
        return _Predecessors(links, attempt, cursor)

    def _remember(self, command: OpenCommand, span: Span, outcome: Outcome, event: CommandSucceededEvent) -> None:
        """Remember the span if later commands may link to it."""
        if outcome.cursor or command.continued_cursor is not None:
            self._remember_cursor(command, span, outcome.cursor)
        self._remember_retryable_write(command, span, event)

    def _remember_retryable_write(self, command: OpenCommand, span: Span, event: CommandSucceededEvent) -> None:
        """Remember an attempt that the driver repeats though the server has replied."""
        # The driver retries a write only if it has a transaction number, regardless of the label.
        if command.txn_number is not None and is_retryable_write_error(event.reply):
            self._remember_attempt(command, span, event)

    def _remember_cursor(self, command: OpenCommand, span: Span, cursor: int | None) -> None:
        """Remember the span that opened a cursor, until the cursor is exhausted or fails."""
        address = command.command_id[1]
        if command.continued_cursor is None:
            if cursor:
                self._cursors.put(_cursor_key(address, cursor), span.get_span_context())
        elif not cursor:
            self._cursors.pop(_cursor_key(address, command.continued_cursor), None)

    def _remember_attempt(
        self, command: OpenCommand, span: Span, event: CommandSucceededEvent | CommandFailedEvent
    ) -> None:
        """Remember a failed attempt, to which the next attempt of its operation will link.

        The operation id of a command that the driver never retries is its request id. The batches of a bulk write share
        an operation id, but each batch has its own transaction number, which all its attempts share.
        """
        if ATTEMPTS_SHARE_OPERATION_ID and event.operation_id != event.request_id:
            attempt = (span.get_span_context(), command.attempt)
            self._failed_attempts.put((event.operation_id, event.command_name, command.txn_number), attempt)

    def _note_failure(self, command: OpenCommand, outcome: Outcome) -> None:
        """Remember a failure that indicates an unavailable server, to which an outage may link.

        If the command has no span, because another instrumentation traces it, the outage links to the caller's span,
        which is PyMongo's own span of the operation if there is one.
        """
        if is_loss_of_server(outcome.attributes):
            span = command.span or command.operation_span or get_current_span(command.context)
            note_failure(command.command_id[1], span.get_span_context())

    def _note_failure_without_span(self, event: CommandFailedEvent) -> None:
        """Remember the failure of a command that is neither traced nor measured, as `_note_failure` does."""
        telemetry = self._switch.of("commands")
        if telemetry is None or not telemetry.tracer_check or not is_instrumentation_enabled():
            return
        outcome = failure_outcome(event.command_name, event.failure, raised_for(event.failure))
        if is_loss_of_server(outcome.attributes):
            note_failure(event.connection_id, get_current_span().get_span_context())

    def _close(
        self,
        command: OpenCommand,
        outcome: Outcome,
        seconds: float | None,
        hook_name: str,
        hook: Hook | None,
        event: CommandSucceededEvent | CommandFailedEvent,
    ) -> None:
        try:
            if hook is not None and command.span is not None:
                self.guard.run(hook_name, hook, command.span, event)
        finally:  # also if the hook is interrupted
            command.close(outcome, seconds)
