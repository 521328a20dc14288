"""Measures how clients with different listeners cope if many servers are found, die, return or are closed at once.

PyMongo queues the events of servers and topologies for their listeners. The queue holds 100 events, and the driver
blocks while it is full. An asyncio client then stops forever: the task that empties the queue runs on the blocked event
loop.

Each case runs its servers and its client in separate processes. A client that hangs is killed, and the hang is reported
as the result. Run with `--help`; `--quick` runs one small case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import pymongo
from bson.int64 import Int64
from bson.objectid import ObjectId
from pymongo import monitoring
from pymongo.errors import ConnectionFailure, InvalidOperation

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opentelemetry_mongo_events import event_listeners
from tests.servers.scripted import OP_MSG, OP_QUERY, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

LISTENERS = ("none", "heartbeat", "topology", "server+topology", "ours")
CLIENTS = ("async", "sync")
APPLICATIONS = ("idle", "pinging", "busy")
TOPOLOGIES = ("sharded", "replica_set", "discovered")
STAGES = ("start", "death", "return", "close")

# Server selection checks again when a server has changed, and after 0.5 s, so it may exceed its timeout by that much.
SELECTION_TIMEOUT = 0.4
MAX_SELECTION_TIME = SELECTION_TIMEOUT + 0.5
SLOW = 0.3


@dataclass(frozen=True)
class Case:
    """One case to measure.

    Attributes:
        client: One of CLIENTS.
        topology: `sharded` has all mongos as seeds, `replica_set` all members, `discovered` one member.
        members: The number of servers.
        listeners: One of LISTENERS. All but `none` and `heartbeat` make the driver queue events.
        heartbeat: `heartbeatFrequencyMS`.
        application: One of APPLICATIONS. `idle` does nothing. `pinging` pings all the time; while a ping waits for a
            server, the driver checks all of them every 0.5 s. `busy` also has two slow commands for each server
            running. A sync client is never idle.
        phase: Seconds from the last time the queue was emptied, which happens each second, to the death of the servers.
        outage: Seconds from the death of the servers to their return.
    """

    client: str
    topology: str
    members: int
    listeners: str
    heartbeat: int
    application: str
    phase: float
    outage: float


# ---------------------------------------------------------------------------------------------------------------------
# The servers' process: it answers hello and ping, and reads commands from its standard input.


class Members:
    """The servers of one topology."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._reserved = [_bound(0) for _ in range(case.members)]
        self.ports = [each.getsockname()[1] for each in self._reserved]
        self._listening: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, on the same ports each time."""
        for port, sock in zip(self.ports, self._reserved, strict=True):
            server = await asyncio.start_server(functools.partial(self._serve, port), sock=sock, backlog=512)
            self._listening.append(server)

    def die(self) -> None:
        """Drop all connections and refuse new ones, while keeping the ports reserved."""
        for server in self._listening:
            server.close()
        self._listening = []
        self._reserved = [_bound(port) for port in self.ports]
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        process = ObjectId()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await _request(reader)
                if "topologyVersion" in request.command:
                    await asyncio.sleep(request.command["maxAwaitTimeMS"] / 1000)
                await asyncio.sleep(float(request.command.get("comment", 0)))
                reply = self._reply(request.command, port, process)
                writer.write(request.reply(reply, request.request_id, more_to_come=False)[1])
                await writer.drain()
        self._open.discard(writer)
        writer.close()

    def _reply(self, command: dict[str, Any], port: int, process: ObjectId) -> dict[str, Any]:
        if next(iter(command)).lower() not in ("hello", "ismaster"):
            return {"ok": 1.0}
        reply: dict[str, Any] = {
            "helloOk": True,
            "isWritablePrimary": True,
            "ismaster": True,
            "topologyVersion": {"processId": process, "counter": Int64(0)},
            "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "logicalSessionTimeoutMinutes": 30,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "ok": 1.0,
        }
        if self._case.topology == "sharded":
            return reply | {"msg": "isdbgrid"}
        primary = port == self.ports[0]
        return reply | {
            "isWritablePrimary": primary,
            "ismaster": primary,
            "secondary": not primary,
            "setName": "rs0",
            "setVersion": 1,
            "electionId": ObjectId("7fffffff0000000000000001"),
            "hosts": [f"127.0.0.1:{each}" for each in self.ports],
            "primary": f"127.0.0.1:{self.ports[0]}",
            "me": f"127.0.0.1:{port}",
        }


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def _request(reader: asyncio.StreamReader) -> Request:
    length, request_id, _, op_code = struct.unpack("<iiii", await reader.readexactly(16))
    body = await reader.readexactly(length - 16)
    if op_code == OP_MSG:  # a section of kind 0 comes first, and no other is needed here
        start = 5
    elif op_code == OP_QUERY:
        start = body.index(b"\0", 4) + 1 + 8
    else:
        raise ConnectionAbortedError(f"unexpected op code {op_code}")
    (size,) = struct.unpack_from("<i", body, start)
    return Request(request_id, op_code, 0, bson.decode(body[start : start + size]))


async def serve(case: Case) -> None:
    """Run the servers until the standard input ends."""
    members = Members(case)
    await members.start()
    print(json.dumps(members.ports), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        if line.strip() == b"die":
            members.die()
        else:
            await members.start()


# ---------------------------------------------------------------------------------------------------------------------
# The client's process: it writes its results, and commands for the servers, to its standard output.


def send(**message: Any) -> None:
    """Send a message to the parent, as a line of JSON."""
    print(json.dumps(message), flush=True)


class Pulse:
    """Measures the longest time for which the application was blocked. A thread reports a hang to the parent.

    Args:
        patience: Seconds without progress that count as a hang.
    """

    def __init__(self, patience: float) -> None:
        self.stage = "start"
        self._patience = patience
        self._thread = threading.get_ident()
        self._last = time.monotonic()
        self._largest = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, expected: float = 0.0) -> None:
        """Note progress. The application itself chose to wait for `expected` seconds since the last call."""
        now = time.monotonic()
        self._largest = max(self._largest, now - self._last - expected)
        self._last = now

    def end(self, next_stage: str, **results: Any) -> None:
        """Report the results of the current stage and begin the next one."""
        send(stage=self.stage, stall=self._largest, **results)
        self.stage, self._largest = next_stage, 0.0

    def _watch(self) -> None:
        while time.monotonic() - self._last < self._patience:
            time.sleep(0.1)
        send(stage=self.stage, hang=" < ".join(self._where()))

    def _where(self) -> Iterator[str]:
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if Path(frame.f_code.co_filename).name not in ("threading.py", "locks.py") and self._is_driver(frame):
                yield frame.f_code.co_name
            frame = frame.f_back

    @staticmethod
    def _is_driver(frame: Any) -> bool:
        return "pymongo" in frame.f_code.co_filename or Path(frame.f_code.co_filename).name == "queue.py"


class Deliveries:
    """Notes when the driver last emptied its queue, and the largest number of events in it."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self._burst = 0
        self._largest = 0

    def note(self) -> None:
        """Note the delivery of an event."""
        now = time.monotonic()
        self._burst = self._burst + 1 if now - self.last < 0.1 else 1
        self._largest = max(self._largest, self._burst)
        self.last = now

    def largest(self) -> int:
        """Return the size of the largest delivery since the last call."""
        largest, self._largest, self._burst = self._largest, 0, 0
        return largest


class Bare:
    """A minimal listener for servers or topologies: it only notes that there was an event."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries

    def opened(self, _: object) -> None:
        """Note the delivery."""
        self._deliveries.note()

    def description_changed(self, _: object) -> None:
        """Note the delivery."""
        self._deliveries.note()

    def closed(self, _: object) -> None:
        """Note the delivery."""
        self._deliveries.note()


class Topologies(Bare, monitoring.TopologyListener):
    """A minimal topology listener."""


class Servers(Bare, monitoring.ServerListener):
    """A minimal server listener."""


class Heartbeats(monitoring.ServerHeartbeatListener):
    """A heartbeat listener that does nothing. Heartbeat events aren't queued."""

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        """Ignore the event."""

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        """Ignore the event."""

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        """Ignore the event."""


def listeners(kind: str, deliveries: Deliveries) -> list[Any]:
    """Create listeners of a kind. The package's own come with minimal ones for the same events, which queue no more."""
    if kind == "none":
        return []
    if kind == "heartbeat":
        return [Heartbeats()]
    if kind == "ours":
        ours = event_listeners(commands=False, pools=False, heartbeats=False, topology=True)
        servers = any(isinstance(each, monitoring.ServerListener) for each in ours)
        return [*ours, *listeners("server+topology" if servers else "topology", deliveries)]
    return [Topologies(deliveries)] + [Servers(deliveries)] * (kind == "server+topology")


def arguments(case: Case, ports: Sequence[int], deliveries: Deliveries) -> dict[str, Any]:
    """Return the arguments of the client."""
    seeds = ports[:1] if case.topology == "discovered" else ports
    return {
        "host": [f"127.0.0.1:{port}" for port in seeds],
        "heartbeatFrequencyMS": case.heartbeat,
        "serverSelectionTimeoutMS": int(SELECTION_TIMEOUT * 1000),
        "retryReads": False,
        "event_listeners": listeners(case.listeners, deliveries),
    } | ({} if case.topology == "sharded" else {"replicaSet": "rs0"})


def known(client: pymongo.MongoClient[Any] | pymongo.AsyncMongoClient[Any], case: Case) -> bool:
    """Whether the client knows the type of each server."""
    descriptions = client.topology_description.server_descriptions().values()
    return sum(each.is_server_type_known for each in descriptions) == case.members


def until_death(case: Case, deliveries: Deliveries) -> float:
    """Return the seconds until the servers have to die, at the case's phase of the interval of the driver's queue."""
    now = time.monotonic()
    wait = (deliveries.last + case.phase - now) % 1.0
    return wait + 1.0 if wait < 0.5 else wait


async def observe_async(case: Case, ports: Sequence[int], patience: float) -> None:
    """Run an AsyncMongoClient through the stages."""
    pulse, deliveries = Pulse(patience), Deliveries()

    async def tick() -> None:
        while True:
            pulse.beat(0.01)
            await asyncio.sleep(0.01)

    async def ping(seconds: float = 0.0) -> None:
        while True:
            with contextlib.suppress(ConnectionFailure):
                await client.admin.command("ping", comment=seconds)
            await asyncio.sleep(0.02)

    async def all_known(limit: float) -> float | None:
        for _ in range(int(limit / 0.02)):
            if known(client, case):
                return time.monotonic() - began
            await asyncio.sleep(0.02)
        return None

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    client: pymongo.AsyncMongoClient[Any] = pymongo.AsyncMongoClient(**arguments(case, ports, deliveries))
    while True:
        with contextlib.suppress(ConnectionFailure):
            await client.admin.command("ping")
            break
    first_ping = time.monotonic() - began
    all_known_after = await all_known(15.0)
    await asyncio.sleep(1.2)
    pulse.end("death", first_ping=first_ping, all_known=all_known_after, burst=deliveries.largest())
    pingers = [asyncio.create_task(ping())] if case.application != "idle" else []
    if case.application == "busy":
        pingers += [asyncio.create_task(ping(SLOW)) for _ in range(2 * case.members)]
    await asyncio.sleep(until_death(case, deliveries))
    send(want="die")
    await asyncio.sleep(case.outage)
    pulse.end("return", burst=deliveries.largest())
    send(want="return")
    pingers = pingers or [asyncio.create_task(ping())]
    began = time.monotonic()
    all_known_after = await all_known(15.0)
    await asyncio.sleep(1.2)
    pulse.end("close", all_known=all_known_after, burst=deliveries.largest())
    for pinger in pingers:
        pinger.cancel()
    await asyncio.wait(pingers)
    await client.close()
    await asyncio.sleep(0.05)
    pulse.end("", burst=deliveries.largest())
    ticker.cancel()


def observe_sync(case: Case, ports: Sequence[int], patience: float) -> None:
    """Run a MongoClient through the stages, while the application pings all the time."""
    pulse, deliveries = Pulse(patience), Deliveries()

    def ping() -> bool:
        answered = False
        pulse.beat(0.02)
        with contextlib.suppress(ConnectionFailure):
            client.admin.command("ping")
            answered = True
        pulse.beat(0.0 if pulse.stage == "start" else MAX_SELECTION_TIME)
        time.sleep(0.02)
        return answered

    def ping_slowly() -> None:
        with contextlib.suppress(InvalidOperation):  # the client is closed
            while True:
                with contextlib.suppress(ConnectionFailure):
                    client.admin.command("ping", comment=SLOW)
                time.sleep(0.02)

    def ping_for(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ping()

    def all_known(limit: float) -> float | None:
        while time.monotonic() - began < limit:
            if known(client, case):
                return time.monotonic() - began
            ping()
        return None

    began = time.monotonic()
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(**arguments(case, ports, deliveries))
    pulse.beat()
    while not ping():
        pass
    first_ping = time.monotonic() - began
    all_known_after = all_known(15.0)
    ping_for(1.2)
    pulse.end("death", first_ping=first_ping, all_known=all_known_after, burst=deliveries.largest())
    for _ in range(2 * case.members if case.application == "busy" else 0):
        threading.Thread(target=ping_slowly, daemon=True).start()
    ping_for(until_death(case, deliveries))
    send(want="die")
    ping_for(case.outage)
    pulse.end("return", burst=deliveries.largest())
    send(want="return")
    began = time.monotonic()
    all_known_after = all_known(15.0)
    ping_for(1.2)
    pulse.end("close", all_known=all_known_after, burst=deliveries.largest())
    pulse.beat(0.02)
    client.close()
    pulse.beat()
    pulse.end("", burst=deliveries.largest())


# ---------------------------------------------------------------------------------------------------------------------
# The parent: it runs the cases and prints the table.


@contextlib.asynccontextmanager
async def child(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run this script in another role. It exits when its standard input is closed, or is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 2.0)
        except (TimeoutError, asyncio.TimeoutError):
            process.kill()
            await process.wait()


async def run(case: Case, patience: float) -> dict[str, dict[str, Any]]:
    """Run a case. Returns the results by stage."""
    text = json.dumps(asdict(case))
    results: dict[str, dict[str, Any]] = {}
    async with child("--serve", text) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        ports = (await servers.stdout.readline()).decode()
        async with child("--observe", text, "--ports", ports, "--patience", str(patience)) as client:
            assert client.stdout is not None
            # A client that hangs reports so itself; this timeout is for one that can't.
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                while line := await asyncio.wait_for(client.stdout.readline(), 2 * patience + case.outage + 30):
                    message = json.loads(line)
                    if "want" in message:
                        servers.stdin.write(message["want"].encode() + b"\n")
                    else:
                        results[message["stage"]] = message
                    if "hang" in message:
                        break
    return results


async def run_all(cases: Sequence[Case], patience: float, jobs: int) -> bool:
    """Run the cases and print a row for each, in their order. Returns whether no client hung."""
    no_hangs = True
    places = asyncio.Semaphore(jobs)

    async def run_in_turn(case: Case) -> dict[str, dict[str, Any]]:
        async with places:
            return await run(case, patience)

    columns = [
        *(each.name for each in fields(Case)),
        "first ping",
        "all known",
        *STAGES,
        "largest deliveries",
        "hangs in",
    ]
    print(f"PyMongo {pymongo.version}; largest stalls in ms")
    print(_row(columns))
    print(_row("---" for _ in columns))
    tasks = [asyncio.create_task(run_in_turn(case)) for case in cases]
    for case, task in zip(cases, tasks, strict=True):
        results = await task
        start = results.get("start", {})
        cells = [
            *asdict(case).values(),
            *(_milliseconds(start.get(name)) for name in ("first_ping", "all_known")),
            *(_outcome(results.get(stage)) for stage in STAGES),
            " ".join(str(results[stage]["burst"]) for stage in STAGES if "burst" in results.get(stage, {})),
            next((stage["hang"] for stage in results.values() if "hang" in stage), ""),
        ]
        print(_row(cells), flush=True)
        no_hangs &= all("stall" in results.get(stage, {}) for stage in STAGES)
    return no_hangs


def _row(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def _outcome(stage: dict[str, Any] | None) -> str:
    if stage is None:
        return "-"
    return "HANG" if "hang" in stage else _milliseconds(max(0.0, stage["stall"]))


def main() -> int:
    """Run the selected cases. Returns the exit code, which is 1 if the small case hangs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run one small case, which must not hang")
    parser.add_argument("--listeners", nargs="+", choices=LISTENERS, default=LISTENERS)
    parser.add_argument("--members", nargs="+", type=int, default=(25, 33, 50, 100))
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=TOPOLOGIES)
    parser.add_argument("--heartbeats", nargs="+", type=int, default=(500, 10_000), help="heartbeatFrequencyMS")
    parser.add_argument("--applications", nargs="+", choices=APPLICATIONS, default=APPLICATIONS)
    parser.add_argument("--phases", nargs="+", type=float, default=(0.05,), help="seconds, below 1")
    parser.add_argument("--outage", type=float, default=4.0, help="seconds")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds without progress that count as a hang")
    parser.add_argument("--jobs", type=int, default=1, help="number of cases that run at once")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--observe", help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(Case(**json.loads(given.serve))))
    elif given.observe:
        case, ports = Case(**json.loads(given.observe)), json.loads(given.ports)
        if case.client == "sync":
            observe_sync(case, ports, given.patience)
        else:
            asyncio.run(observe_async(case, ports, given.patience))
    else:
        no_hangs = asyncio.run(run_all([QUICK] if given.quick else list(all_cases(given)), given.patience, given.jobs))
        return int(given.quick and not no_hangs)
    return 0


QUICK = Case("async", "sharded", 3, "ours", 500, "pinging", 0.05, 1.0)


def all_cases(given: argparse.Namespace) -> Iterator[Case]:
    """Return the selected cases, without those of an idle sync client."""
    choices = (given.clients, given.topologies, given.members, given.listeners, given.heartbeats, given.applications)
    for client, topology, members, kind, heartbeat, application in itertools.product(*choices):
        for phase in given.phases if (client, application) != ("sync", "idle") else ():
            yield Case(client, topology, members, kind, heartbeat, application, phase, given.outage)


if __name__ == "__main__":
    sys.exit(main())
