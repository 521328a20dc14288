"""Programs that gevent or eventlet patches, before or after this package is imported: no greenlet stands still."""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pymongo
import pytest
from opentelemetry._logs import Logger

from tests.programs import run
from tests.servers.processes import environment
from tests.test_outages import DISCOVERY, OUTAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.servers.scripted import ScriptedServer

_ROOT = Path(__file__).resolve().parents[1]

# No greenlet stands still for longer, on a machine that has other things to do.
MOST = 0.5
# A program that stands still does so for minutes.
_PATIENCE = 30

# Eventlet has fewer warnings for tests.
SHOWS_ALL = "import os; os.environ.pop('PYTEST_CURRENT_TEST', None)"

# What a program is made of, in the order that each test has for it.
PARTS = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent without threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    # After patching, each older thread imports gevent's event loop when it first waits. If several do so at once,
    # gevent may deadlock in the import, even without this package (seen on Python 3.10). So the main thread is first.
    "load gevent": "import gevent; gevent.get_hub()",
    "import": """
import json, threading, time

import pymongo
from pymongo import common

from tests.ticks import Ticks

common.EVENTS_QUEUE_FREQUENCY = common.MIN_HEARTBEAT_INTERVAL = 0.05


def say(**what):
    write(1, f"{json.dumps(what)}\\n".encode())
""",
    "set up": """
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult


class Told(SpanExporter):
    def export(self, spans):
        for span in spans:
            say(span=span.name, status=span.status.status_code.name, attributes=dict(span.attributes))
        return SpanExportResult.SUCCESS


# Where detectors of resources are asked, and threads aren't patched, the SDK waits for them for five seconds.
nobody = Resource.get_empty()
tracer_provider = TracerProvider(resource=nobody)
tracer_provider.add_span_processor(SimpleSpanProcessor(Told()))
options = {"tracer_provider": tracer_provider}
if IS_ON:
    from opentelemetry_mongo_events import MongoEventsInstrumentor

    instrumentor = MongoEventsInstrumentor()
""",
    "log": """
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor


class Logged(LogRecordProcessor):
    def on_emit(self, log_record):
        say(record=log_record.log_record.event_name)

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=30_000):
        return True


logger_provider = LoggerProvider(resource=nobody)
logger_provider.add_log_record_processor(Logged())
options |= {"logger_provider": logger_provider, "events": "both"}
""",
    "instrument": "if IS_ON: instrumentor.instrument(**options)",
    "client": """
client = pymongo.MongoClient(URI, serverSelectionTimeoutMS=3000, heartbeatFrequencyMS=500)
""",
    "ping": "client.admin.command('ping')",
    "instrument_client": "if IS_ON: instrumentor.instrument_client(client, **options)",
    # In a thread, which is a greenlet where threads are patched.
    "work": """
answers = []
is_gone = False


def work():
    while not is_gone:
        try:
            answers.append(client.admin.command("ping"))
        except pymongo.errors.AutoReconnect:  # where it meets the outage before the heartbeat does
            pass
        time.sleep(0.05)


ticks = Ticks()
worker = threading.Thread(target=work, daemon=True)
worker.start()
ticks.until(lambda: answers)
ticks.on(0.2)
""",
    "lose": """
say(server="stop")
ticks.until(lambda: not client.topology_description.has_readable_server())
ticks.on(1)
""",
    "kill": """
spawn = (sys.modules.get("gevent") or sys.modules["eventlet"]).spawn
waiting = spawn(client.admin.command, "count")
ticks.on(0.2)
waiting.kill()
ticks.on(0.7)
""",
    "find": """
answers.clear()
say(server="start")
ticks.until(lambda: answers)
ticks.on(0.2)
""",
    "uninstrument": """
say(uninstruments=True)
if IS_ON: instrumentor.uninstrument()
""",
    # Where none is found.
    "seek": """
def seek():
    try:
        client.admin.command("ping")
    except pymongo.errors.ServerSelectionTimeoutError as error:
        say(lost=str(error).partition(",")[0])


ticks = Ticks()
seeking = threading.Thread(target=seek)
seeking.start()
ticks.until(lambda: not seeking.is_alive())
""",
    "close": """
is_gone = True
ticks.until(lambda: not worker.is_alive())
closing = threading.Thread(target=client.close)
closing.start()
ticks.until(lambda: not closing.is_alive())
ticks.on(0.2)
""",
    "end": "say(longest=ticks.longest)",
    "shut down": "from opentelemetry import trace; trace.get_tracer_provider().shutdown()",
}


class Lived(NamedTuple):
    """How a program lived: its exit code, what it said, what it wrote to stderr, and how long its exit took."""

    code: int
    said: list[dict[str, Any]]
    error: str
    exit: float

    def all(self, what: str) -> list[Any]:
        """All of one kind that it said."""
        return [each[what] for each in self.said if what in each]

    def spans(self, name: str) -> list[dict[str, Any]]:
        """The spans of that name."""
        return [each for each in self.said if each.get("span") == name]


def live(
    server: ScriptedServer,
    folder: Path,
    *parts: str,
    is_on: bool = True,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Lived:
    """Run a program of those parts, which has the server stopped and started again."""
    program = "\n".join(
        [
            "import os, sys",
            "URI, IS_ON = sys.argv[1], sys.argv[2] == 'on'",
            "write = os.write  # eventlet's can't be used by two greenlets at once",
            SHOWS_ALL,
            *(PARTS[part] for part in parts),
        ]
    )
    python_path = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    said = []
    last = time.monotonic()
    with (folder / "error").open("w+") as error:
        process = subprocess.Popen(
            # Both libraries warn of what is imported before they patch, and eventlet of itself.
            [*prefix, sys.executable, "-W", "ignore", "-c", program, server.uri, "on" if is_on else "off"],
            env=environment() | {"PYTHONPATH": python_path} | dict(variables or {}),
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
        )
        impatience = threading.Timer(_PATIENCE, process.kill)
        impatience.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    last = time.monotonic()
                    said.append(json.loads(line))
                    if "server" in said[-1]:
                        getattr(server, said[-1]["server"])()
            process.wait()
        finally:
            impatience.cancel()
            process.kill()
            process.wait()
        error.seek(0)
        return Lived(process.returncode, said, error.read(), time.monotonic() - last)


@functools.cache
def alone(library: str) -> str:
    """What it writes to stderr where it patches: on Python 3.14 eventlet finds a lock that it can't patch."""
    return run(f"{SHOWS_ALL}\n{PARTS[library]}", options=["-W", "ignore"]).error


def check(lived: Lived) -> None:
    """That it ended by itself, at once, and never stood still."""
    assert lived.code == 0, f"ended by {lived.code}; said {lived.said[-3:]}, and on stderr {lived.error[-2000:]}"
    (longest,) = lived.all("longest")
    assert longest < MOST
    assert lived.exit < 5


def check_episodes(lived: Lived, server: ScriptedServer, *, is_discovered: bool = True) -> None:
    """That what the client went through is there, each once."""
    system = {"db.system.name": "mongodb"}
    found = {"mongodb.client.topology.type": "Unknown", "mongodb.client.discovery.outcome": "discovered"}
    discovery = {"span": DISCOVERY, "status": "UNSET", "attributes": system | found}
    assert lived.spans(DISCOVERY) == [discovery] * is_discovered
    about = {"mongodb.client.topology.type": "Single", "server.address": "127.0.0.1", "server.port": server.port}
    about["mongodb.client.outage.outcome"] = "recovered"
    (outage,) = lived.spans(OUTAGE)
    assert outage["status"] == "ERROR"
    assert outage["attributes"].items() >= (system | about).items()
    assert outage["attributes"]["mongodb.client.outage.failed_heartbeat_count"] > 0


def check_commands(lived: Lived) -> None:
    """That there are commands before and after the outage."""
    stop, start = (lived.said.index({"server": word}) for word in ("stop", "start"))
    names = [each.get("span") for each in lived.said]
    assert "ping admin" in names[:stop]
    assert "ping admin" in names[start:]


# By their names: the parts of a program up to its client.
ORDERS = {
    "patch, then import": ("patch", "import", "set up", "instrument", "client"),
    "import, then patch": ("import", "set up", "patch", "instrument", "client"),
    "instrument, then patch": ("import", "set up", "instrument", "patch", "client"),
}
# PyMongo is not among what eventlet can patch after its import: see the test of that.
EVENTLET = ("eventlet", "patch, then import")
EXTREMES = [("gevent", "patch, then import"), ("gevent", "instrument, then patch"), EVENTLET]


def parts(library: str, order: Sequence[str]) -> list[str]:
    """The parts with that library in them; the test is skipped where it isn't there."""
    pytest.importorskip(library.partition(" ")[0], exc_type=ImportError)
    return [library if part == "patch" else part for part in order]


@pytest.mark.parametrize(("library", "order"), [*(("gevent", order) for order in ORDERS), EVENTLET])
def test_a_greenlet_ticks_on_while_a_client_finds_its_servers_and_loses_them(
    library: str, order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    lived = live(server, tmp_path, *parts(library, ORDERS[order]), "work", "lose", "find", "close", "end")

    check(lived)
    check_episodes(lived, server)
    check_commands(lived)
    assert lived.error == alone(library)


@pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters, reason="OpenTelemetry 1.38 has events"
)
@pytest.mark.parametrize(("library", "order"), EXTREMES)
def test_a_greenlet_ticks_on_while_log_records_are_emitted(
    library: str, order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    made = parts(library, ORDERS[order])
    made.insert(made.index("set up") + 1, "log")
    lived = live(server, tmp_path, *made, "work", "lose", "find", "close", "end")

    check(lived)
    check_episodes(lived, server)
    check_commands(lived)
    assert lived.error == alone(library)
    records = Counter(record.removeprefix("mongodb.client.") for record in lived.all("record"))
    assert records.pop("heartbeat.failed") > 0  # one for each try
    assert records == {
        "topology.opened": 1,
        "server.opened": 1,
        "heartbeat.succeeded": 2,
        "server.changed": 3,
        "topology.changed": 2,
        "pool.cleared": 1,
        "server.closed": 1,
        "topology.closed": 1,
    }


@pytest.mark.parametrize(("library", "order"), EXTREMES)
def test_a_greenlet_ticks_on_when_the_instrumentor_goes_off_in_an_outage(
    library: str, order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    made = parts(library, ORDERS[order])
    lived = live(server, tmp_path, *made, "work", "lose", "uninstrument", "find", "close", "end")

    check(lived)
    (outage,) = lived.spans(OUTAGE)
    assert outage["attributes"]["mongodb.client.outage.outcome"] == "uninstrumented"
    after = lived.said[lived.said.index({"uninstruments": True}) + 1 :]
    assert {each.get("span") for each in after} <= {None, OUTAGE, "ping admin"}  # one that was open by then
    assert [each for each in after if each.get("span") == "ping admin"][1:] == []
    assert lived.error == alone(library)


@pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7 logs its server selections")
@pytest.mark.parametrize(("library", "order"), EXTREMES)
def test_a_greenlet_ticks_on_while_others_wait_for_a_server(
    library: str, order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    made = [*parts(library, ORDERS[order]), "work", "lose", "kill", "find", "close", "end"]
    lived = live(server, tmp_path, *made, variables={"OTEL_PYTHON_MONGO_EVENTS_SELECTIONS": "true"})

    check(lived)
    check_episodes(lived, server)
    selections = [(span["attributes"], span["status"]) for span in lived.spans("select server")]
    ended = [(told["db.operation.name"], told.get("error.type"), status) for told, status in selections]
    assert ended.count(("count", "interrupted", "ERROR")) == 1
    assert ("ping", None, "UNSET") in ended
    assert any("mongodb.client.server_selection.wait_time" in span["attributes"] for span in lived.spans("ping admin"))
    assert lived.error == alone(library)


@pytest.mark.parametrize(("library", "order"), EXTREMES)
def test_a_program_that_ends_in_an_outage_ends_at_once(
    library: str, order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    lived = live(server, tmp_path, *parts(library, ORDERS[order]), "work", "lose", "end")

    check(lived)
    (outage,) = lived.spans(OUTAGE)
    assert outage["attributes"]["mongodb.client.outage.outcome"] == "exit"
    assert "opentelemetry_mongo_events" not in lived.error


# ---------------------------------------------------------------------------------------------------------------------
# What the driver itself doesn't take well: threads that began before the patching, or that aren't patched. There it
# loses an error or two on stderr, with this package or without it. So does each thread that is older than the patching,
# when it ends: Python looks it up under another id by then.


def check_tracebacks(lived: Lived) -> None:
    """That none of the errors on stderr was raised in this package."""
    assert f"{_ROOT / 'src'}" not in lived.error


OF_BOTH_KINDS = {
    "a client is made, then patch": ("import", "set up", "instrument", "client", "patch"),
    "a client is used, then patch": ("import", "set up", "instrument", "client", "ping", "patch"),
    "a client is used, then patch, then instrument_client": (
        "import",
        "set up",
        "client",
        "ping",
        "patch",
        "instrument_client",
    ),
}


@pytest.mark.parametrize("order", OF_BOTH_KINDS)
def test_a_client_whose_threads_are_older_than_the_patching_is_observed(
    order: str, server: ScriptedServer, tmp_path: Path
) -> None:
    made = parts("gevent", ["load gevent", *OF_BOTH_KINDS[order]])
    lived = live(server, tmp_path, *made, "work", "lose", "find", "close", "end")

    check(lived)
    check_episodes(lived, server, is_discovered="instrument" in OF_BOTH_KINDS[order])
    check_commands(lived)
    check_tracebacks(lived)


@pytest.mark.parametrize("order", ["patch, then import", "instrument, then patch"])
def test_threads_that_are_not_patched_are_observed(order: str, server: ScriptedServer, tmp_path: Path) -> None:
    made = parts("gevent without threads", ORDERS[order])
    lived = live(server, tmp_path, *made, "work", "lose", "find", "close", "end")

    check(lived)
    check_episodes(lived, server)
    check_commands(lived)
    assert "opentelemetry_mongo_events" not in lived.error


@pytest.mark.parametrize("is_on", [False, True], ids=["without", "with"])
def test_pymongo_finds_no_server_where_eventlet_patches_after_its_import(
    is_on: bool, server: ScriptedServer, tmp_path: Path
) -> None:
    made = parts("eventlet", ORDERS["instrument, then patch"])
    lived = live(server, tmp_path, *made, "seek", "end", is_on=is_on)

    check(lived)
    assert lived.all("lost") == ["module 'select' has no attribute 'poll'"]
    assert lived.error == alone("eventlet")
