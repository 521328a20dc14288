"""What a command, a reply and a failure say."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from bson import Int64, encode
from bson.binary import Binary
from bson.raw_bson import RawBSONDocument

from opentelemetry_mongo_events._commands.description import (
    add_batch_and_transaction,
    collection_name,
    continued_cursor,
    describe,
    span_name,
)
from opentelemetry_mongo_events._commands.outcome import (
    Outcome,
    failure_outcome,
    is_retryable_write_error,
    reply_outcome,
)


def start(command: dict[str, Any], address: Any = ("db.example", 27017), old_names: bool = False) -> dict[str, Any]:
    name = next(iter(command), "hello")
    collection = collection_name(name, command)
    attributes = describe(name, "shop", collection, address, old_names).attributes
    add_batch_and_transaction(attributes, name, command)
    return attributes


@pytest.mark.parametrize(
    ("command", "collection"),
    [
        ({"find": "orders"}, "orders"),
        ({"aggregate": "orders", "pipeline": []}, "orders"),
        ({"findAndModify": "orders"}, "orders"),
        ({"findandmodify": "orders"}, "orders"),
        ({"killCursors": "orders", "cursors": [1]}, "orders"),
        ({"createIndexes": "orders"}, "orders"),
        ({"getMore": 12, "collection": "orders"}, "orders"),
        ({"explain": {"find": "orders"}}, "orders"),
        ({"explain": {"getMore": 12, "collection": "orders"}}, "orders"),
        ({"find": "a.b c/é"}, "a.b c/é"),
        # None of these names a collection.
        ({"aggregate": 1, "pipeline": []}, None),
        ({"getMore": 12, "collection": "$cmd.listCollections"}, None),
        ({"getMore": 12, "collection": "$cmd"}, None),
        ({"getMore": 12}, None),
        ({"dropUser": "alice"}, None),
        ({"createUser": "alice"}, None),
        ({"usersInfo": "alice"}, None),
        ({"grantRolesToUser": "alice"}, None),
        ({"renameCollection": "shop.orders", "to": "shop.bills"}, None),
        ({"shardCollection": "shop.orders"}, None),
        ({"endSessions": [{"id": 1}]}, None),
        ({"bulkWrite": 1}, None),
        ({"listCollections": 1}, None),
        ({"ping": 1}, None),
        ({"somethingNew": "alice@example.org"}, None),
        ({"find": ""}, None),
        ({"find": None}, None),
        ({"explain": "find"}, None),
        ({"explain": {}}, None),
        ({"explain": {"explain": {"find": "orders"}}}, None),
        ({}, None),
    ],
)
def test_the_collection_is_taken_from_commands_that_name_one(command: dict[str, Any], collection: str | None) -> None:
    assert collection_name(next(iter(command), "hello"), command) == collection


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("find", "shop", "orders"), "find orders"),
        (("ping", "admin", None), "ping admin"),
        (("ping", "", None), "ping"),
        (("x" * 300, "shop", None), "x" * 255),
    ],
)
def test_the_name_is_the_operation_and_its_target(parts: tuple[str, str, str | None], name: str) -> None:
    assert span_name(*parts) == name


def test_a_command_is_told_by_the_stable_names() -> None:
    assert start({"find": "orders"}) == {
        "db.system.name": "mongodb",
        "db.namespace": "shop",
        "db.collection.name": "orders",
        "db.operation.name": "find",
        "db.query.summary": "find orders",
        "server.address": "db.example",
        "server.port": 27017,
        "network.transport": "tcp",
    }


def test_the_old_names_stand_beside_the_stable_ones() -> None:
    new = start({"find": "orders"})

    assert start({"find": "orders"}, old_names=True) == new | {
        "db.system": "mongodb",
        "db.name": "shop",
        "db.mongodb.collection": "orders",
        "db.operation": "find",
        "db.statement": "find",
        "net.peer.name": "db.example",
        "net.peer.port": 27017,
    }


def test_the_old_names_of_what_is_unknown_are_absent() -> None:
    old = start({"ping": 1}, ("/tmp/mongodb-27017.sock", None), old_names=True)

    assert old.keys() & {"db.mongodb.collection", "net.peer.port"} == set()
    assert old["net.peer.name"] == "/tmp/mongodb-27017.sock"  # a name, not a file


def test_a_unix_socket_has_no_port() -> None:
    assert start({"ping": 1}, ("/run/mongodb.sock", None)) == {
        "db.system.name": "mongodb",
        "db.namespace": "shop",
        "db.operation.name": "ping",
        "db.query.summary": "ping shop",
        "server.address": "/run/mongodb.sock",
        "network.transport": "unix",
    }


def test_a_command_without_an_address_has_none() -> None:
    assert start({"ping": 1}, None).keys() == {
        "db.system.name",
        "db.namespace",
        "db.operation.name",
        "db.query.summary",
    }


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ({"insert": "orders", "documents": []}, 0),
        ({"insert": "orders", "documents": [{}]}, None),
        ({"insert": "orders", "documents": [{}, {}]}, 2),
        ({"update": "orders", "updates": [{}, {}, {}]}, 3),
        ({"delete": "orders", "deletes": [{}, {}]}, 2),
        ({"bulkWrite": 1, "ops": [{}, {}], "nsInfo": [{}]}, 2),
        ({"insert": "orders"}, None),
        ({"insert": "orders", "documents": 3}, None),
        ({"find": "orders", "documents": [{}, {}]}, None),
    ],
)
def test_a_batch_is_told_by_its_size_but_for_one(command: dict[str, Any], size: int | None) -> None:
    assert start(command).get("db.operation.batch.size") == size


SESSION = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")


@pytest.mark.parametrize("session", [Binary(SESSION.bytes, 4), SESSION.bytes, SESSION])
def test_a_transaction_is_told_by_its_session_and_number(session: Any) -> None:
    command = {"find": "orders", "lsid": {"id": session}, "txnNumber": Int64(3), "autocommit": False}

    told = start(command)

    assert (told["db.mongodb.lsid"], told["db.mongodb.txn_number"]) == (str(SESSION), 3)
    assert type(told["db.mongodb.txn_number"]) is int


@pytest.mark.parametrize(
    "command",
    [
        {"insert": "orders", "lsid": {"id": Binary(SESSION.bytes, 4)}, "txnNumber": 3},  # a retryable write
        {"find": "orders", "lsid": {"id": Binary(SESSION.bytes, 4)}},
        {"find": "orders", "autocommit": False},
        {"find": "orders", "autocommit": False, "lsid": {"id": b"short"}, "txnNumber": "x"},
        {"find": "orders", "autocommit": False, "lsid": 3},
    ],
)
def test_without_a_transaction_there_is_none_of_it(command: dict[str, Any]) -> None:
    assert start(command).keys() & {"db.mongodb.lsid", "db.mongodb.txn_number"} == set()


@pytest.mark.parametrize(
    ("command", "cursor"),
    [
        ({"getMore": Int64(12), "collection": "orders"}, 12),
        ({"getMore": 0}, None),
        ({"getMore": "x"}, None),
        ({}, None),
    ],
)
def test_a_getmore_goes_on_with_a_cursor(command: dict[str, Any], cursor: int | None) -> None:
    assert continued_cursor(command) == cursor


@pytest.mark.parametrize(
    ("reply", "cursor"),
    [
        ({"cursor": {"id": Int64(12)}}, 12),
        ({"cursor": {"id": 0}}, 0),
        ({"cursor": {}}, None),
        ({"cursor": 3}, None),
        ({}, None),
        (None, None),
        (b"raw", None),
    ],
)
def test_a_reply_tells_its_cursor(reply: Any, cursor: int | None) -> None:
    assert reply_outcome("find", reply).cursor == cursor


@pytest.mark.parametrize(
    ("reply", "retried"),
    [
        ({"errorLabels": ["RetryableWriteError"]}, True),
        ({"errorLabels": ["TransientTransactionError"]}, False),
        ({"errorLabels": 3}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_reply_tells_whether_the_driver_writes_again(reply: Any, retried: bool) -> None:
    assert is_retryable_write_error(reply) is retried


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"ok": 1}, {}),
        (
            {"ok": 1, "cursor": {"id": 0, "ns": "shop.orders", "firstBatch": [{}, {}]}},
            {"db.response.returned_rows": 2},
        ),
        (
            {"ok": 1, "cursor": {"id": Int64(12), "ns": "shop.orders", "nextBatch": []}},
            {"db.response.returned_rows": 0, "db.mongodb.cursor_id": 12},
        ),
        # A raw batch is one blob.
        ({"ok": 1, "cursor": {"id": 12, "firstBatch": [b"..."]}}, {"db.mongodb.cursor_id": 12}),
        ({"ok": 1, "cursor": {"id": 12, "firstBatch": 3}}, {"db.mongodb.cursor_id": 12}),
        ({"ok": 1, "cursor": 3}, {}),
        ({"ok": 1, "nErrors": 3}, {}),
        (None, {}),
        (b"raw", {}),
    ],
)
def test_a_reply_tells_how_many_rows_came(reply: Any, told: dict[str, Any]) -> None:
    assert reply_outcome("find", reply)[:3] == Outcome(told, None)[:3]


def test_a_raw_reply_tells_the_same() -> None:
    reply = {"ok": 1, "cursor": {"id": 12, "firstBatch": [{"a": 1}, {"a": 2}]}}

    assert reply_outcome("find", RawBSONDocument(encode(reply))) == reply_outcome("find", reply)


DUPLICATE = 'E11000 duplicate key error collection: shop.users index: email_1 dup key: { email: "alice@example.org" }'


@pytest.mark.parametrize(
    ("command_name", "reply", "told", "description"),
    [
        (
            "insert",
            {"ok": 1, "writeErrors": [{"index": 0, "code": 11000, "errmsg": DUPLICATE}, {"index": 1, "code": 121}]},
            {
                "error.type": "11000",
                "db.response.status_code": "11000",
                "mongodb.client.operation.write_error_count": 2,
            },
            "DuplicateKey index email_1",
        ),
        (
            "update",
            {"ok": 1, "writeErrors": [{"code": 121, "codeName": "DocumentValidationFailure", "errmsg": "alice"}]},
            {
                "error.type": "121",
                "db.response.status_code": "121",
                "mongodb.client.error.code_name": "DocumentValidationFailure",
                "mongodb.client.operation.write_error_count": 1,
            },
            "DocumentValidationFailure",
        ),
        (
            "insert",
            {"ok": 1, "writeErrors": [{"errmsg": "alice"}]},
            {"error.type": "_OTHER", "mongodb.client.operation.write_error_count": 1},
            "_OTHER",
        ),
        (
            "insert",
            {"ok": 1, "writeErrors": ["odd"]},
            {"error.type": "_OTHER", "mongodb.client.operation.write_error_count": 1},
            "_OTHER",
        ),
        (
            "insert",
            {"ok": 1, "writeConcernError": {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "alice"}},
            {
                "error.type": "64",
                "db.response.status_code": "64",
                "mongodb.client.error.code_name": "WriteConcernFailed",
            },
            "WriteConcernFailed",
        ),
        # What was written wrong counts for more than how far it spread.
        (
            "insert",
            {"ok": 1, "writeErrors": [{"code": 2}], "writeConcernError": {"code": 64}},
            {"error.type": "2", "db.response.status_code": "2", "mongodb.client.operation.write_error_count": 1},
            "2",
        ),
        (
            "bulkWrite",
            {
                "ok": 1,
                "nErrors": 1,
                "cursor": {"id": 0, "firstBatch": [{"ok": 1.0}, {"ok": 0.0, "code": 11000, "errmsg": DUPLICATE}]},
            },
            {
                "error.type": "11000",
                "db.response.status_code": "11000",
                "mongodb.client.operation.write_error_count": 1,
            },
            "DuplicateKey index email_1",
        ),
        (
            "bulkWrite",
            {"ok": 1, "nErrors": 3},
            {"error.type": "_OTHER", "mongodb.client.operation.write_error_count": 3},
            "_OTHER",
        ),
    ],
)
def test_a_write_that_failed_is_an_error_though_its_reply_succeeded(
    command_name: str, reply: Any, told: dict[str, Any], description: str
) -> None:
    assert reply_outcome(command_name, reply)[:2] == (told, description)


@pytest.mark.parametrize(
    ("failure", "told", "description"),
    [
        (
            {"ok": 0, "code": 59, "codeName": "CommandNotFound", "errmsg": "no such command: 'alice'"},
            {
                "error.type": "59",
                "db.response.status_code": "59",
                "mongodb.client.error.code_name": "CommandNotFound",
            },
            "CommandNotFound",
        ),
        ({"ok": 0, "code": 13}, {"error.type": "13", "db.response.status_code": "13"}, "13"),
        ({"ok": 0, "code": 13.0, "codeName": ""}, {"error.type": "13", "db.response.status_code": "13"}, "13"),
        ({"ok": 0, "errmsg": "alice"}, {"error.type": "_OTHER"}, "_OTHER"),
        ({"ok": 0, "code": "alice"}, {"error.type": "_OTHER"}, "_OTHER"),
        ({"ok": 0, "code": True}, {"error.type": "_OTHER"}, "_OTHER"),
        ({"ok": 0}, {"error.type": "_OTHER"}, "_OTHER"),
        ({}, {"error.type": "_OTHER"}, "_OTHER"),
        ({"errmsg": "connection closed", "errtype": "AutoReconnect"}, {"error.type": "AutoReconnect"}, "AutoReconnect"),
        ({"errtype": ""}, {"error.type": "_OTHER"}, "_OTHER"),
        ({"errtype": 3}, {"error.type": "_OTHER"}, "_OTHER"),
        (
            {"ok": 0, "code": 11000, "codeName": "DuplicateKey", "errmsg": DUPLICATE},
            {
                "error.type": "11000",
                "db.response.status_code": "11000",
                "mongodb.client.error.code_name": "DuplicateKey",
            },
            "DuplicateKey index email_1",
        ),
        (None, {"error.type": "_OTHER"}, "_OTHER"),
        ("alice", {"error.type": "_OTHER"}, "_OTHER"),
        (ValueError("alice"), {"error.type": "_OTHER"}, "_OTHER"),
        (
            RawBSONDocument(encode({"ok": 0, "code": 13, "codeName": "Unauthorized"})),
            {"error.type": "13", "db.response.status_code": "13", "mongodb.client.error.code_name": "Unauthorized"},
            "Unauthorized",
        ),
    ],
)
def test_a_failure_is_told_by_its_code_or_its_class_and_never_by_its_message(
    failure: Any, told: dict[str, Any], description: str
) -> None:
    assert failure_outcome("find", failure)[:2] == (told, description)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "E11000 duplicate key error",
        # The index has a space in its name, and the key says what looks like another one.
        'E11000 duplicate key error collection: shop.users index: my index dup key: { name: " index: alice dup key" }',
        "E11000 duplicate key error collection: shop.users index: " + "x" * 2000 + " dup key: {}",
    ],
)
def test_a_duplicate_key_whose_message_names_no_plain_index_has_its_name_only(message: Any) -> None:
    assert failure_outcome("find", {"ok": 0, "code": 11000, "errmsg": message}).error == "DuplicateKey"
