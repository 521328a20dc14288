"""What the package holds when nothing runs, beside what the driver's own objects hold."""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Any

from opentelemetry_mongo_events._commands.open_commands import OpenCommands
from opentelemetry_mongo_events._pools.listener import PoolEvents
from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._runtime.process import instances
from opentelemetry_mongo_events._servers.outages import _periods
from tests.metrics import POOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.metrics import Metrics

_PATIENCE = 10.0


def settled(differences: Callable[[], list[str]]) -> list[str]:
    """The differences that stay, once what goes on in the background has had its time."""
    deadline = time.monotonic() + _PATIENCE
    while (found := differences()) and time.monotonic() < deadline:
        time.sleep(0.2)
        # It takes its time, and few need it: what is gone is not counted.
        gc.collect()
    return found


def wrong_counts(metrics: Metrics) -> list[str]:
    """Where the counts of pools differ from what the driver's pools hold."""
    pools = list(_driver_pools())
    return [*_wrong_pools(pools), *_wrong_metrics(metrics, pools)]


def left_open() -> list[str]:
    """What is open, and waits for an end."""
    commands = [
        f"a command is open: {command.command_id}"
        for table in instances(OpenCommands)
        for command in [*table.by_id.values(), *table.duplicates.values()]
    ]
    served = _servers_of_clients()
    episodes = [
        f"{episode.name} of a client that is gone"
        for episode in list(_periods.open)
        # There are tests that leave a client behind, in a traceback: it goes on with what it is at.
        if not served & set(episode.topology.members)
    ]
    waiting = [
        f"{count} wait for a connection to {pool.target}"
        for states in instances(PoolStates)
        for pool in states.pools()
        if (count := pool.waiters.count())
    ]
    records = [f"{len(background_worker._waiting)} tasks wait"] if background_worker._waiting else []
    return [*commands, *episodes, *waiting, *records]


def failures() -> list[str]:
    """What failed in the package, and was kept from the driver."""
    guards = [each for each in gc.get_objects() if type(each) is Guard]
    return [f"{kind} failed {count} times" for guard in guards for kind, count in guard.failures.items()]


def _servers_of_clients() -> set[int]:
    """The identities of the addresses of servers that living clients have."""
    return {
        id(server.description.address)
        for topology in _living("topology", "Topology")
        for server in topology._servers.values()
    }


def _driver_pools() -> Iterator[tuple[Any, PoolEvents]]:
    """The driver's pools that are alive, and the package's listener of each that has one."""
    for pool in _living("pool", "Pool"):
        # A monitor's pool tells nobody; its flag had other names, the last of them in 4.0.
        if getattr(pool, "is_sdam", False) or not getattr(pool, "handshake", True):
            continue
        listeners = pool.opts._event_listeners
        for listener in listeners.event_listeners() if listeners is not None else ():
            if isinstance(listener, PoolEvents):
                yield pool, listener


def _living(module: str, name: str) -> list[Any]:
    """The driver's objects of a class, which it has for asyncio and for threads, or up to 4.8 for these only."""
    names = [f"pymongo.{folder}{module}" for folder in ("synchronous.", "asynchronous.", "")]
    found = [getattr(sys.modules[each], name, None) for each in names if each in sys.modules]
    kinds = tuple(kind for kind in found if kind is not None)
    # By the type: the garbage collector has proxies, which stand for what is gone.
    return [each for each in gc.get_objects() if issubclass(type(each), kinds)]


def _held(pool: Any) -> tuple[int, int]:
    return len(pool.conns if hasattr(pool, "conns") else pool.sockets), pool.active_sockets


def _wrong_pools(pools: Sequence[tuple[Any, PoolEvents]]) -> list[str]:
    wrong = []
    seen = set()
    for pool, listener in pools:
        state = listener._pools.known(pool.address)
        seen.add(id(pool.address))
        counted = (0, 0) if state is None else state.connections()
        if counted != _held(pool):
            wrong.append(f"{pool.address} holds {_held(pool)} connections, idle and used, and not {counted}")
    gone = [
        f"{state.target} is gone, and counted with {state.connections()}"
        for states in instances(PoolStates)
        for state in states.pools()
        if id(state.identity.address) not in seen and state.connections() != (0, 0)
    ]
    return [*wrong, *gone]


def _wrong_metrics(metrics: Metrics, pools: Sequence[tuple[Any, PoolEvents]]) -> list[str]:
    held: dict[str, int] = {}
    for pool, _ in pools:
        name = ":".join(str(part) for part in pool.address if part is not None)
        held[name] = held.get(name, 0) + sum(_held(pool))
    told = metrics.values("db.client.connection.count", POOL)
    return [
        f"{name} holds {held.get(name, 0)} connections, and not {told.get(name, 0)}"
        for name in sorted({*held, *told})
        if held.get(name, 0) != told.get(name, 0)
    ]
