"""Coefficients searched within a budget of evaluations: Hooke and Jeeves 1961, one coefficient at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

FINEST = 1 / 64
"""Share of a range below which steps tell nothing that evaluation data could."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search ended with.

    Attributes:
        values: the best coefficients.
        start: score of those it began with.
        score: of the best.
        evaluations: how many were made.
    """

    values: dict[str, float]
    start: float
    score: float
    evaluations: int


def search(
    start: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
    score: Callable[[Mapping[str, float]], float],
    budget: int,
) -> Found:
    """Steps each coefficient up and down, and halves the steps when none helps; never worse than the start.

    Args:
        start: coefficients to begin with.
        ranges: lowest and highest value of each.
        score: higher is better.
        budget: evaluations, at least 1; the start is one of them.
    """
    best = dict(start)
    first = reached = score(best)
    seen = {_key(best): reached}
    steps = {name: (high - low) / 4 for name, (low, high) in ranges.items()}
    while len(seen) < budget and any(step > FINEST * (ranges[n][1] - ranges[n][0]) for n, step in steps.items()):
        improved = False
        for name, (low, high) in ranges.items():
            for sign in (1, -1):
                candidate = best | {name: min(high, max(low, best[name] + sign * steps[name]))}
                if _key(candidate) in seen:
                    continue
                if len(seen) >= budget:
                    break
                value = seen[_key(candidate)] = score(candidate)
                if value > reached:
                    best, reached, improved = candidate, value, True
                    break
        if not improved:
            steps = {name: step / 2 for name, step in steps.items()}
    return Found(values=best, start=first, score=reached, evaluations=len(seen))


def _key(values: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(round(values[name], 9) for name in sorted(values))
