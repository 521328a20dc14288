"""The instrumentor: for all clients, switched on and off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # it is not typed

from opentelemetry_mongo_events._double_tracing import DoubleTracing
from opentelemetry_mongo_events._listeners import (
    command_listeners,
    heartbeat_listeners,
    pool_listeners,
    topology_listeners,
)
from opentelemetry_mongo_events._server_states import ServerStates
from opentelemetry_mongo_events._telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable


class MongoEventsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Observes every client that is made after `instrument()`.

    PyMongo copies the registered listeners into a client when it is made, and keeps them for its life: a client that
    was made before is not observed, and one that was made while instrumented is observed again after a new
    `instrument()`.

    Example:
        `MongoEventsInstrumentor().instrument(exclude_commands="ping")`

    `instrument()` takes what `event_listeners()` does but for the name of a client, as keywords, and raises nothing for
    a value that can't be used: it is logged as one warning and left out. `uninstrument()` stops new spans and all
    metrics; commands that are open still close their spans.
    """

    # The class is a singleton, whose constructor may run again and again: its state is here.
    _switch: Switch = Switch()
    _servers: ServerStates | None = None
    _registered: frozenset[str] = frozenset()

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of PyMongo that can be observed, as in the extra `instruments`."""
        return ("pymongo >= 4.0, < 5",)

    def _instrument(self, **kwargs: Any) -> None:
        telemetry = telemetry_from(kwargs, double_tracing=DoubleTracing())
        self._switch.telemetry = telemetry
        if telemetry.config.commands:
            self._register("commands", lambda: command_listeners(self._switch))
        if telemetry.config.pools:
            self._register("pools", lambda: pool_listeners(self._switch))
        if telemetry.config.heartbeats:
            self._register("heartbeats", lambda: heartbeat_listeners(self._known_servers()))
        if telemetry.config.topology:
            self._register("topology", lambda: topology_listeners(self._known_servers()))

    def _known_servers(self) -> ServerStates:
        """What both kinds of listeners write to."""
        if self._servers is None:
            MongoEventsInstrumentor._servers = ServerStates(self._switch)
        return cast("ServerStates", self._servers)

    def _register(self, signal: str, listeners: Callable[[], Iterable[Any]]) -> None:
        """Register a signal's listeners, once: PyMongo has no way to take one out, and a second one doubles all."""
        if signal in self._registered:
            return
        from pymongo import monitoring

        for listener in listeners():
            monitoring.register(listener)
        MongoEventsInstrumentor._registered |= {signal}

    def _uninstrument(self, **kwargs: Any) -> None:
        self._switch.telemetry = None
