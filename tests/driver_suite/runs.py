"""One run of the driver's tests: a server and a process of its own, and another process where one dies or hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.driver_suite.plugin import KIND, NOTES, Notes, read
from tests.servers.processes import FerretDB, environment

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

_PROJECT: Final = Path(__file__).resolve().parents[2]

# A test has this long, and then fails by itself: pytest-timeout sees to it.
_TEST_SECONDS: Final = 60

# Where it doesn't, because nothing of Python runs any more, its process is killed. The end of a run takes its time too.
_SILENCE: Final = 120

_POLL_SECONDS: Final = 0.1
_DEATHS: Final = 20


class Run(NamedTuple):
    """What came of it.

    Attributes:
        outcomes: That of each test, by its name.
        faults: What the instrumentation did wrong, and how often.
        counts: What was counted: events of the driver's, and spans.
        seconds: How long it took.
    """

    outcomes: dict[str, str]
    faults: dict[str, int]
    counts: dict[str, int]
    seconds: float


def run(suite: Path, tests: Sequence[str], folder: Path, kind: str, stopping: threading.Event) -> Run:
    """Run tests of the suite.

    Args:
        suite: The folder of the suite.
        tests: What pytest is asked for: files of the suite, and options.
        folder: Where the output goes, a folder of this run's own.
        kind: What is on: one of the plugin's kinds.
        stopping: Set when nobody waits for it any more, and it shall end.

    Raises:
        Missing: There is no FerretDB on this machine.
        RuntimeError: The tests can't be run; the message has the tail of what pytest says.
    """
    folder.mkdir(parents=True)
    notes = folder / "notes.jsonl"
    began = time.monotonic()
    with FerretDB() as server, (folder / "output.txt").open("wb") as output:
        for _ in range(_DEATHS):
            code = _process(suite, tests, notes, output, server.ports[0], kind, stopping)
            died_in = [name for name, outcome in _outcomes(notes).items() if outcome is None]
            if not died_in or stopping.is_set():
                break
            for name in died_in:
                Notes(notes).write(test=name, outcome=f"the process ended with {code}")
    outcomes = {name: outcome for name, outcome in _outcomes(notes).items() if outcome is not None}
    # 0: all passed; 1: some failed; 5: none was left to run.
    if code not in (0, 1, 5) or not outcomes:
        tail = (folder / "output.txt").read_text(errors="replace").splitlines()[-40:]
        raise RuntimeError("\n".join([f"pytest ended with {code}; its output ends with:", *tail]))
    faults: dict[str, int] = {}
    counts: dict[str, int] = {}
    for note in read(notes):
        if "fault" in note:
            faults[note["fault"]] = faults.get(note["fault"], 0) + note["times"]
        for name, count in note.get("counts", {}).items():
            counts[name] = counts.get(name, 0) + count
    return Run(outcomes, faults, counts, time.monotonic() - began)


def _process(
    suite: Path, tests: Sequence[str], notes: Path, output: Any, port: int, kind: str, stopping: threading.Event
) -> int:
    python_path = os.pathsep.join([str(_PROJECT), str(_PROJECT / "src")])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rN", "--tb=native", "-p", "no:cacheprovider"),
            *("-p", "tests.driver_suite.plugin", "--timeout", str(_TEST_SECONDS)),
            # Older suites on a newer pytest-asyncio; to the suites all warnings are errors.
            *("-W", "ignore::pytest.PytestDeprecationWarning"),
            # The suite's own options, but for a report in a file.
            *("-o", "addopts=", "--strict-markers", "-m", "default or default_async"),
            *tests,
        ],
        cwd=suite,
        env={
            **environment(),
            "PYTHONPATH": python_path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "DB_IP": "127.0.0.1",
            "DB_PORT": str(port),
            NOTES: str(notes),
            KIND: kind,
        },
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # So that what it starts itself can be ended with it.
        start_new_session=True,
    )
    try:
        return _wait(process, notes, stopping)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], notes: Path, stopping: threading.Event) -> int:
    """Wait for the end of a process; one in which nothing happens any more is killed."""
    changed, size = time.monotonic(), -1
    while process.poll() is None:
        now_size = notes.stat().st_size if notes.exists() else 0
        if now_size != size:
            changed, size = time.monotonic(), now_size
        if stopping.is_set() or time.monotonic() - changed > _SILENCE:
            process.kill()
        time.sleep(_POLL_SECONDS)
    return process.returncode


def _outcomes(notes: Path) -> dict[str, str | None]:
    """The outcome of each test; None of one that has begun and not ended."""
    return {note["test"]: note.get("outcome") for note in read(notes) if "test" in note}
