"""Creates the listeners: `event_listeners()` for one client, `SignalListeners` for the instrumentor."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry_mongo_events._commands.open_commands import OpenCommands
from opentelemetry_mongo_events._pools.observables import READERS as POOL_READERS
from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._servers.observables import READERS as SERVER_READERS
from opentelemetry_mongo_events._servers.outages import UNINSTRUMENTED, end_all
from opentelemetry_mongo_events._servers.state import ServerStates
from opentelemetry_mongo_events._telemetry.observables import provide
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from, usable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from opentelemetry_mongo_events._commands.transactions import Transactions
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
    """Create listeners that instrument one client, for its `event_listeners` argument.

    The listeners work without `MongoEventsInstrumentor`, for as long as the client exists. If the instrumentor also
    instruments the client, it handles the commands, and these listeners ignore them. The listeners create command spans
    even if another instrumentation does.

    An invalid value is ignored and a warning is logged.

    Example:
        `MongoClient(uri, event_listeners=event_listeners(exclude_commands="ping"))`

    Args:
        client_name: A prefix for the names of the client's pools in the metrics (`billing/db.example:27017`). It
            distinguishes clients that connect to the same server.
        tracer_provider: Receives the spans. Defaults to the global provider.
        meter_provider: Receives the metrics. Defaults to the global provider.
        logger_provider: Receives the log records, if the option `events` enables them. Defaults to the global provider.
        config: All options at once. Replaces environment variables and defaults.
        request_hook: Called as `request_hook(span, started_event)` right after the span starts.
        response_hook: Called as `response_hook(span, succeeded_event)` right before the span ends.
        failed_hook: Called as `failed_hook(span, failed_event)` right before the span ends as an error.
        **options: The fields of `Config` by name. They take precedence over `config`, environment variables and
            defaults.

    Hooks are called only for recording spans, in the thread or task that called the driver. If a hook raises, the
    exception is suppressed and logged once.

    Returns:
        A new list of listeners. Several clients may share it.
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
    # PyMongo comes first: its import may run the hook of `instrument()`, which imports modules of this package and must
    # not find them partially initialized.
    import pymongo  # noqa: F401

    from opentelemetry_mongo_events._driver.encryption import replace_registered_lists

    replace_registered_lists()
    signals = SignalListeners(Switch(telemetry), client_name)
    return [
        listener for signal in SIGNALS if getattr(telemetry.config, signal) for listener in signals.listeners(signal)
    ]


def usable_client_name(client_name: object) -> str | None:
    """Return the name of a client, or None, with a warning, for an invalid value."""
    name: str | None = usable({"client_name": client_name}, "client_name", str.strip, "a non-empty string")
    return name


SIGNALS: Final = ("commands", "pools", "heartbeats", "topology", "selections")
"""What can be instrumented, by option name, in the order in which the driver calls the listeners."""


# The signal and the switch of each listener that was created.
_signals_and_switches: Final[weakref.WeakKeyDictionary[Listener, tuple[str, Switch]]] = weakref.WeakKeyDictionary()


def are_active(listeners: Iterable[object], signal: str) -> bool:
    """Return whether a client has enabled listeners of this package for a signal.

    Args:
        listeners: All listeners of the client.
        signal: One of `SIGNALS`.
    """
    for listener in listeners:
        # Other listeners may not be hashable.
        if type(listener).__module__.startswith(f"{__package__}."):
            own_signal, switch = _signals_and_switches.get(listener, (None, None))  # type: ignore[call-overload]
            if own_signal == signal and switch.of(signal) is not None:
                return True
    return False


class SignalListeners:
    """Creates the listeners of each signal. They share a switch and the state of pools and servers.

    The listener classes are imported on demand, so that this package can be imported, and its entry point loaded,
    without PyMongo installed.

    Args:
        switch: Holds the telemetry that the listeners use.
        client_name: The prefix for the names of pools.

    Attributes:
        pools: The state of the pools.
        servers: The state of the servers and topologies.
    """

    def __init__(self, switch: Switch, client_name: str | None = None) -> None:
        self.pools = PoolStates(switch, client_name)
        self.servers = ServerStates(switch)
        self._switch = switch
        self._transactions: list[Transactions] = []

    def switch_off(self) -> None:
        """Disable all listeners, and end open discoveries, outages and transactions. Called on any thread."""
        self._switch.telemetry = None
        end_all(UNINSTRUMENTED, self._switch)
        for transactions in self._transactions:
            transactions.end_all()

    def listeners(self, signal: str) -> list[Listener]:
        """Create the listeners for one of `SIGNALS`."""
        new: list[Listener] = getattr(self, f"_{signal}")()
        _signals_and_switches.update(dict.fromkeys(new, (signal, self._switch)))
        return new

    def _commands(self) -> list[Listener]:
        from opentelemetry_mongo_events._commands.connections import ConnectionEvents
        from opentelemetry_mongo_events._commands.listener import CommandEvents
        from opentelemetry_mongo_events._commands.transactions import Transactions

        open_commands = OpenCommands()
        guard = Guard()
        transactions = Transactions(guard)
        self._transactions.append(transactions)
        return [
            CommandEvents(self._switch, open_commands, transactions, guard),
            ConnectionEvents(self._switch, open_commands, transactions, guard),
        ]

    def _pools(self) -> list[Listener]:
        from opentelemetry_mongo_events._pools.listener import PoolEvents

        return [PoolEvents(self.pools, self.servers, Guard())]

    def _heartbeats(self) -> list[Listener]:
        from opentelemetry_mongo_events._servers.heartbeat_listener import HeartbeatEvents

        return [HeartbeatEvents(self.servers, Guard())]

    def _topology(self) -> list[Listener]:
        from opentelemetry_mongo_events._servers.topology_listener import TopologyEvents

        return [TopologyEvents(self.servers, Guard())]

    def _selections(self) -> list[Listener]:
        from opentelemetry_mongo_events._servers.selection_listener import SelectionEvents

        return [SelectionEvents(self.servers)]
