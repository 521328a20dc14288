"""A plugin of pytest for a run of the driver's tests: notes the outcomes, and observes the driver where it is told to.

It runs inside of the driver's own suite, which it is given to by `-p`, and writes one line of JSON for each thing that
happens: a process that is killed leaves what it had found out by then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import common

if TYPE_CHECKING:
    from collections.abc import Generator

NOTES = "DRIVER_SUITE_NOTES"
"""The environment variable with the file that the lines go to."""

KIND = "DRIVER_SUITE_KIND"
"""That with the kind of the run."""

WITHOUT, OBSERVED, LISTENED = "without", "observed", "listened"
"""The kinds: the driver alone, with the instrumentation on, and with listeners that do nothing."""


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported, and so before any client is made."""
    notes = Notes(Path(os.environ[NOTES]))
    config.pluginmanager.register(Outcomes(notes))
    # With a listener for topologies each close of a client waits for the thread that hands the events over, which
    # sleeps for half a second at a time. Whatever the kind, so that it is the same for all.
    common.EVENTS_QUEUE_FREQUENCY = 0.05  # type: ignore[assignment]  # it is an int, and used as a float
    common.MIN_HEARTBEAT_INTERVAL = 0.05
    kind = os.environ[KIND]
    if kind == OBSERVED:
        from tests.driver_suite.observation import Observation

        config.pluginmanager.register(Observation(notes))
    elif kind == LISTENED:
        from tests.driver_suite.silence import register_silent_listeners

        register_silent_listeners()


class Notes:
    """The lines of this run, and those of the process that died before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()

    def write(self, **note: Any) -> None:
        """Add a line; a forked child adds none."""
        if os.getpid() == self._pid:
            with self._path.open("a") as file:
                file.write(json.dumps(note) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return read(self._path)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Outcomes:
    """Notes what comes of each test, and leaves out those that are known."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._outcome: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Go on after a test at which the process died."""
        known = {note["test"] for note in self._notes.read() if "test" in note}
        items[:] = [item for item in items if item.nodeid not in known]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._outcome = []
        self._notes.write(test=nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A phase of it is over: what fails is told apart by the exception's class."""
        report = yield
        if report.skipped:
            self._outcome.append("xfailed" if hasattr(report, "wasxfail") else "skipped")
        elif report.failed:
            kind = f": {call.excinfo.typename}" if call.excinfo is not None else ""
            self._outcome.append(f"{report.when} failed{kind}")
        return report

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It is over."""
        self._notes.write(test=nodeid, outcome=", ".join(self._outcome) or "passed")
