"""The scripted server keeps its promises to a real driver."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import pymongo
import pytest
from bson.son import SON
from pymongo import MongoClient, monitoring
from pymongo.cursor import CursorType
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from pymongo.server_type import SERVER_TYPE
from pymongo.write_concern import WriteConcern

from tests.servers.scripted import (
    CHECKSUM_PRESENT,
    EXHAUST_ALLOWED,
    MORE_TO_COME,
    Role,
    ScriptedReplicaSet,
    ScriptedServer,
    command_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_asyncio = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
needs_bulk_write = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="bulk_write came with PyMongo 4.9")


def server_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("scripted-server")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not server_threads()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as executor:
        yield executor


def details(failed: Any) -> dict[str, Any]:
    return dict(failed.value.details)


def client_of(server: ScriptedServer | ScriptedReplicaSet, **options: Any) -> Any:
    return MongoClient(server.uri, **{"serverSelectionTimeoutMS": 3000, **options})


class Heartbeats(monitoring.ServerHeartbeatListener):
    """The roles that heartbeats told, and whether they were awaited."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []
        self.failures: list[Exception] = []

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        pass

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        self.seen.append((SERVER_TYPE._fields[event.reply.server_type], event.awaited))

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        self.failures.append(event.reply)


class RawClient:
    """Speaks the wire protocol by hand, for what no driver shows."""

    def __init__(self, server: ScriptedServer) -> None:
        self._socket = socket.create_connection((server.host, server.port or 0), timeout=5)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, body: bytes, *, request_id: int = 7, op_code: int = 2013) -> None:
        self._socket.sendall(struct.pack("<iiii", 16 + len(body), request_id, 0, op_code) + body)

    def send_command(self, command: dict[str, Any], *, flags: int = 0, request_id: int = 7) -> None:
        self.send(struct.pack("<IB", flags, 0) + bson.encode(command | {"$db": "db"}), request_id=request_id)

    def receive(self) -> tuple[int, int, bool, dict[str, Any]]:
        """The request id, the id that it answers, moreToCome, and the document of the next reply."""
        length, request_id, response_to, op_code = struct.unpack("<iiii", self._read(16))
        body = self._read(length - 16)
        if op_code == 1:
            return request_id, response_to, False, bson.decode(body[20:])
        assert op_code == 2013
        return request_id, response_to, bool(body[0] & MORE_TO_COME), bson.decode(body[5:])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


# The wire.


def test_the_legacy_hello_is_answered_with_op_reply(server: ScriptedServer) -> None:
    query = struct.pack("<i", 0) + b"admin.$cmd\0" + struct.pack("<ii", 0, -1)
    with RawClient(server) as raw:
        raw.send(query + bson.encode({"ismaster": 1, "helloOk": True}), op_code=2004)
        _, response_to, _, reply = raw.receive()
    assert response_to == 7
    assert (reply["ismaster"], reply["helloOk"], reply["maxWireVersion"], reply["connectionId"]) == (True, True, 21, 1)
    assert server.commands[0].document == {"ismaster": 1, "helloOk": True, "$db": "admin"}


def test_document_sequences_are_merged_and_a_checksum_is_passed_over(server: ScriptedServer) -> None:
    documents = b"documents\0" + bson.encode({"_id": 1}) + bson.encode({"_id": 2})
    command = bson.encode({"insert": "c", "$db": "db"})
    body = struct.pack("<Ib", CHECKSUM_PRESENT, 1) + struct.pack("<i", 4 + len(documents)) + documents
    with RawClient(server) as raw:
        raw.send(body + b"\0" + command + b"\xff\xff\xff\xff")
        assert raw.receive()[3] == {"ok": 1.0, "n": 2}
    assert server.commands[0].document == {"insert": "c", "$db": "db", "documents": [{"_id": 1}, {"_id": 2}]}


def test_an_exhaust_getmore_streams_batches_that_answer_one_another(server: ScriptedServer) -> None:
    with RawClient(server) as raw:
        raw.send_command({"insert": "c", "documents": [{"_id": i} for i in range(4)]})
        raw.receive()
        raw.send_command({"find": "c", "batchSize": 1})
        cursor_id = raw.receive()[3]["cursor"]["id"]
        raw.send_command({"getMore": cursor_id, "collection": "c", "batchSize": 1}, flags=EXHAUST_ALLOWED, request_id=9)
        replies = [raw.receive() for _ in range(3)]
    assert [more_to_come for _, _, more_to_come, _ in replies] == [True, True, False]
    assert [reply["cursor"]["nextBatch"] for *_, reply in replies] == [[{"_id": 1}], [{"_id": 2}], [{"_id": 3}]]
    assert [response_to for _, response_to, _, _ in replies] == [9, replies[0][0], replies[1][0]]
    assert [each.name for each in server.commands] == ["insert", "find", "getMore"]


def test_an_awaited_hello_waits_for_a_change_or_its_time(server: ScriptedServer) -> None:
    with RawClient(server) as raw:
        raw.send_command({"hello": 1})
        version = raw.receive()[3]["topologyVersion"]
        raw.send_command({"hello": 1, "topologyVersion": version, "maxAwaitTimeMS": 1})
        assert raw.receive()[3]["topologyVersion"] == version
        raw.send_command({"hello": 1, "topologyVersion": version, "maxAwaitTimeMS": 60_000})
        server.wait_for(lambda server: len(server.commands) == 3)
        server.role = "secondary"
        _, _, more_to_come, reply = raw.receive()
    assert (reply["secondary"], reply["topologyVersion"]["counter"], more_to_come) == (True, 1, False)


def test_what_is_no_message_closes_the_connection(server: ScriptedServer) -> None:
    with RawClient(server) as raw:
        raw.send(b"x", op_code=1234)
        with pytest.raises((EOFError, ConnectionResetError)):
            raw.receive()


# What it says of itself.


@pytest.mark.parametrize(
    ("role", "server_type"),
    [
        ("standalone", "Standalone"),
        ("primary", "RSPrimary"),
        ("secondary", "RSSecondary"),
        ("arbiter", "RSArbiter"),
        ("other", "RSOther"),
        ("ghost", "RSGhost"),
        ("mongos", "Mongos"),
    ],
)
def test_a_driver_sees_the_role(role: Role, server_type: str) -> None:
    heartbeats = Heartbeats()
    with ScriptedServer(role=role) as server, client_of(server, event_listeners=[heartbeats]) as client:
        server.wait_for(lambda _: heartbeats.seen)
        assert heartbeats.seen[0][0] == server_type
        if role in ("standalone", "primary", "secondary", "mongos"):
            assert client.admin.command("ping")["ok"] == 1.0


def test_a_driver_connects_as_through_a_load_balancer() -> None:
    with ScriptedServer(role="load_balanced") as server, client_of(server) as client:
        assert client.admin.command("ping")["ok"] == 1.0


def test_an_unknown_server_is_not_selected() -> None:
    with (
        ScriptedServer(role="unknown") as server,
        client_of(server, serverSelectionTimeoutMS=50) as client,
        pytest.raises(ServerSelectionTimeoutError),
    ):
        client.admin.command("ping")


@pytest.mark.parametrize("told", [True, False])
def test_the_connection_id_is_told_on_demand(told: bool) -> None:
    with ScriptedServer(server_connection_ids=told) as server, client_of(server) as client:
        assert ("connectionId" in client.admin.command("hello")) is told


def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "mongodb.sock"
    with ScriptedServer(unix_socket=path) as server:
        assert server.address == (str(path), None)
        with client_of(server) as client:
            assert client.db.c.insert_one({"_id": 1}).acknowledged
            assert client.address == (str(path), None)
    assert not path.exists()


@pytest.mark.parametrize("role", ["primary", "mongos"])
def test_members_of_a_cluster_send_the_cluster_time(role: Role) -> None:
    with ScriptedServer(role=role) as server, client_of(server) as client:
        first, second = (client.admin.command("ping")["$clusterTime"]["clusterTime"] for _ in range(2))
        assert second > first
        assert server.received("ping")[1].document["$clusterTime"]["clusterTime"] == first


# Heartbeats.


def test_a_streaming_heartbeat_tells_a_new_role_at_once() -> None:
    heartbeats = Heartbeats()
    with (
        ScriptedServer(role="primary") as server,
        client_of(server, event_listeners=[heartbeats], heartbeatFrequencyMS=60_000) as client,
    ):
        client.admin.command("ping")
        server.wait_for(lambda server: any("topologyVersion" in each.document for each in server.received("hello")))
        server.role = "secondary"
        server.wait_for(lambda _: ("RSSecondary", True) in heartbeats.seen)
        server.role = "primary"
        server.wait_for(lambda _: heartbeats.seen[-1] == ("RSPrimary", True))
        streamed = [each for each in server.received("hello") if "topologyVersion" in each.document]
        assert len(streamed) == 1


def test_a_scripted_hello_reaches_a_streaming_heartbeat_at_once(server: ScriptedServer) -> None:
    heartbeats = Heartbeats()
    with client_of(server, event_listeners=[heartbeats], heartbeatFrequencyMS=60_000) as client:
        client.admin.command("ping")
        server.reply("hello", lambda command: {**server.default_answer(command), "msg": "isdbgrid"})
        server.wait_for(lambda _: heartbeats.seen[-1] == ("Mongos", True))
        server.fail("hello", times=None, close_connection=True)
        server.wait_for(lambda _: heartbeats.failures)
        assert isinstance(heartbeats.failures[0], AutoReconnect)
        server.reset()  # so that the client's close finds a server for its endSessions


# What it does unscripted.


def test_documents_are_written_and_read(server: ScriptedServer) -> None:
    with client_of(server) as client:
        c = client.db.c
        assert c.insert_many([{"_id": i, "even": i % 2 == 0} for i in range(5)]).inserted_ids == [0, 1, 2, 3, 4]
        assert c.find_one({"_id": 2}) == {"_id": 2, "even": True}
        assert [each["_id"] for each in c.find({"even": True}, skip=1, limit=1)] == [2]
        updated = c.update_many({"even": True}, {"$set": {"seen": 1}, "$inc": {"times": 2}})
        assert (updated.matched_count, updated.modified_count) == (3, 3)
        assert c.update_one({"_id": 9}, {"$set": {"x": 1}}, upsert=True).upserted_id == 9
        assert c.replace_one({"_id": 9}, {"y": 1}).modified_count == 1
        assert c.find_one({"_id": 9}) == {"_id": 9, "y": 1}
        assert c.delete_one({"_id": 9}).deleted_count == 1
        assert c.delete_many({"even": False}).deleted_count == 2
        assert c.find_one_and_update({"_id": 0}, {"$set": {"seen": 2}})["seen"] == 1
        assert c.find_one_and_delete({"_id": 0})["seen"] == 2
        assert c.find_one_and_delete({"_id": 0}) is None
        assert c.estimated_document_count() == 2
        assert c.count_documents({"_id": 4}) == 1
        assert c.distinct("times") == [2]
        assert [each["_id"] for each in c.aggregate([{"$match": {"seen": 1}}, {"$skip": 1}, {"$limit": 5}])] == [4]


def test_a_duplicate_key_fails_as_on_the_server(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.db.c.insert_one({"_id": 1})
        with pytest.raises(DuplicateKeyError, match="E11000"):
            client.db.c.insert_one({"_id": 1})
        with pytest.raises(BulkWriteError) as unordered:
            client.db.c.insert_many([{"_id": 1}, {"_id": 2}], ordered=False)
    assert unordered.value.details["nInserted"] == 1


def test_collections_databases_indexes_and_plans_are_told(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.db.c.insert_one({"_id": 1})
        assert client.db.c.create_index("x") == "x_1"
        assert list(client.db.c.index_information()) == ["_id_"]
        assert client.db.list_collection_names() == ["c"]
        assert client.list_database_names() == ["db"]
        assert client.db.c.find().explain()["queryPlanner"]["namespace"] == "db.c"
        assert client.server_info()["version"] == "7.0.0"
        client.db.c.drop()
        assert client.db.list_collection_names() == []


def test_any_plain_password_is_accepted_until_scripted(server: ScriptedServer) -> None:
    credentials = {"username": "alice", "password": "secret", "authMechanism": "PLAIN"}
    with client_of(server, **credentials) as client:
        assert client.admin.command("ping") == {"ok": 1.0}
    server.fail("saslStart", code=18, times=None)
    with client_of(server, **credentials) as client, pytest.raises(OperationFailure) as failed:
        client.admin.command("ping")
    assert details(failed)["codeName"] == "AuthenticationFailed"


def test_an_unknown_command_is_not_found(server: ScriptedServer) -> None:
    with client_of(server) as client, pytest.raises(OperationFailure, match="no such command: 'x'") as failed:
        client.db.command("x")
    assert (failed.value.code, details(failed)["codeName"]) == (59, "CommandNotFound")


def test_batches_and_getmores_follow_the_batch_size(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.db.c.insert_many([{"_id": i} for i in range(5)])
        assert [each["_id"] for each in client.db.c.find(batch_size=2)] == [0, 1, 2, 3, 4]
        assert [each.document["batchSize"] for each in server.received("getMore")] == [2, 2]
        assert [each["_id"] for each in client.db.c.aggregate([], batchSize=4)] == [0, 1, 2, 3, 4]
        cursor = client.db.c.find(batch_size=2)
        next(cursor)
        cursor.close()
        server.wait_for(lambda server: server.received("killCursors"))


def test_an_exhaust_cursor_reads_the_stream(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.db.c.insert_many([{"_id": i} for i in range(7)])
        exhaust = client.db.c.find(batch_size=2, cursor_type=CursorType.EXHAUST)
        assert [each["_id"] for each in exhaust] == list(range(7))
        assert len(server.received("getMore")) == 1


def test_a_killed_cursor_is_not_found(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.db.c.insert_many([{"_id": i} for i in range(3)])
        cursor = client.db.c.find(batch_size=2)
        next(cursor)
        client.db.command("killCursors", "c", cursors=[cursor.cursor_id])
        with pytest.raises(OperationFailure) as failed:
            list(cursor)
    assert failed.value.code == 43


def test_cursors_do_not_outlive_the_server(server: ScriptedServer) -> None:
    with RawClient(server) as raw:
        raw.send_command({"insert": "c", "documents": [{"_id": 1}, {"_id": 2}]})
        raw.receive()
        raw.send_command({"find": "c", "batchSize": 1})
        cursor_id = raw.receive()[3]["cursor"]["id"]
    server.stop()
    server.start()
    with RawClient(server) as raw:
        raw.send_command({"getMore": cursor_id, "collection": "c"})
        assert raw.receive()[3]["codeName"] == "CursorNotFound"


def test_an_unacknowledged_write_is_executed_and_not_answered(server: ScriptedServer) -> None:
    with client_of(server, maxPoolSize=1) as client:
        c = client.db.get_collection("c", write_concern=WriteConcern(w=0))
        assert not c.insert_one({"_id": 1}).acknowledged
        assert client.db.c.find_one() == {"_id": 1}
    assert [each.name for each in server.commands if command_name(each.document) != "hello"][:2] == ["insert", "find"]


@needs_bulk_write
def test_a_bulk_write_of_the_client_is_answered_per_operation() -> None:
    from pymongo import DeleteOne, InsertOne, UpdateOne
    from pymongo.errors import ClientBulkWriteException

    with ScriptedServer(role="primary", max_wire_version=25) as server, client_of(server) as client:
        models: list[Any] = [
            InsertOne({"_id": 1}, namespace="db.c"),
            UpdateOne({"_id": 1}, {"$set": {"x": 1}}, namespace="db.c"),
            UpdateOne({"_id": 2}, {"$set": {"x": 1}}, upsert=True, namespace="db.d"),
            DeleteOne({"_id": 1}, namespace="db.c"),
        ]
        result = client.bulk_write(models, verbose_results=True)
        assert (result.inserted_count, result.matched_count, result.modified_count) == (1, 1, 1)
        assert (result.upserted_count, result.deleted_count) == (1, 1)
        assert result.update_results[2].upserted_id == 2
        with pytest.raises(ClientBulkWriteException) as failed:
            client.bulk_write([InsertOne({"_id": 2}, namespace="db.d"), InsertOne({"_id": 3}, namespace="db.d")])
        assert [each["code"] for each in details(failed)["writeErrors"]] == [11000]


def test_a_transaction_is_begun_committed_and_aborted() -> None:
    with ScriptedServer(role="primary") as server, client_of(server) as client, client.start_session() as session:
        with session.start_transaction():
            client.db.c.insert_one({"_id": 1}, session=session)
        session.start_transaction()
        client.db.c.find_one(session=session)
        session.abort_transaction()
        insert, find = server.received("insert")[0].document, server.received("find")[0].document
        assert insert["startTransaction"] is find["startTransaction"] is True
        assert [len(server.received(name)) for name in ("commitTransaction", "abortTransaction")] == [1, 1]


def test_a_secondary_takes_no_writes_and_reads_only_on_demand() -> None:
    with ScriptedServer(role="secondary") as server, client_of(server) as client:
        with pytest.raises(NotPrimaryError) as failed:
            client.db.c.insert_one({})
        assert details(failed)["code"] == 10107
        assert details(failed)["topologyVersion"]["counter"] == 0
        assert client.db.c.find_one() is None
        with RawClient(server) as raw:
            raw.send_command({"find": "c"})
            assert raw.receive()[3]["codeName"] == "NotPrimaryNoSecondaryOk"


# Scripted replies.


def test_a_canned_reply_stays(server: ScriptedServer) -> None:
    server.reply("find", {"cursor": {"id": 0, "ns": "db.c", "firstBatch": [{"x": 1}]}})
    with client_of(server) as client:
        assert [client.db.c.find_one() for _ in range(2)] == [{"x": 1}, {"x": 1}]
        server.reset()
        assert client.db.c.find_one() is None


def test_a_callable_reply_gets_the_command(server: ScriptedServer) -> None:
    server.reply("ping", lambda command: {"echo": command["comment"]})
    with client_of(server) as client:
        assert client.admin.command("ping", comment="x")["echo"] == "x"


def test_a_list_of_replies_is_used_up_and_the_default_returns(server: ScriptedServer) -> None:
    server.reply("ping", [{"n": 1}, lambda command: {"n": 2}, {"ok": 0.0, "errmsg": "no", "code": 2}])
    with client_of(server) as client:
        assert [client.admin.command("ping")["n"] for _ in range(2)] == [1, 2]
        with pytest.raises(OperationFailure, match="no"):
            client.admin.command("ping")
        assert client.admin.command("ping") == {"ok": 1.0}


def test_a_callable_reply_that_raises_is_told_to_the_client(server: ScriptedServer) -> None:
    server.reply("ping", [lambda command: {"x": command["absent"]}])
    with client_of(server) as client, pytest.raises(OperationFailure, match="KeyError: 'absent'"):
        client.admin.command("ping")


def test_a_callable_reply_may_drop_the_connection(server: ScriptedServer) -> None:
    def drop(command: dict[str, Any]) -> dict[str, Any]:
        raise ConnectionError

    server.reply("ping", [drop])
    with client_of(server) as client:
        with pytest.raises(AutoReconnect):
            client.admin.command("ping")
        assert client.admin.command("ping") == {"ok": 1.0}


# Failures.


def test_a_command_fails_as_often_as_told(server: ScriptedServer) -> None:
    server.fail("ping", times=2, code=50, errmsg="too slow")
    with client_of(server) as client:
        for _ in range(2):
            with pytest.raises(OperationFailure, match="too slow") as failed:
                client.admin.command("ping")
            assert details(failed) == {"ok": 0.0, "errmsg": "too slow", "code": 50, "codeName": "MaxTimeMSExpired"}
        assert client.admin.command("ping") == {"ok": 1.0}


def test_a_command_fails_until_the_script_is_forgotten(server: ScriptedServer) -> None:
    server.fail("ping", "buildInfo", times=None, code=8000, code_name="")
    with client_of(server) as client:
        for name in ("ping", "buildInfo", "ping"):
            with pytest.raises(OperationFailure) as failed:
                client.admin.command(name)
            assert "codeName" not in details(failed)
        server.reset()
        assert client.admin.command("ping") == {"ok": 1.0}


def test_write_errors_name_their_statements_and_the_others_are_written(server: ScriptedServer) -> None:
    server.fail("insert", times=2, write_errors=[{"index": 1, "code": 121, "errmsg": "invalid"}])
    with client_of(server) as client:
        with pytest.raises(BulkWriteError) as ordered:
            client.db.c.insert_many([{"_id": 1}, {"_id": 2}, {"_id": 3}])
        with pytest.raises(BulkWriteError) as unordered:
            client.db.c.insert_many([{"_id": 4}, {"_id": 5}, {"_id": 6}], ordered=False)
        assert [each.value.details["nInserted"] for each in (ordered, unordered)] == [1, 2]
        assert [each["_id"] for each in client.db.c.find()] == [1, 4, 6]


def test_a_write_concern_error_comes_with_the_written_document(server: ScriptedServer) -> None:
    server.fail("insert", write_concern_error={"code": 100, "errmsg": "no such quorum"}, labels=["Label"])
    with client_of(server) as client:
        with pytest.raises(WriteConcernError, match="no such quorum") as failed:
            client.db.c.insert_one({"_id": 1})
        assert failed.value.has_error_label("Label")
        assert client.db.c.find_one() == {"_id": 1}


def test_a_hung_up_read_is_retried(server: ScriptedServer) -> None:
    server.fail("find", close_connection=True)
    with client_of(server) as client:
        assert client.db.c.find_one() is None
    assert len({each.connection_id for each in server.received("find")}) == 2


def test_a_delayed_command_is_answered_late(server: ScriptedServer) -> None:
    server.fail("ping", delay=0.05)
    with client_of(server) as client:
        client.admin.command("hello")
        started = time.monotonic()
        assert client.admin.command("ping") == {"ok": 1.0}
        assert time.monotonic() - started >= 0.05


def test_a_retryable_write_is_sent_again_with_its_transaction_number() -> None:
    labels = ["RetryableWriteError"]
    with ScriptedServer(role="primary") as server, client_of(server) as client:
        server.fail("insert", code=10107, labels=labels)
        assert client.db.c.insert_one({"_id": 1}).inserted_id == 1
        first, second = (each.document for each in server.received("insert"))
        assert first["txnNumber"] == second["txnNumber"]


def test_a_scripted_step_down_lasts_while_hello_is_frozen(background: ThreadPoolExecutor) -> None:
    with ScriptedServer(role="primary") as server, client_of(server) as client:
        client.db.c.insert_one({"_id": 1})
        server.wait_for(lambda server: any("topologyVersion" in each.document for each in server.received("hello")))
        frozen = server.freeze("hello", times=None)
        assert frozen.reached.wait(5)
        server.fail("insert", code=10107, labels=["RetryableWriteError"])
        insert = background.submit(client.db.c.insert_one, {"_id": 2})
        server.wait_for(lambda _: client.primary is None)
        assert not insert.done()
        frozen.release()
        assert insert.result(5).inserted_id == 2


def configure(client: Any, mode: Any, **data: Any) -> None:
    client.admin.command(SON([("configureFailPoint", "failCommand"), ("mode", mode), ("data", data)]))


def test_the_servers_own_fail_point_works() -> None:
    with ScriptedServer(role="primary") as server, client_of(server, retryReads=False) as client:
        configure(client, {"times": 1}, failCommands=["ping"], errorCode=91, errorLabels=["Label"])
        with pytest.raises(AutoReconnect) as failed:
            client.admin.command("ping")
        assert failed.value.has_error_label("Label")
        assert client.admin.command("ping")["ok"] == 1.0

        configure(client, {"times": 1}, failCommands=["find"], closeConnection=True)
        with pytest.raises(AutoReconnect):
            client.db.c.find_one()

        configure(client, "alwaysOn", failCommands=["find"], errorCode=2)
        configure(client, "alwaysOn", failCommands=["insert"], writeConcernError={"code": 64, "errmsg": "late"})
        assert client.db.c.find_one() is None
        for i in range(2):
            with pytest.raises(WriteConcernError):
                client.db.c.insert_one({"_id": i})

        configure(client, {"times": 1}, failCommands=["find"], blockConnection=True, blockTimeMS=20)
        started = time.monotonic()
        assert client.db.c.find_one() == {"_id": 0}
        assert time.monotonic() - started >= 0.02

        configure(client, "off")
        assert client.db.c.insert_one({"_id": 3}).inserted_id == 3


# Frozen commands.


def test_a_frozen_command_is_answered_after_its_release(server: ScriptedServer, background: ThreadPoolExecutor) -> None:
    frozen = server.freeze("ping")
    with client_of(server) as client:
        answer = background.submit(client.admin.command, "ping")
        assert frozen.reached.wait(5)
        assert (answer.done(), frozen.held) == (False, 1)
        assert client.admin.command("ping") == {"ok": 1.0}
        frozen.release()
        assert answer.result(5) == {"ok": 1.0}


def test_a_release_answers_all_that_is_held_and_ends_the_freeze(
    server: ScriptedServer, background: ThreadPoolExecutor
) -> None:
    frozen = server.freeze("ping", times=None)
    with client_of(server) as client:
        answers = [background.submit(client.admin.command, "ping") for _ in range(3)]
        server.wait_for(lambda _: frozen.held == 3)
        frozen.release()
        assert [answer.result(5) for answer in answers] == [{"ok": 1.0}] * 3
        assert client.admin.command("ping") == {"ok": 1.0}


def test_a_client_that_leaves_a_frozen_command_is_noticed(server: ScriptedServer) -> None:
    frozen = server.freeze("ping")
    with RawClient(server) as raw:
        raw.send_command({"ping": 1})
        assert frozen.reached.wait(5)
    server.wait_for(lambda server: server.open_connections == 0 and frozen.held == 0)


def test_the_close_drops_what_is_frozen_without_delay(background: ThreadPoolExecutor) -> None:
    with ScriptedServer() as server, client_of(server) as client:
        frozen = server.freeze("ping", times=None)
        answer = background.submit(client.admin.command, "ping")
        assert frozen.reached.wait(5)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 0.5  # it takes 2 ms, where no machine is busy
        with pytest.raises(AutoReconnect):
            answer.result(5)


# Connections.


def test_dropped_connections_are_made_anew(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.admin.command("ping")
        before = server.received("ping")[0].connection_id
        server.drop_connections()
        assert client.db.c.find_one() is None
        assert server.received("find")[-1].connection_id > before


def test_a_stopped_server_is_gone_and_comes_back_on_its_port(server: ScriptedServer) -> None:
    heartbeats = Heartbeats()
    with client_of(server, event_listeners=[heartbeats]) as client:
        client.db.c.insert_one({"_id": 1})
        port = server.port
        server.stop()
        assert server.open_connections == 0
        server.wait_for(lambda _: heartbeats.failures)
        with pytest.raises(ConnectionRefusedError):
            RawClient(server)
        server.start()
        assert server.port == port
        assert client.db.c.find_one() == {"_id": 1}


def test_open_connections_follow_the_clients(server: ScriptedServer) -> None:
    with RawClient(server):
        server.wait_for(lambda server: server.open_connections == 1)
    server.wait_for(lambda server: server.open_connections == 0)


def test_what_does_not_come_is_an_assertion_error(server: ScriptedServer) -> None:
    with client_of(server) as client:
        client.admin.command("ping")
        with pytest.raises(AssertionError, match=r"not within 0\.01 s; standalone .*ping"):
            server.wait_for(lambda _: False, timeout=0.01)


def test_nothing_is_left_behind() -> None:
    def use() -> int | None:
        with ScriptedServer() as server, RawClient(server) as raw, RawClient(server):
            raw.send_command({"ping": 1})
            raw.receive()
            server.freeze("ping")
            raw.send_command({"ping": 1})
            server.wait_for(lambda server: len(server.commands) == 2 and server.open_connections == 2)
        return server.port

    use()
    gc.collect()
    files = open_files()
    port = use()
    gc.collect()
    assert open_files() <= files  # the monitors of other tests' clients may still be closing theirs
    assert not server_threads()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port or 0))


def open_files() -> int:
    directory = Path("/dev/fd")
    return len(list(directory.iterdir())) if directory.exists() else 0


# Replica sets.


def test_a_replica_set_has_a_primary_and_one_set_of_documents() -> None:
    with ScriptedReplicaSet() as replica_set, client_of(replica_set, readPreference="secondary") as client:
        client.db.c.insert_one({"_id": 1})
        assert client.db.c.find_one() == {"_id": 1}
        primary, *secondaries = replica_set
        assert replica_set.primary is primary
        assert client.primary == primary.address
        assert [len(each.received("insert")) for each in replica_set] == [1, 0, 0]
        assert sum(len(each.received("find")) for each in secondaries) == 1


def test_a_set_without_a_primary_is_heard_of_at_once_and_takes_no_writes() -> None:
    with ScriptedReplicaSet(members=2) as replica_set, client_of(replica_set, serverSelectionTimeoutMS=100) as client:
        client.db.c.insert_one({"_id": 1})
        old = replica_set.members[0]
        replica_set.step_down()
        assert replica_set.primary is None
        old.wait_for(lambda _: client.primary is None)
        with pytest.raises(ServerSelectionTimeoutError):
            client.db.c.insert_one({"_id": 2})


def test_an_election_is_followed() -> None:
    with ScriptedReplicaSet() as replica_set, client_of(replica_set) as client:
        client.db.c.insert_one({"_id": 1})
        first = client.admin.command("hello")["electionId"]
        elected = replica_set.members[2]
        replica_set.elect(elected)
        elected.wait_for(lambda _: client.primary == elected.address)
        client.db.c.insert_one({"_id": 2})
        assert len(elected.received("insert")) == 1
        assert client.admin.command("hello")["electionId"] > first


def test_a_write_that_meets_a_step_down_is_retried_on_the_new_primary(background: ThreadPoolExecutor) -> None:
    with ScriptedReplicaSet() as replica_set, client_of(replica_set) as client:
        client.db.c.insert_one({"_id": 1})
        old, new, _ = replica_set
        frozen = old.freeze("insert")
        insert = background.submit(client.db.c.insert_one, {"_id": 2})
        assert frozen.reached.wait(5)
        replica_set.elect(new)
        frozen.release()
        assert insert.result(5).inserted_id == 2
        assert [len(each.received("insert")) for each in (old, new)] == [2, 1]


# Asyncio.


def async_client_of(server: ScriptedServer | ScriptedReplicaSet) -> Any:
    from pymongo import AsyncMongoClient

    return AsyncMongoClient(server.uri, serverSelectionTimeoutMS=3000)


@needs_asyncio
async def test_an_asyncio_client_is_served(server: ScriptedServer) -> None:
    async with async_client_of(server) as client:
        await client.db.c.insert_many([{"_id": i} for i in range(5)])
        assert [each["_id"] async for each in client.db.c.find(batch_size=2)] == [0, 1, 2, 3, 4]
        exhaust = client.db.c.find(batch_size=2, cursor_type=CursorType.EXHAUST)
        assert [each["_id"] async for each in exhaust] == [0, 1, 2, 3, 4]
        server.fail("ping", code=2)
        with pytest.raises(OperationFailure):
            await client.admin.command("ping")


@pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="a cancellation reaches no command before PyMongo 4.11")
async def test_a_cancelled_task_leaves_its_frozen_command(server: ScriptedServer) -> None:
    frozen = server.freeze("find")
    async with async_client_of(server) as client:
        task = asyncio.ensure_future(client.db.c.find_one())
        assert await asyncio.to_thread(frozen.reached.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_for, lambda _: frozen.held == 0)


@needs_asyncio
async def test_an_asyncio_client_follows_an_election() -> None:
    with ScriptedReplicaSet(members=2) as replica_set:
        async with async_client_of(replica_set) as client:
            await client.db.c.insert_one({"_id": 1})
            elected = replica_set.members[1]
            replica_set.elect(elected)
            await asyncio.to_thread(elected.wait_for, has_learned(client, elected.address))
            await client.db.c.insert_one({"_id": 2})
            assert len(elected.received("insert")) == 1


def has_learned(client: Any, address: tuple[str, int | None]) -> Callable[[ScriptedServer], bool]:
    def learned(_: ScriptedServer) -> bool:
        servers = client.topology_description.server_descriptions()
        return bool(servers[address].server_type_name == "RSPrimary")

    return learned
