"""Real PyMongo events, as the driver makes them."""

from __future__ import annotations

import datetime
import functools
import inspect
from typing import Any

from bson import ObjectId
from pymongo.hello import Hello
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandStartedEvent,
    CommandSucceededEvent,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
    ServerHeartbeatFailedEvent,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
)
from pymongo.server_description import ServerDescription
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription

ADDRESS = ("db.example", 27017)
SERVER_CONNECTION_ID = 7

_DURATION = datetime.timedelta(milliseconds=5)


def _made(event: Any, *args: Any, **optional: Any) -> Any:
    """The event, with those of the optional arguments that this version of the driver has."""
    known = {name: value for name, value in optional.items() if name in _parameters(event)}
    return event(*args, **known)


@functools.cache
def _parameters(event: Any) -> frozenset[str]:
    return frozenset(inspect.signature(event).parameters)


def _command_event(
    event: Any,
    *told: Any,
    request_id: int = 1,
    address: Any = ADDRESS,
    operation_id: int | None = None,
    server_connection_id: int | None = SERVER_CONNECTION_ID,
) -> Any:
    operation_id = request_id if operation_id is None else operation_id
    return _made(event, *told, request_id, address, operation_id, server_connection_id=server_connection_id)


def started(command: Any, *, database: str = "shop", **identity: Any) -> CommandStartedEvent:
    """A command was sent."""
    event: CommandStartedEvent = _command_event(CommandStartedEvent, command, database, **identity)
    return event


def succeeded(command_name: str, reply: Any = None, *, micros: int = 5_000, **identity: Any) -> CommandSucceededEvent:
    """Its reply came."""
    reply = {"ok": 1} if reply is None else reply
    duration = datetime.timedelta(microseconds=micros)
    event: CommandSucceededEvent = _command_event(CommandSucceededEvent, duration, reply, command_name, **identity)
    return event


def failed(command_name: str, failure: Any, **identity: Any) -> CommandFailedEvent:
    """It failed."""
    event: CommandFailedEvent = _command_event(CommandFailedEvent, _DURATION, failure, command_name, **identity)
    return event


def pool_created(address: Any = ADDRESS, **options: Any) -> PoolCreatedEvent:
    """A pool is there, with those options that differ from the defaults."""
    return PoolCreatedEvent(address, options)


def pool_ready(address: Any = ADDRESS) -> PoolReadyEvent:
    """It is in use."""
    return PoolReadyEvent(address)


def pool_cleared(address: Any = ADDRESS) -> PoolClearedEvent:
    """All its connections are stale."""
    return PoolClearedEvent(address)


def pool_closed(address: Any = ADDRESS) -> PoolClosedEvent:
    """It is gone."""
    return PoolClosedEvent(address)


def connection_created(connection_id: int, address: Any = ADDRESS) -> ConnectionCreatedEvent:
    """The driver begins to make a connection."""
    return ConnectionCreatedEvent(address, connection_id)


def connection_ready(
    connection_id: int, address: Any = ADDRESS, *, duration: float | None = 0.001
) -> ConnectionReadyEvent:
    """The connection is made."""
    event: ConnectionReadyEvent = _made(ConnectionReadyEvent, address, connection_id, duration=duration)
    return event


def check_out_started(address: Any = ADDRESS) -> ConnectionCheckOutStartedEvent:
    """The current thread or task waits for a connection."""
    return ConnectionCheckOutStartedEvent(address)


def check_out_failed(
    reason: str, address: Any = ADDRESS, *, duration: float | None = 0.001
) -> ConnectionCheckOutFailedEvent:
    """It gets none."""
    event: ConnectionCheckOutFailedEvent = _made(ConnectionCheckOutFailedEvent, address, reason, duration=duration)
    return event


def checked_out(
    connection_id: int, address: Any = ADDRESS, *, duration: float | None = 0.001
) -> ConnectionCheckedOutEvent:
    """The current thread or task got a connection."""
    event: ConnectionCheckedOutEvent = _made(ConnectionCheckedOutEvent, address, connection_id, duration=duration)
    return event


def checked_in(connection_id: int, address: Any = ADDRESS) -> ConnectionCheckedInEvent:
    """It gave the connection back."""
    return ConnectionCheckedInEvent(address, connection_id)


def connection_closed(connection_id: int, address: Any = ADDRESS, reason: str = "error") -> ConnectionClosedEvent:
    """The connection is gone."""
    return ConnectionClosedEvent(address, connection_id, reason)


def heartbeat_started(address: Any, *, awaited: bool = False) -> ServerHeartbeatStartedEvent:
    """A monitor asks its server what it is."""
    event: ServerHeartbeatStartedEvent = _made(ServerHeartbeatStartedEvent, address, awaited=awaited)
    return event


def heartbeat_succeeded(
    address: Any, *, duration: float, awaited: bool = False, reply: Hello[Any] | None = None
) -> ServerHeartbeatSucceededEvent:
    """A server answered its monitor, after that many seconds."""
    return ServerHeartbeatSucceededEvent(duration, Hello({}) if reply is None else reply, address, awaited)


def heartbeat_failed(
    address: Any, error: Exception, *, duration: float, awaited: bool = False
) -> ServerHeartbeatFailedEvent:
    """It did not."""
    return ServerHeartbeatFailedEvent(duration, error, address, awaited)


TOPOLOGY_ID = ObjectId(bytes(12))
ADDRESSES: list[tuple[str, int | None]] = [("db.example", 27017 + number) for number in range(100)]


def topology_changed(servers: int) -> TopologyDescriptionChangedEvent:
    """A topology has that many servers by now, of which nothing is known yet."""
    before, after = (
        TopologyDescription(TOPOLOGY_TYPE.Unknown, servers, None, None, None, None)
        for servers in ({}, {address: ServerDescription(address) for address in ADDRESSES[:servers]})
    )
    return TopologyDescriptionChangedEvent(before, after, TOPOLOGY_ID)


class QuietTopologyListener(TopologyListener):
    """A listener of another package or of the application, which ignores all events."""

    def opened(self, event: Any) -> None: ...
    def description_changed(self, event: Any) -> None: ...
    def closed(self, event: Any) -> None: ...
