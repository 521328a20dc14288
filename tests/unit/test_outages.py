"""Discoveries and outages, one by one."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from bson import ObjectId
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.clock import moment
from opentelemetry_mongo_events._servers import outages
from opentelemetry_mongo_events._servers.events import BackgroundEvent
from opentelemetry_mongo_events._servers.outages import (
    Cause,
    begin_discovery,
    begin_outage,
    end,
    end_all,
    watch,
)
from opentelemetry_mongo_events._servers.state import Delay, Failure, ServerStates, TopologyState, note_failure
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.telemetry import Switch, telemetry_from
from tests.spans import Spans, attributes, events, linked, seconds, span_id
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry_mongo_events._servers.state import ServerState
    from tests.metrics import Metrics

HERE: Any = ("db.example", 27017)
ELSEWHERE: Any = ("db.example", 27018)
CAUSE = Cause("NetworkTimeout", "db.example:27017")
OUTCOME = "mongodb.client.outage.outcome"


class World:
    """A client with two servers, of which the first was lost."""

    def __init__(self, spans: Spans, metrics: Metrics, **options: Any) -> None:
        keywords = {"tracer_provider": spans.provider, "meter_provider": metrics.provider, **options}
        self.telemetry = telemetry_from(keywords, other_tracers=None)
        self.switch = Switch(self.telemetry)
        self.states = ServerStates(self.switch)
        self.topology = self.states.topology(ObjectId())
        self.here, self.elsewhere = (self.states.join(each, self.topology) for each in (HERE, ELSEWHERE))
        self.now = time.monotonic()
        self.here.unavailable_since = self.now

    def begin_outage(self) -> None:
        self.topology.is_discovered = True
        lost = [server for server in (self.here, self.elsewhere) if server.unavailable_since is not None]
        begin_outage(self.topology, self.telemetry, self.switch, self.now, lost, CAUSE)

    def begin_discovery(self) -> None:
        begin_discovery(self.topology, self.telemetry, self.switch, self.now)

    def note(self, name: str, after: float, server: Any = HERE) -> None:
        self.topology.note(BackgroundEvent(name, {}, moment(self.now + after), server=id(server)))

    def serve_again(self, after: float = 1.0) -> None:
        self.topology.is_available = True
        end(self.topology, self.now + after, ended_by=[id(HERE)])


@pytest.fixture
def world(spans: Spans, metrics: Metrics) -> Iterator[World]:
    yield World(spans, metrics)
    assert outages._periods.open == {}


def test_what_caused_it_and_what_ended_it_are_part_of_it(world: World, spans: Spans) -> None:
    world.note(names.SERVER_CHANGED, -0.01)
    world.note(names.HEARTBEAT_FAILED, -0.01)
    world.note(names.HEARTBEAT_FAILED, -0.01, ELSEWHERE)
    world.begin_outage()
    world.note(names.POOL_CLEARED, 0.5)
    world.note(names.HEARTBEAT_SUCCEEDED, 1.01)
    world.note(names.HEARTBEAT_SUCCEEDED, 1.01, ELSEWHERE)
    world.note(names.POOL_CLEARED, 1.01)
    world.serve_again()

    outage = spans.one()
    assert events(outage) == ["heartbeat.failed", "pool.cleared", "heartbeat.succeeded"]
    assert seconds(outage) == 1.0
    assert [each.timestamp - (outage.start_time or 0) for each in outage.events] == [0, 500_000_000, 1_000_000_000]


def test_repeated_failures_leave_room_for_what_ends_it(world: World, spans: Spans) -> None:
    world.begin_outage()
    for number in range(1000):
        world.note(names.HEARTBEAT_FAILED, number / 1000)
    for number in range(1000):
        world.note(names.SERVER_CHANGED, number / 1000)
    world.serve_again()

    told = events(spans.one())
    assert (told.count("heartbeat.failed"), told.count("server.changed")) == (96, 32)


def test_it_links_to_what_failed_on_the_servers_that_were_lost(world: World, spans: Spans) -> None:
    def fail(address: Any) -> int:
        span = spans.tracer.start_span("command")
        note_failure(address, span.get_span_context())
        return span.get_span_context().span_id

    long_ago = fail(HERE)
    world.here.failures[0] = world.here.failures[0]._replace(at=world.now - 5.1)
    before = fail(HERE)
    fail(ELSEWHERE)
    fail(("unknown.example", 27017))
    world.begin_outage()
    during = [fail(HERE) for _ in range(20)]
    fail(ELSEWHERE)
    world.serve_again()
    assert long_ago not in linked(spans.one())
    assert linked(spans.one()) == [before, *during[:15]]


def test_it_has_no_link_to_what_failed_when_it_was_over(world: World, spans: Spans) -> None:
    world.begin_outage()
    note_failure(HERE, spans.tracer.start_span("command").get_span_context())
    world.serve_again(after=-1.0)

    assert linked(spans.one()) == []
    assert seconds(spans.one()) == 0


def test_it_is_known_for_what_waited_meanwhile(world: World, spans: Spans) -> None:
    def during(since: float, at: float) -> int | None:
        context = world.topology.period_during(world.now + since, world.now + at)
        return None if context is None else context.span_id

    assert during(0, 1) is None
    world.begin_outage()
    (period,) = outages._periods.open
    assert period.span_context is not None
    this = period.span_context.span_id
    assert [during(-2, -1), during(-1, 0), during(1, 2)] == [None, this, this]
    world.serve_again()
    assert [during(-2, -1), during(-1, 0), during(0.5, 2), during(1.5, 2)] == [None, this, this, None]
    assert span_id(spans.one()) == this


def test_it_links_to_the_first_selections_that_waited_for_it(world: World, spans: Spans) -> None:
    def wait(since: float, at: float) -> int:
        span = spans.tracer.start_span("select server")
        world.topology.note_delay(Delay(world.now + since, world.now + at, span.get_span_context()))
        return span.get_span_context().span_id

    wait(-2, -1)
    known_late = wait(-1, 0.5)
    world.begin_outage()
    waited = [wait(0, 1) for _ in range(20)]
    wait(1.5, 2)
    world.serve_again()

    assert linked(spans.one()) == [known_late, *waited[:15]]


def test_a_selection_that_began_when_it_was_over_has_no_link(world: World, spans: Spans) -> None:
    world.begin_outage()
    span = spans.tracer.start_span("select server")
    world.topology.note_delay(Delay(world.now + 1.5, world.now + 2, span.get_span_context()))
    world.serve_again()

    assert linked(spans.one()) == []


def test_a_checkout_that_timed_out_before_is_part_of_it_where_the_server_was_unresponsive(
    world: World, spans: Spans
) -> None:
    def time_out(at: float) -> int:
        span = spans.tracer.start_span("checkout")
        note_failure(HERE, span.get_span_context(), is_timeout=True)
        world.here.failures[-1] = world.here.failures[-1]._replace(at=world.now + at)
        return span.get_span_context().span_id

    time_out(-3)
    world.begin_outage()
    world.serve_again()
    assert linked(spans.one()) == []

    spans.clear()
    world.topology.is_available = False
    world.here.unresponsive = (world.now - 2, world.now)
    time_out(-2.5)
    unanswered = time_out(-1)
    world.begin_outage()
    during = time_out(1)
    world.serve_again(2)
    assert linked(spans.one()) == [unanswered, during]


def test_a_topology_goes_through_one_thing_at_a_time(world: World, spans: Spans) -> None:
    world.begin_discovery()
    world.begin_discovery()
    world.begin_outage()
    world.serve_again()
    end(world.topology, world.now)
    world.begin_discovery()

    assert spans.names == ["mongodb.client.discovery"]


class _OnStart(SpanProcessor):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.call()


def test_one_that_is_over_as_it_begins_ends_all_the_same(world: World, spans: Spans) -> None:
    spans.provider.add_span_processor(_OnStart(world.serve_again))
    world.begin_discovery()

    discovery = spans.one()
    assert discovery.status.status_code is StatusCode.UNSET
    assert attributes(discovery)["mongodb.client.discovery.outcome"] == "discovered"


def test_one_whose_client_is_closed_as_it_begins_ends_as_an_error(world: World, spans: Spans) -> None:
    spans.provider.add_span_processor(
        _OnStart(lambda: world.states.close_topology(next(iter(world.states._topologies))))
    )
    world.begin_outage()

    assert attributes(spans.one())[OUTCOME] == "closed"


def test_one_that_begins_as_the_instrumentation_is_taken_off_ends_with_it(world: World, spans: Spans) -> None:
    def take_off() -> None:
        world.switch.telemetry = None
        end_all("uninstrumented", world.switch)

    spans.provider.add_span_processor(_OnStart(take_off))
    world.begin_outage()

    assert attributes(spans.one())[OUTCOME] == "uninstrumented"


def test_one_that_a_server_has_ended_already_ends_well_with_the_instrumentation(world: World, spans: Spans) -> None:
    world.begin_outage()
    world.elsewhere.answers.append(world.now - 1)  # before it began: that is over
    world.here.answers += [world.now + 0.25, world.now + 0.35]
    end_all("uninstrumented", world.switch)

    outage = spans.one()
    assert attributes(outage)[OUTCOME] == "recovered"
    assert seconds(outage) == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize(
    ("known", "replica_set", "kind", "told"),
    [
        ("db.example:27018", "rs", "ReplicaSetWithPrimary", "db.example:27018"),
        (None, "rs", "ReplicaSetNoPrimary", "db.example:27017"),  # the driver hasn't reported it yet
        (None, None, "Sharded", None),
        (None, "rs", "Single", None),
    ],
)
def test_the_primary_that_ended_it(
    known: str | None, replica_set: str | None, kind: str, told: str | None, world: World, spans: Spans
) -> None:
    world.begin_outage()
    world.here.answers.append(world.now + 0.25)
    world.topology.primary, world.topology.replica_set, world.topology.type = known, replica_set, kind
    end_all("exit")

    about = attributes(spans.one())
    assert about.get("mongodb.client.outage.primary.address") == told
    assert about["mongodb.client.outage.previous_primary.address"] == "db.example:27017"


def test_the_primary_is_that_of_the_end(world: World, spans: Spans) -> None:
    """The span may end later, and another primary be elected meanwhile."""
    world.begin_outage()
    world.topology.replica_set, world.topology.primary = "rs", "db.example:27018"
    selection = object()
    world.topology.waiting[selection] = None
    world.serve_again()
    world.topology.primary = "db.example:27017"
    del world.topology.waiting[selection]

    outage = spans.wait_for(names.OUTAGE)
    assert attributes(outage)["mongodb.client.outage.primary.address"] == "db.example:27018"


def test_nobody_knows_of_failed_heartbeats_without_their_listener(spans: Spans, metrics: Metrics) -> None:
    world = World(spans, metrics, heartbeats=False)
    world.begin_outage()
    world.serve_again()

    assert "mongodb.client.outage.failed_heartbeat_count" not in attributes(spans.one())


def test_all_heartbeats_that_failed_are_counted(world: World, spans: Spans) -> None:
    world.begin_outage()
    for _ in range(200):
        world.topology.note(BackgroundEvent(names.HEARTBEAT_FAILED, {}, moment(world.now + 0.5), server=id(HERE)))
    world.serve_again()

    assert attributes(spans.one())["mongodb.client.outage.failed_heartbeat_count"] == 200


def test_the_end_of_some_is_not_that_of_others(spans: Spans, metrics: Metrics) -> None:
    one, another = World(spans, metrics), World(spans, metrics)
    one.begin_outage()
    another.begin_outage()
    end_all("uninstrumented", one.switch)
    assert [attributes(span)[OUTCOME] for span in spans.finished] == ["uninstrumented"]

    background_worker.at_exit()
    assert [attributes(span)[OUTCOME] for span in spans.finished] == ["uninstrumented", "exit"]


def test_without_another_thread_it_ends_with_what_is_told(
    world: World, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    watch()
    world.begin_outage()
    watch()
    assert background_worker.thread is None
    world.serve_again()

    assert attributes(spans.one())[OUTCOME] == "recovered"


def test_one_of_which_nothing_is_heard_any_more_ends_for_good(spans: Spans, metrics: Metrics) -> None:
    world = World(spans, metrics, episode_timeout=10)
    world.topology.last_seen -= 61
    world.now -= 11
    world.begin_outage()
    watch()
    watch()
    until(lambda: spans.names == ["mongodb.client.outage"])
    until(lambda: background_worker.thread is None)

    assert attributes(spans.one())[OUTCOME] == "timeout"
    assert metrics.one("mongodb.client.outage.duration").sum == pytest.approx(10, abs=1e-6)


def test_each_is_told_when_it_is_due(spans: Spans, metrics: Metrics) -> None:
    for world in World(spans, metrics), World(spans, metrics, episode_timeout=0.1):
        world.begin_outage()
        watch()
    until(lambda: len(spans.finished) == 1, seconds=0.4)
    until(lambda: len(spans.finished) == 4)
    now = time.monotonic()
    assert now - max(episode.started for episode in outages._periods.open) < 0.4
    end_all("exit")

    assert seconds(spans.finished[0]) == pytest.approx(0.1, abs=0.1)


def test_what_is_overdue_more_than_once_is_one_span(world: World, spans: Spans) -> None:
    world.now -= 200  # with a span for each 60
    world.begin_outage()
    watch()
    until(lambda: spans.finished)
    world.serve_again(after=201)

    assert [round(seconds(span)) for span in spans.finished] == [200, 1]


@pytest.mark.parametrize(("silence", "goes_on"), [(199, True), (201, False)])
def test_one_goes_on_for_two_heartbeats_of_silence(silence: int, goes_on: bool, world: World, spans: Spans) -> None:
    world.topology.heartbeat_frequency = 100.0
    world.begin_outage()
    (episode,) = outages._periods.open
    outages._continue(episode, world.topology.last_seen + silence)
    assert (world.topology.period is not None) is goes_on
    world.serve_again(after=300)

    assert len(spans.finished) == 1 + goes_on


def test_what_the_first_span_tells_is_not_told_by_the_next(world: World, spans: Spans) -> None:
    world.now -= world.telemetry.config.episode_timeout + 1
    world.begin_outage()
    (episode,) = outages._periods.open
    end_of_first = episode.telemetry.config.episode_timeout
    failed = spans.tracer.start_span("command").get_span_context()
    world.here.failures.append(Failure(world.now + end_of_first - 1, failed))
    episode.add_failure(world.here, world.here.failures[0])
    world.note(names.HEARTBEAT_FAILED, end_of_first - 0.01)
    world.note(names.HEARTBEAT_FAILED, end_of_first + 0.01)
    outages._continue(episode, time.monotonic())
    world.serve_again(after=end_of_first + 1)

    first, second = spans.finished
    assert (linked(first), linked(second)) == ([failed.span_id], [span_id(first)])
    assert events(first) == events(second) == ["heartbeat.failed"]


def test_one_that_has_ended_doesnt_go_on(world: World, spans: Spans) -> None:
    world.begin_outage()
    (episode,) = outages._periods.open
    world.serve_again()
    outages._continue(episode, world.now + 100)
    assert len(spans.finished) == 1

    world.topology.is_available = False
    world.begin_outage()
    outages._continue(episode, world.now + 100)  # another one is open by now
    assert len(spans.finished) == 1
    world.serve_again()
    assert len(spans.finished) == 2


def test_an_outage_without_a_span_goes_on_and_is_measured(
    world: World, spans: Spans, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.begin_outage()
    (episode,) = outages._periods.open

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as failing:
        failing.setattr(type(world.telemetry.tracer), "start_span", fail)
        outages._continue(episode, world.now + 1)
        assert attributes(spans.one())[OUTCOME] == "timeout"
        (unseen,) = outages._periods.open
        assert unseen.span_context is None
    # The next one links to nothing: what it goes on with has no span.
    outages._continue(unseen, world.now + 2)
    world.serve_again()
    assert [linked(span) for span in spans.named(names.OUTAGE)] == [[], []]
    assert metrics.one("mongodb.client.outage.duration").count == 1


def test_a_span_that_is_not_recorded_is_measured(
    spans: Spans, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:

    from tests.spans import Spans as Made

    unsampled = Made(ALWAYS_OFF)
    world = World(unsampled, metrics)
    world.begin_outage()
    assert world.topology.period_during(world.now, world.now) is None
    world.serve_again()

    assert unsampled.names == []
    assert metrics.one("mongodb.client.outage.duration").sum == pytest.approx(1.0)


def test_what_happens_to_a_server_that_is_gone_is_not_kept(world: World) -> None:
    world.states.close_server(HERE)
    world.states.close_server(("db.example", 1))
    server: ServerState = world.here
    server.note(BackgroundEvent(names.HEARTBEAT_FAILED, {}))

    assert (list(server.events), list(world.topology.events)) == ([], [])
    assert TopologyState not in [type(each.topology) for each in world.states.servers() if each is server]
    world.topology.is_available = True


def test_what_failed_before_a_recovery_has_no_part_in_the_next_outage(world: World, spans: Spans) -> None:
    note_failure(HERE, spans.tracer.start_span("before").get_span_context())
    world.topology.recover(time.monotonic())
    assert world.here.unavailable_since is None
    later = spans.tracer.start_span("after").get_span_context()
    note_failure(HERE, later)
    world.topology.recover(world.now)
    world.here.unavailable_since = world.now
    world.begin_outage()
    world.serve_again()

    assert linked(spans.one()) == [later.span_id]


def test_outages_of_many_clients_that_come_and_go_are_each_told_once(spans: Spans, metrics: Metrics) -> None:
    """Each client's outages begin and end on a thread of its own, in tables that all of them share."""
    clients, count = 6, 300
    worlds = [World(spans, metrics, events="none") for _ in range(clients)]
    addresses = [(("".join(["db", str(number)]), 27017), ("".join(["db", str(number)]), 27018)) for number in range(6)]
    for world, pair in zip(worlds, addresses, strict=True):
        world.topology.members.clear()
        for address in pair:
            world.states.join(address, world.topology)
    failed: list[BaseException] = []
    failures_before = dict(outages._periods.guard.failures)

    def come_and_go(world: World) -> None:
        try:
            for _ in range(count):
                world.topology.is_available = False
                world.begin_outage()
                world.serve_again()
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=come_and_go, args=(world,)) for world in worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert failed == []
    assert outages._periods.guard.failures == failures_before
    assert (outages._periods.open, outages._periods._current) == ({}, {})
    assert len(spans.named(names.OUTAGE)) == clients * count
    assert metrics.one("mongodb.client.outage.duration").count == clients * count


def test_of_two_threads_that_end_an_outage_one_does(world: World, spans: Spans) -> None:
    world.begin_outage()
    (episode,) = outages._periods.open
    assert outages._periods.take(world.topology, episode) is episode
    outages._periods._current[world.topology] = episode  # as the other thread has just seen it
    assert outages._periods.take(world.topology) is None
    del outages._periods._current[world.topology]
    episode.end(world.now + 1)

    assert spans.names == [names.OUTAGE]


def test_an_outage_that_cannot_begin_keeps_no_other_from_it(
    world: World, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(outages.Period, "__init__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.begin_outage()
    with monkeypatch.context() as interrupted:
        interrupted.setattr(outages.Period, "note", interrupt)
        world.note(names.HEARTBEAT_FAILED, 0.0)
        with pytest.raises(KeyboardInterrupt):
            world.begin_outage()
    world.serve_again()
    world.topology.is_available = False
    world.begin_outage()
    world.serve_again()

    assert spans.names == [names.OUTAGE, names.OUTAGE]


def test_an_outage_that_is_interrupted_as_it_begins_leaves_nothing(
    world: World, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(dict[Any, Any]):
        def __setitem__(self, topology: Any, period: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(outages._periods, "_current", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        world.begin_outage()
    assert (outages._periods.open, outages._periods._current) == ({}, {})
    monkeypatch.setattr(outages._periods, "_current", {})
    world.begin_outage()
    world.serve_again()

    assert spans.names == [names.OUTAGE]


# ---------------------------------------------------------------------------------------------------------------------
# What still waits when it is over.


def test_its_span_waits_for_the_selections_that_waited_for_it(world: World, spans: Spans) -> None:
    selection = object()
    world.begin_outage()
    world.topology.waiting[selection] = None
    world.serve_again()
    assert (spans.names, list(outages._periods.open)) == ([], [])

    span = spans.tracer.start_span("select server")
    world.topology.note_delay(Delay(world.now, world.now + 1, span.get_span_context()))
    del world.topology.waiting[selection]
    outage = spans.wait_for(names.OUTAGE)
    assert linked(outage) == [span.get_span_context().span_id]
    assert seconds(outage) == 1.0


def test_its_span_does_not_wait_for_long(world: World, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_MAX_WAIT_FOR_SELECTIONS", 0.1)
    world.begin_outage()
    world.topology.waiting[object()] = None
    world.serve_again()

    outage = spans.wait_for(names.OUTAGE)
    assert (seconds(outage), attributes(outage)[OUTCOME]) == (1.0, "recovered")


@pytest.mark.parametrize("is_its_own", [True, False])
def test_its_span_waits_for_nothing_when_the_instrumentation_is_removed(
    is_its_own: bool, world: World, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_worker, "wake", lambda: None)  # nobody else looks after it
    world.begin_outage()
    (period,) = outages._periods.open
    world.topology.waiting[object()] = None
    world.serve_again()
    end_all("uninstrumented", world.switch if is_its_own else Switch())
    assert spans.names == [names.OUTAGE] * is_its_own

    end_all("exit")
    outages._finish(period)
    assert spans.names == [names.OUTAGE]
    assert seconds(spans.one()) == 1.0
