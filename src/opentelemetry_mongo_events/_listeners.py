"""The listeners for one client, or to register for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry_mongo_events._guard import Guard
from opentelemetry_mongo_events._open_commands import OpenCommands
from opentelemetry_mongo_events._pool_states import PoolStates
from opentelemetry_mongo_events._server_states import ServerStates
from opentelemetry_mongo_events._telemetry import Switch, telemetry_from, usable

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from pymongo.monitoring import (
        CommandListener,
        ConnectionPoolListener,
        ServerHeartbeatListener,
        TopologyListener,
    )

    Listener: TypeAlias = CommandListener | ConnectionPoolListener | ServerHeartbeatListener | TopologyListener

    from opentelemetry_mongo_events._config import Config
    from opentelemetry_mongo_events._telemetry import FailedHook, RequestHook, ResponseHook


def event_listeners(
    *,
    client_name: str | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: Any | None = None,
    config: Config | None = None,
    request_hook: RequestHook | None = None,
    response_hook: ResponseHook | None = None,
    failed_hook: FailedHook | None = None,
    **options: Any,
) -> list[Listener]:
    """The listeners that observe one client, for its `event_listeners` argument.

    They work without `MongoEventsInstrumentor`, for as long as the client lives. Where the instrumentor observes the
    same client, it takes the client's commands and these keep quiet. They don't stand down for another instrumentation.

    Example:
        `MongoClient(uri, event_listeners=event_listeners(exclude_commands="ping"))`

    Args:
        client_name: Stands before the name of each pool in the metrics (`billing/db.example:27017`), so that several
            clients of one server can be told apart.
        tracer_provider: Where spans go; the global provider if there is none.
        meter_provider: Where metrics go; the global provider if there is none.
        logger_provider: Where log records go, if the option `events` asks for them; the global provider if there is
            none.
        config: All options at once, in place of environment and defaults.
        request_hook: Called as `request_hook(span, started_event)` right after a recording span was opened.
        response_hook: Called as `response_hook(span, succeeded_event)` just before it is closed.
        failed_hook: Called as `failed_hook(span, failed_event)` just before it is closed as an error.
        **options: The fields of `Config`, each by its name; they win over all else.

    Hooks run on the thread, or in the task, that called the driver. One that raises is logged once and changes nothing.

    Returns:
        A new list, which may be given to several clients.

    Nothing is raised for a value that can't be used: it is logged as one warning and left out.
    """
    keywords = {
        "tracer_provider": tracer_provider,
        "meter_provider": meter_provider,
        "logger_provider": logger_provider,
        "config": config,
        "request_hook": request_hook,
        "response_hook": response_hook,
        "failed_hook": failed_hook,
        **options,
    }
    client_name = usable({"client_name": client_name}, "client_name", str.strip, "a text that isn't empty")
    telemetry = telemetry_from(keywords, double_tracing=None)
    signals = SignalListeners(Switch(telemetry), client_name)
    return [
        listener for signal in SIGNALS if getattr(telemetry.config, signal) for listener in signals.listeners(signal)
    ]


SIGNALS: Final = ("commands", "pools", "heartbeats", "topology")
"""What is observed, each by the name of its option, in the order in which the driver shall call the listeners."""


class SignalListeners:
    """The listeners of each signal, which write to what one switch holds and share what they know of servers.

    They are imported when they are asked for: the package can be imported, and its entry point loaded, where PyMongo
    isn't installed.
    """

    def __init__(self, switch: Switch, client_name: str | None = None) -> None:
        self._switch = switch
        self._client_name = client_name
        self._servers = ServerStates(switch)

    def listeners(self, signal: str) -> list[Listener]:
        """New listeners for a signal."""
        made: list[Listener] = getattr(self, f"_{signal}")()
        return made

    def _commands(self) -> list[Listener]:
        from opentelemetry_mongo_events._commands import CommandEvents
        from opentelemetry_mongo_events._connections import ConnectionEvents

        open_commands = OpenCommands()
        guard = Guard()
        return [CommandEvents(self._switch, open_commands, guard), ConnectionEvents(open_commands, guard)]

    def _pools(self) -> list[Listener]:
        from opentelemetry_mongo_events._pools import PoolEvents

        return [PoolEvents(PoolStates(self._switch, self._client_name), self._servers, Guard())]

    def _heartbeats(self) -> list[Listener]:
        from opentelemetry_mongo_events._heartbeats import HeartbeatEvents

        return [HeartbeatEvents(self._servers, Guard())]

    def _topology(self) -> list[Listener]:
        from opentelemetry_mongo_events._topology import TopologyEvents

        return [TopologyEvents(self._servers, Guard())]
