"""Observable instruments: what is asked for when metrics are collected.

Pools and servers hand in the functions that read their state; nothing here knows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    Reading: TypeAlias = tuple[Mapping[str, Any], float | None]
    """Attributes and a value."""
    IsReported: TypeAlias = Callable[[Any, str], bool]
    """Whether a signal (the second argument) of a `Switch` is reported to the instruments that are collected."""
    Reader: TypeAlias = Callable[[IsReported], Iterable[Reading]]


class Observable(NamedTuple):
    """An observable instrument."""

    unit: str
    description: str


SUMS: Final = {
    names.DB_CLIENT_CONNECTION_COUNT: Observable("{connection}", "Connections that are idle or used"),
    names.DB_CLIENT_CONNECTION_MAX: Observable("{connection}", "Connections that the pool may have"),
    names.DB_CLIENT_CONNECTION_IDLE_MIN: Observable("{connection}", "Connections that the pool keeps at least"),
    names.DB_CLIENT_CONNECTION_PENDING_REQUESTS: Observable("{request}", "Requests that wait for a connection"),
    names.MONGODB_CLIENT_SERVER_COUNT: Observable("{server}", "Servers that are known, by type"),
}
"""Up-down counters: readings with equal attributes are added together."""

GAUGES: Final = {
    names.MONGODB_CLIENT_SERVER_ROUND_TRIP_TIME: Observable("s", "Duration of the last heartbeat that was not awaited"),
}
"""Gauges: of readings with equal attributes, the last one counts."""

_readers: Final[dict[str, Reader]] = {}


def provide(readers: Mapping[str, Reader]) -> None:
    """Hand in the functions that read the state of some observables, by the observables' names."""
    _readers.update(readers)


def readings(name: str, is_reported: IsReported) -> Iterable[Reading]:
    """What an observable is now: all readings of a gauge, the sums of an up-down counter."""
    found = _readers[name](is_reported) if name in _readers else ()
    return _summed(found) if name in SUMS else found


def _summed(found: Iterable[Reading]) -> list[Reading]:
    """The readings, each set of attributes once.

    One reading without a value, which stands for no limit, leaves all with its attributes out.
    """
    added: dict[tuple[tuple[str, object], ...], Reading] = {}
    for attributes, value in found:
        key = tuple(attributes.items())
        so_far = added[key][1] if key in added else 0
        added[key] = (attributes, None if value is None or so_far is None else so_far + value)
    return list(added.values())
