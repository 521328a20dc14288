"""Servers started for demo and tests are there when they should be, and leave nothing."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.servers.processes import (
    FerretDB,
    Jaeger,
    Missing,
    NotReady,
    NxServer,
    Process,
    Prometheus,
    environment,
    free_port,
    promtool,
)

# What `opentelemetry-instrument` puts in front of the path.
START_UP_CODE = str(Path("site-packages", "opentelemetry", "instrumentation", "auto_instrumentation"))


class Script(Process):
    """A program of one line of Python, ready when it has written a word."""

    name = "the script"

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = script
        self.pids: set[int | None] = set()

    def command(self, folder: Path) -> list[str]:
        return [sys.executable, "-c", self._script]

    def is_ready(self) -> bool:
        self.pids.add(self.pid)
        return "ready" in self.log


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers' folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def connect(server: NxServer) -> MongoClient[dict[str, Any]]:
    return MongoClient(server.uri, serverSelectionTimeoutMS=5000)


def is_running(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


@pytest.mark.nx
def test_a_started_server_answers() -> None:
    with NxServer() as server, connect(server) as client:
        client.test.notes.insert_one({"_id": 1})
        assert client.test.notes.find_one() == {"_id": 1}


@pytest.mark.nx
def test_a_stopped_server_leaves_no_process_port_or_folder(temporary_folder: Path) -> None:
    with NxServer() as server:
        pid = server.pid
        assert is_running(pid)
        assert len(list(temporary_folder.iterdir())) == 1

    assert not is_running(pid)
    assert not accepts(server.ports[0])
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.nx
def test_a_server_stops_while_a_client_is_connected() -> None:
    server = NxServer().start()
    pid = server.pid
    with connect(server) as client:
        client.admin.command("ping")
        server.stop()
        assert not is_running(pid)


@pytest.mark.nx
def test_starting_twice_and_stopping_twice_is_once() -> None:
    server = NxServer().start()
    pid = server.pid
    assert server.start().pid == pid
    server.stop()
    server.stop()
    assert server.pid is None


@pytest.mark.nx
def test_a_server_started_again_has_its_address() -> None:
    server = NxServer().start()
    uri = server.uri
    server.stop()
    with server, connect(server) as client:
        assert server.uri == uri
        assert client.admin.command("ping")["ok"] == 1


@pytest.mark.nx
def test_two_at_once_do_not_collide() -> None:
    with NxServer() as one, NxServer() as other, connect(one) as client, connect(other) as other_client:
        assert one.ports != other.ports
        client.test.notes.insert_one({"_id": 1})
        assert other_client.test.notes.find_one() is None


@pytest.mark.nx
def test_a_port_taken_meanwhile_is_given_up_for_another() -> None:
    class Beaten(NxServer):
        """The first port it was given is another's by now."""

        starts = 0

        def command(self, folder: Path) -> list[str]:
            self.starts += 1
            if self.starts == 1:
                self.ports = [taken]
            return super().command(folder)

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with Beaten() as server:
            assert server.starts == 2
            assert server.ports != [taken]


@pytest.mark.nx
def test_a_port_taken_while_the_server_was_stopped_is_told() -> None:
    with NxServer() as server:
        server.stop()
        with (
            socket.create_server(("127.0.0.1", server.ports[0])),
            pytest.raises(NotReady, match="address already in use"),
        ):
            server.start()


def test_a_program_that_dies_at_its_start_is_told_with_its_log(temporary_folder: Path) -> None:
    script = Script("import sys; print('no such luck'); print('at all', file=sys.stderr); sys.exit(3)")

    with pytest.raises(NotReady) as failure:
        script.start()

    first, *log = str(failure.value).splitlines()
    assert first == "the script ended at its start with exit code 3; its log ends with:"
    assert sorted(log) == ["at all", "no such luck"]
    assert list(temporary_folder.iterdir()) == []


def test_a_program_that_is_never_ready_is_ended_at_the_deadline(temporary_folder: Path) -> None:
    class Slow(Script):
        seconds_to_start = 0.1

    script = Slow("import threading; threading.Event().wait()")

    with pytest.raises(NotReady, match=re.escape("the script wasn't ready in 0.1 seconds")):
        script.start()

    assert [is_running(pid) for pid in script.pids] == [False]
    assert list(temporary_folder.iterdir()) == []


def test_a_program_that_will_not_end_is_killed() -> None:
    class Stubborn(Script):
        seconds_to_stop = 0.1

    script = Stubborn(
        "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); threading.Event().wait()"
    )
    with script:
        pid = script.pid

    assert not is_running(pid)


@pytest.mark.nx
def test_a_failure_in_the_block_stops_the_server(temporary_folder: Path) -> None:
    server = NxServer()
    pids = []

    def fail() -> None:
        with server:
            pids.append(server.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert [is_running(pid) for pid in pids] == [False]
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("server", [FerretDB(), Jaeger()], ids=lambda server: server.name)
def test_a_program_that_is_not_built_is_told(
    server: Process, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary_folder))

    with pytest.raises(Missing) as missing:
        server.start()

    assert str(missing.value) == f"{server.name} is not built: run scripts/build-servers"
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("program", ["prometheus", "promtool"])
def test_a_program_that_is_not_installed_is_told(
    program: str, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(temporary_folder))
    run = Prometheus().start if program == "prometheus" else promtool

    with pytest.raises(Missing) as missing:
        run()

    assert str(missing.value) == (
        f"{program} is not installed: run scripts/build-servers as root,"
        " or apt-get install --no-install-recommends prometheus"
    )
    assert list(temporary_folder.iterdir()) == []


def test_a_server_gets_nothing_of_its_starters_instrumentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "demo")
    monkeypatch.setenv("FERRETDB_LISTEN_ADDR", "127.0.0.1:27017")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([START_UP_CODE, "lib"]))
    monkeypatch.setenv("LANGUAGE", "en")

    passed_on = environment()

    of_the_tests = {"OTEL_PYTHON_MONGO_EVENTS_SELECTIONS"}
    assert {name for name in passed_on if name.startswith(("OTEL_", "FERRETDB_"))} == of_the_tests
    assert (passed_on["PYTHONPATH"], passed_on["LANGUAGE"]) == ("lib", "en")


def test_no_python_path_is_left_when_instrumentation_was_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", START_UP_CODE)

    assert "PYTHONPATH" not in environment()
