"""Listeners for an existing client: PyMongo has no way to add them, so they are put where it keeps its own."""

from __future__ import annotations

import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._config import OPTIONS
from opentelemetry_mongo_events._driver.client_internals import (
    ClientInternals,
    driver_client,
    idle_connections,
    is_ready,
)
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._listeners import SIGNALS, SignalListeners, are_active, usable_client_name
from opentelemetry_mongo_events._runtime.guard import Guard, guarded
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import SharedLock
from opentelemetry_mongo_events._servers.outages import UNINSTRUMENTED, background_worker, end_all
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


# The thread of a connection that is out, where that isn't known: no thread has this identifier.
_SOMEBODY: Final = 0


def instrument(client: object, keywords: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Observe a client, as `event_listeners(**keywords)` would have, unless it is observed.

    Args:
        client: It.
        keywords: What was given.
        defaults: What stands in for what wasn't.

    Raises:
        TypeError: It is no client.
        RuntimeError: The driver is made in another way than is known here, or the client can't be reached now. Nothing
            is changed then.
    """
    inside = ClientInternals(client)
    given = {name: value for name, value in keywords.items() if value is not None}
    with _clients.lock():
        observed = _clients.observed.get(inside.listeners)
        if observed is not None and observed.switch.telemetry is not None:
            return _left_out(given)
        client_name = usable_client_name(given.get("client_name"))
        telemetry = telemetry_from(_merged(given, defaults), other_tracers=None)
        there = inside.listeners.event_listeners()
        wanted = [s for s in SIGNALS if getattr(telemetry.config, s) and not are_active(there, s)]
        if not wanted:
            return _left_out(given)
        if observed is None:
            switch = Switch()
            observed = _Instrumented(switch, SignalListeners(switch, client_name), set())
        else:
            observed.signals.pools.rename(client_name)
        with inside.locked():
            observed.switch.telemetry = telemetry
            try:
                _add(inside, observed.signals, {signal for signal in wanted if signal not in observed.added})
            except BaseException:
                observed.switch.telemetry = None
                raise
            observed.added.update(wanted)
            _clients.observed[inside.listeners] = observed
    return None


def uninstrument(client: object) -> None:
    """Observe a client no more, if `instrument` did.

    Raises:
        TypeError: It is no client.
    """
    with _clients.lock():
        listeners = getattr(driver_client(client), "_event_listeners", None)
        observed = None if listeners is None else _clients.observed.get(listeners)
        is_on = observed is not None and _switch_off(observed)
    if not is_on:
        warn("uninstrument_client() has nothing to undo: instrument_client() doesn't observe this client")
    background_worker.flush()


def uninstrument_all() -> bool:
    """Observe those no more that `instrument` did; whether there were any."""
    with _clients.lock():
        are_on = [_switch_off(observed) for observed in list(_clients.observed.values())]
    background_worker.flush()
    return any(are_on)


def _add(client: ClientInternals, signals: SignalListeners, wanted: set[str]) -> None:
    """Add the listeners of those signals, and tell them what they would know if they had been there all the time.

    First they are there, then they are told: what happens meanwhile on other threads isn't missed.
    """
    if "topology" in wanted:
        client.append_for_topology(
            signals.listeners("topology"), lambda: signals.servers.take_over(client.topology_id, client.description)
        )
    if "heartbeats" in wanted:
        for server in client.description.server_descriptions().values():
            signals.servers.take_over_server(server)
        client.append_for_heartbeats(signals.listeners("heartbeats"))
    out = _Out(Guard())
    if "pools" in wanted and client.has_connections_out:
        client.append([out])  # it has to be asked before the others
    for signal in ("commands", "pools"):
        if signal in wanted:
            client.append(signals.listeners(signal))
    if not wanted.isdisjoint(("commands", "pools")):
        for pool, connections in client.publish_pool_events():
            if "pools" in wanted:
                _take_over(pool, connections, signals.pools.of(pool.address), out)


class _Instrumented(NamedTuple):
    """What was added to a client, for good: a command that is open when it is switched off still has to end."""

    switch: Switch
    signals: SignalListeners
    added: set[str]


class _Clients:
    """Those that listeners were added to, by the driver's own object that holds a client's listeners."""

    def __init__(self) -> None:
        self.observed: weakref.WeakKeyDictionary[_EventListeners, _Instrumented] = weakref.WeakKeyDictionary()
        self.lock = SharedLock()


_clients: Final = _Clients()


def _switch_off(observed: _Instrumented) -> bool:
    is_on = observed.switch.telemetry is not None
    observed.switch.telemetry = None
    end_all(UNINSTRUMENTED, observed.switch)
    return is_on


def _merged(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, over what stands in for it; a whole `Config` stands for each of its options."""
    kept = {name: value for name, value in defaults.items() if "config" not in given or name not in OPTIONS}
    return {name: value for name, value in {**kept, **given}.items() if name != "client_name"}


def _left_out(given: Mapping[str, object]) -> None:
    if given:
        warn("instrument_client() changes nothing of a client that is observed already: %s left out", ", ".join(given))


def _take_over(pool: Any, connections: list[Any], state: PoolState, out: _Out) -> None:
    """Tell what a pool holds."""
    state.set_options(pool.opts.non_default_options)
    state.is_ready = is_ready(pool)
    idle = {id(connection) for connection in list(idle_connections(pool))}
    now = time.perf_counter()
    # Those of a parent process are closed at the pool's first use.
    for connection in connections if pool.pid == os.getpid() else []:
        number = connection.id
        if id(connection) in idle:
            state.made.setdefault(number, now - connection.idle_time_seconds())
        else:
            state.made.setdefault(number, now)
            if connection.active:
                out.note(state, number)
        if connection.closed and not connection.active:
            state.made.pop(number, None)  # it may have been told just now


class _Out(QuietPoolListener):
    """Follows the connections that were out when a pool was taken over, until they are back.

    Who has them isn't known, nor since when: so there is no use time to be measured. Runs on the thread, or in the
    task, that called the driver; never raises.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._out: dict[tuple[int, int], PoolState] = {}

    def note(self, pool: PoolState, connection_id: int) -> None:
        """A connection of that pool is out."""
        self._out[id(pool.identity.address), connection_id] = pool
        pool.used[connection_id, _SOMEBODY] = time.perf_counter()

    @guarded
    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """It is back."""
        pool = self._forget(event.address, event.connection_id)
        if pool is not None:
            pool.made[event.connection_id] = time.perf_counter()

    @guarded
    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Somebody had just got it, and tells so now."""
        self._forget(event.address, event.connection_id)

    @guarded
    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """It is gone."""
        self._forget(event.address, event.connection_id)

    def _forget(self, address: Address, connection_id: int) -> PoolState | None:
        pool = self._out.pop((id(address), connection_id), None) if self._out else None
        if pool is not None:
            pool.used.pop((connection_id, _SOMEBODY), None)
        return pool
