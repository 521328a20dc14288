"""Commands as spans and metrics: opened on `started`, closed on `succeeded` or `failed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, get_current_span
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from opentelemetry_mongo_events._commands.claims import METRICS, SPANS, give_up
from opentelemetry_mongo_events._commands.description import (
    Description,
    add_batch_and_transaction,
    collection_name,
    continued_cursor,
    description,
    killed_cursors,
    transaction_number,
)
from opentelemetry_mongo_events._commands.held_connections import held_connection, hold, holder
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
from opentelemetry_mongo_events._servers.outages import link_to_outage, outages
from opentelemetry_mongo_events._servers.state import note_failure
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.semconv import DRIVER_CONNECTION_ID, SERVER_CONNECTION_ID, WAIT_TIME
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from opentelemetry_mongo_events._commands.held_connections import HeldConnection
    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Switch, Telemetry

_REMEMBERED: Final = 1_000

# What the driver sends by itself, besides what it sends for a caller: it may come from a background thread or task.
_BACKGROUND: Final = frozenset({"authenticate", "endSessions", "killCursors", "saslContinue", "saslStart"})

Hook = Callable[[Span, Any], object]


def _cursor_key(address: Address | None, cursor: int) -> tuple[Any, ...]:
    # Not the address itself: that is the driver's object, by which it is known whether a pool lives.
    return (cursor, *(address or ()))


def _claim_key(identifier: CommandId) -> tuple[int, int, int | None]:
    # All listeners of a client are given the same address object. It isn't kept, for the same reason.
    request_id, address, server_connection_id = identifier
    return request_id, id(address), server_connection_id


def _show_text(span: Span, command_name: str, command: Mapping[str, Any], telemetry: Telemetry) -> None:
    config = telemetry.config
    is_raw = config.query_text == RAW
    text = query_text(command_name, command, is_raw, config.query_text_max_length)
    if text is not None:
        span.set_attribute(names.DB_QUERY_TEXT, text)
        if is_raw and telemetry.old_names:
            span.set_attribute(names.OLD_STATEMENT, text)


class _Predecessors(NamedTuple):
    """What a command goes on from.

    Attributes:
        links: To the spans of it; None where there are none.
        attempt: 1, or a later attempt of its operation.
        continued_cursor: The cursor that a `getMore` goes on with.
    """

    links: list[Link] | None = None
    attempt: int = 1
    continued_cursor: int | None = None


_NO_PREDECESSORS: Final = _Predecessors()


class CommandEvents(NeverCopied, CommandListener):
    """Opens and closes the spans. Runs on the thread, or in the task, that called the driver; never raises.

    `started` and `succeeded` run for each command. What few commands need is in methods of its own, and what all need
    is in as few as possible: next to the SDK's own code, each function more is one more for the processor to load.
    """

    def __init__(self, switch: Switch, open_commands: OpenCommands, guard: Guard) -> None:
        self.guard = guard
        self._switch = switch
        self._open = open_commands
        self._cursors: BoundedDict[tuple[Any, ...], SpanContext] = BoundedDict(_REMEMBERED)
        self._descriptions: BoundedDict[tuple[Any, ...], Description] = BoundedDict(_REMEMBERED)
        self._peers = peers(open_commands)
        self._has_claimed = False
        self._failed_attempts: BoundedDict[tuple[int | None, str, int | None], tuple[SpanContext, int]] = BoundedDict(
            _REMEMBERED
        )

    def started(self, event: CommandStartedEvent) -> None:
        """Open the command: a span, unless it is excluded, traced by another or not sampled, and its metrics."""
        try:
            command_name = event.command_name
            may_be_own = command_name in _BACKGROUND
            if may_be_own and command_name == "killCursors":  # seen or not, its cursors are gone
                for cursor in killed_cursors(event.command):
                    self._cursors.pop(_cursor_key(event.connection_id, cursor), None)
            telemetry = self._switch.telemetry
            if telemetry is None or not telemetry.config.commands:
                return
            metrics, spans = telemetry.instruments.provider_check, telemetry.tracer_check
            is_measured = metrics.found_sdk or bool(metrics)
            is_traced = spans.found_sdk or bool(spans)
            if not is_measured and not is_traced:
                return
            context = get_current()
            if context and not is_instrumentation_enabled():
                return
            if may_be_own and runs_in_background():
                context = NO_PARENT
            identifier = command_id(event)
            table = self._open
            has_other_listeners = len(self._peers) > 1
            if has_other_listeners:
                self._has_claimed = True
                is_measured = is_measured and METRICS.take(_claim_key(identifier), table)
            if is_traced and (has_other_listeners or telemetry.filters_commands):
                is_traced = self._is_traced(command_name, identifier, context, telemetry, has_other_listeners)
            if not is_measured and not is_traced:
                return
            held = held_connection(table, identifier)
            is_odd = identifier in table.by_id or table.duplicates or len(table.by_id) >= LIMIT
            if is_odd and (self._is_known(identifier, held) or not table.has_room()):
                return
            wait_time = None
            if held is not None:
                wait_time, held.wait_time = held.wait_time, None  # it is the first command's

            command, (_, address, server_id) = event.command, identifier
            target = command.get(command_name)
            if type(target) is not str or command_name not in COLLECTION_COMMANDS:
                target = collection_name(command_name, command)
            database = event.database_name
            if type(database) is not str:
                database = plain_text(database)  # type: ignore[assignment]  # an odd one is described as another
            kind = (command_name, database, target, address, telemetry.old_names)
            described = self._descriptions.get(kind) or self._describe(*kind)
            txn_number = command.get("txnNumber")
            past = _NO_PREDECESSORS
            span = None
            if is_traced:
                attributes = described.attributes.copy()
                if command_name in BATCHES or txn_number is not None:
                    add_batch_and_transaction(attributes, command_name, command)
                if server_id is not None:
                    attributes[SERVER_CONNECTION_ID] = server_id
                if held is not None:
                    attributes[DRIVER_CONNECTION_ID] = held.connection_id
                    if wait_time is not None:
                        attributes[WAIT_TIME] = wait_time
                if outages or self._failed_attempts or command_name == "getMore":
                    past = self._past(event, attributes)
                try:
                    span = telemetry.tracer.start_span(described.name, context, SpanKind.CLIENT, attributes, past.links)
                    if not span.is_recording():
                        span = None
                except FAILURES as error:  # it is measured all the same
                    self.guard.failed("CommandEvents.started", error)
            if span is None and not is_measured:
                return
            if held is None:
                held = hold(table, address, None)
            opened = OpenCommand(
                identifier, held, span, described.measured if is_measured else None, context, telemetry
            )
            if txn_number is not None:
                opened.txn_number = transaction_number(command)
            if past is not _NO_PREDECESSORS:
                opened.attempt, opened.continued_cursor = past.attempt, past.continued_cursor
            table.add(opened)
            if span is not None:
                if telemetry.config.query_text != OFF:
                    try:
                        _show_text(span, command_name, command, telemetry)
                    except FAILURES as error:  # the hook is called all the same
                        self.guard.failed("CommandEvents.started", error)
                if telemetry.request_hook is not None:
                    self.guard.run("request_hook", telemetry.request_hook, span, event)
            if has_other_listeners:  # again: a hook may have run commands of its own
                self._claim_again(opened, is_traced=is_traced)
        except FAILURES as error:
            self.guard.failed("CommandEvents.started", error)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Close the command's span, with what the reply tells."""
        try:
            table = self._open
            if self._has_claimed:  # whether or not it was opened, and the rivals still live
                give_up(table)
            # Whatever is off or suppressed by now, what was opened is closed.
            command = table.take_current(command_id(event)) if table.by_id or table.duplicates else None
            if command is None:
                return
            outcome, seconds = SUCCEEDED, None
            try:
                outcome = reply_outcome(event.command_name, event.reply)
                if command.span is not None and (
                    outcome.cursor
                    or outcome.error is not None
                    or command.continued_cursor is not None
                    or command.txn_number is not None
                ):
                    self._remember(command, command.span, outcome, event)
                if command.measured is not None:
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
        """Close the command's span as an error."""
        if self._has_claimed:
            give_up(self._open)
        command = self._open.take_current(command_id(event))
        if command is None:
            return
        outcome, seconds = FAILED, None
        try:
            outcome = failure_outcome(event.command_name, event.failure, raised_for(event.failure))
            span = command.span
            if span is not None:
                self._note_failure(command, span, outcome)
                self._remember_cursor(command, span, 0)
                self._remember_attempt(command, span, event)
            seconds = event.duration_micros / 1e6
        finally:
            self._close(command, outcome, seconds, "failed_hook", command.telemetry.failed_hook, event)

    def _describe(
        self, command_name: str, database: str, collection: str | None, address: Address | None, old_names: bool
    ) -> Description:
        """Describe commands of a kind, once: to do so each time would cost as much as to start a span."""
        described = description(command_name, database, collection, address, old_names)
        # Not the address itself: that is the driver's object, by which it is known whether a pool lives.
        address = None if address is None else (address[0], address[1])
        self._descriptions.put((command_name, database, collection, address, old_names), described)
        return described

    def _is_traced(
        self,
        command_name: str,
        identifier: CommandId,
        context: Context,
        telemetry: Telemetry,
        has_other_listeners: bool,
    ) -> bool:
        """Whether the command gets a span of this listener's, if it is sampled."""
        config = telemetry.config
        if telemetry.other_tracers is not None and telemetry.other_tracers.found(get_current_span(context)):
            return False
        if has_other_listeners and not SPANS.take(_claim_key(identifier), self._open):
            return False
        if command_name in config.exclude_commands:
            return False
        return not config.require_parent_span or get_current_span(context).get_span_context().is_valid

    def _claim_again(self, command: OpenCommand, *, is_traced: bool) -> None:
        if command.measured is not None:
            METRICS.take(_claim_key(command.command_id), self._open)
        if is_traced:
            SPANS.take(_claim_key(command.command_id), self._open)

    def _is_known(self, identifier: CommandId, held: HeldConnection | None) -> bool:
        """Whether the command is open on its connection, as it is where the client has this listener twice."""
        twin = holder(self._open, identifier)
        return twin is not None and (held is None or held.connection_id == twin.connection_id)

    def _past(self, event: CommandStartedEvent, attributes: Attributes) -> _Predecessors:
        """What the command goes on from: an outage, a failed attempt, a cursor."""
        command_name, command, address = event.command_name, event.command, event.connection_id
        outage = link_to_outage(address)
        links = [] if outage is None else [outage]
        attempt = 1
        failed_attempt = self._failed_attempts.pop(
            (event.operation_id, command_name, transaction_number(command)), None
        )
        if failed_attempt is not None:
            attempt = failed_attempt[1] + 1
            attributes[names.ATTEMPT] = attempt
            links.append(Link(failed_attempt[0]))
        continued = continued_cursor(command) if command_name == "getMore" else None
        if continued is not None:
            attributes[names.CURSOR_ID] = continued
            opener = self._cursors.get(_cursor_key(address, continued))
            if opener is not None:
                links.append(Link(opener))
        return _Predecessors(links, attempt, continued)

    def _remember(self, command: OpenCommand, span: Span, outcome: Outcome, event: CommandSucceededEvent) -> None:
        """Remember what later commands, or an outage, may link to."""
        if outcome.cursor or command.continued_cursor is not None:
            self._remember_cursor(command, span, outcome.cursor)
        if outcome.error is not None:
            self._note_failure(command, span, outcome)
        # Without a transaction number the driver doesn't write again, whatever the label says.
        if command.txn_number is not None and is_retryable_write_error(event.reply):
            self._remember_attempt(command, span, event)

    def _remember_cursor(self, command: OpenCommand, span: Span, cursor: int | None) -> None:
        """Remember which span opened a cursor, until the cursor is exhausted or broken."""
        address = command.command_id[1]
        if command.continued_cursor is None:
            if cursor:
                self._cursors.put(_cursor_key(address, cursor), span.get_span_context())
        elif not cursor:
            self._cursors.pop(_cursor_key(address, command.continued_cursor), None)

    def _remember_attempt(
        self, command: OpenCommand, span: Span, event: CommandSucceededEvent | CommandFailedEvent
    ) -> None:
        """Remember a failed attempt: the next one of its operation will link to it.

        A command that the driver never repeats has its own request id for an operation id. The batches of a bulk write
        share theirs, and each has a transaction number of its own, which its attempts keep.
        """
        if ATTEMPTS_SHARE_OPERATION_ID and event.operation_id != event.request_id:
            attempt = (span.get_span_context(), command.attempt)
            self._failed_attempts.put((event.operation_id, event.command_name, command.txn_number), attempt)

    def _note_failure(self, command: OpenCommand, span: Span, outcome: Outcome) -> None:
        """Remember what fails as commands do on a server that goes away: an outage may link to it."""
        if is_loss_of_server(outcome.attributes):
            note_failure(command.command_id[1], span.get_span_context())

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
        finally:  # a hook may also be interrupted
            command.close(outcome, seconds)
