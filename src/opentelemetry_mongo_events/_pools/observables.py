"""Observable metrics of pools: their connections, their limits, and the requests that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.process import instances
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry_mongo_events._pools.state import PoolState
    from opentelemetry_mongo_events._telemetry.observables import IsReported, Reading


def _pools(is_reported: IsReported) -> Iterator[PoolState]:
    for states in instances(PoolStates):
        if is_reported(states.switch, "pools"):
            yield from (pool for pool in states.pools() if not pool.is_reported_by_another)


def _connections(is_reported: IsReported) -> Iterator[Reading]:
    for pool in _pools(is_reported):
        idle, used = pool.connections()
        yield pool.attributes | {names.CONNECTION_STATE: names.IDLE}, idle
        yield pool.attributes | {names.CONNECTION_STATE: names.USED}, used


def _maximum(is_reported: IsReported) -> Iterator[Reading]:
    return ((pool.attributes, pool.maximum) for pool in _pools(is_reported) if pool.is_open)


def _minimum(is_reported: IsReported) -> Iterator[Reading]:
    return ((pool.attributes, pool.minimum) for pool in _pools(is_reported) if pool.is_open)


def _pending(is_reported: IsReported) -> Iterator[Reading]:
    return ((pool.attributes, pool.waiters.count()) for pool in _pools(is_reported))


READERS: Final = {
    names.DB_CLIENT_CONNECTION_COUNT: _connections,
    names.DB_CLIENT_CONNECTION_LIMIT: _maximum,
    names.DB_CLIENT_CONNECTION_IDLE_MIN: _minimum,
    names.DB_CLIENT_CONNECTION_PENDING_REQUESTS: _pending,
}
