"""Root spans of discoveries (a client looks for its servers) and outages (a client has no writable server).

The driver reports the changes that begin and end them with a delay. The spans have the times of the changes.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, set_span_in_context
from opentelemetry.trace.status import StatusCode

from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._runtime.process import track
from opentelemetry_mongo_events._servers.state import OngoingPeriod, PastPeriod
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.attributes import target
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._servers.state import Delay, Failure, ServerState, TopologyState
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Switch, Telemetry

CLOSED: Final = "closed"
"""The outcome of a period whose client was closed."""

UNINSTRUMENTED: Final = "uninstrumented"
"""The outcome of a period during which the instrumentation was removed."""

_COLLECTED: Final = "collected"
_EXIT: Final = "exit"
_TIMEOUT: Final = "timeout"

# The outcomes of a period that ended because a server is available.
_DISCOVERED: Final = "discovered"
_RECOVERED: Final = "recovered"

# A failure on an affected server may be the first sign of an outage that begins up to this many seconds later.
_WINDOW: Final = 5.0
_MAX_LINKS: Final = 16

# The SDK keeps 128 events per span and drops the oldest ones, which show how the period began. The number of events
# that may repeat indefinitely is limited, to leave room for the others.
_MAX_REPEATED_EVENTS: Final = 96
_MAX_EVENTS: Final = 128

# The driver publishes a heartbeat just before or just after it creates the description that results from it.
_TOLERANCE: Final = 0.1

# On a busy machine, the heartbeat that ends a period is published later. Only the first one after a failure is an
# event, so this can't include any other.
_END_TOLERANCE: Final = 0.5

# The events with which the first discovery of a client begins.
_OPENING: Final = (names.TOPOLOGY_OPENED, names.SERVER_OPENED)

# The seconds between two checks whether the client of a period was garbage-collected. The background worker wakes
# earlier if a period is due.
_CHECK_INTERVAL: Final = 0.5
_MIN_INTERVAL: Final = 0.01

# A period that is over waits up to this many seconds for the selections that wait for it, to link to their spans.
_MAX_WAIT_FOR_SELECTIONS: Final = 0.5

# PyMongo up to 4.8 doesn't report that a client was closed, but its heartbeats stop.
_MAX_SILENCE: Final = 60.0


class Cause(NamedTuple):
    """What caused an outage.

    Attributes:
        error: The class name of the error that made the last server unavailable.
        previous_primary: The address of the replica set's primary before the outage, as text; None if there was none.
    """

    error: str
    previous_primary: str | None


class Period(OngoingPeriod):
    """An open discovery or outage.

    Times are in seconds, by `time.monotonic()`.

    Args:
        previous: The period that this one continues, if that lasted too long.

    Attributes:
        name: The name of its span, which says whether it is a discovery or an outage.
        cause: What caused the outage; None for a discovery.
        topology: The topology.
        context: The context that contains its span, for log records and measurements.
        started: When its span started.
        began: When the discovery or outage began; earlier than `started` if it continues another period.
        telemetry: The telemetry that its span was started with. The span ends there, even if it is replaced.
        switch: The switch of the listeners that it belongs to.
        unavailable_servers: The servers whose loss caused the outage.
    """

    __slots__ = (
        "_addresses",
        "_delays",
        "_events",
        "_failures",
        "_metric_attributes",
        "_more_failed_heartbeats",
        "_span",
        "_start_nanoseconds",
        "_tolerance",
        "_unclaimed",
        "_window",
        "began",
        "cause",
        "name",
        "switch",
        "telemetry",
        "topology",
        "unavailable_servers",
    )

    def __init__(
        self,
        name: str,
        topology: TopologyState,
        telemetry: Telemetry,
        switch: Switch,
        started: float,
        unavailable_servers: Sequence[ServerState] = (),
        cause: Cause | None = None,
        previous: Period | None = None,
    ) -> None:
        self.name = name
        self.cause = cause
        self.topology = topology
        self.telemetry = telemetry
        self.switch = switch
        self.started = started
        self.began: float = started if previous is None else previous.began
        self.unavailable_servers = unavailable_servers
        # The span of the previous period has the events and failures from before the start of this one.
        self._window, self._tolerance = (_WINDOW, _TOLERANCE) if previous is None else (0.0, 0.0)
        self._addresses = {id(server.identity.address) for server in unavailable_servers}
        self._start_nanoseconds = moment(started).nanoseconds
        # A dictionary, as an ordered set: an event that arrives while the period begins may be added twice.
        self._events: dict[BackgroundEvent, None] = {}
        self._more_failed_heartbeats = itertools.count()  # those that are not among the events
        self._failures: list[Failure] = []
        self._delays: list[Delay] = []
        self._unclaimed = [True]
        identity: Attributes = {} if topology.replica_set is None else {names.REPLICA_SET: topology.replica_set}
        attributes = {names.DB_SYSTEM_NAME: names.MONGODB, names.TOPOLOGY_TYPE: topology.type} | identity
        # Set at the start, because a closed client has no servers.
        self._metric_attributes = identity
        for server in topology.members.copy().values() if topology.type == "Single" else ():
            self._metric_attributes = self._metric_attributes | server.attributes
        if len(unavailable_servers) == 1:
            attributes |= unavailable_servers[0].attributes
        if cause is not None and cause.previous_primary is not None:
            attributes[names.OUTAGE_PREVIOUS_PRIMARY] = cause.previous_primary
        links = [Link(previous._span.get_span_context())] if previous is not None and previous._has_span else []
        self._span: Span = INVALID_SPAN
        self.span_context = None
        # If a sampler or a span processor raises, there is no span, but the outage is still measured.
        _periods.guard.run("the start of a discovery or outage", self._start, attributes, links)
        self.context = set_span_in_context(self._span, NO_PARENT)

    def _start(self, attributes: Attributes, links: Sequence[Link]) -> None:
        self._span = self.telemetry.tracer.start_span(
            self.name, NO_PARENT, SpanKind.INTERNAL, attributes, links, start_time=self._start_nanoseconds
        )
        if self._span.is_recording():
            self.span_context = self._span.get_span_context()

    def claim_end(self) -> bool:
        """Claim the right to end the period: returns True to the first caller only, on whichever thread it runs."""
        try:
            return self._unclaimed.pop()  # atomic
        except IndexError:
            return False

    @property
    def _has_span(self) -> bool:
        """Whether it has a span, recorded or not."""
        return self._span.get_span_context().is_valid

    @property
    def due(self) -> float:
        """When it will have lasted for `episode_timeout`."""
        return self.started + self.telemetry.config.episode_timeout

    @property
    def recovery(self) -> tuple[float, int] | None:
        """When a server became available again, and the `id()` of its address; None if none is available.

        This is known from the server's heartbeat, before the driver reports the change.
        """
        answers = [
            (at, id(server.identity.address))
            for server in list(self.topology.members.values())
            for at in server.answers.copy()
            if at > self.started
        ]
        return min(answers, default=None)

    def note(self, background_event: BackgroundEvent) -> None:
        """Add an event, unless it is too old or there are too many. Called on any thread."""
        is_repeated = background_event.name in (names.HEARTBEAT_FAILED, names.POOL_CLEARED)
        limit = _MAX_REPEATED_EVENTS if is_repeated else _MAX_EVENTS
        is_cause = background_event.server in self._addresses and background_event.name == names.HEARTBEAT_FAILED
        tolerance = self._tolerance if is_cause or self.name == names.DISCOVERY else 0
        # A client may be created long before its first use, when its discovery begins.
        is_opening = self._tolerance > 0 and self.name == names.DISCOVERY and background_event.name in _OPENING
        if background_event.at < self.started - tolerance and not is_opening:
            return
        if len(self._events) < limit:
            self._events[background_event] = None
        elif background_event.name == names.HEARTBEAT_FAILED:
            next(self._more_failed_heartbeats)  # atomic

    def add_failure(self, server: ServerState, failure: Failure) -> None:
        """Add a command or a checkout that failed during the outage or shortly before. Called on any thread."""
        is_part = id(server.identity.address) in self._addresses and failure.at >= self.started - self._window
        if failure.is_timeout and failure.at < self.started:
            # The pool was full. This belongs to the outage only if the server was already unresponsive.
            is_part = is_part and server.was_unresponsive(failure.at, self.started - _TOLERANCE)
        if is_part and len(self._failures) < _MAX_LINKS and failure not in self._failures:
            self._failures.append(failure)

    def add_delay(self, delay: Delay) -> None:
        """Add a server selection that waited during the period. Called on any thread."""
        if delay.at >= self.started and len(self._delays) < _MAX_LINKS and delay not in self._delays:
            self._delays.append(delay)

    def end(
        self,
        at: float,
        outcome: str | None = None,
        *,
        ended_by: Collection[int] = (),
        primary: str | None = None,
        continues: bool = False,
    ) -> None:
        """End the span, and measure an outage.

        Args:
            at: When it ended.
            outcome: Why it ended; None if a server is available.
            ended_by: The `id()`s of the addresses of the servers that ended it.
            primary: The result of `find_primary()` at that time.
            continues: Whether another period continues the outage, which is then not measured yet.
        """
        span = self._span
        last = self._stamp(at)
        run = _periods.guard.run
        try:
            # Each has its own guard, so that an error in one doesn't stop the others.
            run("the outcome of a discovery or outage", self._set_outcome, at, outcome, primary)
            run("the links of a discovery or outage", self._add_links, at)
            if self.telemetry.config.events in SPAN_EVENTS:
                run("the events of a discovery or outage", self._add_events, at, last, ended_by)
        finally:
            try:
                span.end(last)
            finally:
                if self.name == names.OUTAGE and not continues:
                    self._measure(max(0.0, at - self.began))

    def _set_outcome(self, at: float, outcome: str | None, primary: str | None) -> None:
        """Set the attributes and the status that are known at the end. A successful discovery is not an error."""
        failures = [each for each in self._events.copy() if each.name == names.HEARTBEAT_FAILED and each.at <= at]
        attributes: Attributes = {}
        if self.cause is None:
            attributes[names.DISCOVERY_OUTCOME] = outcome or _DISCOVERED
            error = outcome and str(failures[0].attributes[names.ERROR_TYPE] if failures else outcome)
        else:
            attributes[names.OUTAGE_OUTCOME] = outcome or _RECOVERED
            if self.telemetry.config.heartbeats:  # otherwise the number is unknown
                attributes[names.OUTAGE_FAILED_HEARTBEAT_COUNT] = len(failures) + next(self._more_failed_heartbeats)
            if primary is not None:
                attributes[names.OUTAGE_PRIMARY] = primary
            error = self.cause.error
        if error is not None:
            attributes[names.ERROR_TYPE] = error
            self._span.set_status(StatusCode.ERROR)
        self._span.set_attributes(attributes)

    def find_primary(self, outcome: str | None, ended_by: Collection[int]) -> str | None:
        """Return the address of the primary that ends the outage now.

        Args:
            outcome: Why the outage ends; None if a server is available.
            ended_by: The `id()`s of the addresses of the servers that end it.

        Returns:
            The address as text; None if no primary ends it, or if the topology is no replica set.
        """
        topology = self.topology
        if outcome is not None:
            return None
        if topology.primary is not None or topology.replica_set is None or topology.type == "Single":
            return topology.primary
        found = [member for address, member in topology.members.copy().items() if address in ended_by]
        return target(found[0].identity.address) if found else None

    def _add_links(self, at: float) -> None:
        if not _accepts_links(self._span):
            return
        for failure in self._failures.copy():
            if failure.at <= at:
                self._span.add_link(failure.span_context)
        for delay in self._delays.copy():
            if delay.since <= at:
                self._span.add_link(delay.span_context)

    def _add_events(self, at: float, last: int, ended_by: Collection[int]) -> None:
        for background_event in sorted(self._events.copy(), key=lambda each: min(each.at, at)):
            has_ended_it = background_event.server in ended_by and background_event.name == names.HEARTBEAT_SUCCEEDED
            if background_event.at <= at + (_END_TOLERANCE if has_ended_it else 0):
                background_event.add_to(self._span, min(self._stamp(background_event.at), last))

    def _measure(self, seconds: float) -> None:
        self.telemetry.instruments.outage_duration.record(seconds, self._metric_attributes, self.context)

    def _stamp(self, at: float) -> int:
        """Convert a time to nanoseconds since the epoch: one offset for the whole span, and never before its start."""
        return self._start_nanoseconds + max(0, int((at - self.started) * 1e9))


def _accepts_links(span: Span) -> bool:
    """Return whether links can be added to a span after its start.

    The API's own method, which some vendors' spans inherit, only issues a Python warning for each link.
    """
    add_link = getattr(span, "add_link", None)
    return add_link is not None and getattr(add_link, "__func__", None) is not Span.add_link


class _Ending(NamedTuple):
    """How a period ended.

    Attributes:
        at: When it ended, by `time.monotonic()`.
        outcome: Why it ended; None if a server is available.
        ended_by: The `id()`s of the addresses of the servers that ended it.
        primary: The address of the primary that ended it, as text; None if none did.
        due: When its span has to end, even if a selection still waits.
    """

    at: float
    outcome: str | None
    ended_by: Collection[int]
    primary: str | None
    due: float


class _Periods:
    """The open periods of this process.

    There is no lock: each step is one atomic operation of a dictionary. A topology has one period at a time. The thread
    that adds the topology to `_current` opens the period. The thread that gets True from `Period.claim_end` ends it and
    removes the topology.

    Attributes:
        guard: Counts and logs failures, such as those of a span processor.
        open: The open periods, as an ordered set.
        ending: The periods that are over, but whose spans still wait for selections.
    """

    def __init__(self) -> None:
        self.guard = Guard()
        self.forget()

    def forget(self) -> None:
        """Forget all periods after a fork: they belong to the parent process."""
        self.open: dict[Period, None] = {}
        self.ending: dict[Period, _Ending] = {}
        self._current: dict[TopologyState, object] = {}

    def begin(self, topology: TopologyState, create: Callable[[], Period]) -> bool:
        """Open a period, unless the topology already has one or is available.

        Args:
            topology: The topology.
            create: Creates the period.

        Returns:
            Whether a period was opened.
        """
        placeholder = object()
        if not topology.lacks_server or self._current.setdefault(topology, placeholder) is not placeholder:
            return False
        track(self)
        try:
            period = create()
            self._add(period)
        except BaseException:
            if topology.period is None:
                self._current.pop(topology, None)
                for unfinished in [each for each in self.open.copy() if each.topology is topology]:
                    self.open.pop(unfinished, None)
            raise
        # Another thread may have handled a change that ends the period before the period was added.
        if not topology.lacks_server:
            end(topology, time.monotonic(), CLOSED if topology.is_closed else None)
        elif period.switch.telemetry is not period.telemetry:
            end(topology, time.monotonic(), UNINSTRUMENTED)
        return True

    def _add(self, period: Period) -> None:
        topology = period.topology
        self.open[period] = None
        self._current[topology] = topology.period = period
        for server in period.unavailable_servers if period.name == names.OUTAGE else ():
            for failure in server.failures.copy():
                period.add_failure(server, failure)
        for delay in topology.delays.copy():
            period.add_delay(delay)
        for background_event in topology.events.copy():
            period.note(background_event)

    def current(self, topology: TopologyState) -> Period | None:
        """Return the open period of a topology, or None."""
        period = self._current.get(topology)
        return period if isinstance(period, Period) else None

    def take(self, topology: TopologyState, expected: Period | None = None) -> Period | None:
        """Remove the open period of a topology. The caller must end it.

        Args:
            topology: The topology.
            expected: The only period to remove; None for any.

        Returns:
            The period, or None if there is none, it isn't the expected one, or another thread has taken it.
        """
        period = self.current(topology)
        if period is None or expected not in (None, period) or not period.claim_end():
            return None
        topology.period = None
        self._current.pop(topology, None)  # from here on another period may begin
        self.open.pop(period, None)
        return period


_periods: Final = _Periods()


def begin_discovery(topology: TopologyState, telemetry: Telemetry, switch: Switch, started: float) -> None:
    """Begin a topology's discovery, unless it is over or has already begun. Called on any thread.

    Args:
        topology: The topology.
        telemetry: Where to report the discovery.
        switch: The switch of the listeners that it belongs to.
        started: When it began, by `time.monotonic()`.
    """
    if not topology.is_discovered:
        _periods.begin(topology, lambda: Period(names.DISCOVERY, topology, telemetry, switch, started))


def begin_outage(
    topology: TopologyState,
    telemetry: Telemetry,
    switch: Switch,
    started: float,
    unavailable_servers: Sequence[ServerState],
    cause: Cause,
) -> None:
    """Begin a topology's outage, unless it already has one.

    Args:
        topology: The topology.
        telemetry: Where to report the outage.
        switch: The switch of the listeners that it belongs to.
        started: When it began, by `time.monotonic()`.
        unavailable_servers: The unavailable servers. Those that became unavailable just before the outage belong to it.
        cause: What caused it.
    """
    lost = [
        server
        for server in unavailable_servers
        if server.unavailable_since is not None and server.unavailable_since >= started - _WINDOW
    ]
    _periods.begin(topology, lambda: Period(names.OUTAGE, topology, telemetry, switch, started, lost, cause))


def end(topology: TopologyState, at: float, outcome: str | None = None, *, ended_by: Collection[int] = ()) -> None:
    """End the open period of a topology, if there is one.

    Args:
        topology: The topology.
        at: When it ended, by `time.monotonic()`.
        outcome: Why it ended; None if a server is available.
        ended_by: The `id()`s of the addresses of the servers that ended it.
    """
    period = _periods.take(topology)
    if period is None:
        return
    topology.past_period = PastPeriod(period.started, at, period.span_context)
    _periods.ending[period] = _Ending(
        at, outcome, ended_by, period.find_primary(outcome, ended_by), time.monotonic() + _MAX_WAIT_FOR_SELECTIONS
    )
    if topology.waiting:
        background_worker.wake()
        return
    if background_worker.thread is not None:
        background_worker.wake()
    _finish(period)


def _finish(period: Period) -> None:
    """End the span of a period that is over, unless another thread has done so."""
    ending = _periods.ending.pop(period, None)
    if ending is None:
        return
    for delay in period.topology.delays.copy():
        period.add_delay(delay)
    _periods.guard.run(
        "the end of a discovery or outage",
        period.end,
        ending.at,
        ending.outcome,
        ended_by=ending.ended_by,
        primary=ending.primary,
    )


def _end_early(period: Period, at: float, outcome: str) -> None:
    """End a period before the driver reports how it ended.

    If a server is available by now, the period ends with the time at which it became available.

    Args:
        period: The period.
        at: When it ends if no server is available, by `time.monotonic()`.
        outcome: Why it ends if no server is available.
    """
    recovery = period.recovery
    if recovery is None:
        end(period.topology, at, outcome)
    else:
        end(period.topology, recovery[0], ended_by=recovery[1:])


def end_all(outcome: str, switch: Switch | None = None) -> None:
    """End all open periods, or those of one switch. Called on any thread; never raises.

    Args:
        outcome: Why they end, if no server is available by now.
        switch: The switch; None for all.
    """
    for period in list(_periods.open):
        if switch is None or period.switch is switch:
            _end_early(period, time.monotonic(), outcome)
    for period in list(_periods.ending):
        if switch is None or period.switch is switch:
            _finish(period)


def watch() -> None:
    """Start the background worker if a period is open.

    The worker ends periods that last too long, whose client is garbage-collected, or that are open when the interpreter
    exits.
    """
    if _periods.open:
        background_worker.wake()


def _check_periods() -> float | None:
    """Check all open periods; return in how many seconds to check again, or None if none is open."""
    for period in list(_periods.open):
        _periods.guard.run("the check of a discovery or outage", _check_period, period)
    for period, ending in list(_periods.ending.copy().items()):
        if not period.topology.waiting or time.monotonic() >= ending.due:
            _finish(period)
    if _periods.ending:
        return _MIN_INTERVAL
    remaining = [period.due - time.monotonic() for period in list(_periods.open)]
    return max(_MIN_INTERVAL, min(_CHECK_INTERVAL, *remaining)) if remaining else None


def _check_period(period: Period) -> None:
    topology, now = period.topology, time.monotonic()
    if topology.gone_at is not None:
        _end_early(period, topology.gone_at, _COLLECTED)
    elif now >= period.due:
        _continue(period, now)


def _continue(period: Period, now: float) -> None:
    """End a period that has lasted too long. Begin the next one, unless no event was received for too long."""
    topology, telemetry = period.topology, period.telemetry
    # If the check is so late that the next period would be overdue too, this one covers both.
    at = period.due if now < 2 * period.due - period.started else now
    if _periods.take(topology, period) is None:
        return  # it has ended already
    max_silence = max(_MAX_SILENCE, 2 * topology.heartbeat_frequency)
    continues = now - topology.last_seen < max_silence and _periods.begin(
        topology,
        lambda: Period(
            period.name, topology, telemetry, period.switch, at, period.unavailable_servers, period.cause, period
        ),
    )
    period.end(at, _TIMEOUT, continues=continues)


background_worker.register(_check_periods, lambda: end_all(_EXIT))
