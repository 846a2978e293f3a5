"""Which of two forms of a model is faster, in short: to choose between changes, never to be shown as a latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROUNDS = 10
MOST_ROUNDS = 400


def latency_ratio(
    after: Callable[[], object],
    before: Callable[[], object],
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Latency of one form by that of another: the median over rounds in which both run in turn.

    What disturbs the machine disturbs both, so that their ratio is steadier than either time. Which one begins
    changes from round to round.

    Args:
        after: runs the form in question once.
        before: runs what it is compared with once.
        seconds: after which no round begins, once there are ten.
        clock: in seconds.
    """
    for run in (before, after, before, after):  # First runs allocate.
        run()
    ratios: list[float] = []
    end = clock() + seconds
    while len(ratios) < MOST_ROUNDS and (len(ratios) < ROUNDS or clock() < end):
        swapped = len(ratios) % 2 == 1
        first, second = (after, before) if swapped else (before, after)
        begun = clock()
        first()
        middle = clock()
        second()
        ended = clock()
        times = middle - begun, ended - middle
        ratios.append(times[0] / times[1] if swapped else times[1] / times[0])
    return statistics.median(ratios)
