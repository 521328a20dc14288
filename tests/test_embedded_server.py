"""The embedded server: the demo, and what a lenient server answers."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import StatusCode
from pymongo.errors import BulkWriteError, OperationFailure

from tests.application import run_demo
from tests.clients import connect
from tests.pools import held
from tests.servers.processes import NxServer
from tests.spans import Spans, attributes, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.metrics import Metrics

pytestmark = pytest.mark.nx


@pytest.fixture(scope="module")
def embedded() -> Iterator[NxServer]:
    with NxServer() as server:
        yield server


@pytest.fixture
def shop(embedded: NxServer, listeners: Any) -> Iterator[Any]:
    with connect(embedded.uri, event_listeners=listeners) as client:
        client.drop_database("shop")
        yield client.shop


def test_reading_and_writing(shop: Any, spans: Spans, listeners: Any) -> None:
    shop.users.create_index("email", unique=True)
    shop.users.insert_many([{"email": f"{number}@example.org"} for number in range(5)])
    assert len(list(shop.users.find(batch_size=2))) == 5
    with pytest.raises(BulkWriteError):
        shop.users.insert_many([{"email": "0@example.org"}, {"email": "1@example.org"}], ordered=False)

    told = [(span.name, attributes(span).get("db.response.returned_rows")) for span in spans.finished[1:]]
    assert told == [
        ("createIndexes users", None),
        ("insert users", None),
        ("find users", 2),
        ("getMore users", 2),
        ("getMore users", 1),
        ("insert users", None),
    ]
    error = spans.finished[-1]
    assert (error.status.status_code, attributes(error)["error.type"]) == (StatusCode.ERROR, "11000")
    assert attributes(error)["mongodb.client.operation.write_error_count"] == 2
    assert "example.org" not in error.to_json()
    assert len(table_of(listeners)) == 0


def test_an_error_without_a_code(shop: Any, spans: Spans) -> None:
    with pytest.raises(OperationFailure):
        list(shop.users.aggregate([{"$groop": {}}]))

    error = spans.finished[-1]
    assert (error.status.status_code, attributes(error)["error.type"]) == (StatusCode.ERROR, "OperationFailure")
    assert "db.response.status_code" not in attributes(error)


def test_the_demo_shows_its_traces() -> None:
    demo = run_demo()

    assert (demo.returncode, "sold on" in demo.stderr) == (0, True)
    lines = demo.stdout.splitlines()
    assert any(line.startswith("GET /products  ") for line in lines)
    assert any(line.startswith("├── find products  ") and line.endswith("101 rows") for line in lines)
    assert any(
        line.startswith("└── getMore products  ") and line.endswith("101 rows  -> find products") for line in lines
    )
    assert any(line.startswith("└── insert users  ") and "  ERROR DuplicateKey" in line for line in lines)
    payment, outage = (number for number, line in enumerate(lines) if line.startswith("mongodb.client.outage  "))
    assert lines[payment].endswith("  -> update orders  -> select server")
    assert lines[payment - 1].startswith("An outage")
    assert lines[outage].endswith("  -> insert orders  -> select server")
    told = "\n".join(lines[outage + 1 : lines.index("", outage)])
    assert told.startswith("├──      0 ms  ")
    assert "heartbeat.failed" in told
    assert "Standalone -> Unknown" in told
    assert told.endswith("Unknown -> Standalone")
    assert "alice" not in demo.stdout

    # Three that come at once, for one connection: the last one waits for two others.
    waits = [number for number, line in enumerate(lines) if line.startswith("└── insert deliveries  ")]
    assert len(waits) == 3
    assert any("waited" in lines[number] for number in waits)
    assert sum(line.startswith("A slow request") for line in lines) == 1
    assert "\x1b" not in demo.stdout  # no colours where it is no terminal

    assert any(line.endswith(" of them MongoDB commands.") for line in lines)
    measured = "\n".join(lines[lines.index("Metrics:") :])
    assert re.search(r"^db\.client\.connection\.wait_time +\d+ ", measured, re.MULTILINE)
    assert re.search(r"^mongodb\.client\.pool\.cleared +2 *$", measured, re.MULTILINE)
    assert re.search(r"^ +AutoReconnect +\d+ ", measured, re.MULTILINE)
    assert re.search(r"^mongodb\.client\.outage\.duration +2 ", measured, re.MULTILINE)
    assert "…" not in measured
    assert re.search(r"^mongodb\.client\.server_selection\.wait_time +[23] ", measured, re.MULTILINE)
    check_the_request_that_waited(lines)
    check_the_transaction_that_was_repeated(lines)


def check_the_transaction_that_was_repeated(lines: list[str]) -> None:
    """Both attempts are spans, to which their commands are linked; the second one is linked with the first."""
    (remark,) = (number for number, line in enumerate(lines) if line.startswith("A retried transaction"))
    request = lines[remark + 1 : lines.index("", remark)]
    assert request[0].startswith("POST /payments  ")
    attempts = [line for line in request if line.startswith("├── transaction  ")]
    assert re.fullmatch(r"├── transaction  \d+\.\d ms  aborted  ERROR", attempts[0])
    assert re.fullmatch(r"├── transaction  \d+\.\d ms  attempt 2  committed  -> transaction", attempts[1])
    (commit,) = (line for line in request if line.startswith("└── commitTransaction admin  "))
    assert commit.endswith("  -> transaction")


def check_the_request_that_waited(lines: list[str]) -> None:
    """The wait is a span of its own, which is linked with the outage; its command has the wait, too."""
    (remark,) = (number for number, line in enumerate(lines) if line.startswith("A request during the outage"))
    request, selection, command = lines[remark + 1 : remark + 4]
    assert request.startswith("POST /orders  ")
    assert selection.startswith("├── select server  ")
    assert selection.endswith(" ms  writable  -> mongodb.client.outage")
    assert re.fullmatch(r"└── insert orders  \d+\.\d ms  waited \d+ ms for a server", command)


def test_what_is_measured_is_what_was_done(shop: Any, spans: Spans, metrics: Metrics) -> None:
    shop.users.insert_many([{"number": number} for number in range(100)])

    def request(number: int) -> None:
        assert shop.users.find_one({"number": number})["number"] == number
        assert len(list(shop.users.find(batch_size=40))) == 100

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(request, range(40)))

    counted = metrics.values("db.client.operation.duration", "db.operation.name")
    assert counted == {"dropDatabase": 1, "insert": 1, "find": 80, "getMore": 80}
    rows = [point for point in metrics.points("db.client.response.returned_rows") if point.sum]
    assert sum(point.sum for point in rows) == 40 + 40 * 100
    assert metrics.connections() == held(shop.client)
    assert metrics.one("db.client.connection.use_time").count == len(spans.finished)
