"""The cost of a transaction: an insert and its commit, compared with the same two commands outside of a transaction.

All figures are CPU time for the events of both commands, with spans, metrics and masked text. The difference is the
span of the transaction, its duration, and the links of the commands.

Run with `--help`. `--quick` only checks that it runs; its figures mean nothing.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bson import Binary
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from pymongo.monitoring import CommandListener

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare import Goal, Work, compare, parser
from opentelemetry_mongo_events import event_listeners
from tests import events

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS: Final = ("127.0.0.1", 27017)
LSID: Final = {"id": Binary(uuid.UUID(int=7).bytes, 4)}
TRANSACTIONS: Final = 50


def commands(number: int, *, in_transaction: bool) -> Iterator[dict[str, Any]]:
    """Yield an insert and a commit, as the driver sends them."""
    identity: dict[str, Any] = {"lsid": LSID, "txnNumber": number}
    if in_transaction:
        identity["autocommit"] = False
    start = {"startTransaction": True} if in_transaction else {}
    yield {"insert": "orders", "documents": [{"_id": 1, "total": 5}], **identity, **start}
    yield {"commitTransaction": 1, **identity}


def driven(listeners: list[Any], *, in_transaction: bool) -> Work:
    """Return work that sends the events of the commands to the listeners."""
    pairs = [
        (
            events.started(command, request_id=2 * number + place, address=ADDRESS),
            events.succeeded(next(iter(command)), {"ok": 1.0}, request_id=2 * number + place, address=ADDRESS),
        )
        for number in range(TRANSACTIONS)
        for place, command in enumerate(commands(number + 1, in_transaction=in_transaction))
    ]
    listening = [each for each in listeners if isinstance(each, CommandListener)]

    def work(loops: int) -> None:
        for _ in range(loops // TRANSACTIONS):
            for started, succeeded in pairs:
                for each in listening:
                    each.started(started)
                for each in listening:
                    each.succeeded(succeeded)

    return work


def ours(*, in_transaction: bool) -> Work:
    """Return work that sends the commands to this package."""
    listeners = event_listeners(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
        pools=False,
        heartbeats=False,
        topology=False,
        selections=False,
    )
    return driven(listeners, in_transaction=in_transaction)


def main() -> None:
    """Run the comparison."""
    arguments = parser(__doc__).parse_args()
    loops, rounds = (TRANSACTIONS, 3) if arguments.quick else (10 * TRANSACTIONS, 41)
    ways = {
        "no listener": driven([], in_transaction=True),
        "outside of a transaction": ours(in_transaction=False),
        "ours": ours(in_transaction=True),
    }
    compare("an insert and a commit", ways, (Goal("outside of a transaction", 2.0),), loops=loops, rounds=rounds)


if __name__ == "__main__":
    main()
