"""`opentelemetry-instrument` with no argument of ours, and a script that knows nothing of us."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.application import SCRIPT, console_spans, run_instrumented

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.servers.scripted import ScriptedServer


def run_on_console(
    server: ScriptedServer, folder: Path, script: str = SCRIPT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return run_instrumented(script, server.uri, folder, "--traces_exporter", "console", **variables)


def test_an_unmodified_script_is_traced(server: ScriptedServer, tmp_path: Path) -> None:
    run = run_on_console(server, tmp_path)

    assert (run.returncode, run.stderr) == (0, "")
    spans = {span["name"]: span for span in console_spans(run.stdout)}
    request = spans["POST /orders"]["context"]
    assert spans["insert orders"]["parent_id"] == spans["find orders"]["parent_id"] == request["span_id"]
    assert spans["getMore orders"]["links"][0]["context"] == spans["find orders"]["context"]
    assert spans["thereIsNoSuchCommand shop"]["status"] == {
        "status_code": "ERROR",
        "description": "CommandNotFound",
    }


def test_options_come_from_the_environment(server: ScriptedServer, tmp_path: Path) -> None:
    run = run_on_console(
        server,
        tmp_path,
        OTEL_PYTHON_MONGO_EVENTS_EXCLUDE_COMMANDS="insert, find",
        OTEL_PYTHON_MONGO_EVENTS_REQUIRE_PARENT_SPAN="true",
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert {span["name"] for span in console_spans(run.stdout)} == {
        "POST /orders",
        "createIndexes users",
        "getMore orders",
        "thereIsNoSuchCommand shop",
        "mongodb.client.discovery",
    }


def test_a_wrong_option_is_one_warning_and_stops_nothing(server: ScriptedServer, tmp_path: Path) -> None:
    run = run_on_console(server, tmp_path, OTEL_PYTHON_MONGO_EVENTS_COMMANDS="perhaps")

    assert run.returncode == 0
    assert run.stderr == (
        "invalid OTEL_PYTHON_MONGO_EVENTS_COMMANDS: 'perhaps'; expected true or false; using the default, True\n"
    )
    assert "find orders" in {span["name"] for span in console_spans(run.stdout)}


def test_beside_the_other_instrumentation_there_is_one_span_a_command(server: ScriptedServer, tmp_path: Path) -> None:
    run = run_on_console(server, tmp_path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="")

    names = [span["name"] for span in console_spans(run.stdout)]
    assert (run.returncode, names.count("shop.find"), names.count("find orders")) == (0, 1, 0)
    assert run.stderr.count("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pymongo") == 1

    run = run_on_console(
        server,
        tmp_path,
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="mongo_events",
    )

    names = [span["name"] for span in console_spans(run.stdout)]
    assert (run.returncode, names.count("shop.find"), names.count("find orders")) == (0, 1, 0)
    assert "opentelemetry-mongo-events" not in run.stderr


def test_a_script_that_is_stopped_by_a_signal_leaves_its_spans(server: ScriptedServer, tmp_path: Path) -> None:
    script = SCRIPT + "\nraise KeyboardInterrupt\n"
    run = run_on_console(server, tmp_path, script)

    assert run.returncode != 0
    assert "find orders" in {span["name"] for span in console_spans(run.stdout)}


PATCHES_FIRST = """
import eventlet

eventlet.monkey_patch()

import os

from pymongo import MongoClient

with MongoClient(os.environ["MONGODB_URI"], serverSelectionTimeoutMS=5000) as client:
    for _ in range(3):
        eventlet.spawn(client.shop.orders.find_one).wait()
"""


def test_a_script_that_eventlet_patches_first_finds_its_servers(server: ScriptedServer, tmp_path: Path) -> None:
    """It does not if PyMongo is imported before the patching, so `instrument()` must not import it."""
    pytest.importorskip("eventlet", exc_type=ImportError)
    run = run_on_console(server, tmp_path, PATCHES_FIRST, PYTHONWARNINGS="ignore")

    assert run.returncode == 0, run.stderr
    names = [span["name"] for span in console_spans(run.stdout)]
    assert (names.count("find orders"), names.count("mongodb.client.discovery")) == (3, 1)
