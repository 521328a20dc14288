"""The private parts of a client in which the driver keeps its listeners.

The driver copies its listeners into one object when a client is made, and notes in its pools, monitors and topology
whether there are any. All of these places are named here, and nowhere else in this package; they are looked at before
anything is changed. No function and no class of the driver is replaced.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bson import ObjectId

    from opentelemetry_mongo_events._driver.listeners import Listener


# Each kind of listener, and what the driver calls it in the names of its list and of the flag beside it.
_KINDS: Final = {
    CommandListener: ("command_listeners", "enabled_for_commands"),
    ConnectionPoolListener: ("cmap_listeners", "enabled_for_cmap"),
    ServerHeartbeatListener: ("server_heartbeat_listeners", "enabled_for_server_heartbeat"),
    TopologyListener: ("topology_listeners", "enabled_for_topology"),
}


_PREFIX: Final = "_EventListeners__"


# The driver holds its locks for moments only: who waits for longer is called by one who holds it.
_PATIENCE: Final = 5.0


def driver_client(client: object) -> Any:
    """The driver's own client: what was given, or what a client of Motor is made of."""
    kinds = (MongoClient, getattr(pymongo, "AsyncMongoClient", MongoClient))
    for candidate in (client, getattr(client, "delegate", None)):
        if isinstance(candidate, kinds):
            return candidate
    # By its type only: somebody may have given a connection string, with a password in it.
    raise TypeError(
        f"a {type(client).__name__} can't be observed: a MongoClient, an AsyncMongoClient or a client of Motor can"
    )


class UnknownDriverError(Exception):
    """A part of the driver is another than is known here."""


def _expect(is_known: bool, part: str) -> None:
    if not is_known:
        raise UnknownDriverError(part)


class ClientInternals:
    """What one client is made of.

    Args:
        client: It.

    Attributes:
        listeners: What holds its listeners: one object, to which all parts of the client refer.

    Raises:
        TypeError: It is no client.
        RuntimeError: A part is another than is known here, or isn't there yet.
    """

    def __init__(self, client: object) -> None:
        client = driver_client(client)
        self._is_async = not isinstance(client, MongoClient)
        self._topology: Any = getattr(client, "_topology", None)
        if self._topology is None:
            raise RuntimeError(
                "the client has not looked up its servers yet (mongodb+srv), so there is nothing to observe: call "
                "instrument_client() after its first operation, or make it with event_listeners=event_listeners()"
            )
        try:
            self.listeners: _EventListeners = client._event_listeners  # type: ignore[attr-defined]
            self._look()
        except (AttributeError, TypeError, UnknownDriverError) as error:
            raise RuntimeError(
                f"PyMongo {pymongo.version} keeps its listeners in a way that instrument_client() doesn't know "
                f"({error}): make the client with event_listeners=event_listeners(), or after instrument()"
            ) from error
        if self._is_async and self._topology._opened:
            _look_for_loop(client)

    def _look(self) -> None:
        """See to it that all that will be touched is there, and is what it is known to be."""
        topology = self._topology
        _expect(type(self.listeners) is _EventListeners, "_event_listeners")
        for name, flag in _KINDS.values():
            _expect(isinstance(getattr(self.listeners, _PREFIX + name), list), name)
            _expect(isinstance(getattr(self.listeners, _PREFIX + flag), bool), flag)
        _expect(topology._listeners is self.listeners, "Topology._listeners")
        _expect(isinstance(topology._description, TopologyDescription), "Topology._description")
        _expect(isinstance(topology._opened, bool), "Topology._opened")
        _expect(isinstance(_sdam(topology)._publish_tp, bool), "Topology._publish_tp")
        _expect(_sdam(topology)._events is topology._events, "Topology._events")
        _expect(topology._events is None or isinstance(topology._events, queue.Queue), "Topology._events")
        _expect(hasattr(topology, _executor_name(topology)), "Topology._events_executor")
        _executor(topology, queue.Queue(), is_async=self._is_async)
        for server in list(topology._servers.values()):
            self._look_at_pool(server._pool)
            _expect(server._monitor._listeners is self.listeners, "Monitor._listeners")
            # Since 4.18 a monitor asks at each heartbeat; before, it has noted whether there are listeners.
            notes = pymongo.version_tuple < (4, 18)
            _expect(isinstance(getattr(server._monitor, "_publish", not notes), bool), "Monitor._publish")

    def _look_at_pool(self, pool: Any) -> None:
        _expect(pool.opts._event_listeners is self.listeners, "PoolOptions._event_listeners")
        _expect(isinstance(pool.opts.non_default_options, dict), "PoolOptions.non_default_options")
        _expect(isinstance(pool.address, tuple), "Pool.address")
        _expect(isinstance(pool.active_sockets, int), "Pool.active_sockets")
        _expect(isinstance(pool.pid, int), "Pool.pid")
        _expect(isinstance(_named(pool, "PoolState").READY, type(pool.state)), "Pool.state")
        _expect(isinstance(idle_connections(pool), deque), "Pool.conns")
        _expect(isinstance(_connection_class(pool), type), "Connection")
        _publishes(pool)
        for connection in list(idle_connections(pool))[:1]:
            _expect(isinstance(connection.id, int), "Connection.id")
            _expect(isinstance(connection.closed, bool), "Connection.closed")
            _expect(isinstance(connection.active, bool), "Connection.active")
            _expect(isinstance(connection.idle_time_seconds(), float), "Connection.idle_time_seconds")
            _expect(connection.pool_ref() is pool, "Connection.pool_ref")
            _publishes(connection)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep topology and pools as they are. On an event loop they are, for as long as nothing is awaited.

        Raises:
            RuntimeError: One of the driver's locks isn't given back.
        """
        with contextlib.ExitStack() as stack:
            if not self._is_async:
                # In the order in which the driver takes them.
                self._lock(stack, self._topology._lock)
                for pool in self._pools():
                    self._lock(stack, pool.lock)
            yield

    def _lock(self, stack: contextlib.ExitStack, lock: Any) -> None:
        if not lock.acquire(timeout=_PATIENCE):
            raise RuntimeError(
                "the client doesn't come to rest, or one of its own listeners calls instrument_client(): call it "
                "outside of them"
            )
        stack.callback(lock.release)

    def _pools(self) -> list[Any]:
        return [server._pool for server in list(self._topology._servers.values())]

    @property
    def topology_id(self) -> ObjectId:
        """The driver's own."""
        topology_id: ObjectId = self._topology._topology_id
        return topology_id

    @property
    def description(self) -> TopologyDescription:
        """What its topology is now."""
        description: TopologyDescription = self._topology._description
        return description

    @property
    def has_connections_out(self) -> bool:
        """Whether a connection is checked out, or being made."""
        return any(pool.active_sockets for pool in self._pools())

    def publish_pool_events(self) -> list[tuple[Any, list[Any]]]:
        """Have its pools and their connections publish events; each pool of the driver's, with its connections."""
        for pool in self._pools():
            _publish(pool)
        found = _connections(self._pools())
        for _, connections in found:
            for connection in connections:
                _publish(connection)
        return found

    def append(self, added: list[Listener]) -> None:
        for listener in added:
            for kind, (name, flag) in _KINDS.items():
                if isinstance(listener, kind):
                    getattr(self.listeners, _PREFIX + name).append(listener)
                    setattr(self.listeners, _PREFIX + flag, True)

    def append_for_heartbeats(self, added: list[Listener]) -> None:
        """Add listeners for heartbeats."""
        self.append(added)
        for server in self._topology._servers.values():
            server._monitor._publish = True  # nobody asks for it since 4.18, but for the listeners at each heartbeat

    def append_for_topology(self, added: list[Listener], take_over: Callable[[], None]) -> None:
        """Add listeners for its topology; before the first event for them, call `take_over`."""
        topology = self._topology
        if topology._events is None:
            # The driver's own queue holds 100, and who finds it full waits: nobody ever waits for this one.
            events: queue.Queue[Any] = queue.Queue()
            executor = _executor(topology, events, is_async=self._is_async)
            if topology._opened:  # else it is opened together with the topology
                # The task of an asyncio client would keep the context of whoever calls this.
                contextvars.Context().run(executor.open)
            setattr(topology, _executor_name(topology), executor)
            topology._events = _sdam(topology)._events = events
            self.append(added)
        else:
            # What waits there is older than what they are told below.
            try:
                topology._events.put_nowait((self.append, (added,)))
            except queue.Full:
                self.append(added)
        take_over()
        _sdam(topology)._publish_tp = True


def _named(part: object, *names: str) -> Any:
    """What the module that a part's class is from, or one of those of its bases, has by one of those names."""
    for kind in type(part).__mro__:
        for name in names:
            found = getattr(sys.modules.get(kind.__module__), name, None)
            if found is not None:
                return found
    raise UnknownDriverError(names[0])


def _sdam(topology: Any) -> Any:
    """What publishes for a topology: since 4.18 an object of its own."""
    return getattr(topology, "_sdam", topology)


def _executor_name(topology: object) -> str:
    """The attribute that holds what hands the events over; before 4.20 a private one of its class."""
    return "_events_executor" if hasattr(topology, "_events_executor") else "_Topology__events_executor"


def _executor(topology: object, events: queue.Queue[Any], *, is_async: bool) -> Any:
    """What hands the events over, not running yet, made as the driver makes it: it ends with the queue."""
    process = _named(topology, "process_events_queue")
    common = _named(topology, "common")
    executors = _named(topology, "periodic_executor")

    def target() -> bool:
        return bool(process(weak))

    async def async_target() -> bool:
        return target()

    # In 4.9 and 4.10 that of an asyncio client is called as the other one is, and has a thread.
    its_own = is_async and hasattr(executors, "AsyncPeriodicExecutor")
    executor = getattr(executors, "AsyncPeriodicExecutor" if its_own else "PeriodicExecutor")(
        interval=common.EVENTS_QUEUE_FREQUENCY,
        min_interval=common.MIN_HEARTBEAT_INTERVAL,
        target=async_target if is_async else target,
        name="pymongo_events_thread",
    )
    weak = weakref.ref(events, executor.close)
    return executor


def _gate(part: Any) -> tuple[Any, str]:
    """Where a pool or a connection has noted whether it publishes: since 4.18 in an object that they share."""
    return (part, "enabled_for_cmap") if hasattr(part, "enabled_for_cmap") else (part._telemetry, "_should_publish")


def _publishes(part: Any) -> bool:
    does = getattr(*_gate(part))
    _expect(isinstance(does, bool), f"{type(part).__name__}: {_gate(part)[1]}")
    return bool(does)


def _publish(part: Any) -> None:
    setattr(*_gate(part), True)


def idle_connections(pool: Any) -> Any:
    """The connections in a pool; they have this name since 4.2."""
    return pool.conns if hasattr(pool, "conns") else pool.sockets


def is_ready(pool: Any) -> bool:
    """Whether a pool is in use, and not cleared."""
    return bool(pool.state == _named(pool, "PoolState").READY)


def _connection_class(pool: Any) -> Any:
    return _named(pool, "AsyncConnection", "Connection", "SocketInfo")


def _connections(pools: list[Any]) -> list[tuple[Any, list[Any]]]:
    """The connections of each pool: those in it, and those that are out or being made, which no pool knows.

    An object refers to its class, so the garbage collector finds them. It looks at all objects there are, which takes
    some 10 ms for a million: so it is asked only where there are any.
    """
    found: dict[int, dict[int, Any]] = {
        id(pool): {id(connection): connection for connection in list(idle_connections(pool))} for pool in pools
    }
    kinds = {_connection_class(pool) for pool in pools if pool.active_sockets or getattr(pool, "_pending", 0)}
    for kind in kinds:
        for connection in gc.get_referrers(kind):
            if isinstance(connection, kind) and id(connection.pool_ref()) in found:
                found[id(connection.pool_ref())][id(connection)] = connection
    return [(pool, list(found[id(pool)].values())) for pool in pools]


def _look_for_loop(client: Any) -> None:
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    # The client tells its loop since 4.13.
    if running is None or getattr(client, "_loop", None) not in (None, running):
        raise RuntimeError(
            "an AsyncMongoClient in use is observed from within its event loop only: call instrument_client() in a "
            "coroutine, or a callback, there"
        )
