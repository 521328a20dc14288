"""Registers listeners with PyMongo, for all clients that are created later.

Since PyMongo 4.11 an `AsyncMongoClient` with topology listeners starts a task for their events as soon as it is
created, and raises an exception if no event loop is running. Applications that create a client at module level would
break, so such a client is created without the registered topology listener.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pymongo import monitoring

from opentelemetry_mongo_events._driver.encryption import ClientListeners, RegisteredListeners, replace_registered_lists
from opentelemetry_mongo_events._driver.versions import TOPOLOGY_LISTENERS_NEED_A_LOOP
from opentelemetry_mongo_events._runtime.log import warn

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.listeners import Listener

_ASYNC_CLIENTS: Final = "pymongo.asynchronous.mongo_client"


def register(listener: Listener) -> None:
    """Register a listener permanently: PyMongo has no way to unregister one."""
    replace_registered_lists()
    if TOPOLOGY_LISTENERS_NEED_A_LOOP and isinstance(listener, monitoring.TopologyListener):
        _replace_driver_list()
        _TopologyListeners.ours.append(listener)
    monitoring.register(listener)


def _replace_driver_list() -> None:
    """Replace the driver's list with one that omits our listeners for clients that can't have topology listeners."""
    registered = getattr(monitoring, "_LISTENERS", None)
    listeners = getattr(registered, "topology_listeners", None)
    if type(listeners) is RegisteredListeners:
        monitoring._LISTENERS = monitoring._LISTENERS._replace(topology_listeners=_TopologyListeners(listeners))


class _TopologyListeners(RegisteredListeners):
    """The registered topology listeners. The driver copies them, as a slice, into each client that it creates."""

    ours: ClassVar[list[Listener]] = []
    _has_warned = False

    def __getitem__(self, key: Any) -> Any:
        selected = super().__getitem__(key)
        if isinstance(selected, ClientListeners):
            return selected
        if not isinstance(key, slice) or asyncio._get_running_loop() is not None or not _is_for_async_client():
            return selected
        if not self._has_warned:
            _TopologyListeners._has_warned = True
            warn(
                "an AsyncMongoClient was made where no event loop runs. PyMongo can't tell listeners of its servers "
                "then: its outages are not observed. Make it in the event loop, or call "
                "MongoEventsInstrumentor().instrument_client(client) there (this is logged once)"
            )
        return [each for each in selected if not any(each is listener for listener in self.ours)]


def _is_for_async_client() -> bool:
    """Whether this is called by the constructor of an `AsyncMongoClient`."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == _ASYNC_CLIENTS:
            return True
        frame = caller
    return False
