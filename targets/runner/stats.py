"""What latency samples say, and no more than they support: order statistics, no distribution assumed.

Standard library only. Latencies are integer nanoseconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

PERCENTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
SUPPORT = 0.99
"""Confidence with which the bound of a percentile is not below the true one."""
CONFIDENCE = 0.95
"""Confidence of the interval around a median."""
DRIFT = 0.05
"""Relative change between the first and the last third of a series that counts as drift."""


class Interval(NamedTuple):
    """A median and an interval that holds the true one with at least `confidence`."""

    median: float
    low: float
    high: float
    confidence: float


def _binomial_cdf(n: int, p: float) -> tuple[int, list[float]]:
    """(first, values) with values[i] = P(Binomial(n, p) <= first + i).

    Only a window of at least 12 standard deviations around the mean is computed, in logarithms: what lies outside
    is below 1e-20, and the cost grows with the root of n.
    """
    centre, reach = int(n * p), int(12 * math.sqrt(n * p * (1 - p))) + 60
    first, last = max(0, centre - reach), min(n, centre + reach)
    odds = math.log(p) - math.log1p(-p)
    logs = [0.0]
    for i in range(first, last):
        logs.append(logs[-1] + math.log((n - i) / (i + 1)) + odds)
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    total = math.fsum(weights)
    values, reached = [], 0.0
    for weight in weights:
        reached += weight / total
        values.append(reached)
    return first, values


@lru_cache(maxsize=256)
def percentile_rank(n: int, p: float) -> int | None:
    """Rank (from 1) of the order statistic that is at least the p-quantile with 99 % confidence.

    It is the smallest k with P(Binomial(n, p) <= k - 1) >= 0.99. None when that is the maximum or beyond: then the
    sample says nothing about the percentile. For p90, p95, p99, p99.9 this needs 64, 130, 662, 6636 samples.
    """
    if n < 2:
        return None
    first, values = _binomial_cdf(n, p)
    for offset, value in enumerate(values):
        if value >= SUPPORT:
            rank = first + offset + 1
            return rank if rank <= n - 1 else None
    return None


def supported_percentiles(n: int) -> dict[str, int]:
    """The percentiles that n samples support, each with the rank (from 1) of its upper bound."""
    ranks = {label: percentile_rank(n, p) for label, p in PERCENTILES.items()}
    return {label: rank for label, rank in ranks.items() if rank is not None}


@lru_cache(maxsize=256)
def median_rank(n: int) -> int:
    """The largest l for which [x(l), x(n+1-l)] holds the median with 95 % confidence; 0 below 6 samples."""
    if n < 1:
        return 0
    first, values = _binomial_cdf(n, 0.5)
    below = sum(1 for value in values if value <= (1 - CONFIDENCE) / 2)
    return first + below if below else 0


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its distribution-free 95 % confidence interval, by order statistics.

    Below 6 samples no such interval exists: the range is given with the confidence that it has, 1 - 2^(1 - n).

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    n, rank = len(ordered), median_rank(len(ordered))
    middle = float(statistics.median(ordered))
    if rank == 0:
        return Interval(middle, ordered[0], ordered[-1], 1 - 2.0 ** (1 - n))
    return Interval(middle, ordered[rank - 1], ordered[n - rank], CONFIDENCE)


def relative_width(samples: Sequence[int]) -> float:
    """Width of the median's interval over the median; infinite where 95 % confidence cannot be had."""
    interval = median_interval(samples)
    if interval.confidence < CONFIDENCE:
        return math.inf
    return (interval.high - interval.low) / interval.median if interval.median else math.inf


def summarize(samples: Sequence[int]) -> dict[str, Any]:
    """Count, minimum, mean, median with interval, and bounds of the supported percentiles of latencies in ns."""
    ordered = sorted(samples)
    interval = median_interval(ordered)
    return {
        "count": len(ordered),
        "minimum": ordered[0],
        "mean": math.fsum(ordered) / len(ordered),
        "median": interval.median,
        "median_low": int(interval.low),
        "median_high": int(interval.high),
        "percentiles": {label: ordered[k - 1] for label, k in supported_percentiles(len(ordered)).items()},
    }


def compare(variant: str, baseline: str, samples: Sequence[int], base: Sequence[int]) -> dict[str, Any]:
    """Latency of a variant as a ratio to the baseline: the median of the ratios of each round, with its interval.

    "faster" and "slower" are said only if a 95 % interval excludes 1.

    Raises:
        ValueError: the series are empty or differ in length, so rounds do not pair.
    """
    if len(samples) != len(base) or not base:
        raise ValueError(f"{len(samples)} and {len(base)} samples do not pair")
    interval = median_interval([mine / max(1, theirs) for mine, theirs in zip(samples, base)])
    verdict = "no difference"
    if interval.confidence >= CONFIDENCE and interval.high < 1:
        verdict = "faster"
    elif interval.confidence >= CONFIDENCE and interval.low > 1:
        verdict = "slower"
    return {
        "variant": variant,
        "baseline": baseline,
        "ratio": interval.median,
        "low": interval.low,
        "high": interval.high,
        "confidence": interval.confidence,
        "pairs": len(base),
        "verdict": verdict,
    }


def drift(samples: Sequence[int]) -> tuple[float, float] | None:
    """Medians of the first and last third where they differ by over 5 % and their intervals do not overlap."""
    third = len(samples) // 3
    if third == 0:
        return None
    start, end = median_interval(samples[:third]), median_interval(samples[-third:])
    if min(start.confidence, end.confidence) < CONFIDENCE:
        return None
    apart = start.high < end.low or end.high < start.low
    return (start.median, end.median) if apart and abs(end.median / start.median - 1) > DRIFT else None
