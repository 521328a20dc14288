"""A MongoDB server for tests: it speaks the wire protocol, keeps documents in memory, and misbehaves as told."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import struct
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

import bson
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.timestamp import Timestamp

Document = dict[str, Any]
Role = Literal["standalone", "primary", "secondary", "arbiter", "other", "ghost", "mongos", "load_balanced", "unknown"]
Answer = Mapping[str, Any] | Callable[[Document], Mapping[str, Any]]

# ---------------------------------------------------------------------------------------------------------------------
# The wire protocol: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
CHECKSUM_PRESENT, MORE_TO_COME, EXHAUST_ALLOWED = 1 << 0, 1 << 1, 1 << 16
_HEADER = struct.Struct("<iiii")
_request_ids = itertools.count(1)


@dataclass(frozen=True)
class Request:
    """One message from a client: its command with the document sequences merged in."""

    request_id: int
    op_code: int
    flags: int
    command: Document

    def reply(self, document: Document, response_to: int, *, more_to_come: bool) -> tuple[int, bytes]:
        """The id and the bytes of a reply to this request."""
        if self.op_code == OP_QUERY:
            op_code, body = OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(document)
        else:
            op_code, body = OP_MSG, struct.pack("<IB", MORE_TO_COME * more_to_come, 0) + bson.encode(document)
        request_id = next(_request_ids)
        return request_id, _HEADER.pack(_HEADER.size + len(body), request_id, response_to, op_code) + body


def read_request(sock: socket.socket) -> Request:
    """The next request on the socket.

    Raises:
        ConnectionError: The client hung up, or sent something else.
    """
    length, request_id, _, op_code = _HEADER.unpack(_receive(sock, _HEADER.size))
    body = _receive(sock, length - _HEADER.size)
    if op_code == OP_MSG:
        (flags,) = struct.unpack_from("<I", body)
        return Request(request_id, op_code, flags, _op_msg_command(body[4 : -4 if flags & CHECKSUM_PRESENT else None]))
    if op_code == OP_QUERY:
        return Request(request_id, op_code, 0, _op_query_command(body))
    raise ConnectionAbortedError(f"unexpected op code {op_code}")


def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("the client hung up")
        data += chunk
    return bytes(data)


def _op_msg_command(sections: bytes) -> Document:
    command: Document = {}
    sequences: Document = {}
    position = 0
    while position < len(sections):
        kind = sections[position]
        position += 1
        (size,) = struct.unpack_from("<i", sections, position)
        section = sections[position : position + size]
        position += size
        if kind == 0:
            command = bson.decode(section)
        else:
            end_of_name = section.index(b"\0", 4)
            sequences[section[4:end_of_name].decode()] = bson.decode_all(section[end_of_name + 1 :])
    return command | sequences


def _op_query_command(body: bytes) -> Document:
    start = body.index(b"\0", 4) + 1 + 8  # flags, namespace, skip and limit come before the document
    (size,) = struct.unpack_from("<i", body, start)
    query = bson.decode(body[start : start + size])
    command: Document = query.get("$query", query)
    return command | {"$db": body[4:].split(b".", 1)[0].decode()}


# ---------------------------------------------------------------------------------------------------------------------
# The script: what a test wants otherwise.

_CODE_NAMES = {
    2: "BadValue", 6: "HostUnreachable", 7: "HostNotFound", 13: "Unauthorized", 18: "AuthenticationFailed",
    26: "NamespaceNotFound", 43: "CursorNotFound", 50: "MaxTimeMSExpired", 59: "CommandNotFound",
    64: "WriteConcernFailed", 89: "NetworkTimeout", 91: "ShutdownInProgress", 100: "UnsatisfiableWriteConcern",
    112: "WriteConflict", 121: "DocumentValidationFailure", 189: "PrimarySteppedDown", 251: "NoSuchTransaction",
    262: "ExceededTimeLimit", 391: "ReauthenticationRequired", 462: "IngressRequestRateLimitExceeded",
    9001: "SocketException", 10107: "NotWritablePrimary", 11000: "DuplicateKey", 11600: "InterruptedAtShutdown",
    11602: "InterruptedDueToReplStateChange", 13435: "NotPrimaryNoSecondaryOk", 13436: "NotPrimaryOrSecondary",
}  # fmt: skip
_STATE_CHANGES = frozenset({91, 189, 10058, 10107, 11600, 11602, 13435, 13436})
_ALIASES = {"ismaster": "hello", "isMaster": "hello", "buildinfo": "buildInfo", "findandmodify": "findAndModify"}


def command_name(command: Mapping[str, Any]) -> str:
    """The name a command is scripted under: its first key, with ``hello`` for all of hello's names."""
    return _scripted_name(next(iter(command), ""))


def _scripted_name(name: str) -> str:
    return _ALIASES.get(name, name)


def error(code: int | None, errmsg: str, code_name: str | None = None, labels: Iterable[str] = ()) -> Document:
    """An error reply; without a code name it is the server's own for the code, with an empty one there is none."""
    if code_name is None and code is not None:
        code_name = _CODE_NAMES.get(code, f"Location{code}")
    fields = {"code": code, "codeName": code_name or None, "errorLabels": list(labels) or None}
    return {"ok": 0.0, "errmsg": errmsg} | {name: value for name, value in fields.items() if value is not None}


@dataclass
class Rule:
    """What holds for the next ``times`` commands of these names, or for all of them."""

    names: frozenset[str]
    times: int | None

    def holds_for(self, name: str) -> bool:
        return name in self.names and self.times != 0


@dataclass
class Failure(Rule):
    """How commands fail, in the order of the server's ``failCommand``: wait, hang up, error, write-concern error."""

    delay: float = 0.0
    close_connection: bool = False
    error: Document | None = None
    write_errors: Sequence[Mapping[str, Any]] = ()
    write_concern_error: Mapping[str, Any] | None = None
    labels: Sequence[str] = ()

    def answer(self, command: Document, run: Callable[[Document], Document]) -> Document:
        """The failed answer; what did not fail of the command is run."""
        if self.error is not None:
            return dict(self.error)
        reply = self._with_write_errors(command, run) if self.write_errors else dict(run(command))
        if self.write_concern_error is not None:
            reply["writeConcernError"] = dict(self.write_concern_error)
        if self.labels:
            reply["errorLabels"] = list(self.labels)
        return reply

    def _with_write_errors(self, command: Document, run: Callable[[Document], Document]) -> Document:
        errors: list[Document] = [{"index": 0, "errmsg": "write error"} | dict(each) for each in self.write_errors]
        failed = {each["index"] for each in errors}
        statements = next((key for key in ("documents", "updates", "deletes") if key in command), None)
        if statements is None:
            return {"ok": 1.0, "n": 0, "writeErrors": errors}
        written = [
            statement
            for index, statement in enumerate(command[statements])
            if index not in failed and not (command.get("ordered", True) and index > min(failed))
        ]
        return {"nModified": 0} | run(command | {statements: written}) | {"writeErrors": errors}


@dataclass
class Freeze(Rule):
    """Commands that are held until their release.

    Attributes:
        reached: Set as soon as a command is held.
        held: How many commands are held now.
    """

    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)
    reached: threading.Event = field(default_factory=threading.Event)
    released: bool = False
    held: int = 0

    def release(self) -> None:
        """Answer the held commands, and hold no others."""
        with self._changed:
            self.released, self.times = True, 0
            self._changed.notify_all()

    def hold(self, given_up: Callable[[], bool]) -> None:
        """Wait for the release, or until the client is gone."""
        with self._changed:
            self.held += 1
            self.reached.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.released or given_up())
            self.held -= 1


_AnyRule = TypeVar("_AnyRule", bound=Rule)


def use(rules: Iterable[_AnyRule], name: str) -> _AnyRule | None:
    """The first rule that holds for the next command of the name, which counts."""
    rule = next((rule for rule in rules if rule.holds_for(name)), None)
    if rule is not None and rule.times is not None:
        rule.times -= 1
    return rule


class Script:
    """The rules in force. Its user holds the server's lock."""

    def __init__(self) -> None:
        self.freezes: list[Freeze] = []
        self.failures: list[Failure] = []
        self.replies: dict[str, Answer | deque[Answer]] = {}

    def clear(self) -> None:
        """Forget all rules; what is held is answered."""
        for freeze in self.freezes:
            freeze.release()
        self.freezes, self.failures, self.replies = [], [], {}

    def interrupts(self, name: str) -> bool:
        """Whether a rule waits for the next command of the name: a streaming hello doesn't let it wait."""
        rules: Iterable[Rule] = itertools.chain(self.freezes, self.failures)
        replies = self.replies.get(name)
        return any(rule.holds_for(name) for rule in rules) or (isinstance(replies, deque) and bool(replies))

    def next_reply(self, name: str) -> Answer | None:
        reply = self.replies.get(name)
        if not isinstance(reply, deque):
            return reply
        return reply.popleft() if reply else None


# ---------------------------------------------------------------------------------------------------------------------
# The default answers.


@dataclass(frozen=True)
class SetView:
    """What a member knows of its replica set."""

    name: str
    hosts: tuple[str, ...]
    primary: str | None
    term: int = 1

    @property
    def election_id(self) -> ObjectId:
        """Grows with each election, as the server's does."""
        return ObjectId(f"7fffffff{self.term:016x}")


class Hello:
    """What a server says of itself, and the version of it that awaited hellos compare."""

    def __init__(self, role: Role, max_wire_version: int) -> None:
        self.role = role
        self.max_wire_version = max_wire_version
        self.address = ""
        self.set_view = SetView("rs0", (), None)
        self.topology_version: Document
        self._service_id = ObjectId()
        self.restart()

    def restart(self) -> None:
        self.topology_version = {"processId": ObjectId(), "counter": Int64(0)}

    def change(self) -> None:
        self.topology_version = self.next_topology_version

    @property
    def next_topology_version(self) -> Document:
        return self.topology_version | {"counter": Int64(self.topology_version["counter"] + 1)}

    @property
    def writable(self) -> bool:
        return self.role in ("standalone", "primary", "mongos", "load_balanced")

    @property
    def in_cluster(self) -> bool:
        return self.role not in ("standalone", "ghost", "unknown")

    def document(self, command: Document) -> Document:
        """The answer to hello, or to isMaster."""
        if self.role == "unknown":
            return error(13436, "node is not in primary or recovering state")
        return {
            "helloOk": True,
            "isWritablePrimary" if "hello" in command else "ismaster": self.writable,
            "topologyVersion": self.topology_version,
            **self._role_fields(command),
            "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "localTime": datetime.now(timezone.utc),
            "logicalSessionTimeoutMinutes": 30,
            "minWireVersion": 0,
            "maxWireVersion": self.max_wire_version,
            "readOnly": False,
            "ok": 1.0,
        }

    def _role_fields(self, command: Document) -> Document:
        if self.role == "standalone":
            return {}
        if self.role == "ghost":
            return {"isreplicaset": True, "secondary": False}
        if self.role in ("mongos", "load_balanced"):
            behind_balancer = self.role == "load_balanced" and command.get("loadBalanced")
            return {"msg": "isdbgrid"} | ({"serviceId": self._service_id} if behind_balancer else {})
        view = self.set_view
        fields: Document = {
            "hosts": list(view.hosts) or [self.address],
            "setName": view.name,
            "setVersion": 1,
            "me": self.address,
            "secondary": self.role == "secondary",
            "lastWrite": {"lastWriteDate": datetime.now(timezone.utc)},
        }
        if self.role == "arbiter":
            fields["arbiterOnly"] = True
        primary = self.address if self.role == "primary" else view.primary
        if primary is not None:
            fields["primary"] = primary
        if self.role == "primary":
            fields["electionId"] = view.election_id
        return fields


class Store:
    """Collections of documents, found by the equality of their fields. Its user holds ``lock``.

    A stored document is replaced, never changed: it may be in a reply that another thread is encoding.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.collections: dict[str, dict[bytes, Document]] = {}

    def insert(self, namespace: str, document: Document) -> Document | None:
        """Insert the document, or give the write error of its duplicate key."""
        identity = document.setdefault("_id", ObjectId())
        documents = self.collections.setdefault(namespace, {})
        if _key(document) not in documents:
            documents[_key(document)] = document
            return None
        message = f"E11000 duplicate key error collection: {namespace} index: _id_ dup key: {{ _id: {identity!r} }}"
        return {"code": 11000, "keyPattern": {"_id": 1}, "keyValue": {"_id": identity}, "errmsg": message}

    def find(self, namespace: str, query: Document) -> list[Document]:
        """The documents whose fields equal the query's; what is no plain value in the query is ignored."""
        documents, plain = self.collections.get(namespace, {}), _plain_fields(query)
        if set(plain) == {"_id"}:
            return [documents[_key(plain)]] if _key(plain) in documents else []
        return [each for each in documents.values() if all(each.get(key) == plain[key] for key in plain)]

    def update(self, namespace: str, query: Document, change: Any, *, multi: bool, upsert: bool) -> Document:
        """Update what is found: ``$set``, ``$inc`` and replacements; other operators change nothing."""
        before = self.find(namespace, query)[: None if multi else 1]
        if not before and upsert:
            document = _updated(_plain_fields(query), change)
            self.insert(namespace, document)
            return {"n": 1, "nModified": 0, "upserted": document["_id"]}
        after = [_updated(document, change) for document in before]
        self.collections.setdefault(namespace, {}).update((_key(document), document) for document in after)
        return {"n": len(before), "nModified": sum(old != new for old, new in zip(before, after, strict=True))}

    def delete(self, namespace: str, query: Document, limit: int) -> int:
        """Delete what is found, all of it for a limit of 0, and count it."""
        found = self.find(namespace, query)[: limit or None]
        for document in found:
            del self.collections[namespace][_key(document)]
        return len(found)


def _key(document: Document) -> bytes:
    return bson.encode({"_id": document["_id"]})


def _plain_fields(query: Document) -> Document:
    return {key: value for key, value in query.items() if not key.startswith("$") and not _has_operators(value)}


def _has_operators(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key.startswith("$") for key in value)


def _updated(document: Document, change: Any) -> Document:
    if isinstance(change, list):  # a pipeline
        return document
    changes: Document = dict(change)
    if not _has_operators(changes):
        return ({"_id": document["_id"]} if "_id" in document else {}) | changes
    increments = {key: document.get(key, 0) + by for key, by in changes.get("$inc", {}).items()}
    return document | increments | dict(changes.get("$set", {}))


class DefaultAnswers:
    """What a server answers that nobody scripted."""

    _WRITES = frozenset({"insert", "update", "delete", "findAndModify", "bulkWrite", "create", "createIndexes", "drop"})
    _READS = frozenset({"find", "aggregate", "count", "distinct", "listCollections", "listIndexes", "explain"})

    def __init__(self, hello: Hello, store: Store) -> None:
        self._hello = hello
        self._store = store
        self._cursors: dict[int, tuple[str, list[Document]]] = {}
        self._cursor_ids = itertools.count(1_000_001)
        self._answers: dict[str, Callable[[Document], Document]] = {
            "hello": hello.document,
            "buildInfo": self._build_info,
            "saslStart": lambda command: {"conversationId": 1, "done": True, "payload": b""},
            "insert": self._insert,
            "update": self._update,
            "delete": self._delete,
            "findAndModify": self._find_and_modify,
            "bulkWrite": self._bulk_write,
            "find": self._find,
            "aggregate": self._aggregate,
            "getMore": self._get_more,
            "killCursors": self._kill_cursors,
            "count": lambda command: {"n": len(self._selected(command, command.get("query")))},
            "distinct": self._distinct,
            "listCollections": self._list_collections,
            "listDatabases": self._list_databases,
            "listIndexes": self._list_indexes,
            "createIndexes": lambda command: {"numIndexesBefore": 1, "numIndexesAfter": 1 + len(command["indexes"])},
            "drop": self._drop,
            "explain": self._explain,
        }
        for name in ("ping", "endSessions", "create", "commitTransaction", "abortTransaction"):
            self._answers[name] = lambda command: {}

    def __call__(self, command: Document) -> Document:
        name = command_name(command)
        answer = self._answers.get(name)
        if answer is None or (name == "bulkWrite" and self._hello.max_wire_version < 25):
            return error(59, f"no such command: '{next(iter(command), '')}'")
        if name in self._WRITES and not self._hello.writable:
            labels = ["RetryableWriteError"] if "txnNumber" in command else []
            return error(10107, "not primary", labels=labels) | {"topologyVersion": self._hello.topology_version}
        if name in self._READS and not self._hello.writable and not self._may_read_secondary(command):
            return error(13435, "not primary and secondaryOk=false") | {"topologyVersion": self._hello.topology_version}
        with self._store.lock:
            return {"ok": 1.0} | answer(command)

    def forget_cursors(self) -> None:
        with self._store.lock:
            self._cursors.clear()

    @staticmethod
    def _may_read_secondary(command: Document) -> bool:
        mode: str = command.get("$readPreference", {}).get("mode", "primary")
        return mode != "primary"

    @staticmethod
    def _namespace(command: Document) -> str:
        return f"{command['$db']}.{next(iter(command.values()))}"

    def _build_info(self, command: Document) -> Document:
        versions = {25: "8.0.0", 21: "7.0.0", 17: "6.0.0", 13: "5.0.0", 0: "4.4.0"}
        version = next(text for wire, text in versions.items() if wire <= self._hello.max_wire_version)
        numbers = [int(number) for number in version.split(".")]
        return {"version": version, "versionArray": [*numbers, 0], "maxBsonObjectSize": 16 * 1024 * 1024}

    # Writes.

    def _insert(self, command: Document) -> Document:
        namespace = self._namespace(command)
        n, errors = 0, []
        for index, document in enumerate(command["documents"]):
            duplicate = self._store.insert(namespace, document)
            if duplicate is None:
                n += 1
                continue
            errors.append({"index": index} | duplicate)
            if command.get("ordered", True):
                break
        return {"n": n} | ({"writeErrors": errors} if errors else {})

    def _update(self, command: Document) -> Document:
        namespace = self._namespace(command)
        n, modified, upserted = 0, 0, []
        for index, statement in enumerate(command["updates"]):
            result = self._store.update(
                namespace,
                statement["q"],
                statement["u"],
                multi=statement.get("multi", False),
                upsert=statement.get("upsert", False),
            )
            n += result["n"]
            modified += result["nModified"]
            if "upserted" in result:
                upserted.append({"index": index, "_id": result["upserted"]})
        return {"n": n, "nModified": modified} | ({"upserted": upserted} if upserted else {})

    def _delete(self, command: Document) -> Document:
        namespace = self._namespace(command)
        return {"n": sum(self._store.delete(namespace, each["q"], each["limit"]) for each in command["deletes"])}

    def _find_and_modify(self, command: Document) -> Document:
        namespace, query = self._namespace(command), command.get("query", {})
        found = self._store.find(namespace, query)[:1]
        if command.get("remove"):
            n, value = self._store.delete(namespace, query, 1), found
        else:
            upsert = command.get("upsert", False)
            result = self._store.update(namespace, query, command["update"], multi=False, upsert=upsert)
            identity = found[0]["_id"] if found else result.get("upserted")
            n, value = result["n"], self._store.find(namespace, {"_id": identity}) if command.get("new") else found
        return {"lastErrorObject": {"n": n, "updatedExisting": bool(found)}, "value": value[0] if value else None}

    def _bulk_write(self, command: Document) -> Document:
        counts = dict.fromkeys(("nErrors", "nInserted", "nUpserted", "nMatched", "nModified", "nDeleted"), 0)
        results: list[Document] = []
        for index, operation in enumerate(command["ops"]):
            kind, position = next(iter(operation.items()))
            result = self._bulk_operation(kind, command["nsInfo"][position]["ns"], operation)
            failed, upserted = result.pop("writeErrors", []), result.pop("upserted", [])
            counts["nErrors"] += len(failed)
            counts["nUpserted"] += len(upserted)
            counts["nModified"] += result.get("nModified", 0)
            written = {"insert": "nInserted", "update": "nMatched", "delete": "nDeleted"}[kind]
            counts[written] += result["n"] - len(upserted)
            if failed or not command.get("errorsOnly"):
                details = failed[0] if failed else {"upserted": upserted[0]} if upserted else {}
                results.append(result | details | {"ok": 0.0 if failed else 1.0, "idx": index})
            if failed and command.get("ordered", True):
                break
        return {"cursor": {"id": Int64(0), "firstBatch": results, "ns": "admin.$cmd.bulkWrite"}} | counts

    def _bulk_operation(self, kind: str, namespace: str, operation: Document) -> Document:
        database, _, collection = namespace.partition(".")
        command = {kind: collection, "$db": database}
        if kind == "insert":
            return self._insert(command | {"documents": [operation["document"]]})
        if kind == "delete":
            limit = 0 if operation.get("multi") else 1
            return self._delete(command | {"deletes": [{"q": operation["filter"], "limit": limit}]})
        return self._update(
            command | {"updates": [operation | {"q": operation["filter"], "u": operation["updateMods"]}]}
        )

    def _drop(self, command: Document) -> Document:
        namespace = self._namespace(command)
        if self._store.collections.pop(namespace, None) is None:
            return error(26, "ns not found")
        return {"nIndexesWas": 1, "ns": namespace}

    # Reads.

    def _selected(self, command: Document, query: Document | None) -> list[Document]:
        found = self._store.find(self._namespace(command), query or {})[command.get("skip", 0) :]
        return found[: abs(command.get("limit", 0)) or None]

    def _find(self, command: Document) -> Document:
        return self._cursor(self._namespace(command), self._selected(command, command.get("filter")), command)

    def _aggregate(self, command: Document) -> Document:
        """Runs $match, $skip, $limit and the counts of PyMongo; other stages pass the documents on."""
        namespace = self._namespace(command)
        documents = self._store.find(namespace, {})
        for stage in command["pipeline"]:
            operator, value = next(iter(stage.items()))
            if operator == "$match":
                matched = self._store.find(namespace, value)
                documents = [each for each in documents if each in matched]
            elif operator == "$skip":
                documents = documents[value:]
            elif operator == "$limit":
                documents = documents[:value]
            elif operator == "$group" and set(value) == {"_id", "n"}:
                documents = [{"_id": value["_id"], "n": len(documents)}] if documents else []
        return self._cursor(namespace, documents, command.get("cursor", {}))

    def _cursor(self, namespace: str, documents: list[Document], options: Document) -> Document:
        size = options.get("batchSize", 101)
        batch, rest = documents[:size], documents[size:]
        cursor_id = 0
        if rest and not options.get("singleBatch"):
            cursor_id = next(self._cursor_ids)
            self._cursors[cursor_id] = namespace, rest
        return {"cursor": {"firstBatch": batch, "id": Int64(cursor_id), "ns": namespace}}

    def _get_more(self, command: Document) -> Document:
        cursor_id = command["getMore"]
        if cursor_id not in self._cursors:
            return error(43, f"cursor id {cursor_id} not found")
        namespace, documents = self._cursors.pop(cursor_id)
        size = command.get("batchSize") or len(documents)
        batch, rest = documents[:size], documents[size:]
        if rest:
            self._cursors[cursor_id] = namespace, rest
        return {"cursor": {"nextBatch": batch, "id": Int64(cursor_id if rest else 0), "ns": namespace}}

    def _kill_cursors(self, command: Document) -> Document:
        killed = [each for each in command["cursors"] if self._cursors.pop(each, None) is not None]
        missing = [each for each in command["cursors"] if each not in killed]
        return {"cursorsKilled": killed, "cursorsNotFound": missing, "cursorsAlive": [], "cursorsUnknown": []}

    def _distinct(self, command: Document) -> Document:
        values: list[Any] = []
        for document in self._selected(command, command.get("query")):
            if command["key"] in document and document[command["key"]] not in values:
                values.append(document[command["key"]])
        return {"values": values}

    def _list_collections(self, command: Document) -> Document:
        prefix = command["$db"] + "."
        names = [name.removeprefix(prefix) for name in self._store.collections if name.startswith(prefix)]
        entries: list[Document] = [{"name": name, "type": "collection"} for name in names]
        return self._cursor(f"{command['$db']}.$cmd.listCollections", entries, command.get("cursor", {}))

    def _list_indexes(self, command: Document) -> Document:
        indexes: list[Document] = [{"v": 2, "key": {"_id": 1}, "name": "_id_"}]
        return self._cursor(self._namespace(command), indexes, command.get("cursor", {}))

    def _list_databases(self, command: Document) -> Document:
        names = sorted({namespace.split(".", 1)[0] for namespace in self._store.collections})
        return {"databases": [{"name": name, "sizeOnDisk": 1, "empty": False} for name in names], "totalSize": 1}

    def _explain(self, command: Document) -> Document:
        explained = command["explain"]
        namespace = f"{command['$db']}.{next(iter(explained.values()))}"
        planner = {"namespace": namespace, "winningPlan": {"stage": "COLLSCAN"}, "rejectedPlans": []}
        return {"explainVersion": "1", "queryPlanner": planner, "command": explained}


# ---------------------------------------------------------------------------------------------------------------------
# The server.


@dataclass(frozen=True)
class ReceivedCommand:
    """A command as it arrived; the replies that an exhaust cursor or a streaming hello adds are none."""

    name: str
    document: Document
    connection_id: int


class _Connection:
    """One client: a thread reads its requests, and knows so when it hangs up; another answers them."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, connection_id: int) -> None:
        self.connection_id = connection_id
        self.closed = False
        self._server = server
        self._sock = sock
        self._changed = server._changed
        self._inbox: deque[Request] = deque()
        name = f"scripted-server-connection-{connection_id}"
        self._reader = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)
        self._worker = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._reader.start()
        self._worker.start()

    def hang_up(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        # A callable reply runs in the worker and may stop the server, or may never come back.
        if threading.current_thread() is not self._worker:
            self._worker.join(timeout=2)

    def _read(self) -> None:
        try:
            with contextlib.suppress(OSError):
                while True:
                    request = read_request(self._sock)
                    with self._changed:
                        self._inbox.append(request)
                        self._changed.notify_all()
        finally:
            self.hang_up()

    def _work(self) -> None:
        try:
            with contextlib.suppress(OSError):
                while (request := self._next_request()) is not None:
                    self._serve(request)
        finally:
            self.hang_up()
            self._reader.join()
            self._sock.close()
            self._server._forget(self)

    def _next_request(self) -> Request | None:
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self.closed)
            return None if self.closed else self._inbox.popleft()

    def _serve(self, request: Request) -> None:
        command = request.command
        self._server._record(command, self)
        response_to = request.request_id
        while True:
            reply, following = self._server._answer(command, self)
            if request.flags & MORE_TO_COME:
                return
            more_to_come = bool(request.flags & EXHAUST_ALLOWED) and following is not None
            # Each reply of a stream answers the one before it, as if the client had asked for it.
            response_to, message = request.reply(reply, response_to, more_to_come=more_to_come)
            self._sock.sendall(message)
            self._server._sent(reply)
            if not more_to_come or following is None:
                return
            command = following


class ScriptedServer:
    """A MongoDB server on the loopback interface, or on a Unix socket; it listens from its creation until ``close()``.

    Without a script it answers as a small healthy server. ``freeze`` comes before ``fail``, and that before ``reply``.
    ``hello`` stands for all names of that command; a rule for it is heard by streaming heartbeats at once. New
    connections and a driver's round-trip monitor say hello too: a rule that is to meet the heartbeat needs
    ``times=None``.

    Args:
        role: What hello says the server is.
        unix_socket: The path of a Unix socket to listen on, which ends in ``.sock``.
        server_connection_ids: Whether hello tells the ``connectionId``.
        max_wire_version: 21 is MongoDB 7.0, 25 is 8.0 and has ``bulkWrite``.
        store: Where the documents are; servers that share it are replicated.
    """

    def __init__(
        self,
        *,
        role: Role = "standalone",
        unix_socket: str | os.PathLike[str] | None = None,
        server_connection_ids: bool = True,
        max_wire_version: int = 21,
        store: Store | None = None,
    ) -> None:
        self.host = "127.0.0.1" if unix_socket is None else os.fspath(unix_socket)
        self.port: int | None = None
        self._hello = Hello(role, max_wire_version)
        self._defaults = DefaultAnswers(self._hello, store or Store())
        self._script = Script()
        self._fail_point: Failure | None = None
        self._server_connection_ids = server_connection_ids
        self._is_unix = unix_socket is not None
        self._changed = threading.Condition(threading.RLock())
        self._commands: list[ReceivedCommand] = []
        self._connections: set[_Connection] = set()
        self._connection_ids = itertools.count(1)
        self._clock = itertools.count(1)
        self._started_at = int(time.time())
        self._acceptor: threading.Thread | None = None
        self._waker: socket.socket | None = None
        self.start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is, and what it has seen.

    @property
    def address(self) -> tuple[str, int | None]:
        """As PyMongo's events tell it: the port of a Unix socket is None."""
        return self.host, self.port

    @property
    def uri(self) -> str:
        """A connection string; it connects directly where no driver would find a usable server otherwise."""
        location = urllib.parse.quote(self.host, safe="") if self._is_unix else f"{self.host}:{self.port}"
        if self.role == "load_balanced":
            return f"mongodb://{location}/?loadBalanced=true"
        found_by_discovery = self.role in ("standalone", "mongos") or (self.role == "primary" and not self._is_unix)
        return f"mongodb://{location}/" + ("" if found_by_discovery else "?directConnection=true")

    @property
    def role(self) -> Role:
        """What hello says the server is; streaming heartbeats hear of a new role at once."""
        return self._hello.role

    @role.setter
    def role(self, role: Role) -> None:
        self._become(role, self._hello.set_view)

    @property
    def commands(self) -> list[ReceivedCommand]:
        """What was received, in order, hello included."""
        with self._changed:
            return list(self._commands)

    def received(self, name: str) -> list[ReceivedCommand]:
        """The received commands of one name, where ``hello`` is all of its names."""
        return [each for each in self.commands if command_name(each.document) == name]

    @property
    def open_connections(self) -> int:
        """How many client connections are open, those of monitors included."""
        with self._changed:
            return len(self._connections)

    def wait_for(self, predicate: Callable[[ScriptedServer], object], timeout: float = 20.0) -> None:
        """Wait until the predicate is true of this server.

        Raises:
            AssertionError: It was not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not predicate(self):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    received = ", ".join(each.name for each in self._commands[-20:]) or "none"
                    raise AssertionError(
                        f"not within {timeout} s; {self.role} {self.host}:{self.port}, "
                        f"open connections: {len(self._connections)}, last commands received: {received}"
                    )
                # A predicate may look at more than this server, of which no notification comes.
                self._changed.wait(min(remaining, 0.05))

    # The script.

    def reply(self, name: str, answer: Answer | Sequence[Answer]) -> None:
        """Answer commands of this name so, in place of an earlier ``reply``.

        Args:
            name: The command's name.
            answer: A document (``ok: 1`` is added where it has no ``ok``); or a callable that gets the command and
                gives one, and may raise ConnectionError to drop the connection; or a list of these, one for each
                command, after which the default answers again.
        """
        name = _scripted_name(name)
        with self._changed:
            self._script.replies[name] = deque(answer) if isinstance(answer, Sequence) else answer
            if name == "hello":
                self._hello.change()
            self._changed.notify_all()

    def fail(
        self,
        *names: str,
        times: int | None = 1,
        code: int | None = None,
        code_name: str | None = None,
        errmsg: str | None = None,
        labels: Sequence[str] = (),
        write_errors: Sequence[Mapping[str, Any]] | None = None,
        write_concern_error: Mapping[str, Any] | None = None,
        close_connection: bool = False,
        delay: float = 0.0,
    ) -> Failure:
        """Fail the next commands of these names, as the server's ``failCommand`` fail point does.

        Args:
            names: The commands' names.
            times: How many commands; None is all.
            code: The error's code. One of a changed state, as 10107 NotWritablePrimary, is a step-down that is over
                with its reply; while hello is frozen, the driver doesn't hear that it is over.
            code_name: The error's name; None is the server's own for the code, an empty one leaves it out.
            errmsg: The error's message.
            labels: The error labels.
            write_errors: The statements that fail, by ``index``; the others are run.
            write_concern_error: What the reply to the command, which is run, has for ``writeConcernError``.
            close_connection: Hang up in place of an answer.
            delay: Seconds before the answer; with nothing else the answer is the usual one.
        """
        otherwise = write_errors or write_concern_error or close_connection or delay
        is_error = code is not None or code_name is not None or errmsg is not None or not otherwise
        message = "Failing command via 'failCommand' failpoint" if errmsg is None else errmsg
        failure = Failure(
            frozenset(map(_scripted_name, names)),
            times,
            delay=delay,
            close_connection=close_connection,
            error=error(code, message, code_name, labels) if is_error else None,
            write_errors=write_errors or (),
            write_concern_error=write_concern_error,
            labels=labels,
        )
        with self._changed:
            self._script.failures.append(failure)
            self._changed.notify_all()
        return failure

    def freeze(self, *names: str, times: int | None = 1) -> Freeze:
        """Hold the next commands of these names, all of them for ``times=None``, until they are released."""
        freeze = Freeze(frozenset(map(_scripted_name, names)), times, self._changed)
        with self._changed:
            self._script.freezes.append(freeze)
            self._changed.notify_all()
        return freeze

    def reset(self) -> None:
        """Forget the script; what is frozen is released."""
        with self._changed:
            self._script.clear()
            self._changed.notify_all()

    def default_answer(self, command: Document) -> Document:
        """What the server answers without a script, for use in a callable reply."""
        if command_name(command) == "configureFailPoint":
            return self._configure_fail_point(command)
        return self._defaults(command)

    def _configure_fail_point(self, command: Document) -> Document:
        if command["configureFailPoint"] != "failCommand":
            return error(2, f"no such fail point: {command['configureFailPoint']}")
        if self._fail_point is not None:
            self._fail_point.times = 0
        mode, data = command["mode"], command.get("data", {})
        if mode != "off":
            self._fail_point = self.fail(
                *data["failCommands"],
                times=None if mode == "alwaysOn" else mode["times"],
                code=data.get("errorCode"),
                labels=data.get("errorLabels", ()),
                write_concern_error=data.get("writeConcernError"),
                close_connection=data.get("closeConnection", False),
                delay=data.get("blockTimeMS", 0) / 1000 if data.get("blockConnection") else 0.0,
            )
        return {"ok": 1.0}

    # Its life.

    def start(self) -> None:
        """Listen, on the same port as before."""
        if self._acceptor is not None:
            return
        listener = socket.socket(socket.AF_UNIX if self._is_unix else socket.AF_INET)
        try:
            if self._is_unix:
                listener.bind(self.host)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.host, self.port or 0))
                self.port = listener.getsockname()[1]
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        with self._changed:
            self._hello.restart()
            self._hello.address = self.host if self._is_unix else f"{self.host}:{self.port}"
        self._waker, woken = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener, woken), name="scripted-server-acceptor", daemon=True
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Be killed: neither listen nor keep a connection or a cursor. The documents and the script stay."""
        if self._acceptor is None or self._waker is None:
            return
        self._waker.close()
        self._acceptor.join()
        self._acceptor = self._waker = None
        if self._is_unix:
            Path(self.host).unlink()
        self.drop_connections()
        self._defaults.forget_cursors()

    def close(self) -> None:
        """Stop for good; what is frozen is released, and its connection dropped."""
        self.stop()
        self.reset()

    def drop_connections(self) -> None:
        """Close all open client connections at once."""
        with self._changed:
            connections = list(self._connections)
            for connection in connections:
                connection.hang_up()
        for connection in connections:
            connection.join()

    def _accept(self, listener: socket.socket, woken: socket.socket) -> None:
        with listener, woken, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while woken not in {key.fileobj for key, _ in selector.select()}:
                sock, _ = listener.accept()
                if not self._is_unix:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _Connection(self, sock, next(self._connection_ids))
                with self._changed:
                    self._connections.add(connection)
                    connection.start()
                    self._changed.notify_all()

    def _become(self, role: Role, view: SetView) -> None:
        with self._changed:
            self._hello.role, self._hello.set_view = role, view
            self._hello.change()
            self._changed.notify_all()

    # What connections ask of it.

    def _forget(self, connection: _Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _record(self, command: Document, connection: _Connection) -> None:
        with self._changed:
            self._commands.append(ReceivedCommand(next(iter(command), ""), command, connection.connection_id))
            self._changed.notify_all()

    def _answer(self, command: Document, connection: _Connection) -> tuple[Document, Document | None]:
        """The reply, and the command that a stream of replies goes on with.

        Raises:
            ConnectionAbortedError: There is no reply: the connection is closed, or to be closed.
        """
        name = command_name(command)
        with self._changed:
            if name == "hello" and "topologyVersion" in command:
                self._await_change(command, connection)
            freeze = use(self._script.freezes, name)
            if freeze is not None:
                freeze.hold(lambda: connection.closed)
            failure = use(self._script.failures, name)
            if failure is not None and failure.delay:
                self._changed.wait_for(lambda: connection.closed, failure.delay)
            if connection.closed or (failure is not None and failure.close_connection):
                raise ConnectionAbortedError
            scripted = None if failure is not None and failure.error is not None else self._script.next_reply(name)
            topology_version = self._hello.topology_version
            announced = self._hello.next_topology_version
        reply = self._run(command, failure, scripted)
        if failure is not None and failure.error is not None and reply.get("code") in _STATE_CHANGES:
            reply["topologyVersion"] = announced
        return self._finished(name, reply, connection), self._following(name, command, reply, topology_version)

    def _sent(self, reply: Document) -> None:
        # A scripted step-down is over with its reply. Streaming heartbeats then tell so, or the driver would have no
        # usable server until the next of them; they come second, as a driver ignores errors that are old news.
        with self._changed:
            if reply.get("topologyVersion") == self._hello.next_topology_version:
                self._hello.change()
                self._changed.notify_all()

    def _await_change(self, command: Document, connection: _Connection) -> None:
        known = command["topologyVersion"]
        self._changed.wait_for(
            lambda: connection.closed or self._hello.topology_version != known or self._script.interrupts("hello"),
            command.get("maxAwaitTimeMS", 0) / 1000,
        )

    def _run(self, command: Document, failure: Failure | None, scripted: Answer | None) -> Document:
        def run(command: Document) -> Document:
            if scripted is None:
                return self.default_answer(command)
            return {"ok": 1.0} | dict(scripted(command) if callable(scripted) else scripted)

        try:
            return run(command) if failure is None else failure.answer(command, run)
        except OSError:
            raise
        except Exception as exception:
            # The client shows it in its own exception, which is where a test's author looks.
            return error(1, f"{type(exception).__name__}: {exception}", "InternalError")

    def _finished(self, name: str, reply: Document, connection: _Connection) -> Document:
        if name == "hello" and self._server_connection_ids:
            reply = {"connectionId": connection.connection_id} | reply
        if self._hello.in_cluster:
            now = Timestamp(self._started_at, next(self._clock))
            signature = {"hash": b"\0" * 20, "keyId": Int64(0)}
            reply = {"$clusterTime": {"clusterTime": now, "signature": signature}, "operationTime": now} | reply
        return reply

    @staticmethod
    def _following(name: str, command: Document, reply: Document, topology_version: Document) -> Document | None:
        if not reply.get("ok"):
            return None
        if name == "getMore" and reply.get("cursor", {}).get("id"):
            return command
        if name == "hello" and "topologyVersion" in command and "topologyVersion" in reply:
            return command | {"topologyVersion": topology_version}
        return None


class ScriptedReplicaSet:
    """Scripted servers that are the members of one replica set and hold the same documents; the first is primary.

    Args:
        members: How many members.
        name: The set's name.
        server_connection_ids: As for ScriptedServer.
        max_wire_version: As for ScriptedServer.
    """

    def __init__(
        self,
        members: int = 3,
        name: str = "rs0",
        *,
        server_connection_ids: bool = True,
        max_wire_version: int = 21,
    ) -> None:
        self.name = name
        self.primary: ScriptedServer | None = None
        self._term = 0
        store = Store()
        self.members = [
            ScriptedServer(
                role="secondary",
                server_connection_ids=server_connection_ids,
                max_wire_version=max_wire_version,
                store=store,
            )
            for _ in range(members)
        ]
        self.elect(self.members[0])

    def __enter__(self) -> ScriptedReplicaSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[ScriptedServer]:
        return iter(self.members)

    @property
    def uri(self) -> str:
        """A connection string with all members as seeds."""
        return f"mongodb://{','.join(self._hosts)}/?replicaSet={self.name}"

    def step_down(self) -> None:
        """Leave the set without a primary."""
        self._announce(None)

    def elect(self, server: ScriptedServer) -> None:
        """Make the server the primary, and the one before it a secondary."""
        if self.primary not in (None, server):
            self._announce(None)
        self._term += 1
        self._announce(server)

    def close(self) -> None:
        """Close all members."""
        for server in self.members:
            server.close()

    @property
    def _hosts(self) -> tuple[str, ...]:
        return tuple(f"{server.host}:{server.port}" for server in self.members)

    def _announce(self, primary: ScriptedServer | None) -> None:
        self.primary = primary
        host = None if primary is None else f"{primary.host}:{primary.port}"
        view = SetView(self.name, self._hosts, host, self._term)
        for server in self.members:
            server._become("primary" if server is primary else "secondary", view)
