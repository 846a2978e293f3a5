"""What calibration keeps of one tensor, in constant memory, and the range that each observer reads off it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import ObserverName
from exporter.masks import MASK
from exporter.quantize.histogram import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOMENTUM = 0.9
"""Weight of the past in the moving average of each sample's extremes."""
PERCENTILE = 99.999
"""Share of values, in percent, that the percentile observer keeps; onnxruntime's default too."""
LEVELS = {True: 255, False: 127}
"""Levels above zero of tensors that are never negative, and of others."""
ENTROPY_BINS = 2048
"""Magnitude bins that the entropy observer compares."""
MSE_STEPS = 64
"""Clipping thresholds that the MSE observer tries, evenly spaced up to the largest magnitude."""


class Averages:
    """Moving average of extremes, as the state (value, decay) whose composition is associative."""

    __slots__ = ("decay", "high", "low")

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.decay = 1.0

    def add(self, low: float, high: float) -> None:
        """Observes the extremes of one sample or batch."""
        self.low = MOMENTUM * self.low + (1 - MOMENTUM) * low
        self.high = MOMENTUM * self.high + (1 - MOMENTUM) * high
        self.decay *= MOMENTUM

    def merge(self, later: Averages) -> None:
        """Continues with what was observed later."""
        self.low = self.low * later.decay + later.low
        self.high = self.high * later.decay + later.high
        self.decay *= later.decay

    def range(self) -> tuple[float, float]:
        """The averages, corrected for starting from zero (as in Adam, arXiv 1412.6980)."""
        weight = 1 - self.decay
        return (self.low / weight, self.high / weight) if weight > 0 else (math.inf, -math.inf)


class Observed:
    """All that observers need of one tensor. The state of A merged with B's equals that of A then B.

    Attributes:
        minimum: smallest value, masks left out; +inf when there was none.
        maximum: largest value, likewise.
        values: number of values, likewise.
        masked: number of infinite, NaN or mask-like values.
        averages: moving average of the extremes.
        histogram: counts by value, when it is kept.
    """

    __slots__ = ("averages", "histogram", "masked", "maximum", "minimum", "values")

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.values = 0
        self.masked = 0
        self.averages = Averages()
        self.histogram = Histogram()

    def add(self, values: NDArray[np.generic], *, histogram: bool) -> None:
        """Observes an activation tensor; what masks put there on purpose is counted, and left out of the range."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (low > -MASK and high < MASK):  # Written so that NaN, which compares false, is filtered.
            whole = flat.size
            flat = flat[np.abs(flat) < MASK]
            self.masked += whole - flat.size
            if flat.size == 0:
                return
            low, high = float(flat.min()), float(flat.max())
        self.add_extremes(low, high, flat.size)
        if histogram:
            self.histogram.add(flat, low, high)

    def add_extremes(self, low: float, high: float, count: int) -> None:
        """Observes the extremes of `count` values."""
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.values += count
        self.averages.add(low, high)

    def merge(self, later: Observed) -> None:
        """Adds what was observed later."""
        self.minimum, self.maximum = min(self.minimum, later.minimum), max(self.maximum, later.maximum)
        self.values += later.values
        self.masked += later.masked
        self.averages.merge(later.averages)
        self.histogram.merge(later.histogram)

    def range(self, observer: ObserverName) -> tuple[float, float]:
        """The range to quantize, inside of what was seen.

        Args:
            observer: which rule; all but min-max and moving average need a histogram to have been kept.

        Raises:
            ValueError: nothing was observed.
        """
        if self.values == 0:
            raise ValueError("the tensor was never seen")
        rules = {"percentile": _percentile, "entropy": _entropy, "mse": _mse}
        if observer == "minmax":
            return self.minimum, self.maximum
        low, high = self.averages.range() if observer == "moving-average" else rules[observer](self.histogram)
        return min(max(low, self.minimum), self.maximum), max(min(high, self.maximum), self.minimum)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    """Cuts the same share of values off both ends, to the edge of a bin."""
    cumulated = np.cumsum(histogram.counts) / histogram.total
    cut = (100.0 - PERCENTILE) / 200.0
    edges = histogram.edges
    left = int(np.searchsorted(cumulated, cut))
    right = int(np.searchsorted(cumulated, 1.0 - cut))
    return float(edges[left]), float(edges[min(right + 1, len(edges) - 1)])


def _magnitudes(histogram: Histogram, bins: int) -> tuple[NDArray[np.float64], float]:
    """Counts by magnitude in `bins` even bins, and the largest magnitude."""
    largest = max(abs(histogram.minimum), abs(histogram.maximum))
    edges = histogram.edges
    centres = np.clip((edges[:-1] + edges[1:]) / 2, histogram.minimum, histogram.maximum)
    counted, _ = np.histogram(np.abs(centres), bins, (0.0, largest), weights=histogram.counts.astype(np.float64))
    return counted, largest


def _entropy(histogram: Histogram) -> tuple[float, float]:
    """The threshold with the least KL divergence between the clipped and the quantized distribution of magnitudes.

    After Migacz, 8-bit inference with TensorRT (GTC 2017, S7310).
    """
    levels = LEVELS[histogram.minimum >= 0]
    counts, largest = _magnitudes(histogram, ENTROPY_BINS)
    if largest == 0.0:
        return 0.0, 0.0
    # Zeros, which a Relu makes in masses, are exact whatever the threshold: they must not outweigh all else.
    counts[0] = counts[1]
    best, kept = math.inf, ENTROPY_BINS
    for stop in range(levels + 1, ENTROPY_BINS + 1, 4):
        clipped = counts[:stop].copy()
        clipped[-1] += counts[stop:].sum()
        divergence = _divergence(clipped, counts[:stop], levels)
        if divergence <= best:  # Of equals the wider one, which clips less.
            best, kept = divergence, stop
    threshold = largest * kept / ENTROPY_BINS
    return -threshold, threshold


def _divergence(clipped: NDArray[np.float64], counts: NDArray[np.float64], levels: int) -> float:
    """KL(clipped || counts after quantization to so many levels)."""
    starts = (np.arange(levels) * len(counts)) // levels
    used = counts > 0
    sums = np.add.reduceat(counts, starts)
    members = np.add.reduceat(used.astype(np.float64), starts)
    sizes = np.diff(np.append(starts, len(counts)))
    level = np.divide(sums, members, out=np.zeros(levels), where=members > 0)
    quantized = np.where(used, np.repeat(level, sizes), 0.0)
    p, q = clipped / clipped.sum(), quantized / max(quantized.sum(), 1.0)
    # What was clipped to a bin without values of its own has no counterpart: smoothed, it costs much.
    q = np.where((q == 0) & (p > 0), 1e-9, q)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


def _mse(histogram: Histogram) -> tuple[float, float]:
    """The clipping of both ends with the least squared error after rounding to 255 steps."""
    edges = histogram.edges
    centres = np.clip((edges[:-1] + edges[1:]) / 2, histogram.minimum, histogram.maximum)
    weights = histogram.counts.astype(np.float64)
    best, chosen = math.inf, (histogram.minimum, histogram.maximum)
    for share in np.arange(1, MSE_STEPS + 1) / MSE_STEPS:
        low, high = min(0.0, histogram.minimum * share), max(0.0, histogram.maximum * share)
        step = (high - low) / 255
        if step <= 0:
            continue
        outside = np.minimum(centres - low, 0.0) + np.maximum(centres - high, 0.0)
        # Rounding inside costs step^2 / 12 on average; finer than a bin it cannot be seen from the histogram.
        error = float(np.sum(weights * np.where(outside == 0.0, step * step / 12, outside * outside)))
        if error <= best:
            best, chosen = error, (low, high)
    return float(chosen[0]), float(chosen[1])
