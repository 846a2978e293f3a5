"""Latencies of two profiles as a ratio with an interval.

Runs of one process follow each other, and what slows one down slows its neighbours down as well. They are therefore
resampled in blocks (circular block bootstrap: Politis and Romano, 1992), which keeps that dependence; resampling
single runs would give intervals that are far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from exporter.artifacts import Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 1000
CHUNK = 2_000_000
"""Values that are resampled at a time, so that memory does not grow with the runs."""
LEAST_ROUNDS = 6
"""Below, no order statistic bounds a median with 95 % confidence."""
LEAST_RUNS = 20

Verdict = Literal["faster", "slower", "no difference"]


class Ratio(Value, frozen=True, kw_only=True):
    """A latency over the baseline's; below 1 is faster.

    Attributes:
        ratio: of the two quantiles.
        low: lower end of the interval.
        high: upper end.
        confidence: with which the interval holds the true ratio.
        count: runs of each side, or rounds of both.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    count: int

    @property
    def verdict(self) -> Verdict:
        """A difference is claimed only where the interval excludes 1."""
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "no difference"


def bootstrap_ratio(samples: Sequence[int], base: Sequence[int], quantile: float, *, seed: int = 0) -> Ratio | None:
    """One of `bootstrap_ratios`."""
    found = bootstrap_ratios(samples, base, [quantile], seed=seed)
    return found[0] if found else None


def bootstrap_ratios(
    samples: Sequence[int], base: Sequence[int], quantiles: Sequence[float], *, seed: int = 0
) -> list[Ratio]:
    """Quantiles of a series over the same quantiles of the baseline's, from one process each.

    Args:
        samples: nanoseconds, in the order in which they were measured.
        base: those of the baseline.
        quantiles: 0.5 for the median; all are found in the same resampled series, which take most of the time.
        seed: of the resampling, so that the same profiles give the same interval.

    Returns:
        For each quantile the ratio with its percentile interval; none at all where one side has too few runs.
    """
    import numpy as np

    if min(len(samples), len(base)) < LEAST_RUNS:
        return []
    draw = np.random.default_rng(seed)
    mine, theirs = np.asarray(samples, np.float64), np.maximum(np.asarray(base, np.float64), 1.0)
    ratios = _resampled(mine, quantiles, draw) / _resampled(theirs, quantiles, draw)
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(ratios, [tail, 1 - tail], axis=1)
    centres = np.quantile(mine, quantiles) / np.quantile(theirs, quantiles)
    return [
        Ratio(ratio=float(ratio), low=float(low), high=float(high), confidence=CONFIDENCE, count=len(samples))
        for ratio, low, high in zip(centres, lows, highs, strict=True)
    ]


def sample_quantile(samples: Sequence[int], quantile: float) -> float:
    """Quantile of a series, in its unit."""
    import numpy as np

    return float(np.quantile(np.asarray(samples, np.float64), quantile))


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Ratio | None:
    """Median of the ratios of each round, with its distribution-free interval by order statistics.

    Args:
        values: one quantile a process, in the order of rounds.
        base: that of the baseline's process of the same round.

    Returns:
        The ratio; None below six rounds, where no such interval exists.
    """
    import statistics

    ratios = sorted(mine / max(1.0, theirs) for mine, theirs in zip(values, base, strict=True))
    n = len(ratios)
    if n < LEAST_ROUNDS:
        return None
    outside = [sum(math.comb(n, k) for k in range(rank)) / 2**n for rank in range(1, n // 2 + 1)]
    rank = max(index for index, tail in enumerate(outside, start=1) if 2 * tail <= 1 - CONFIDENCE)
    return Ratio(
        ratio=float(statistics.median(ratios)),
        low=ratios[rank - 1],
        high=ratios[n - rank],
        confidence=1 - 2 * outside[rank - 1],
        count=n,
    )


def _resampled(
    series: NDArray[np.float64], quantiles: Sequence[float], draw: np.random.Generator
) -> NDArray[np.float64]:
    """Each quantile of each of RESAMPLES series of equal length, put together from blocks of this one."""
    import numpy as np

    n = len(series)
    length = max(1, round(math.sqrt(n)))
    blocks = -(-n // length)
    offsets = np.arange(length)
    found, step = [], max(1, CHUNK // n)
    for first in range(0, RESAMPLES, step):
        starts = draw.integers(0, n, (min(step, RESAMPLES - first), blocks, 1))
        picked = (starts + offsets).reshape(len(starts), -1)[:, :n] % n
        found.append(np.quantile(series[picked], quantiles, axis=1, overwrite_input=True))
    return np.concatenate(found, axis=1)
