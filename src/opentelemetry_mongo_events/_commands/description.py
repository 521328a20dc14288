"""Derives the span name, the attributes and other facts from a command. Pure functions without driver or SDK."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.command_names import BATCHES, COLLECTION_COMMANDS
from opentelemetry_mongo_events._driver.values import is_document, plain_text, whole_number
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import Attributes, server_attributes

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.identity import Address

_SUMMARY_LENGTH: Final = 255


def collection_name(command_name: str, command: Mapping[str, Any]) -> str | None:
    """Return the name of the collection that a command refers to, or None.

    A `getMore` for a cursor without a collection has a placeholder (`$cmd.aggregate`, `$cmd.listCollections`), which
    doesn't count as a name.
    """
    if command_name == "explain":
        command = command.get("explain")  # type: ignore[assignment]  # may be of any type
        if not is_document(command) or not command:
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
    """Return `{operation} {collection}`, or `{operation} {database}` if there is no collection.

    It is at most 255 characters long, the limit of the semantic conventions for the query summary, which is the same
    text.
    """
    target = collection or database
    name = f"{command_name} {target}" if target else command_name
    return name if len(name) <= _SUMMARY_LENGTH else name[:_SUMMARY_LENGTH]


class Description(NamedTuple):
    """What all commands with the same name, collection and server have in common.

    Attributes:
        name: The span name, and the query summary.
        attributes: The span attributes that are known at the start.
        metric_attributes: The attributes of metrics that don't depend on the outcome.
    """

    name: str
    attributes: Attributes
    metric_attributes: Attributes


def describe(
    command_name: str, database: str, collection: str | None, address: Address | None, old_names: bool
) -> Description:
    """Describe the commands of one kind.

    Args:
        command_name: The name of the command.
        database: The name of the database.
        collection: The name of the collection, or None.
        address: The address of the server, or None if it is unknown.
        old_names: Whether to add the attributes of the old semantic conventions.
    """
    # The driver doesn't check the types of these values.
    command_name, database = (name if isinstance(name, str) else names.OTHER for name in (command_name, database))
    name = span_name(command_name, database, collection)
    metric_attributes: Attributes = {
        names.DB_SYSTEM_NAME: names.MONGODB,
        names.DB_NAMESPACE: database,
        names.DB_OPERATION_NAME: command_name,
        **server_attributes(address),
    }
    if collection is not None:
        metric_attributes[names.DB_COLLECTION_NAME] = collection
    attributes = metric_attributes | {names.DB_QUERY_SUMMARY: name}
    if address is not None:
        attributes[names.NETWORK_TRANSPORT] = "unix" if address[1] is None else "tcp"
    if old_names:
        _add_old_names(attributes)
    return Description(name, attributes, metric_attributes)


def add_batch_and_transaction(attributes: Attributes, command_name: str, command: Mapping[str, Any]) -> None:
    """Add the size of a command's batch, and the transaction that the command is part of."""
    if command_name in BATCHES:
        batch = command.get(BATCHES[command_name])
        # The semantic conventions don't count a single operation as a batch.
        if isinstance(batch, Sized) and len(batch) != 1:
            attributes[names.DB_OPERATION_BATCH_SIZE] = len(batch)
    # Retryable writes have a transaction number, too, but only transactions have `autocommit`.
    if command.get("autocommit") is False:
        attributes.update(transaction_attributes(command))


def transaction_attributes(command: Mapping[str, Any]) -> Attributes:
    """Return the attributes that identify the transaction of a command."""
    attributes: Attributes = {}
    number, session = transaction_number(command), session_id(command)
    if number is not None:
        attributes[names.TXN_NUMBER] = number
    if session is not None:
        attributes[names.LSID] = str(uuid.UUID(bytes=session))
    return attributes


def session_id(command: Mapping[str, Any]) -> bytes | None:
    """Return the id of a command's session, the bytes of a UUID; None if there is none."""
    session = command.get("lsid")
    identifier = session.get("id") if is_document(session) else None
    if isinstance(identifier, uuid.UUID):
        return identifier.bytes
    return bytes(identifier) if isinstance(identifier, bytes) and len(identifier) == 16 else None


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
    # opentelemetry-instrumentation-pymongo uses the command's name unless it is configured to capture statements.
    attributes[names.OLD_STATEMENT] = attributes[names.DB_OPERATION_NAME]


def continued_cursor(command: Mapping[str, Any]) -> int | None:
    """Return the id of the cursor that a `getMore` continues."""
    return whole_number(command.get("getMore")) or None


def transaction_number(command: Mapping[str, Any]) -> int | None:
    """Return the number of the transaction, or of the retryable write, that a command is part of."""
    return whole_number(command.get("txnNumber"))


def killed_cursors(command: Mapping[str, Any]) -> list[int]:
    """Return the ids of the cursors that a `killCursors` closes."""
    cursors = command.get("cursors")
    numbers = map(whole_number, cursors) if isinstance(cursors, list) else ()
    return [number for number in numbers if number is not None]
