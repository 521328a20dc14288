"""What listeners write to: the tracer, instruments, logger and options, always replaced together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, get_logger
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span, Tracer

from opentelemetry_mongo_events._config import LOG_RECORDS, Config, config_from, shown
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import HAS_GIL
from opentelemetry_mongo_events._telemetry.instruments import Instruments, instruments
from opentelemetry_mongo_events._telemetry.provider_check import ProviderCheck
from opentelemetry_mongo_events._telemetry.semconv import SCHEMA_URL, SCOPE, old_names_wanted
from opentelemetry_mongo_events._version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent, CommandSucceededEvent

    from opentelemetry_mongo_events._telemetry.other_tracers import OtherTracers

RequestHook = Callable[[Span, "CommandStartedEvent"], object]
"""Called right after the span of a command starts."""
ResponseHook = Callable[[Span, "CommandSucceededEvent"], object]
"""Called right before the span of a command ends, if the command succeeded."""
FailedHook = Callable[[Span, "CommandFailedEvent"], object]
"""Called right before the span of a command ends, if the command failed."""

T = TypeVar("T")

_NOOP_METER_PROVIDER: Final = NoOpMeterProvider()

# Seconds. A check takes about 3 us. Commands get no spans between the setup of an SDK and the next check.
_CHECK_INTERVAL: Final = 0.01

# Not a plain `Context()`: it is falsy, so an SDK would use the current span as the parent instead.
NO_PARENT: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""The context for spans and log records that belong to no caller."""


@dataclasses.dataclass(frozen=True, slots=True)
class Telemetry:
    """Where telemetry goes, and the options that select it.

    Attributes:
        tracer_check: Whether an SDK receives the spans.
        meter_provider: Keeps the provider alive, as the tracer does with its provider; None for the global one.
        logger: None if no log records are emitted.
        old_names: Whether command spans also have the old attribute names.
        other_tracers: None for the listeners of one client: they create spans even if other instrumentations do.
        filters_commands: Whether some commands may get no span, so that each has to be checked.
    """

    tracer: Tracer
    tracer_check: ProviderCheck
    instruments: Instruments
    meter_provider: MeterProvider | None
    logger: Logger | None
    config: Config
    old_names: bool
    request_hook: RequestHook | None
    response_hook: ResponseHook | None
    failed_hook: FailedHook | None
    other_tracers: OtherTracers | None
    filters_commands: bool


class Switch:
    """Holds the current telemetry; None while the instrumentation is off.

    PyMongo keeps a listener for the life of a client, so listeners stay and the telemetry they write to is replaced.
    """

    __slots__ = ("telemetry",)

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self.telemetry = telemetry

    def of(self, signal: str) -> Telemetry | None:
        """The current telemetry of a signal, by the name of the option that enables it; None while it is off."""
        telemetry = self.telemetry
        return telemetry if telemetry is not None and getattr(telemetry.config, signal) else None


_OTHER_KEYWORDS: Final = (
    "tracer_provider",
    "meter_provider",
    "logger_provider",
    "request_hook",
    "response_hook",
    "failed_hook",
    "config",
)
"""The keywords in addition to the options."""


def telemetry_from(keywords: Mapping[str, Any], *, other_tracers: OtherTracers | None) -> Telemetry:
    """Build the telemetry from the keywords of `instrument()` or `event_listeners()`.

    An invalid value is ignored and a warning is logged.
    """
    _warn_of_free_threaded_3_13()
    options = dict(keywords)
    tracer_provider = usable(options, "tracer_provider", _is_tracer_provider, "a TracerProvider instance")
    meter_provider = usable(options, "meter_provider", _is_meter_provider, "a MeterProvider instance")
    logger_provider = usable(options, "logger_provider", _is_logger_provider, "a LoggerProvider instance")
    hook = "a function that takes a span and an event and isn't async"
    request_hook = usable(options, "request_hook", _is_hook, hook)
    response_hook = usable(options, "response_hook", _is_hook, hook)
    failed_hook = usable(options, "failed_hook", _is_hook, hook)
    base = usable(options, "config", lambda value: isinstance(value, Config), "a Config instance")
    # `client_name` is for the listeners of one client, for which `other_tracers` is None.
    others = (*_OTHER_KEYWORDS, "client_name") if other_tracers is None else _OTHER_KEYWORDS
    config = config_from(os.environ, options, base, others)
    return Telemetry(
        _or_fallback(
            "TracerProvider",
            lambda: _tracer(tracer_provider or trace.get_tracer_provider()),
            trace.NoOpTracer,
        ),
        _tracer_check(tracer_provider),
        _or_fallback("MeterProvider", lambda: instruments(meter_provider), lambda: instruments(_NOOP_METER_PROVIDER)),
        meter_provider,
        _or_fallback("LoggerProvider", lambda: _logger(logger_provider, config), lambda: None),
        config,
        old_names_wanted(os.environ),
        request_hook,
        response_hook,
        failed_hook,
        other_tracers,
        bool(other_tracers or config.exclude_commands or config.require_parent_span or not config.command_spans),
    )


@functools.cache
def _warn_of_free_threaded_3_13() -> None:
    if sys.version_info < (3, 14) and not HAS_GIL:
        warn(
            "free-threaded Python 3.13 isn't supported: its OrderedDict isn't thread-safe, so the process may crash. "
            "Use Python 3.14t or newer, or enable the GIL (PYTHON_GIL=1)"
        )


def _tracer(provider: trace.TracerProvider) -> Tracer:
    tracer = provider.get_tracer(SCOPE, __version__, SCHEMA_URL)
    if not callable(tracer.start_span):
        raise TypeError
    return tracer


def _or_fallback(kind: str, create: Callable[[], T], create_noop: Callable[[], T]) -> T:
    """Call `create`, or `create_noop` with a warning if the global provider is unusable.

    Only the global provider can fail here. A provider that was passed explicitly has already been checked.
    """
    try:
        return create()
    except Exception:
        warn("the global %s is invalid and receives no telemetry", kind)
        return create_noop()


# A class is rejected explicitly: some of the methods work even when they are called on the class.
def _is_tracer_provider(provider: Any) -> bool:
    return not isinstance(provider, type) and bool(_tracer(provider))


def _is_meter_provider(provider: Any) -> bool:
    return not isinstance(provider, type) and bool(instruments(provider))


def _is_logger_provider(provider: Any) -> bool:
    if isinstance(provider, type):
        return False
    return callable(provider.get_logger(SCOPE, version=__version__, schema_url=SCHEMA_URL).emit)


def _is_hook(value: Any) -> bool:
    """Whether a value can be called with a span and an event, and runs synchronously."""
    if not callable(value):
        return False
    for function in (value, type(value).__call__):
        if any(is_deferred(function) for is_deferred in _DEFERRED):
            return False
    try:
        signature = inspect.signature(value)
    except Exception:  # some built-in functions have no signature
        return True
    signature.bind(None, None)
    return True


_DEFERRED: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
"""Predicates for functions whose body does not run when they are called."""


def _tracer_check(provider: trace.TracerProvider | None) -> ProviderCheck:
    # The API's placeholder for the global provider may also be passed explicitly.
    if provider is None or isinstance(provider, trace.ProxyTracerProvider):
        return ProviderCheck(trace.get_tracer_provider, "opentelemetry.trace", _CHECK_INTERVAL)
    return ProviderCheck(lambda: provider, "opentelemetry.trace", None)


def _logger(provider: LoggerProvider | None, config: Config) -> Logger | None:
    if config.events not in LOG_RECORDS:
        return None
    # Added in OpenTelemetry 1.38. Earlier versions can't export a record of the API's own class.
    if "event_name" not in inspect.signature(Logger.emit).parameters:
        warn("events=%s requires opentelemetry-api 1.38 or newer: no log records are emitted", config.events)
        return None
    return get_logger(SCOPE, __version__, provider, SCHEMA_URL)


def usable(keywords: dict[str, Any], name: str, check: Callable[[Any], object], allowed: str) -> Any:
    """Remove a keyword and return its value, or None if it is missing or invalid.

    Logs a warning for an invalid value; never raises.

    Args:
        keywords: All keywords.
        name: The keyword to remove.
        check: Returns a true value for a valid value; may raise for an invalid one.
        allowed: Describes the valid values, for the warning.
    """
    value = keywords.pop(name, None)
    if value is None:
        return None
    try:
        if check(value):
            return value
    except Exception:  # noqa: S110  # the check itself failed: warned about below
        pass
    warn("invalid %s: %s; expected %s; ignored", name, shown(value), allowed)
    return None
