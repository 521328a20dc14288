"""The type of PyMongo's listeners, base classes that ignore all events, and a mark for some listeners."""

from __future__ import annotations

from typing import TypeAlias

from pymongo.monitoring import (
    CommandListener,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
    TopologyListener,
)

Listener: TypeAlias = CommandListener | ConnectionPoolListener | ServerHeartbeatListener | TopologyListener


class ServersListener:
    """Marks a listener that reports a client's servers, as opposed to its commands and connections.

    The internal client of automatic encryption doesn't get such listeners, see `encryption`.
    """


class QuietHeartbeatListener(ServerHeartbeatListener):
    """A heartbeat listener that ignores all events: a base class for listeners that handle only some of them."""

    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Ignore the event."""

    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        """Ignore the event."""

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """Ignore the event."""


class QuietPoolListener(ConnectionPoolListener):
    """A pool listener that ignores all events: a base class for listeners that handle only some of them."""

    def pool_created(self, event: PoolCreatedEvent) -> None:
        """Ignore the event."""

    def pool_ready(self, event: PoolReadyEvent) -> None:
        """Ignore the event."""

    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """Ignore the event."""

    def pool_closed(self, event: PoolClosedEvent) -> None:
        """Ignore the event."""

    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """Ignore the event."""

    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Ignore the event."""

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Ignore the event."""

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """Ignore the event."""

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Ignore the event."""

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Ignore the event."""

    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """Ignore the event."""
