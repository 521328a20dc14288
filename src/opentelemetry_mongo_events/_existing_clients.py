"""Instruments existing clients by adding listeners to the driver's private lists, as PyMongo has no API for that."""

from __future__ import annotations

import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pymongo  # noqa: F401  # before modules of this package that import it, as in `event_listeners()`

from opentelemetry_mongo_events._config import OPTIONS
from opentelemetry_mongo_events._driver.client_internals import (
    ClientInternals,
    driver_client,
    idle_connections,
    is_ready,
)
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._driver.registration import deferred_listeners
from opentelemetry_mongo_events._listeners import SIGNALS, SignalListeners, are_active, usable_client_name
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.guard import Guard, guarded
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import SharedLock
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymongo.monitoring import (
        ConnectionCheckedInEvent,
        ConnectionCheckedOutEvent,
        ConnectionClosedEvent,
        _EventListeners,
    )

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._pools.state import PoolState


# Stands for the unknown thread that holds a connection: no thread has this identifier.
_UNKNOWN_THREAD: Final = 0


def instrument(client: object, keywords: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Instrument a client as `event_listeners(**keywords)` does for a new one, unless it is already instrumented.

    Args:
        client: The client.
        keywords: The keywords of `instrument_client()`.
        defaults: The keywords of `instrument()`, for options that `keywords` doesn't set.

    Raises:
        TypeError: `client` is not a client.
        RuntimeError: The driver's private attributes are not as expected, or the client can't be changed now. The
            client is unchanged.
    """
    internals = ClientInternals(client)
    given = {name: value for name, value in keywords.items() if value is not None}
    with _clients.lock():
        instrumented = _clients.instrumented.get(internals.listeners)
        if instrumented is not None and instrumented.switch.telemetry is not None:
            return _warn_of_ignored(given)
        client_name = usable_client_name(given.get("client_name"))
        telemetry = telemetry_from(_merged(given, defaults), other_tracers=None)
        current = [*internals.listeners.event_listeners(), *deferred_listeners(driver_client(client))]
        wanted = [s for s in SIGNALS if getattr(telemetry.config, s) and not are_active(current, s)]
        if not wanted:
            return _warn_of_ignored(given)
        if instrumented is None:
            switch = Switch()
            instrumented = _Instrumented(switch, SignalListeners(switch, client_name), set())
        else:
            instrumented.signals.pools.rename(client_name)
        with internals.locked():
            instrumented.switch.telemetry = telemetry
            try:
                missing = {signal for signal in wanted if signal not in instrumented.added}
                _add_listeners(internals, instrumented.signals, missing)
            except BaseException:
                instrumented.switch.telemetry = None
                raise
            instrumented.added.update(wanted)
            _clients.instrumented[internals.listeners] = instrumented
    return None


def uninstrument(client: object) -> None:
    """Uninstrument a client that `instrument` instrumented. For any other client, log a warning.

    Raises:
        TypeError: `client` is not a client.
    """
    with _clients.lock():
        listeners = getattr(driver_client(client), "_event_listeners", None)
        instrumented = None if listeners is None else _clients.instrumented.get(listeners)
        was_on = instrumented is not None and _switch_off(instrumented)
    if not was_on:
        warn("uninstrument_client() has no effect: the client was not instrumented by instrument_client()")
    background_worker.flush()


def uninstrument_all() -> bool:
    """Uninstrument all clients that `instrument` instrumented. Returns whether there were any."""
    with _clients.lock():
        were_on = [_switch_off(instrumented) for instrumented in list(_clients.instrumented.values())]
    background_worker.flush()
    return any(were_on)


def _add_listeners(client: ClientInternals, signals: SignalListeners, wanted: set[str]) -> None:
    """Add the listeners of some signals, and initialize their state from the client's.

    The listeners for topologies and pools are added before their state is read, so that no change on another thread is
    missed in between.
    """
    if "topology" in wanted:
        client.append_for_topology(
            signals.listeners("topology"), lambda: signals.servers.take_over(client.topology_id, client.description)
        )
    if "heartbeats" in wanted:
        for server in client.description.server_descriptions().values():
            signals.servers.take_over_server(server)
        client.append_for_heartbeats(signals.listeners("heartbeats"))
    checked_out = _CheckedOutConnections(Guard())
    if "pools" in wanted and client.has_connections_out:
        client.append([checked_out])  # the driver must call it before the other pool listeners
    for signal in ("commands", "pools", "selections"):
        if signal in wanted:
            client.append(signals.listeners(signal))
    if not wanted.isdisjoint(("commands", "pools")):
        for pool, connections in client.publish_pool_events():
            if "pools" in wanted:
                _take_over_pool(pool, connections, signals.pools.of(pool.address), checked_out)


class _Instrumented(NamedTuple):
    """What was added to a client.

    It is never removed: a command that is in progress when the client is uninstrumented still has to end.

    Attributes:
        switch: The switch that all the listeners share.
        signals: Creates the listeners, and holds the state that they share.
        added: The signals whose listeners were added.
    """

    switch: Switch
    signals: SignalListeners
    added: set[str]


class _Clients:
    """The clients that listeners were added to.

    Attributes:
        instrumented: What was added to each client. The key is the driver's object that holds the client's listeners.
        lock: Held while `instrumented` is read or changed.
    """

    def __init__(self) -> None:
        self.instrumented: weakref.WeakKeyDictionary[_EventListeners, _Instrumented] = weakref.WeakKeyDictionary()
        self.lock = SharedLock()


_clients: Final = _Clients()


def _switch_off(instrumented: _Instrumented) -> bool:
    """Switch a client's listeners off. Returns whether they were on."""
    was_on = instrumented.switch.telemetry is not None
    instrumented.signals.switch_off()
    return was_on


def _merged(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Merge keywords with their defaults. A `Config` that was given replaces the defaults of all options."""
    kept = {name: value for name, value in defaults.items() if "config" not in given or name not in OPTIONS}
    return {name: value for name, value in {**kept, **given}.items() if name != "client_name"}


def _warn_of_ignored(given: Mapping[str, object]) -> None:
    """Log a warning that names the keywords that had no effect, if there are any."""
    if given:
        warn("instrument_client() has no effect: the client is already instrumented; ignored: %s", ", ".join(given))


def _take_over_pool(pool: Any, connections: list[Any], state: PoolState, checked_out: _CheckedOutConnections) -> None:
    """Initialize the state of a pool from its options and connections.

    Args:
        pool: The driver's pool.
        connections: All connections of the pool, including those that are checked out or being created.
        state: The state to update.
        checked_out: Receives the connections that are checked out.
    """
    state.set_options(pool.opts.non_default_options)
    state.is_ready = is_ready(pool)
    idle = {id(connection) for connection in list(idle_connections(pool))}
    now = time.perf_counter()
    # After a fork the driver discards the parent's connections at the pool's first use.
    for connection in connections if pool.pid == os.getpid() else []:
        number = connection.id
        if id(connection) in idle:
            state.made.setdefault(number, now - connection.idle_time_seconds())
        else:
            state.made.setdefault(number, now)
            if connection.active:
                checked_out.add(state, number)
        if connection.closed and not connection.active:
            state.made.pop(number, None)  # its close event may have arrived just before it was added


class _CheckedOutConnections(QuietPoolListener):
    """Tracks the connections that were already checked out when the client was instrumented, until they are checked in.

    Their use time is not measured, because the threads and times of their checkouts are unknown. Methods run on the
    thread, or in the task, that called the driver; they never raise.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._pools: dict[tuple[int, int], PoolState] = {}

    def add(self, pool: PoolState, connection_id: int) -> None:
        """Add a connection that is checked out of a pool."""
        self._pools[id(pool.identity.address), connection_id] = pool
        pool.used[connection_id, _UNKNOWN_THREAD] = time.perf_counter()

    @guarded
    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Count the connection as idle."""
        pool = self._remove(event.address, event.connection_id)
        if pool is not None:
            pool.made[event.connection_id] = time.perf_counter()

    @guarded
    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Stop tracking the connection: its checkout was in progress when the client was instrumented."""
        self._remove(event.address, event.connection_id)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """Stop tracking the connection."""
        self._remove(event.address, event.connection_id)

    def _remove(self, address: Address, connection_id: int) -> PoolState | None:
        pool = self._pools.pop((id(address), connection_id), None) if self._pools else None
        if pool is not None:
            pool.used.pop((connection_id, _UNKNOWN_THREAD), None)
        return pool
