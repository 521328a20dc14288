"""The listeners that the driver calls: their types, and one for pools that notes nothing."""

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
    ServerHeartbeatListener,
    TopologyListener,
)

Listener: TypeAlias = CommandListener | ConnectionPoolListener | ServerHeartbeatListener | TopologyListener


class QuietPoolListener(ConnectionPoolListener):
    """Each method that the driver calls, for who has another one for some of them only."""

    def pool_created(self, event: PoolCreatedEvent) -> None:
        """Nothing to note."""

    def pool_ready(self, event: PoolReadyEvent) -> None:
        """Nothing to note."""

    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """Nothing to note."""

    def pool_closed(self, event: PoolClosedEvent) -> None:
        """Nothing to note."""

    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        """Nothing to note."""

    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Nothing to note."""

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Nothing to note."""

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """Nothing to note."""

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """Nothing to note."""

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """Nothing to note."""

    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """Nothing to note."""
