"""Adds a topology listener to an `AsyncMongoClient` once it is used, if it was created without a running event loop.

Since PyMongo 4.11, such a client can't be created with topology listeners: the driver starts a task for them.
"""

from __future__ import annotations

import weakref
from typing import Any

from pymongo.monitoring import (
    ServerHeartbeatStartedEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
    TopologyOpenedEvent,
)
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription

from opentelemetry_mongo_events._driver.client_internals import ClientInternals
from opentelemetry_mongo_events._driver.listeners import QuietHeartbeatListener
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied, guarded
from opentelemetry_mongo_events._runtime.log import warn


class DeferredListener(NeverCopied, QuietHeartbeatListener):
    """Adds a topology listener to clients at their first heartbeat, when their event loop is running.

    Methods are called in the task of a server's monitor. They never raise.

    Args:
        listener: The topology listener.
        guard: Counts and logs failures.
    """

    def __init__(self, listener: TopologyListener, guard: Guard) -> None:
        self.guard = guard
        self.listener = listener
        # The key is the `id()`: a client that is being created has no hash yet.
        self._waiting: dict[int, weakref.ref[Any]] = {}

    def is_waiting_for(self, client: object) -> bool:
        """Whether the listener is still to be added to a client."""
        reference = self._waiting.get(id(client))
        return reference is not None and reference() is client

    def add_to(self, client: object) -> None:
        """Add the listener to a client as soon as it is used. Called by the constructor of the client; never raises."""
        self.guard.run("an AsyncMongoClient without an event loop", self._add_to, client)

    def _add_to(self, client: object) -> None:
        for key, reference in self._waiting.copy().items():
            if reference() is None:
                self._waiting.pop(key, None)
        self._waiting[id(client)] = weakref.ref(client)

    @guarded
    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Add the listener to the client that this server belongs to, if that is still to be done."""
        for key, reference in self._waiting.copy().items():
            client = reference()
            servers = getattr(getattr(client, "_topology", None), "_servers", ())
            # All events of a client's server share one address object, and each client has its own.
            if any(address is event.connection_id for address in list(servers)):
                self._waiting.pop(key, None)
                _append(client, self.listener)
                return


def _append(client: object, listener: TopologyListener) -> None:
    """Add a listener to a client that is in use, and publish to it what the client has published so far."""
    try:
        internals = ClientInternals(client)
    except RuntimeError as error:
        warn(
            "outages are not reported for an AsyncMongoClient that was created without a running event loop: %s",
            error,
        )
        return

    def publish() -> None:
        topology_id, description = internals.topology_id, internals.description
        settings = getattr(description, "_topology_settings", None)
        nothing = TopologyDescription(TOPOLOGY_TYPE.Unknown, {}, None, None, None, settings)
        listener.opened(TopologyOpenedEvent(topology_id))
        listener.description_changed(TopologyDescriptionChangedEvent(nothing, description, topology_id))

    internals.append_for_topology([listener], publish)
