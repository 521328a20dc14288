"""Threads that get a `KeyboardInterrupt` wherever they are: from the interpreter, or as Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.interrupts import STUCK
from tests.chaos.programs import run_program
from tests.servers.scripted import ScriptedServer

if TYPE_CHECKING:
    from tests.chaos.rounds import Rounds

# In a process of its own: an interrupt may leave a lock of anybody's held.
PROGRAM = """
import ctypes, signal, sys
from tests.chaos.interrupts import play

def raise_in(worker):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.runs_in), ctypes.py_object(KeyboardInterrupt))

def press_ctrl_c(worker):
    signal.pthread_kill(worker.runs_in, signal.SIGINT)

_, kind, uri, seed, seconds = sys.argv
signal.signal(signal.SIGINT, signal.default_int_handler)
workers = 4 if kind == "threads" else 1
print(*play(uri, seed, float(seconds), raise_in if kind == "threads" else press_ctrl_c, workers))
"""


@pytest.mark.parametrize("kind", ["threads", "main thread"])
def test_interrupted_threads(rounds: Rounds, kind: str) -> None:
    for seed in rounds.seeds():
        with ScriptedServer() as server:
            words = run_program(PROGRAM, kind, server.uri, seed, rounds.each)
        if words != [STUCK]:
            torn, harmless = map(int, words)
            assert torn + harmless
