"""The instrumentor: for all clients, switched on and off."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # it is not typed

from opentelemetry_mongo_events._listeners import SIGNALS, SignalListeners
from opentelemetry_mongo_events._servers.outages import UNINSTRUMENTED, background_worker, end_all
from opentelemetry_mongo_events._telemetry.other_tracers import OtherTracers
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class MongoEventsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Observes every client that is made after `instrument()`.

    PyMongo copies the registered listeners into a client when it is made, and keeps them for its life: a client that
    was made before is observed by `instrument_client()` only, and one that was made while instrumented is observed
    again after a new `instrument()`.

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
    _keywords: Mapping[str, Any] = {}

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of PyMongo that can be observed, as in the extra `instruments`."""
        return ("pymongo >= 4.0, < 5",)

    @classmethod
    def instrument_client(cls, client: Any, **keywords: Any) -> None:
        """Observe one client that was made before.

        It is observed from now on, as if it had been made with `event_listeners(...)`: what its pools hold and what its
        servers are is taken over as it is. A client that is observed already is left as it is. It works without
        `instrument()`; the spans of its commands don't stand down for another instrumentation.

        PyMongo has no way to do this, so the listeners are put where the driver keeps its own. All parts of it that
        this touches are looked at first.

        Example:
            `MongoEventsInstrumentor().instrument_client(client, client_name="billing")`

        Args:
            client: A `MongoClient`, an `AsyncMongoClient`, or a client of Motor. Other threads may use it meanwhile. An
                `AsyncMongoClient` in use is observed from within its event loop only.
            **keywords: What `event_listeners()` takes. What isn't given is as it was given to `instrument()`, while
                that is on. A value that can't be used is logged as one warning and left out.

        Raises:
            TypeError: It is no client.
            RuntimeError: This version of PyMongo keeps its listeners in another way; or the client has a `mongodb+srv`
                address that wasn't looked up yet; or it is called outside of the client's event loop, or by one of
                the client's listeners. The client is as it was then.
        """
        from opentelemetry_mongo_events import _existing_clients

        _existing_clients.instrument(client, keywords, cls._keywords)

    @classmethod
    def uninstrument_client(cls, client: Any) -> None:
        """Observe a client no more that `instrument_client()` does, as `uninstrument()` does for all of them.

        Commands that are open still close their spans, and an outage that is still on ends as an error. The listeners
        stay in the client, and are quiet. Where there is nothing to undo, a warning says so.

        Raises:
            TypeError: It is no client.
        """
        from opentelemetry_mongo_events import _existing_clients

        _existing_clients.uninstrument(client)

    def uninstrument(self, **kwargs: Any) -> None:
        """Observe no client any more, but for those that were made with `event_listeners(...)`."""
        # Without PyMongo there are no clients, and this can't be imported.
        living_clients = sys.modules.get(f"{__package__}._existing_clients")
        had_clients = living_clients is not None and living_clients.uninstrument_all()
        if self.is_instrumented_by_opentelemetry or not had_clients:
            super().uninstrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        MongoEventsInstrumentor._keywords = kwargs
        telemetry = telemetry_from(kwargs, other_tracers=OtherTracers())
        self._switch.telemetry = telemetry
        signals = [signal for signal in SIGNALS if getattr(telemetry.config, signal)]
        if "pymongo" in sys.modules:
            self._register_all(signals)
        else:
            # PyMongo doesn't work if it is imported before eventlet patches the standard library, which an application
            # under `opentelemetry-instrument` does after this. So this waits until the application imports it. wrapt is
            # required by opentelemetry-instrumentation.
            wrapt.register_post_import_hook(lambda _: self._register_all(signals), "pymongo")

    def _register_all(self, signals: Iterable[str]) -> None:
        for signal in signals:
            self._register(signal)

    def _register(self, signal: str) -> None:
        """Register a signal's listeners, once: PyMongo has no way to take one out, and a second one doubles all."""
        if signal in self._registered:
            return
        from opentelemetry_mongo_events._driver.registration import register

        if self._listeners is None:
            MongoEventsInstrumentor._listeners = SignalListeners(self._switch)
        for listener in cast("SignalListeners", self._listeners).listeners(signal):
            register(listener)
        MongoEventsInstrumentor._registered |= {signal}

    def _uninstrument(self, **kwargs: Any) -> None:
        MongoEventsInstrumentor._keywords = {}
        self._switch.telemetry = None
        end_all(UNINSTRUMENTED, self._switch)
        background_worker.flush()
