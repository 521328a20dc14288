"""Servers whose workers are greenlets: while a client finds its servers, and loses them, no greenlet stands still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.otlp import Receiver
from tests.servers.processes import environment, free_port
from tests.test_gevent_and_eventlet import MOST, live, parts
from tests.test_gevent_and_eventlet import check as check_life
from tests.test_outages import DISCOVERY, OUTAGE
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.scripted import ScriptedServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")

pytest.importorskip("gevent", exc_type=ImportError)

_ROOT = Path(__file__).resolve().parents[2]

PYTHON = [sys.executable, "-W", "ignore"]
INSTRUMENT = [str(Path(sys.executable).parent / "opentelemetry-instrument")]

BY_HAND = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry_mongo_events import MongoEventsInstrumentor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
MongoEventsInstrumentor().instrument()
"""

SHOP = """
import os, threading

from pymongo import MongoClient, common
from tests.ticks import Ticks

common.EVENTS_QUEUE_FREQUENCY = common.MIN_HEARTBEAT_INTERVAL = 0.05
watches = []


def watch():
    global client
    client = MongoClient(os.environ["MONGODB_URI"], heartbeatFrequencyMS=500)
    watches.append(Ticks())
    threading.Thread(target=watches[0].forever, daemon=True).start()


def order():
    return client.shop.orders.insert_one({}).acknowledged


def is_lost():
    return not client.topology_description.has_readable_server()


def longest():
    return watches[0].longest


ACTIONS = {action.__name__: action for action in (watch, order, is_lost, longest)}
"""

# With `--preload` it is the parent's. The worker's is made in the worker: of one that was made before the fork the
# driver now and then tells no listener what becomes of its servers, with this package or with another listener.
EARLY = """
with MongoClient(os.environ["MONGODB_URI"]) as early:
    early.admin.command("ping")
"""

GUNICORN = """
import json

from shop import ACTIONS


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    action = environ["PATH_INFO"].strip("/")
    return [json.dumps(ACTIONS[action]() if action else None).encode()]
"""

# Python 3.12.0 to 3.12.2 start no thread at the exit, and gevent looks up names in threads: what the SDK sends then is
# lost, with this package or without it. There the programs shut it down before.
STARTS_THREADS_AT_EXIT = not (3, 12) <= sys.version_info < (3, 12, 3)

SHUT_DOWN = """
def worker_exit(server, worker):
    from opentelemetry import trace

    trace.get_tracer_provider().shutdown()
"""

CELERY = """
import os

from celery import Celery
from celery.signals import worker_shutdown
from opentelemetry import trace
from shop import ACTIONS

app = Celery("work", broker="filesystem://", backend=f"file://{os.environ['FOLDER']}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{os.environ['FOLDER']}/queue",
        "data_folder_out": f"{os.environ['FOLDER']}/queue",
        "control_folder": f"{os.environ['FOLDER']}/control",
    },
    broker_connection_retry_on_startup=True,
)


@app.task(name="do")
def do(action):
    return ACTIONS[action]()


@worker_shutdown.connect(weak=False)
def finish(**_):
    trace.get_tracer_provider().shutdown()
"""

# For each line that it reads.
SEND = """
import json, sys

from work import do

for line in sys.stdin:
    print(json.dumps(do.delay(line.strip()).get(timeout=30)), flush=True)
"""


def variables(folder: Path, server: ScriptedServer, receiver: Receiver) -> dict[str, str]:
    """The environment of a program."""
    return environment() | {
        "FOLDER": str(folder),
        "HOME": str(folder),  # where gunicorn puts a socket
        "MONGODB_URI": server.uri,
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo,celery",
        "PYTHONPATH": os.pathsep.join(map(str, (folder, _ROOT / "src", _ROOT))),
    }


@contextmanager
def running(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[None]:
    """Run a server in a folder, and end it as a supervisor does; it has nothing to say of this package."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    assert "opentelemetry_mongo_events" not in (folder / "log").read_text()


def go_through_an_outage(server: ScriptedServer, ask: Callable[[str], Any]) -> None:
    """Have a server find the database, lose it for a second, and find it again."""
    ask("watch")
    assert ask("order") is True
    server.stop()
    until(lambda: ask("is_lost"))
    lost = time.monotonic()
    until(lambda: ask("is_lost") and time.monotonic() - lost > 1)
    server.start()
    assert ask("order") is True
    assert ask("longest") < MOST


def check(receiver: Receiver) -> None:
    """That all of it is there, each once."""
    of_the_worker = {receiver.instances[span.span_id] for span in receiver.spans if span.name == "insert orders"}
    spans = Counter(
        (span.name, span.status.code)
        for span in receiver.spans
        if receiver.instances[span.span_id] in of_the_worker and span.name != "endSessions admin"
    )
    assert spans == {
        (DISCOVERY, Status.STATUS_CODE_UNSET): 1,
        (OUTAGE, Status.STATUS_CODE_ERROR): 1,
        ("insert orders", Status.STATUS_CODE_UNSET): 2,
    }


def is_there(port: int) -> bool:
    try:
        ask(port, "")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def ask(port: int, action: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{action}", timeout=20) as response:
        return json.load(response)


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("prefix", [[], INSTRUMENT], ids=["by-hand", "instrumented"])
def test_a_worker_of_gunicorn_is_never_at_a_standstill(
    prefix: list[str], options: list[str], server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(("" if prefix else BY_HAND) + SHOP + (EARLY if options else ""))
    (tmp_path / "site_of_the_shop.py").write_text(GUNICORN)
    if not STARTS_THREADS_AT_EXIT:
        (tmp_path / "gunicorn.conf.py").write_text(SHUT_DOWN)
    port = free_port()
    command = [*prefix, *PYTHON, "-m", "gunicorn", "--worker-class", "gevent", "--bind", f"127.0.0.1:{port}", *options]
    command += ["site_of_the_shop:application"]
    with Receiver() as receiver:
        with running(command, tmp_path, variables(tmp_path, server, receiver)):
            until(lambda: is_there(port))
            go_through_an_outage(server, lambda action: ask(port, action))
        check(receiver)


# Not eventlet under `opentelemetry-instrument`: PyMongo is imported by then, and finds no server after its patching.
@pytest.mark.parametrize(
    ("prefix", "pool"),
    [([], "gevent"), (INSTRUMENT, "gevent"), ([], "eventlet")],
    ids=["gevent", "gevent-instrumented", "eventlet"],
)
def test_a_worker_of_celery_is_never_at_a_standstill(
    prefix: list[str], pool: str, server: ScriptedServer, tmp_path: Path
) -> None:
    pytest.importorskip(pool, exc_type=ImportError)
    (tmp_path / "shop.py").write_text(SHOP if prefix else BY_HAND + SHOP)
    (tmp_path / "work.py").write_text(CELERY)
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    command = [*prefix, *PYTHON, "-m", "celery", "--app", "work", "worker", "--pool", pool, "--concurrency", "10"]
    command += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with Receiver() as receiver:
        environ = variables(tmp_path, server, receiver)
        with running(command, tmp_path, environ):
            sender = subprocess.Popen(
                [*PYTHON, "-c", SEND],
                cwd=tmp_path,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            with sender:

                def ask(action: str) -> Any:
                    assert sender.stdin is not None
                    assert sender.stdout is not None
                    print(action, file=sender.stdin, flush=True)
                    return json.loads(sender.stdout.readline())

                go_through_an_outage(server, ask)
        check(receiver)


def test_a_script_that_patches_in_its_first_line_is_never_at_a_standstill(
    server: ScriptedServer, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        program = parts("gevent", ("patch", "import", "client"))
        lived = live(
            server,
            tmp_path,
            *program,
            *("work", "lose", "find", "close", "end"),
            *([] if STARTS_THREADS_AT_EXIT else ["shut down"]),
            prefix=INSTRUMENT,
            variables=variables(tmp_path, server, receiver),
        )

    check_life(lived)
    spans = Counter((span.name, span.status.code) for span in receiver.spans)
    assert spans.pop(("ping admin", Status.STATUS_CODE_UNSET)) > 2
    assert spans.pop(("ping admin", Status.STATUS_CODE_ERROR), 1) == 1  # one that meets the outage before a heartbeat
    assert spans == {
        (DISCOVERY, Status.STATUS_CODE_UNSET): 1,
        (OUTAGE, Status.STATUS_CODE_ERROR): 1,
        ("endSessions admin", Status.STATUS_CODE_UNSET): 1,
    }
    assert "opentelemetry_mongo_events" not in lived.error
