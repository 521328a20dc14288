"""What is measured: the instruments of one meter provider, and what their callbacks read."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from opentelemetry_mongo_events._runtime.process import SharedLock, instances, track
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.observables import GAUGES, SUMS, readings
from opentelemetry_mongo_events._telemetry.provider_check import ProviderCheck
from opentelemetry_mongo_events._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_LOOK_AGAIN: Final = 0.1
_MANY: Final = 1_000
_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_OUTAGES: Final = (0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300)
_ROWS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)

# Fixed keys for each metric, so a tuple of values, in their order, is enough to count under.
_TALLIES: Final = {
    names.DB_CLIENT_CONNECTION_TIMEOUTS: ("{timeout}", "Checkouts that timed out", (names.POOL_NAME,)),
    names.MONGODB_CLIENT_CONNECTION_CLOSED: (
        "{connection}",
        "Connections that were closed, by reason",
        (names.POOL_NAME, names.CLOSE_REASON),
    ),
    names.MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES: (
        "{failure}",
        "Checkouts that failed, by reason",
        (names.POOL_NAME, names.ERROR_TYPE),
    ),
    names.MONGODB_CLIENT_POOL_CLEARED: (
        "{clear}",
        "How often the pool was cleared, as after a network error",
        (names.POOL_NAME,),
    ),
    names.MONGODB_CLIENT_SERVER_CHANGES: (
        "{change}",
        "How often a server changed its type",
        (names.SERVER_ADDRESS, names.SERVER_PORT, names.SERVER_PREVIOUS_TYPE, names.SERVER_TYPE),
    ),
    names.MONGODB_CLIENT_TOPOLOGY_CHANGES: (
        "{change}",
        "How often a topology changed its type",
        (names.REPLICA_SET, names.TOPOLOGY_PREVIOUS_TYPE, names.TOPOLOGY_TYPE),
    ),
}


class Instruments:
    """The instruments of one meter provider.

    Counts are read when metrics are collected; only durations and sizes are recorded as they come. The SDK drops a
    second observable instrument of one name without a word and takes no callback out, so there is one set for each
    provider, for good, and it reads whatever reports there at the time.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = _global_provider if provider is None else _reference(provider)
        self.provider_check = ProviderCheck(self._provider, "opentelemetry.metrics", _LOOK_AGAIN)
        """Whether anything is made of what is measured."""
        self._noted: deque[tuple[str, tuple[str | int | None, ...]]] = deque()
        self._counting = threading.Lock()
        self._tallies: dict[str, dict[tuple[str | int | None, ...], int]] = {name: {} for name in _TALLIES}
        meter = (provider or metrics.get_meter_provider()).get_meter(names.SCOPE, __version__, names.SCHEMA_URL)

        def seconds(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS)

        self.operation_duration = seconds(
            names.DB_CLIENT_OPERATION_DURATION, "Duration of database client operations, as the driver measures it"
        )
        self.returned_rows = meter.create_histogram(
            names.DB_CLIENT_RESPONSE_RETURNED_ROWS,
            "{row}",
            "Documents in a reply's batch",
            explicit_bucket_boundaries_advisory=_ROWS,
        )
        self.create_time = seconds(
            names.DB_CLIENT_CONNECTION_CREATE_TIME, "Time to make a connection, handshake and authentication included"
        )
        self.wait_time = seconds(names.DB_CLIENT_CONNECTION_WAIT_TIME, "Time to get a connection from the pool")
        self.use_time = seconds(
            names.DB_CLIENT_CONNECTION_USE_TIME, "Time between getting a connection and giving it back"
        )
        self.heartbeat_duration = seconds(
            names.MONGODB_CLIENT_HEARTBEAT_DURATION,
            "Duration of heartbeats; one that was awaited lasts as long as the server waited for news",
        )
        self.outage_duration = meter.create_histogram(
            names.MONGODB_CLIENT_OUTAGE_DURATION,
            "s",
            "How long a client had no server that it could write to",
            explicit_bucket_boundaries_advisory=_OUTAGES,
        )
        for name, (unit, description) in SUMS.items():
            meter.create_observable_up_down_counter(name, [functools.partial(self._observe, name)], unit, description)
        for name, (unit, description) in GAUGES.items():
            meter.create_observable_gauge(name, [functools.partial(self._observe, name)], unit, description)
        for name, (unit, description, keys) in _TALLIES.items():
            meter.create_observable_counter(
                name, [functools.partial(self._observe_tally, name, keys)], unit, description
            )
        track(self)

    @property
    def provider(self) -> MeterProvider | None:
        """Where the metrics go: the provider that was given, or the global one of now."""
        return self._provider()

    def are_those_of(self, other: Instruments) -> bool:
        """Whether both are of one provider: that of its own name, and the global one, may be the same by now."""
        return self is other or (self.provider is not None and self.provider is other.provider)

    def add(self, name: str, *values: str | int | None) -> None:
        """Count one more under a counter's name and the values of its attributes; one that is None is left out.

        Safe where the driver holds locks: it is noted, and counted later. To wait for a lock here could be for good:
        who holds it may be in a finalizer that waits for the driver's.
        """
        self._noted.append((name, values))
        if len(self._noted) >= _MANY:
            self._count()

    def _count(self) -> None:
        """Count what was noted, unless another thread is at it: nobody waits."""
        if not self._counting.acquire(blocking=False):
            return
        try:
            while self._noted:
                name, values = self._noted.popleft()
                tally = self._tallies[name]
                tally[values] = tally.get(values, 0) + 1
        finally:
            self._counting.release()

    def forget(self) -> None:
        """Count from 0: after a fork what was counted is the parent's."""
        self._noted = deque()
        self._counting = threading.Lock()
        self._tallies = {name: {} for name in _TALLIES}

    def _observe_tally(self, name: str, keys: tuple[str, ...], _: CallbackOptions) -> Iterable[Observation]:
        # More than one set only where a provider was used by its own name before it was made the global one.
        counts: Counter[tuple[str | int | None, ...]] = Counter()
        for each in instances(Instruments):
            if each.are_those_of(self):
                each._count()
                counts.update(each._tallies[name].copy())
        return [
            Observation(count, {key: value for key, value in zip(keys, values, strict=True) if value is not None})
            for values, count in counts.items()
        ]

    def _observe(self, name: str, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, attributes)
            for attributes, value in readings(name, self._is_reported)
            if value is not None
        ]

    def _is_reported(self, switch: Any, signal: str) -> bool:
        """Whether a signal of that switch goes to the provider of these instruments now."""
        telemetry = switch.of(signal)
        return telemetry is not None and self.are_those_of(telemetry.instruments)


def _global_provider() -> MeterProvider:
    return metrics.get_meter_provider()


def _reference(provider: MeterProvider) -> Callable[[], MeterProvider | None]:
    try:
        return weakref.ref(provider)
    except TypeError:  # it can't be referred to weakly
        return lambda: provider


class _Made:
    """All instruments of this process."""

    def __init__(self) -> None:
        self.of_the_global_provider: Instruments | None = None
        self.of_providers: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
        self.lock = SharedLock()
        """Two threads that make the first ones of a provider would make two sets, one of which the SDK drops."""


_made: Final = _Made()


def instruments(provider: MeterProvider | None) -> Instruments:
    """The instruments of a provider; for None of the global one, whichever that will be."""
    with _made.lock():
        is_global = provider is None or provider is metrics.get_meter_provider()
        if is_global and _made.of_the_global_provider is not None:
            return _made.of_the_global_provider
        try:
            made = _made.of_providers.get(provider or metrics.get_meter_provider())
        except TypeError:  # it can't be referred to weakly
            return Instruments(provider)
        if made is None:
            made = Instruments(None if is_global else provider)
            if not is_global and provider is not None:
                _made.of_providers[provider] = made
        if is_global:
            _made.of_the_global_provider = made
        return made
