"""What a client goes through as a whole, as root spans: it looks for its servers, or has none that it can write to.

They are found out about by what the driver hands over about a second late, and have the times of what made them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import INVALID_SPAN, Link, SpanKind, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from opentelemetry_mongo_events._config import SPAN_EVENTS
from opentelemetry_mongo_events._runtime.background import BackgroundWorker
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._runtime.process import track
from opentelemetry_mongo_events._servers.state import OngoingPeriod
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from opentelemetry.trace import Span

    from opentelemetry_mongo_events._driver.identity import Address
    from opentelemetry_mongo_events._servers.events import BackgroundEvent
    from opentelemetry_mongo_events._servers.state import Failure, ServerState, TopologyState
    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.telemetry import Switch, Telemetry

UNINSTRUMENTED: Final = "uninstrumented"
"""What an episode ends with when the instrumentation is taken off."""

# What failed so many seconds before an outage, as far as its servers are concerned, may be what was hit by it first.
_BEFORE: Final = 5.0
_LINKS: Final = 16

# The SDK keeps 128 events of a span and drops the oldest, which tell how it began. What may come again and again leaves
# room for the rest.
_REPEATED: Final = 96
_ALL: Final = 128

# A heartbeat is published just before, or just after, the description is made that it leads to.
_NEARLY: Final = 0.1

# How often it is looked whether the client of an episode was garbage-collected; an end that is due may be sooner.
_LOOK_AGAIN: Final = 0.5
_AT_ONCE: Final = 0.01

# Up to 4.8 the driver doesn't tell that a client was closed, but there are no heartbeats then.
_SILENCE: Final = 60.0


class Period(OngoingPeriod):
    """A discovery or an outage that is open.

    Times are those of `time.monotonic()`.

    Attributes:
        name: Which of both, as the span is called.
        context: That of its span, for what is part of it.
        started: When its span started.
        began: When it all began: a span that lasts too long ends, and the next one goes on.
        telemetry: Where it ends: whatever is in force by then, what was opened is closed.
        switch: Of which listeners it is.
        lost: The servers whose loss it is.
    """

    __slots__ = (
        "_addresses",
        "_before",
        "_events",
        "_failures",
        "_first",
        "_has_not_ended",
        "_nearly",
        "_span",
        "began",
        "lost",
        "name",
        "started",
        "switch",
        "telemetry",
        "topology",
    )

    def __init__(
        self,
        name: str,
        topology: TopologyState,
        telemetry: Telemetry,
        switch: Switch,
        started: float,
        lost: Sequence[ServerState] = (),
        before: Period | None = None,
    ) -> None:
        self.name = name
        self.topology = topology
        self.telemetry = telemetry
        self.switch = switch
        self.started = started
        self.began: float = started if before is None else before.began
        self.lost = lost
        # What came before a span that goes on with another one was told by that one.
        self._before, self._nearly = (_BEFORE, _NEARLY) if before is None else (0.0, 0.0)
        self._addresses = {id(server.identity.address) for server in lost}
        self._first = moment(started).nanoseconds
        # As keys: what comes as the episode begins may be noted twice.
        self._events: dict[BackgroundEvent, None] = {}
        self._failures: list[Failure] = []
        self._has_not_ended = [True]
        attributes: Attributes = {names.DB_SYSTEM_NAME: names.MONGODB, names.TOPOLOGY_TYPE: topology.type}
        if topology.replica_set is not None:
            attributes[names.REPLICA_SET] = topology.replica_set
        if len(lost) == 1:
            attributes |= lost[0].attributes
        links = [Link(before._span.get_span_context())] if before is not None and before._has_span else []
        self._span: Span = INVALID_SPAN
        # A sampler or a span processor that raises keeps it from being told, and does no other harm: it is measured.
        _periods.guard.run("an episode's start", self._start, attributes, links)
        self.context = set_span_in_context(self._span, NO_PARENT)

    def _start(self, attributes: Attributes, links: Sequence[Link]) -> None:
        self._span = self.telemetry.tracer.start_span(
            self.name, NO_PARENT, SpanKind.INTERNAL, attributes, links, start_time=self._first
        )

    def take(self) -> bool:
        """Whether the caller is the one who ends it: true once, whichever threads ask."""
        try:
            return self._has_not_ended.pop()  # one operation of a list
        except IndexError:
            return False

    @property
    def _has_span(self) -> bool:
        """Whether it has a span, be it recorded or not."""
        return self._span.get_span_context().is_valid

    @property
    def due(self) -> float:
        """When it has lasted for too long."""
        return self.started + self.telemetry.config.episode_timeout

    @property
    def link(self) -> Link | None:
        """A link to it, if it is recorded."""
        return Link(self._span.get_span_context()) if self._span.is_recording() else None

    @property
    def found(self) -> tuple[float, int] | None:
        """When a server could be used again, and which, by the identity of its address; None where none can.

        The driver tells so up to a second late.
        """
        for server in list(self.topology.members.values()):
            at = server.answered_at
            if at is not None and at > self.started:
                return at, id(server.identity.address)
        return None

    def note(self, incident: BackgroundEvent) -> None:
        """Something happened in it. Runs on any thread."""
        limit = _REPEATED if incident.name in (names.HEARTBEAT_FAILED, names.POOL_CLEARED) else _ALL
        is_cause = incident.server in self._addresses and incident.name == names.HEARTBEAT_FAILED
        is_part = incident.at >= self.started - (self._nearly if is_cause or self.name == names.DISCOVERY else 0)
        if is_part and len(self._events) < limit:
            self._events[incident] = None

    def add_failure(self, server: ServerState, failure: Failure) -> None:
        """A command, or a checkout, failed in it or shortly before. Runs on any thread."""
        is_part = id(server.identity.address) in self._addresses and failure.at >= self.started - self._before
        if is_part and len(self._failures) < _LINKS and failure not in self._failures:
            self._failures.append(failure)

    def end(
        self, at: float, error: str | None = None, *, ended_by: Collection[int] = (), continues: bool = False
    ) -> None:
        """End the span, and measure an outage.

        Args:
            at: When it ended.
            error: What kept it from ending well.
            ended_by: The servers, by the identities of their addresses, that can be used again.
            continues: Whether the same outage goes on with another span.
        """
        span = self._span
        last = self._stamp(at)
        run = _periods.guard.run
        try:
            # One of them that can't be told doesn't keep the others from it.
            run("an episode's outcome", self._set_outcome, error)
            run("an episode's links", self._add_links, at)
            if self.telemetry.config.events in SPAN_EVENTS:
                run("an episode's events", self._add_events, at, last, ended_by)
        finally:
            try:
                span.end(last)
            finally:
                if self.name == names.OUTAGE and not continues:
                    self._measure(max(0.0, at - self.began))

    def _set_outcome(self, error: str | None) -> None:
        span = self._span
        if error is None:
            span.set_status(Status(StatusCode.OK))
        else:
            span.set_status(Status(StatusCode.ERROR, error))
            span.set_attribute(names.ERROR_TYPE, error)

    def _add_links(self, at: float) -> None:
        for failure in self._failures.copy():
            if failure.at <= at:
                self._span.add_link(failure.span_context)

    def _add_events(self, at: float, last: int, ended_by: Collection[int]) -> None:
        for incident in sorted(self._events.copy(), key=lambda incident: min(incident.at, at)):
            is_what_ended_it = incident.server in ended_by and incident.name == names.HEARTBEAT_SUCCEEDED
            if incident.at <= at + (_NEARLY if is_what_ended_it else 0):
                incident.add_to(self._span, min(self._stamp(incident.at), last))

    def _measure(self, seconds: float) -> None:
        replica_set = self.topology.replica_set
        attributes: Attributes = {} if replica_set is None else {names.REPLICA_SET: replica_set}
        self.telemetry.instruments.outage_duration.record(seconds, attributes, self.context)

    def _stamp(self, at: float) -> int:
        """Nanoseconds since the epoch, by one clock for the whole span, and not before it started."""
        return self._first + max(0, int((at - self.started) * 1e9))


class _Periods:
    """Those of this process that are open.

    There is no lock: each step is one operation of a dictionary, and a topology has one episode at a time. Whoever
    enters it in `_current` opens the episode, whoever `Period.take` says so ends it and takes the topology out.
    """

    def __init__(self) -> None:
        self.guard = Guard()
        self.outages: dict[int, Period] = {}
        self.forget()

    def forget(self) -> None:
        """After a fork they are the parent's."""
        self.open: dict[Period, None] = {}
        self._current: dict[TopologyState, object] = {}
        self.outages.clear()

    def begin(self, topology: TopologyState, episode: Callable[[], Period]) -> bool:
        """Open an episode, unless the topology has one or needs none; whether it did."""
        mine = object()
        if not topology.lacks_server or self._current.setdefault(topology, mine) is not mine:
            return False
        track(self)
        try:
            begun = episode()
            self._add(begun)
        except BaseException:
            if topology.period is None:
                self._current.pop(topology, None)
            raise
        # What has changed in the meantime found nothing to end.
        if not topology.lacks_server:
            end(topology, time.monotonic(), "closed" if topology.is_closed else None)
        elif begun.switch.telemetry is not begun.telemetry:
            end(topology, time.monotonic(), UNINSTRUMENTED)
        return True

    def _add(self, episode: Period) -> None:
        topology = episode.topology
        if episode.name == names.OUTAGE:
            # First: whoever finds the episode may end it, and takes these out again.
            self.outages.update(dict.fromkeys(list(topology.members), episode))
        self.open[episode] = None
        self._current[topology] = topology.period = episode
        for server in episode.lost if episode.name == names.OUTAGE else ():
            for failure in server.failures.copy():
                episode.add_failure(server, failure)
        for incident in topology.events.copy():
            episode.note(incident)

    def current(self, topology: TopologyState) -> Period | None:
        """What a topology is going through."""
        episode = self._current.get(topology)
        return episode if isinstance(episode, Period) else None

    def take(self, topology: TopologyState, episode: Period | None = None) -> Period | None:
        """Take out what a topology goes through, or that episode if it still does. Who gets it ends it."""
        taken = self.current(topology)
        if taken is None or episode not in (None, taken) or not taken.take():
            return None
        topology.period = None
        self._current.pop(topology, None)  # from here on another one may begin
        self.open.pop(taken, None)
        self.unlink(taken)
        return taken

    def unlink(self, episode: Period) -> None:
        """Commands that start from now on don't link to it. Runs on any thread."""
        for address, each in self.outages.copy().items():
            if each is episode:
                self.outages.pop(address, None)


_periods: Final = _Periods()

outages: Final = _periods.outages
"""Those that are outages, by the identities of the addresses of their servers: always the same dictionary."""


def begin_discovery(topology: TopologyState, telemetry: Telemetry, switch: Switch, started: float) -> None:
    """A client looks for its servers, since then, unless it has found one or this is known. Runs on any thread."""
    if not topology.is_discovered:
        _periods.begin(topology, lambda: Period(names.DISCOVERY, topology, telemetry, switch, started))


def begin_outage(
    topology: TopologyState, telemetry: Telemetry, switch: Switch, started: float, lost: Sequence[ServerState]
) -> None:
    """A client has no server any more that it can write to.

    Args:
        topology: Its servers.
        telemetry: Where it goes.
        switch: Of which listeners it is.
        started: Since when, by `time.monotonic()`.
        lost: The servers whose loss it may be: those that were lost just before count.
    """
    lost = [
        server
        for server in lost
        if server.unavailable_since is not None and server.unavailable_since >= started - _BEFORE
    ]
    _periods.begin(topology, lambda: Period(names.OUTAGE, topology, telemetry, switch, started, lost))


def end(topology: TopologyState, at: float, error: str | None = None, *, ended_by: Collection[int] = ()) -> None:
    """What a topology goes through is over, if there is anything: well, or with an error."""
    episode = _periods.take(topology)
    if episode is not None:
        if background_worker.thread is not None:
            background_worker.wake()
        _periods.guard.run("an episode's end", episode.end, at, error, ended_by=ended_by)


def mark_recovering(topology: TopologyState) -> None:
    """A server can be used again, as will be told later: what starts from now on is not in the outage any more."""
    episode = _periods.current(topology)
    if episode is not None and episode.name == names.OUTAGE:
        _periods.unlink(episode)


def end_all(error: str, switch: Switch | None = None) -> None:
    """End all that are open, or those of one switch: as errors, unless a server can be used again by now.

    Runs on any thread; never raises.
    """
    for episode in list(_periods.open):
        if switch is None or episode.switch is switch:
            found = episode.found
            if found is None:
                end(episode.topology, time.monotonic(), error)
            else:
                end(episode.topology, found[0], ended_by=found[1:])


def link_to_outage(address: Address | None) -> Link | None:
    """A link to the outage of that server's topology, if one is known to be open."""
    episode = outages.get(id(address))
    # A server that the topology has no more may be forgotten, and its identity be that of another client's address.
    if episode is None or id(address) not in episode.topology.members:
        return None
    return episode.link


def watch() -> None:
    """See to it that what is open will end: by its time, with its client, at the exit of the interpreter."""
    if _periods.open:
        background_worker.wake()


def _look() -> float | None:
    """Look after those that are open; in how many seconds to do so again, if any is."""
    for episode in list(_periods.open):
        _periods.guard.run("an episode's watch", _check_period, episode)
    due = [episode.due - time.monotonic() for episode in list(_periods.open)]
    return max(_AT_ONCE, min(_LOOK_AGAIN, *due)) if due else None


background_worker: Final = BackgroundWorker(_look, lambda: end_all("exit"))
"""Looks after those that are open."""


def _check_period(episode: Period) -> None:
    topology, now = episode.topology, time.monotonic()
    if topology.is_gone:
        end(topology, now, "collected")
    elif now >= episode.due:
        _continue(episode, now)


def _continue(episode: Period, now: float) -> None:
    """End an episode that has lasted for too long; another one goes on, for as long as anything is heard of it."""
    topology, telemetry = episode.topology, episode.telemetry
    # Where it was looked too late for the next one as well, there is one for both.
    at = episode.due if now < 2 * episode.due - episode.started else now
    if _periods.take(topology, episode) is None:
        return  # it has ended
    silence = max(_SILENCE, 2 * topology.heartbeat_frequency)
    continues = now - topology.last_sign < silence and _periods.begin(
        topology, lambda: Period(episode.name, topology, telemetry, episode.switch, at, episode.lost, episode)
    )
    episode.end(at, "timeout", continues=continues)
