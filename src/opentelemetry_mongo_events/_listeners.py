"""The listeners for one client, or to register for all."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._commands.open_commands import OpenCommands
from opentelemetry_mongo_events._pools.observables import READERS as POOL_READERS
from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._servers.observables import READERS as SERVER_READERS
from opentelemetry_mongo_events._servers.state import ServerStates
from opentelemetry_mongo_events._telemetry.observables import provide
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from, usable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from opentelemetry_mongo_events._config import Config
    from opentelemetry_mongo_events._driver.listeners import Listener
    from opentelemetry_mongo_events._telemetry.telemetry import FailedHook, RequestHook, ResponseHook


provide(POOL_READERS)
provide(SERVER_READERS)


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
    client_name = usable_client_name(client_name)
    telemetry = telemetry_from(keywords, other_tracers=None)
    signals = SignalListeners(Switch(telemetry), client_name)
    return [
        listener for signal in SIGNALS if getattr(telemetry.config, signal) for listener in signals.listeners(signal)
    ]


def usable_client_name(client_name: object) -> str | None:
    """The name of a client; None, with a warning, for what is none."""
    name: str | None = usable({"client_name": client_name}, "client_name", str.strip, "a text that isn't empty")
    return name


SIGNALS: Final = ("commands", "pools", "heartbeats", "topology")
"""What is observed, each by the name of its option, in the order in which the driver shall call the listeners."""


_made: Final[weakref.WeakKeyDictionary[Listener, tuple[str, Switch]]] = weakref.WeakKeyDictionary()


def are_active(listeners: Iterable[object], signal: str) -> bool:
    """Whether one of a client's listeners is of this package, for that signal, and switched on."""
    for listener in listeners:
        # Others may be of a kind that can be no key.
        if type(listener).__module__.startswith(f"{__package__}."):
            its_signal, switch = _made.get(listener, (None, None))  # type: ignore[call-overload]
            if its_signal == signal and switch.of(signal) is not None:
                return True
    return False


class SignalListeners:
    """The listeners of each signal, which write to what one switch holds and share what they know of servers.

    They are imported when they are asked for: the package can be imported, and its entry point loaded, where PyMongo
    isn't installed.

    Attributes:
        pools: What the listeners for pools know.
        servers: What those for heartbeats and topologies know.
    """

    def __init__(self, switch: Switch, client_name: str | None = None) -> None:
        self.pools = PoolStates(switch, client_name)
        self.servers = ServerStates(switch)
        self._switch = switch

    def listeners(self, signal: str) -> list[Listener]:
        """New listeners for a signal."""
        made: list[Listener] = getattr(self, f"_{signal}")()
        _made.update(dict.fromkeys(made, (signal, self._switch)))
        return made

    def _commands(self) -> list[Listener]:
        from opentelemetry_mongo_events._commands.connections import ConnectionEvents
        from opentelemetry_mongo_events._commands.listener import CommandEvents

        open_commands = OpenCommands()
        guard = Guard()
        return [CommandEvents(self._switch, open_commands, guard), ConnectionEvents(open_commands, guard)]

    def _pools(self) -> list[Listener]:
        from opentelemetry_mongo_events._pools.listener import PoolEvents

        return [PoolEvents(self.pools, self.servers, Guard())]

    def _heartbeats(self) -> list[Listener]:
        from opentelemetry_mongo_events._servers.heartbeat_listener import HeartbeatEvents

        return [HeartbeatEvents(self.servers, Guard())]

    def _topology(self) -> list[Listener]:
        from opentelemetry_mongo_events._servers.topology_listener import TopologyEvents

        return [TopologyEvents(self.servers, Guard())]
