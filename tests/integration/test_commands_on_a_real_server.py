"""Command spans against a server whose errors, cursors and authentication are real."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import StatusCode
from pymongo.cursor import CursorType
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, PyMongoError

from tests.clients import connect
from tests.pools import held
from tests.servers.processes import FerretDB
from tests.spans import Spans, attributes, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.metrics import Metrics
    from tests.servers.processes import Process


@pytest.fixture
def shop(mongodb_uri: str, listeners: Any) -> Iterator[Any]:
    """A database of the test's own."""
    name = f"shop_{uuid.uuid4().hex}"
    with connect(mongodb_uri, event_listeners=listeners) as client:
        yield client[name]
    with connect(mongodb_uri) as client:
        client.drop_database(name)


def test_duplicate_keys_are_errors_that_show_no_value(shop: Any, spans: Spans) -> None:
    shop.users.create_index("email", unique=True)
    with pytest.raises(BulkWriteError):
        shop.users.insert_many([{"email": "alice@example.org"} for _ in range(3)], ordered=False)

    span = spans.one("insert users")
    # The message of a mongod names the index, that of FerretDB does not.
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description in ("DuplicateKey", "DuplicateKey index email_1")
    assert attributes(span)["error.type"] == "11000"
    assert attributes(span)["mongodb.client.operation.write_error_count"] == 2
    assert "alice" not in span.to_json()


def test_a_find_and_modify_that_breaks_an_index_fails_and_shows_no_value(shop: Any, spans: Spans) -> None:
    shop.users.create_index("email", unique=True)
    shop.users.insert_many([{"_id": 1, "email": "alice@example.org"}, {"_id": 2, "email": "bob@example.org"}])
    with pytest.raises(OperationFailure):
        shop.users.find_one_and_update({"_id": 2}, {"$set": {"email": "alice@example.org"}})

    span = spans.one("findAndModify users")
    # FerretDB tells its database's own error for what is 11000 elsewhere.
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] in ("11000", "1")
    assert "alice" not in span.to_json()


@pytest.mark.parametrize(
    ("command", "code", "code_name"),
    [
        ({"thereIsNoSuchCommand": 1}, "59", "CommandNotFound"),
        ({"aggregate": "orders", "pipeline": [{"$groop": {}}], "cursor": {}}, "40234", "Location40234"),
        ({"find": ""}, "73", "InvalidNamespace"),
    ],
)
def test_an_error_has_its_code_and_its_name(
    shop: Any, spans: Spans, command: dict[str, Any], code: str, code_name: str
) -> None:
    with pytest.raises(OperationFailure):
        shop.command(command)

    span = spans.one()
    told = attributes(span)
    assert (told["error.type"], told["db.response.status_code"]) == (code, code)
    # A real mongod may know it by another name.
    assert span.status.description == told["mongodb.client.error.code_name"]
    assert told["mongodb.client.error.code_name"] in (code_name, "UnrecognizedPipelineStage")


def test_cursors(shop: Any, spans: Spans, listeners: Any) -> None:
    shop.orders.insert_many([{"_id": number, "by": number % 3} for number in range(10)])
    spans.clear()
    assert len(list(shop.orders.find(batch_size=4))) == 10
    assert len(list(shop.orders.aggregate([{"$group": {"_id": "$by"}}], batchSize=2))) == 3

    assert [(span.name, attributes(span)["db.response.returned_rows"]) for span in spans.finished] == [
        ("find orders", 4),
        ("getMore orders", 4),
        ("getMore orders", 2),
        ("aggregate orders", 2),
        ("getMore orders", 1),
    ]
    find, first, second, aggregate, third = spans.finished
    assert [[link.context for link in span.links] for span in (first, second, third)] == [
        [find.context],
        [find.context],
        [aggregate.context],
    ]
    assert len(table_of(listeners)) == 0


def test_two_exhaust_cursors_at_once(shop: Any, spans: Spans, listeners: Any) -> None:
    for name in ("orders", "bills"):
        shop[name].insert_many([{"_id": number} for number in range(10)])
    spans.clear()
    cursors = [shop[name].find(batch_size=2, cursor_type=CursorType.EXHAUST) for name in ("orders", "bills")]
    for _ in range(10):
        for cursor in cursors:
            next(cursor)
    assert [list(cursor) for cursor in cursors] == [[], []]

    for name in ("orders", "bills"):
        opened = spans.one(f"find {name}")
        rows = [attributes(span)["db.response.returned_rows"] for span in (opened, *spans.named(f"getMore {name}"))]
        assert sum(rows) == 10
        assert all([link.context for link in span.links] == [opened.context] for span in spans.named(f"getMore {name}"))
    assert len(table_of(listeners)) == 0


def test_explain_names_the_collection_it_is_about(shop: Any, spans: Spans) -> None:
    shop.orders.insert_one({"_id": 1})
    shop.orders.find({"_id": 1}).explain()

    assert spans.finished[-1].name == "explain orders"


def test_a_unix_socket(run_server: Callable[[Process], None], listeners: Any, spans: Spans, tmp_path: Path) -> None:
    server = FerretDB(unix_socket=tmp_path / "ferretdb.sock")
    run_server(server)
    with connect(server.uri, event_listeners=listeners) as client:
        client.shop.orders.insert_one({})

    told = attributes(spans.one("insert orders"))
    assert (told["server.address"], told["network.transport"]) == (str(tmp_path / "ferretdb.sock"), "unix")
    assert "server.port" not in told


def test_authentication(run_server: Callable[[Process], None], listeners: Any, spans: Spans) -> None:
    secret = "correct-horse"
    server = FerretDB(user="alice", password=secret)
    run_server(server)
    with connect(server.uri, event_listeners=listeners) as client:
        client.shop.orders.find_one({})
    before_the_end = spans.finished[:-1]  # FerretDB doesn't know `endSessions`
    assert [span.name for span in before_the_end][::3] == ["saslStart admin", "find orders"]
    assert {span.status.status_code for span in before_the_end} == {StatusCode.UNSET}

    spans.clear()
    wrong = server.uri.replace(secret, "wrong-horse")
    assert wrong != server.uri
    with connect(wrong, event_listeners=listeners) as client, pytest.raises(OperationFailure):
        client.shop.orders.find_one({})
    failed = next(span for span in spans.finished if span.status.status_code is StatusCode.ERROR)
    assert (attributes(failed)["error.type"], failed.status.description) == ("18", "AuthenticationFailed")
    assert not any(word in span.to_json() for span in spans.finished for word in ("alice", "horse"))


@pytest.mark.skipif(pymongo.version_tuple < (4, 18), reason="before PyMongo 4.18 attempts share no id")
def test_a_restart_is_seen_as_a_failed_attempt_and_a_second_one(
    run_server: Callable[[Process], None], listeners: Any, spans: Spans
) -> None:
    server = FerretDB(replica_set="rs0")
    run_server(server)
    with connect(server.uri, event_listeners=listeners) as client:
        client.shop.orders.insert_one({"_id": 1})
        spans.clear()
        server.restart()
        assert client.shop.orders.find_one({}) == {"_id": 1}

    first, second = spans.named("find orders")
    assert attributes(first)["error.type"] == AutoReconnect.__name__
    assert attributes(second)["mongodb.client.operation.attempt"] == 2
    assert [link.context for link in second.links] == [first.context]


def test_the_pools_counts_are_the_drivers_through_a_restart(
    run_server: Callable[[Process], None], listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    server = FerretDB()
    run_server(server)
    with connect(server.uri, event_listeners=listeners, maxPoolSize=4) as client, ThreadPoolExecutor(8) as threads:

        def request(number: int) -> None:
            with contextlib.suppress(PyMongoError):
                client.shop.orders.insert_one({"number": number})

        list(threads.map(request, range(50)))
        before = metrics.connections()
        assert before == held(client)
        assert before[0] > 0
        restarting = threads.submit(server.restart)
        list(threads.map(request, range(50)))
        restarting.result()
        list(threads.map(request, range(50)))

        assert metrics.connections() == held(client)
        assert metrics.one("mongodb.client.pool.cleared").value >= 1
        commands = [span for span in spans.finished if not span.name.startswith("checkout ")]
        assert sum(metrics.values("db.client.operation.duration", "error.type").values()) == len(commands)
