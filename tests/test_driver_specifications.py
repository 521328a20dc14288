"""The MongoDB drivers' own tests of commands: what they expect of a driver's events and spans, asked of our spans.

They are no part of the project: `MONGODB_SPECIFICATIONS` names a checkout of github.com/mongodb/specifications.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._driver.versions import ATTEMPTS_SHARE_OPERATION_ID
from tests.servers.scripted import ScriptedReplicaSet, ScriptedServer, error
from tests.spans import Spans, attributes, linked, span_id, table_of
from tests.unified import Entities, Vector, unmatched, vectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

if not os.environ.get("MONGODB_SPECIFICATIONS"):
    pytest.skip("MONGODB_SPECIFICATIONS names no checkout of mongodb/specifications", allow_module_level=True)

SOURCE = Path(os.environ["MONGODB_SPECIFICATIONS"]) / "source"

INTEGER = {"$$type": ["int", "long"]}
STRING = {"$$type": "string"}
NONE = {"$$exists": False}


def maybe(expected: Any) -> dict[str, Any]:
    return {"$$unsetOrMatches": expected}


@contextlib.contextmanager
def server_for(vector: Vector) -> Iterator[tuple[str, ScriptedServer]]:
    """The URI of a replica set, and its only member, with what the scripted server doesn't know of itself."""
    assert vector.max_wire_version is not None
    no_atlas = error(31082, "Using Atlas Search Database Commands requires Atlas")
    with ScriptedReplicaSet(members=1, max_wire_version=vector.max_wire_version) as replica_set:
        server = replica_set.members[0]
        server.reply("createSearchIndexes", no_atlas)
        server.reply("drop", {})  # since MongoDB 7.0 a missing collection is no error
        server.reply("dropIndexes", {"nIndexesWas": 2})
        server.reply("dropSearchIndex", no_atlas)
        server.reply("getnonce", {"nonce": "2375531c32080ae8"})
        server.reply("mapReduce", {"results": [{"_id": 0, "value": 6}]})
        server.reply("updateSearchIndex", no_atlas)
        for data in vector.file.get("initialData", ()):
            insert = {"insert": data["collectionName"], "documents": data["documents"], "$db": data["databaseName"]}
            server.default_answer(insert)
        yield replica_set.uri, server


def assert_told(span: ReadableSpan, expected: Mapping[str, Any], entities: Entities) -> None:
    """Assert that a span is a command's, with the expected attributes and no others."""
    told = attributes(span)
    # The first command after a checkout has it; neither of the two sources knows of it.
    assert told.pop("mongodb.client.connection.wait_time", 0.0) >= 0
    assert unmatched(expected, told, entities) == {}
    target = told.get("db.collection.name", told["db.namespace"])
    assert span.name == told["db.query.summary"] == f"{told['db.operation.name']} {target}"
    assert span.kind is SpanKind.CLIENT
    failed = expected.get("error.type", NONE) != NONE
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)


# ---------------------------------------------------------------------------------------------------------------------
# Command monitoring: for each event that a command has started there is one span, and the event of its end is the end.

EVERY_COMMAND = {
    "db.system.name": "mongodb",
    "db.query.summary": STRING,
    "db.query.text": STRING,
    "network.transport": "tcp",
    "server.address": STRING,
    "server.port": INTEGER,
    "db.mongodb.driver_connection_id": INTEGER,
    "db.mongodb.server_connection_id": INTEGER if pymongo.version_tuple >= (4, 7) else NONE,
    "mongodb.client.operation.attempt": maybe(2),
}
EVERY_ERROR = {
    "error.type": STRING,
    "db.response.status_code": STRING,
    "mongodb.client.error.code_name": maybe(STRING),
}


@dataclass(frozen=True)
class Command:
    """A command of which a vector expects the events; without a reply it fails."""

    started: Mapping[str, Any]
    reply: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.started["commandName"])

    @property
    def document(self) -> Mapping[str, Any] | None:
        """The command as it is published: an empty one if it is redacted, None where the vector doesn't say."""
        command = self.started.get("command")
        return None if command is None else {name: value for name, value in command.items() if value != NONE}

    @property
    def attributes(self) -> dict[str, Any]:
        """What its span holds."""
        expected = {"db.namespace": self.started.get("databaseName", STRING), "db.operation.name": self.name}
        return EVERY_COMMAND | expected | self._by_document() | self._by_reply()

    def _by_document(self) -> dict[str, Any]:
        if self.document is None:
            return {"db.collection.name": maybe(STRING)}
        if not self.document:
            return {"db.query.text": NONE}
        expected: dict[str, Any] = {}
        collection = self.document.get("collection", self.document.get(self.name))
        if isinstance(collection, str):
            expected["db.collection.name"] = collection
        for statements in self.document.keys() & {"documents", "updates", "deletes", "ops"}:
            if len(self.document[statements]) != 1:
                expected["db.operation.batch.size"] = len(self.document[statements])
        if "getMore" in self.document:
            expected["db.mongodb.cursor_id"] = self.document["getMore"]
        return expected

    def _by_reply(self) -> dict[str, Any]:
        if self.reply is None:
            return EVERY_ERROR
        expected: dict[str, Any] = {}
        if "writeErrors" in self.reply:
            expected |= EVERY_ERROR | {"mongodb.client.operation.write_error_count": 1}
        if "writeConcernError" in self.reply:
            expected |= EVERY_ERROR | {"db.response.status_code": str(self.reply["writeConcernError"]["code"])}
        cursor = self.reply.get("cursor", {})
        if cursor.get("id"):
            expected["db.mongodb.cursor_id"] = cursor["id"]
        for batch in cursor.keys() & {"firstBatch", "nextBatch"}:
            expected["db.response.returned_rows"] = len(cursor[batch])
        return expected

    def script(self, server: ScriptedServer) -> None:
        """Make the server, which knows no query operators and no transaction numbers, answer as one that does."""
        if self.reply is None:
            server.fail(self.name, code=2)
        elif "writeErrors" in self.reply:
            server.fail(self.name, write_errors=[{"code": 2}])
        elif self.reply.get("cursor", {}).get("id") == 0:
            server.reply(self.name, [self.reply])
        elif "RetryableWriteError" in self.reply.get("errorLabels", ()):
            # What is sent again was written the first time. The fail point adds the rest.
            server.reply(self.name, {"n": self.reply["n"]})


def expected_commands(vector: Vector) -> tuple[list[Command], bool]:
    """The commands that a vector expects, and whether others may follow."""
    (expected,) = vector.test["expectEvents"]
    commands: list[Command] = []
    for event in expected["events"]:
        ((kind, told),) = event.items()
        if kind == "commandStartedEvent":
            commands.append(Command(told))
        elif kind == "commandSucceededEvent":
            commands[-1] = replace(commands[-1], reply=told.get("reply", {}))
    return commands, expected.get("ignoreExtraEvents", False)


@pytest.mark.parametrize("vector", vectors(SOURCE / "command-logging-and-monitoring/tests/monitoring"))
def test_each_command_that_is_monitored_is_a_span(vector: Vector, listeners: Any, spans: Spans) -> None:
    commands, others_may_follow = expected_commands(vector)
    with server_for(vector) as (uri, server), Entities(vector, uri, listeners) as entities:
        for command in commands:
            command.script(server)
        entities.run(vector.test["operations"])
        assert len(table_of(listeners)) == 0

        # The format says that a runner takes no notice of the fail point that it sets.
        told = [span for span in spans.finished if span.name != "configureFailPoint admin"]
        assert len(told) == len(commands) or (others_may_follow and len(told) > len(commands))
        for span, command in zip(told, commands, strict=False):
            assert_told(span, command.attributes, entities)
            if command.document == {}:
                assert not span.events
                assert not span.links
                code_name = attributes(span).get("mongodb.client.error.code_name")
                assert span.status.description == code_name


# ---------------------------------------------------------------------------------------------------------------------
# OpenTelemetry: the specification has a span for each operation, and in it those of its commands; these are ours.

# What is otherwise in our spans, on purpose; so is their name (the conventions' `find orders`, not `find`). No span of
# ours is an operation's, of which the driver publishes nothing; and commands link to their transaction's span, which
# begins with the first of them.
OTHERWISE = {
    # The name of the span, as the conventions have it; the specification's has the database too.
    "db.query.summary": STRING,
    # The message of an error, and a traceback, hold user data.
    "exception.message": NONE,
    "exception.stacktrace": NONE,
    # The conventions' name for it is `error.type`.
    "exception.type": NONE,
    # What the conventions have, and the specification hasn't.
    "db.operation.batch.size": maybe(INTEGER),
    "db.response.returned_rows": maybe(INTEGER),
    # What neither has a name for.
    "mongodb.client.operation.attempt": maybe(2),
} | ({} if pymongo.version_tuple >= (4, 7) else {"db.mongodb.server_connection_id": NONE})

# What a vector need not mention.
UNSAID = {
    "db.mongodb.cursor_id": maybe(INTEGER),
    "db.mongodb.driver_connection_id": maybe(INTEGER),
    "db.mongodb.lsid": maybe(STRING),
    "db.mongodb.server_connection_id": maybe(INTEGER),
    "db.mongodb.txn_number": maybe(INTEGER),
    "db.query.text": maybe(STRING),
    "network.transport": maybe("tcp"),
    "server.address": maybe(STRING),
    "server.port": maybe(INTEGER),
}

# The number is an attribute where it tells of a transaction; a comment may hold the context of a trace, or anything.
NOT_IN_TEXT = ("txnNumber", "comment")

# The conventions' name for it, which the specification needs for its spans of operations.
RENAMED = {"db.command.name": "db.operation.name"}


# What says that a command failed.
ERRORS = ("db.response.status_code", "error.type", "exception.type")


@dataclass(frozen=True)
class CommandSpan:
    """A span of a command that a vector expects.

    Attributes:
        attributes: What it holds.
        follows: The one before it in the span of their operation; None if it is the first one.
        transaction: What the vector says of its transaction's span; None if it is in none.
    """

    attributes: Mapping[str, Any]
    follows: CommandSpan | None
    transaction: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.attributes["db.operation.name"])

    @property
    def failed(self) -> bool:
        return "error.type" in self.attributes and self.attributes["error.type"] != NONE

    @property
    def repeats(self) -> bool:
        """Whether it is another attempt, of which the driver tells since PyMongo 4.18."""
        earlier = self.follows
        return ATTEMPTS_SHARE_OPERATION_ID and earlier is not None and earlier.failed and earlier.name == self.name


def expected_spans(
    tree: Iterable[Mapping[str, Any]], transaction: Mapping[str, Any] | None = None
) -> Iterator[CommandSpan]:
    """The command spans in a tree of spans, in the order of their starts."""
    earlier = None
    for span in tree:
        told = span["attributes"]
        if "db.command.name" in told:
            failed = any(told.get(name, NONE) != NONE for name in ERRORS)
            expected = UNSAID | {RENAMED.get(name, name): each for name, each in told.items()} | OTHERWISE
            text = expected["db.query.text"].get("$$matchAsDocument", {}).get("$$matchAsRoot", {})
            for name in NOT_IN_TEXT:
                text.pop(name, None)
            if failed:
                # A connection that breaks has no code; a vector that has none at all doesn't say which one it was.
                expected = EVERY_ERROR | {"db.response.status_code": maybe(STRING)} | expected
            earlier = CommandSpan(expected, earlier, transaction)
            yield earlier
        yield from expected_spans(span.get("nested", ()), span if span["name"] == "transaction" else transaction)


@pytest.mark.parametrize(
    "vector",
    [each for kind in ("operation", "transaction") for each in vectors(SOURCE / "open-telemetry/tests" / kind)],
)
def test_each_command_span_of_a_driver_is_a_span_of_ours(vector: Vector, spans: Spans) -> None:
    (tracing,) = vector.test["expectTracingMessages"]
    # The specification knows texts with values, or none.
    shows_text = any(
        each["client"].get("observeTracingMessages", {}).get("enableCommandPayload")
        for each in vector.file["createEntities"]
        if "client" in each
    )
    listeners = event_listeners(tracer_provider=spans.provider, query_text="raw" if shows_text else "off")
    expected = list(expected_spans(tracing["spans"]))
    with server_for(vector) as (uri, _), Entities(vector, uri, listeners) as entities:
        entities.run(vector.test["operations"])
        assert len(table_of(listeners)) == 0

        # In them is what the specification has in spans of operations: ours of commands are not in each other.
        told = [span for span in spans.finished if span.kind is SpanKind.CLIENT]
        if tracing.get("ignoreExtraSpans"):
            operations = {each.name for each in expected}
            told = [span for span in told if attributes(span)["db.operation.name"] in operations]
        assert len(told) == len(expected), spans.names
        for span, each in zip(told, expected, strict=True):
            assert_told(span, each.attributes, entities)
            assert span.parent is None or span.parent.span_id not in map(span_id, told)
        assert_linked(told, expected, spans.named("transaction"), entities)


def assert_linked(
    told: Sequence[ReadableSpan],
    expected: Sequence[CommandSpan],
    transactions: Iterable[ReadableSpan],
    entities: Entities,
) -> None:
    """Assert that attempts of an operation, commands of a cursor and of a transaction are linked, and no others."""
    openers: dict[Any, int] = {}
    remaining = iter(transactions)
    current: Mapping[str, Any] | None = None
    transaction: ReadableSpan | None = None
    for number, (span, each) in enumerate(zip(told, expected, strict=True)):
        cursor = attributes(span).get("db.mongodb.cursor_id")
        opener = openers.get(cursor) if each.name == "getMore" else None
        openers.setdefault(cursor, span_id(span))
        if each.transaction is not current:
            current = each.transaction
            transaction = None
            if current is not None:
                transaction = next(remaining)
                said = current["attributes"]
                about = {name: value for name, value in attributes(transaction).items() if name in said}
                assert unmatched(said, about, entities) == {}
        links = [span_id(told[number - 1])] if each.repeats else []
        links += [] if opener is None else [opener]
        assert linked(span) == links + ([] if transaction is None else [span_id(transaction)])
        assert (attributes(span).get("mongodb.client.operation.attempt", 1) > 1) is each.repeats
    assert list(remaining) == []
