"""The instrumentor: for all clients, switched on and off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # it is not typed

from opentelemetry_mongo_events._double_tracing import DoubleTracing
from opentelemetry_mongo_events._episodes import UNINSTRUMENTED, end_all, keeper
from opentelemetry_mongo_events._listeners import SIGNALS, SignalListeners
from opentelemetry_mongo_events._telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from collections.abc import Collection


class MongoEventsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Observes every client that is made after `instrument()`.

    PyMongo copies the registered listeners into a client when it is made, and keeps them for its life: a client that
    was made before is not observed, and one that was made while instrumented is observed again after a new
    `instrument()`.

    Example:
        `MongoEventsInstrumentor().instrument(exclude_commands="ping")`

    `instrument()` takes what `event_listeners()` does but for the name of a client, as keywords, and raises nothing for
    a value that can't be used: it is logged as one warning and left out. `uninstrument()` stops new spans and all
    metrics; commands that are open still close their spans, and an outage that is still on ends as an error.
    """

    # The class is a singleton, whose constructor may run again and again: its state is here.
    _switch: Switch = Switch()
    _listeners: SignalListeners | None = None
    _registered: frozenset[str] = frozenset()

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of PyMongo that can be observed, as in the extra `instruments`."""
        return ("pymongo >= 4.0, < 5",)

    def _instrument(self, **kwargs: Any) -> None:
        telemetry = telemetry_from(kwargs, double_tracing=DoubleTracing())
        self._switch.telemetry = telemetry
        for signal in SIGNALS:
            if getattr(telemetry.config, signal):
                self._register(signal)

    def _register(self, signal: str) -> None:
        """Register a signal's listeners, once: PyMongo has no way to take one out, and a second one doubles all."""
        if signal in self._registered:
            return
        from pymongo import monitoring

        if self._listeners is None:
            MongoEventsInstrumentor._listeners = SignalListeners(self._switch)
        for listener in cast("SignalListeners", self._listeners).listeners(signal):
            monitoring.register(listener)
        MongoEventsInstrumentor._registered |= {signal}

    def _uninstrument(self, **kwargs: Any) -> None:
        self._switch.telemetry = None
        end_all(UNINSTRUMENTED, self._switch)
        keeper.flush()
