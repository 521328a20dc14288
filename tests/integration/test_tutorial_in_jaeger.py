"""The tutorial as a reader goes through it, with FerretDB in MongoDB's place."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.application import instrumented
from tests.integration.test_traces_in_jaeger import references, tags
from tests.pages import output_of, scripts
from tests.servers.processes import FerretDB, environment
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.processes import Jaeger, Process

PAGE = "docs/tutorial.md"
OUTAGE = "mongodb.client.outage"
SELECT = "select server"


class Reader:
    """Who goes through it: their programs, and what Jaeger shows them."""

    def __init__(self, server: FerretDB, jaeger: Jaeger, folder: Path) -> None:
        self.service = f"tutorial-{uuid.uuid4().hex}"
        self._jaeger = jaeger
        self._environment = environment() | {
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",  # the exporter that is installed
            "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_http_endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo",
            "OTEL_PYTHON_MONGO_EVENTS_SELECTIONS": "true",
        }
        self._folder = folder
        for name, text in scripts(PAGE).items():
            (folder / name).write_text(text.replace("mongodb://localhost:27017", server.uri))

    def start(self, script: str) -> subprocess.Popen[str]:
        """Run a program."""
        return subprocess.Popen(
            instrumented(self._folder / script, "--traces_exporter", "otlp"),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str) -> str:
        """Run a program to its end; what it says."""
        with self.start(script) as process:
            said, _ = process.communicate(timeout=40)
        assert process.returncode == 0, said
        return said

    def traces(self, root: str) -> list[dict[str, dict[str, Any]]]:
        """The traces of that name, the last one last: their spans, by name."""

        def are_there(found: list[dict[str, Any]]) -> bool:
            return any(span["operationName"] == root for trace in found for span in trace["spans"])

        traces = [
            {span["operationName"]: span for span in trace["spans"]}
            for trace in self._jaeger.wait_for_traces(self.service, are_there)
        ]
        return sorted((each for each in traces if root in each), key=lambda each: int(each[root]["startTime"]))


def has_the_form_of(said: str, shown: str) -> bool:
    """Whether a program says what the page shows, whatever the numbers are."""
    form = re.escape(re.sub(r"\d+\.\d", "0", shown)).replace("0", r"\d+\.\d")
    return re.fullmatch(form, said) is not None


@pytest.fixture
def server(run_server: Callable[[Process], None]) -> FerretDB:
    server = FerretDB()
    run_server(server)
    return server


def test_the_shop_and_the_request_that_waited(server: FerretDB, jaeger: Jaeger, tmp_path: Path) -> None:
    reader = Reader(server, jaeger, tmp_path)
    assert reader.run("shop.py") == output_of(PAGE, "shop.py")
    (found,) = reader.traces("GET /users")
    assert found.keys() == {"GET /users", "find users"}

    said = reader.run("slow.py").splitlines(keepends=True)
    one_line = output_of(PAGE, "slow.py").splitlines(keepends=True)[0]
    assert all(has_the_form_of(line, one_line) for line in said)
    carts = reader.traces("GET /cart")
    assert len(carts) == len(said)
    longest = max(carts, key=lambda cart: int(cart["GET /cart"]["duration"]))
    waited = tags(longest["find carts"])["mongodb.client.connection.wait_time"]
    assert waited > 0.5 * longest["GET /cart"]["duration"] / 1e6


def test_the_outage_is_seen_with_what_it_hit(server: FerretDB, jaeger: Jaeger, tmp_path: Path) -> None:
    said: list[str] = []

    def an_import_was_hit() -> bool:
        said[:] = run_through_an_outage(Reader(server, jaeger, tmp_path), server)
        return said[1].startswith("AutoReconnect")  # else none was on its way

    until(an_import_was_hit, seconds=40)

    assert has_the_form_of("".join(said[:3]), output_of(PAGE, "outage.py"))


def run_through_an_outage(reader: Reader, server: FerretDB) -> list[str]:
    """What the program says that imports orders, as its server goes away and comes back, and Jaeger shows that."""
    said: list[str] = []

    def waiting() -> list[dict[str, dict[str, Any]]]:
        return [each for each in reader.traces("POST /import") if {SELECT, "insert orders"} <= each.keys()]

    with ExitStack() as stack:
        process = stack.enter_context(reader.start("outage.py"))
        stack.callback(process.kill)

        def listen() -> None:
            assert process.stdout is not None
            said.extend(process.stdout)

        listening = threading.Thread(target=listen)
        listening.start()
        until(lambda: said)
        server.stop()
        time.sleep(1.5)  # the program tells what takes longer than a second
        server.start()
        until(lambda: any(line.startswith("imported") for line in said))
        (outage,) = reader.traces(OUTAGE)[-1].values()
        until(waiting)  # which may be exported later
    listening.join()

    failed = [
        each["insert orders"]["spanID"]
        for each in reader.traces("POST /import")
        if "insert orders" in each and tags(each["insert orders"]).get("error.type") == "AutoReconnect"
    ]
    (request,) = waiting()
    selection = request[SELECT]
    assert tags(outage)["error"] is True
    assert tags(outage)["error.type"] == "AutoReconnect"
    assert references(outage, "FOLLOWS_FROM") == [*failed, selection["spanID"]]
    assert references(selection, "FOLLOWS_FROM") == [outage["spanID"]]
    assert references(selection, "CHILD_OF") == [request["POST /import"]["spanID"]]
    assert tags(selection)["mongodb.client.server_selection.selector"] == "writable"
    waited = tags(request["insert orders"])["mongodb.client.server_selection.wait_time"]
    assert waited == pytest.approx(selection["duration"] / 1e6, abs=0.001)
    events = [field["value"] for log in outage["logs"] for field in log["fields"] if field["key"] == "event"]
    assert events.count("mongodb.client.server.changed") == 2
    assert {"mongodb.client.pool.cleared", "mongodb.client.heartbeat.failed"} <= set(events)
    return said
