"""Servers that fork their workers: each worker has spans of its own, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers.processes import environment, free_port
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.scripted import ScriptedServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")

_ROOT = Path(__file__).resolve().parents[2]

# With a client of the parent's own, which nobody else uses, as PyMongo has it.
SHOP = """
import os

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry_mongo_events import MongoEventsInstrumentor
from pymongo import MongoClient


class Told(SpanExporter):
    def export(self, spans):
        with open(os.environ["TOLD"], "a") as told:
            told.write("".join(f"{os.getpid()} {span.name}\\n" for span in spans))
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Told()))
MongoEventsInstrumentor().instrument(tracer_provider=provider)
early = MongoClient(os.environ["MONGODB_URI"])
early.admin.command("ping")
clients = {}


def order():
    if os.getpid() not in clients:
        clients[os.getpid()] = MongoClient(os.environ["MONGODB_URI"])
    clients[os.getpid()].shop.orders.insert_one({})
    return os.getpid()
"""

GUNICORN = """
from shop import order


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(order()).encode()]
"""

CELERY = """
import os

from celery import Celery

app = Celery("work", broker="filesystem://", backend=f"file://{os.environ['FOLDER']}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{os.environ['FOLDER']}/queue",
        "data_folder_out": f"{os.environ['FOLDER']}/queue",
        "control_folder": f"{os.environ['FOLDER']}/control",
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
if os.environ.get("IS_WORKER"):
    import shop  # in the parent, before it forks


@app.task
def order():
    return shop.order()
"""

SEND = """
from work import order

for result in [order.delay() for _ in range(12)]:
    print(result.get(timeout=30))
"""


@contextmanager
def running(folder: Path, uri: str, *command: str) -> Iterator[dict[str, str]]:
    """Run a server in a folder, and end it as a supervisor does; it has nothing to say of it."""
    variables = environment() | {
        "MONGODB_URI": uri,
        "TOLD": str(folder / "told"),
        "FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join([str(folder), str(_ROOT / "src")]),
        # From 3.12 on Python warns of a fork while threads run, here those of the parent's client.
        "PYTHONWARNINGS": "ignore",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield variables
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    said = (folder / "log").read_text()
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said


def answer(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            text: str = response.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return None


def inserted(folder: Path) -> Counter[str]:
    """How many spans of orders each process had."""
    lines = (folder / "told").read_text().splitlines()
    assert sum(line.endswith("ping admin") for line in lines) == len(
        {line.split()[0] for line in lines if "ping" in line}
    )
    return Counter(line.split()[0] for line in lines if line.endswith("insert orders"))


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_the_workers_of_gunicorn_trace_their_own(options: list[str], server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "site_of_the_shop.py").write_text(GUNICORN)
    port = free_port()
    command = ["gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", *options, "site_of_the_shop:application"]
    with running(tmp_path, server.uri, *command):
        served: Counter[str] = Counter()

        def both_have_served() -> bool:
            served.update(filter(None, [answer(port)]))
            return len(served) == 2

        until(both_have_served)

    assert inserted(tmp_path) == served


def test_the_workers_of_celery_trace_their_own(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "work.py").write_text(CELERY)
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    worker = ["celery", "-A", "work", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING"]
    worker += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    monkeypatch.setenv("IS_WORKER", "1")
    with running(tmp_path, server.uri, *worker) as variables:
        sent = subprocess.run(
            [sys.executable, "-c", SEND],
            cwd=tmp_path,
            env={name: value for name, value in variables.items() if name != "IS_WORKER"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr

    assert inserted(tmp_path) == Counter(sent.stdout.split())
