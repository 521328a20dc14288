"""The listeners for one client, or to register for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry_mongo_events._guard import Guard
from opentelemetry_mongo_events._open_commands import OpenCommands
from opentelemetry_mongo_events._telemetry import Switch, telemetry_from

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from pymongo.monitoring import CommandListener, ConnectionPoolListener

    from opentelemetry_mongo_events._config import Config
    from opentelemetry_mongo_events._telemetry import FailedHook, RequestHook, ResponseHook


def event_listeners(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: Any | None = None,
    config: Config | None = None,
    request_hook: RequestHook | None = None,
    response_hook: ResponseHook | None = None,
    failed_hook: FailedHook | None = None,
    **options: Any,
) -> list[CommandListener | ConnectionPoolListener]:
    """The listeners that observe one client, for its `event_listeners` argument.

    They work without `MongoEventsInstrumentor`, for as long as the client lives. Where the instrumentor observes the
    same client, it takes the client's commands and these keep quiet. They don't stand down for another instrumentation.

    Example:
        `MongoClient(uri, event_listeners=event_listeners(exclude_commands="ping"))`

    Args:
        tracer_provider: Where spans go; the global provider if there is none.
        meter_provider: Where metrics will go. None are made yet.
        logger_provider: Where log records will go. None are made yet.
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
    telemetry = telemetry_from(keywords, double_tracing=None)
    return listeners(Switch(telemetry)) if telemetry.config.commands else []


def listeners(switch: Switch) -> list[CommandListener | ConnectionPoolListener]:
    """New listeners that write to what `switch` holds."""
    # Here, not above: the package can be imported, and its entry point loaded, where PyMongo isn't installed.
    from opentelemetry_mongo_events._commands import CommandEvents
    from opentelemetry_mongo_events._connections import ConnectionEvents

    open_commands = OpenCommands()
    guard = Guard()
    return [CommandEvents(switch, open_commands, guard), ConnectionEvents(open_commands, guard)]
