"""Compare ways to do one thing: in one process and run, turn by turn, so that a noisy machine is noisy for all."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyperf

Work = Callable[[int], None]
"""Does the thing that many times."""


@dataclass(frozen=True)
class Goal:
    """At most `factor` times what `base` takes."""

    base: str
    factor: float


def compare(
    title: str,
    ways: Mapping[str, Work],
    goals: tuple[Goal, ...] = (),
    *,
    of: str = "ours",
    loops: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> list[pyperf.Benchmark]:
    """Measure each of the ways, and print how long each takes by its median, and how that is to the others.

    Args:
        title: What is done.
        ways: How it can be done, by name.
        goals: What `of` is held to.
        of: One of the ways.
        loops: How often the thing is done in a turn.
        rounds: How many turns each way has.
        clock: What it takes, in seconds: as a rule the CPU time of all threads.

    Returns:
        What was measured, for pyperf's own tools.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for name in order:
        ways[name](loops)  # warm
    gc.collect()
    gc.disable()  # what is collected in one's turn may be another's
    try:
        for _ in range(rounds):
            for name in order:
                start = clock()
                ways[name](loops)
                seconds[name].append((clock() - start) / loops)
            order.append(order.pop(0))
            gc.collect()
    finally:
        gc.enable()
    benchmarks = {name: _benchmark(f"{title}: {name}", values, loops) for name, values in seconds.items()}
    print(f"\n{title}")
    for name, benchmark in benchmarks.items():
        print(f"  {name:<28}{benchmark.median() * 1e6:9.2f} us  +- {benchmark.median_abs_dev() * 1e6:.2f}")
    for goal in goals:
        # Turn by turn: both had the same noise.
        ratios = sorted(mine / base for mine, base in zip(seconds[of], seconds[goal.base], strict=True))
        ratio = ratios[len(ratios) // 2]
        verdict = "" if ratio <= goal.factor else "  <- above"
        print(f"  {of} / {goal.base:<21}{ratio:9.3f}     goal {goal.factor:.3f}{verdict}")
    return list(benchmarks.values())


def parser(description: str | None) -> argparse.ArgumentParser:
    """What each benchmark takes on the command line."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="only show that it runs")
    return made


def _benchmark(name: str, values: list[float], loops: int) -> pyperf.Benchmark:
    run = pyperf.Run(values, metadata={"name": name, "loops": loops}, collect_metadata=False)
    return pyperf.Benchmark([run])
