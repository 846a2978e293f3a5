"""Latency of several callables in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

Timings = dict[str, list[float]]


def race(runners: Mapping[str, Callable[[], object]], *, seconds: float = 6.0, least: int = 60) -> Timings:
    """Milliseconds of each run, one of every runner a round, in random order.

    Rounds end when both `seconds` and `least` rounds are reached.
    """
    order = random.Random(0)
    for runner in runners.values():
        for _ in range(5):
            runner()
    found: Timings = {name: [] for name in runners}
    end = time.perf_counter() + seconds
    names = list(runners)
    while time.perf_counter() < end or len(found[names[0]]) < least:
        order.shuffle(names)
        for name in names:
            begun = time.perf_counter()
            runners[name]()
            found[name].append(1000 * (time.perf_counter() - begun))
    return found


def ratio(timings: Timings, one: str, other: str) -> float:
    """Median over the rounds of one's time by the other's."""
    return statistics.median(mine / theirs for mine, theirs in zip(timings[one], timings[other], strict=True))


def median(timings: Timings, name: str) -> float:
    """Milliseconds."""
    return statistics.median(timings[name])
