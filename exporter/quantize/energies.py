"""Signal to quantization noise ratios from sums of squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEST_DB = 120.0
"""Beyond what float32 itself keeps; a channel without noise counts as this."""


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); None where there is no noise, or no number."""
    if noise == 0 or not math.isfinite(noise) or not math.isfinite(signal):
        return None
    return 10 * math.log10(signal / noise) if signal > 0 else -BEST_DB


def channel_decibels(
    signals: NDArray[np.float64], noises: NDArray[np.float64], lengths: Sequence[float] = ()
) -> list[float]:
    """The mean SQNR of channels, in dB, for each group of them.

    The energy of a tensor is that of its largest channels: of scores that share a tensor with coordinates it tells
    nothing.

    Args:
        signals: energy of each channel's values.
        noises: energy of its error.
        lengths: channels of each group, where they are grouped; a group of one channel counts only then.

    Returns:
        One value for each group in which there is a signal.
    """
    means = []
    ends = np.cumsum(lengths[:-1], dtype=np.int64) if lengths else np.zeros(0, np.int64)
    for start, stop in zip([0, *ends], [*ends, len(signals)], strict=True):
        group, error = signals[start:stop], noises[start:stop]
        alive = group > 0
        if alive.sum() > 1 or (lengths and alive.any()):
            least = group[alive] * 10 ** (-BEST_DB / 10)
            means.append(float(np.mean(10 * np.log10(group[alive] / np.maximum(error[alive], least)))))
    return means
