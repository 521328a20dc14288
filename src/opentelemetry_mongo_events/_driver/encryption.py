"""Omits listeners from the clients that PyMongo creates for automatic encryption.

A client with `AutoEncryptionOpts` creates two more clients in its constructor:

- one for mongocryptd, a process on the same host to which each command is sent in plain text, to find out what is to be
  encrypted. The process ends when it is idle, so this client often has no server. It gets none of our listeners.
- an internal one for the key vault and the options of collections, with a copy of the client's own arguments. Its
  commands are work that the caller waits for, but its servers are those of the client itself. It gets no listener that
  reports servers.

No event tells these clients from others. But the driver copies the registered lists of listeners in each client's
constructor, as slices, and then appends the listeners of the argument `event_listeners`. So a list that knows which
constructor has called it can omit both.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pymongo import monitoring

from opentelemetry_mongo_events._driver.listeners import ServersListener
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard
from opentelemetry_mongo_events._runtime.process import SharedLock

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable, Iterator

# Which listeners a client doesn't get.
_Rule: TypeAlias = "Callable[[object], bool]"

# Before 4.9 there are no asyncio clients, and the modules are in the package itself.
_CLIENT_MODULES: Final = frozenset(f"pymongo.{part}mongo_client" for part in ("", "synchronous.", "asynchronous."))
_ENCRYPTION_MODULES: Final = frozenset(f"pymongo.{part}encryption" for part in ("", "synchronous.", "asynchronous."))

# The driver's method that creates a client with the arguments of another one. Only automatic encryption uses it.
_COPY: Final = "_duplicate"

# How many callers are looked at to find the constructor of a client, and who calls it. Without wrappers of other
# packages these are ten.
_MAX_FRAMES: Final = 40

_OUR_PACKAGE: Final = f"{__name__.partition('.')[0]}."

_guard: Final = Guard()
_lock: Final = SharedLock()


def replace_registered_lists() -> None:
    """Replace the driver's lists of registered listeners by lists that know the clients for automatic encryption.

    Called on any thread, before a client gets listeners of this package. A list of an unknown type stays as it is.
    """
    with _lock():
        registered = getattr(monitoring, "_LISTENERS", None)
        lists = {name: getattr(registered, name) for name in getattr(registered, "_fields", ())}
        new = {name: RegisteredListeners(each) for name, each in lists.items() if type(each) is list}
        if new:
            monitoring._LISTENERS = monitoring._LISTENERS._replace(**new)


class RegisteredListeners(list[Any]):
    """Registered listeners of one class. The driver copies them, as a slice, into each client that it creates."""

    def __getitem__(self, key: Any) -> Any:
        selected = super().__getitem__(key)
        if not isinstance(key, slice):
            return selected
        try:
            omits = _rule_for_new_client()
            return selected if omits is None else ClientListeners(selected, omits)
        except FAILURES as error:
            _guard.failed("the listeners of a new client", error)
            return selected


class ClientListeners(list[Any]):
    """The listeners of one class that a client for automatic encryption gets.

    Args:
        listeners: The registered ones.
        omits: Which listeners the client doesn't get, neither now nor when the driver appends those that were passed
            to the application's own client.
    """

    def __init__(self, listeners: Iterable[Any], omits: _Rule) -> None:
        super().__init__(each for each in listeners if not omits(each))
        self.omits = omits

    def append(self, listener: Any) -> None:
        """Add a listener, unless the client doesn't get it."""
        if not self.omits(listener):
            super().append(listener)


def _is_ours(listener: object) -> bool:
    return type(listener).__module__.startswith(_OUR_PACKAGE)


def _reports_servers(listener: object) -> bool:
    return isinstance(listener, ServersListener)


def _rule_for_new_client() -> _Rule | None:
    """Return which listeners the client doesn't get whose constructor has called this; None if it gets all."""
    frames = driver_frames()
    for frame in frames:
        if _module(frame) in _CLIENT_MODULES:
            break
    else:
        return None
    if frame.f_code.co_name != "__init__":
        # Since 4.13 a client with a mongodb+srv address gets listeners anew when it has resolved the address.
        return _rule_of(frame.f_locals.get("self"))
    caller = next(frames, None)
    if caller is not None and _module(caller) in _CLIENT_MODULES and caller.f_code.co_name == _COPY:
        caller = next(frames, None)
        return _reports_servers if caller is not None and _module(caller) in _ENCRYPTION_MODULES else None
    # Other functions of these modules call the application, which may create clients of its own.
    is_for_mongocryptd = (
        caller is not None and _module(caller) in _ENCRYPTION_MODULES and caller.f_code.co_name == "__init__"
    )
    return _is_ours if is_for_mongocryptd else None


def driver_frames() -> Iterator[types.FrameType]:
    """Yield the driver's frames on the current stack, the innermost first."""
    frame: types.FrameType | None = sys._getframe()
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return
        if _module(frame).startswith("pymongo."):
            yield frame
        frame = frame.f_back


def _module(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _rule_of(client: object) -> _Rule | None:
    """Return which listeners an existing client did not get; None if it got all."""
    listeners = getattr(getattr(client, "_event_listeners", None), "_EventListeners__command_listeners", None)
    return listeners.omits if isinstance(listeners, ClientListeners) else None
