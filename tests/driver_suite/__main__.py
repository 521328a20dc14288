"""Run PyMongo's own tests on FerretDB, without and with the instrumentation on, and compare.

Ends with 1 where the instrumentation changed what came of a test, or was wrong about what the driver did; with 2 where
they could not be run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pymongo

from tests.driver_suite.comparison import Difference, again, differences
from tests.driver_suite.files import SLOW, every_file, is_not_compared, usual_files
from tests.driver_suite.plugin import LISTENED, OBSERVED, WITHOUT
from tests.driver_suite.runs import run
from tests.driver_suite.sources import unpack
from tests.servers.processes import Missing, NotReady

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.driver_suite.runs import Run

_BUILD: Final = Path(__file__).resolve().parents[2] / "build"
_TRIES: Final = 5
_AT_ONCE: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(prog="driver-tests", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="as test/test_cursor.py; those that are quick if none")
    parser.add_argument("--all", action="store_true", help="every file of the suite, which takes long")
    options = parser.parse_args(arguments)
    # As Ctrl-C does: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="driver-tests-", dir=_BUILD))
    try:
        code = _compared(folder, options.files, is_all=options.all)
        if code == 0:
            shutil.rmtree(folder)
        return code
    except (Missing, NotReady, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"driver-tests: {error}", file=sys.stderr)  # noqa: T201  # it talks to a person
        return 2


def _compared(folder: Path, files: Sequence[str], *, is_all: bool) -> int:
    suite = folder / "suite"
    suite.mkdir()
    unpack(suite)
    chosen: Sequence[str] = [] if files or is_all else ["-k", f"not ({' or '.join(SLOW)})"]
    files = files or (every_file(suite) if is_all else usual_files(suite))
    _say(f"{len(files)} files of PyMongo {pymongo.version}'s own tests, without and with the instrumentation on ...")
    without, observed = _run(suite, [*files, *chosen], folder / "first", WITHOUT, OBSERVED)
    for kind, done in ((WITHOUT, without), (OBSERVED, observed)):
        told = Counter(outcome.split(":")[0] for outcome in done.outcomes.values())
        _say(f"{kind}: {', '.join(f'{count} {what}' for what, count in told.most_common())} ({done.seconds:.0f} s)")
    _say("observed: " + ", ".join(f"{count:,} {what}" for what, count in sorted(observed.counts.items())))
    faults = Counter(observed.faults)
    found = [each for each in differences(without.outcomes, observed.outcomes) if not is_not_compared(each.test)]
    clear: list[Difference] = []
    for number in range(_TRIES):
        if not found:
            break
        # Alone; and at last, where that makes no difference, in the order in which they came out differently.
        is_last = number == _TRIES - 1
        tried = list(files) if is_last else sorted({each.test.partition("::")[0] for each in found})
        _say(f"{len(found)} came out differently: {'all of it' if is_last else 'these'} once more ...")
        without, observed, listened = _run(
            suite, [*tried, *chosen], folder / f"again-{number + 1}", WITHOUT, OBSERVED, LISTENED
        )
        faults.update(observed.faults)
        found = again(found, without.outcomes, observed.outcomes, listened.outcomes)
        clear += [each for each in found if each.is_clear]
        found = [each for each in found if not each.is_clear]
    changed = 0
    for each in [*clear, *found]:
        changed += each.explanation is None
        _say(f"{each.explanation or 'CHANGED'}: {each}")
    for fault, count in sorted(faults.items()):
        _say(f"FAULT ({count} x): {fault}")
    if changed or faults:
        _say(f"{changed} tests changed, {len(faults)} faults; the output is in {folder}")
        return 1
    _say("no test changed, and the spans, counts and pools are the driver's own")
    return 0


def _run(suite: Path, tests: Sequence[str], output: Path, *kinds: str) -> list[Run]:
    """One run of each kind, two at once: so the machine is as busy for one as for the other."""
    stopping = threading.Event()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        runs = [pool.submit(run, suite, tests, output / kind, kind, stopping) for kind in kinds]
        try:
            return [each.result() for each in runs]
        except BaseException:
            stopping.set()
            for each in runs:
                each.cancel()
            raise


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # it talks to a person


if __name__ == "__main__":
    sys.exit(main())
