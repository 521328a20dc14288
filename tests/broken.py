"""Providers that give tracers, spans and instruments of which some methods raise, as any vendor's may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Span, Tracer, TracerProvider

if TYPE_CHECKING:
    from collections.abc import Callable


class TelemetryError(Exception):
    """What they raise."""


class BrokenTracerProvider(TracerProvider):
    """The spans of a real provider, on which those methods raise; `start_span` is the tracer's own."""

    def __init__(self, real: TracerProvider, *broken: str, error: type[BaseException] = TelemetryError) -> None:
        self.real = real
        self.broken = broken
        self.error = error

    def get_tracer(self, *args: Any, **more: Any) -> Tracer:
        return _BrokenTracer(self, self.real.get_tracer(*args, **more))


class _BrokenTracer(Tracer):
    def __init__(self, provider: BrokenTracerProvider, real: Tracer) -> None:
        self._provider = provider
        self._real = real

    def start_span(self, *args: Any, **more: Any) -> Span:
        if "start_span" in self._provider.broken:
            raise self._provider.error
        return _BrokenSpan(self._provider, self._real.start_span(*args, **more))

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def _method(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **more: Any) -> Any:
        if name in self.provider.broken:
            raise self.provider.error
        return getattr(self.real, name)(*args, **more)

    return call


class _BrokenSpan(Span):
    def __init__(self, provider: BrokenTracerProvider, real: Span) -> None:
        self.provider = provider
        self.real = real

    def end(self, *args: Any, **more: Any) -> None:
        self.real.end(*args, **more)
        if "end" in self.provider.broken:
            raise self.provider.error

    get_span_context = _method("get_span_context")
    set_attributes = _method("set_attributes")
    set_attribute = _method("set_attribute")
    add_event = _method("add_event")
    add_link = _method("add_link")
    update_name = _method("update_name")
    is_recording = _method("is_recording")
    set_status = _method("set_status")
    record_exception = _method("record_exception")


class LinklessTracerProvider(TracerProvider):
    """The spans of a real provider, to which no link can be added after their start, as to those of some vendors.

    Args:
        real: The real provider.
        has_method: Whether they have the API's own method, which does nothing but warn; otherwise they have none, and
            aren't of the API's class either.
    """

    def __init__(self, real: TracerProvider, *, has_method: bool) -> None:
        self._real = real
        self._has_method = has_method

    def get_tracer(self, *args: Any, **more: Any) -> Tracer:
        whole = BrokenTracerProvider(self._real) if self._has_method else None
        return _LinklessTracer(self._real.get_tracer(*args, **more), whole)


class _LinklessTracer(Tracer):
    def __init__(self, real: Tracer, whole: BrokenTracerProvider | None) -> None:
        self._real = real
        self._whole = whole

    def start_span(self, *args: Any, **more: Any) -> Any:
        span = self._real.start_span(*args, **more)
        return _BareSpan(span) if self._whole is None else _InheritingSpan(self._whole, span)

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class _InheritingSpan(_BrokenSpan):
    add_link = Span.add_link


class _BareSpan:
    def __init__(self, real: Span) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "add_link":
            raise AttributeError(name)
        return getattr(self._real, name)


class BrokenMeterProvider(MeterProvider):
    """The instruments of a real provider, of which those histograms raise."""

    def __init__(self, real: MeterProvider, *broken: str) -> None:
        self.real = real
        self.broken = broken

    def get_meter(self, *args: Any, **more: Any) -> Any:
        return _BrokenMeter(self, self.real.get_meter(*args, **more))


class _BrokenMeter:
    def __init__(self, provider: BrokenMeterProvider, real: Any) -> None:
        self._provider = provider
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_histogram(self, name: str, *args: Any, **more: Any) -> Any:
        made = self._real.create_histogram(name, *args, **more)
        return _BrokenHistogram() if name in self._provider.broken else made


class _BrokenHistogram:
    def record(self, *_: Any) -> None:
        raise TelemetryError


class Picky(Sampler):
    """A sampler that raises for an episode, where it is told to."""

    raises = False

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any) -> SamplingResult:
        if self.raises and name in ("mongodb.client.discovery", "mongodb.client.outage"):
            raise KeyError(name)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *rest, **more)

    def get_description(self) -> str:
        return "picky"
