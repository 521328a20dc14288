"""What a command, a reply and a failure say, as names and attributes. Pure functions, no driver and no SDK in them."""

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
    """The collection that a command names, or None.

    Cursors over no collection have a pseudo name (`$cmd.aggregate`, `$cmd.listCollections`), which is none.
    """
    if command_name == "explain":
        command = command.get("explain")  # type: ignore[assignment]  # an odd command may hold anything
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
    """`{operation} {collection}`, or `{operation} {database}` where no collection is named; at most 255 characters.

    It is the query summary as well, to which the conventions set that limit.
    """
    target = collection or database
    name = f"{command_name} {target}" if target else command_name
    return name if len(name) <= _SUMMARY_LENGTH else name[:_SUMMARY_LENGTH]


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
    session_id = session.get("id") if is_document(session) else None
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
