"""What the driver itself tells of its commands, and whether the spans are just those.

Listeners of this module's own stand around those of the package: what comes between them, on the same thread, came of
the same event.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from pymongo import monitoring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context

HEARTBEATS: Final = "heartbeats"
GIVEN_UP: Final = "heartbeats given up"

SCOPE: Final = "opentelemetry_mongo_events"


class Command:
    """One command, as the driver tells it, and what came of it.

    Attributes:
        event: That of its start.
        owner: The thread or task that sent it.
        connection: The driver's number of its connection, as its own connection has it.
        test: The test that ran by then.
        started: The spans that started with it.
        ended: Those that ended with it.
    """

    def __init__(self, event: monitoring.CommandStartedEvent, test: str) -> None:
        self.event = event
        self.owner = _owner()
        self.connection = _connection()
        self.test = test
        self.started: list[int] = []
        self.ended: list[ReadableSpan] = []

    def __str__(self) -> str:
        return f"{self.event.command_name} in {self.test}"


class Truth(SpanProcessor):
    """Follows the driver's events and the spans, and notes what doesn't fit.

    Attributes:
        test: The test that runs.
        faults: What is wrong, and how often.
        counts: How many events of each kind there were, and how many spans.
        open: The commands that have not ended, by what tells their ends.
    """

    def __init__(self) -> None:
        self.test = "no test"
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.open: dict[tuple[Any, ...], list[Command]] = {}
        self._here = threading.local()
        self._open_spans: dict[int, str] = {}
        # A finalizer may send a command while this is held.
        self.lock = threading.RLock()

    def count(self, what: str) -> None:
        """Count one more. Runs on any thread."""
        with self.lock:
            self.counts[what] += 1

    def fault(self, text: str) -> None:
        """Note a fault. Runs on any thread."""
        with self.lock:
            self.faults[text] += 1

    @property
    def open_spans(self) -> list[str]:
        """The names of the spans that have not ended, and the tests in which they started."""
        return list(self._open_spans.values())

    def without_end(self) -> Iterator[Command]:
        """The commands of which the driver told no end."""
        for commands in list(self.open.values()):
            yield from commands

    # What the listeners tell.

    def before_start(self, event: monitoring.CommandStartedEvent) -> None:
        """The driver has started a command; the package is told next."""
        self.count("commands started")
        command = Command(event, self.test)
        with self.lock:
            self.open.setdefault(_key(event), []).append(command)
        self._here.command = command

    def after_start(self) -> None:
        """The package was told of the start."""
        command = self._here.command
        self._here.command = None
        if len(command.started) != 1:
            self.fault(f"{len(command.started)} spans started with {command}")

    def before_end(self, event: Any) -> None:
        """The driver has ended a command; the package is told next."""
        self.count("commands ended")
        with self.lock:
            commands = self.open.get(_key(event), [])
            owner = _owner()
            of_this_owner = [command for command in commands if command.owner == owner]
            command = next(reversed(of_this_owner or commands), None)
            if command is not None:
                commands.remove(command)
                if not commands:
                    del self.open[_key(event)]
        if command is None:
            self.fault(f"an end without a start: {event.command_name} in {self.test}")
        self._here.command = command

    def after_end(self, event: Any) -> None:
        """The package was told of the end."""
        command = self._here.command
        self._here.command = None
        if command is None:
            return
        if [_span_id(span) for span in command.ended] != command.started:
            self.fault(f"{len(command.ended)} spans ended with {command}, and {len(command.started)} had started")
            return
        for span in command.ended:
            for fault in differences(command, event, span):
                self.fault(f"{fault}: {command}")

    # What the spans tell.

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A span started."""
        if not _is_ours(span):
            return
        self.count("spans started")
        with self.lock:
            self._open_spans[_span_id(span)] = f"{span.name} in {self.test}"
        if span.kind is SpanKind.CLIENT:
            command = getattr(self._here, "command", None)
            if command is None:
                self.fault(f"a span of no command: {span.name} in {self.test}")
            else:
                command.started.append(_span_id(span))

    def on_end(self, span: ReadableSpan) -> None:
        """A span ended."""
        if not _is_ours(span):
            return
        self.count("spans ended")
        with self.lock:
            if self._open_spans.pop(_span_id(span), None) is None:
                self.fault(f"a span ended twice, or without a start: {span.name} in {self.test}")
        if span.kind is not SpanKind.CLIENT:
            self.count("checkout spans" if span.name.startswith("checkout ") else f"{span.name} spans")
            return
        attributes = span.attributes or {}
        command = getattr(self._here, "command", None)
        if command is not None and _span_id(span) in command.started:
            command.ended.append(span)
        elif attributes.get("error.type") == "interrupted":
            self.count("interrupted spans")
        else:
            self.fault(f"a span ended without its command: {span.name} in {self.test}")


def differences(command: Command, event: Any, span: ReadableSpan) -> Iterator[str]:
    """In what a span isn't what the driver told of its command."""
    started = command.event
    host, port = started.connection_id
    told: dict[str, Any] = {
        "db.operation.name": started.command_name,
        "db.namespace": started.database_name,
        "server.address": host,
        "server.port": port,
        "db.mongodb.server_connection_id": getattr(started, "server_connection_id", None),
        "error.type": None,
    }
    if command.connection is not None:
        told["db.mongodb.driver_connection_id"] = command.connection
    reply = getattr(event, "reply", {})
    failure = getattr(event, "failure", None)
    if failure is not None:
        code = failure.get("code")
        told["error.type"] = failure.get("errtype", "_OTHER") if code is None else str(code)
    elif errors := [*reply.get("writeErrors", ()), *filter(None, [reply.get("writeConcernError")])]:
        told["error.type"] = str(errors[0].get("code", "_OTHER"))
    batch = _batch(reply)
    if batch is not None:
        told["db.response.returned_rows"] = len(batch)
    attributes = span.attributes or {}
    for name, value in told.items():
        if attributes.get(name) != value:
            yield f"{name} is {attributes.get(name)!r} and not {value!r}"
    if (span.status.status_code is StatusCode.ERROR) is not (told["error.type"] is not None):
        yield f"the status is {span.status.status_code}"
    text = attributes.get("db.query.text")
    if bool(started.command) is not (text is not None):
        yield "there is no text" if text is None else "there is a text of what is not to be shown"
    # A key that is no name is not shown, wherever it stands. Nor is the cursor of a `getMore`.
    firsts = (started.command_name, "?", "collection" if started.command_name == "getMore" else "?")
    if text is not None and next(iter(json.loads(str(text)))) not in firsts:
        yield "the text is of another command"


def _batch(reply: Any) -> Any:
    cursor = reply.get("cursor")
    if not hasattr(cursor, "get"):
        return None
    batch = cursor.get("firstBatch", cursor.get("nextBatch"))
    # Raw batches are one blob.
    return None if batch is None or (batch and isinstance(batch[0], bytes)) else batch


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


def _span_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def _key(event: Any) -> tuple[Any, ...]:
    return (event.request_id, event.connection_id, getattr(event, "server_connection_id", None))


def _owner() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task


def _connection() -> int | None:
    """The number of the connection that the driver's own code, which calls the listeners, is about to use."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        for name in ("conn", "sock_info"):
            if name in frame.f_code.co_varnames and frame.f_globals.get("__name__", "").startswith("pymongo."):
                number = getattr(frame.f_locals.get(name), "id", None)
                if isinstance(number, int):
                    return number
    return None


def _is_monitor_closed() -> bool:
    """Whether the driver has closed the monitor whose own code calls the listeners."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        monitor: Any = frame.f_locals.get("self")
        if type(monitor).__name__ in {"Monitor", "AsyncMonitor"}:
            return bool(monitor._executor._stopped)
    return True


class _Listener:
    """One of the truth's own."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def __deepcopy__(self, memo: object) -> _Listener:
        # The driver's tests save and restore what is registered by copies.
        return self


class Before(_Listener, monitoring.CommandListener):
    """To be registered before the package."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._truth.before_start(event)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._truth.before_end(event)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._truth.before_end(event)


class After(_Listener, monitoring.CommandListener):
    """To be registered after it."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._truth.after_start()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._truth.after_end(event)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._truth.after_end(event)


class Heartbeats(_Listener, monitoring.ServerHeartbeatListener):
    """Counts heartbeats, and apart from them those that the driver gave up, or whose monitor was closed meanwhile."""

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        """Not counted: some never end."""

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        self._truth.count(GIVEN_UP if _is_monitor_closed() else HEARTBEATS)

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        is_given_up = type(event.reply).__name__ == "_OperationCancelled"
        self._truth.count(GIVEN_UP if is_given_up or _is_monitor_closed() else HEARTBEATS)


def _counted(what: str) -> Any:
    def count(self: _Listener, event: object) -> None:
        self._truth.count(what)

    return count


class Pools(_Listener, monitoring.ConnectionPoolListener):
    """Counts what happens to pools."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self._out: Counter[tuple[int, int]] = Counter()
        self._cleared: set[int] = set()

    pool_closed = _counted("pools closed")
    connection_created = _counted("connections created")
    connection_ready = _counted("connections ready")
    connection_closed = _counted("connections closed")
    connection_check_out_started = _counted("checkouts started")
    connection_check_out_failed = _counted("checkouts failed")

    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None:
        self._truth.count("pools created")
        self._cleared.discard(id(event.address))  # it may be where that of a pool was which is gone

    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None:
        self._truth.count("pools ready")
        self._cleared.discard(id(event.address))

    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None:
        # There is a test that clears a pool as the driver does in a forked child only: it stays ready. To the package
        # the next time is the same one, told twice.
        self._truth.count("pools cleared again" if id(event.address) in self._cleared else "pools cleared")
        if event.service_id is None:
            self._cleared.add(id(event.address))

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        self._truth.count("checkouts")
        with self._truth.lock:
            self._out[id(event.address), event.connection_id] += 1

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        key = (id(event.address), event.connection_id)
        with self._truth.lock:
            is_out = self._out[key] > 0
            self._out[key] -= is_out
        # There are tests in which the driver comes not to tell the checkout.
        self._truth.count("checkins" if is_out else "checkins without a checkout")
