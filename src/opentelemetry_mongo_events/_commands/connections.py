"""The pool listener for command spans: tracks held connections and ends the spans of interrupted commands."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._commands.claims import give_up
from opentelemetry_mongo_events._commands.held_connections import (
    Delays,
    HeldConnection,
    held_connections,
    hold,
    release,
)
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS, duration
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.failed_checkouts import (
    checkout_failed,
    checkout_started,
    checkout_succeeded,
    failed_before,
)
from opentelemetry_mongo_events._servers.selections import begin_checkout, pending_delay, take_delay

if TYPE_CHECKING:
    from pymongo.monitoring import (
        ConnectionCheckedInEvent,
        ConnectionCheckedOutEvent,
        ConnectionCheckOutFailedEvent,
        ConnectionCheckOutStartedEvent,
        ConnectionClosedEvent,
        ConnectionCreatedEvent,
        ConnectionReadyEvent,
        PoolClosedEvent,
    )

    from opentelemetry_mongo_events._commands.open_commands import OpenCommands
    from opentelemetry_mongo_events._commands.transactions import Transactions
    from opentelemetry_mongo_events._telemetry.telemetry import Switch


_checkout_started: ContextVar[float | None] = ContextVar("opentelemetry_mongo_events_checkout_started", default=None)


# Seconds. A command reports no shorter wait, which nearly every command has; the metric contains all of them.
_MIN_WAIT: Final = 0.001


class ConnectionEvents(NeverCopied, QuietPoolListener):
    """Tracks which connections each thread or task holds.

    A thread or task holds a connection while it establishes it (the driver sends commands to authenticate) and while it
    has checked it out. Runs on the thread, or in the task, that called the driver; never raises.

    The first three methods run for each command.

    Args:
        switch: Holds the telemetry in effect. Without it, or without an SDK, connections that are checked out are not
            tracked.
        open_commands: The table of open commands, which `CommandEvents` shares.
        transactions: The transactions in progress, which it shares, too.
        guard: Counts and logs the failures of this listener.
    """

    def __init__(self, switch: Switch, open_commands: OpenCommands, transactions: Transactions, guard: Guard) -> None:
        self.guard = guard
        self._switch = switch
        self._open = open_commands
        self._transactions = transactions

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Record when the current thread or task started to wait for a connection, and how long for its server."""
        try:
            if pending_delay() is not None:
                begin_checkout(event.address)
            if (failed := failed_before()) is not None:
                checkout_started(failed)
            if not POOL_EVENTS_HAVE_DURATIONS:
                _checkout_started.set(time.perf_counter())
        except FAILURES as error:
            self.guard.failed("ConnectionEvents.connection_check_out_started", error)

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Record that the current thread or task has checked out a connection."""
        try:
            telemetry = self._switch.telemetry
            if telemetry is None:
                return
            tracer_check = telemetry.tracer_check
            if not (tracer_check.found_sdk or tracer_check or telemetry.instruments.provider_check):
                return
            held = HeldConnection(self._open, event.address, event.connection_id)
            hold(held)
            wait_time = event.duration if POOL_EVENTS_HAVE_DURATIONS else duration(event, _checkout_started.get())
            if pending_delay() is not None or failed_before() is not None:
                held.delays = _delays(wait_time)
            elif wait_time is not None and wait_time >= _MIN_WAIT:
                held.delays = Delays(round(wait_time, 6))
        except FAILURES as error:
            self.guard.failed("ConnectionEvents.connection_checked_out", error)

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Release the connection."""
        try:
            connections = held_connections()
            if len(connections) == 1:  # the usual case
                held = connections[0]
                if (
                    held.command is None
                    and held.owner is self._open
                    and held.connection_id == event.connection_id
                    and held.pool == id(event.address)
                    and not held.is_establishing
                ):
                    held.owner = None
                    return
            if connections:
                self._release(event, is_establishing=False)
        except FAILURES as error:
            self.guard.failed("ConnectionEvents.connection_checked_in", error)

    @guarded
    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """Record that the current thread or task is establishing a connection."""
        hold(HeldConnection(self._open, event.address, event.connection_id, is_establishing=True))

    @guarded
    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Release the connection: it is established and belongs to the pool."""
        self._release(event, is_establishing=True)

    @guarded
    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """Keep the failure for the next attempt of the operation."""
        checkout_failed(event, duration(event, _checkout_started.get()) or 0.0)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """Release a connection that was being established. Others are checked in before they are closed."""
        self._release(event, is_establishing=True)

    @guarded
    def pool_closed(self, event: PoolClosedEvent) -> None:
        """End the transactions of the pool's server: the client was closed, or the server left the topology."""
        self._transactions.pool_closed(event.address)

    def _release(self, event: Any, *, is_establishing: bool) -> None:
        held = release(self._open, event.address, event.connection_id, is_establishing=is_establishing)
        if held is None:
            return
        # Up to 4.20.0 the driver publishes no event for the end of a command whose task is cancelled or whose thread is
        # interrupted. But the same task or thread returns the connection.
        command = self._open.take_abandoned(held)
        if command is not None:
            give_up(self._open)
            command.interrupt()


def _delays(wait_time: float | None) -> Delays:
    """Return what delayed the next command: the selection of its server, or failed checkouts, too."""
    selection_wait_time = take_delay()
    failed = checkout_succeeded()
    if wait_time is None:
        return Delays(None, selection_wait_time)
    if failed is not None:
        wait_time += failed.seconds
    return Delays(round(wait_time, 6) if wait_time >= _MIN_WAIT else None, selection_wait_time, failed)
