"""A mergeable histogram of constant size, for values whose range is not known in advance.

Bins are dyadic and symmetric: a value x is in bin trunc(x / 2**k), so that bin 0 covers (-2**k, 2**k) and all others
have half that width. When values fall outside of what `BINS` bins can hold, k grows and neighbours are added up,
which is exact, since trunc(trunc(x / a) / b) = trunc(x / ab). The final k follows from the smallest and the largest
value alone. So the state depends neither on the order nor on the grouping in which values came: the state of A merged
with that of B equals the state of A and B observed together, count for count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 4096
"""The values' range is spread over at most this many bins, and over at least half as many."""
CHUNK = 1 << 16
"""Values handled together, so that the passes over them stay in the cache."""
FINEST = 20
"""Bins are never finer than 2**-20 of the largest magnitude: values that differ by less are one value here."""
SMALLEST = -126
"""Smallest k: below it float32 has no normal numbers, and scaling would overflow."""


class Histogram:
    """Counts of finite values in dyadic bins.

    Attributes:
        minimum: smallest value, +inf when empty.
        maximum: largest value, -inf when empty.
        exponent: k of the bin width 2**k.
        first: index of the first bin in `counts`.
        counts: int64 array, at most `BINS` long.
    """

    __slots__ = ("counts", "exponent", "first", "maximum", "minimum")

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.exponent = SMALLEST
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.parts() == other.parts()

    __hash__ = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """Number of values observed."""
        return int(self.counts.sum())

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins: one more than there are bins."""
        lower = self.first + np.arange(len(self.counts) + 1, dtype=np.int64)
        # Below bin 1, bin i starts one width lower: at (i - 1) * 2**k.
        return np.ldexp((lower - (lower <= 0)).astype(np.float64), self.exponent)

    def parts(self) -> tuple[Any, ...]:
        """The whole state as plain values."""
        return (self.minimum, self.maximum, self.exponent, self.first, self.counts.tobytes())

    def add(self, values: NDArray[np.float32], minimum: float, maximum: float) -> None:
        """Observes values.

        Args:
            values: finite float32 values of any shape.
            minimum: smallest of them, which the caller has from a pass of its own.
            maximum: largest of them.
        """
        if values.size == 0:
            return
        self._cover(minimum, maximum)
        # Scaling by a power of two is exact, and what it underflows to, zero, is in the same bin. The cast truncates.
        scale = np.float32(math.ldexp(1.0, -self.exponent))
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            index = (flat[start : start + CHUNK] * scale).astype(np.int32)
            index -= self.first
            self.counts += np.bincount(index, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        if len(other.counts) == 0:
            return
        self._cover(other.minimum, other.maximum)
        finer = Histogram()
        for name in Histogram.__slots__:
            setattr(finer, name, getattr(other, name))
        finer.counts = other.counts.copy()
        finer._coarsen(self.exponent)
        start = finer.first - self.first
        self.counts[start : start + len(finer.counts)] += finer.counts

    def _cover(self, minimum: float, maximum: float) -> None:
        """Widens the range to hold both values, with the bins that this range asks for."""
        if minimum >= self.minimum and maximum <= self.maximum:
            return
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)
        exponent = _exponent(self.minimum, self.maximum)
        self._coarsen(exponent)
        first, last = _bin(self.minimum, exponent), _bin(self.maximum, exponent)
        counts = np.zeros(last - first + 1, np.int64)
        if len(self.counts):
            start = self.first - first
            counts[start : start + len(self.counts)] = self.counts
        self.first, self.counts = first, counts

    def _coarsen(self, exponent: int) -> None:
        """Adds neighbouring bins up until their width is 2**exponent."""
        shift = exponent - self.exponent
        if shift and len(self.counts):
            fine = self.first + np.arange(len(self.counts), dtype=np.int64)
            coarse = np.sign(fine) * (np.abs(fine) >> shift)
            summed = np.zeros(int(coarse[-1] - coarse[0]) + 1, np.int64)
            np.add.at(summed, coarse - coarse[0], self.counts)
            self.first, self.counts = int(coarse[0]), summed
        self.exponent = exponent


def _bin(value: float, exponent: int) -> int:
    return math.trunc(math.ldexp(value, -exponent))


def _exponent(minimum: float, maximum: float) -> int:
    """The smallest k with which the range takes at most `BINS` bins."""
    largest = max(abs(minimum), abs(maximum))
    if largest == 0.0:
        return SMALLEST
    exponent = max(SMALLEST, math.frexp(largest)[1] - FINEST)
    while _bin(maximum, exponent) - _bin(minimum, exponent) >= BINS:
        exponent += 1
    return exponent
