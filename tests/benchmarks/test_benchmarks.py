"""The benchmarks run. How fast things are is for people to look at: a shared machine tells a test nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.processes import environment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("commands.py", ["--only", "masked text"], ["contrib (raw)", "SDK baseline", "ours / contrib (raw)"]),
        (
            "end_to_end.py",
            [],
            [
                "find_one, everything on: CPU",
                "find_one, everything on: wall",
                "ours / SDK baseline",
                "selections / selections=False",
            ],
        ),
        ("concurrency.py", [], ["ours / none open", "ours / one thread", "ours / one task"]),
        ("big_topologies.py", [], ["ours"]),
        ("closing.py", [], ["MongoClient", "ours, topology=False"]),
        ("memory.py", [], ["KB held", "1,000"]),
        ("transactions.py", [], ["ours / outside of a transaction"]),
    ],
)
def test_a_benchmark_runs(name: str, arguments: list[str], told: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--quick", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert all(each in run.stdout for each in told), run.stdout
