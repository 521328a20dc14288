"""The public instrumentor: instruments all clients that are created after `instrument()`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped

from opentelemetry_mongo_events._listeners import SIGNALS, SignalListeners
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._telemetry.other_tracers import OtherTracers
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from opentelemetry_mongo_events._config import Config
    from opentelemetry_mongo_events._telemetry.telemetry import FailedHook, RequestHook, ResponseHook


class MongoEventsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments every client that is created after `instrument()`.

    PyMongo copies the registered listeners into each new client and keeps them as long as the client exists. An
    existing client therefore needs `instrument_client()`. A client that was created after `instrument()` keeps its
    listeners after `uninstrument()`, and the next `instrument()` enables them again.

    Example:
        `MongoEventsInstrumentor().instrument(exclude_commands="ping")`

    The class is a singleton: each call of the constructor returns the same instance.
    """

    # The constructor of the singleton may run many times, so the state is stored in the class.
    _switch: Switch = Switch()
    _listeners: SignalListeners | None = None
    _registered: frozenset[str] = frozenset()
    _keywords: Mapping[str, Any] = {}

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the supported versions of PyMongo: those of the extra `instruments`, and their pre-releases."""
        # Before packaging 26, a specifier allows pre-releases only if it names one. The extra names none, because pip
        # would then install pre-releases.
        return ("pymongo >= 4.0.dev0, < 5",)

    def instrument(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: Any | None = None,
        config: Config | None = None,
        request_hook: RequestHook | None = None,
        response_hook: ResponseHook | None = None,
        failed_hook: FailedHook | None = None,
        **options: Any,
    ) -> None:
        """Instrument all clients that are created from now on.

        An invalid value is ignored and a warning is logged. A second call has no effect until `uninstrument()` is
        called. If the installed version of PyMongo is not supported, an error is logged and nothing is instrumented.
        May be called on any thread.

        Example:
            `MongoEventsInstrumentor().instrument(exclude_commands="ping", query_text="off")`

        Args:
            tracer_provider: Receives the spans. Defaults to the global provider.
            meter_provider: Receives the metrics. Defaults to the global provider.
            logger_provider: Receives the log records, if the option `events` enables them. Defaults to the global
                provider.
            config: All options at once. Replaces environment variables and defaults.
            request_hook: Called as `request_hook(span, started_event)` right after the span starts.
            response_hook: Called as `response_hook(span, succeeded_event)` right before the span ends.
            failed_hook: Called as `failed_hook(span, failed_event)` right before the span ends as an error.
            **options: The fields of `Config` by name. They take precedence over `config`, environment variables and
                defaults. In addition, `skip_dep_check=True` instruments without checking the version of PyMongo.

        Hooks are called only for recording spans, in the thread or task that called the driver. If a hook raises, the
        exception is suppressed and logged once.
        """
        keywords = {
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
            "logger_provider": logger_provider,
            "config": config,
            "request_hook": request_hook,
            "response_hook": response_hook,
            "failed_hook": failed_hook,
        }
        super().instrument(**{name: value for name, value in keywords.items() if value is not None}, **options)

    @classmethod
    def instrument_client(cls, client: Any, **keywords: Any) -> None:
        """Instrument one existing client.

        The client is instrumented as if it had been created with `event_listeners(...)`, including the current state of
        its pools and servers. If the client is already instrumented, the call has no effect. `instrument()` is not
        required. The client gets command spans even if another instrumentation creates them.

        PyMongo has no API for this, so the listeners are added to private lists of the driver. All private attributes
        are checked before anything is changed.

        Example:
            `MongoEventsInstrumentor().instrument_client(client, client_name="billing")`

        Args:
            client: A `MongoClient`, an `AsyncMongoClient` or a Motor client. Other threads may use it at the same time.
                If an `AsyncMongoClient` is in use, call this in its event loop.
            **keywords: The keywords of `event_listeners()`. While `instrument()` is in effect, its keywords are the
                defaults. An invalid value is ignored and a warning is logged.

        Raises:
            TypeError: `client` is not a client.
            RuntimeError: The internals of this version of PyMongo are not supported, the client has not resolved its
                `mongodb+srv` address yet, or this was called outside the client's event loop or by one of the client's
                listeners. The client is unchanged.
        """
        from opentelemetry_mongo_events import _existing_clients

        _existing_clients.instrument(client, keywords, cls._keywords)

    @classmethod
    def uninstrument_client(cls, client: Any) -> None:
        """Undo `instrument_client()` for one client; `uninstrument()` does so for all clients.

        Commands in progress still end their spans. A discovery or an outage in progress ends as an error. The listeners
        stay in the client but are inactive. If the client was not instrumented by `instrument_client()`, a warning is
        logged.

        Args:
            client: The client that was passed to `instrument_client()`.

        Raises:
            TypeError: `client` is not a client.
        """
        from opentelemetry_mongo_events import _existing_clients

        _existing_clients.uninstrument(client)

    def uninstrument(self, **kwargs: Any) -> None:
        """Uninstrument all clients except those that were created with `event_listeners(...)`.

        No new spans are started and no metrics are recorded. Commands in progress still end their spans. A discovery or
        an outage in progress ends as an error.

        Args:
            **kwargs: Ignored. OpenTelemetry's `BaseInstrumentor` allows any keywords here.
        """
        # The module can't be imported without PyMongo. If it isn't imported, it has instrumented no clients.
        existing_clients = sys.modules.get(f"{__package__}._existing_clients")
        had_existing_clients = existing_clients is not None and existing_clients.uninstrument_all()
        if self.is_instrumented_by_opentelemetry or not had_existing_clients:
            super().uninstrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        MongoEventsInstrumentor._keywords = kwargs
        if self._listeners is None:
            MongoEventsInstrumentor._listeners = SignalListeners(self._switch)
        telemetry = telemetry_from(kwargs, other_tracers=OtherTracers())
        self._switch.telemetry = telemetry
        signals = [signal for signal in SIGNALS if getattr(telemetry.config, signal)]
        if "pymongo" in sys.modules:
            self._register_all(signals)
        else:
            # PyMongo doesn't work if it is imported before eventlet patches the standard library. Under
            # `opentelemetry-instrument`, the application does that only after this call. So wait until the application
            # imports PyMongo.
            # opentelemetry-instrumentation requires wrapt.
            wrapt.register_post_import_hook(lambda _: self._register_all(signals), "pymongo")

    def _register_all(self, signals: Iterable[str]) -> None:
        for signal in signals:
            self._register(signal)

    def _register(self, signal: str) -> None:
        """Register a signal's listeners once: PyMongo can't unregister them, and a second set would double all data."""
        if signal in self._registered:
            return
        from opentelemetry_mongo_events._driver.registration import register

        for listener in cast("SignalListeners", self._listeners).listeners(signal):
            register(listener)
        MongoEventsInstrumentor._registered |= {signal}

    def _uninstrument(self, **kwargs: Any) -> None:
        MongoEventsInstrumentor._keywords = {}
        cast("SignalListeners", self._listeners).switch_off()
        background_worker.flush()
