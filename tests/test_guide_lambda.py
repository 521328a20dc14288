"""The program of the guide to AWS Lambda, in a process that is frozen between two invocations, as Lambda does it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import connect
from tests.servers.processes import environment
from tests.test_guides import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.otlp import Receiver
    from tests.servers.scripted import ScriptedServer

PROGRAMS = files("aws-lambda")
RUNTIME = """
import json
import sys

from orders_function import handler

for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
"""

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be frozen here"),
]


class Function:
    """The program, and what invokes it."""

    def __init__(self, folder: Path, uri: str, endpoint: str) -> None:
        for name, text in PROGRAMS.items():
            (folder / name).write_text(text.replace("mongodb://localhost:27017", uri))
        variables = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        path = ":".join(filter(None, [str(folder), *sys.path]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNTIME],
            env=environment() | variables | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def invoke(self, event: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Without notice, as Lambda does."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    from tests.otlp import Receiver

    with Receiver() as receiver:
        yield receiver


def test_the_program_is_here() -> None:
    assert list(PROGRAMS) == ["orders_function.py"]


def test_each_invocation_exports_its_spans_before_the_process_is_frozen(
    server: ScriptedServer, receiver: Receiver, tmp_path: Path
) -> None:
    from tests.otlp import trees

    with connect(server.uri) as client:
        client.shop.orders.insert_one({"customer": "alice", "total": 5})
    function = Function(tmp_path, server.uri, receiver.endpoint)
    try:
        for number in (1, 2):
            assert function.invoke({"customer": "alice"}) == [5]
            function.freeze()
            assert trees(receiver.spans)["handler"] == [["handler", "  find orders, 1 rows"]] * number
            # Its connections are gone when it is thawed. The driver checks those that were idle for more than a second.
            server.stop()
            server.start()
            time.sleep(1.1 if number == 1 else 0)
            function.thaw()
    finally:
        function.kill()

    assert "mongodb.client.outage" not in trees(receiver.spans)
