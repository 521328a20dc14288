"""Threads, or greenlets, that are interrupted wherever they are, and go on."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pymongo import common

from tests.chaos.load import OPERATIONS, Load, prepare, run_through
from tests.chaos.rounds import Round, failures
from tests.chaos.witness import START, check_connections
from tests.clients import connect
from tests.spans import table_of
from tests.waiting import collected, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Where an interrupt tears nothing apart: the driver waits for a reply.
_WAITS: Final = frozenset({"network.py", "network_layer.py"})
_OURS: Final = ("opentelemetry", "tests/chaos/witness.py")
_CALM: Final = 30
"""So many operations each worker runs after the interrupts."""
_PATIENCE: Final = 30
STUCK: Final = "stuck"


class Worker:
    """Runs operations; an interrupt, which is no `Exception`, ends the operation, not the worker.

    Attributes:
        torn: How many interrupts came in the middle of something: of the package, of the witness, or of the driver as
            it takes a connection, gives it back or tells of that.
        harmless: How many came while the driver waited for a reply.
        is_awaited: Whether an interrupt is on its way. There is one at a time.
        runs_in: The identity of its thread; or its greenlet.
    """

    def __init__(self, load: Load, client: Any, seed: object) -> None:
        self._load = load
        self._client = client
        self._chance = random.Random(f"{seed} worker")
        self._calm: int | None = None
        self.torn = 0
        self.harmless = 0
        self.is_awaited = False
        self.runs_in: Any = None

    def run(self, current: Callable[[], Any]) -> None:
        """Work, in the thread or greenlet that is the current one, until some operations after `calm_down()`."""
        self.runs_in = current()
        while self._calm != 0:
            self._work()

    def _work(self) -> None:
        try:
            while self._calm != 0:
                if self._calm is not None:
                    self._calm -= 1
                run_through(self._load.do(self._client, self._chance, OPERATIONS))
        except BaseException as interrupt:
            if _waits(interrupt):
                self.harmless += 1
            else:
                self.torn += 1
            self.is_awaited = False

    def settle(self, send: Callable[[Worker], object]) -> None:
        """Wait until it got what is on its way to it. Some older versions of the driver swallow one now and then."""
        with contextlib.suppress(AssertionError):
            until(lambda: not self.is_awaited, 5)
        if self.is_awaited:
            send(self)
            until(lambda: not self.is_awaited, 15)

    def calm_down(self) -> None:
        """No interrupts will be sent any more."""
        self._calm = _CALM


def _waits(interrupt: BaseException) -> bool:
    """Whether it came while the driver waited for a reply."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(interrupt.__traceback__)]
    drivers = [Path(file).name for file in files if "pymongo" in Path(file).parts]
    ours = any(part in file for file in files for part in _OURS)
    return bool(drivers) and drivers[-1] in _WAITS and not ours


class _Watch:
    """Ends the program where it is stuck: an interrupt may leave a lock of the driver's held for good.

    Its conditions take their lock in a function, which an interrupt may end when it has it. That is no fault, and is
    told by a word; a lock that this package or OpenTelemetry waits for is one.
    """

    def __init__(self, seconds: float) -> None:
        self.is_gone = threading.Event()
        threading.Thread(target=self._watch, args=(seconds,), name="watch", daemon=True).start()

    def _watch(self, seconds: float) -> None:
        if self.is_gone.wait(seconds):
            return
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stuck = {names.get(identity): _waits_in(frame) for identity, frame in sys._current_frames().items()}
        faulthandler.dump_traceback()
        ours = [
            file for name, file in stuck.items() if "opentelemetry" in file and name != "opentelemetry_mongo_events"
        ]
        drivers = [file for file in stuck.values() if "pymongo" in file]
        if drivers and not ours:
            print(STUCK, flush=True)  # noqa: T201  # the program's way to tell
        os._exit(0 if drivers and not ours else 1)


def _waits_in(frame: FrameType | None) -> str:
    """The file of whoever waits there, but for the interpreter's own."""
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def play(
    uri: str,
    seed: object,
    seconds: float,
    send: Callable[[Worker], object],
    workers: int,
    current: Callable[[], Any] = threading.get_ident,
) -> tuple[int, int]:
    """Interrupt workers at random moments; how many interrupts tore something apart, and how many did not.

    Args:
        uri: Where the server is.
        seed: Of what is done, and of the moments.
        seconds: For how long.
        send: Interrupts a worker.
        workers: How many; one alone runs in the current thread.
        current: What identifies the thread or greenlet that is the current one.
    """
    common.EVENTS_QUEUE_FREQUENCY = 0.1  # type: ignore[assignment]  # a client's close waits for half of it
    watch = _Watch(seconds + _PATIENCE)
    observed = Round()
    load = Load(uri, observed.listeners, observed.spans.tracer, 0, clients=0, threads=0, tasks=0)
    with connect(uri, event_listeners=observed.listeners) as client:
        run_through(prepare(client))
        team = [Worker(load, client, f"{seed} {number}") for number in range(workers)]
        calm_since: list[int] = []

        def get_lost(_: object) -> None:
            """An interrupt came in the middle of a finalizer, where nobody sees it."""
            for worker in team:
                if worker.runs_in == current():
                    worker.torn += 1
                    worker.is_awaited = False

        sys.unraisablehook = get_lost

        def interrupt() -> None:
            chance = random.Random(f"{seed} interrupts")
            until(lambda: all(worker.runs_in for worker in team))
            over = time.monotonic() + seconds
            while time.monotonic() < over:
                time.sleep(chance.random() * 0.01)
                worker = chance.choice(team)
                if not worker.is_awaited:
                    worker.is_awaited = True
                    send(worker)
            for worker in team:
                worker.settle(send)
            calm_since.append(observed.witness.commands.last)
            for worker in team:
                worker.calm_down()

        works: list[Callable[[], None]] = [functools.partial(worker.run, current) for worker in team]
        *others, here = [interrupt, *works] if workers == 1 else [*works, interrupt]
        threads = [threading.Thread(target=other, daemon=True) for other in others]
        for thread in threads:
            thread.start()
        here()
        for thread in threads:
            thread.join()
        torn, harmless = sum(each.torn for each in team), sum(each.harmless for each in team)
        until(lambda: collected() and _differences(observed) <= torn)
    watch.is_gone.set()
    assert load.ours == []
    # One that comes in the middle of the package tears apart what it is about to tell of one command. All others are
    # told, and what comes after it is as if it hadn't been.
    assert observed.witness.compare(observed.commands, calm_since[0]) == 0
    check_connections(observed.commands)
    numbers = [(span.attributes or {}).get(START, -1) for span in observed.commands]
    untold = observed.witness.commands.starts.keys() - set(numbers)
    assert len(numbers) - len(set(numbers)) <= torn
    assert len(untold) <= torn
    assert len(table_of(observed.observing)) <= torn
    assert failures() == {}
    return torn, harmless


def _differences(observed: Round) -> int:
    """How many connections the pools' metrics tell that the driver doesn't have, or the other way round."""
    return sum(abs(told - held) for told, held in zip(observed.metrics.connections(), observed.held(), strict=True))
