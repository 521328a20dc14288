"""Listens to PyMongo's log of server selections, for which the driver publishes no events.

Since 4.7, the driver logs each server selection as structured messages, on the public logger `pymongo.serverSelection`
and on the caller's thread. A filter or handler would depend on the application's logging configuration. Instead, two
methods of that one logger object are overridden by attributes. These call the methods of its class, so the
application's log doesn't change.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

import pymongo
from pymongo import version_tuple

from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard
from opentelemetry_mongo_events._runtime.log import warn
from opentelemetry_mongo_events._runtime.process import SharedLock

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping, Sequence

    from pymongo.topology_description import TopologyDescription

_LOGGER: Final = "pymongo.serverSelection"

# Since 4.18, the driver checks once, at the start of a selection, whether to log the whole selection. Before 4.18, it
# checks for each message, except for the message that it waits, which it logs without a check.
_ASKS_AT_START: Final = version_tuple >= (4, 18)

# The driver's function that checks whether to log that a server was selected. This message is needed only after a wait.
# Without it, a selection that finds a server immediately takes less time.
_SELECTED: Final = "select_server"


class SelectionObserver(Protocol):
    """Receives the messages of server selections.

    Methods are called on the thread, or in the task, that called the driver. During all of them except `succeeded`, the
    driver holds the lock of its topology, so they must not block.
    """

    def is_active(self) -> bool:
        """Return whether messages are wanted at all."""

    def is_waiting(self) -> bool:
        """Return whether a selection waits in the current thread, task or greenlet."""

    def started(self, fields: Mapping[str, Any], /) -> None:
        """Receive the message that a selection starts; before PyMongo 4.18 only while `is_waiting()` is true."""

    def waiting(self, fields: Mapping[str, Any], /) -> None:
        """Receive the message that no server is suitable yet, and the driver waits for one."""

    def succeeded(self, fields: Mapping[str, Any], /) -> None:
        """Receive the message that a server was selected; before 4.18 only while `is_waiting()` is true."""

    def failed(self, fields: Mapping[str, Any], /) -> None:
        """Receive the message that no server was found in time."""


class _Log:
    """The overridden logger.

    Attributes:
        is_observed: Whether the logger has been overridden.
        has_warned: Whether the warning that the logger can't be overridden has been logged.
        guard: Counts and logs the failures of the observer.
        lock: Held while the logger is overridden.
    """

    def __init__(self) -> None:
        self.is_observed = False
        self.has_warned = False
        self.guard = Guard()
        self.lock = SharedLock()


_log: Final = _Log()


def observe(observer: SelectionObserver) -> bool:
    """Send the messages of all clients' server selections to `observer`, permanently.

    Returns:
        Whether they are sent. False if this version of PyMongo logs none, or, with a warning, if it logs them in an
        unsupported format.
    """
    if version_tuple < (4, 7):
        return False
    with _log.lock():
        return _log.is_observed or _observe(observer)


def _observe(observer: SelectionObserver) -> bool:
    logger = logging.getLogger(_LOGGER)
    message_class = _message_class(logger)
    if message_class is None:
        if not _log.has_warned:
            _log.has_warned = True
            warn(
                "server selections are not instrumented: PyMongo %s logs them in an unsupported format, or another "
                "package has modified the logger %s",
                pymongo.version,
                _LOGGER,
            )
        return False
    _override(logger, message_class, observer)
    _log.is_observed = True
    return True


def _message_class(logger: logging.Logger) -> type | None:
    """Return the class of the driver's log messages; None if their format is not supported."""
    from pymongo import logger as driver_log

    message_class = getattr(driver_log, "LogMessage", None)
    is_known = (
        isinstance(message_class, type)
        and getattr(driver_log, "_SERVER_SELECTION_LOGGER", None) is logger
        and vars(logger).keys().isdisjoint(("debug", "isEnabledFor"))
    )
    if not is_known:
        return None
    try:
        has_fields = message_class(message="")._kwargs == {"message": ""}  # type: ignore[misc]  # it is a type by now
    except Exception:
        return None
    return message_class if has_fields else None


def _override(logger: logging.Logger, message_class: type, observer: SelectionObserver) -> None:
    """Override the two methods of the logger that the driver calls."""
    receivers: dict[str, Callable[[Mapping[str, Any]], None]] = {
        "Server selection started": observer.started,
        "Waiting for suitable server to become available": observer.waiting,
        "Server selection succeeded": observer.succeeded,
        "Server selection failed": observer.failed,
    }

    def is_enabled_for(level: int) -> bool:
        # Only the driver gets a different result. The class is checked each time, because it may be changed later.
        return (level == logging.DEBUG and is_wanted(sys._getframe(1))) or bool(
            type(logger).isEnabledFor(logger, level)
        )

    def is_wanted(asking: types.FrameType) -> bool:
        if not asking.f_globals.get("__name__", "").startswith("pymongo."):
            return False
        if _ASKS_AT_START and observer.is_active():
            caller = asking.f_back
            if caller is None or caller.f_code.co_name != _SELECTED:
                return True
        # The end of a wait is needed even if no new messages are.
        return observer.is_waiting()

    def debug(message: object, *args: Any, **kwargs: Any) -> None:
        if type(message) is message_class:
            try:
                fields = message._kwargs  # type: ignore[attr-defined]  # checked before
                receive = receivers.get(fields["message"])
                if receive is not None:
                    receive(fields)
            except FAILURES as error:
                _log.guard.failed("a server selection", error)
        if type(logger).isEnabledFor(logger, logging.DEBUG):
            if type(logger).debug is logging.Logger.debug:  # a subclass may not know the argument
                kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            type(logger).debug(logger, message, *args, **kwargs)

    vars(logger).update(debug=debug, isEnabledFor=is_enabled_for)


def listeners_of(description: TopologyDescription) -> Sequence[object]:
    """Return all listeners of the client that a topology's description belongs to; none if they can't be found."""
    part: Any = description
    for name in ("_topology_settings", "pool_options", "_event_listeners"):
        part = getattr(part, name, None)
    list_listeners = getattr(part, "event_listeners", None)
    return list_listeners() if callable(list_listeners) else ()
