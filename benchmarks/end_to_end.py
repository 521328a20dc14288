"""Compares the cost of `find_one()` with different listeners, with a real driver over a socket.

The server is a separate process that knows a single answer, so that nothing else takes time. The SDK baseline is a
listener that makes the same SDK calls as this package, all prepared in advance, and does nothing else.

Run with `--help`. `--quick` only checks that it runs; its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.pymongo import CommandTracer
from opentelemetry.sdk.trace import TracerProvider
from pymongo import MongoClient
from pymongo.monitoring import CommandListener, ConnectionPoolListener

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commands import NO_METRICS, SPANS_ONLY, SdkBaseline, measuring
from benchmarks.compare import Goal, Work, compare, parser
from opentelemetry_mongo_events import event_listeners
from tests.servers.scripted import read_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

UNCOMPARED: Final[dict[str, Any]] = {"selections": False}
"""Selections would make the driver log those of the other clients, too."""

HELLO: Final = {
    "ok": 1.0,
    "helloOk": True,
    "isWritablePrimary": True,
    "ismaster": True,
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "connectionId": 7,
}
FOUND: Final = {
    "cursor": {"id": 0, "ns": "shop.orders", "firstBatch": [{"_id": 1, "email": "alice@example.org"}]},
    "ok": 1.0,
}


def serve(pipe: Connection) -> None:
    """Send the port through the pipe. Answer each `find` with the same document, all else like a healthy server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        while True:
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Answer all requests on a connection."""
    with contextlib.suppress(OSError, EOFError, ConnectionError), connection:
        while True:
            request = read_request(connection)
            document = FOUND if "find" in request.command else HELLO
            _, message = request.reply(document, request.request_id, more_to_come=False)
            connection.sendall(message)


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Run such a server in a process of its own; the value is its port."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


class SdkBaselineListener(CommandListener, ConnectionPoolListener):
    """Makes the SDK calls that this package makes for a find and its connection, and nothing else."""

    def __init__(self) -> None:
        meter = measuring().get_meter("sdk-baseline")
        self._baseline = SdkBaseline(TracerProvider(shutdown_on_exit=False), meter)

    def started(self, event: Any) -> None:
        self._span = self._baseline.start()

    def succeeded(self, event: Any) -> None:
        self._baseline.end(self._span)

    def connection_checked_out(self, event: Any) -> None:
        self._baseline.checked_out()

    def connection_checked_in(self, event: Any) -> None:
        self._baseline.checked_in()

    def failed(self, event: Any) -> None: ...
    def pool_created(self, event: Any) -> None: ...
    def pool_ready(self, event: Any) -> None: ...
    def pool_cleared(self, event: Any) -> None: ...
    def pool_closed(self, event: Any) -> None: ...
    def connection_created(self, event: Any) -> None: ...
    def connection_ready(self, event: Any) -> None: ...
    def connection_closed(self, event: Any) -> None: ...
    def connection_check_out_started(self, event: Any) -> None: ...
    def connection_check_out_failed(self, event: Any) -> None: ...


def finding(client: MongoClient[Any]) -> Work:
    """Return work that finds one document."""
    orders = client.shop.orders

    def work(loops: int) -> None:
        for _ in range(loops):
            orders.find_one({"email": "alice@example.org"})

    return work


def with_selections(work: Work) -> Work:
    """Return the same work, done while a client of the process has its server selections instrumented."""
    off = dict.fromkeys(("commands", "pools", "heartbeats", "topology"), False)
    options: dict[str, Any] = {"tracer_provider": TracerProvider(shutdown_on_exit=False), **off}

    def work_with_selections(loops: int) -> None:
        listeners = event_listeners(**options)
        work(loops)
        listeners.clear()

    return work_with_selections


def main() -> None:
    """Measure CPU time, then wall-clock time; then what server selections cost."""
    loops, rounds = (20, 3) if parser(__doc__).parse_args().quick else (500, 31)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("contrib")
    listeners: dict[str, list[Any]] = {
        "no listener": [],
        "contrib (spans only)": [CommandTracer(tracer)],
        "SDK baseline": [SdkBaselineListener()],
        "ours, spans only": event_listeners(
            tracer_provider=TracerProvider(shutdown_on_exit=False), **SPANS_ONLY, **NO_METRICS, **UNCOMPARED
        ),
        "ours": event_listeners(
            tracer_provider=TracerProvider(shutdown_on_exit=False), meter_provider=measuring(), **UNCOMPARED
        ),
    }
    with server() as port, contextlib.ExitStack() as clients:
        ways = {
            name: finding(clients.enter_context(MongoClient("127.0.0.1", port, event_listeners=each)))
            for name, each in listeners.items()
        }
        goals = (
            Goal("contrib (spans only)", 1.15, "ours, spans only", beside="no listener"),
            Goal("contrib (spans only)", 2.2, beside="no listener"),
            Goal("SDK baseline", 1.3, beside="no listener"),
        )
        compare("find_one, everything on: CPU", ways, goals, loops=loops, rounds=rounds)
        compare("find_one, everything on: wall", ways, goals, loops=loops, rounds=rounds, clock=time.perf_counter)
        find = ways["no listener"]
        compare(
            "find_one, no other listener: CPU",
            {"selections=False": find, "selections": with_selections(find)},
            (Goal("selections=False", 1.1, "selections"),),
            loops=loops,
            rounds=rounds,
        )


if __name__ == "__main__":
    main()
