"""Metrics as Prometheus scrapes them: a meter provider of this process, exposed on a loopback port."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Exposed:
    """A meter provider whose metrics are at ``http://{target}/metrics``, for a ``with`` block.

    Its registry is its own: the reader's default is one for the whole process, where another test's metrics are too.
    """

    def __init__(self, **options: Any) -> None:
        registry = CollectorRegistry()
        self.provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False, **options)
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=registry)

    @property
    def target(self) -> str:
        """The ``host:port`` to scrape."""
        return f"127.0.0.1:{self._server.server_port}"

    def text(self) -> str:
        """What Prometheus would scrape now."""
        with urllib.request.urlopen(f"http://{self.target}/metrics", timeout=10) as response:
            return str(response.read(), "utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.provider.shutdown()
