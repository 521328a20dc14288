"""Transactions: a span and a measurement for each, from its first command to the end of its commit or abort.

The driver publishes no events for transactions and sessions. A transaction is recognized by its commands: the first one
has `startTransaction`, the last one is `commitTransaction` or `abortTransaction`, and all of them have the session's id
and the transaction's number. A transaction for which no command is sent does not exist for the server either.
"""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind, set_span_in_context
from opentelemetry.trace.status import StatusCode

from opentelemetry_mongo_events._commands.description import session_id, transaction_attributes, transaction_number
from opentelemetry_mongo_events._driver.sessions import current_session
from opentelemetry_mongo_events._driver.values import is_document, plain_text, whole_number
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.bounded_dict import BoundedDict
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard
from opentelemetry_mongo_events._runtime.process import instances, track
from opentelemetry_mongo_events._servers.errors import is_loss_of_server
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context

    from opentelemetry_mongo_events._commands.outcome import Outcome
    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._driver.sessions import Session
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# The number of transactions that can be open, and of failed ones that each listener remembers.
_LIMIT: Final = 1_000

_COMMIT: Final = "commitTransaction"
_ABORT: Final = "abortTransaction"

# The outcomes.
_COMMITTED: Final = "committed"
_ABORTED: Final = "aborted"
_UNKNOWN: Final = "unknown"
_ABANDONED: Final = "abandoned"

# Seconds. A commit or an abort that failed may be sent again: by the driver, once it has found a server, by
# `with_transaction()`, or by the application. The span ends this long after the failure at the latest.
# Source: `with_transaction()` repeats a commit for at most 120 seconds.
_MAX_REPEAT_WAIT: Final = 120.0
_CHECK_INTERVAL: Final = 1.0

# The codes of errors after which a transaction may be committed nevertheless. With the last two, it is committed, but
# without the write concern that was requested. 11601 (Interrupted) is not in the specification: an operator may
# interrupt a commit while it waits for its write concern.
# Source: the drivers' specification of transactions, section "UnknownTransactionCommitResult".
_UNKNOWN_COMMIT_CODES: Final = frozenset({"6", "7", "50", "64", "89", "134", "262", "9001", "11601", "79", "100"})


# The id of a session, the bytes of a UUID, and the number of a transaction.
_Key: TypeAlias = tuple[bytes, int]


class _End(NamedTuple):
    """How a transaction ended, if its commit or abort isn't sent again.

    Attributes:
        outcome: Its outcome.
        at: When it ended, by `time.monotonic()`.
    """

    outcome: str
    at: float


class _FailedTransaction(NamedTuple):
    """A transaction that failed with an error after which it may be run again.

    Attributes:
        session: Refers to its session, without keeping it; None if the session isn't known.
        span: Its span; None if no span was recorded.
        attempt: The number of its attempt, from 1.
        error: The `error.type` of its first error.
    """

    session: weakref.ref[Session] | None
    span: SpanContext | None
    attempt: int
    error: str

    def is_of(self, session: Session | None) -> bool:
        """Whether it was a transaction of this session. Sessions that have ended pass their id to later ones."""
        return session is None or self.session is None or self.session() is session


class Transaction:
    """A transaction in progress, or one whose commit or abort failed and may be sent again.

    Args:
        key: Identifies it: the id of its session, and the number of the transaction there.
        telemetry: The telemetry that was in effect when it started. It ends there, whatever is in effect by then.
        context: The context of its first command.
        session: Refers to the driver's session; None if that isn't known.
        is_measured: Whether its duration is measured.
        previous: The failed transaction that it repeats; None if there is none.

    Attributes:
        address: The `id()` of the address of the server of its last command.
        span_context: Its span; None if no span is recorded.
        ended: How it ended, if its commit or abort isn't sent again; None while it is in progress.
        last_at: When its last command ended or, before that, when it started, by `time.monotonic()`.
    """

    __slots__ = (
        "_commands",
        "_commit_attempts",
        "_context",
        "_error",
        "_is_measured",
        "_is_transient",
        "_span",
        "_write_concern",
        "address",
        "attempt",
        "ended",
        "key",
        "last_at",
        "session",
        "since",
        "span_context",
        "telemetry",
    )

    def __init__(
        self,
        key: _Key,
        telemetry: Telemetry,
        context: Context,
        session: weakref.ref[Session] | None,
        *,
        is_measured: bool,
        previous: _FailedTransaction | None,
    ) -> None:
        self.key = key
        self.telemetry = telemetry
        self.session = session
        self.attempt = 1 if previous is None else previous.attempt + 1
        self.address = 0
        self.ended: _End | None = None
        self.since = self.last_at = monotonic()
        self.span_context: SpanContext | None = None
        self._span: Span = INVALID_SPAN
        self._context = context
        self._is_measured = is_measured
        self._commands = 0
        self._commit_attempts = 0
        self._error: str | None = None
        self._is_transient = False
        self._write_concern: str | None = None

    def start_span(self, command: Mapping[str, Any], previous: _FailedTransaction | None) -> None:
        """Start its span."""
        attributes: Attributes = {names.DB_SYSTEM_NAME: names.MONGODB} | transaction_attributes(command)
        read_concern = command.get("readConcern")
        level = plain_text(read_concern.get("level")) if is_document(read_concern) else None
        if level is not None:
            attributes[names.TRANSACTION_READ_CONCERN] = level
        if self.attempt > 1:
            attributes[names.TRANSACTION_ATTEMPT] = self.attempt
        self._span = self.telemetry.tracer.start_span(
            names.TRANSACTION,
            self._context,
            SpanKind.INTERNAL,
            attributes,
            None if previous is None or previous.span is None else [Link(previous.span)],
        )
        self._context = set_span_in_context(self._span, self._context)
        if self._span.is_recording():
            self.span_context = self._span.get_span_context()

    def command_started(self, command_name: str, command: Mapping[str, Any], address: Address | None) -> None:
        """Count a command that is sent as a part of the transaction."""
        self.ended = None
        self.address = id(address)
        self._commands += 1
        if command_name == _COMMIT:
            self._commit_attempts += 1
        # The driver sends further attempts of a commit with `w: majority`, whatever was requested.
        if self._commit_attempts == (command_name == _COMMIT) and command_name in (_COMMIT, _ABORT):
            write_concern = command.get("writeConcern")
            self._write_concern = _as_text(write_concern.get("w")) if is_document(write_concern) else None

    def command_ended(self, command_name: str, outcome: Outcome) -> _End | None:
        """Note the outcome of a command.

        Returns:
            How the transaction has ended; None if it goes on, or if its commit or abort may be sent again.
        """
        is_transient = "TransientTransactionError" in outcome.labels
        if outcome.error is not None:
            if self._error is None:
                self._error = str(outcome.attributes[names.ERROR_TYPE])
            # The driver adds the label itself after a network error.
            if is_transient or (command_name != _COMMIT and is_loss_of_server(outcome.attributes)):
                self._is_transient = True
        self.last_at = at = monotonic()
        if command_name == _ABORT:
            end, may_be_repeated = _End(_ABORTED, at), outcome.error is not None and _is_retryable(outcome)
        elif command_name != _COMMIT:
            return None
        elif outcome.error is None:
            self._error = None
            end, may_be_repeated = _End(_COMMITTED, at), False
        else:
            may_be_repeated = _is_unknown(outcome)
            end = _End(_UNKNOWN if may_be_repeated else _ABORTED, at)
        if not may_be_repeated:
            return end
        self.ended = end
        return None

    def close(self, end: _End) -> _FailedTransaction | None:
        """End the span and measure the duration.

        Returns:
            What the transaction that repeats this one needs; None if it isn't repeated.
        """
        session = None if self.session is None else self.session()
        self.session = None
        outcome, error = end.outcome, self._error
        measured: Attributes = {names.TRANSACTION_OUTCOME: outcome}
        if error is not None:
            measured[names.ERROR_TYPE] = error
        span = self._span
        try:
            if span.is_recording():
                attributes = measured | {names.TRANSACTION_COMMAND_COUNT: self._commands}
                if self._commit_attempts:
                    attributes[names.TRANSACTION_COMMIT_ATTEMPT_COUNT] = self._commit_attempts
                if self._write_concern is not None:
                    attributes[names.TRANSACTION_WRITE_CONCERN] = self._write_concern
                if error is not None:
                    span.set_status(StatusCode.ERROR)
                span.set_attributes(attributes)
        finally:
            try:
                span.end(moment(end.at).nanoseconds)
            finally:
                if self._is_measured:
                    seconds = max(0.0, end.at - self.since)
                    self.telemetry.instruments.transaction_duration.record(seconds, measured, self._context)
        if not self._is_transient or error is None:
            return None
        return _FailedTransaction(
            None if session is None else weakref.ref(session), self.span_context, self.attempt, error
        )


class Transactions:
    """The transactions in progress of the clients that share a set of listeners. May be used on any thread.

    There is no lock: each step is a single dictionary operation.

    Args:
        guard: Counts and logs the failures.

    Attributes:
        open: The transactions. Whoever removes one from here ends it.
    """

    __slots__ = ("__weakref__", "_failed", "_has_woken_worker", "guard", "open")

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.forget()
        track(self)

    def forget(self) -> None:
        """Discard all transactions without ending them: after a fork, they are the parent's."""
        self.open: dict[_Key, Transaction] = {}
        self._failed: BoundedDict[bytes, _FailedTransaction] = BoundedDict(_LIMIT)
        self._has_woken_worker = False

    def command_started(
        self,
        command_name: str,
        command: Mapping[str, Any],
        address: Address | None,
        telemetry: Telemetry,
        context: Context,
        *,
        is_traced: bool,
        is_measured: bool,
    ) -> TransactionCommand | None:
        """Add a command to its transaction, which is started if this is its first command.

        Runs on the thread, or in the task, that called the driver.

        Args:
            command_name: The name of the command.
            command: The command, which has `autocommit: false`.
            address: The address of its server.
            telemetry: The telemetry in effect.
            context: The caller's context.
            is_traced: Whether a new transaction gets a span.
            is_measured: Whether a new transaction is measured.

        Returns:
            The command as a part of its transaction; None if the transaction's start was not seen.
        """
        session, number = session_id(command), transaction_number(command)
        if session is None or number is None:
            return None
        key = session, number
        transaction = self.open.get(key)
        if transaction is None:
            if command.get("startTransaction") is not True:
                return None
            transaction = self._start(key, command, telemetry, context, is_traced, is_measured)
        transaction.command_started(command_name, command, address)
        return TransactionCommand(self, transaction, command_name)

    def _start(
        self,
        key: _Key,
        command: Mapping[str, Any],
        telemetry: Telemetry,
        context: Context,
        is_traced: bool,
        is_measured: bool,
    ) -> Transaction:
        # The driver begins another one only if the session's last one has ended.
        for other in list(self.open.values()):
            if other.key[0] == key[0]:
                self._give_up(other, other.last_at)
        session = current_session(command.get("lsid"))
        # When a session is collected, the transaction is over.
        reference = None if session is None else weakref.ref(session, lambda _: background_worker.wake())
        previous = self._failed.pop(key[0], None)
        if previous is not None and not previous.is_of(session):
            previous = None  # another session got the id of the previous one
        transaction = Transaction(key, telemetry, context, reference, is_measured=is_measured, previous=previous)
        if is_traced:
            try:
                transaction.start_span(command, previous)
            except FAILURES as error:  # the transaction is measured anyway
                self.guard.failed("the start of a transaction", error)
        if previous is not None and is_measured:
            telemetry.instruments.add(names.MONGODB_CLIENT_TRANSACTION_RETRIES, previous.error)
        self.open[key] = transaction
        if len(self.open) > _LIMIT:
            self._give_up(next(iter(self.open.copy().values())), monotonic())
        if not self._has_woken_worker:  # it ends the open transactions at the interpreter's exit
            self._has_woken_worker = True
            background_worker.wake()
        return transaction

    def end(self, transaction: Transaction, end: _End) -> None:
        """End a transaction, unless another thread has done so. Called on any thread."""
        if self.open.pop(transaction.key, None) is not None:  # atomic
            self.guard.run("the end of a transaction", self._close, transaction, end)

    def _give_up(self, transaction: Transaction, at: float) -> None:
        """End a transaction without a command, at that time unless its commit or abort has ended it before."""
        self.end(transaction, transaction.ended or _End(_ABANDONED, at))

    def _close(self, transaction: Transaction, end: _End) -> None:
        failed = transaction.close(end)
        if failed is not None:
            self._failed.put(transaction.key[0], failed)

    def pool_closed(self, address: Address) -> None:
        """End the transactions of a client that was closed. Runs on the thread that closed it.

        Args:
            address: The address of the pool.
        """
        for transaction in list(self.open.values()):
            if transaction.address == id(address):
                self._give_up(transaction, monotonic())

    def end_all(self) -> None:
        """End all transactions: nothing is recorded from now on. Called on any thread; never raises."""
        for transaction in list(self.open.values()):
            self._give_up(transaction, monotonic())

    def check(self) -> bool:
        """End the transactions that no command will end. Called on the background thread.

        Returns:
            Whether a transaction waits for its commit or abort to be sent again.
        """
        for transaction in list(self.open.values()):
            end = _end_without_command(transaction)
            if end is not None:
                self.end(transaction, end)
        return any(transaction.ended is not None for transaction in list(self.open.values()))


class TransactionCommand(NamedTuple):
    """A command that is a part of a transaction.

    Attributes:
        transactions: The transactions of its client.
        transaction: Its transaction.
        name: The name of the command.
    """

    transactions: Transactions
    transaction: Transaction
    name: str

    def add_link(self, links: Sequence[Link] | None) -> Sequence[Link] | None:
        """Return the links of the command's span: those given, and one to the transaction if that has a span."""
        span_context = self.transaction.span_context
        return links if span_context is None else [*(links or ()), Link(span_context)]

    def end(self, outcome: Outcome) -> None:
        """Note the outcome of the command, and end the transaction if it was the last one."""
        end = self.transaction.command_ended(self.name, outcome)
        if end is not None:
            self.transactions.end(self.transaction, end)
        elif self.transaction.ended is not None:
            background_worker.wake()


def _check() -> float | None:
    """Check all transactions; return in how many seconds to check again, or None if that isn't necessary."""
    are_waiting = [transactions.check() for transactions in instances(Transactions)]
    return _CHECK_INTERVAL if any(are_waiting) else None


def _end_all() -> None:
    for transactions in instances(Transactions):
        transactions.end_all()


def _end_without_command(transaction: Transaction) -> _End | None:
    """Return how a transaction has ended for which no command will be sent; None if one may still be sent."""
    end = transaction.ended
    if transaction.session is not None:
        session = transaction.session()
        if session is None or session.has_ended:
            # When that happened isn't known.
            return end or _End(_ABANDONED, transaction.last_at)
        # The driver doesn't abort a transaction twice, but the application may commit one again.
        if end is not None and end.outcome == _ABORTED and not session.in_transaction:
            return end
    return end if end is not None and monotonic() - end.at >= _MAX_REPEAT_WAIT else None


def _is_unknown(outcome: Outcome) -> bool:
    """Whether a transaction may be committed although its commit failed."""
    return (
        _is_retryable(outcome)
        or outcome.attributes.get(names.DB_RESPONSE_STATUS_CODE) in _UNKNOWN_COMMIT_CODES
        or "UnknownTransactionCommitResult" in outcome.labels
    )


def _is_retryable(outcome: Outcome) -> bool:
    """Whether the driver may repeat a commit or an abort that failed."""
    return (
        names.DB_RESPONSE_STATUS_CODE not in outcome.attributes  # no reply was received
        or is_loss_of_server(outcome.attributes)
        or "RetryableWriteError" in outcome.labels
        or "RetryableError" in outcome.labels  # the server was overloaded; since PyMongo 4.17
    )


def _as_text(w: object) -> str | None:
    """Return the `w` of a write concern: a number of servers, `majority`, or the name of a custom write concern."""
    number = whole_number(w)
    return plain_text(w) if number is None else str(number)


background_worker.register(_check, _end_all)
