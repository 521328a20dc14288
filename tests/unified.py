"""The MongoDB drivers' unified test format, as much of it as the tests of commands need, run by PyMongo.

The format: https://github.com/mongodb/specifications/blob/master/source/unified-test-format/unified-test-format.md
What an operation returns and leaves behind (`expectResult`, `outcome`) is the driver's matter, and not looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson import json_util
from pymongo import DeleteMany, DeleteOne, InsertOne, ReplaceOne, UpdateMany, UpdateOne, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import PyMongoError

from tests.clients import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pymongo import MongoClient


Document = dict[str, Any]

# The versions that the scripted server can be, with the wire version that makes it so, the newest first.
_SERVERS = {"8.0.0": 25, "6.0.0": 17, "4.4.0": 9}

# The first PyMongo that sends an operation as the vectors expect, and what it does before.
_SINCE = {
    "clientBulkWrite": ((4, 9), "has no MongoClient.bulk_write"),
    "createCollection": ((4, 2), "lists the collections before it creates one"),
    "createSearchIndex": ((4, 7), "has no search index with a type"),
    "estimatedDocumentCount": ((4, 2), "aggregates, and doesn't count"),
}


@dataclass(frozen=True)
class Vector:
    """One test of a file."""

    file: Mapping[str, Any]
    test: Mapping[str, Any]

    @property
    def max_wire_version(self) -> int | None:
        """That of the newest server that it runs on, or None."""
        for version, max_wire_version in _SERVERS.items():
            if all(_is_met(each.get("runOnRequirements"), version) for each in (self.file, self.test)):
                return max_wire_version
        return None

    @property
    def hindrance(self) -> str | None:
        """Why it can't be run, or None."""
        skipped = self.test.get("skipReason") or self.file.get("skipReason")
        if skipped:
            return str(skipped)
        if self.max_wire_version is None:
            return "needs a server that the scripted one can't be"
        if len(self.test.get("expectTracingMessages", ())) > 1:
            return "expects the spans of several clients"
        for entity in self.file["createEntities"]:
            if not entity.keys() <= _ENTITIES:
                return f"needs an entity that isn't known here: {', '.join(entity)}"
        for operation in _all(self.test["operations"]):
            name = operation["name"]
            since, otherwise = _SINCE.get(name, ((), ""))
            if pymongo.version_tuple < since:
                return f"PyMongo {pymongo.version} {otherwise}"
            if not _is_known(name, operation["object"]):
                return f"needs an operation that isn't known here: {name} of {operation['object']}"
        return None


def _all(operations: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The operations, and those inside of them."""
    for operation in operations:
        yield operation
        yield from _all(operation.get("arguments", {}).get("callback", ()))


def _is_known(name: str, target: str) -> bool:
    if target == "testRunner":
        return name == "failPoint"
    return (
        name in _OPERATIONS or name == "withTransaction" or any(hasattr(each, _snake_case(name)) for each in _TARGETS)
    )


def vectors(folder: Path) -> list[Any]:
    """The parameters of a test: one for each test of the folder's files.

    Raises:
        FileNotFoundError: There are none.
    """
    parameters = []
    for path in sorted(folder.glob("*.json")):
        file = json_util.loads(path.read_text(encoding="utf-8"))
        for test in file["tests"]:
            vector = Vector(file, test)
            hindrance = vector.hindrance
            marks = [pytest.mark.skip(reason=hindrance)] if hindrance else []
            parameters.append(pytest.param(vector, id=f"{path.stem}: {test['description']}", marks=marks))
    if not parameters:
        raise FileNotFoundError(f"no test vectors in {folder}")
    return parameters


def _is_met(requirements: Iterable[Mapping[str, Any]] | None, version: str) -> bool:
    """Whether a replica set without authentication, whose server has that version, meets one of the requirements."""
    return requirements is None or any(
        _numbers(each.get("minServerVersion", "0")) <= _numbers(version) <= _numbers(each.get("maxServerVersion", "99"))
        and "replicaset" in each.get("topologies", ["replicaset"])
        and each.get("serverless") != "require"
        and not each.get("auth")
        and not each.keys() & {"csfle", "serverParameters"}
        for each in requirements
    )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


# ---------------------------------------------------------------------------------------------------------------------
# Operations.


_ENTITIES = {"client", "database", "collection", "session"}

# An operation without a function of its own is a method of these, with the same name and arguments.
_TARGETS = (pymongo.MongoClient, Database, Collection, ClientSession)


class FindCursor:
    """A cursor that has been opened by a command already: PyMongo sends none before a document is asked for."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._first = list(itertools.islice(cursor, 1))

    def next(self) -> object:
        return self._first.pop() if self._first else next(self._cursor)

    def close(self) -> None:
        self._cursor.close()


class Entities:
    """What a vector's operations are run on: clients, databases, collections and sessions, by their ids."""

    def __init__(self, vector: Vector, uri: str, listeners: Any) -> None:
        self._uri = uri
        self._listeners = listeners
        self._entities: Document = {}
        self._clients = contextlib.ExitStack()
        for entity in vector.file["createEntities"]:
            ((kind, options),) = entity.items()
            self._entities[options["id"]] = getattr(self, f"_{kind}")(options)

    def __getitem__(self, identifier: str) -> Any:
        return self._entities[identifier]

    def __enter__(self) -> Entities:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()

    def _client(self, options: Document) -> MongoClient[Any]:
        observed = options.keys() & {"observeEvents", "observeTracingMessages"}
        listeners = {"event_listeners": self._listeners} if observed else {}
        # A fail point may make the driver lose the server, until its next heartbeat.
        client = connect(self._uri, heartbeatFrequencyMS=500, **listeners, **options.get("uriOptions", {}))
        return self._clients.enter_context(client)

    def _database(self, options: Document) -> Any:
        return self[options["client"]][options["databaseName"]]

    def _collection(self, options: Document) -> Any:
        database = self[options["database"]]
        concern = options.get("collectionOptions", {}).get("writeConcern")
        write_concern = None if concern is None else WriteConcern(**concern)
        return database.get_collection(options["collectionName"], write_concern=write_concern)

    def _session(self, options: Document) -> Any:
        return self[options["client"]].start_session()

    def run(self, operations: Iterable[Mapping[str, Any]]) -> None:
        """Run the operations, in order; an expected error must come, another must not."""
        for operation in operations:
            expected = pytest.raises(PyMongoError) if "expectError" in operation else contextlib.nullcontext()
            with expected:
                result = self._run(operation["name"], operation["object"], dict(operation.get("arguments", {})))
                if "saveResultAsEntity" in operation:
                    self._entities[operation["saveResultAsEntity"]] = result

    def _run(self, name: str, target: str, arguments: Document) -> object:
        if name == "failPoint":
            return self[arguments["client"]].admin.command(arguments["failPoint"])
        if name == "withTransaction":
            return self[target].with_transaction(lambda _: self.run(arguments["callback"]))
        if "session" in arguments:
            arguments["session"] = self[arguments["session"]]
        options = {_snake_case(key): value for key, value in arguments.items()}
        if name in _OPERATIONS:
            return _OPERATIONS[name](self[target], **options)
        return getattr(self[target], _snake_case(name))(**options)


def _snake_case(name: str) -> str:
    return re.sub("[A-Z]+", lambda capitals: f"_{capitals[0].lower()}", name)


def _cursor(collection: Any, **options: Any) -> Any:
    for name in options.keys() & {"hint", "max", "min", "sort"}:
        options[name] = list(options[name].items())
    return collection.find(**options)


def _bulk_write(target: Any, models: Iterable[Mapping[str, Any]], **options: Any) -> object:
    return target.bulk_write([_MODELS[kind](**each) for model in models for kind, each in model.items()], **options)


_MODELS: dict[str, Any] = {
    "deleteMany": DeleteMany,
    "deleteOne": DeleteOne,
    "insertOne": InsertOne,
    "replaceOne": ReplaceOne,
    "updateMany": UpdateMany,
    "updateOne": UpdateOne,
}

# The other operations are methods of PyMongo's that have the same name, and the same arguments.
_OPERATIONS: dict[str, Callable[..., object]] = {
    "aggregate": lambda collection, pipeline: list(collection.aggregate(pipeline)),
    "bulkWrite": lambda collection, requests, **options: _bulk_write(collection, requests, **options),
    "clientBulkWrite": _bulk_write,
    "createCollection": lambda database, collection: database.create_collection(collection, check_exists=False),
    "createFindCursor": lambda collection, **options: FindCursor(_cursor(collection, **options)),
    "createIndex": lambda collection, keys, **options: collection.create_index(list(keys.items()), **options),
    "distinct": lambda collection, field_name, **options: collection.distinct(field_name, **options),
    "dropCollection": lambda database, collection: database.drop_collection(collection),
    "find": lambda collection, **options: list(_cursor(collection, **options)),
    "iterateUntilDocumentOrError": lambda cursor: cursor.next(),
    "listCollections": lambda database: list(database.list_collections()),
    "listDatabases": lambda client: list(client.list_databases()),
    "listIndexes": lambda collection: list(collection.list_indexes()),
    # PyMongo 4 has no method for it.
    "mapReduce": lambda collection, **options: collection.database.command("mapReduce", collection.name, **options),
    "runCommand": lambda database, command, command_name: database.command(command),
}


# ---------------------------------------------------------------------------------------------------------------------
# Matching.

_TYPES: dict[str, type] = {"int": int, "long": int, "string": str}


def unmatched(expected: Mapping[str, Any], actual: Mapping[str, Any], entities: Entities) -> dict[str, tuple[Any, Any]]:
    """What is otherwise than expected, by name, as what was expected and what is; what is not expected must not be."""
    return {
        name: (expected.get(name), actual.get(name))
        for name in expected.keys() | actual.keys()
        if not _matches(expected.get(name), actual.get(name), entities)
    }


def _matches(expected: Any, actual: Any, entities: Entities) -> bool:
    """Whether a value, None where there is none, is what a vector says of it."""
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return all(_matches(*each, entities) for each in zip(expected, actual, strict=True))
    if not isinstance(expected, dict):
        return bool(actual == expected)
    if not next(iter(expected), "").startswith("$$"):
        return isinstance(actual, dict) and not unmatched(expected, actual, entities)
    ((operator, operand),) = expected.items()
    if operator == "$$exists":
        return (actual is not None) is operand
    if operator == "$$type":
        return isinstance(actual, tuple(_TYPES[each] for each in ([operand] if isinstance(operand, str) else operand)))
    if operator == "$$unsetOrMatches":
        return actual is None or _matches(operand, actual, entities)
    if operator == "$$matchAsDocument":
        return isinstance(actual, str) and _matches(operand, json_util.loads(actual), entities)
    if operator == "$$matchAsRoot":
        return all(_matches(each, actual.get(name), entities) for name, each in operand.items())
    if operator == "$$sessionLsid":
        return bool(actual == str(entities[operand].session_id["id"].as_uuid()))
    raise NotImplementedError(operator)
