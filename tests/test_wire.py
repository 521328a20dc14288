"""Command spans of a real PyMongo over a socket, answered by a script."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson import Code, Int64
from bson.raw_bson import RawBSONDocument
from opentelemetry.trace import StatusCode
from pymongo import DeleteOne, InsertOne, MongoClient, UpdateOne
from pymongo.cursor import CursorType
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, WriteConcernError

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._driver.versions import ATTEMPTS_SHARE_OPERATION_ID
from tests.clients import connect
from tests.conftest import registered_listeners
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer
from tests.spans import Spans, attributes, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics

# Before 4.18 the driver publishes the error as it was, before it wraps it.
HANG_UP = "AutoReconnect" if pymongo.version_tuple >= (4, 18) else "OSError"

needs_shared_ids = pytest.mark.skipif(not ATTEMPTS_SHARE_OPERATION_ID, reason="PyMongo 4.18")
tells_server_connection = pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7")


@pytest.fixture
def retrying(primary: ScriptedServer, listeners: Any) -> Iterator[MongoClient[Any]]:
    with connect(primary.uri, event_listeners=listeners) as client:
        yield client


@tells_server_connection
def test_a_find_is_told_as_the_contract_says(client: MongoClient[Any], server: ScriptedServer, spans: Spans) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(3)])
    assert len(list(client.shop.orders.find())) == 3

    span = spans.one("find orders")
    server_connection = server.received("find")[0].connection_id
    told = attributes(span)
    assert told.pop("mongodb.client.connection.wait_time", 0.001) >= 0.001  # for the connection's handshake
    assert told == {
        "db.system.name": "mongodb",
        "db.namespace": "shop",
        "db.collection.name": "orders",
        "db.operation.name": "find",
        "db.query.summary": "find orders",
        "db.query.text": '{"find":"orders","filter":{}}',
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "network.transport": "tcp",
        "db.mongodb.server_connection_id": server_connection,
        "db.mongodb.driver_connection_id": 1,
        "db.response.returned_rows": 3,
    }
    assert attributes(spans.one("insert orders"))["db.operation.batch.size"] == 3


def test_a_getmore_links_to_its_find(client: MongoClient[Any], spans: Spans) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(5)])
    assert len(list(client.shop.orders.find(batch_size=2))) == 5

    find = spans.one("find orders")
    first, second = spans.named("getMore orders")
    assert [[link.context for link in span.links] for span in (first, second)] == [[find.context]] * 2
    cursors = {attributes(span)["db.mongodb.cursor_id"] for span in (find, first, second)}
    assert len(cursors) == 1
    assert [attributes(span)["db.response.returned_rows"] for span in (find, first, second)] == [2, 2, 1]


def test_the_documents_of_a_raw_batch_are_not_counted(client: MongoClient[Any], spans: Spans) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(3)])
    list(client.shop.orders.find_raw_batches())

    assert "db.response.returned_rows" not in attributes(spans.one("find orders"))


def test_raw_documents_are_counted(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    with connect(server.uri, event_listeners=listeners, document_class=RawBSONDocument) as client:
        client.shop.orders.insert_many([RawBSONDocument(b"\x05\0\0\0\0") for _ in range(1)])
        assert len(list(client.shop.orders.find())) == 1

    assert attributes(spans.one("find orders"))["db.response.returned_rows"] == 1


def test_an_exhaust_cursor_is_one_span_a_reply(client: MongoClient[Any], listeners: Any, spans: Spans) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(10)])
    assert len(list(client.shop.orders.find(batch_size=2, cursor_type=CursorType.EXHAUST))) == 10

    assert len(spans.named("getMore orders")) >= 4
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}
    assert len(table_of(listeners)) == 0


@pytest.mark.parametrize("server_connection_ids", [True, False])
def test_two_exhaust_cursors_at_once_are_told_apart(listeners: Any, spans: Spans, server_connection_ids: bool) -> None:
    with (
        ScriptedServer(server_connection_ids=server_connection_ids) as server,
        connect(server.uri, event_listeners=listeners) as client,
    ):
        for name in ("orders", "bills"):
            client.shop[name].insert_many([{"_id": number} for number in range(10)])
        spans.clear()
        cursors = [client.shop[name].find(batch_size=1, cursor_type=CursorType.EXHAUST) for name in ("orders", "bills")]
        for _ in range(10):
            for cursor in cursors:
                next(cursor)
        for cursor in cursors:
            assert list(cursor) == []

        assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}
        for name in ("orders", "bills"):
            opened = spans.one(f"find {name}")
            continued = spans.named(f"getMore {name}")
            assert len(continued) == 9
            assert all([link.context for link in span.links] == [opened.context] for span in continued)
    assert len(table_of(listeners)) == 0


def test_an_exhaust_cursor_that_is_left_in_the_middle_leaves_nothing(
    client: MongoClient[Any], listeners: Any, spans: Spans, metrics: Metrics
) -> None:
    client.shop.orders.insert_many([{"_id": number} for number in range(10)])
    cursor = client.shop.orders.find(batch_size=2, cursor_type=CursorType.EXHAUST)
    next(cursor)
    cursor.close()
    client.admin.command("ping")

    assert len(table_of(listeners)) == 0
    assert spans.names[-1] == "ping admin"
    # Its connection is closed, and only then given back.
    uses, waits = (metrics.one(f"db.client.connection.{each}_time").count for each in ("use", "wait"))
    assert uses == waits


def test_a_duplicate_key_is_an_error(client: MongoClient[Any], server: ScriptedServer, spans: Spans) -> None:
    message = 'E11000 duplicate key error collection: shop.users index: email_1 dup key: { email: "alice" }'
    server.fail("insert", write_errors=[{"code": 11000, "errmsg": message}])
    with pytest.raises(BulkWriteError):
        client.shop.users.insert_many([{"_id": 1}, {"_id": 2}])

    span = spans.one("insert users")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "DuplicateKey index email_1")
    assert attributes(span)["mongodb.client.operation.write_error_count"] == 1
    assert "alice" not in span.to_json()


def test_a_write_concern_error_is_an_error(client: MongoClient[Any], server: ScriptedServer, spans: Spans) -> None:
    server.fail("insert", write_concern_error={"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting"})
    with pytest.raises(WriteConcernError):
        client.shop.users.insert_one({"_id": 1})

    span = spans.one("insert users")
    assert (span.status.description, attributes(span)["error.type"]) == ("WriteConcernFailed", "64")


@pytest.mark.parametrize(
    ("failure", "error_type", "description"),
    [
        ({"code": 59, "code_name": "CommandNotFound"}, "59", "CommandNotFound"),
        ({"code": 13, "code_name": ""}, "13", "13"),
        ({"errmsg": "alice"}, "OperationFailure", "OperationFailure"),
        ({"close_connection": True}, HANG_UP, HANG_UP),
    ],
)
def test_a_failure_is_an_error(
    client: MongoClient[Any],
    server: ScriptedServer,
    spans: Spans,
    failure: dict[str, Any],
    error_type: str,
    description: str,
) -> None:
    client.admin.command("ping")
    server.fail("find", times=None, **failure)
    with pytest.raises((OperationFailure, AutoReconnect)):
        client.shop.command("find", "orders")

    span = spans.named("find orders")[-1]
    repeated = description == error_type
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None if repeated else description)
    assert attributes(span)["error.type"] == error_type
    assert "alice" not in span.to_json()


def test_an_error_without_a_message_ends_its_span_though_the_driver_trips_over_it(
    client: MongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    server.reply("find", {"ok": 0})
    with contextlib.suppress(KeyError, OperationFailure):
        client.shop.command("find", "orders")

    assert spans.one("find orders").status.status_code is StatusCode.ERROR
    assert len(table_of(listeners)) == 0


@needs_shared_ids
def test_a_retried_write_is_one_span_an_attempt(
    retrying: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("insert", close_connection=True)
    retrying.shop.orders.insert_one({"_id": 1})

    first, second = spans.named("insert orders")
    assert attributes(first)["error.type"] == "AutoReconnect"
    assert (second.status.status_code, attributes(second)["mongodb.client.operation.attempt"]) == (StatusCode.UNSET, 2)
    assert [link.context for link in second.links] == [first.context]


@needs_shared_ids
def test_a_write_that_is_retried_after_a_succeeded_reply_is_an_attempt(
    retrying: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    slow = {"code": 262, "errmsg": "operation exceeded its time limit"}
    primary.reply("insert", [{"n": 1, "writeConcernError": slow, "errorLabels": ["RetryableWriteError"]}])
    retrying.shop.orders.insert_one({"_id": 1})

    first, second = spans.named("insert orders")
    assert (attributes(first)["error.type"], attributes(second)["mongodb.client.operation.attempt"]) == ("262", 2)
    assert [link.context for link in second.links] == [first.context]


@needs_shared_ids
def test_a_retried_read_is_one_span_an_attempt(
    retrying: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("find", code=91, code_name="ShutdownInProgress")
    assert list(retrying.shop.orders.find()) == []

    first, second = spans.named("find orders")
    assert (first.status.description, attributes(second)["mongodb.client.operation.attempt"]) == (
        "ShutdownInProgress",
        2,
    )


def test_the_batches_of_a_bulk_write_are_no_attempts(
    client: MongoClient[Any], server: ScriptedServer, spans: Spans
) -> None:
    server.fail("insert", times=None, write_errors=[{"code": 11000}])
    with pytest.raises(BulkWriteError):
        client.shop.orders.bulk_write(
            [InsertOne({"_id": 1}), UpdateOne({"_id": 1}, {"$set": {"a": 1}}), DeleteOne({"_id": 1})] * 2, ordered=False
        )

    assert sorted(spans.names) == ["delete orders", "insert orders", "update orders"]
    assert not any("mongodb.client.operation.attempt" in attributes(span) for span in spans.finished)
    assert [attributes(span)["db.operation.batch.size"] for span in spans.finished] == [2, 2, 2]


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="MongoClient.bulk_write came with PyMongo 4.9")
def test_the_errors_of_a_client_bulk_write_are_errors(listeners: Any, spans: Spans, metrics: Metrics) -> None:
    from pymongo.errors import ClientBulkWriteException

    error = {"ok": 0.0, "idx": 1, "n": 0, "code": 11000, "errmsg": "E11000 ... index: a_1 dup key: { a: 'alice' }"}
    reply = {
        "nErrors": 1,
        "nInserted": 1,
        "nMatched": 0,
        "nModified": 0,
        "nUpserted": 0,
        "nDeleted": 0,
        "cursor": {"id": 0, "ns": "admin.$cmd.bulkWrite", "firstBatch": [{"ok": 1.0, "idx": 0, "n": 1}, error]},
    }
    with (
        ScriptedServer(role="primary", max_wire_version=25) as server,
        connect(server.uri, event_listeners=listeners) as client,
    ):
        server.reply("bulkWrite", reply)
        with pytest.raises(ClientBulkWriteException):
            client.bulk_write([InsertOne({"a": 1}, namespace="shop.orders")] * 2)

    span = spans.one("bulkWrite admin")
    assert (span.status.description, attributes(span)["mongodb.client.operation.write_error_count"]) == (
        "DuplicateKey index a_1",
        1,
    )
    assert attributes(span)["db.operation.batch.size"] == 2
    assert "db.response.returned_rows" not in attributes(span)  # results of operations are no rows
    assert metrics.points("db.client.response.returned_rows") == []
    assert "alice" not in span.to_json()


@tells_server_connection
@pytest.mark.parametrize("number", [7, Int64(7), 7.0])
def test_a_servers_number_of_a_connection_is_an_int_whatever_the_server_sends(
    number: Any, listeners: Any, spans: Spans
) -> None:
    with ScriptedServer() as server:
        server.reply("hello", lambda command: {**server.default_answer(command), "connectionId": number})
        with connect(server.uri, event_listeners=listeners) as client:
            client.shop.orders.find_one()

    told = attributes(spans.one("find orders"))["db.mongodb.server_connection_id"]
    assert (told, type(told)) == (7, int)


def test_a_collection_may_be_named_by_a_text_that_can_be_no_key(client: MongoClient[Any], spans: Spans) -> None:
    client.shop.command({"find": Code("orders")})

    assert attributes(spans.one("find orders"))["db.collection.name"] == "orders"


def test_the_class_of_an_error_is_the_drivers_also_as_the_application_handles_another(
    client: MongoClient[Any], server: ScriptedServer, spans: Spans
) -> None:
    server.fail("find", times=2, errmsg="no")
    with pytest.raises(OperationFailure):
        client.shop.command("find", "orders")
    try:
        raise KeyError
    except KeyError:
        with pytest.raises(OperationFailure):
            client.shop.command("find", "orders")

    assert [attributes(span)["error.type"] for span in spans.finished] == ["OperationFailure"] * 2


def test_the_rows_of_a_reply_that_is_an_error_are_not_measured(
    client: MongoClient[Any], server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    """As of an aggregation that ends in `$merge`, whose reply has an empty batch."""
    cursor = {"id": 0, "ns": "shop.orders", "firstBatch": []}
    server.reply("aggregate", {"ok": 1, "cursor": cursor, "writeConcernError": {"code": 64, "errmsg": "waiting"}})
    client.shop.command("aggregate", "orders", pipeline=[{"$merge": "bills"}], cursor={})
    client.shop.orders.find_one()

    assert attributes(spans.one("aggregate orders"))["error.type"] == "64"
    assert metrics.values("db.client.response.returned_rows", "db.operation.name") == {"find": 1}


def test_an_unacknowledged_write_is_a_span(client: MongoClient[Any], listeners: Any, spans: Spans) -> None:
    unacknowledged = client.shop.get_collection("orders", write_concern=pymongo.WriteConcern(w=0))
    unacknowledged.insert_one({"_id": 1})

    assert spans.one("insert orders").status.status_code is StatusCode.UNSET
    assert len(table_of(listeners)) == 0


def test_a_transaction_is_told_by_its_session_and_number(retrying: MongoClient[Any], spans: Spans) -> None:
    with retrying.start_session() as session, session.start_transaction():
        retrying.shop.orders.insert_one({"_id": 1}, session=session)
        retrying.shop.orders.find_one({}, session=session)
        session_id = str(session.session_id["id"].as_uuid())

    told = [attributes(span) for span in spans.finished]
    assert spans.names == ["insert orders", "find orders", "commitTransaction admin"]
    assert [each["db.mongodb.lsid"] for each in told] == [session_id] * 3
    assert [each["db.mongodb.txn_number"] for each in told] == [1] * 3


def test_outside_of_a_transaction_there_is_no_session(retrying: MongoClient[Any], spans: Spans) -> None:
    retrying.shop.orders.insert_one({"_id": 1})

    assert attributes(spans.one("insert orders")).keys() & {"db.mongodb.lsid", "db.mongodb.txn_number"} == set()


def test_commands_that_wrap_or_name_no_collection(client: MongoClient[Any], spans: Spans) -> None:
    client.shop.command("explain", {"find": "orders", "filter": {}})
    list(client.shop.aggregate([{"$listLocalSessions": {}}]))
    client.shop.list_collection_names()
    client.admin.command("ping")

    assert spans.names == ["explain orders", "aggregate shop", "listCollections shop", "ping admin"]


def test_a_step_down_is_told_by_its_code(listeners: Any, spans: Spans) -> None:
    with (
        ScriptedReplicaSet(members=1) as replica_set,
        connect(replica_set.uri, event_listeners=listeners, retryWrites=False) as client,
    ):
        client.shop.orders.insert_one({"_id": 1})
        spans.clear()
        assert replica_set.primary is not None
        replica_set.primary.fail("insert", code=10107, code_name="NotWritablePrimary")
        with pytest.raises(AutoReconnect):
            client.shop.orders.insert_one({"_id": 2})

    span = spans.one("insert orders")
    assert (span.status.description, attributes(span)["error.type"]) == ("NotWritablePrimary", "10107")


def test_a_unix_socket_has_its_path_and_no_port(listeners: Any, spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "mongodb.sock"
    with (
        ScriptedServer(unix_socket=path) as server,
        connect(server.uri, event_listeners=listeners) as client,
    ):
        client.admin.command("ping")

    told = attributes(spans.one("ping admin"))
    assert (told["server.address"], told["network.transport"]) == (str(path), "unix")
    assert "server.port" not in told


def test_authentication_is_told_by_its_outcome(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    server.fail("saslStart", times=None, code=18, code_name="AuthenticationFailed", errmsg="alice / secret")
    client = connect(
        server.uri, event_listeners=listeners, username="alice", password="secret", authMechanism="SCRAM-SHA-256"
    )
    with client, pytest.raises(OperationFailure):
        client.admin.command("ping")

    span = spans.one("saslStart admin")
    assert span.status.description == "AuthenticationFailed"
    assert not {"alice", "secret"} & set(span.to_json().replace('"', " ").split())
    assert len(table_of(listeners)) == 0


def test_a_hook_may_run_commands_on_the_same_client(server: ScriptedServer, spans: Spans) -> None:
    client: MongoClient[Any]

    def hook(span: Any, event: Any) -> None:
        if event.command_name == "find":
            client.shop.audit.insert_one({"what": "find"})

    listeners = event_listeners(tracer_provider=spans.provider, request_hook=hook, response_hook=hook)
    with connect(server.uri, event_listeners=listeners) as client:
        client.shop.orders.find_one({})
        assert spans.names == ["insert audit", "insert audit", "find orders"]

    assert attributes(spans.one("find orders"))["db.mongodb.driver_connection_id"] == 1
    assert [attributes(span)["db.mongodb.driver_connection_id"] for span in spans.named("insert audit")] == [2, 2]
    assert len(table_of(listeners)) == 0


def test_a_hook_may_use_a_client_of_its_own_and_close_it(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    # Its connection has the number that the one of the command around it has, and is closed while that is open.
    def hook(span: Any, event: Any) -> None:
        if event.command_name == "find":
            with connect(server.uri) as audit:
                audit.shop.audit.insert_one({"what": "find"})

    instrumentor.instrument(tracer_provider=spans.provider, request_hook=hook, exclude_commands="endSessions")
    with connect(server.uri) as client:
        client.shop.orders.find_one({})

    assert [(span.name, attributes(span)["db.mongodb.driver_connection_id"]) for span in spans.finished] == [
        ("insert audit", 1),
        ("find orders", 1),
    ]
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}


def test_commands_of_two_clients_whose_connections_have_one_number_are_told_apart(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, spans: Spans
) -> None:
    # The first client's connection is pinned to its cursor while the second's first command is interrupted, and then
    # the cursor's own.
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as first, connect(server.uri) as second:
        first.shop.orders.insert_many([{"_id": number} for number in range(9)])
        cursor = first.shop.orders.find(batch_size=2, cursor_type=CursorType.EXHAUST)
        next(cursor)
        interrupted(server, "distinct", lambda: second.shop.orders.distinct("a"))
        interrupted(server, "getMore", lambda: list(cursor))
        cursor.close()  # where the connection is given back, in older versions

        for name in ("distinct", "getMore"):
            assert len(spans.named(f"{name} orders")) == len(server.received(name)) == 1
            told = attributes(spans.one(f"{name} orders"))
            assert told["error.type"] in ("interrupted", "KeyboardInterrupt")
        assert len(table_of(registered_listeners())) == 0


def test_a_dropped_connection_ends_what_was_open(
    client: MongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    client.admin.command("ping")
    frozen = server.freeze("ping")

    def ping() -> None:
        with pytest.raises(AutoReconnect):
            client.admin.command("ping")

    thread = threading.Thread(target=ping)
    thread.start()
    assert frozen.reached.wait(5)
    assert len(table_of(listeners)) == 1

    server.drop_connections()
    thread.join(5)

    assert attributes(spans.finished[-1])["error.type"] == HANG_UP
    assert len(table_of(listeners)) == 0


def interrupt_main_thread() -> None:
    """As Ctrl-C does; sent to the process, another thread might get the signal, and the main one wait on."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def interrupted(server: ScriptedServer, command_name: str, run: Callable[[], object]) -> None:
    """Run what sends a command, and interrupt it while it waits for the reply, as Ctrl-C does."""
    frozen = server.freeze(command_name)

    def interrupt() -> None:
        assert frozen.reached.wait(20)
        interrupt_main_thread()
        # One that comes just before the wait in the system begins is not seen before it ends.
        while not seen.wait(10):
            interrupt_main_thread()

    seen = threading.Event()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        seen.set()
        thread.join(20)
        signal.signal(signal.SIGINT, previous)
        frozen.release()


def test_an_interrupted_command_ends_its_span(
    client: MongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    client.admin.command("ping")
    interrupted(server, "find", lambda: client.shop.command("find", "orders"))

    # 4.20.1 publishes a failure, versions before it no end at all.
    span = spans.one("find orders")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] in ("interrupted", "KeyboardInterrupt")
    assert len(table_of(listeners)) == 0


@pytest.mark.parametrize(
    ("hook", "error_type"), [("request_hook", "interrupted"), ("response_hook", None)], ids=["request", "response"]
)
def test_a_hook_that_is_interrupted_leaves_nothing(
    server: ScriptedServer, spans: Spans, hook: str, error_type: str | None
) -> None:
    def interrupted(span: Any, event: Any) -> None:
        if event.command_name == "find":
            raise KeyboardInterrupt

    listeners = event_listeners(tracer_provider=spans.provider, **{hook: interrupted})  # type: ignore[arg-type]
    with connect(server.uri, event_listeners=listeners) as client:
        with pytest.raises(KeyboardInterrupt):
            client.shop.command("find", "orders")
        client.admin.command("ping")

        assert attributes(spans.one("find orders")).get("error.type") == error_type
        assert spans.names == ["find orders", "ping admin"]
        assert len(table_of(listeners)) == 0


def test_an_interrupted_authentication_ends_its_span(server: ScriptedServer, listeners: Any, spans: Spans) -> None:
    client = connect(
        server.uri, event_listeners=listeners, username="alice", password="secret", authMechanism="SCRAM-SHA-256"
    )
    with client:
        interrupted(server, "saslStart", lambda: client.admin.command("ping"))

    span = spans.one("saslStart admin")
    assert attributes(span)["error.type"] in ("interrupted", "KeyboardInterrupt")
    assert len(table_of(listeners)) == 0
