"""A run of a suite of tests on FerretDB, as those of the driver are run."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.driver_suite.plugin import OBSERVED, WITHOUT
from tests.driver_suite.runs import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.processes import FerretDB

SUITE = """
import os, signal
import pytest
from pymongo import MongoClient

def test_a_command():
    with MongoClient(os.environ["DB_IP"], int(os.environ["DB_PORT"])) as client:
        client.shop.orders.insert_one({})

def test_an_error():
    raise KeyError

def test_a_skip():
    pytest.skip()

def test_a_death():
    os.kill(os.getpid(), signal.SIGKILL)

def test_what_comes_after_it():
    test_a_command()
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["default: as the driver marks them", "default_async: likewise"]\n'
    )
    (folder / "test_it.py").write_text(SUITE)
    (folder / "conftest.py").write_text(
        "def pytest_collection_modifyitems(items):\n    for item in items:\n        item.add_marker('default')\n"
    )
    return folder


def test_a_run_goes_on_after_the_death_of_its_process(suite: Path, tmp_path: Path, ferretdb: FerretDB) -> None:
    done = run(suite, ["test_it.py"], tmp_path / "out", WITHOUT, threading.Event())

    assert done.outcomes == {
        "test_it.py::test_a_command": "passed",
        "test_it.py::test_an_error": "call failed: KeyError",
        "test_it.py::test_a_skip": "skipped",
        "test_it.py::test_a_death": "the process ended with -9",
        "test_it.py::test_what_comes_after_it": "passed",
    }
    assert done.counts == {}


def test_an_observed_run_has_what_was_counted(suite: Path, tmp_path: Path, ferretdb: FerretDB) -> None:
    done = run(suite, ["test_it.py", "-k", "command"], tmp_path / "out", OBSERVED, threading.Event())

    assert done.outcomes == {"test_it.py::test_a_command": "passed"}
    assert done.faults == {}
    assert done.counts["commands started"] == done.counts["commands ended"] == 2  # endSessions too
    assert done.counts["mongodb.client.discovery spans"] == 1


def test_a_suite_that_cant_be_run_is_told(suite: Path, tmp_path: Path, ferretdb: FerretDB) -> None:
    with pytest.raises(RuntimeError, match="not found: test_missing"):
        run(suite, ["test_missing.py"], tmp_path / "out", WITHOUT, threading.Event())
