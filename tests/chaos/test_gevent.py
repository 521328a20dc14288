"""Greenlets that are killed, or get a `gevent.Timeout`, wherever they wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.interrupts import STUCK
from tests.chaos.programs import run_program
from tests.servers.scripted import ScriptedServer

if TYPE_CHECKING:
    from tests.chaos.rounds import Rounds

pytest.importorskip("gevent", exc_type=ImportError)

PROGRAM = """
from gevent import monkey

monkey.patch_all()

import random, sys
import gevent
from tests.chaos.interrupts import play

_, uri, seed, seconds = sys.argv
chance = random.Random(seed)

def interrupt(worker):
    worker.runs_in.kill(chance.choice((gevent.GreenletExit, gevent.Timeout)), block=False)

print(*play(uri, seed, float(seconds), interrupt, 8, gevent.getcurrent))
"""


def test_interrupted_greenlets(rounds: Rounds) -> None:
    for seed in rounds.seeds():
        with ScriptedServer() as server:
            words = run_program(PROGRAM, server.uri, seed, rounds.each)
        if words != [STUCK]:
            torn, harmless = map(int, words)
            assert torn + harmless
