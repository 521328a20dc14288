"""The programs of the guide to uWSGI, run by its own commands."""

from __future__ import annotations

import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients import connect
from tests.test_guides import FILES, INSTRUMENT, Program, commands, files, find_numbers, text_of
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer

GUIDE = "uwsgi"
UWSGI = [
    "uwsgi --ini uwsgi.ini",
    "uwsgi --ini uwsgi.ini --lazy-apps",
    "uwsgi --ini uwsgi.ini --module postfork_shop:app",
    f"{INSTRUMENT}uwsgi --ini uwsgi.ini",
]
(SETTINGS,) = re.findall(r"^```ini\n# uwsgi.ini\n(.*?)^```", text_of(GUIDE), re.MULTILINE | re.DOTALL)
INSTALLED = Path(sys.executable).with_name("uwsgi").exists() or shutil.which("uwsgi") is not None

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(sys.version_info >= (3, 15) and not INSTALLED, reason="pyuwsgi has no wheel for Python 3.15"),
]


FORK_HOOKS = "py-call-osafterfork = true\n"
RUNS_FORK_HOOKS = sys.version_info < (3, 13)  # uWSGI's workers crash in them on newer ones


class Uwsgi(Program):
    """A command of the guide, in a folder with its programs and uWSGI's settings."""

    name = "uWSGI"

    def __init__(self, command: str, uri: str, endpoint: str) -> None:
        super().__init__(command, uri, endpoint, **{"telemetry.py": FILES["telemetry.py"]}, **files(GUIDE))
        # It runs Python by itself, so it has to be told where the packages are.
        self._environment["PYTHONPATH"] = ":".join(filter(None, sys.path))

    def command(self, folder: Path) -> list[str]:
        """Put the settings there too, with a free port in them."""
        settings = SETTINGS.replace("127.0.0.1:8000", f"127.0.0.1:{self.ports[0]}")
        assert FORK_HOOKS in settings
        (folder / "uwsgi.ini").write_text(settings if RUNS_FORK_HOOKS else settings.replace(FORK_HOOKS, ""))
        return super().command(folder)


def test_each_file_and_each_command_is_here() -> None:
    assert files(GUIDE).keys() == {"shop.py", "postfork_shop.py"}
    assert [each for each in commands(GUIDE) if not each.startswith("pip ")] == UWSGI


@pytest.mark.parametrize("command", UWSGI)
def test_a_request_is_the_parent_of_its_commands_in_each_worker(command: str, server: ScriptedServer) -> None:
    from tests.otlp import Receiver, trees

    if not RUNS_FORK_HOOKS and command in (UWSGI[0], UWSGI[3]):
        pytest.skip("it needs Python's fork hooks")
    with connect(server.uri) as client:
        client.shop.orders.insert_one({"total": 5})
    # While one worker waits for an answer the other one takes the next request.
    frozen = server.freeze("find", times=2)
    with Receiver() as receiver, Uwsgi(command, server.uri, receiver.endpoint) as program:
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(program.ask, "/orders") for _ in range(2)]
            until(lambda: frozen.held == 2)
            frozen.release()
        program.stop()

    assert [(answer.result()[0], find_numbers(answer.result()[1])) for answer in answers] == [(200, [5])] * 2
    assert trees(receiver.spans)["GET /orders"] == [["GET /orders", "  find orders, 1 rows"]] * 2
    requests = [span for span in receiver.spans if span.name == "GET /orders"]
    assert len({receiver.instances[span.span_id] for span in requests}) == 2
