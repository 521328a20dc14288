"""How a client fares whose many servers are found, die, return and are closed at once, by the listeners it has.

PyMongo queues the events of servers and topologies for their listeners. The queue holds 100, and the driver waits where
it is full, which stops an asyncio client for good: the task that empties the queue runs on the event loop that waits.

Each case has processes of its own for its servers and its client, and a client that stands still is killed: that is a
result. Run with `--help`; `--quick` is one small case.
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

# A selection looks again when a server has changed, and after 0.5 s: it may take that much more than its time-out.
SELECTION_TIMEOUT = 0.4
SELECTION_TAKES = SELECTION_TIMEOUT + 0.5
SLOW = 0.3


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        client: One of CLIENTS.
        topology: `sharded` has all mongos as seeds, `replica_set` all members, `discovered` one member.
        members: How many servers.
        listeners: One of LISTENERS. All but `none` and `heartbeat` make the driver queue events.
        heartbeat: `heartbeatFrequencyMS`.
        application: One of APPLICATIONS. `idle` does nothing, `pinging` pings all the time: a ping that waits for a
            server has all of them checked every 0.5 s. `busy` has two slow commands for each server on their way too. A
            sync client is never idle.
        phase: Seconds from the last emptying of the queue to the death. It is emptied each second.
        outage: Seconds from the death to the return.
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
# The servers' process: it answers hello and ping, and obeys its standard input.


class Members:
    """The servers of one topology."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._reserved = [_bound(0) for _ in range(case.members)]
        self.ports = [each.getsockname()[1] for each in self._reserved]
        self._listening: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, at the same ports each time."""
        for port, sock in zip(self.ports, self._reserved, strict=True):
            server = await asyncio.start_server(functools.partial(self._serve, port), sock=sock, backlog=512)
            self._listening.append(server)

    def die(self) -> None:
        """Drop all connections and refuse others; nobody else gets the ports."""
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
    if op_code == OP_MSG:  # a document of kind 0 stands first, and none of another kind is needed here
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
# The client's process: it tells what it finds, and what it wants of the servers, on its standard output.


def tell(**what: Any) -> None:
    """A line to the parent."""
    print(json.dumps(what), flush=True)


class Pulse:
    """How long the application was kept from going on, at most; a thread tells the parent if that is for good."""

    def __init__(self, patience: float) -> None:
        self.stage = "start"
        self._patience = patience
        self._thread = threading.get_ident()
        self._last = time.monotonic()
        self._largest = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, expected: float = 0.0) -> None:
        """Go on, after `expected` seconds that were the application's own wish."""
        now = time.monotonic()
        self._largest = max(self._largest, now - self._last - expected)
        self._last = now

    def end(self, next_stage: str, **found: Any) -> None:
        """Tell of the stage."""
        tell(stage=self.stage, stall=self._largest, **found)
        self.stage, self._largest = next_stage, 0.0

    def _watch(self) -> None:
        while time.monotonic() - self._last < self._patience:
            time.sleep(0.1)
        tell(stage=self.stage, hang=" < ".join(self._where()))

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
    """When the driver emptied its queue, and how many events were in it at most."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self._burst = 0
        self._largest = 0

    def note(self) -> None:
        """An event is delivered."""
        now = time.monotonic()
        self._burst = self._burst + 1 if now - self.last < 0.1 else 1
        self._largest = max(self._largest, self._burst)
        self.last = now

    def largest(self) -> int:
        """The largest delivery since the last call."""
        largest, self._largest, self._burst = self._largest, 0, 0
        return largest


class Bare:
    """What any listener for servers or topologies does at least: it notes that there was an event."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries

    def opened(self, _: object) -> None:
        """Note it."""
        self._deliveries.note()

    def description_changed(self, _: object) -> None:
        """Note it."""
        self._deliveries.note()

    def closed(self, _: object) -> None:
        """Note it."""
        self._deliveries.note()


class Topologies(Bare, monitoring.TopologyListener):
    """Bare."""


class Servers(Bare, monitoring.ServerListener):
    """Bare."""


class Heartbeats(monitoring.ServerHeartbeatListener):
    """As bare as can be: these events aren't queued."""

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        """Nothing to note."""

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        """Nothing to note."""

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        """Nothing to note."""


def listeners(kind: str, deliveries: Deliveries) -> list[Any]:
    """New listeners of a kind; beside the package's own stand bare ones for the same events, which adds none."""
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
    """The arguments of the client."""
    seeds = ports[:1] if case.topology == "discovered" else ports
    return {
        "host": [f"127.0.0.1:{port}" for port in seeds],
        "heartbeatFrequencyMS": case.heartbeat,
        "serverSelectionTimeoutMS": int(SELECTION_TIMEOUT * 1000),
        "retryReads": False,
        "event_listeners": listeners(case.listeners, deliveries),
    } | ({} if case.topology == "sharded" else {"replicaSet": "rs0"})


def known(client: pymongo.MongoClient[Any] | pymongo.AsyncMongoClient[Any], case: Case) -> bool:
    """Whether all servers are known."""
    descriptions = client.topology_description.server_descriptions().values()
    return sum(each.is_server_type_known for each in descriptions) == case.members


def until_death(case: Case, deliveries: Deliveries) -> float:
    """Seconds to the moment of the death: the case's phase of the driver's rhythm, when all is quiet."""
    now = time.monotonic()
    wait = (deliveries.last + case.phase - now) % 1.0
    return wait + 1.0 if wait < 0.5 else wait


async def observe_async(case: Case, ports: Sequence[int], patience: float) -> None:
    """Take an AsyncMongoClient through the stages."""
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
    found = await all_known(15.0)
    await asyncio.sleep(1.2)
    pulse.end("death", first_ping=first_ping, all_known=found, burst=deliveries.largest())
    pingers = [asyncio.create_task(ping())] if case.application != "idle" else []
    if case.application == "busy":
        pingers += [asyncio.create_task(ping(SLOW)) for _ in range(2 * case.members)]
    await asyncio.sleep(until_death(case, deliveries))
    tell(want="die")
    await asyncio.sleep(case.outage)
    pulse.end("return", burst=deliveries.largest())
    tell(want="return")
    pingers = pingers or [asyncio.create_task(ping())]
    began = time.monotonic()
    found = await all_known(15.0)
    await asyncio.sleep(1.2)
    pulse.end("close", all_known=found, burst=deliveries.largest())
    for pinger in pingers:
        pinger.cancel()
    await asyncio.wait(pingers)
    await client.close()
    await asyncio.sleep(0.05)
    pulse.end("", burst=deliveries.largest())
    ticker.cancel()


def observe_sync(case: Case, ports: Sequence[int], patience: float) -> None:
    """Take a MongoClient through the stages; its application pings all the time."""
    pulse, deliveries = Pulse(patience), Deliveries()

    def ping() -> bool:
        answered = False
        pulse.beat(0.02)
        with contextlib.suppress(ConnectionFailure):
            client.admin.command("ping")
            answered = True
        pulse.beat(0.0 if pulse.stage == "start" else SELECTION_TAKES)
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
    found = all_known(15.0)
    ping_for(1.2)
    pulse.end("death", first_ping=first_ping, all_known=found, burst=deliveries.largest())
    for _ in range(2 * case.members if case.application == "busy" else 0):
        threading.Thread(target=ping_slowly, daemon=True).start()
    ping_for(until_death(case, deliveries))
    tell(want="die")
    ping_for(case.outage)
    pulse.end("return", burst=deliveries.largest())
    tell(want="return")
    began = time.monotonic()
    found = all_known(15.0)
    ping_for(1.2)
    pulse.end("close", all_known=found, burst=deliveries.largest())
    pulse.beat(0.02)
    client.close()
    pulse.beat()
    pulse.end("", burst=deliveries.largest())


# ---------------------------------------------------------------------------------------------------------------------
# The parent: it runs the cases and draws the table.


@contextlib.asynccontextmanager
async def child(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """This script in another role; it ends with its standard input, or is killed."""
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
    """What each stage of a case gave."""
    text = json.dumps(asdict(case))
    found: dict[str, dict[str, Any]] = {}
    async with child("--serve", text) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        ports = (await servers.stdout.readline()).decode()
        async with child("--observe", text, "--ports", ports, "--patience", str(patience)) as client:
            assert client.stdout is not None
            # The client tells itself when it stands still; this is for one that can't even tell.
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                while line := await asyncio.wait_for(client.stdout.readline(), 2 * patience + case.outage + 30):
                    told = json.loads(line)
                    if "want" in told:
                        servers.stdin.write(told["want"].encode() + b"\n")
                    else:
                        found[told["stage"]] = told
                    if "hang" in told:
                        break
    return found


async def run_all(cases: Sequence[Case], patience: float, jobs: int) -> bool:
    """Run the cases, and print a row for each as soon as those before it are done; whether none stood still."""
    went_on = True
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
        found = await task
        start = found.get("start", {})
        cells = [
            *asdict(case).values(),
            *(_milliseconds(start.get(name)) for name in ("first_ping", "all_known")),
            *(_outcome(found.get(stage)) for stage in STAGES),
            " ".join(str(found[stage]["burst"]) for stage in STAGES if "burst" in found.get(stage, {})),
            next((stage["hang"] for stage in found.values() if "hang" in stage), ""),
        ]
        print(_row(cells), flush=True)
        went_on &= all("stall" in found.get(stage, {}) for stage in STAGES)
    return went_on


def _row(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def _outcome(stage: dict[str, Any] | None) -> str:
    if stage is None:
        return "-"
    return "HANG" if "hang" in stage else _milliseconds(max(0.0, stage["stall"]))


def main() -> int:
    """Run what is asked for; the exit code, which is 1 where the small case stands still."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, which must not stand still")
    parser.add_argument("--listeners", nargs="+", choices=LISTENERS, default=LISTENERS)
    parser.add_argument("--members", nargs="+", type=int, default=(25, 33, 50, 100))
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=TOPOLOGIES)
    parser.add_argument("--heartbeats", nargs="+", type=int, default=(500, 10_000), help="heartbeatFrequencyMS")
    parser.add_argument("--applications", nargs="+", choices=APPLICATIONS, default=APPLICATIONS)
    parser.add_argument("--phases", nargs="+", type=float, default=(0.05,), help="seconds, below 1")
    parser.add_argument("--outage", type=float, default=4.0, help="seconds")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds without progress that are for good")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
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
        went_on = asyncio.run(run_all([QUICK] if given.quick else list(all_cases(given)), given.patience, given.jobs))
        return int(given.quick and not went_on)
    return 0


QUICK = Case("async", "sharded", 3, "ours", 500, "pinging", 0.05, 1.0)


def all_cases(given: argparse.Namespace) -> Iterator[Case]:
    """The cases that are asked for; the application of a sync client is never idle."""
    choices = (given.clients, given.topologies, given.members, given.listeners, given.heartbeats, given.applications)
    for client, topology, members, kind, heartbeat, application in itertools.product(*choices):
        for phase in given.phases if (client, application) != ("sync", "idle") else ():
            yield Case(client, topology, members, kind, heartbeat, application, phase, given.outage)


if __name__ == "__main__":
    sys.exit(main())
