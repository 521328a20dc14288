"""Programs of these tests that run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.processes import environment

_ROOT = Path(__file__).resolve().parents[2]


def run_program(program: str, *arguments: object) -> list[str]:
    """Run a program, which finds the tests' own modules; the words that it printed."""
    inherited = environment()
    python_path = os.pathsep.join(filter(None, [str(_ROOT), str(_ROOT / "src"), inherited.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        env=inherited | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout.split()
