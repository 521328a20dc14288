"""Detects other instrumentations that trace commands, so that no command has two spans."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._runtime.log import warn

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_CONTRIB: Final = "opentelemetry.instrumentation.pymongo"
_DRIVER_SCOPE: Final = "PyMongo"
"""The instrumentation scope of PyMongo's own spans, as set by the branch `otel` of its repository."""


class OtherTracers:
    """Checks for each command whether another instrumentation traces it.

    A single check at startup is not enough: instrumentations may be enabled in any order, and PyMongo's own tracing is
    enabled per client.
    """

    __slots__ = ("_warned",)

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def found(self, current_span: Span) -> bool:
        """Whether another instrumentation traces a command that starts under `current_span`.

        Logs a warning the first time. Runs on the thread of the command.
        """
        if _contrib_is_active():
            self._warn(
                "opentelemetry-instrumentation-pymongo",
                "remove the call PymongoInstrumentor().instrument() from the code, or, if opentelemetry-instrument "
                "makes the call, set OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo",
            )
            return True
        if is_driver_span(current_span):
            self._warn(
                "PyMongo itself",
                "disable the driver's tracing (the client option `tracing` or "
                "OTEL_PYTHON_INSTRUMENTATION_MONGODB_ENABLED)",
            )
            return True
        return False

    def _warn(self, other: str, how_to_disable: str) -> None:
        if other in self._warned:
            return
        self._warned.add(other)
        warn(
            "%s already traces MongoDB commands, so opentelemetry-mongo-events creates no command spans. To use the "
            "spans of opentelemetry-mongo-events instead, %s. To keep the current setup without this warning, set "
            "command_spans=False (OTEL_PYTHON_MONGO_EVENTS_COMMAND_SPANS=false)",
            other,
            how_to_disable,
        )


def is_driver_span(span: Span) -> bool:
    """Whether PyMongo itself has created a span. One that isn't sampled has no scope, so it is not recognized."""
    scope = getattr(span, "instrumentation_scope", None)
    return scope is not None and scope.name == _DRIVER_SCOPE


def _contrib_is_active() -> bool:
    module = sys.modules.get(_CONTRIB)
    if module is None:
        return False
    instrumentor = getattr(module, "PymongoInstrumentor", None)
    return getattr(getattr(instrumentor, "_instance", None), "_is_instrumented_by_opentelemetry", False) is True
