"""The life of a process: forks, threads at its end, exits of each kind, and modules that are loaded again."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry._logs import Logger
from opentelemetry.trace import StatusCode
from pymongo.errors import AutoReconnect

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.forks import in_child
from tests.programs import PREAMBLE, Run, run
from tests.spans import Spans, table_of
from tests.test_outages import DISCOVERY

if TYPE_CHECKING:
    from pathlib import Path

    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def test_the_child_forgets_what_its_parent_has_open_and_traces_its_own(
    client: MongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    client.admin.command("ping")
    frozen = server.freeze("find")
    thread = threading.Thread(target=client.shop.command, args=("find", "orders"))
    thread.start()
    assert frozen.reached.wait(5)
    assert len(table_of(listeners)) == 1
    spans.clear()

    def child() -> bool:
        forgotten = len(table_of(listeners)) == 0
        mine = Spans()
        with connect(server.uri, event_listeners=event_listeners(tracer_provider=mine.provider)) as own:
            own.shop.orders.insert_one({})
            return forgotten and mine.names == ["insert orders"] and spans.names == []

    assert in_child(child)

    frozen.release()
    thread.join(5)
    assert spans.one("find orders").status.status_code is StatusCode.UNSET
    assert len(table_of(listeners)) == 0


@pytest.mark.skipif(pymongo.version_tuple < (4, 3), reason="before PyMongo 4.3 a child's topology is its parent's")
@pytest.mark.parametrize("is_used", [False, True], ids=["unused", "used"])
@pytest.mark.filterwarnings("ignore:MongoClient opened before fork:UserWarning")
@pytest.mark.usefixtures("quick_driver")
def test_a_client_that_was_made_before_discovers_its_servers_in_the_child(
    server: ScriptedServer, is_used: bool
) -> None:
    spans = Spans()
    listeners = event_listeners(tracer_provider=spans.provider, topology=True)
    with connect(server.uri, event_listeners=listeners, connect=False) as client:
        if is_used:
            client.admin.command("ping")
            spans.wait_for(DISCOVERY)
            spans.clear()

        def child() -> bool:
            for _ in range(2):
                with contextlib.suppress(AutoReconnect):  # PyMongo 4.0 makes its pool anew at the second try
                    client.admin.command("ping")
            spans.wait_for(DISCOVERY)
            return len(spans.named(DISCOVERY)) == 1

        assert in_child(child)


def test_listeners_that_are_gone_are_no_trouble(capfd: pytest.CaptureFixture[str]) -> None:
    listeners = event_listeners()
    gone = weakref.ref(table_of(listeners))
    del listeners
    gc.collect()
    assert gone() is None

    assert in_child(lambda: True)
    assert capfd.readouterr().err == ""


CHILDREN = """
import multiprocessing, os, sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry_mongo_events import MongoEventsInstrumentor
from pymongo import MongoClient, common

common.MIN_HEARTBEAT_INTERVAL = common.EVENTS_QUEUE_FREQUENCY = 0.05


class Told(SpanExporter):
    def export(self, spans):
        os.write(1, "".join(f"{os.getpid()} {span.name}\\n" for span in spans).encode())
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Told()))
MongoEventsInstrumentor().instrument(tracer_provider=provider)


def work(number):
    with MongoClient(sys.argv[1]) as client:
        client.shop[f"c{number}"].insert_one({})
        return os.getpid(), number


if __name__ == "__main__":
    client = MongoClient(sys.argv[1])
    client.admin.command("ping")
    lost = MongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=100)  # its discovery is open
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        for pid, number in pool.map(work, range(2)):
            os.write(1, f"{pid} worked on c{number}\\n".encode())
        pool.close()
        pool.join()
    client.shop.orders.insert_one({})
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_children_of_multiprocessing_trace_their_own(method: str, server: ScriptedServer, tmp_path: Path) -> None:
    program = tmp_path / "children.py"
    program.write_text(CHILDREN)
    # Of a fork while threads run Python warns, and PyMongo of a client that was there before.
    done = run(program, server.uri, method, options=["-W", "ignore"])

    assert (done.code, done.error) == (0, "")
    assert sorted(line.partition(" ")[2] for line in done.lines if " worked on " in line) == [
        f"worked on c{number}" for number in range(2)
    ]
    lines = [line for line in done.lines if "insert" in line]
    for worked in [line for line in done.lines if " worked on " in line]:
        assert lines.count(worked.replace("worked on", "insert")) == 1
    assert len(lines) == 3  # and the parent's own, which it alone has
    parent = next(line for line in lines if line.endswith("insert orders")).split()[0]
    assert [line.split()[0] for line in done.lines if line.endswith("ping admin")] == [parent]


# ---------------------------------------------------------------------------------------------------------------------
# Exits: the code is what it would be, and on stderr there is nothing that the program didn't write.


def ended(body: str, uri: str) -> Run:
    """How a program ended that runs with this package on."""
    # PyMongo warns of asyncio clients that nobody closed, with a warning that is ignored by default.
    return run(PREAMBLE + body, uri, "on", options=["-W", "default", "-W", "ignore::ResourceWarning"])


CONNECTED = """
client = MongoClient(URI)
client.admin.command("ping")
"""

EXITS: dict[str, tuple[str, int, str]] = {
    "sys.exit": ("sys.exit(7)", 7, ""),
    "an exception": ("raise ValueError('bye')", 1, "ValueError: bye"),
    "an interrupt": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(20)", -signal.SIGINT, "KeyboardInterrupt"),
    "a signal that nobody handles": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", -signal.SIGTERM, ""),
    "a signal that makes it exit": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)",
        3,
        "",
    ),
    "os._exit": ("tracer_provider.force_flush(); os._exit(9)", 9, ""),
}


@pytest.mark.parametrize("how", EXITS)
def test_an_exit_is_as_it_would_be(how: str, server: ScriptedServer) -> None:
    body, code, error = EXITS[how]
    end = ended(CONNECTED + body, server.uri)

    assert end.code == code
    assert ("ping admin: None" in end.lines) is (how != "a signal that nobody handles")
    assert end.error.strip().rpartition("\n")[2] == error
    assert end.error.count("Traceback") == bool(error)
    assert "opentelemetry" not in end.error


A_SIGNAL_IN_A_COMMAND = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
client.shop.command("count", "orders")
"""


def test_a_command_in_which_the_program_exits_is_told(server: ScriptedServer) -> None:
    server.freeze("count")
    end = ended(CONNECTED + A_SIGNAL_IN_A_COMMAND, server.uri)

    assert (end.code, end.error) == (3, "")
    # 4.20.1 publishes a failure, versions before it no end at all.
    assert {"count orders: SystemExit", "count orders: interrupted"} & set(end.lines)


LEFT_OPEN: dict[str, tuple[str, set[str]]] = {
    "clients, a cursor and a command": (
        """
sys.others = [MongoClient(URI) for _ in range(3)]
for each in sys.others:
    each.admin.command("ping")
client.shop.orders.insert_many([{} for _ in range(9)])
cursor = client.shop.orders.find(batch_size=2)
next(cursor)
threading.Thread(target=client.shop.command, args=("count", "orders"), daemon=True).start()
time.sleep(0.1)
""",
        {"ping admin: None", "insert orders: None", "find orders: None"},
    ),
    "a client that looks for its servers": (
        """
lost = MongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=200)
try:
    lost.admin.command("ping")
except pymongo.errors.ServerSelectionTimeoutError:
    pass
""",
        {"mongodb.client.discovery: exit"},
    ),
    "threads that nobody waits for": (
        """
running = threading.Barrier(5)
def work():
    running.wait()
    while True:
        client.shop.orders.find_one({})
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
running.wait()
time.sleep(0.1)
""",
        {"find orders: None"},
    ),
    "threads that are waited for": (
        """
def work():
    time.sleep(0.2)
    for number in range(20):
        client.shop[f"c{number}"].find_one({})
for _ in range(4):
    threading.Thread(target=work).start()
""",
        {f"find c{number}: None" for number in range(20)},
    ),
    "what a handler and a finalizer do at the exit": (
        """
class Last:
    def __del__(self):
        client.shop.bills.find_one({})
sys.last = Last()
atexit.register(lambda: client.shop.orders.find_one({}))
atexit.register(MongoEventsInstrumentor().uninstrument)
atexit.register(lambda: client.shop.users.find_one({}))
""",
        {"find users: None"},
    ),
    "providers that were shut down": (
        """
tracer_provider.shutdown()
metrics.get_meter_provider().shutdown()
client.shop.orders.find_one({})
""",
        {"ping admin: None"},
    ),
}


@pytest.mark.parametrize("what", LEFT_OPEN)
def test_what_is_left_open_at_the_exit_makes_no_noise(what: str, server: ScriptedServer) -> None:
    body, spans = LEFT_OPEN[what]
    server.freeze("count")
    end = ended(CONNECTED + body, server.uri)

    assert (end.code, end.error) == (0, "")
    assert set(end.lines) >= spans


RECORDS = """
import time
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry_mongo_events import event_listeners
from pymongo.monitoring import PoolClearedEvent

class Pipeline(LogRecordProcessor):
    def on_emit(self, log_record):
        time.sleep(0.1)
        print(log_record.log_record.event_name, flush=True)
    def shutdown(self):
        print("shut down", flush=True)
    def force_flush(self, timeout_millis=30_000):
        return True

provider = LoggerProvider()
provider.add_log_record_processor(Pipeline())
listeners = event_listeners(logger_provider=provider, events="log")
pools = next(each for each in listeners if type(each).__name__ == "PoolEvents")
for _ in range(3):
    pools.pool_cleared(PoolClearedEvent(("db.example", 27017)))
"""


@pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters, reason="OpenTelemetry 1.38 has events"
)
def test_no_log_record_is_lost_at_the_exit() -> None:
    end = run(RECORDS)

    assert (end.code, end.error) == (0, "")
    assert end.lines == ["mongodb.client.pool.cleared"] * 3 + ["shut down"]


CLOSED_BY_A_FINALIZER = """
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry_mongo_events import event_listeners
from pymongo import MongoClient

class Repository:
    def __init__(self):
        listeners = event_listeners(logger_provider=LoggerProvider(), events="log")
        self.client = MongoClient("mongodb://127.0.0.1:1", event_listeners=listeners)
    def __del__(self, print=print):
        self.client.close()
        print("closed", flush=True)

repository = Repository()
"""


@pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters, reason="OpenTelemetry 1.38 has events"
)
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy runs no finalizers at its end")
def test_a_client_may_be_closed_as_the_interpreter_is_torn_down() -> None:
    end = run(CLOSED_BY_A_FINALIZER)

    assert (end.code, end.lines, end.error) == (0, ["closed"], "")


LEFT_OPEN_IN_A_LOOP: dict[str, tuple[str, int]] = {
    "a client that looks for its servers": (
        """
    lost = pymongo.AsyncMongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=200)
    try:
        await lost.admin.command("ping")
    except pymongo.errors.ServerSelectionTimeoutError:
        pass
""",
        0,
    ),
    "tasks": (
        """
    async def work():
        while True:
            await client.shop.orders.find_one({})
    tasks.extend(asyncio.create_task(work()) for _ in range(4))
    await asyncio.sleep(0.1)
    sys.exit(4)
""",
        4,
    ),
}


@pytest.mark.skipif(pymongo.version_tuple < (4, 11), reason="before PyMongo 4.11 asyncio waits for a blocking select")
@pytest.mark.parametrize("what", LEFT_OPEN_IN_A_LOOP)
def test_an_asyncio_client_that_is_left_open_makes_no_noise(what: str, server: ScriptedServer) -> None:
    body, code = LEFT_OPEN_IN_A_LOOP[what]
    program = f"""
client, tasks = None, []
async def main():
    global client
    client = pymongo.AsyncMongoClient(URI)
    await client.admin.command("ping")
{body}
asyncio.run(main())
"""
    end = ended(program, server.uri)

    assert (end.code, end.error) == (code, "")
    assert "ping admin: None" in end.lines


# What is registered first runs last: it knows how long all the others took.
TIMED = """
import atexit, os, time
atexit.register(lambda: os.write(1, f"{time.monotonic() - left}\\n".encode()))
"""


def test_an_exit_takes_no_longer_than_without_it(server: ScriptedServer) -> None:
    def seconds(telemetry: str) -> float:
        done = run(TIMED + PREAMBLE + CONNECTED + "left = time.monotonic()", server.uri, telemetry)
        assert (done.code, done.error) == (0, "")
        return float(done.lines[-1])

    # The driver waits for the thread that hands over its events of topologies: half a second. The machine may be busy.
    assert any(seconds("on") - seconds("off") < 0.8 for _ in range(3))


# ---------------------------------------------------------------------------------------------------------------------
# Modules that are loaded again, as a notebook does it.

RELOADED = """
import importlib
from opentelemetry_mongo_events import event_listeners

NAME = sys.argv[3]
mine = MongoClient(URI, event_listeners=event_listeners())


def insert(client, collection):
    client.shop[collection].insert_one({})


insert(client, "before")
for name in sorted(name for name in sys.modules if name.startswith(NAME)):
    importlib.reload(sys.modules[name])
insert(client, "after")
insert(mine, "mine")
insert(MongoClient(URI), "new")
MongoEventsInstrumentor().uninstrument()
insert(client, "off")
sys.modules["opentelemetry_mongo_events._instrumentor"].MongoEventsInstrumentor().instrument()
insert(MongoClient(URI), "again")
"""


@pytest.mark.parametrize("name", ["opentelemetry_mongo_events", "pymongo.monitoring"])
def test_modules_may_be_loaded_again(name: str, server: ScriptedServer) -> None:
    end = run(PREAMBLE + CONNECTED + RELOADED, server.uri, "on", name)
    inserted = [line for line in end.lines if line.startswith("insert")]

    assert (end.code, end.error) == (0, "")
    # What was made before goes on, and none comes twice.
    assert inserted[:3] == ["insert before: None", "insert after: None", "insert mine: None"]
    # The driver's list of listeners is empty then, and takes none of the classes that it had before.
    also = [] if name == "pymongo.monitoring" else ["insert new: None", "insert again: None"]
    assert inserted[3:] == also
