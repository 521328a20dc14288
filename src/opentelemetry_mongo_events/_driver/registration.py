"""How listeners are registered with the driver, for all clients that are made from then on.

From 4.11 on the driver starts a task for what it tells of a topology as soon as an `AsyncMongoClient` is made, and
raises where no event loop runs: so no application could make one at the top of a module any more. Such a client has to
be made without the registered listener.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pymongo import monitoring

from opentelemetry_mongo_events._driver.versions import TOPOLOGY_LISTENERS_NEED_A_LOOP
from opentelemetry_mongo_events._runtime.log import warn

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.listeners import Listener

_ASYNC_CLIENTS: Final = "pymongo.asynchronous.mongo_client"


def register(listener: Listener) -> None:
    """Register a listener, for good: the driver has no way to take one out."""
    if TOPOLOGY_LISTENERS_NEED_A_LOOP and isinstance(listener, monitoring.TopologyListener):
        _replace_list()
        _TopologyListeners.ours.append(listener)
    monitoring.register(listener)


def _replace_list() -> None:
    """Put a list in the place of the driver's that gives a client which can't have topology listeners none of ours."""
    registered = getattr(monitoring, "_LISTENERS", None)
    listeners = getattr(registered, "topology_listeners", None)
    if type(listeners) is list:
        monitoring._LISTENERS = monitoring._LISTENERS._replace(topology_listeners=_TopologyListeners(listeners))


class _TopologyListeners(list[Any]):
    """Those that are registered. The driver copies them into each client that it makes."""

    ours: ClassVar[list[Listener]] = []
    _has_warned = False

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(key, slice) or asyncio._get_running_loop() is not None or not _is_for_async_client():
            return found
        if not self._has_warned:
            _TopologyListeners._has_warned = True
            warn(
                "an AsyncMongoClient was made where no event loop runs. PyMongo can't tell listeners of its servers "
                "then: its outages are not observed. Make it in the event loop, or call "
                "MongoEventsInstrumentor().instrument_client(client) there (this is logged once)"
            )
        return [each for each in found if not any(each is listener for listener in self.ours)]


def _is_for_async_client() -> bool:
    """Whether this is called as an `AsyncMongoClient` is made."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == _ASYNC_CLIENTS:
            return True
        frame = caller
    return False
