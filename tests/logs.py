"""What was logged, for a test to look at."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

try:
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
except ImportError:  # up to 1.38
    from opentelemetry.sdk._logs.export import InMemoryLogExporter as InMemoryLogRecordExporter


class Logs:
    """A logger provider whose records are kept."""

    def __init__(self) -> None:
        self._exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self._exporter))

    @property
    def records(self) -> list[Any]:
        """All that were emitted, in their order."""
        return [record.log_record for record in self._exporter.get_finished_logs()]

    @property
    def names(self) -> list[str]:
        """The names of their events, without what they all begin with."""
        return [record.event_name.removeprefix("mongodb.client.") for record in self.records]

    def named(self, name: str) -> list[Any]:
        """Those with that name."""
        return [record for record, each in zip(self.records, self.names, strict=True) if each == name]
