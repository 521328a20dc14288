"""What listeners write to: made once for each set of options and providers, and swapped as a whole."""

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
ResponseHook = Callable[[Span, "CommandSucceededEvent"], object]
FailedHook = Callable[[Span, "CommandFailedEvent"], object]

T = TypeVar("T")

_MEASURES_NOTHING: Final = NoOpMeterProvider()

# To look costs some 3 us, and a command that starts just after the provider was set has no span.
_LOOK_AGAIN: Final = 0.01

# Not just an empty context: that is false, and an SDK that is given one takes the current span instead.
NO_PARENT: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""The context of what belongs to no caller."""


@dataclasses.dataclass(frozen=True, slots=True)
class Telemetry:
    """Where telemetry goes and what it holds."""

    tracer: Tracer
    tracer_check: ProviderCheck
    """Whether anything is made of spans."""
    instruments: Instruments
    meter_provider: MeterProvider | None
    """Kept alive, as the tracer keeps its own; None for the global one."""
    logger: Logger | None
    """None where there are no log records."""
    config: Config
    old_names: bool
    request_hook: RequestHook | None
    response_hook: ResponseHook | None
    failed_hook: FailedHook | None
    other_tracers: OtherTracers | None
    """None where the listeners were asked for by hand: then they trace whatever else does."""
    filters_commands: bool
    """Whether it is asked of each command if it gets a span; if not, all do."""


class Switch:
    """The telemetry that is in force, or None.

    PyMongo keeps a listener for the life of a client, so listeners stay and what they write to is swapped.
    """

    __slots__ = ("telemetry",)

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self.telemetry = telemetry

    def of(self, signal: str) -> Telemetry | None:
        """The telemetry in force for a signal, which is one of the options of that name; None where it is off."""
        telemetry = self.telemetry
        return telemetry if telemetry is not None and getattr(telemetry.config, signal) else None


def telemetry_from(keywords: Mapping[str, Any], *, other_tracers: OtherTracers | None) -> Telemetry:
    """The telemetry that the keywords of `instrument()` or `event_listeners()` ask for.

    What can't be used is one warning that names it, and is left out.
    """
    _warn_of_free_threaded_3_13()
    options = dict(keywords)
    tracer_provider = usable(options, "tracer_provider", _gives_tracers, "a TracerProvider")
    meter_provider = usable(options, "meter_provider", _gives_meters, "a MeterProvider")
    logger_provider = usable(options, "logger_provider", _gives_loggers, "a LoggerProvider")
    hook = "a function of a span and an event, not an async one,"
    request_hook = usable(options, "request_hook", _is_hook, hook)
    response_hook = usable(options, "response_hook", _is_hook, hook)
    failed_hook = usable(options, "failed_hook", _is_hook, hook)
    base = usable(options, "config", lambda value: isinstance(value, Config), "a Config")
    config = config_from(os.environ, options, base)
    return Telemetry(
        _given(
            "TracerProvider",
            lambda: _tracer(tracer_provider or trace.get_tracer_provider()),
            trace.NoOpTracer,
        ),
        _tracer_check(tracer_provider),
        _given("MeterProvider", lambda: instruments(meter_provider), lambda: instruments(_MEASURES_NOTHING)),
        meter_provider,
        _given("LoggerProvider", lambda: _logger(logger_provider, config), lambda: None),
        config,
        old_names_wanted(os.environ),
        request_hook,
        response_hook,
        failed_hook,
        other_tracers,
        bool(other_tracers or config.exclude_commands or config.require_parent_span),
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


def _given(kind: str, wanted: Callable[[], T], nothing: Callable[[], T]) -> T:
    """What is wanted of a provider. One that was given is known to be usable, the global one may not be."""
    try:
        return wanted()
    except Exception:
        warn("the global %s can't be used: nothing goes there", kind)
        return nothing()


# A class has the methods of its objects, and some give something even so.
def _gives_tracers(provider: Any) -> bool:
    return not isinstance(provider, type) and bool(_tracer(provider))


def _gives_meters(provider: Any) -> bool:
    return not isinstance(provider, type) and bool(instruments(provider))


def _gives_loggers(provider: Any) -> bool:
    if isinstance(provider, type):
        return False
    return callable(provider.get_logger(SCOPE, version=__version__, schema_url=SCHEMA_URL).emit)


def _is_hook(value: Any) -> bool:
    """Whether it can be called with a span and an event, and has done its work then."""
    if not callable(value):
        return False
    for function in (value, type(value).__call__):
        if any(kind(function) for kind in _WORK_LATER):
            return False
    try:
        signature = inspect.signature(value)
    except Exception:  # some that are built in have none
        return True
    signature.bind(None, None)
    return True


_WORK_LATER: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
"""Functions that, when they are called, do nothing yet."""


def _tracer_check(provider: trace.TracerProvider | None) -> ProviderCheck:
    # What stands for the global provider until there is one may be given, too.
    is_global = provider is None or isinstance(provider, trace.ProxyTracerProvider)
    return ProviderCheck(
        trace.get_tracer_provider if is_global else lambda: provider, "opentelemetry.trace", _LOOK_AGAIN
    )


def _logger(provider: LoggerProvider | None, config: Config) -> Logger | None:
    if config.events not in LOG_RECORDS:
        return None
    # OpenTelemetry 1.38; before, a record of the API's own can't be exported.
    if "event_name" not in inspect.signature(Logger.emit).parameters:
        warn("events=%s needs opentelemetry-api 1.38 or newer: no log records are made", config.events)
        return None
    return get_logger(SCOPE, __version__, provider, SCHEMA_URL)


def usable(keywords: dict[str, Any], name: str, check: Callable[[Any], object], allowed: str) -> Any:
    """Take `name` out of the keywords: its value, or None, with a warning, where it isn't what is allowed."""
    value = keywords.pop(name, None)
    if value is None:
        return None
    try:
        if check(value):
            return value
    except Exception:  # noqa: S110  # the check itself can't be made: told below
        pass
    warn("%s=%s can't be used: %s is allowed; it is left out", name, shown(value), allowed)
    return None
