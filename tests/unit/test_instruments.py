"""One set of instruments for each meter provider."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as api
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk

from opentelemetry_mongo_events import _process_state, event_listeners
from opentelemetry_mongo_events import _semconv as names
from opentelemetry_mongo_events._instruments import instruments
from tests.metrics import Metrics

if TYPE_CHECKING:
    import pytest


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


def test_a_provider_is_kept_alive_by_nobody() -> None:
    metrics = Metrics()
    made = event_listeners(meter_provider=metrics.provider)
    gone = weakref.ref(metrics.provider)
    metrics.provider.shutdown()

    del metrics, made
    gc.collect()

    assert gone() is None


def test_what_the_apis_own_providers_are_given_is_thrown_away() -> None:
    assert not instruments(NoOpMeterProvider()).are_real
    assert not instruments(None).are_real
    assert instruments(Metrics().provider).are_real


def test_a_provider_that_cant_be_referred_to_weakly_does_as_well() -> None:
    class Provider:
        __slots__ = ()

        def get_meter(self, *args: Any) -> Meter:
            return NoOpMeterProvider().get_meter("x")

    provider: Any = Provider()

    assert instruments(provider).provider is provider


def test_what_is_counted_is_forgotten_by_a_child() -> None:
    metrics = Metrics()
    made = instruments(metrics.provider)
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "a:1")
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "a:1")
    assert metrics.one(names.MONGODB_CLIENT_POOL_CLEARED).value == 2

    _process_state._forget_all()
    made.add(names.MONGODB_CLIENT_POOL_CLEARED, "a:1")

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
