"""The metric instruments of a meter provider, and the callbacks that read the observable ones."""

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


_CHECK_INTERVAL: Final = 0.1
_MAX_PENDING: Final = 1_000
_DURATION_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_OUTAGE_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300)
_ROW_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)

# The attribute keys of each counter are fixed, so a tuple of values in their order identifies a series.
_COUNTERS: Final = {
    names.DB_CLIENT_CONNECTION_TIMEOUTS: (
        "{timeout}",
        "The number of connection checkouts that timed out.",
        names.POOL_ATTRIBUTES,
    ),
    names.MONGODB_CLIENT_CONNECTION_CLOSED: (
        "{connection}",
        "The number of connections that were closed.",
        (*names.POOL_ATTRIBUTES, names.CLOSE_REASON),
    ),
    names.MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES: (
        "{failure}",
        "The number of connection checkouts that failed.",
        (*names.POOL_ATTRIBUTES, names.ERROR_TYPE),
    ),
    names.MONGODB_CLIENT_POOL_CLEARED: (
        "{clear}",
        "The number of times that a pool was cleared, for example after a network error.",
        names.POOL_ATTRIBUTES,
    ),
    names.MONGODB_CLIENT_SERVER_CHANGES: (
        "{change}",
        "The number of times that the type of a server changed.",
        (names.SERVER_ADDRESS, names.SERVER_PORT, names.SERVER_PREVIOUS_TYPE, names.SERVER_TYPE),
    ),
    names.MONGODB_CLIENT_TOPOLOGY_CHANGES: (
        "{change}",
        "The number of times that the type of a topology changed.",
        (names.REPLICA_SET, names.TOPOLOGY_PREVIOUS_TYPE, names.TOPOLOGY_TYPE),
    ),
    names.MONGODB_CLIENT_TRANSACTION_RETRIES: (
        "{retry}",
        "The number of transactions that repeated a failed one.",
        (names.ERROR_TYPE,),
    ),
}


class Instruments:
    """The instruments of one meter provider.

    Counts are read when metrics are collected; only durations and sizes are recorded as they occur. The SDK silently
    drops a second observable instrument of the same name and can't remove a callback. Each provider therefore has one
    permanent set, which reads whatever reports to that provider at collection time.

    Args:
        provider: The meter provider; None for the global one, whichever that is at the time.

    Attributes:
        provider_check: Whether an SDK receives the measurements.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = _global_provider if provider is None else _reference(provider)
        interval = _CHECK_INTERVAL if provider is None else None
        self.provider_check = ProviderCheck(self._provider, "opentelemetry.metrics", interval)
        self._pending: deque[tuple[str, tuple[str | int | None, ...]]] = deque()
        self._count_lock = threading.Lock()
        self._counts: dict[str, dict[tuple[str | int | None, ...], int]] = {name: {} for name in _COUNTERS}
        meter = (provider or metrics.get_meter_provider()).get_meter(names.SCOPE, __version__, names.SCHEMA_URL)

        def seconds(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_DURATION_BUCKETS)

        self.operation_duration = seconds(
            names.DB_CLIENT_OPERATION_DURATION, "The duration of commands, as measured by the driver."
        )
        self.returned_rows = meter.create_histogram(
            names.DB_CLIENT_RESPONSE_RETURNED_ROWS,
            "{row}",
            "The number of documents in the batch of a reply.",
            explicit_bucket_boundaries_advisory=_ROW_BUCKETS,
        )
        self.create_time = seconds(
            names.DB_CLIENT_CONNECTION_CREATE_TIME,
            "The time it took to create a connection, including the handshake and authentication.",
        )
        self.wait_time = seconds(
            names.DB_CLIENT_CONNECTION_WAIT_TIME, "The time it took to check out a connection from the pool."
        )
        self.use_time = seconds(
            names.DB_CLIENT_CONNECTION_USE_TIME,
            "The time between checking out a connection and returning it to the pool.",
        )
        self.heartbeat_duration = seconds(
            names.MONGODB_CLIENT_HEARTBEAT_DURATION,
            "The duration of heartbeats. "
            "The duration of an awaited heartbeat includes the time that the server waited for a change.",
        )

        self.transaction_duration = seconds(
            names.MONGODB_CLIENT_TRANSACTION_DURATION,
            "The duration of transactions, from the first command to the end of the commit or abort.",
        )

        def long_seconds(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_OUTAGE_BUCKETS)

        self.outage_duration = long_seconds(
            names.MONGODB_CLIENT_OUTAGE_DURATION, "The duration of outages, during which a client has no usable server."
        )
        self.selection_wait_time = long_seconds(
            names.MONGODB_CLIENT_SERVER_SELECTION_WAIT_TIME,
            "The time that server selections waited for a suitable server. "
            "Selections that found a server immediately are not included.",
        )
        for name, (unit, description) in SUMS.items():
            meter.create_observable_up_down_counter(name, [functools.partial(self._observe, name)], unit, description)
        for name, (unit, description) in GAUGES.items():
            meter.create_observable_gauge(name, [functools.partial(self._observe, name)], unit, description)
        for name, (unit, description, keys) in _COUNTERS.items():
            meter.create_observable_counter(
                name, [functools.partial(self._observe_counter, name, keys)], unit, description
            )
        track(self)

    @property
    def provider(self) -> MeterProvider | None:
        """The provider that receives the metrics: the given one, or the current global one."""
        return self._provider()

    def shares_provider_with(self, other: Instruments) -> bool:
        """Whether both have the same provider: one that was given explicitly may be the global one by now."""
        return self is other or (self.provider is not None and self.provider is other.provider)

    def add(self, name: str, *values: str | int | None) -> None:
        """Add one to a counter.

        Safe to call on any thread while the driver holds locks: the increment is queued and counted later. Waiting for
        a lock here could deadlock, since a finalizer that waits for the driver's lock may hold it.

        Args:
            name: The name of the counter.
            values: The values of its attributes, in the order of their keys; None leaves an attribute out.
        """
        self._pending.append((name, values))
        if len(self._pending) >= _MAX_PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        """Count the queued increments; return at once if another thread is doing so."""
        if not self._count_lock.acquire(blocking=False):
            return
        try:
            while self._pending:
                name, values = self._pending.popleft()
                counts = self._counts[name]
                counts[values] = counts.get(values, 0) + 1
        finally:
            self._count_lock.release()

    def forget(self) -> None:
        """Reset all counters after a fork: their counts belong to the parent process."""
        self._pending = deque()
        self._count_lock = threading.Lock()
        self._counts = {name: {} for name in _COUNTERS}

    def _observe_counter(self, name: str, keys: tuple[str, ...], _: CallbackOptions) -> Iterable[Observation]:
        # There is a second set only if a provider was given explicitly before it became the global one.
        counts: Counter[tuple[str | int | None, ...]] = Counter()
        for each in instances(Instruments):
            if each.shares_provider_with(self):
                each._count_pending()
                counts.update(each._counts[name].copy())
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
        """Whether a signal of that switch is currently reported to the provider of these instruments."""
        telemetry = switch.of(signal)
        return telemetry is not None and self.shares_provider_with(telemetry.instruments)


def _global_provider() -> MeterProvider:
    return metrics.get_meter_provider()


def _reference(provider: MeterProvider) -> Callable[[], MeterProvider | None]:
    try:
        return weakref.ref(provider)
    except TypeError:  # the provider does not support weak references
        return lambda: provider


class _Registry:
    """All instruments of this process.

    Attributes:
        for_global_provider: Those of the global provider.
        by_provider: Those of providers that were given explicitly.
        lock: Keeps two threads from creating two sets for one provider: the SDK would drop one of them.
    """

    def __init__(self) -> None:
        self.for_global_provider: Instruments | None = None
        self.by_provider: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
        self.lock = SharedLock()


_registry: Final = _Registry()


def instruments(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a provider, created on first use. Runs on any thread.

    Args:
        provider: The meter provider; None for the global one, even if it is set later.
    """
    with _registry.lock():
        is_global = provider is None or provider is metrics.get_meter_provider()
        if is_global and _registry.for_global_provider is not None:
            return _registry.for_global_provider
        try:
            current = _registry.by_provider.get(provider or metrics.get_meter_provider())
        except TypeError:  # the provider does not support weak references
            return Instruments(provider)
        if current is None:
            current = Instruments(None if is_global else provider)
            if not is_global and provider is not None:
                _registry.by_provider[provider] = current
        if is_global:
            _registry.for_global_provider = current
        return current
