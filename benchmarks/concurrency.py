"""Compares the cost of a command beside many open commands, threads or tasks with the cost of a command alone.

Run with `--help`. `--quick` only checks that it runs; its figures mean nothing.
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
"""A few less than the number of commands that may be open."""


def all_listeners() -> Any:
    """Return the listeners of a client, with everything on."""
    return event_listeners(tracer_provider=ON, meter_provider=measuring())


def beside_open_commands() -> Work:
    """Return work that runs one command after another while thousands of others are open."""
    listeners = all_listeners()
    commands = next(each for each in listeners if isinstance(each, CommandListener))
    for number in range(OPEN):
        commands.started(events.started(FIND, request_id=1_000_000 + number))
    return driven(listeners)


def in_threads(threads: int) -> Work:
    """Return work that runs commands in that many threads at once."""
    ways = [driven(all_listeners())] if threads == 1 else _of_one_client(threads)

    def work(loops: int) -> None:
        share = loops // threads
        running = [threading.Thread(target=way, args=(share,)) for way in ways]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    return work


def _of_one_client(threads: int) -> list[Work]:
    listeners = all_listeners()
    return [driven(listeners, first_request=1_000 * number) for number in range(threads)]


def in_tasks(tasks: int, listeners: Any) -> Work:
    """Return work that runs commands in that many tasks. Each task lets the others run while its command is open."""
    commands = [each for each in listeners if isinstance(each, CommandListener)]
    pools = [each for each in listeners if isinstance(each, ConnectionPoolListener)]
    address = ("127.0.0.1", 27017)
    for pool in pools:
        pool.pool_created(events.pool_created(address))
    task_events = [
        (
            events.checked_out(number + 1, address),
            events.started(FIND, request_id=number, address=address),
            events.succeeded("find", REPLY, request_id=number, address=address),
            events.checked_in(number + 1, address),
        )
        for number in range(tasks)
    ]
    check_out_started = events.check_out_started(address)

    async def task(number: int, pairs: int) -> None:
        checked_out, started, succeeded, checked_in = task_events[number]
        for _ in range(pairs):
            for pool in pools:
                pool.connection_check_out_started(check_out_started)
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
    """Compare many commands, threads and tasks with one."""
    rounds, pairs = (1, 1) if parser(__doc__).parse_args().quick else (15, 10)
    compare(
        f"{OPEN:,} open commands",
        {"none open": driven(all_listeners()), "ours": beside_open_commands()},
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
            "one task": in_tasks(1, all_listeners()),
            "ours": in_tasks(TASKS, all_listeners()),
        },
        (Goal("one task", 1.05),),
        loops=TASKS * pairs,
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
