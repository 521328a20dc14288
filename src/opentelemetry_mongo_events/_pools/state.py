"""The connections of each pool, tracked from events; all counts of connections are read from these sets."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._driver.identity import COUNTS_REFERENCES, Identity, identity
from opentelemetry_mongo_events._pools.waiters import Waiters
from opentelemetry_mongo_events._runtime.process import instances, track
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import Attributes, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._telemetry.telemetry import Switch

# The driver's defaults: a PoolCreatedEvent contains only the options that differ from them.
_MAX_POOL_SIZE: Final = 100
_MIN_POOL_SIZE: Final = 0

# How many pools a listener tracks on interpreters that don't count references, where unused pools can't be recognized.
_MAX_POOLS: Final = 1_000

# The driver removes connections that were idle for too long about once a second.
_GRACE: Final = 10.0


class PoolState:
    """One pool.

    Attributes:
        identity: The driver's address tuple. It is the same object in all events of a pool and a different one in each
            client; nothing else in an event distinguishes two clients of the same server.
        target: The address as text.
        attributes: The attributes of its metrics: the pool's name, which consists of the client's name and the address,
            and the server's address and port.
        key: The values of these attributes, in the order of `POOL_ATTRIBUTES`, for its counters.
        maximum: How many connections it may have; None if there is no limit.
        minimum: How many connections it keeps.
        created: Whether its creation was seen, with its options.
        is_ready: Whether it is ready, and not cleared; None if no event has said so yet.
        closed: Whether it was closed. Connections that are checked out by then are returned later.
        making: When the creation of each connection began, by connection id; only those that aren't established yet.
        made: When each established connection was last checked in, or else established, by connection id.
        closing: The ids of the connections that were removed from the pool and that the driver is about to close.
        max_idle: How many seconds a connection may be idle; None if there is no limit.
        used: When each connection that is checked out was checked out, by connection id and thread id.
        waiters: The threads and tasks that wait for a connection.
        others: The switches of other listeners that saw this pool first.

    Times are in seconds, by `time.perf_counter()`. There is no lock: each step is one atomic operation of a dictionary
    or a set.
    """

    __slots__ = (
        "attributes",
        "closed",
        "closing",
        "created",
        "identity",
        "is_ready",
        "key",
        "made",
        "making",
        "max_idle",
        "maximum",
        "minimum",
        "others",
        "target",
        "used",
        "waiters",
    )

    def __init__(self, identity: Identity, client_name: str | None, others: Sequence[Switch]) -> None:
        self.identity = identity
        self.target = target(identity.address)
        self.rename(client_name)
        self.maximum: int | None = None
        self.minimum = 0
        self.created = False
        self.is_ready: bool | None = None
        self.closed = False
        self.making: dict[int, float] = {}
        self.made: dict[int, float] = {}
        self.closing: set[int] = set()
        self.max_idle: float | None = None
        self.used: dict[tuple[int, int], float] = {}
        self.waiters = Waiters(identity)
        self.others = others

    def rename(self, client_name: str | None) -> None:
        """Change the client's name, which is part of the pool's name."""
        host, port = self.identity.address
        self.key = (names.MONGODB, f"{client_name}/{self.target}" if client_name else self.target, host, port)
        keys_and_values = zip(names.POOL_ATTRIBUTES, self.key, strict=True)
        self.attributes: Attributes = {key: value for key, value in keys_and_values if value is not None}

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Set the options; `options` contains those that differ from the driver's defaults."""
        self.created = True
        self.maximum = options.get("maxPoolSize", _MAX_POOL_SIZE) or None  # 0 means no limit
        self.minimum = options.get("minPoolSize", _MIN_POOL_SIZE)
        max_idle = options.get("maxIdleTimeMS")
        self.max_idle = None if max_idle is None else max_idle / 1000

    def connections(self) -> tuple[int, int]:
        """Return how many connections are idle, and how many are checked out, at the same moment."""
        used = self._used_ids()
        return len(self.made.copy().keys() - used), len(used)

    def check_out(self, connection_id: int) -> bool:
        """Note that the current thread checked out a connection.

        Since PyMongo 4.19 this event may arrive before the one in which another thread checks the connection in, so the
        key includes the thread.

        Returns:
            False if that was noted before.
        """
        key = (connection_id, threading.get_ident())
        if key in self.used:
            return False
        self.used[key] = time.perf_counter()
        return True

    def check_in(self, connection_id: int) -> float | None:
        """Note that a connection was checked in, usually by the thread that checked it out.

        Returns:
            When it was checked out; None if that isn't known.
        """
        since = self.used.pop((connection_id, threading.get_ident()), None)
        if since is None:
            for key in self._keys(connection_id)[:1]:
                since = self.used.pop(key, None)
        return since

    def end_uses(self, connection_id: int) -> list[float]:
        """Note that a closed connection is no longer checked out; return the times at which it was checked out."""
        uses = [self.used.pop(key, None) for key in self._keys(connection_id)]
        return [since for since in uses if since is not None]

    def _used_ids(self) -> set[int]:
        return {connection_id for connection_id, _ in self.used.copy()}

    def _keys(self, connection_id: int) -> list[tuple[int, int]]:
        return [key for key in self.used.copy() if key[0] == connection_id]

    def clear(self) -> None:
        """Remove the idle connections, because the pool was cleared or closed.

        The driver publishes an event for each one that it closes, but not for those left when it is interrupted.
        """
        self._remove_idle(time.perf_counter())

    def drop_expired(self, tracked_since: float) -> None:
        """Remove connections that were idle for too long.

        The driver closes them within about a second. It publishes no event if its task is cancelled meanwhile.

        Args:
            tracked_since: Since when check-ins are tracked. Nothing is known of the time before.
        """
        if self.max_idle is not None:
            latest = time.perf_counter() - self.max_idle - _GRACE
            if latest >= tracked_since:
                self._remove_idle(latest)

    def _remove_idle(self, latest: float) -> None:
        """Remove the connections that have been idle since `latest` or longer, and expect the driver to close them."""
        used = self._used_ids()
        for connection_id, since in self.made.copy().items():
            if since <= latest and connection_id not in used:
                self.made.pop(connection_id, None)
                self.closing.add(connection_id)

    @property
    def is_open(self) -> bool:
        """Whether its creation was seen, so that its limits are known, and it isn't closed."""
        return self.created and not self.closed

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which saw the pool first, reports it."""
        return bool(self.others) and any(switch.of("pools") for switch in self.others)

    @property
    def is_gone(self) -> bool:
        """Whether it can be forgotten: it is empty and not open, or its client was garbage-collected.

        A pool that is neither open nor closed was added for an event that arrived after its close.
        """
        if not self.is_open and not (self.made or self.making or self.used or self.waiters.count()):
            return True
        return self.identity.is_unreferenced


class PoolStates:
    """The pools that one listener has seen.

    Args:
        switch: Holds the telemetry that the listener reports to.
        client_name: The client's name, which the names of its pools begin with; None if it has none.

    Attributes:
        switch: The argument.
        tracked_since: Since when checkouts and check-ins are tracked, by `time.perf_counter()`; None before there is an
            SDK that receives the metrics.
    """

    def __init__(self, switch: Switch, client_name: str | None) -> None:
        self.switch = switch
        self.tracked_since: float | None = None
        self._client_name = client_name
        self._current: dict[int, PoolState] = {}
        self._pools: dict[PoolState, None] = {}
        track(self)

    def begin_tracking(self) -> bool:
        """Start tracking checkouts and check-ins permanently, if an SDK receives the metrics. Runs on any thread."""
        telemetry = self.switch.telemetry
        if telemetry is None or not telemetry.instruments.provider_check:
            return False
        self.tracked_since = time.perf_counter()
        return True

    def create(self, address: Address, options: Mapping[str, Any]) -> None:
        """Add a new pool. A server that was removed and added again has a new pool with the same address."""
        self._sweep()
        previous = self._current.get(id(address))
        if previous is not None:
            previous.closed = True  # PyMongo up to 4.8 publishes no event for that
        pool = self._current[id(address)] = self._new(address)
        pool.set_options(options)
        self._add(pool)

    def close(self, address: Address) -> None:
        """Mark a pool as closed."""
        pool = self.known(address)
        if pool is not None:
            pool.closed = True
            pool.clear()
            self._sweep()

    def of(self, address: Address) -> PoolState:
        """Return the current pool with this address; add it if its creation wasn't seen."""
        pool = self._current.get(id(address))
        if pool is None:
            new = self._new(address)
            # `setdefault` is atomic: if several threads come here, all get the same pool.
            pool = self._current.setdefault(id(address), new)
            if pool is new:
                self._add(pool)
        return pool

    def known(self, address: Address) -> PoolState | None:
        """Return the current pool with this address, or None if it hasn't been seen."""
        return self._current.get(id(address))

    def pools(self) -> list[PoolState]:
        """Return all pools that are open or may still have connections or waiters."""
        self._sweep()
        return list(self._pools)

    def rename(self, client_name: str | None) -> None:
        """Change the client's name, which the names of all pools begin with."""
        self._client_name = client_name
        for pool in list(self._pools):
            pool.rename(client_name)

    def forget(self) -> None:
        """Forget all pools, without reporting them: after a fork they belong to the parent process."""
        self._current = {}
        self._pools = {}

    def _new(self, address: Address) -> PoolState:
        """Create the state of a pool. If several listeners see the pool, the first one reports it."""
        telemetry = self.switch.telemetry
        if self.tracked_since is None and telemetry is not None and telemetry.instruments.provider_check.found_sdk:
            self.begin_tracking()  # it may be switched off by the first checkout
        others = [each.switch for each in instances(PoolStates) if each is not self and id(address) in each._current]
        return PoolState(identity(address), self._client_name, others)

    def _add(self, pool: PoolState) -> None:
        self._pools[pool] = None
        # Without reference counts, the pools of clients that were never closed may not be recognized as unused.
        if not COUNTS_REFERENCES and len(self._pools) > _MAX_POOLS:
            self._drop(next(iter(self._pools.copy())))

    def _drop(self, pool: PoolState) -> None:
        self._pools.pop(pool, None)
        if self._current.get(id(pool.identity.address)) is pool:
            self._current.pop(id(pool.identity.address), None)

    def _sweep(self) -> None:
        for pool in list(self._pools):
            if self.tracked_since is not None:
                pool.drop_expired(self.tracked_since)
            if pool.is_gone:
                self._drop(pool)
