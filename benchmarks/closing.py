"""Measures the whole life of a short-lived client: it is created, sends one command, and is closed.

Test suites, scripts and serverless functions have many such clients. With a listener for topologies, the close of a
`MongoClient` waits for a thread of the driver. Each turn creates one client of each kind, in the same process. The
server is a separate process. Motor is measured if it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
from opentelemetry.sdk.trace import TracerProvider
from pymongo import MongoClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end import server
from opentelemetry_mongo_events import event_listeners
from tests.events import QuietTopologyListener

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS = ("client", "listeners", "life", "ratio", "close", "longest close", "loop blocked")


def client_classes() -> dict[str, Callable[..., Any]]:
    """Return what can create a client here, by name."""
    classes: dict[str, Callable[..., Any]] = {"MongoClient": MongoClient}
    if hasattr(pymongo, "AsyncMongoClient"):
        classes["AsyncMongoClient"] = pymongo.AsyncMongoClient
    try:
        from motor.motor_asyncio import AsyncIOMotorClient
    except ImportError:
        return classes
    return classes | {"Motor": AsyncIOMotorClient}


async def live(create: Callable[..., Any], port: int, listeners: list[Any], pause: float) -> tuple[float, float, float]:
    """Create, use and close a client.

    Args:
        create: The client's class.
        port: The server's port.
        listeners: The listeners of the client.
        pause: Seconds between the command and the close. Not included in the life.

    Returns:
        Seconds of the whole life, of the close, and for how much of the close the event loop was blocked.
    """
    began = time.perf_counter()
    client = create("127.0.0.1", port, event_listeners=listeners)
    answer = client.admin.command("ping")
    if inspect.isawaitable(answer):
        await answer
    used = time.perf_counter()
    await asyncio.sleep(pause)
    closing = time.perf_counter()
    closed = client.close()
    blocked = time.perf_counter() - closing
    if inspect.isawaitable(closed):
        await closed
    ended = time.perf_counter()
    return used - began + ended - closing, ended - closing, blocked


async def measure(turns: int) -> None:
    """Print a table of all clients, without listeners, with this package's, and with another one."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("| " + " | ".join("---" for _ in COLUMNS) + " |")
    kinds: dict[str, Callable[[], list[Any]]] = {
        "none": list,
        "ours": lambda: event_listeners(tracer_provider=TracerProvider()),
        "ours, topology=False": lambda: event_listeners(tracer_provider=TracerProvider(), topology=False),
        "another package's": lambda: [QuietTopologyListener()],
    }
    with server() as port:
        for name, create in client_classes().items():
            results: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
            for turn in range(turns):
                for kind, listeners in kinds.items():
                    # The driver's thread sleeps at regular intervals: a fixed pause would always meet the same moment.
                    results[kind].append(await live(create, port, listeners(), turn % 10 * 0.013))
            baseline = statistics.median(life for life, _, _ in results["none"])
            for kind, values in results.items():
                lives, closes, blocked = zip(*values, strict=True)
                life = statistics.median(lives)
                cells = [name, kind, f"{life * 1e3:.1f} ms", f"{life / baseline:.2f}"]
                cells += [f"{each * 1e3:.1f} ms" for each in (statistics.median(closes), max(closes))]
                cells.append(f"{statistics.median(blocked) * 1e3:.1f} ms")
                print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Parse the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns, to see that it runs")
    turns = 2 if parser.parse_args().quick else 40
    print(f"PyMongo {pymongo.version}, Python {sys.version.split()[0]}; medians of {turns} turns")
    asyncio.run(measure(turns))


if __name__ == "__main__":
    main()
