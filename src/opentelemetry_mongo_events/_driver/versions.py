"""Differences between the supported versions of PyMongo, behind functions and flags."""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
import time
from typing import Any, Final, TypeAlias

from bson import codec_options
from pymongo import version_tuple
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandStartedEvent,
    CommandSucceededEvent,
    ServerHeartbeatFailedEvent,
)

from opentelemetry_mongo_events._driver.values import whole_number

CommandEvent = CommandStartedEvent | CommandSucceededEvent | CommandFailedEvent

ATTEMPTS_SHARE_OPERATION_ID = version_tuple >= (4, 18)
"""Before 4.18 each attempt of an operation has its own `operation_id`."""

TOPOLOGY_LISTENERS_NEED_A_LOOP = version_tuple >= (4, 11)
"""Since 4.11 an `AsyncMongoClient` with topology listeners can be created only while an event loop is running."""

POOL_EVENTS_HAVE_DURATIONS = version_tuple >= (4, 7)
"""Before 4.7 pool events have no durations, and this package measures them."""

# Not available up to 4.2, where a date outside of Python's range makes a document unreadable.
_DATES: Final = getattr(getattr(codec_options, "DatetimeConversion", None), "DATETIME_AUTO", None)

CODEC_OPTIONS: Final[codec_options.CodecOptions[dict[str, Any]]] = codec_options.CodecOptions(
    **({} if _DATES is None else {"datetime_conversion": _DATES})
)
"""The options for decoding raw documents."""


_HAS_SERVER_CONNECTION_ID: Final = hasattr(CommandStartedEvent, "server_connection_id")
_command_id: Final = operator.attrgetter("request_id", "connection_id", "server_connection_id")


# Request id, address, and the server's id of the connection.
CommandId: TypeAlias = tuple[int, "tuple[str, int | None] | None", "int | None"]


def command_id(event: CommandEvent) -> tuple[int, Any, int | None]:
    """Return the request id, the address, and the server's id of the connection.

    The server's id is available since PyMongo 4.7 and MongoDB 4.2. Servers send an int32, an int64 or a double.
    """
    if not _HAS_SERVER_CONNECTION_ID:
        return event.request_id, event.connection_id, None
    identifier: tuple[int, Any, Any] = _command_id(event)
    number = identifier[2]
    if type(number) is int or number is None:
        return identifier
    return identifier[0], identifier[1], whole_number(number)


def raised_for(failure: object) -> str | None:
    """Return the class name of the driver's exception for a failure that it is publishing; None if there is none.

    The driver publishes a failure while it handles the exception. Since the application may run the command while it
    handles another exception, the driver's is recognized by its `details`, which are the same document.
    """
    error = sys.exc_info()[1]
    is_from_driver = failure is not None and getattr(error, "details", None) is failure
    return type(error).__name__ if is_from_driver else None


def runs_in_background() -> bool:
    """Whether this runs in a background thread or task of the driver, which closes cursors and fills pools.

    A task of an `AsyncMongoClient`, and with `sys.flags.thread_inherit_context` also a thread, has a copy of the
    context in which the client was first used, so its current span is unrelated.
    """
    if threading.current_thread().name.startswith("pymongo_"):
        return True
    # Without a loop `current_task()` raises, which is slower than checking for the loop first.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return task is not None and task.get_name().startswith("pymongo_")


def is_cancelled_heartbeat(event: ServerHeartbeatFailedEvent) -> bool:
    """Whether a heartbeat failed only because the driver cancelled it, which is no sign of a problem with the server.

    The driver does so when a client is closed, and when a command has already detected that the server is gone.
    """
    return type(event.reply).__name__ == "_OperationCancelled"


def duration(event: object, since: float | None) -> float | None:
    """Return the duration, in seconds, of what a pool event ends; None if it is unknown.

    Args:
        event: The event. It has no duration before PyMongo 4.7.
        since: The start by `time.perf_counter()`, for an event without a duration.
    """
    seconds = getattr(event, "duration", None)
    if seconds is None:
        if since is None:
            return None
        seconds = time.perf_counter() - since
    return max(0.0, float(seconds))
