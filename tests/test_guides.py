"""The programs of the guides that have some, run by the guides' own commands."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import connect
from tests.pages import ROOT
from tests.servers.processes import Process
from tests.test_outages import OUTAGE
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer

pytestmark = pytest.mark.newest


def files(guide: str) -> dict[str, str]:
    """The programs of a guide, by the names of their files."""
    return dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", text_of(guide), re.MULTILINE | re.DOTALL))


def commands(guide: str) -> list[str]:
    """The commands of a guide."""
    blocks = re.findall(r"^```shell\n(.*?)^```", text_of(guide), re.MULTILINE | re.DOTALL)
    return [command for block in blocks for command in block.splitlines()]


def text_of(guide: str) -> str:
    return (ROOT / "docs" / "guides" / f"{guide}.md").read_text()


FILES = files("web-frameworks-and-workers")
GREEN_FILES = files("gevent-and-eventlet")
# What Django brings along for a new project, as far as it is needed.
PROJECT = {
    "manage.py": """
import os
import sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
execute_from_command_line(sys.argv)
""",
    "orders/__init__.py": "",
    "project/__init__.py": "",
    "project/urls.py": """
from django.urls import path
from orders.views import orders

urlpatterns = [path("orders", orders)]
""",
    "project/wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = get_wsgi_application()
""",
    "project/settings.py": """
SECRET_KEY = "that of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["orders.apps.OrdersConfig"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
USE_TZ = True
""",
}
INSTRUMENT = "opentelemetry-instrument "


class Program(Process):
    """A command of the guide, in a folder with its programs."""

    name = "the program"
    seconds_to_start = 40.0

    def __init__(self, command: str, uri: str, endpoint: str, **more: str) -> None:
        super().__init__()
        self._command = command
        self._files = FILES | PROJECT | more
        self._uri = uri
        self._environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo",
            # What is sent is sent at the end, or it would be lost: but a development server's end is none.
            "OTEL_BSP_SCHEDULE_DELAY": "100" if "runserver" in command else "60000",
            "CELERY_BROKER_URL": "filesystem://",
        }
        if command.startswith(f"{INSTRUMENT}gunicorn"):
            self._environment["DJANGO_SETTINGS_MODULE"] = "project.settings"
        self._folder_of_programs: Path | None = None

    def command(self, folder: Path) -> list[str]:
        """Put the files there; the command line that runs the command on a free port."""
        self._folder_of_programs = folder
        for name, text in self._files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(self._told(text))
        # Celery's messages go through a folder: what is sent is received.
        (folder / "data_in").mkdir()
        (folder / "data_out").symlink_to("data_in")
        scripts = Path(sys.executable).parent
        words = [f"{scripts / word}" if (scripts / word).exists() else word for word in shlex.split(self._command)]
        port = str(self.ports[0])
        listen = {"uvicorn": ["--port", port], "gunicorn": ["--bind", f"127.0.0.1:{port}"], "runserver": [port]}
        for program, options in listen.items():
            if program in self._command:
                words += options
        return ["env", f"HOME={folder}", *(f"{name}={value}" for name, value in self._environment.items()), *words]

    def _told(self, text: str) -> str:
        """A file as the guide has it, or as it says that it is under `opentelemetry-instrument`."""
        if INSTRUMENT in self._command:
            text = re.sub(r"^( *)(set_up|\w+Instrumentor\(\)\.instrument)\(\)$", r"\1pass", text, flags=re.MULTILINE)
        return text.replace("mongodb://localhost:27017", self._uri)

    def is_ready(self) -> bool:
        """Whether it serves, or has said so."""
        return "[queues]" in self.log if "celery" in self._command else self.ask("/")[0] == 404

    def ask(self, path: str) -> tuple[int, Any]:
        """The status and the document that it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def run(self, script: str) -> None:
        """Run a script beside it."""
        assert self._folder_of_programs is not None
        subprocess.run(
            ["env", "CELERY_BROKER_URL=filesystem://", sys.executable, "-c", script],
            cwd=self._folder_of_programs,
            check=True,
        )


def test_each_file_and_each_command_is_here() -> None:
    assert FILES.keys() == {
        "telemetry.py", "main.py", "shop.py", "orders/apps.py", "orders/database.py", "orders/views.py", "tasks.py",
    }  # fmt: skip
    assert {*WEB, CELERY} == set(commands("web-frameworks-and-workers"))
    assert GREEN_FILES.keys() == {"orders.py", "shop.py", "gunicorn.conf.py", "tasks.py", "green_orders.py"}
    assert {*GREEN_WEB, *GREEN_CELERY, *GREEN_SCRIPTS} == set(commands("gevent-and-eventlet"))


CELERY = "celery --app tasks worker --concurrency 2"
WEB = {
    "uvicorn main:app --workers 2": 1,  # one process takes what it can
    "gunicorn --workers 2 'shop:create_app()'": 2,
    "gunicorn --workers 2 --preload 'shop:create_app()'": 2,
    "gunicorn --workers 2 project.wsgi": 2,
    "gunicorn --workers 2 --preload project.wsgi": 2,
    "python manage.py runserver": 1,
}


@pytest.mark.parametrize("command", [*WEB, f"{INSTRUMENT}gunicorn --workers 2 --preload project.wsgi"])
def test_a_request_is_the_parent_of_its_commands_in_each_worker(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, trees

    with connect(server.uri) as client:
        client.shop.orders.insert_one({"total": 5})
    # While one worker waits for an answer another one takes the next request.
    frozen = server.freeze("find", times=2)
    with Receiver() as receiver, Program(command, server.uri, receiver.endpoint) as program:
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(program.ask, "/orders") for _ in range(2)]
            until(lambda: frozen.held == 2)
            frozen.release()
        if "runserver" in command:
            until(lambda: sum(span.name == "GET orders" for span in receiver.spans) == 2)
        # PyMongo's warning of a client that was connected in the parent.
        assert "opened before fork" not in program.log
        program.stop()

    assert {answer.result()[0] for answer in answers} == {200}
    assert all(5 in find_numbers(answer.result()[1]) for answer in answers)
    found = [tree for name, found in trees(receiver.spans).items() if "orders" in name for tree in found]
    assert [[line.strip() for line in tree if not line.strip().startswith("fastapi.")] for tree in found] == [
        [found[0][0], "find orders, 1 rows"]
    ] * 2
    requests = [span for span in receiver.spans if span.name == found[0][0]]
    assert len({receiver.instances[span.span_id] for span in requests}) >= WEB[command.removeprefix(INSTRUMENT)]


def find_numbers(document: bytes) -> list[Any]:
    """The totals in an answer, which is a list or has one."""
    answer = json.loads(document)
    return list(answer["totals"] if isinstance(answer, dict) else answer)


@pytest.mark.parametrize("prefix", ["", INSTRUMENT], ids=["by-hand", "instrumented"])
def test_a_task_is_the_parent_of_its_commands_in_each_process_of_the_pool(prefix: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, trees

    frozen = server.freeze("update", times=2)
    with Receiver() as receiver, Program(prefix + CELERY, server.uri, receiver.endpoint) as program:
        program.run("import tasks; tasks.ship.delay(1); tasks.ship.delay(2)")
        until(lambda: frozen.held == 2)
        frozen.release()
        program.stop()

    assert trees(receiver.spans)["run/tasks.ship"] == [["run/tasks.ship", "  update orders"]] * 2
    tasks = [span for span in receiver.spans if span.name == "run/tasks.ship"]
    assert len({receiver.instances[span.span_id] for span in tasks}) == 2


# ---------------------------------------------------------------------------------------------------------------------
# With gevent and eventlet.

GREEN_WEB = [
    "gunicorn --worker-class gevent --workers 2 'shop:create_app()'",
    "gunicorn --worker-class gevent --workers 2 --preload 'shop:create_app()'",
]
GREEN_CELERY = [f"celery --app tasks worker --pool {pool} --concurrency 100" for pool in ("gevent", "eventlet")]
GREEN_SCRIPTS = [
    f"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH=patch_all {INSTRUMENT}python orders.py",
    "python green_orders.py",
]


@pytest.mark.parametrize("command", GREEN_WEB)
def test_a_request_in_a_greenlet_is_the_parent_of_its_commands(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, trees

    pytest.importorskip("gevent", exc_type=ImportError)
    with Receiver() as receiver, Program(command, server.uri, receiver.endpoint, **GREEN_FILES) as program:
        status, answer = program.ask("/orders")
        program.stop()

    assert (status, json.loads(answer)) == (200, [])
    assert trees(receiver.spans)["GET /orders"] == [["GET /orders", "  find orders, 0 rows"]]


@pytest.mark.parametrize("command", GREEN_WEB)
def test_a_worker_that_never_used_its_client_sends_its_spans(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver

    pytest.importorskip("gevent", exc_type=ImportError)
    # The first name that gevent looks up is the receiver's, at the end: it takes a thread, which not every version of
    # Python starts at its exit.
    with Receiver() as receiver, Program(command, server.uri, receiver.endpoint, **GREEN_FILES) as program:
        assert program.ask("/nowhere")[0] == 404
        program.stop()

    assert {span.name.partition(" ")[0] for span in receiver.spans} == {"GET"}


@pytest.mark.parametrize("command", [f"{prefix}{GREEN_WEB[1]}" for prefix in ("", INSTRUMENT)])
def test_an_outage_that_is_open_when_a_worker_ends_is_sent(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, attribute

    pytest.importorskip("gevent", exc_type=ImportError)
    shop = GREEN_FILES["shop.py"].replace('27017"', '27017", serverSelectionTimeoutMS=2000')
    more = GREEN_FILES | {"shop.py": shop}
    with Receiver() as receiver, Program(command, server.uri, receiver.endpoint, **more) as program:
        assert program.ask("/orders")[0] == 200
        server.stop()
        assert program.ask("/orders")[0] == 500  # the driver tells of an outage within a second
        program.stop()

    outages = [span for span in receiver.spans if span.name == OUTAGE]
    assert [attribute(span, "mongodb.client.outage.outcome") for span in outages] == ["uninstrumented"]


@pytest.mark.parametrize("command", GREEN_CELERY)
def test_a_task_in_a_greenlet_is_the_parent_of_its_commands(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, trees

    pytest.importorskip(command.split()[5], exc_type=ImportError)
    frozen = server.freeze("update", times=2)
    with Receiver() as receiver, Program(command, server.uri, receiver.endpoint, **GREEN_FILES) as program:
        program.run("import tasks; tasks.ship.delay(1); tasks.ship.delay(2)")
        until(lambda: frozen.held == 2)
        frozen.release()
        program.stop()

    assert trees(receiver.spans)["run/tasks.ship"] == [["run/tasks.ship", "  update orders"]] * 2


@pytest.mark.parametrize("command", [*GREEN_SCRIPTS, "python orders.py"])
def test_a_script_with_greenlets_sends_their_spans(command: str, server: ScriptedServer, tmp_path: Path) -> None:
    from tests.otlp import Receiver, trees

    pytest.importorskip("eventlet" if "green" in command else "gevent", exc_type=ImportError)
    with Receiver() as receiver:
        program = Program(command, server.uri, receiver.endpoint, **GREEN_FILES)
        program.ports = [0]  # it has none
        done = subprocess.run(
            ["env", "PYTHONWARNINGS=ignore", *program.command(tmp_path)],  # eventlet warns of itself
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")
    if "green" in command:
        assert trees(receiver.spans)["find orders"] == [["find orders, 0 rows"]]
    else:
        assert trees(receiver.spans)["request"] == [["request", *["  find orders, 0 rows"] * 3]]
