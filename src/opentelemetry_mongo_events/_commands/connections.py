"""The pool listener for command spans: tracks held connections and ends the spans of interrupted commands."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._commands.claims import give_up
from opentelemetry_mongo_events._commands.held_connections import hold, release
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS, duration
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.failed_checkouts import checkout_failed, checkout_started, checkout_succeeded
from opentelemetry_mongo_events._servers.selections import begin_checkout, take_delay

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


_checkout_started: ContextVar[float | None] = ContextVar("opentelemetry_mongo_events_checkout_started", default=None)


# Seconds. A command reports no shorter wait, which nearly every command has; the metric contains all of them.
_MIN_WAIT: Final = 0.001


class ConnectionEvents(NeverCopied, QuietPoolListener):
    """Tracks which connections each thread or task holds.

    A thread or task holds a connection while it establishes it (the driver sends commands to authenticate) and while it
    has checked it out. Runs on the thread, or in the task, that called the driver; never raises.
    """

    def __init__(self, open_commands: OpenCommands, transactions: Transactions, guard: Guard) -> None:
        self.guard = guard
        self._open = open_commands
        self._transactions = transactions

    @guarded
    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """Record that the current thread or task is establishing a connection."""
        hold(self._open, event.address, event.connection_id, is_establishing=True)

    @guarded
    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Release the connection: it is established and belongs to the pool."""
        self._release(event, is_establishing=True)

    @guarded
    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Record that the current thread or task has checked out a connection."""
        held = hold(self._open, event.address, event.connection_id)
        wait_time = duration(event, _checkout_started.get())
        held.selection_wait_time = take_delay()
        failed = checkout_succeeded()
        if failed is not None and wait_time is not None:
            wait_time, held.failed_checkouts = wait_time + failed.seconds, failed
        if wait_time is not None and wait_time >= _MIN_WAIT:
            held.wait_time = round(wait_time, 6)

    @guarded
    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """Keep the failure for the next attempt of the operation."""
        checkout_failed(event, duration(event, _checkout_started.get()) or 0.0)

    @guarded
    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Release the connection."""
        self._release(event, is_establishing=False)

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

    @guarded
    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Record when the current thread or task started to wait for a connection, and how long for its server."""
        begin_checkout(event.address)
        checkout_started()
        if not POOL_EVENTS_HAVE_DURATIONS:
            _checkout_started.set(time.perf_counter())
