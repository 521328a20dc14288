"""How a command ended: what a reply or a failure says, as attributes. Pure functions, no driver and no SDK in them."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.command_names import is_sensitive
from opentelemetry_mongo_events._driver.values import is_document, whole_number
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry_mongo_events._telemetry.attributes import Attributes

_DUPLICATE_KEY: Final = 11000


# Looked for only before the key itself, which is user data: `... index: email_1 dup key: { email: "..." }`.
_INDEX: Final = re.compile(r" index: (\S{1,128})$")


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


def is_retryable_write_error(reply: object) -> bool:
    """Whether a succeeded reply has the label after which the driver sends a write again."""
    labels = reply.get("errorLabels") if is_document(reply) else None
    return isinstance(labels, list) and "RetryableWriteError" in labels


def reply_outcome(command_name: str, reply: object) -> Outcome:
    """What a reply tells that the driver published as succeeded.

    A write that failed is one: the command went well, its documents did not.
    """
    # First what is quicker to tell than by a call.
    if type(reply) is not dict and not is_document(reply):
        return SUCCEEDED
    cursor = reply.get("cursor")
    identifier = batch = rows = None
    if type(cursor) is dict or (cursor is not None and is_document(cursor)):
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
        return next((each for each in results if is_document(each) and not each.get("ok")), {}), errors
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
    if is_document(failure) and failure.get("code") is None:
        kind = failure.get("errtype")
        if isinstance(kind, str) and kind:
            attributes[names.ERROR_TYPE] = kind
            return Outcome(attributes, kind, _message(command_name, failure))
    return Outcome(attributes, _add_server_error(attributes, failure, error_class), _message(command_name, failure))


def _message(command_name: str, error: object) -> str | None:
    message = error.get("errmsg") if is_document(error) and not is_sensitive(command_name) else None
    return message if isinstance(message, str) else None


def _add_server_error(attributes: Attributes, error: object, error_class: str | None = None) -> str:
    """Add what a server says of an error; the status description: never its message, which holds user data."""
    if not is_document(error):
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
