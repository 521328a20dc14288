"""One set of instruments for each meter provider."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._runtime import process
from opentelemetry_mongo_events._telemetry import instruments as instruments_module
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.instruments import Instruments, instruments
from tests.clients import connect
from tests.metrics import Metrics
from tests.waiting import collected, until

if TYPE_CHECKING:
    import pytest

    from tests.servers.scripted import ScriptedServer


def test_a_provider_has_one_set() -> None:
    first, second = Metrics(), Metrics()

    assert instruments(first.provider) is instruments(first.provider)
    assert instruments(first.provider) is not instruments(second.provider)


def test_the_global_provider_has_one_set_by_whatever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = instruments(None)
    provider = Metrics().provider
    monkeypatch.setattr(api, "get_meter_provider", lambda: provider)

    assert instruments(provider) is instruments(None) is unset
    assert unset.provider is provider


def test_threads_that_ask_at_once_get_one_set() -> None:
    for _ in range(20):
        metrics, start = Metrics(), threading.Barrier(4)

        def ask(_: int, metrics: Metrics = metrics, start: threading.Barrier = start) -> Instruments:
            start.wait()
            return instruments(metrics.provider)

        with ThreadPoolExecutor(4) as threads:
            assert len(set(threads.map(ask, range(4)))) == 1


def test_a_provider_that_becomes_the_global_one_keeps_its_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments_module._registry, "for_global_provider", None)
    metrics = Metrics()
    made = instruments(metrics.provider)
    monkeypatch.setattr(api, "get_meter_provider", lambda: metrics.provider)

    assert instruments(None) is made


def test_two_sets_of_one_provider_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the instruments of the global provider were made before there was one.
    monkeypatch.setattr(instruments_module._registry, "for_global_provider", None)
    of_the_global = instruments(None)
    metrics = Metrics()
    by_name = instruments(metrics.provider)
    monkeypatch.setattr(api, "get_meter_provider", lambda: metrics.provider)

    of_the_global.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)
    by_name.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)
    by_name.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "b:1", "b", 1)

    told = metrics.values(names.MONGODB_CLIENT_POOL_CLEARED, names.POOL_NAME)
    assert (told["a:1"], told["b:1"]) == (2, 1)


def test_a_listener_keeps_its_provider_and_tells_no_other(server: ScriptedServer) -> None:
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    lists = [
        event_listeners(meter_provider=MeterProvider([reader], shutdown_on_exit=False), commands=False)
        for reader in readers
    ]
    with connect(server.uri, event_listeners=lists[0]) as client, connect(server.uri, event_listeners=lists[1]):
        client.admin.command("ping")
        gc.collect()
        data = readers[0].get_metrics_data()
        assert data is not None
        found = {m.name: m.data.data_points for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
        limits: Any = found["db.client.connection.limit"]

        assert [point.value for point in limits] == [100]


def test_a_provider_is_kept_alive_by_nobody() -> None:
    metrics = Metrics()
    made = event_listeners(meter_provider=metrics.provider)
    gone = weakref.ref(metrics.provider)
    metrics.provider.shutdown()

    del metrics, made

    until(lambda: collected() and gone() is None)


def test_what_the_apis_own_providers_are_given_is_thrown_away() -> None:
    assert not instruments(NoOpMeterProvider()).provider_check
    assert not instruments(None).provider_check
    assert instruments(Metrics().provider).provider_check


def test_a_provider_that_cant_be_referred_to_weakly_does_as_well() -> None:
    class Provider:
        __slots__ = ()

        def get_meter(self, *args: Any) -> Meter:
            return NoOpMeterProvider().get_meter("x")

    provider: Any = Provider()

    assert instruments(provider).provider is provider


def test_what_is_noted_is_counted_now_and_then_where_nobody_reads() -> None:
    made = instruments(Metrics().provider)
    for _ in range(10_500):
        made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)

    assert len(made._pending) == 500
    assert made._counts[names.MONGODB_CLIENT_POOL_CLEARED] == {("mongodb", "a:1", "a", 1): 10_000}


def test_nobody_waits_to_count() -> None:
    # As where a finalizer runs in the middle of it, and waits for a lock of the driver's.
    metrics = Metrics()
    made = instruments(metrics.provider)
    with made._count_lock:
        for _ in range(1_500):
            made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)
        assert metrics.points(names.MONGODB_CLIENT_POOL_CLEARED) == []

    assert metrics.one(names.MONGODB_CLIENT_POOL_CLEARED).value == 1_500


def test_threads_count_together() -> None:
    metrics = Metrics()
    made = instruments(metrics.provider)

    def add(_: int) -> None:
        for _ in range(2_000):
            made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))

    assert metrics.one(names.MONGODB_CLIENT_POOL_CLEARED).value == 16_000


def test_what_is_counted_is_forgotten_by_a_child() -> None:
    metrics = Metrics()
    made = instruments(metrics.provider)
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)
    assert metrics.one(names.MONGODB_CLIENT_POOL_CLEARED).value == 2

    process._forget_all()
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "mongodb", "a:1", "a", 1)

    assert metrics.one(names.MONGODB_CLIENT_POOL_CLEARED).value == 1


def test_each_metric_has_a_unit_and_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, tuple[str, str]] = {}
    for method in (
        "create_histogram",
        "create_observable_counter",
        "create_observable_gauge",
        "create_observable_up_down_counter",
    ):
        original = getattr(sdk.Meter, method)

        def noted(self: Any, name: str, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            instrument = _original(self, name, *args, **kwargs)
            made[name] = (instrument.unit, instrument.description)
            return instrument

        monkeypatch.setattr(sdk.Meter, method, noted)
    instruments(Metrics().provider)

    assert made.keys() == {
        getattr(names, name) for name in names.__all__ if name.startswith(("DB_CLIENT_", "MONGODB_CLIENT_"))
    }
    assert all(unit and description for unit, description in made.values())
