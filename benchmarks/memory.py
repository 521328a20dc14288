"""Measures how much memory this package holds during a million commands on ten thousand collections.

Run with `--help`. `--quick` only checks that it runs; its figures mean nothing.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from pathlib import Path

from pymongo.monitoring import CommandListener

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opentelemetry.metrics import NoOpMeterProvider

from benchmarks.commands import ON, REPLY, SESSION
from benchmarks.compare import parser
from opentelemetry_mongo_events import event_listeners
from tests import events

COLLECTIONS = 10_000


def main() -> None:
    """Send the commands, and print ten times how much memory is held."""
    total = 1_000 if parser(__doc__).parse_args().quick else 1_000_000
    # No metrics: the SDK keeps a series for each collection, up to its limit of 2,000, which isn't to be measured here.
    listeners = event_listeners(tracer_provider=ON, meter_provider=NoOpMeterProvider())
    commands = next(each for each in listeners if isinstance(each, CommandListener))
    tracemalloc.start()
    print(f"{'commands':>12}{'KB held':>12}")
    for number in range(1, total + 1):
        collection = f"orders_{number % COLLECTIONS}"
        filter_ = {f"field{number % 5_000}": number, f"user{number}@example.org": 1, "tags": ["a", number]}
        command = {"find": collection, "filter": filter_, "limit": 1, **SESSION}
        commands.started(events.started(command, request_id=number))
        if number % 100:
            commands.succeeded(events.succeeded("find", REPLY, request_id=number))
        else:
            commands.failed(events.failed("find", {"code": 11602, "errmsg": "interrupted"}, request_id=number))
        if number % (total // 10) == 0:
            gc.collect()
            print(f"{number:12,}{tracemalloc.get_traced_memory()[0] / 1024:12,.0f}")


if __name__ == "__main__":
    main()
