"""Derives the outcome of a command from its reply or failure. Pure functions without driver or SDK."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._driver.command_names import is_sensitive
from opentelemetry_mongo_events._driver.values import is_document, whole_number
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry_mongo_events._telemetry.attributes import Attributes

_DUPLICATE_KEY: Final = 11000
# The server's name of this code, which the reply to a write doesn't contain.
_DUPLICATE_KEY_NAME: Final = "DuplicateKey"


# Applied only to the text before the key, which is user data: `... index: email_1 dup key: { email: "..." }`.
_INDEX: Final = re.compile(r" index: (\S{1,128})$")


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        attributes: The attributes to add to the span.
        error: A short description of an error: the name of the server's code, or else the `error.type`; None for a
            success.
        message: The message of the error, by the server or the driver. It contains user data.
        cursor: The id of the cursor in the reply: 0 if it is exhausted, None if there is no cursor.
        labels: The error labels of the reply.
    """

    attributes: Attributes
    error: str | None
    message: str | None = None
    cursor: int | None = None
    labels: Sequence[object] = ()


SUCCEEDED: Final = Outcome({}, None)
"""The outcome if a succeeded event can't be read: the span ends anyway."""

FAILED: Final = Outcome({names.ERROR_TYPE: names.OTHER}, names.OTHER)
"""The outcome if a failed event can't be read."""

INTERRUPTED: Final = Outcome({names.ERROR_TYPE: names.INTERRUPTED}, names.INTERRUPTED)
"""The outcome of a command for whose end the driver published no event."""


def is_retryable_write_error(reply: object) -> bool:
    """Return whether a reply has the label with which the driver retries a write."""
    return "RetryableWriteError" in _labels(reply)


def _labels(reply: object) -> Sequence[object]:
    labels = reply.get("errorLabels") if is_document(reply) else None
    return labels if isinstance(labels, list) else ()


def reply_outcome(command_name: str, reply: object) -> Outcome:
    """Return the outcome of a command that the driver published as succeeded.

    It is an error if documents could not be written: the command itself succeeds in this case.
    """
    # The first comparison is faster than the function call.
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
        # The driver publishes a raw batch as a single blob and doesn't count its documents. The batch of a client bulk
        # write contains the results of its operations.
        if (
            isinstance(batch, list)
            and (len(batch) != 1 or not isinstance(batch[0], bytes))
            and command_name != "bulkWrite"
        ):
            rows = len(batch)
    if command_name != "bulkWrite" and "writeErrors" not in reply and "writeConcernError" not in reply:
        return _success(rows, identifier) if identifier else _cached_success(rows, identifier)
    error, count = _write_error(command_name, reply, batch)
    success = _success(rows, identifier)
    if error is None:
        return success
    attributes = success.attributes.copy()
    if count:
        attributes[names.WRITE_ERROR_COUNT] = count
    text, message = _add_server_error(attributes, error), _message(command_name, error)
    return Outcome(attributes, text, message, identifier, _labels(reply))


def _success(rows: int | None, cursor: int | None) -> Outcome:
    attributes: Attributes = {}
    if rows is not None:
        attributes[names.RETURNED_ROWS] = rows
    if cursor:
        attributes[names.CURSOR_ID] = cursor
    return Outcome(attributes, None, None, cursor)


# Most replies have no open cursor and differ only in a small number of rows.
_cached_success: Final = functools.lru_cache(1_000)(_success)


def _write_error(command_name: str, reply: Mapping[str, Any], batch: object) -> tuple[object, int]:
    """Return the first error in a succeeded reply, or None, and the number of documents that were rejected."""
    write_errors = reply.get("writeErrors")
    if write_errors and isinstance(write_errors, list):
        return write_errors[0], len(write_errors)
    errors = whole_number(reply.get("nErrors")) if command_name == "bulkWrite" else None
    if errors is not None and errors > 0:
        # A client bulk write returns its results in the batch of a cursor.
        results = batch if isinstance(batch, list) else ()
        return next((result for result in results if is_document(result) and not result.get("ok")), {}), errors
    return reply.get("writeConcernError") or None, 0


def failure_outcome(command_name: str, failure: object, error_class: str | None = None) -> Outcome:
    """Return the outcome of a command that the driver published as failed.

    The code identifies a server error; the class of the exception identifies a client error.

    Args:
        command_name: The name of the command.
        failure: The failure of the event: usually a dictionary, possibly without an error code.
        error_class: The class name of the exception that the driver raises, if known. It replaces a missing code.
    """
    attributes: Attributes = {}
    if is_document(failure) and failure.get("code") is None:
        kind = failure.get("errtype")
        if isinstance(kind, str) and kind:
            attributes[names.ERROR_TYPE] = kind
            return Outcome(attributes, kind, _message(command_name, failure))
    text, message = _add_server_error(attributes, failure, error_class), _message(command_name, failure)
    return Outcome(attributes, text, message, None, _labels(failure))


def _message(command_name: str, error: object) -> str | None:
    message = error.get("errmsg") if is_document(error) and not is_sensitive(command_name) else None
    return message if isinstance(message, str) else None


def _add_server_error(attributes: Attributes, error: object, error_class: str | None = None) -> str:
    """Add the attributes of a server error. Returns its short description, without the message, which is user data."""
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
    if code == _DUPLICATE_KEY:
        index = _duplicate_index(error.get("errmsg"))
        text = _DUPLICATE_KEY_NAME if index is None else f"{_DUPLICATE_KEY_NAME} index {index}"
    return text


def _duplicate_index(message: object) -> str | None:
    """Return the name of the index in the message of a duplicate key error, without the key."""
    if not isinstance(message, str):
        return None
    before, separator, _key = message[:1024].partition(" dup key")
    index = _INDEX.search(before) if separator else None
    return index[1] if index else None
