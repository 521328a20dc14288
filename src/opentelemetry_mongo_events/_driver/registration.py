"""Registers listeners with PyMongo, for all clients that are created later.

Since PyMongo 4.11, an `AsyncMongoClient` with topology listeners starts a task for their events when it is created, and
raises an exception if no event loop is running. This would break applications that create a client at module level.
Such a client is therefore created without the registered topology listener, which is added at its first heartbeat.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pymongo import monitoring

from opentelemetry_mongo_events._driver.deferred_listener import DeferredListener
from opentelemetry_mongo_events._driver.encryption import (
    ClientListeners,
    RegisteredListeners,
    replace_registered_lists,
)
from opentelemetry_mongo_events._driver.frames import driver_frames, module
from opentelemetry_mongo_events._driver.versions import TOPOLOGY_LISTENERS_NEED_A_LOOP
from opentelemetry_mongo_events._runtime.guard import Guard

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.listeners import Listener

_ASYNC_CLIENTS: Final = "pymongo.asynchronous.mongo_client"


def register(listener: Listener) -> None:
    """Register a listener permanently: PyMongo has no way to unregister one."""
    replace_registered_lists()
    if TOPOLOGY_LISTENERS_NEED_A_LOOP and isinstance(listener, monitoring.TopologyListener):
        _replace_driver_list()
        deferred = DeferredListener(listener, Guard())
        _TopologyListeners.ours.append(deferred)
        monitoring.register(deferred)
    monitoring.register(listener)


def deferred_listeners(client: object) -> list[monitoring.TopologyListener]:
    """Return the listeners that are still to be added to a client that was created without a running event loop."""
    return [each.listener for each in _TopologyListeners.ours if each.is_waiting_for(client)]


def _replace_driver_list() -> None:
    """Replace the driver's list with one that omits our listeners for clients that can't have topology listeners."""
    registered = getattr(monitoring, "_LISTENERS", None)
    listeners = getattr(registered, "topology_listeners", None)
    if type(listeners) is RegisteredListeners:
        monitoring._LISTENERS = monitoring._LISTENERS._replace(topology_listeners=_TopologyListeners(listeners))


class _TopologyListeners(RegisteredListeners):
    """The registered topology listeners. The driver copies them, as a slice, into each client that it creates."""

    ours: ClassVar[list[DeferredListener]] = []

    def __getitem__(self, key: Any) -> Any:
        selected = super().__getitem__(key)
        if not isinstance(key, slice) or isinstance(selected, ClientListeners):
            return selected
        if asyncio._get_running_loop() is not None:
            return selected
        constructor = next((each for each in driver_frames() if module(each) == _ASYNC_CLIENTS), None)
        if constructor is None:
            return selected
        client = constructor.f_locals.get("self")
        for deferred in self.ours:
            # Compared by identity: other listeners may define `__eq__` in any way.
            kept = [each for each in selected if each is not deferred.listener]
            if len(kept) < len(selected):
                deferred.add_to(client)
            selected = kept
        return selected
