"""Where one version of PyMongo differs from another."""

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
"""Before 4.18 each attempt of an operation has an `operation_id` of its own."""

TOPOLOGY_LISTENERS_NEED_A_LOOP = version_tuple >= (4, 11)
"""Since 4.11 an `AsyncMongoClient` with topology listeners can be made only where an event loop runs."""

POOL_EVENTS_HAVE_DURATIONS = version_tuple >= (4, 7)
"""Before 4.7 what the pool's events tell the end of is measured by ourselves."""

# Up to 4.2 a date out of Python's range makes a document unreadable.
_DATES: Final = getattr(getattr(codec_options, "DatetimeConversion", None), "DATETIME_AUTO", None)

CODEC_OPTIONS: Final[codec_options.CodecOptions[dict[str, Any]]] = codec_options.CodecOptions(
    **({} if _DATES is None else {"datetime_conversion": _DATES})
)
"""How a raw document is read."""


_HAS_SERVER_CONNECTION_ID: Final = hasattr(CommandStartedEvent, "server_connection_id")
_command_id: Final = operator.attrgetter("request_id", "connection_id", "server_connection_id")


# Request id, address, and the server's id of the connection.
CommandId: TypeAlias = tuple[int, "tuple[str, int | None] | None", "int | None"]


def command_id(event: CommandEvent) -> tuple[int, Any, int | None]:
    """The request id, the address and the server's own id of the connection.

    PyMongo gives that since 4.7, a server since MongoDB 4.2: as an int32, an int64 or a double.
    """
    if not _HAS_SERVER_CONNECTION_ID:
        return event.request_id, event.connection_id, None
    identifier: tuple[int, Any, Any] = _command_id(event)
    number = identifier[2]
    if type(number) is int or number is None:
        return identifier
    return identifier[0], identifier[1], whole_number(number)


def raised_for(failure: object) -> str | None:
    """The name of the class of the exception that the driver raises for a failure, while it publishes that.

    It publishes a failure from where it handles the exception. The application may run the command as it handles
    another one: the driver's own holds the same document.
    """
    error = sys.exc_info()[1]
    is_its_own = failure is not None and getattr(error, "details", None) is failure
    return type(error).__name__ if is_its_own else None


def runs_in_background() -> bool:
    """Whether this runs in a thread or task of the driver's own (they close cursors and keep the pools filled).

    A task of an `AsyncMongoClient`, and with `sys.flags.thread_inherit_context` a thread too, copied the context of
    whoever used the client first, so its current span is a stranger.
    """
    if threading.current_thread().name.startswith("pymongo_"):
        return True
    # Without a loop, `current_task()` raises, which costs more than to ask for the loop first.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return task is not None and task.get_name().startswith("pymongo_")


def is_cancelled_heartbeat(event: ServerHeartbeatFailedEvent) -> bool:
    """Whether a heartbeat failed because the driver itself gave it up: it tells nothing of the server.

    That happens when a client is closed, and when a command has found out already that the server is gone.
    """
    return type(event.reply).__name__ == "_OperationCancelled"


def duration(event: object, since: float | None) -> float | None:
    """How many seconds what a pool event tells the end of took, or None.

    Where the driver doesn't tell it, it is measured: `since` is when it began, by `time.perf_counter()`.
    """
    seconds = getattr(event, "duration", None)
    if seconds is None:
        if since is None:
            return None
        seconds = time.perf_counter() - since
    return max(0.0, float(seconds))
