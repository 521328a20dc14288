"""Compares ways to do one thing. They take turns in one process, so that a noisy machine affects all of them alike."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyperf

Work = Callable[[int], None]
"""Does the thing as many times as the argument says."""


@dataclass(frozen=True)
class Goal:
    """A limit for one way: at most `factor` times the time that `base` takes.

    Attributes:
        base: The way to compare with.
        factor: The limit.
        of: The way that has the limit.
        beside: A way whose time is subtracted from both first, to compare what they add to it; None for none.
    """

    base: str
    factor: float
    of: str = "ours"
    beside: str | None = None


def compare(
    title: str,
    ways: Mapping[str, Work],
    goals: tuple[Goal, ...] = (),
    *,
    loops: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> list[pyperf.Benchmark]:
    """Measure each way; print its median time, and for each goal the median of the ratios and the middle half of them.

    Args:
        title: What is measured.
        ways: The ways to do it, by name.
        goals: The limits.
        loops: How often each turn does the thing.
        rounds: How many turns each way takes.
        clock: Returns seconds; by default the CPU time of all threads.

    Returns:
        The measurements, for pyperf's own tools.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for name in order:
        ways[name](loops)  # warm up
    gc.collect()
    gc.disable()  # a collection in one way's turn might be caused by another
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
        # The ratio of each turn, in which both had the same noise.
        offsets = [0.0] * rounds if goal.beside is None else seconds[goal.beside]
        turns = zip(seconds[goal.of], seconds[goal.base], offsets, strict=True)
        ratios = sorted((mine - offset) / (base - offset) for mine, base, offset in turns)
        low, ratio, high = (ratios[len(ratios) * quarter // 4] for quarter in (1, 2, 3))
        verdict = "" if ratio <= goal.factor else "  <- above"
        name = f"{goal.of} / {goal.base}" + ("" if goal.beside is None else ", added")
        print(f"  {name:<28}{ratio:9.2f}     {low:.2f} to {high:.2f}   goal {goal.factor:.2f}{verdict}")
    return list(benchmarks.values())


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser for the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="only check that it runs")
    return made


def _benchmark(name: str, values: list[float], loops: int) -> pyperf.Benchmark:
    run = pyperf.Run(values, metadata={"name": name, "loops": loops}, collect_metadata=False)
    return pyperf.Benchmark([run])
