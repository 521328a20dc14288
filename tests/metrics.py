"""What was measured, for a test to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import Metric

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


class Metrics:
    """A meter provider that is read on demand."""

    def __init__(self, **options: Any) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False, **options)

    def collected(self) -> dict[str, Metric]:
        """All that is there now, by name."""
        data = self._reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> Sequence[Any]:
        """The data points of a metric, none if it isn't there."""
        metric = self.collected().get(name)
        return [] if metric is None else metric.data.data_points

    def one(self, name: str) -> Any:
        """The only data point of a metric."""
        points = self.points(name)
        assert len(points) == 1, f"{name}: {points}"
        return points[0]

    def values(self, name: str, *keys: str) -> dict[Any, Any]:
        """The sum, or the number of measurements, by the values of those attributes (of one: by its value)."""
        values: dict[Any, Any] = {}
        for point in self.points(name):
            told = tuple(point.attributes.get(key) for key in keys)
            value = point.count if hasattr(point, "bucket_counts") else point.value
            key = told[0] if len(told) == 1 else told
            values[key] = values.get(key, 0) + value
        return values

    def servers(self, *keys: str) -> dict[Any, Any]:
        """How many servers there are of each type, by those attributes: where there are none, of a primary only."""
        counts = self.values("mongodb.client.server.count", *keys)
        return {told: count for told, count in counts.items() if count or "RSPrimary" in (told, *told)}

    def connections(self) -> tuple[int, int]:
        """How many connections are idle and used, in all pools."""
        states = self.values("db.client.connection.count", STATE)
        return states.get("idle", 0), states.get("used", 0)
