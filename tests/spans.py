"""What was exported, for a test to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from opentelemetry_mongo_events._commands.connections import ConnectionEvents
from opentelemetry_mongo_events._commands.listener import CommandEvents
from tests.waiting import until

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.sampling import Sampler

    from opentelemetry_mongo_events._commands.open_commands import OpenCommands
    from opentelemetry_mongo_events._commands.transactions import Transactions


class Spans:
    """A tracer provider whose finished spans are kept."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the application")

    @property
    def finished(self) -> list[ReadableSpan]:
        """All that were exported, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [span.name for span in self.finished]

    def named(self, name: str) -> list[ReadableSpan]:
        """Those with that name."""
        return [span for span in self.finished if span.name == name]

    def one(self, name: str | None = None) -> ReadableSpan:
        """The only one (with that name)."""
        found = self.finished if name is None else self.named(name)
        assert len(found) == 1, f"{name}: {self.names}"
        return found[0]

    def wait_for(self, name: str) -> ReadableSpan:
        """The only one with that name, once it is there."""
        until(lambda: self.named(name))
        return self.one(name)

    def clear(self) -> None:
        """Forget what was exported."""
        self._exporter.clear()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})


def commands_of(listeners: Any) -> CommandEvents:
    """The command listener among those."""
    return next(listener for listener in listeners if isinstance(listener, CommandEvents))


def connections_of(listeners: Any) -> ConnectionEvents:
    """The pool listener among those."""
    return next(listener for listener in listeners if isinstance(listener, ConnectionEvents))


def table_of(listeners: Any) -> OpenCommands:
    """The table of open commands that those listeners share."""
    return commands_of(listeners)._open


def transactions_of(listeners: Any) -> Transactions:
    """The transactions in progress of those listeners."""
    return commands_of(listeners)._transactions


def events(span: ReadableSpan) -> list[str]:
    """The names of a span's events, in their order, without what they all begin with."""
    return [event.name.removeprefix("mongodb.client.") for event in span.events]


def event(span: ReadableSpan, name: str) -> dict[str, Any]:
    """The attributes of a span's first event with that name."""
    return next(dict(each.attributes or {}) for each in span.events if each.name == f"mongodb.client.{name}")


def linked(span: ReadableSpan) -> list[int]:
    """The ids of the spans that it links to."""
    return [link.context.span_id for link in span.links]


def span_id(span: ReadableSpan) -> int:
    """Its id."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_id(span: ReadableSpan) -> int:
    """That of its trace."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def start(span: ReadableSpan) -> int:
    """When it started, in nanoseconds since the epoch."""
    assert span.start_time is not None
    return span.start_time


def end(span: ReadableSpan) -> int:
    """When it ended."""
    assert span.end_time is not None
    return span.end_time


def seconds(span: ReadableSpan) -> float:
    """How long it took."""
    return (end(span) - start(span)) / 1e9
