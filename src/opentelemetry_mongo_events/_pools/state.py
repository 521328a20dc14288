"""What a client's pools hold, by their events: sets that grow and shrink, from which all counts are read."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._driver.identity import COUNTS_REFERENCES, Identity, identity
from opentelemetry_mongo_events._pools.waiters import Waiters
from opentelemetry_mongo_events._runtime.process import instances, track
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._telemetry.telemetry import Switch

# PoolCreatedEvent tells options only where they differ from the driver's defaults.
_MAX_POOL_SIZE: Final = 100
_MIN_POOL_SIZE: Final = 0

# How many pools of one listener are followed where it can't be known which of them are gone.
_LIMIT: Final = 1_000

# The driver looks for connections that were idle for too long about once a second.
_GRACE: Final = 10.0


class PoolState:
    """One pool.

    Attributes:
        identity: The driver's own tuple. It is the same object in all events of a pool and another one in each client,
            and nothing else in an event tells two clients of one server apart.
        target: Its address as text.
        attributes: Those of its metrics: its name, which is the client's name and its address.
        maximum: How many connections it may have; None where that is not limited.
        minimum: How many connections it keeps.
        created: Whether it was seen to be created, with its options.
        is_ready: Whether it is in use, and not cleared; None where it was not seen to become so.
        closed: Whether it was closed. Connections that are out by then come back later.
        making: The connections that are being made, by their ids, and since when.
        made: Those that are in the pool or checked out, by their ids, and since when they do what they do now.
        closing: The ids of those that left the pool and are about to be closed.
        max_idle: How many seconds a connection may be idle; None where that is not limited.
        used: Those that are checked out, by their ids and the threads that got them, and since when.
        waiters: Who waits for one.
        others: The switches of other listeners which saw this pool first.

    Times are those of `time.perf_counter()`. Each step is one operation of a dictionary or a set, and there is no lock.
    """

    __slots__ = (
        "attributes",
        "closed",
        "closing",
        "created",
        "identity",
        "is_ready",
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
        """Its client is called that from now on."""
        self.attributes = {names.POOL_NAME: f"{client_name}/{self.target}" if client_name else self.target}

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Take its options: those that differ from the driver's defaults."""
        self.created = True
        self.maximum = options.get("maxPoolSize", _MAX_POOL_SIZE) or None  # 0 is the driver's word for no limit
        self.minimum = options.get("minPoolSize", _MIN_POOL_SIZE)
        max_idle = options.get("maxIdleTimeMS")
        self.max_idle = None if max_idle is None else max_idle / 1000

    def connections(self) -> tuple[int, int]:
        """How many connections are made and not checked out, and how many are checked out, at one moment."""
        used = self._used()
        return len(self.made.copy().keys() - used), len(used)

    def take(self, connection_id: int) -> bool:
        """The current thread got a connection; False if that is known.

        Since PyMongo 4.19 it may have it before the thread that gave it back tells so.
        """
        key = (connection_id, threading.get_ident())
        if key in self.used:
            return False
        self.used[key] = time.perf_counter()
        return True

    def give_back(self, connection_id: int) -> float | None:
        """A connection was given back, as a rule by the thread that got it: since when it was out, if that is known."""
        since = self.used.pop((connection_id, threading.get_ident()), None)
        if since is None:
            for key in self._uses(connection_id)[:1]:
                since = self.used.pop(key, None)
        return since

    def forget(self, connection_id: int) -> list[float]:
        """A connection that is closed is out no more: since when it was, if it was."""
        uses = [self.used.pop(key, None) for key in self._uses(connection_id)]
        return [since for since in uses if since is not None]

    def _used(self) -> set[int]:
        return {connection_id for connection_id, _ in self.used.copy()}

    def _uses(self, connection_id: int) -> list[tuple[int, int]]:
        return [key for key in self.used.copy() if key[0] == connection_id]

    def empty(self) -> None:
        """The idle connections left the pool: what is in it from now on is new.

        The driver publishes that they are closed, one by one, but for those at which it was interrupted.
        """
        self._close_idle(time.perf_counter())

    def drop_expired(self) -> None:
        """Take out connections that were idle for too long.

        The driver closes them within about a second. A task that is cancelled as it does so leaves no word of it.
        """
        if self.max_idle is not None:
            self._close_idle(time.perf_counter() - self.max_idle - _GRACE)

    def _close_idle(self, latest: float) -> None:
        """Expect those to be closed that are idle, and have been so since then or before."""
        used = self._used()
        for connection_id, since in self.made.copy().items():
            if since <= latest and connection_id not in used:
                self.made.pop(connection_id, None)
                self.closing.add(connection_id)

    @property
    def is_open(self) -> bool:
        """Whether it has limits that are known and hold."""
        return self.created and not self.closed

    @property
    def is_reported_by_another(self) -> bool:
        """Whether another listener, which saw this pool first, reports it."""
        return bool(self.others) and any(switch.of("pools") for switch in self.others)

    @property
    def is_gone(self) -> bool:
        """Whether nothing will come of it: it isn't open and is empty, or its client was garbage-collected.

        One that isn't open, and was not closed either, is made for what comes of a pool after its close.
        """
        if not self.is_open and not (self.made or self.making or self.used or self.waiters.count()):
            return True
        return self.identity.is_unreferenced


class PoolStates:
    """The pools that one listener sees."""

    def __init__(self, switch: Switch, client_name: str | None) -> None:
        self.switch = switch
        self._client_name = client_name
        self._current: dict[int, PoolState] = {}
        self._pools: dict[PoolState, None] = {}
        track(self)

    def create(self, address: Address, options: Mapping[str, Any]) -> None:
        """A pool was created. A server that went away and came back has a new one of the same address."""
        self._sweep()
        before = self._current.get(id(address))
        if before is not None:
            before.closed = True  # up to 4.8 the driver doesn't say so
        pool = self._current[id(address)] = self._new(address)
        pool.set_options(options)
        self._keep(pool)

    def close(self, address: Address) -> None:
        """A pool was closed."""
        pool = self.known(address)
        if pool is not None:
            pool.closed = True
            pool.empty()
            self._sweep()

    def of(self, address: Address) -> PoolState:
        """The pool with that address, which is a new one where its creation was not seen."""
        pool = self._current.get(id(address))
        if pool is None:
            made = self._new(address)
            # One operation of a dictionary: of several threads, one makes it.
            pool = self._current.setdefault(id(address), made)
            if pool is made:
                self._keep(pool)
        return pool

    def known(self, address: Address) -> PoolState | None:
        """The pool with that address, if it was seen before."""
        return self._current.get(id(address))

    def pools(self) -> list[PoolState]:
        """All that may still hold something."""
        self._sweep()
        return list(self._pools)

    def rename(self, client_name: str | None) -> None:
        """Their client is called that from now on."""
        self._client_name = client_name
        for pool in list(self._pools):
            pool.rename(client_name)

    def forget(self) -> None:
        """Drop all without a word: after a fork they are the parent's."""
        self._current = {}
        self._pools = {}

    def _new(self, address: Address) -> PoolState:
        """A new pool. Whoever comes first, of several listeners, reports it."""
        others = [each.switch for each in instances(PoolStates) if each is not self and id(address) in each._current]
        return PoolState(identity(address), self._client_name, others)

    def _keep(self, pool: PoolState) -> None:
        self._pools[pool] = None
        # Where references aren't counted, those of clients that were never closed may stay.
        if not COUNTS_REFERENCES and len(self._pools) > _LIMIT:
            self._drop(next(iter(self._pools.copy())))

    def _drop(self, pool: PoolState) -> None:
        self._pools.pop(pool, None)
        if self._current.get(id(pool.identity.address)) is pool:
            self._current.pop(id(pool.identity.address), None)

    def _sweep(self) -> None:
        for pool in list(self._pools):
            pool.drop_expired()
            if pool.is_gone:
                self._drop(pool)
