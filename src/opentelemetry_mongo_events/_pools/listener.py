"""Connection pools as metrics, and a span for each checkout that failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.status import Status, StatusCode
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

from opentelemetry_mongo_events._driver.versions import duration, runs_in_background
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._servers.events import BackgroundEvent
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
    """Follows what the pools hold, and measures. Never raises.

    The pool's own events (created, ready, cleared, closed) come on whichever thread changes the topology, under locks
    of the driver's: nothing is called there that could block. All others come on the thread, or in the task, that
    called the driver.

    What the pools hold is followed whether or not telemetry is on: it may be on again later.
    """

    def __init__(self, pools: PoolStates, servers: ServerStates, guard: Guard) -> None:
        self.guard = guard
        self._pools = pools
        self._servers = servers

    @guarded
    def pool_created(self, event: PoolCreatedEvent) -> None:
        """Know the pool, with its options."""
        self._pools.create(event.address, event.options or {})

    @guarded
    def pool_ready(self, event: PoolReadyEvent) -> None:
        """It is in use, as at first and after each time that it was cleared."""
        self._pools.of(event.address).is_ready = True

    @guarded
    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """Count it, and tell it. The connections that it closes are told one by one."""
        pool = self._pools.of(event.address)
        if event.service_id is None:  # all of it, not only what is connected to one server behind a load balancer
            if pool.is_ready is False:
                return  # the client has this listener twice
            if pool.is_ready:
                pool.is_ready = False
            pool.empty()
        if (telemetry := self._telemetry(pool)) is not None:
            telemetry.instruments.add(names.MONGODB_CLIENT_POOL_CLEARED, *pool.attributes.values())
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
        """Forget the pool, once its last connection is back."""
        self._pools.close(event.address)

    @guarded
    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """A connection is being made."""
        self._pools.of(event.address).making[event.connection_id] = time.perf_counter()

    @guarded
    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """It is made."""
        pool = self._pools.of(event.address)
        since = pool.making.pop(event.connection_id, None)
        if event.connection_id in pool.made:
            return  # the client has this listener twice
        pool.made[event.connection_id] = time.perf_counter()
        if (instruments := self._measuring(pool)) is not None:
            _record(instruments.create_time, duration(event, since), pool)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """It is gone, whether it was made or not. One that was inherited by a fork, or closed before, is not known."""
        pool = self._pools.known(event.address)
        if pool is None:
            return
        known = [
            pool.making.pop(event.connection_id, None) is not None,
            pool.made.pop(event.connection_id, None) is not None,
            event.connection_id in pool.closing,
        ]
        pool.closing.discard(event.connection_id)
        # One that is closed while it is out, as by an exhaust cursor that is given up, comes back only afterwards.
        uses = pool.forget(event.connection_id)
        if any(known) and (telemetry := self._telemetry(pool)) is not None:
            telemetry.instruments.add(
                names.MONGODB_CLIENT_CONNECTION_CLOSED, *pool.attributes.values(), str(event.reason)
            )
        for since in uses:
            if (instruments := self._measuring(pool)) is not None:
                _record(instruments.use_time, time.perf_counter() - since, pool)

    @guarded
    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Somebody waits for a connection."""
        if isinstance(event, ConnectionCheckOutFailedEvent):  # PyMongo 4.0 tells it here
            self.connection_check_out_failed(event)
            return
        self._pools.of(event.address).waiters.begin()

    @guarded
    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """They got one."""
        pool = self._pools.of(event.address)
        since = pool.waiters.end()
        if not pool.take(event.connection_id):
            return  # the client has this listener twice
        if (instruments := self._measuring(pool)) is not None:
            _record(instruments.wait_time, duration(event, since), pool)

    @guarded
    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """They got none: no command is sent, so this has a span of its own."""
        ended = time.time_ns()
        pool = self._pools.of(event.address)
        seconds = duration(event, pool.waiters.end()) or 0.0
        telemetry = self._telemetry(pool)
        if telemetry is None:
            return
        reason = str(event.reason)
        name = pool.attributes[names.POOL_NAME]
        telemetry.instruments.add(names.MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES, name, reason)
        if reason == "timeout":
            telemetry.instruments.add(names.DB_CLIENT_CONNECTION_TIMEOUTS, name)
        self._trace_failure(telemetry, pool, reason, ended - int(seconds * 1e9), ended)

    @guarded
    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """They gave it back. One that was inherited by a fork is not known."""
        pool = self._pools.known(event.address)
        since = None if pool is None else pool.give_back(event.connection_id)
        if pool is None or since is None:
            return
        now = time.perf_counter()
        pool.made[event.connection_id] = now
        if (instruments := self._measuring(pool)) is not None:
            _record(instruments.use_time, now - since, pool)

    def _telemetry(self, pool: PoolState) -> Telemetry | None:
        """Where this pool reports, if anywhere."""
        return None if pool.is_reported_by_another else self._pools.switch.of("pools")

    def _measuring(self, pool: PoolState) -> Instruments | None:
        """What this pool is measured with; None where it reports nowhere, or nothing would come of it."""
        telemetry = self._pools.switch.telemetry
        if telemetry is None or not telemetry.config.pools or (pool.others and pool.is_reported_by_another):
            return None
        instruments = telemetry.instruments
        return instruments if instruments.provider_check.found_sdk or instruments.provider_check else None

    def _trace_failure(self, telemetry: Telemetry, pool: PoolState, reason: str, started: int, ended: int) -> None:
        """A span of the wait that was in vain, from and to the times in nanoseconds."""
        if not is_instrumentation_enabled():
            return
        context = _context()
        if telemetry.config.require_parent_span and not get_current_span(context).get_span_context().is_valid:
            return
        attributes: dict[str, Any] = {
            names.DB_SYSTEM_NAME: names.MONGODB,
            **server_attributes(pool.identity.address),
            **pool.attributes,
            names.ERROR_TYPE: reason,
        }
        span = telemetry.tracer.start_span(
            f"checkout {pool.target}", context, SpanKind.INTERNAL, attributes, start_time=started
        )
        try:
            span.set_status(Status(StatusCode.ERROR, reason))
            if reason != "poolClosed" and span.get_span_context().trace_flags.sampled:
                note_failure(pool.identity.address, span.get_span_context())
        finally:
            span.end(ended)


def _record(histogram: Histogram, seconds: float | None, pool: PoolState) -> None:
    if seconds is not None:
        histogram.record(seconds, pool.attributes, _context())


def _context() -> Context:
    """That of the caller: the driver's background tasks copied a stranger's."""
    context = get_current()
    return NO_PARENT if context and runs_in_background() else context  # mostly empty, which is quicker to tell
