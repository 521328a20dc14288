"""What was logged, for a test to look at."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor

from opentelemetry_mongo_events._runtime.background import background_worker


class Logs:
    """A logger provider whose records are kept."""

    def __init__(self) -> None:
        self._emitted: list[Any] = []
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(_Keeps(self._emitted))

    def hold_up(self, processor: LogRecordProcessor) -> None:
        """Have a processor called before a record is kept."""
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(processor)
        self.provider.add_log_record_processor(_Keeps(self._emitted))

    @property
    def records(self) -> list[Any]:
        """All that were made, in the order in which they were emitted."""
        background_worker.flush()
        return self._emitted

    @property
    def names(self) -> list[str]:
        """Their event names, without what they all begin with."""
        return [str(record.event_name).removeprefix("mongodb.client.") for record in self.records]

    def named(self, name: str) -> list[Any]:
        """Those with that name."""
        return [record for record, each in zip(self.records, self.names, strict=True) if each == name]


# The exporter that comes with the SDK has another name in each of its versions.
class _Keeps(LogRecordProcessor):
    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def on_emit(self, log_record: Any) -> None:
        self._records.append(log_record.log_record)

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True
