"""Access to the private attributes of a client in which PyMongo keeps its listeners.

When PyMongo creates a client, it copies the listeners into one object. The client's pools, monitors and topology store
whether there are any. This module lists all of these attributes, and checks all of them before it changes any. No
function or class of the driver is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import queue
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.monitoring import (
    CommandListener,
    ConnectionPoolListener,
    ServerHeartbeatListener,
    TopologyListener,
    _EventListeners,
)
from pymongo.topology_description import TopologyDescription

from opentelemetry_mongo_events._driver.events_executor import speed_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bson import ObjectId

    from opentelemetry_mongo_events._driver.listeners import Listener


# For each class of listeners: the names of the driver's attributes for the list, and for the flag whether it has any.
_LISTENER_ATTRIBUTES: Final = {
    CommandListener: ("command_listeners", "enabled_for_commands"),
    ConnectionPoolListener: ("cmap_listeners", "enabled_for_cmap"),
    ServerHeartbeatListener: ("server_heartbeat_listeners", "enabled_for_server_heartbeat"),
    TopologyListener: ("topology_listeners", "enabled_for_topology"),
}


# The prefix that Python adds to the names of class-private attributes.
_PREFIX: Final = "_EventListeners__"


# Seconds. The driver holds its locks only briefly. A longer wait means that the holder of the lock called this code.
_LOCK_TIMEOUT: Final = 5.0


def driver_client(client: object) -> Any:
    """Return the driver's own client: `client` itself, or the one that a Motor client wraps.

    Raises:
        TypeError: `client` is neither.
    """
    kinds = (MongoClient, getattr(pymongo, "AsyncMongoClient", MongoClient))
    for candidate in (client, getattr(client, "delegate", None)):
        if isinstance(candidate, kinds):
            return candidate
    # Name only the type: the value may be a connection string with a password.
    raise TypeError(
        f"expected a MongoClient, an AsyncMongoClient or a Motor client, got an object of type {type(client).__name__}"
    )


class UnknownDriverError(Exception):
    """A private part of the driver differs from what this module supports."""


def _expect(is_known: bool, part: str) -> None:
    if not is_known:
        raise UnknownDriverError(part)


class ClientInternals:
    """The private attributes of one client.

    Args:
        client: A `MongoClient`, an `AsyncMongoClient` or a Motor client.

    Attributes:
        listeners: The driver's object that holds the client's listeners. All parts of the client refer to it.

    Raises:
        TypeError: `client` is not a client.
        RuntimeError: A private attribute differs from what this module supports or doesn't exist yet, or an
            `AsyncMongoClient` is in use and its event loop is not the current one.
    """

    def __init__(self, client: object) -> None:
        client = driver_client(client)
        self._is_async = not isinstance(client, MongoClient)
        self._topology: Any = getattr(client, "_topology", None)
        if self._topology is None:
            raise RuntimeError(
                "the client has not resolved its mongodb+srv address yet: call instrument_client() after the first "
                "operation, or create the client with event_listeners=event_listeners()"
            )
        try:
            self.listeners: _EventListeners = client._event_listeners  # type: ignore[attr-defined]
            self._validate()
        except (AttributeError, TypeError, UnknownDriverError) as error:
            raise RuntimeError(
                f"instrument_client() doesn't support the internals of PyMongo {pymongo.version} ({error}): create the "
                "client with event_listeners=event_listeners(), or after calling instrument()"
            ) from error
        if self._is_async and self._topology._opened:
            _require_running_loop(client)

    def _validate(self) -> None:
        """Check that every attribute that will be used exists and has the expected type."""
        topology = self._topology
        _expect(type(self.listeners) is _EventListeners, "_event_listeners")
        for name, flag in _LISTENER_ATTRIBUTES.values():
            _expect(isinstance(getattr(self.listeners, _PREFIX + name), list), name)
            _expect(isinstance(getattr(self.listeners, _PREFIX + flag), bool), flag)
        _expect(topology._listeners is self.listeners, "Topology._listeners")
        _expect(isinstance(topology._description, TopologyDescription), "Topology._description")
        _expect(isinstance(topology._opened, bool), "Topology._opened")
        _expect(isinstance(_sdam(topology)._publish_tp, bool), "Topology._publish_tp")
        _expect(_sdam(topology)._events is topology._events, "Topology._events")
        _expect(topology._events is None or isinstance(topology._events, queue.Queue), "Topology._events")
        _expect(hasattr(topology, _executor_name(topology)), "Topology._events_executor")
        _create_executor(topology, queue.Queue(), is_async=self._is_async)
        for server in list(topology._servers.values()):
            self._validate_pool(server._pool)
            _expect(server._monitor._listeners is self.listeners, "Monitor._listeners")
            # Since 4.18 a monitor checks for listeners at each heartbeat; before, it stored whether there were any.
            has_flag = pymongo.version_tuple < (4, 18)
            _expect(isinstance(getattr(server._monitor, "_publish", not has_flag), bool), "Monitor._publish")

    def _validate_pool(self, pool: Any) -> None:
        _expect(pool.opts._event_listeners is self.listeners, "PoolOptions._event_listeners")
        _expect(isinstance(pool.opts.non_default_options, dict), "PoolOptions.non_default_options")
        _expect(isinstance(pool.address, tuple), "Pool.address")
        _expect(isinstance(pool.active_sockets, int), "Pool.active_sockets")
        _expect(isinstance(pool.pid, int), "Pool.pid")
        _expect(isinstance(_from_module_of(pool, "PoolState").READY, type(pool.state)), "Pool.state")
        _expect(isinstance(idle_connections(pool), deque), "Pool.conns")
        _expect(isinstance(_connection_class(pool), type), "Connection")
        _validate_publishing_flag(pool)
        for connection in list(idle_connections(pool))[:1]:
            _expect(isinstance(connection.id, int), "Connection.id")
            _expect(isinstance(connection.closed, bool), "Connection.closed")
            _expect(isinstance(connection.active, bool), "Connection.active")
            _expect(isinstance(connection.idle_time_seconds(), float), "Connection.idle_time_seconds")
            _expect(connection.pool_ref() is pool, "Connection.pool_ref")
            _validate_publishing_flag(connection)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the driver's locks, so that the topology and the pools don't change.

        An asyncio client needs no locks, because nothing changes until the caller awaits something.

        Raises:
            RuntimeError: One of the locks isn't released within 5 seconds.
        """
        with contextlib.ExitStack() as stack:
            if not self._is_async:
                # In the same order as the driver acquires them.
                self._lock(stack, self._topology._lock)
                for pool in self._pools():
                    self._lock(stack, pool.lock)
            yield

    def _lock(self, stack: contextlib.ExitStack, lock: Any) -> None:
        if not lock.acquire(timeout=_LOCK_TIMEOUT):
            raise RuntimeError(
                "timed out waiting for a lock of the client: don't call instrument_client() from one of the client's "
                "own listeners"
            )
        stack.callback(lock.release)

    def _pools(self) -> list[Any]:
        return [server._pool for server in list(self._topology._servers.values())]

    @property
    def topology_id(self) -> ObjectId:
        """The driver's id of the client's topology."""
        topology_id: ObjectId = self._topology._topology_id
        return topology_id

    @property
    def description(self) -> TopologyDescription:
        """The current description of the client's topology."""
        description: TopologyDescription = self._topology._description
        return description

    @property
    def has_connections_out(self) -> bool:
        """Whether a connection is checked out or being established."""
        return any(pool.active_sockets for pool in self._pools())

    def publish_pool_events(self) -> list[tuple[Any, list[Any]]]:
        """Make the client's pools and connections publish events.

        Returns:
            The driver's pools, each with its connections.
        """
        for pool in self._pools():
            _enable_publishing(pool)
        pools = _connections(self._pools())
        for _, connections in pools:
            for connection in connections:
                _enable_publishing(connection)
        return pools

    def append(self, added: list[Listener]) -> None:
        """Add listeners to the driver's lists."""
        for listener in added:
            for kind, (name, flag) in _LISTENER_ATTRIBUTES.items():
                if isinstance(listener, kind):
                    getattr(self.listeners, _PREFIX + name).append(listener)
                    setattr(self.listeners, _PREFIX + flag, True)

    def append_for_heartbeats(self, added: list[Listener]) -> None:
        """Add listeners for heartbeats, and make the monitors publish them."""
        self.append(added)
        for server in self._topology._servers.values():
            server._monitor._publish = True  # unused since 4.18: a monitor checks for listeners at each heartbeat

    def append_for_topology(self, added: list[Listener], take_over: Callable[[], None]) -> None:
        """Add listeners for the topology.

        Args:
            added: The listeners.
            take_over: Called before the listeners receive their first event.
        """
        topology = self._topology
        if topology._events is None:
            # The driver's own queue holds 100 events, and the driver blocks when it is full. This one is unbounded.
            events: queue.Queue[Any] = queue.Queue()
            executor = _create_executor(topology, events, is_async=self._is_async)
            if topology._opened:  # otherwise the topology opens it later
                # In an empty context: the task of an asyncio client would keep a copy of the caller's context.
                contextvars.Context().run(executor.open)
            setattr(topology, _executor_name(topology), executor)
            topology._events = _sdam(topology)._events = events
            self.append(added)
        else:
            speed_up(getattr(topology, _executor_name(topology)), topology._events)
            # Add the listeners after the events in the queue, which are older than the state that `take_over` reads.
            try:
                topology._events.put_nowait((self.append, (added,)))
            except queue.Full:
                self.append(added)
        take_over()
        _sdam(topology)._publish_tp = True


def _from_module_of(part: object, *names: str) -> Any:
    """Return the first of these names that exists in the module of the part's class or of one of its base classes."""
    for kind in type(part).__mro__:
        for name in names:
            value = getattr(sys.modules.get(kind.__module__), name, None)
            if value is not None:
                return value
    raise UnknownDriverError(names[0])


def _sdam(topology: Any) -> Any:
    """Return the object that publishes a topology's events: a separate one since 4.18, the topology itself before."""
    return getattr(topology, "_sdam", topology)


def _executor_name(topology: object) -> str:
    """Return the name of the attribute that holds the topology's executor. Before 4.20 it is class-private."""
    return "_events_executor" if hasattr(topology, "_events_executor") else "_Topology__events_executor"


def _create_executor(topology: object, events: queue.Queue[Any], *, is_async: bool) -> Any:
    """Create, but don't start, an executor that delivers queued events as the driver does. It ends with the queue."""
    process = _from_module_of(topology, "process_events_queue")
    common = _from_module_of(topology, "common")
    executors = _from_module_of(topology, "periodic_executor")

    def target() -> bool:
        return bool(process(weak))

    async def async_target() -> bool:
        return target()

    # In 4.9 and 4.10 an asyncio client's executor has the same name as a synchronous one, and runs a thread.
    has_async_class = is_async and hasattr(executors, "AsyncPeriodicExecutor")
    executor = getattr(executors, "AsyncPeriodicExecutor" if has_async_class else "PeriodicExecutor")(
        interval=common.EVENTS_QUEUE_FREQUENCY,
        min_interval=common.MIN_HEARTBEAT_INTERVAL,
        target=async_target if is_async else target,
        name="pymongo_events_thread",
    )
    weak = weakref.ref(events, executor.close)
    speed_up(executor, events)
    return executor


def _publishing_flag(part: Any) -> tuple[Any, str]:
    """Return where a pool or a connection stores whether it publishes events: the object and the attribute.

    Since 4.18, a pool and its connections share an object for it.
    """
    return (part, "enabled_for_cmap") if hasattr(part, "enabled_for_cmap") else (part._telemetry, "_should_publish")


def _validate_publishing_flag(part: Any) -> None:
    _expect(isinstance(getattr(*_publishing_flag(part)), bool), f"{type(part).__name__}: {_publishing_flag(part)[1]}")


def _enable_publishing(part: Any) -> None:
    setattr(*_publishing_flag(part), True)


def idle_connections(pool: Any) -> Any:
    """Return the idle connections of a pool. The attribute is called `conns` since 4.2."""
    return pool.conns if hasattr(pool, "conns") else pool.sockets


def is_ready(pool: Any) -> bool:
    """Whether a pool is ready: in use, and not cleared."""
    return bool(pool.state == _from_module_of(pool, "PoolState").READY)


def _connection_class(pool: Any) -> Any:
    return _from_module_of(pool, "AsyncConnection", "Connection", "SocketInfo")


def _connections(pools: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Return each pool with its connections: idle ones, and those that are checked out or being established.

    A pool has no reference to the latter. The garbage collector finds them, because every object refers to its class.
    It scans all objects, which takes 10 to 50 ms per million, so it is used only if a pool has such connections.
    """
    by_pool: dict[int, dict[int, Any]] = {
        id(pool): {id(connection): connection for connection in list(idle_connections(pool))} for pool in pools
    }
    kinds = {_connection_class(pool) for pool in pools if pool.active_sockets or getattr(pool, "_pending", 0)}
    for kind in kinds:
        for connection in gc.get_referrers(kind):
            if isinstance(connection, kind) and id(connection.pool_ref()) in by_pool:
                by_pool[id(connection.pool_ref())][id(connection)] = connection
    return [(pool, list(by_pool[id(pool)].values())) for pool in pools]


def _require_running_loop(client: Any) -> None:
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    # A client has a reference to its loop since 4.13.
    if running is None or getattr(client, "_loop", None) not in (None, running):
        raise RuntimeError(
            "an AsyncMongoClient that is in use can be instrumented only from its event loop: call "
            "instrument_client() in a coroutine or a callback"
        )
