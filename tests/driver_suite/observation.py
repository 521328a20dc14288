"""The instrumentation in a run of the driver's tests: on with all it has, and looked at after each module."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import pytest
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from pymongo import monitoring

from opentelemetry_mongo_events import MongoEventsInstrumentor
from tests.driver_suite.quiet import failures, left_open, settled, wrong_counts
from tests.driver_suite.truth import GIVEN_UP, HEARTBEATS, SCOPE, After, Before, Heartbeats, Pools, Truth
from tests.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.driver_suite.plugin import Notes

# A metric, and of which events it counts each.
_COUNTED: Final = {
    "db.client.operation.duration": "commands ended",
    "db.client.connection.create_time": "connections ready",
    "db.client.connection.wait_time": "checkouts",
    "db.client.connection.use_time": "checkins",
    "mongodb.client.connection.closed": "connections closed",
    "mongodb.client.connection.checkout_failures": "checkouts failed",
    "mongodb.client.pool.cleared": "pools cleared",
}


class Observation:
    """Switches the instrumentation on, and at the end compares it with what the driver told others."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._logged = _Logged()
        self._metrics = Metrics()
        self._truth = Truth()
        # Attributes of the SDK's that can't be used, and spans that are touched after their end, are warnings of it.
        for name in (SCOPE, "opentelemetry"):
            logging.getLogger(name).addHandler(self._logged)
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        tracer_provider.add_span_processor(self._truth)
        logger_provider = LoggerProvider(shutdown_on_exit=False)
        logger_provider.add_log_record_processor(_Counts(self._truth))
        monitoring.register(Before(self._truth))
        MongoEventsInstrumentor().instrument(
            tracer_provider=tracer_provider,
            meter_provider=self._metrics.provider,
            logger_provider=logger_provider,
            query_text="masked",
            events="both",
        )
        for listener in (After(self._truth), Heartbeats(self._truth), Pools(self._truth)):
            monitoring.register(listener)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._truth.test = nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
        """After the last test of a module it is quiet: what its clients left is what the driver has."""
        result = yield
        if nextitem is None or nextitem.path != item.path:
            for fault in settled(lambda: wrong_counts(self._metrics)):
                self._truth.fault(f"{fault}: after {item.path.name}")
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """All tests and their fixtures are over."""
        truth = self._truth
        for fault in [*settled(left_open), *settled(lambda: wrong_counts(self._metrics)), *failures()]:
            truth.fault(f"{fault}: at the end")
        for command in truth.without_end():
            truth.fault(f"the driver told no end: {command}")
        for message in self._logged.messages:
            truth.fault(f"logged: {message}")
        if truth.counts["checkout spans"] != truth.counts["checkouts failed"]:
            truth.fault(
                f"{truth.counts['checkouts failed']} checkouts failed, with {truth.counts['checkout spans']} spans"
            )
        for metric, events in _COUNTED.items():
            measured = sum(self._metrics.values(metric).values())
            if measured != truth.counts[events]:
                truth.fault(f"{metric} counts {measured} of {truth.counts[events]} {events}")
        # The package is told of a close up to a second after it.
        measured = sum(self._metrics.values("mongodb.client.heartbeat.duration").values())
        least = truth.counts[HEARTBEATS]
        if not least <= measured <= least + truth.counts[GIVEN_UP]:
            truth.fault(f"mongodb.client.heartbeat.duration counts {measured} of {least} {HEARTBEATS}")
        # What clients that were left behind are at ends now.
        MongoEventsInstrumentor().uninstrument()
        for span in truth.open_spans:
            truth.fault(f"a span is open: {span}")
        self._notes.write(counts=truth.counts)
        for fault, count in truth.faults.items():
            self._notes.write(fault=fault, times=count)


class _Logged(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.messages.append(f"{record.name}: {record.getMessage()}")


class _Counts(LogRecordProcessor):
    """Counts log records, and keeps none: the driver's tests collect garbage over and over."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def on_emit(self, log_record: Any) -> None:
        """Count it."""
        self._truth.count("log records")

    def shutdown(self) -> None:
        """Nothing to do."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True
