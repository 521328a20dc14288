"""Omits listeners from the clients that PyMongo creates for automatic encryption.

A client with `AutoEncryptionOpts` creates two more clients in its constructor:

- one for mongocryptd, a process on the same host that receives each command in plain text and returns what has to be
  encrypted. The process ends when it is idle, so this client often has no server. It gets none of our listeners.
- an internal one for the key vault and the options of collections, with a copy of the client's own arguments. The
  caller waits for its commands, but its servers are the same as the client's. It gets no listener that reports servers.

Events don't show which client they belong to. But in each client's constructor, the driver copies the lists of
registered listeners, as slices, and then appends the listeners of the argument `event_listeners`. A list that finds out
which constructor uses it can therefore omit listeners of both kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pymongo import monitoring

from opentelemetry_mongo_events._driver.frames import driver_frames, module
from opentelemetry_mongo_events._driver.listeners import ServersListener
from opentelemetry_mongo_events._runtime.guard import FAILURES, Guard
from opentelemetry_mongo_events._runtime.process import SharedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Whether a client doesn't get a listener.
_Rule: TypeAlias = "Callable[[object], bool]"

# Before 4.9 there are no asyncio clients, and the modules are in the package itself.
_CLIENT_MODULES: Final = frozenset(f"pymongo.{part}mongo_client" for part in ("", "synchronous.", "asynchronous."))
_ENCRYPTION_MODULES: Final = frozenset(f"pymongo.{part}encryption" for part in ("", "synchronous.", "asynchronous."))

# The driver's method that creates a client with the arguments of another one. Only automatic encryption uses it.
_COPY: Final = "_duplicate"

_OUR_PACKAGE: Final = f"{__name__.partition('.')[0]}."

_guard: Final = Guard()
_lock: Final = SharedLock()


def replace_registered_lists() -> None:
    """Replace the driver's lists of registered listeners with lists that recognize clients for automatic encryption.

    Called on any thread, before a client gets listeners of this package. A list of an unknown type is not replaced.
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
        listeners: The registered listeners.
        omits: Whether to omit a listener, both now and when the driver appends the listeners that were passed to the
            application's own client.
    """

    def __init__(self, listeners: Iterable[Any], omits: _Rule) -> None:
        super().__init__(each for each in listeners if not omits(each))
        self.omits = omits

    def append(self, listener: Any) -> None:
        """Add a listener, unless it is to be omitted."""
        if not self.omits(listener):
            super().append(listener)


def _is_ours(listener: object) -> bool:
    return type(listener).__module__.startswith(_OUR_PACKAGE)


def _reports_servers(listener: object) -> bool:
    return isinstance(listener, ServersListener)


def _rule_for_new_client() -> _Rule | None:
    """Return the rule for the client whose constructor called this; None if the client gets all listeners."""
    frames = driver_frames()
    for frame in frames:
        if module(frame) in _CLIENT_MODULES:
            break
    else:
        return None
    if frame.f_code.co_name != "__init__":
        # Since 4.13, a client with a mongodb+srv address gets its listeners again when it has resolved the address.
        return _rule_of(frame.f_locals.get("self"))
    caller = next(frames, None)
    if caller is not None and module(caller) in _CLIENT_MODULES and caller.f_code.co_name == _COPY:
        caller = next(frames, None)
        return _reports_servers if caller is not None and module(caller) in _ENCRYPTION_MODULES else None
    # Other functions of these modules call the application, which may create its own clients.
    is_for_mongocryptd = (
        caller is not None and module(caller) in _ENCRYPTION_MODULES and caller.f_code.co_name == "__init__"
    )
    return _is_ours if is_for_mongocryptd else None


def _rule_of(client: object) -> _Rule | None:
    """Return the rule for an existing client; None if the client got all listeners."""
    listeners = getattr(getattr(client, "_event_listeners", None), "_EventListeners__command_listeners", None)
    return listeners.omits if isinstance(listeners, ClientListeners) else None
