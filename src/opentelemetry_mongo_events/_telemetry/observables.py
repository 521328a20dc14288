"""Observable instruments, and the registry of the functions that read their values at collection.

Pools and servers register the functions that read their state; this module does not depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    Reading: TypeAlias = tuple[Mapping[str, Any], float | None]
    """Attributes and a value; None means that there is no limit."""
    IsReported: TypeAlias = Callable[[Any, str], bool]
    """Whether a `Switch` reports a signal (the second argument) to the instruments that are collected."""
    Reader: TypeAlias = Callable[[IsReported], Iterable[Reading]]


class Observable(NamedTuple):
    """The unit and the description of an observable instrument."""

    unit: str
    description: str


SUMS: Final = {
    names.DB_CLIENT_CONNECTION_COUNT: Observable(
        "{connection}", "The number of connections in the pool that are idle or used."
    ),
    names.DB_CLIENT_CONNECTION_LIMIT: Observable("{connection}", "The maximum number of connections in the pool."),
    names.DB_CLIENT_CONNECTION_IDLE_MIN: Observable("{connection}", "The minimum number of connections in the pool."),
    names.DB_CLIENT_CONNECTION_PENDING_REQUESTS: Observable(
        "{request}", "The number of requests that are waiting for a connection."
    ),
    names.MONGODB_CLIENT_SERVER_COUNT: Observable(
        "{server}", "The number of servers that are known to the clients of the process."
    ),
}
"""Up-down counters: readings with equal attributes are summed."""

GAUGES: Final = {
    names.MONGODB_CLIENT_SERVER_ROUND_TRIP_TIME: Observable(
        "s", "The duration of the last heartbeat that was not awaited."
    ),
}
"""Gauges: the last of several readings with equal attributes is reported."""

_readers: Final[dict[str, Reader]] = {}


def provide(readers: Mapping[str, Reader]) -> None:
    """Register the functions that read observable instruments, by the names of the instruments."""
    _readers.update(readers)


def readings(name: str, is_reported: IsReported) -> Iterable[Reading]:
    """The current values of an observable: all readings of a gauge, the sums of an up-down counter."""
    current = _readers[name](is_reported) if name in _readers else ()
    return _sum_by_attributes(current) if name in SUMS else current


def _sum_by_attributes(current: Iterable[Reading]) -> list[Reading]:
    """Sum the readings that have equal attributes.

    A sum is None if one of its readings is: without a limit for one pool there is none for all.
    """
    sums: dict[tuple[tuple[str, object], ...], Reading] = {}
    for attributes, value in current:
        key = tuple(attributes.items())
        total = sums[key][1] if key in sums else 0
        sums[key] = (attributes, None if value is None or total is None else total + value)
    return list(sums.values())
