"""Finds the session of a command that is being sent. The driver's events have a session's id, but not the session."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from pymongo import version_tuple
from pymongo.client_session import ClientSession
from pymongo.errors import InvalidOperation

from opentelemetry_mongo_events._driver.frames import driver_frames

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLASSES: Final[tuple[Any, ...]] = (
    ClientSession,
    *(
        [importlib.import_module("pymongo.asynchronous.client_session").AsyncClientSession]
        if version_tuple >= (4, 9)
        else []
    ),
)


class Session(Protocol):
    """The common interface of `ClientSession` and `AsyncClientSession`."""

    @property
    def session_id(self) -> Mapping[str, Any]: ...

    @property
    def has_ended(self) -> bool: ...

    @property
    def in_transaction(self) -> bool: ...


def current_session(session_id: object) -> Session | None:
    """Return the session of the command that the current thread or task is about to send.

    The driver passes the session from function to function, so it is a local variable of a caller. Inspecting the stack
    is slow, so call this rarely.

    Args:
        session_id: The command's `lsid`.

    Returns:
        The session; None if no function of the driver on the stack has it as a local variable.
    """
    for frame in driver_frames():
        for value in frame.f_locals.values():
            # The type, not `__class__`: a proxy object may raise when it is used.
            if issubclass(type(value), _CLASSES) and _has_id(value, session_id):
                session: Session = value
                return session
    return None


def _has_id(session: Any, session_id: object) -> bool:
    try:
        return bool(session.session_id == session_id)
    except InvalidOperation:  # it has ended
        return False
