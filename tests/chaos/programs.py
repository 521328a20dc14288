"""Programs of these tests that run in processes of their own."""

from __future__ import annotations

from tests.programs import run


def run_program(program: str, *arguments: object) -> list[str]:
    """Run a program, which finds the tests' own modules; the words that it printed."""
    done = run(program, *arguments, options=["-W", "ignore"], seconds=100)
    assert done.code == 0, done.error[-5000:]
    return " ".join(done.lines).split()
