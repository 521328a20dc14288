"""An independent listener of the same clients: what spans and metrics are compared with."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, get_current_span
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
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
)

from tests.spans import attributes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan

START = "test.start"
END = "test.end"

# What the driver sends by itself: its background threads and tasks are nobody's children.
_BACKGROUND = frozenset({"endSessions", "killCursors"})


class Witness:
    """Numbers the commands of some clients, and counts what their pools do.

    The numbers get into the spans by the hooks, which the package calls with the very events that the driver calls
    listeners with: so a span tells which command's start it was opened for, and which one's end it was ended with.

    Its listeners stand before those of the package. It keeps nothing of an event but numbers and names.
    """

    def __init__(self) -> None:
        self.commands = _Commands()
        self.pools = _Pools()

    @property
    def listeners(self) -> list[Any]:
        """What observes the clients."""
        return [self.commands, self.pools]

    @property
    def hooks(self) -> Mapping[str, Any]:
        """What `event_listeners()` is to be called with."""
        seen = self.commands

        def started(span: Span, event: CommandStartedEvent) -> None:
            span.set_attribute(START, seen.now.get(id(event), -1))

        def ended(span: Span, event: CommandSucceededEvent | CommandFailedEvent) -> None:
            span.set_attribute(END, seen.now.get(id(event), -1))

        return {"request_hook": started, "response_hook": ended, "failed_hook": ended}

    def compare(self, spans: list[ReadableSpan], since: int = 0) -> int:
        """Hold the spans of commands against what was seen; how many were ended without an end of their command.

        Args:
            spans: All of them.
            since: The number after which commands count.
        """
        starts = {number: start for number, start in self.commands.starts.items() if number > since}
        all_told = [(span, attributes(span)) for span in spans]
        told = [(span, values) for span, values in all_told if values.get(START, -1) > since]
        ends = {number: end for number, end in self.commands.ends.items() if number > since}
        assert sorted(values[START] for _, values in told) == sorted(starts), "one span for each command"
        ended = [values[END] for _, values in told if END in values]
        assert len(ended) == len(set(ended)), "one span for each end"
        if not since:  # else there are ends of commands that started before
            assert set(ended) == set(ends)
        for span, values in told:
            name, request_id, server, parent = starts[values[START]]
            assert values["db.operation.name"] == name
            if END in values:
                assert ends[values[END]] == (name, request_id, server)
            else:
                assert values["error.type"] == "interrupted"
            if name not in _BACKGROUND:
                assert (span.parent.span_id if span.parent else 0) == parent, span.name
        return len(starts) - len(ended)


def check_connections(spans: list[ReadableSpan]) -> None:
    """A connection has one number of the server's and one of the driver's. FerretDB gives all of them the same."""
    connections: dict[tuple[Any, Any], set[Any]] = {}
    for span in spans:
        values = attributes(span)
        server_connection = values.get("db.mongodb.server_connection_id")
        if server_connection is not None and "db.mongodb.driver_connection_id" in values:
            key = values["server.port"], server_connection
            connections.setdefault(key, set()).add(values["db.mongodb.driver_connection_id"])
    assert [several for several in connections.values() if len(several) > 1] == []


class _Commands(CommandListener):
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.last = 0
        """The newest number."""
        self.starts: dict[int, tuple[str, int, Any, int]] = {}
        """The name, the ids of request and server connection, and the caller's span, by the command's number."""
        self.ends: dict[int, tuple[str, int, Any]] = {}
        self.now: dict[int, int] = {}
        """The numbers of the events that listeners are being called with, by the events' identities."""

    def started(self, event: CommandStartedEvent) -> None:
        number = self._number(event)
        parent = get_current_span().get_span_context().span_id
        self.starts[number] = (event.command_name, event.request_id, _server_connection(event), parent)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._end(event)

    def failed(self, event: CommandFailedEvent) -> None:
        self._end(event)

    def _end(self, event: CommandSucceededEvent | CommandFailedEvent) -> None:
        self.ends[self._number(event)] = (event.command_name, event.request_id, _server_connection(event))

    def _number(self, event: Any) -> int:
        # An identity that comes again is that of another event, which is numbered before anybody asks.
        number = self.last = self.now[id(event)] = next(self._numbers)
        return number


def _server_connection(event: Any) -> Any:
    return getattr(event, "server_connection_id", None)


class _Pools(ConnectionPoolListener):
    """Counts events of pools.

    Where the driver closes a connection before it gives it back, as after a cancelled command, it tells twice that it
    is closed, and that is where its use ends. Where it gives one back without a word, as where the task is cancelled
    then, there is no time of the next wait for it.
    """

    def __init__(self) -> None:
        self._events: list[str] = []
        self._made: dict[tuple[int, int], None] = {}
        self._out: dict[tuple[int, int, int], None] = {}

    @property
    def counts(self) -> Counter[str]:
        """How many there were of each."""
        return Counter(self._events)

    def pool_created(self, event: PoolCreatedEvent) -> None:
        self._events.append("pool created")

    def pool_ready(self, event: PoolReadyEvent) -> None:
        self._events.append("pool ready")

    def pool_cleared(self, event: PoolClearedEvent) -> None:
        self._events.append("pool cleared")

    def pool_closed(self, event: PoolClosedEvent) -> None:
        self._events.append("pool closed")

    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        self._events.append("created")
        self._forget(event)  # its pool may have the address of one that is gone
        self._made[_connection(event)] = None

    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        self._events.append("ready")

    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        self._events.append("closed" if _connection(event) in self._made else "closed again")
        self._events += ["closed in use"] * len(self._known(event))
        self._forget(event)

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        # PyMongo 4.0 tells a failure here.
        self._events.append("failed" if isinstance(event, ConnectionCheckOutFailedEvent) else "started")

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        self._events.append("failed")

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        key = (*_connection(event), threading.get_ident())
        self._events.append("checked out again" if key in self._out else "checked out")
        self._out[key] = None

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        known = self._known(event)
        mine = (*_connection(event), threading.get_ident())
        for key in [mine] if mine in known else known[:1]:
            self._out.pop(key, None)
        self._events.append("checked in" if known else "checked in after its end")

    def _known(self, event: Any) -> list[tuple[int, int, int]]:
        return [key for key in self._out.copy() if key[:2] == _connection(event)]

    def _forget(self, event: Any) -> None:
        self._made.pop(_connection(event), None)
        for key in self._known(event):
            self._out.pop(key, None)


def _connection(event: Any) -> tuple[int, int]:
    # Not the address itself: by the references to it the package knows whether a pool lives.
    return id(event.address), event.connection_id
