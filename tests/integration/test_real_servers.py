"""What the other integration tests build on: each real server starts, and answers as they need it."""

from __future__ import annotations

import json
import socket
import tempfile
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanContext, format_span_id, format_trace_id
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from tests.clients import connect
from tests.servers.processes import FerretDB, Jaeger, NotReady, Process, Prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pymongo.collection import Collection

# It must be escaped in a connection string.
OPEN_SESAME = "p@ss/word:"


class Replies(CommandListener):
    """Keeps the replies of the commands that succeeded."""

    def __init__(self) -> None:
        self.by_command: list[tuple[str, dict[str, Any]]] = []

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self.by_command.append((event.command_name, dict(event.reply)))

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
def replies() -> Replies:
    return Replies()


@pytest.fixture
def notes(mongodb_uri: str, replies: Replies) -> Iterator[Collection[dict[str, Any]]]:
    """A collection of the test's own, in the server that tests run against."""
    with connect(mongodb_uri, event_listeners=[replies]) as client:
        database = f"test_{uuid.uuid4().hex}"
        yield client[database].notes
        client.drop_database(database)


def test_documents_are_created_read_updated_and_deleted(notes: Collection[dict[str, Any]]) -> None:
    notes.insert_many([{"_id": number, "text": "first"} for number in range(3)])
    notes.update_one({"_id": 1}, {"$set": {"text": "second"}})
    notes.delete_one({"_id": 2})

    assert list(notes.find().sort("_id")) == [{"_id": 0, "text": "first"}, {"_id": 1, "text": "second"}]


def test_a_cursor_is_read_on_with_get_more(notes: Collection[dict[str, Any]], replies: Replies) -> None:
    notes.insert_many([{"_id": number} for number in range(5)])

    assert len(list(notes.find(batch_size=2))) == 5
    assert [name for name, _ in replies.by_command] == ["insert", "find", "getMore", "getMore"]


def test_a_duplicate_key_is_a_succeeded_reply_with_a_write_error(
    notes: Collection[dict[str, Any]], replies: Replies
) -> None:
    notes.insert_one({"_id": 1})

    with pytest.raises(DuplicateKeyError):
        notes.insert_one({"_id": 1})

    _, reply = replies.by_command[-1]
    assert (reply["ok"], [error["code"] for error in reply["writeErrors"]]) == (1.0, [11000])


def test_an_unknown_command_fails_with_its_code(notes: Collection[dict[str, Any]]) -> None:
    with pytest.raises(OperationFailure) as failure:
        notes.database.command("thereIsNoSuchCommand")

    assert failure.value.code == 59


def test_a_replica_set_has_a_primary(run_server: Callable[[Process], None]) -> None:
    server = FerretDB(replica_set="rs0")
    run_server(server)

    with connect(server.uri) as client:
        client.admin.command("ping")
        assert client.topology_description.topology_type_name == "ReplicaSetWithPrimary"
        assert client.primary == ("127.0.0.1", server.ports[0])


def test_a_unix_socket_takes_the_place_of_the_port(run_server: Callable[[Process], None], tmp_path: Path) -> None:
    server = FerretDB(unix_socket=tmp_path / "mongo.sock")
    run_server(server)

    with connect(server.uri) as client:
        client.test.notes.insert_one({"_id": 1})
        assert client.address is not None
        assert client.address[0] == str(tmp_path / "mongo.sock")
        server.restart()
        assert client.test.notes.find_one() == {"_id": 1}


def test_the_right_password_is_let_in(run_server: Callable[[Process], None]) -> None:
    server = FerretDB(user="ann", password=OPEN_SESAME)
    run_server(server)

    with connect(server.uri) as client:
        client.test.notes.insert_one({"_id": 1})
        assert client.test.notes.find_one() == {"_id": 1}


def test_a_wrong_password_fails_with_code_18(run_server: Callable[[Process], None]) -> None:
    server = FerretDB(user="ann", password=OPEN_SESAME)
    run_server(server)

    with connect(server.uri, password=OPEN_SESAME + "!") as client, pytest.raises(OperationFailure) as failure:
        client.test.notes.find_one()

    assert failure.value.code == 18


def test_data_and_address_survive_a_restart(run_server: Callable[[Process], None]) -> None:
    server = FerretDB()
    run_server(server)
    first_pid, uri = server.pid, server.uri

    with connect(uri) as client:
        client.test.notes.insert_one({"_id": 1})
        server.restart()
        assert client.test.notes.find_one() == {"_id": 1}

    assert server.uri == uri
    assert server.pid != first_pid


def test_data_in_a_folder_given_to_it_outlive_the_server(run_server: Callable[[Process], None], tmp_path: Path) -> None:
    first, second = FerretDB(data_dir=tmp_path), FerretDB(data_dir=tmp_path)

    run_server(first)
    with connect(first.uri) as client:
        client.test.notes.insert_one({"_id": 1})
    first.close()

    run_server(second)
    with connect(second.uri) as client:
        assert client.test.notes.find_one() == {"_id": 1}


def test_data_end_with_the_server_that_has_no_folder_for_them(
    run_server: Callable[[Process], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = FerretDB()
    run_server(server)
    assert len(list(tmp_path.iterdir())) == 2

    server.stop()
    assert len(list(tmp_path.iterdir())) == 1

    server.close()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_leaves_nothing(
    run_server: Callable[[Process], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    with pytest.raises(NotReady, match="unix"):
        run_server(FerretDB(unix_socket=tmp_path / "no" / "such" / "folder.sock"))

    assert list((tmp_path / "temporary").iterdir()) == []


def test_jaeger_gives_back_the_trace_it_was_sent(jaeger: Jaeger) -> None:
    service = f"test-{uuid.uuid4().hex}"
    linked = SpanContext(trace_id=1, span_id=2, is_remote=False)
    provider = TracerProvider(resource=Resource({SERVICE_NAME: service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{jaeger.otlp_http_endpoint}/v1/traces")))
    tracer = provider.get_tracer("test")
    with (
        tracer.start_as_current_span("parent") as parent,
        tracer.start_as_current_span("child", links=[Link(linked, {"why": "test"})]) as child,
    ):
        pass
    provider.shutdown()

    trace_id = format_trace_id(parent.get_span_context().trace_id)
    [trace] = jaeger.wait_for_traces(service, lambda traces: [len(trace["spans"]) for trace in traces] == [2])

    assert service in jaeger.services()
    assert trace["traceID"] == trace_id
    assert jaeger.trace(trace_id)["traceID"] == trace_id
    spans = {
        span["name"]: span
        for resource in jaeger.otlp_trace(trace_id)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    }
    assert spans["child"]["spanId"] == format_span_id(child.get_span_context().span_id)
    assert spans["child"]["parentSpanId"] == spans["parent"]["spanId"]
    assert spans["child"]["links"][0]["attributes"] == [{"key": "why", "value": {"stringValue": "test"}}]


def test_jaeger_tells_a_trace_that_it_does_not_have(jaeger: Jaeger) -> None:
    with pytest.raises(LookupError):
        jaeger.trace("0" * 31 + "1")
    with pytest.raises(LookupError):
        jaeger.otlp_trace("0" * 31 + "1")


def test_traces_that_do_not_come_are_told_at_the_deadline(jaeger: Jaeger) -> None:
    with pytest.raises(TimeoutError, match=r"these traces of nobody: \[\]"):
        jaeger.wait_for_traces("nobody", timeout=0)


def test_two_jaegers_run_side_by_side(jaeger: Jaeger, run_server: Callable[[Process], None]) -> None:
    other = Jaeger()
    run_server(other)

    assert set(other.ports).isdisjoint(jaeger.ports)
    assert other.services() == []


def test_prometheus_answers_an_expression(prometheus: Prometheus) -> None:
    (answer,) = prometheus.query('label_replace(vector(1 + 2), "color", "red", "", "")')

    assert (answer["metric"], answer["value"][1]) == ({"color": "red"}, "3")


def test_prometheus_answers_what_an_expression_was(prometheus: Prometheus) -> None:
    (answer,) = prometheus.query_range("vector(time())", 1000, 1001, 0.5)

    assert answer == {"metric": {}, "values": [[1000, "1000"], [1000.5, "1000.5"], [1001, "1001"]]}


@pytest.mark.parametrize("expression", ["sum(", "1 + 2"])
def test_an_expression_that_gives_no_series_is_told(prometheus: Prometheus, expression: str) -> None:
    with pytest.raises(ValueError, match=r"parse error|no vector but a scalar"):
        prometheus.query(expression)


def test_what_does_not_come_in_time_is_told(prometheus: Prometheus) -> None:
    with pytest.raises(TimeoutError, match=r"up is after 0.1 seconds \[\]"):
        prometheus.wait_for("up", timeout=0.1)


def test_prometheus_evaluates_the_rules_of_a_file(run_server: Callable[[Process], None], tmp_path: Path) -> None:
    rule = {"record": "three", "expr": "vector(1 + 2)"}
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "numbers", "rules": [rule]}]}))
    server = Prometheus(rule_files=[file])
    run_server(server)

    (answer,) = server.wait_for("three")
    assert answer["value"][1] == "3"
    assert [(each["type"], each["name"], each["query"]) for each in server.rules()] == [
        ("recording", "three", "vector(1 + 2)")
    ]


def test_a_broken_rule_file_ends_prometheus_at_its_start(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("groups: 1")

    with pytest.raises(NotReady, match="ended at its start"):
        Prometheus(rule_files=[file]).start()


def test_a_stopped_prometheus_leaves_nothing(
    run_server: Callable[[Process], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = Prometheus()
    run_server(server)
    assert len(list(tmp_path.iterdir())) == 1

    server.close()

    assert list(tmp_path.iterdir()) == []
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", server.ports[0])) != 0
