"""What a command span needs from the pool: its connection, and the end of a command that was interrupted."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry_mongo_events._commands.claims import give_up
from opentelemetry_mongo_events._commands.held_connections import hold, release
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS, duration
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded

if TYPE_CHECKING:
    from pymongo.monitoring import (
        ConnectionCheckedInEvent,
        ConnectionCheckedOutEvent,
        ConnectionCheckOutStartedEvent,
        ConnectionClosedEvent,
        ConnectionCreatedEvent,
        ConnectionReadyEvent,
    )

    from opentelemetry_mongo_events._commands.open_commands import OpenCommands


_checkout_started: ContextVar[float | None] = ContextVar("opentelemetry_mongo_events_checkout_started", default=None)


class ConnectionEvents(NeverCopied, QuietPoolListener):
    """Follows who holds which connection. Runs on the thread, or in the task, that called the driver; never raises.

    A connection is held twice: while it is made (the driver authenticates on it) and while it is checked out.
    """

    def __init__(self, open_commands: OpenCommands, guard: Guard) -> None:
        self.guard = guard
        self._open = open_commands

    @guarded
    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """The current thread or task makes a connection."""
        hold(self._open, event.address, event.connection_id, being_made=True)

    @guarded
    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """The connection is made, and handed to the pool."""
        self._release(event, being_made=True)

    @guarded
    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """The current thread or task got a connection."""
        hold(self._open, event.address, event.connection_id).wait_time = duration(event, _checkout_started.get())

    @guarded
    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """The connection was given back."""
        self._release(event, being_made=False)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """The connection is gone: one that was being made doesn't come to be checked in, as others do before it."""
        self._release(event, being_made=True)

    def _release(self, event: Any, *, being_made: bool) -> None:
        held = release(self._open, event.address, event.connection_id, being_made=being_made)
        if held is None:
            return
        # Up to 4.20.0 the driver publishes no end of a command that a cancelled task or an interrupted thread gives up.
        # It gives the connection back in the same task or thread.
        command = self._open.take_abandoned(held)
        if command is not None:
            give_up(self._open)
            command.interrupt()

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """The current thread or task waits for a connection."""
        if not POOL_EVENTS_HAVE_DURATIONS:
            _checkout_started.set(time.perf_counter())
