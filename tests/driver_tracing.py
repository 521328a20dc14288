"""PyMongo with tracing of its own: where the installed one has none, a stand-in that does as its branch `otel`.

Each call of the driver is a span, which is current while its commands run; each command is a span in it, never current.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import Span, SpanKind, get_current_span
from pymongo import MongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from tests.clients import aconnect, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from pymongo import AsyncMongoClient

    from tests.spans import Spans

IS_REAL = importlib.util.find_spec("pymongo._otel") is not None
SCOPE = "PyMongo"

# The name of an operation, or what finds it in the object whose method runs the operation.
Operation = str | Callable[[Any], str]

can_trace = pytest.mark.skipif(
    pymongo.version_tuple < (4, 17), reason="the stand-in knows the private methods of newer versions"
)


class DriverTracing:
    """Makes clients that trace, and finds their spans.

    Args:
        spans: Where the spans go.
        patch: Undoes what was changed in the driver.
    """

    def __init__(self, spans: Spans, patch: pytest.MonkeyPatch) -> None:
        self._spans = spans
        self._tracer: Any = spans.provider.get_tracer(SCOPE, pymongo.version)
        self._options: dict[str, Any] = {"tracing": {"enabled": True}} if IS_REAL else {}
        if IS_REAL:
            patch.setattr("pymongo._otel._TRACER", self._tracer)
        else:
            self._patch(patch)

    def connect(self, uri: str, **options: Any) -> MongoClient[Any]:
        return connect(uri, **self._with_tracing(options))

    def aconnect(self, uri: str, **options: Any) -> AsyncMongoClient[Any]:
        return aconnect(uri, **self._with_tracing(options))

    def _with_tracing(self, options: dict[str, Any]) -> dict[str, Any]:
        listeners = [] if IS_REAL else [_CommandSpans(self._tracer)]
        return options | self._options | {"event_listeners": [*options.pop("event_listeners", ()), *listeners]}

    @property
    def operations(self) -> list[ReadableSpan]:
        """The spans of operations, in the order of their ends."""
        return [span for span in self._of_the_driver() if "db.command.name" not in (span.attributes or {})]

    @property
    def commands(self) -> list[str]:
        """The names of the commands that have a span, in the order of their ends."""
        return [
            str(span.attributes["db.command.name"])
            for span in self._of_the_driver()
            if span.attributes and "db.command.name" in span.attributes
        ]

    def operation(self, name: str) -> ReadableSpan:
        """The only one with that name."""
        (operation,) = [each for each in self.operations if (each.attributes or {})["db.operation.name"] == name]
        return operation

    def _of_the_driver(self) -> list[ReadableSpan]:
        return [span for span in self._spans.finished if scope_of(span) == SCOPE]

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        tracing = self

        def span(operation: str) -> Any:
            told = {"db.system.name": "mongodb", "db.operation.name": operation}
            return tracing._tracer.start_as_current_span(operation, kind=SpanKind.CLIENT, attributes=told)

        for client in (MongoClient, pymongo.AsyncMongoClient):
            wrapped = _in_span if client is MongoClient else _in_async_span
            loop = sys.modules[client.__module__]._ClientConnectionRetryable
            patch.setattr(loop, "run", wrapped(span, _operation, loop.run))
            patch.setattr(client, "_kill_cursor_impl", wrapped(span, "killCursors", client._kill_cursor_impl))
            patch.setattr(client, "_end_sessions", wrapped(span, "endSessions", client._end_sessions))


def _in_async_span(span: Callable[[str], Any], operation: Operation, method: Callable[..., Any]) -> Callable[..., Any]:
    async def in_span(*args: Any) -> Any:
        with span(operation if isinstance(operation, str) else operation(args[0])):
            return await method(*args)

    return in_span


def _in_span(span: Callable[[str], Any], operation: Operation, method: Callable[..., Any]) -> Callable[..., Any]:
    def in_span(*args: Any) -> Any:
        with span(operation if isinstance(operation, str) else operation(args[0])):
            return method(*args)

    return in_span


def _operation(loop: Any) -> str:
    operation = getattr(loop, "_operation", "operation")
    return str(getattr(operation, "value", operation))


class _CommandSpans(CommandListener):
    """The driver's spans of commands."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._open: dict[int, Span] = {}

    def started(self, event: CommandStartedEvent) -> None:
        current: Any = get_current_span()
        summary = f"{current.attributes['db.operation.name']} {event.database_name}"
        current.update_name(summary)
        current.set_attribute("db.operation.summary", summary)
        self._open[event.request_id] = self._tracer.start_span(
            event.command_name, kind=SpanKind.CLIENT, attributes={"db.command.name": event.command_name}
        )

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._open.pop(event.request_id).end()

    def failed(self, event: CommandFailedEvent) -> None:
        self._open.pop(event.request_id).end()


@contextlib.contextmanager
def in_an_operation(spans: Spans, name: str = "find shop.orders") -> Iterator[Span]:
    """A span of the driver, which is current."""
    driver: Any = spans.provider.get_tracer(SCOPE, "4.99.0")
    with driver.start_as_current_span(name, kind=SpanKind.CLIENT) as span:
        yield span


def scope_of(span: ReadableSpan) -> str | None:
    """The name of what has made a span."""
    return None if span.instrumentation_scope is None else span.instrumentation_scope.name
