"""Who else makes command spans: where somebody does, the instrumentor's stand down."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._runtime.log import warn

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_CONTRIB: Final = "opentelemetry.instrumentation.pymongo"
_DRIVER_SCOPE: Final = "PyMongo"
"""The instrumentation scope of the spans that PyMongo makes itself, by the MongoDB drivers' specification."""


class OtherTracers:
    """Looks, at each command, whether another one traces it.

    At each command because the order in which instrumentations are switched on is nobody's choice, and because the
    driver traces by client.
    """

    __slots__ = ("_warned",)

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def found(self, current_span: Span) -> bool:
        """Whether a command that starts under `current_span` is traced by another; the first time, a warning.

        Runs on the thread of the command.
        """
        if _contrib_is_active():
            self._warn(
                "opentelemetry-instrumentation-pymongo",
                "set OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo, or uninstall it",
            )
            return True
        scope = getattr(current_span, "instrumentation_scope", None)
        if scope is not None and scope.name == _DRIVER_SCOPE:
            self._warn(
                "PyMongo itself",
                "switch the driver's tracing off (the client's option `tracing`, or "
                "OTEL_PYTHON_INSTRUMENTATION_MONGODB_ENABLED)",
            )
            return True
        return False

    def _warn(self, other: str, choice: str) -> None:
        if other in self._warned:
            return
        self._warned.add(other)
        warn(
            "%s traces MongoDB commands already, so opentelemetry-mongo-events makes no command spans. To choose "
            "these, %s. To choose those, and silence this, set OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=mongo_events, or "
            "only the option commands=False",
            other,
            choice,
        )


def _contrib_is_active() -> bool:
    module = sys.modules.get(_CONTRIB)
    if module is None:
        return False
    instrumentor = getattr(module, "PymongoInstrumentor", None)
    return getattr(getattr(instrumentor, "_instance", None), "_is_instrumented_by_opentelemetry", False) is True
