"""A receiver of OTLP over HTTP, for the spans of a program that runs in a process of its own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import Span
    from typing_extensions import Self


class Receiver:
    """Keeps the spans that are sent to it, and takes all else, from `with` on.

    Attributes:
        spans: All of them.
        instances: The process that each came from, by its id: what its resource has as `service.instance.id`.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.instances: dict[bytes, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def endpoint(self) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        keep = self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """It is asked for nothing that a test would want to read."""

        return Handler

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        for sent in request.resource_spans:
            instance = attribute(sent.resource, "service.instance.id")
            for scope in sent.scope_spans:
                self.instances |= dict.fromkeys((span.span_id for span in scope.spans), instance)
                self.spans += scope.spans


def attribute(of: Span | Resource, key: str) -> Any:
    """The value of an attribute, None if there is none of that name."""
    for each in of.attributes:
        if each.key == key:
            return getattr(each.value, str(each.value.WhichOneof("value")))
    return None


def trees(spans: list[Span]) -> dict[str, list[list[str]]]:
    """The traces as lines of text, indented, by the names of their roots; all in the order of their starts."""
    children: dict[bytes, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        children.setdefault(span.parent_span_id, []).append(span)
    names = {span.span_id: span.name for span in spans}

    def lines(span: Span, depth: int) -> Iterator[str]:
        line = "  " * depth + span.name
        rows = attribute(span, "db.response.returned_rows")
        if rows is not None:
            line += f", {rows} rows"
        if span.status.code == Status.STATUS_CODE_ERROR:
            line += f", error {attribute(span, 'error.type')}"
        yield line + "".join(f" -> {names[link.span_id]}" for link in span.links)
        for child in children.get(span.span_id, []):
            yield from lines(child, depth + 1)

    found: dict[str, list[list[str]]] = {}
    for root in children.get(b"", []):
        found.setdefault(root.name, []).append(list(lines(root, 0)))
    return found
