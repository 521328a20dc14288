"""What a command, a reply and a failure say, as names and attributes. Pure functions, no driver and no SDK in them."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Mapping, Sized
from typing import Any, Final, NamedTuple, TypeGuard

from opentelemetry.util.types import AttributeValue

from opentelemetry_mongo_events._telemetry import semconv as names

Attributes = dict[str, AttributeValue]
Address = tuple[str, "int | None"]

# The commands whose own value is a collection's name. A list, since the value under a command's name is often something
# else: a user (`dropUser`), a namespace (`renameCollection`), a number (`getMore`).
COLLECTION_COMMANDS: Final = frozenset(
    {
        "aggregate",
        "analyze",
        "checkMetadataConsistency",
        "cleanupStructuredEncryptionData",
        "cloneCollectionAsCapped",
        "collMod",
        "collStats",
        "compact",
        "compactStructuredEncryptionData",
        "convertToCapped",
        "count",
        "create",
        "createIndexes",
        "createSearchIndexes",
        "delete",
        "deleteIndexes",
        "distinct",
        "drop",
        "dropIndexes",
        "dropSearchIndex",
        "find",
        "findAndModify",
        "findandmodify",
        "geoNear",
        "geoSearch",
        "insert",
        "killCursors",
        "listIndexes",
        "listSearchIndexes",
        "mapReduce",
        "mapreduce",
        "parallelCollectionScan",
        "planCacheClear",
        "planCacheClearFilters",
        "planCacheListFilters",
        "planCacheListPlans",
        "planCacheListQueryShapes",
        "planCacheSetFilter",
        "reIndex",
        "setIndexCommitQuorum",
        "update",
        "updateSearchIndex",
        "validate",
    }
)

BATCHES: Final = {"insert": "documents", "update": "updates", "delete": "deletes", "bulkWrite": "ops"}

_SUMMARY_LENGTH: Final = 255

_DUPLICATE_KEY: Final = 11000
# Looked for only before the key itself, which is user data: `... index: email_1 dup key: { email: "..." }`.
_INDEX: Final = re.compile(r" index: (\S{1,128})$")


# The driver redacts them and their replies, but not what says why one failed.
_SECRET: Final = frozenset(
    {
        "authenticate",
        "copydb",
        "copydbgetnonce",
        "copydbsaslstart",
        "createuser",
        "getnonce",
        "saslcontinue",
        "saslstart",
        "updateuser",
    }
)


def is_secret(command_name: str) -> bool:
    """Whether a command holds credentials: then nothing is ever shown of it, nor of what the server says to it."""
    return command_name.lower() in _SECRET


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        attributes: What its span gets.
        error: The status description, if that is an error.
        message: What the server, or the driver, says of the error. It holds user data.
        cursor: The id of the cursor in the reply: 0 where it is exhausted, None where there is none.
    """

    attributes: Attributes
    error: str | None
    message: str | None = None
    cursor: int | None = None


# The outcomes where an odd event can't be read: its span is closed all the same.
SUCCEEDED: Final = Outcome({}, None)
INTERRUPTED: Final = Outcome({names.ERROR_TYPE: names.INTERRUPTED}, names.INTERRUPTED)
FAILED: Final = Outcome({names.ERROR_TYPE: names.OTHER}, names.OTHER)


def _is_document(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a document: mostly a dict, which is quicker to tell than any other mapping."""
    return type(value) is dict or isinstance(value, Mapping)


def whole_number(value: object) -> int | None:
    """A number that a server or the driver gives: what is an int32, an int64 or a double in BSON; None for others."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # the driver has a class of its own for an int64
    return int(value) if isinstance(value, float) and value.is_integer() else None


def plain_text(value: object) -> str | None:
    """A text without the class of its own that it may have, as `bson.Code`, which can be no key; None for others."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else None


def collection_name(command_name: str, command: Mapping[str, Any]) -> str | None:
    """The collection that a command names, or None.

    Cursors over no collection have a pseudo name (`$cmd.aggregate`, `$cmd.listCollections`), which is none.
    """
    if command_name == "explain":
        command = command.get("explain")  # type: ignore[assignment]  # an odd command may hold anything
        if not _is_document(command) or not command:
            return None
        command_name = next(iter(command))
    if command_name == "getMore":
        name = plain_text(command.get("collection"))
    elif command_name in COLLECTION_COMMANDS:
        name = plain_text(command.get(command_name))
    else:
        return None
    if not name or name == "$cmd" or name.startswith("$cmd."):
        return None
    return name


def span_name(command_name: str, database: str, collection: str | None) -> str:
    """`{operation} {collection}`, or `{operation} {database}` where no collection is named; at most 255 characters.

    It is the query summary as well, to which the conventions set that limit.
    """
    target = collection or database
    name = f"{command_name} {target}" if target else command_name
    return name if len(name) <= _SUMMARY_LENGTH else name[:_SUMMARY_LENGTH]


def target(address: Address) -> str:
    """An address as text: `host:port`, with brackets around an IPv6 address; the path of a Unix socket."""
    host, port = address
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_attributes(address: Address | None) -> Attributes:
    """The host and the port; the path of a Unix socket."""
    if address is None:
        return {}
    host, port = address
    return {names.SERVER_ADDRESS: host} if port is None else {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}


class Description(NamedTuple):
    """What all commands of one name, on one collection of one server, have in common.

    Attributes:
        name: The name of their spans, and the query summary.
        attributes: Those of their spans, from the start.
        measured: Those of their metrics, however they end.
    """

    name: str
    attributes: Attributes
    measured: Attributes


def description(
    command_name: str, database: str, collection: str | None, address: Address | None, old_names: bool
) -> Description:
    """The description of a command."""
    # The driver's events take what they are given: what is no text would be no name either.
    command_name, database = (each if isinstance(each, str) else names.OTHER for each in (command_name, database))
    name = span_name(command_name, database, collection)
    measured: Attributes = {
        names.DB_SYSTEM_NAME: names.MONGODB,
        names.DB_NAMESPACE: database,
        names.DB_OPERATION_NAME: command_name,
        **server_attributes(address),
    }
    if collection is not None:
        measured[names.DB_COLLECTION_NAME] = collection
    attributes = measured | {names.DB_QUERY_SUMMARY: name}
    if address is not None:
        attributes[names.NETWORK_TRANSPORT] = "unix" if address[1] is None else "tcp"
    if old_names:
        _add_old_names(attributes)
    return Description(name, attributes, measured)


def add_batch_and_transaction(attributes: Attributes, command_name: str, command: Mapping[str, Any]) -> None:
    """Add how large a batch is, and which transaction a command is part of."""
    if command_name in BATCHES:
        batch = command.get(BATCHES[command_name])
        # The conventions leave the size out for one: that is no batch.
        if isinstance(batch, Sized) and len(batch) != 1:
            attributes[names.DB_OPERATION_BATCH_SIZE] = len(batch)
    # A retryable write has a transaction number too; `autocommit` is there in a transaction only.
    if command.get("autocommit") is False:
        _add_transaction(attributes, command)


def _add_transaction(attributes: Attributes, command: Mapping[str, Any]) -> None:
    number = transaction_number(command)
    if number is not None:
        attributes[names.TXN_NUMBER] = number
    session = command.get("lsid")
    session_id = session.get("id") if _is_document(session) else None
    if isinstance(session_id, bytes) and len(session_id) == 16:
        attributes[names.LSID] = str(uuid.UUID(bytes=bytes(session_id)))
    elif isinstance(session_id, uuid.UUID):
        attributes[names.LSID] = str(session_id)


_OLD_NAMES: Final = {
    names.DB_SYSTEM_NAME: names.OLD_SYSTEM,
    names.DB_NAMESPACE: names.OLD_NAME,
    names.DB_COLLECTION_NAME: names.OLD_COLLECTION,
    names.SERVER_ADDRESS: names.OLD_PEER_NAME,
    names.SERVER_PORT: names.OLD_PEER_PORT,
}


def _add_old_names(attributes: Attributes) -> None:
    for new, old in _OLD_NAMES.items():
        if new in attributes:
            attributes[old] = attributes[new]
    attributes[names.OLD_OPERATION] = attributes[names.DB_OPERATION_NAME]
    # opentelemetry-instrumentation-pymongo gives the command's name where it isn't told to capture statements.
    attributes[names.OLD_STATEMENT] = attributes[names.DB_OPERATION_NAME]


def continued_cursor(command: Mapping[str, Any]) -> int | None:
    """The id of the cursor that a `getMore` goes on with."""
    return whole_number(command.get("getMore")) or None


def transaction_number(command: Mapping[str, Any]) -> int | None:
    """The number of the transaction, or of the retryable write, that a command is part of."""
    return whole_number(command.get("txnNumber"))


def killed_cursors(command: Mapping[str, Any]) -> list[int]:
    """The ids of the cursors that a `killCursors` closes."""
    cursors = command.get("cursors")
    numbers = map(whole_number, cursors) if isinstance(cursors, list) else ()
    return [number for number in numbers if number is not None]


def is_retryable_write_error(reply: object) -> bool:
    """Whether a succeeded reply has the label after which the driver sends a write again."""
    labels = reply.get("errorLabels") if _is_document(reply) else None
    return isinstance(labels, list) and "RetryableWriteError" in labels


def reply_outcome(command_name: str, reply: object) -> Outcome:
    """What a reply tells that the driver published as succeeded.

    A write that failed is one: the command went well, its documents did not.
    """
    # First what is quicker to tell than by a call.
    if type(reply) is not dict and not _is_document(reply):
        return SUCCEEDED
    cursor = reply.get("cursor")
    identifier = batch = rows = None
    if type(cursor) is dict or (cursor is not None and _is_document(cursor)):
        identifier = cursor.get("id")
        if type(identifier) is not int:
            identifier = whole_number(identifier)
        batch = cursor.get("firstBatch")
        if batch is None:
            batch = cursor.get("nextBatch")
        # The driver publishes a raw batch as one blob, whose documents it hasn't counted; the batch of a client bulk
        # write holds the results of its operations.
        if (
            isinstance(batch, list)
            and (len(batch) != 1 or not isinstance(batch[0], bytes))
            and command_name != "bulkWrite"
        ):
            rows = len(batch)
    if command_name != "bulkWrite" and "writeErrors" not in reply and "writeConcernError" not in reply:
        return _good(rows, identifier) if identifier else _remembered_good(rows, identifier)
    error, count = _write_error(command_name, reply, batch)
    good = _good(rows, identifier)
    if error is None:
        return good
    attributes = good.attributes.copy()
    if count:
        attributes[names.WRITE_ERRORS] = count
    return Outcome(attributes, _add_server_error(attributes, error), _message(command_name, error), identifier)


def _good(rows: int | None, cursor: int | None) -> Outcome:
    attributes: Attributes = {}
    if rows is not None:
        attributes[names.RETURNED_ROWS] = rows
    if cursor:
        attributes[names.CURSOR_ID] = cursor
    return Outcome(attributes, None, None, cursor)


# Most replies open no cursor and differ in a small number only.
_remembered_good: Final = functools.lru_cache(1_000)(_good)


def _write_error(command_name: str, reply: Mapping[str, Any], batch: object) -> tuple[object, int]:
    """The first error in a reply that succeeded, None where there is none; and how many documents were refused."""
    write_errors = reply.get("writeErrors")
    if write_errors and isinstance(write_errors, list):
        return write_errors[0], len(write_errors)
    errors = whole_number(reply.get("nErrors")) if command_name == "bulkWrite" else None
    if errors is not None and errors > 0:
        # The results of a client bulk write come in the batch of a cursor.
        results = batch if isinstance(batch, list) else ()
        return next((each for each in results if _is_document(each) and not each.get("ok")), {}), errors
    return reply.get("writeConcernError") or None, 0


def failure_outcome(command_name: str, failure: object, error_class: str | None = None) -> Outcome:
    """What a failure tells: a server's error by its code, a client's by the exception's class.

    Args:
        command_name: Of the command that failed.
        failure: Mostly a dictionary; an exception without details and a server without a code give less.
        error_class: The name of the class of the exception that the driver raises for it, if that is known: it stands
            for a code where the server gives none.
    """
    attributes: Attributes = {}
    if _is_document(failure) and failure.get("code") is None:
        kind = failure.get("errtype")
        if isinstance(kind, str) and kind:
            attributes[names.ERROR_TYPE] = kind
            return Outcome(attributes, kind, _message(command_name, failure))
    return Outcome(attributes, _add_server_error(attributes, failure, error_class), _message(command_name, failure))


def _message(command_name: str, error: object) -> str | None:
    message = error.get("errmsg") if _is_document(error) and not is_secret(command_name) else None
    return message if isinstance(message, str) else None


def _add_server_error(attributes: Attributes, error: object, error_class: str | None = None) -> str:
    """Add what a server says of an error; the status description: never its message, which holds user data."""
    if not _is_document(error):
        error = {}
    code = whole_number(error.get("code"))
    if code is not None:
        text = str(code)
        attributes[names.DB_RESPONSE_STATUS_CODE] = text
    else:
        text = error_class or names.OTHER
    attributes[names.ERROR_TYPE] = text
    code_name = error.get("codeName")
    if isinstance(code_name, str) and code_name:
        attributes[names.ERROR_CODE_NAME] = code_name
        text = code_name
    if code == _DUPLICATE_KEY and (index := _duplicate_index(error.get("errmsg"))):
        text = f"{text} index {index}"
    return text


def _duplicate_index(message: object) -> str | None:
    """The index that a duplicate key error names; nothing of the key."""
    if not isinstance(message, str):
        return None
    before, found, _key = message[:1024].partition(" dup key")
    index = _INDEX.search(before) if found else None
    return index[1] if index else None
