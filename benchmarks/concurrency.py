"""Whether a command costs the same however many are open, and however many threads or tasks there are.

Run with `--help`; `--quick` shows that it runs, and its figures mean nothing.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any, Final

from pymongo.monitoring import CommandListener, ConnectionPoolListener

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commands import FIND, ON, REPLY, driven, measuring
from benchmarks.compare import Goal, Work, compare, parser
from opentelemetry_mongo_events import event_listeners
from tests import events

THREADS: Final = 64
TASKS: Final = 1_000
OPEN: Final = 9_900
"""As many as are observed at once, but for a few."""


def observed() -> Any:
    """The listeners of a client, with everything on."""
    return event_listeners(tracer_provider=ON, meter_provider=measuring())


def beside_open_commands() -> Work:
    """One after another, while thousands are open elsewhere."""
    listeners = observed()
    commands = next(each for each in listeners if isinstance(each, CommandListener))
    for number in range(OPEN):
        commands.started(events.started(FIND, request_id=1_000_000 + number))
    return driven(listeners, checks_out=True)


def in_threads(threads: int) -> Work:
    """In so many threads at once."""
    ways = [driven(observed(), checks_out=True)] if threads == 1 else _of_one_client(threads)

    def work(loops: int) -> None:
        share = loops // threads
        running = [threading.Thread(target=way, args=(share,)) for way in ways]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    return work


def _of_one_client(threads: int) -> list[Work]:
    listeners = observed()
    return [driven(listeners, checks_out=True, first_request=1_000 * number) for number in range(threads)]


def in_tasks(tasks: int, listeners: Any) -> Work:
    """In so many tasks, each of which lets the others run while its command is open."""
    commands = [each for each in listeners if isinstance(each, CommandListener)]
    pools = [each for each in listeners if isinstance(each, ConnectionPoolListener)]
    address = ("127.0.0.1", 27017)
    for pool in pools:
        pool.pool_created(events.pool_created(address))
    told = [
        (
            events.checked_out(number + 1, address),
            events.started(FIND, request_id=number, address=address),
            events.succeeded("find", REPLY, request_id=number, address=address),
            events.checked_in(number + 1, address),
        )
        for number in range(tasks)
    ]
    asked = events.check_out_started(address)

    async def task(number: int, pairs: int) -> None:
        checked_out, started, succeeded, checked_in = told[number]
        for _ in range(pairs):
            for pool in pools:
                pool.connection_check_out_started(asked)
                pool.connection_checked_out(checked_out)
            for each in commands:
                each.started(started)
            await asyncio.sleep(0)
            for each in commands:
                each.succeeded(succeeded)
            for pool in pools:
                pool.connection_checked_in(checked_in)

    def work(loops: int) -> None:
        async def run() -> None:
            await asyncio.gather(*(task(number, loops // tasks) for number in range(tasks)))

        asyncio.run(run())

    return work


def main() -> None:
    """Compare many with one."""
    rounds, pairs = (1, 1) if parser(__doc__).parse_args().quick else (15, 10)
    compare(
        f"{OPEN:,} open commands",
        {"none open": driven(observed(), checks_out=True), "ours": beside_open_commands()},
        (Goal("none open", 1.05),),
        loops=50 * pairs,
        rounds=rounds,
    )
    compare(
        f"{THREADS} threads",
        {"one thread": in_threads(1), "ours": in_threads(THREADS)},
        (Goal("one thread", 1.05),),
        loops=THREADS * 50 * (pairs // 5 or 1),
        rounds=rounds,
    )
    compare(
        f"{TASKS:,} tasks",
        {
            "one task, no listener": in_tasks(1, []),
            "tasks, no listener": in_tasks(TASKS, []),
            "one task": in_tasks(1, observed()),
            "ours": in_tasks(TASKS, observed()),
        },
        (Goal("one task", 1.05),),
        loops=TASKS * pairs,
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
