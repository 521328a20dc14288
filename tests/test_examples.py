"""The shops of examples/, as their readers run them: by hand and under `opentelemetry-instrument`."""

from __future__ import annotations

import http.client
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.processes import NxServer, Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = pytest.mark.nx

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

SHOPS = {
    "fastapi": ["uvicorn", "--app-dir", str(EXAMPLES), "fastapi_shop:app", "--port", "{port}"],
    "flask": ["gunicorn", "--chdir", str(EXAMPLES), "flask_shop:create_app()", "--bind", "127.0.0.1:{port}"],
}

DUPLICATE = ["POST /users", "  insert users, error 11000"]
TREES = {
    "GET /products": [
        ["GET /products", "  find products, 50 rows"]
        + [f"  getMore products, {rows} rows -> find products" for rows in (50, 50, 30)]
    ],
    "POST /users": [["POST /users", "  insert users"], DUPLICATE],
    "POST /orders": [
        ["POST /orders", "  findAndModify products", "  insert orders"],
        ["POST /orders", "  findAndModify products"],
    ],
    "GET /report": [["GET /report", "  aggregate orders, 1 rows"]],
    "GET /rush": [["GET /rush"] + ["  find products, 1 rows"] * 10],
    # Before the first request.
    "createIndexes users": [["createIndexes users"]],
    "find products": [["find products, 0 rows"]],
    "insert products": [["insert products"]],
}
# Those of the question whether it is ready, as the one framework names them and the other; and what a client's life is.
OTHERS = {"GET", "GET /ready", "mongodb.client.discovery", "endSessions admin"}


class Shop(Process):
    """One of the shops, on a MongoDB, with its telemetry going to an endpoint."""

    name = "the shop"
    seconds_to_start = 40.0

    def __init__(self, command: list[str], uri: str, endpoint: str) -> None:
        super().__init__()
        self._command = command
        self._environment = [
            f"MONGODB_URI={uri}",
            f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}",
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
            "OTEL_LOGS_EXPORTER=none",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo",
        ]

    def command(self, folder: Path) -> list[str]:
        """The command line, with the environment in front of it."""
        # Where gunicorn puts its control socket is below HOME.
        return [
            "env",
            f"HOME={folder}",
            *self._environment,
            *(part.format(port=self.ports[0]) for part in self._command),
        ]

    def is_ready(self) -> bool:
        """Whether it knows its routes: no request of a test's, and no command."""
        return self.ask("GET", "/ready")[0] == 404

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the document that it answers."""
        # No urllib: it would go through a proxy named in the environment.
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=30)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            told = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(told) if is_json else told


@pytest.fixture(scope="module")
def mongodb() -> Iterator[NxServer]:
    with NxServer() as server:
        yield server


@pytest.mark.parametrize("prefix", [[], ["opentelemetry-instrument"]], ids=["by-hand", "instrumented"])
@pytest.mark.parametrize("shop", SHOPS)
def test_each_request_has_the_tree_that_it_promises(mongodb: NxServer, shop: str, prefix: list[str]) -> None:
    pytest.importorskip(shop)
    from tests.otlp import Receiver, attribute, trees

    scripts = Path(sys.executable).parent
    program, *arguments = SHOPS[shop]
    command = [*(str(scripts / each) for each in [*prefix, program]), *arguments]
    database = f"{mongodb.uri}/{shop}{len(prefix)}"
    with Receiver() as receiver, Shop(command, database, receiver.endpoint) as running:
        answers = [
            running.ask("GET", "/products"),
            running.ask("POST", "/users", {"email": "alice@example.org"}),
            running.ask("POST", "/users", {"email": "alice@example.org"}),
            running.ask("POST", "/orders", {"email": "alice@example.org", "product": 3}),
            running.ask("POST", "/orders", {"email": "alice@example.org", "product": 1000}),
            running.ask("GET", "/report"),
            running.ask("GET", "/rush"),
        ]
        running.stop()
    spans = [span for span in receiver.spans if not span.name.endswith((" http receive", " http send"))]

    assert [status for status, _ in answers] == [200, 201, 409, 201, 404, 200, 200]
    assert (len(answers[0][1]), answers[3][1], answers[5][1]) == (180, {"left": 99}, [{"product": 3, "sold": 1}])
    found = trees(spans)
    assert {name: found.get(name) for name in TREES} == TREES
    assert found.keys() - TREES.keys() <= OTHERS
    check_rush(spans)
    assert "alice" not in str([attribute(span, "db.query.text") for span in spans])


def check_rush(spans: list[Span]) -> None:
    """They had one connection, one after the other, and those that waited for it tell how long."""
    from tests.otlp import attribute

    (rush,) = (span for span in spans if span.name == "GET /rush")
    finds = [span for span in spans if span.parent_span_id == rush.span_id]
    finds.sort(key=lambda span: span.start_time_unix_nano)
    assert len({attribute(span, "db.mongodb.driver_connection_id") for span in finds}) == 1
    assert all(one.end_time_unix_nano <= other.start_time_unix_nano for one, other in itertools.pairwise(finds))
    assert any(attribute(span, "mongodb.client.connection.wait_time") is not None for span in finds)
