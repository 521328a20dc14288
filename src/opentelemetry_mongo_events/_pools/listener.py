"""The listener for connection pools: measures them, and starts a span for each checkout that failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.status import StatusCode
from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)

from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS, duration, runs_in_background
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.failed_checkouts import add_span
from opentelemetry_mongo_events._servers.reports import report
from opentelemetry_mongo_events._servers.state import note_failure
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import server_attributes
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram

    from opentelemetry_mongo_events._pools.state import PoolState, PoolStates
    from opentelemetry_mongo_events._servers.state import ServerStates
    from opentelemetry_mongo_events._telemetry.instruments import Instruments
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry


class PoolEvents(NeverCopied, ConnectionPoolListener):
    """Tracks the connections of pools, and measures them.

    The events of a pool itself (created, ready, cleared, closed) arrive on the thread that changes the topology, while
    the driver holds locks, so their methods must not block. All other events arrive on the thread, or in the task, that
    called the driver. No method raises.

    Connections are tracked even while telemetry is switched off, because it may be switched on again. But before there
    is an SDK that receives the metrics, the first three methods do nothing, since they run for each command. A
    connection that is checked out when the SDK is installed counts as idle until it is checked in.

    Args:
        pools: The state of the pools.
        servers: The state of the servers, which receives the events of cleared pools.
        guard: Counts and logs the failures of this listener.
    """

    def __init__(self, pools: PoolStates, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._pools = pools
        self._servers = servers
        if not POOL_EVENTS_HAVE_DURATIONS:  # the span of a failed checkout needs to know when it started
            pools.tracked_since = time.perf_counter()

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Note that the current thread or task waits for a connection."""
        try:
            if self._pools.tracked_since is None and not self._pools.begin_tracking():
                return
            if isinstance(event, ConnectionCheckOutFailedEvent):  # PyMongo 4.0 and 4.1 publish a failure here
                self.connection_check_out_failed(event)
                return
            self._pools.of(event.address).waiters.begin()
        except FAILURES as error:
            self.guard.failed("PoolEvents.connection_check_out_started", error)

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Note that a connection was checked out, and measure how long that took."""
        try:
            if self._pools.tracked_since is None:
                return
            pool = self._pools.of(event.address)
            since = pool.waiters.end()
            if not pool.check_out(event.connection_id):
                return  # the client has this listener twice
            if (instruments := self._instruments(pool)) is not None:
                _record(instruments.wait_time, duration(event, since), pool)
        except FAILURES as error:
            self.guard.failed("PoolEvents.connection_checked_out", error)

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Note that a connection was checked in, and measure its use. One that was inherited in a fork isn't known."""
        try:
            if self._pools.tracked_since is None:
                return
            pool = self._pools.known(event.address)
            since = None if pool is None else pool.check_in(event.connection_id)
            if pool is None or since is None:
                return
            now = time.perf_counter()
            pool.made[event.connection_id] = now
            if (instruments := self._instruments(pool)) is not None:
                _record(instruments.use_time, now - since, pool)
        except FAILURES as error:
            self.guard.failed("PoolEvents.connection_checked_in", error)

    @guarded
    def pool_created(self, event: PoolCreatedEvent) -> None:
        """Add the pool, with its options."""
        self._pools.create(event.address, event.options or {})

    @guarded
    def pool_ready(self, event: PoolReadyEvent) -> None:
        """Mark the pool as ready: initially, and again after it was cleared."""
        self._pools.of(event.address).is_ready = True

    @guarded
    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """Count and report that the pool was cleared. Each connection that this closes has an event of its own."""
        pool = self._pools.of(event.address)
        if event.service_id is None:  # the whole pool, not only its connections to one server behind a load balancer
            if pool.is_ready is False:
                return  # the client has this listener twice
            if pool.is_ready:
                pool.is_ready = False
            pool.clear()
        if (telemetry := self._telemetry(pool)) is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_POOL_CLEARED, *pool.key)
        server = self._servers.known(event.address)
        topology = None if server is None else server.topology
        attributes = server_attributes(event.address) if server is None else server.event_attributes
        address = id(event.address)
        background_event = BackgroundEvent(names.POOL_CLEARED, attributes, server=address)
        if server is not None:
            server.note(background_event)
        report(background_event, telemetry, topology, (address,))

    @guarded
    def pool_closed(self, event: PoolClosedEvent) -> None:
        """Mark the pool as closed. It is forgotten once its last connection is back."""
        self._pools.close(event.address)

    @guarded
    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """Note that the driver has begun to create a connection."""
        self._pools.of(event.address).making[event.connection_id] = time.perf_counter()

    @guarded
    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Note that a connection is established, and measure how long that took."""
        pool = self._pools.of(event.address)
        since = pool.making.pop(event.connection_id, None)
        if event.connection_id in pool.made:
            return  # the client has this listener twice
        pool.made[event.connection_id] = time.perf_counter()
        if (instruments := self._instruments(pool)) is not None:
            _record(instruments.create_time, duration(event, since), pool)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """Remove a connection, established or not, and count it.

        A connection that was inherited in a fork or closed before isn't known, and isn't counted.
        """
        pool = self._pools.known(event.address)
        if pool is None:
            return
        was_known = [
            pool.making.pop(event.connection_id, None) is not None,
            pool.made.pop(event.connection_id, None) is not None,
            event.connection_id in pool.closing,
        ]
        pool.closing.discard(event.connection_id)
        # A connection that is closed while checked out (by an abandoned exhaust cursor) is checked in only afterwards.
        uses = pool.end_uses(event.connection_id)
        if any(was_known) and (telemetry := self._telemetry(pool)) is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_CONNECTION_CLOSED, *pool.key, str(event.reason))
        for since in uses:
            if (instruments := self._instruments(pool)) is not None:
                _record(instruments.use_time, time.perf_counter() - since, pool)

    @guarded
    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """Count a failed checkout, and record a span for it: no command is sent whose span could show it."""
        ended = time.time_ns()
        pool = self._pools.of(event.address)
        seconds = duration(event, pool.waiters.end()) or 0.0
        telemetry = self._telemetry(pool)
        if telemetry is None:
            return
        reason = str(event.reason)
        telemetry.instruments.add(names.MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES, *pool.key, reason)
        if reason == "timeout":
            telemetry.instruments.add(names.DB_CLIENT_CONNECTION_TIMEOUTS, *pool.key)
        self._trace_failure(telemetry, pool, event, ended - int(seconds * 1e9), ended)

    def _telemetry(self, pool: PoolState) -> Telemetry | None:
        """Return where to report a pool, or None."""
        return None if pool.is_reported_by_another else self._pools.switch.of("pools")

    def _instruments(self, pool: PoolState) -> Instruments | None:
        """Return the instruments of a pool; None if the pool isn't reported, or no SDK is installed."""
        telemetry = self._pools.switch.telemetry
        if telemetry is None or not telemetry.config.pools or (pool.others and pool.is_reported_by_another):
            return None
        instruments = telemetry.instruments
        return instruments if instruments.provider_check.found_sdk or instruments.provider_check else None

    def _trace_failure(
        self, telemetry: Telemetry, pool: PoolState, event: ConnectionCheckOutFailedEvent, started: int, ended: int
    ) -> None:
        """Record a span for a failed checkout.

        Args:
            telemetry: Where to report it.
            pool: The pool.
            event: The driver's event of the failure.
            started: When the checkout started, in nanoseconds since the epoch.
            ended: When it failed, in nanoseconds since the epoch.
        """
        if not is_instrumentation_enabled():
            return
        context = _context()
        if telemetry.config.require_parent_span and not get_current_span(context).get_span_context().is_valid:
            return
        reason = str(event.reason)
        attributes: dict[str, Any] = {**pool.attributes, names.ERROR_TYPE: reason}
        span = telemetry.tracer.start_span(
            f"checkout {pool.target}", context, SpanKind.INTERNAL, attributes, start_time=started
        )
        try:
            span.set_status(StatusCode.ERROR)
            if span.is_recording():
                add_span(event, span.get_span_context())
            if reason != "poolClosed":
                note_failure(pool.identity.address, span.get_span_context(), is_timeout=reason == "timeout")
        finally:
            span.end(ended)


def _record(histogram: Histogram, seconds: float | None, pool: PoolState) -> None:
    if seconds is not None:
        histogram.record(seconds, pool.attributes, _context())


def _context() -> Context:
    """Return the caller's context, or `NO_PARENT` in the driver's background tasks: they copied an unrelated one."""
    context = get_current()
    # The context is mostly empty, which is cheaper to check than the thread.
    return NO_PARENT if context and runs_in_background() else context
