"""Server selections that wait for a server: a span and a measurement for each, and the wait for the next command."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.trace import Link, SpanKind, get_current_span, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._driver.values import plain_text
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._runtime.stacks import Runner, current_task
from opentelemetry_mongo_events._servers.state import Delay
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import server_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._servers.state import TopologyState
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# A selection that waits for less than this many seconds gets no span.
_MIN_SPAN: Final = 0.01

# The driver's name of a selection that no command follows, as when an application reads `client.address`.
_WITHOUT_COMMAND: Final = "testOperation"


class _Delay(NamedTuple):
    """How long a command waited for the selection of its server.

    Attributes:
        seconds: The wait.
        address: The selected server.
        is_checkout: Whether the checkout of a connection has begun since then.
    """

    seconds: float
    address: Address
    is_checkout: bool = False


_delay: ContextVar[_Delay | None] = ContextVar("opentelemetry_mongo_events_selection_delay", default=None)

pending_delay: Final = _delay.get
"""Returns the pending wait or, usually, None. Then `begin_checkout()` and `take_delay()` need not be called."""


def set_delay(seconds: float, address: Address) -> None:
    """Keep the wait of the current thread or task for the next command.

    Args:
        seconds: How long the selection waited.
        address: The selected server.
    """
    _delay.set(_Delay(seconds, address))


def begin_checkout(address: Address) -> None:
    """Note that the current thread or task begins to check out a connection.

    The driver does so right after it has selected the server. Any other wait that was kept belongs to a cancelled
    checkout and is discarded.
    """
    delay = _delay.get()
    if delay is not None:
        is_for_this = not delay.is_checkout and delay.address == address
        _delay.set(delay._replace(is_checkout=True) if is_for_this else None)


def take_delay() -> float | None:
    """Return and discard the wait of the server selection before the checkout of the current thread or task.

    Returns:
        The wait in seconds, rounded to microseconds; None if it didn't wait.
    """
    delay = _delay.get()
    if delay is None or not delay.is_checkout:
        return None
    _delay.set(None)
    return round(delay.seconds, 6)


class Selection:
    """A server selection that is waiting.

    Args:
        fields: The fields of the driver's log message.
        telemetry: The telemetry that was in effect when the wait began. The span ends there, even if it is replaced.
        topology: The state of the topology; None if topologies aren't instrumented.
        context: The caller's context.

    Attributes:
        client_id: The driver's id of the client's topology.
        runner: The thread or task that waits.
        key: Identifies the thread or task while it exists.
        since: When the wait began, by `time.monotonic()`.
    """

    __slots__ = (
        "__weakref__",
        "_attributes",
        "_context",
        "_nanoseconds",
        "_operation",
        "_replica_set",
        "_telemetry",
        "_topology",
        "client_id",
        "key",
        "runner",
        "since",
    )

    def __init__(
        self, fields: Mapping[str, Any], telemetry: Telemetry, topology: TopologyState | None, context: Context
    ) -> None:
        description = fields["topologyDescription"]
        self.since, self._nanoseconds = moment()
        self.client_id = fields["clientId"]
        task = current_task()
        self.runner = Runner(task)
        self.key = self.runner.thread if task is None else id(task)
        self._telemetry = telemetry
        self._topology = topology
        self._context = context
        self._operation = plain_text(fields["operation"]) or names.OTHER
        self._replica_set: str | None = description.replica_set_name
        self._attributes: Attributes = {
            names.DB_SYSTEM_NAME: names.MONGODB,
            names.DB_OPERATION_NAME: self._operation,
            names.SERVER_SELECTOR: _selector_name(fields["selector"]),
            names.TOPOLOGY_TYPE: description.topology_type_name,
        }
        if topology is not None:
            topology.waiting[self] = None

    @property
    def precedes_command(self) -> bool:
        """Whether the driver selects the server in order to send it a command."""
        return self._operation != _WITHOUT_COMMAND

    def end(
        self, at: float, error: str | None = None, *, address: Address | None = None, replica_set: str | None = None
    ) -> None:
        """Record the span, if it gets one, and measure the wait.

        Called on the caller's thread if the selection succeeded, otherwise on the background thread.

        Args:
            at: When it ended, by `time.monotonic()`.
            error: The name of the error; None if a server was selected.
            address: The selected server.
            replica_set: The name of the replica set, if it is known by now.
        """
        replica_set = replica_set or self._replica_set
        seconds = max(0.0, at - self.since)
        context = self._context
        measured: Attributes = {} if replica_set is None else {names.REPLICA_SET: replica_set}
        if error is not None:
            measured[names.ERROR_TYPE] = error
        try:
            if self._gets_span(seconds, error):
                context = self._record_span(at, error, self._attributes | server_attributes(address) | measured)
        finally:
            self.leave_topology()
            self._telemetry.instruments.selection_wait_time.record(seconds, measured, context)

    def leave_topology(self) -> None:
        """Note that the topology's discovery or outage no longer has to wait for this selection."""
        if self._topology is not None:
            self._topology.waiting.pop(self, None)

    def _gets_span(self, seconds: float, error: str | None) -> bool:
        config = self._telemetry.config
        if (error is None and seconds < _MIN_SPAN) or self._operation in config.exclude_commands:
            return False
        return not config.require_parent_span or get_current_span(self._context).get_span_context().is_valid

    def _record_span(self, at: float, error: str | None, attributes: Attributes) -> Context:
        """Record the span; return the context that contains it, for an exemplar."""
        topology = self._topology
        period = None if topology is None else topology.period_during(self.since, at)
        span = self._telemetry.tracer.start_span(
            names.SELECT_SERVER,
            self._context,
            SpanKind.INTERNAL,
            attributes,
            None if period is None else [Link(period)],
            start_time=self._nanoseconds,
        )
        span_context = span.get_span_context()
        try:
            if error is not None:
                span.set_status(Status(StatusCode.ERROR))
            if topology is not None and span_context.trace_flags.sampled:
                topology.note_delay(Delay(self.since, at, span_context))
        finally:
            span.end(self._nanoseconds + int(max(0.0, at - self.since) * 1e9))
        return set_span_in_context(span, self._context)


def _selector_name(selector: Any) -> str:
    """Return the name of a selector: the mode of a read preference, or the driver's name of the selector function.

    The driver calls its functions `writable_server_selector`, `any_server_selector` and so on.
    """
    mode = getattr(selector, "mongos_mode", None)
    if isinstance(mode, str):
        return mode
    name = getattr(selector, "__name__", None)
    return name.removesuffix("_server_selector") if isinstance(name, str) else names.OTHER
