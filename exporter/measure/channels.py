"""SQNR by channel of an output, streamed: that of the whole is ruled by the largest channels and by their means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from exporter.artifacts import WeakestChannel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FLOOR = 1e-12
"""A channel with so small a share of the strongest one's energy is below what float32 keeps beside it."""
LEAST_DB = -300.0
SIGNAL, ERROR, TOTAL, COUNT = range(4)
"""Rows of what is summed up: squares of values and of errors, the values themselves, and how many there were."""


class Channels:
    """Energies of values and errors by index, along the second axis and the last."""

    def __init__(self) -> None:
        self._sums: dict[int, Floats | None] = {}

    def add(self, values: Floats, errors: Floats, present: NDArray[np.bool_]) -> None:
        """Adds one batch; an axis whose length changes between batches has no channels.

        Args:
            values: of the reference, zero where nothing is to be judged.
            errors: of the candidate.
            present: where something is.
        """
        import numpy as np

        if values.ndim < 2:
            values, errors, present = values.reshape(-1, 1), errors.reshape(-1, 1), present.reshape(-1, 1)
        parts: tuple[NDArray[Any], ...] = (np.square(values), np.square(errors), values, present)
        for axis in sorted({1, values.ndim - 1}):
            others = tuple(one for one in range(values.ndim) if one != axis)
            found = np.stack([part.sum(others, dtype=np.float64) for part in parts])
            before = self._sums.get(axis, found)
            if before is None or before.shape != found.shape:
                self._sums[axis] = None
            else:
                self._sums[axis] = found if before is found else before + found

    def weakest(self) -> WeakestChannel | None:
        """The channel with the lowest SQNR; None where there are no two with a signal, or none has an error."""
        known = [(axis, sums) for axis, sums in self._sums.items() if sums is not None]
        found = [one for axis, sums in known if (one := _weakest(axis, sums[SIGNAL], sums[ERROR]))]
        return min(found, key=lambda one: one.sqnr_db, default=None)

    def varying_db(self) -> float | None:
        """SQNR of how values differ from the mean of their channel; None where nothing differs, or has an error."""
        known = [sums for sums in self._sums.values() if sums is not None]
        return min((one for sums in known if (one := _varying(sums)) is not None), default=None)


def _weakest(axis: int, signals: Floats, errors: Floats) -> WeakestChannel | None:
    import numpy as np

    alive = signals > FLOOR * signals.max(initial=0.0)
    if alive.sum() < 2 or not (errors[alive] > 0).any():
        return None
    shares = np.full(len(signals), math.inf)
    with np.errstate(divide="ignore"):
        shares[alive] = signals[alive] / errors[alive]
    index = int(shares.argmin())
    decibels = 10 * math.log10(shares[index]) if shares[index] > 0 else LEAST_DB
    return WeakestChannel(axis=axis, index=index, sqnr_db=max(LEAST_DB, decibels))


def _varying(sums: Floats) -> float | None:
    import numpy as np

    means = np.square(sums[TOTAL]) / np.maximum(sums[COUNT], 1.0)
    signal, error = float((sums[SIGNAL] - means).sum()), float(sums[ERROR].sum())
    if error <= 0 or signal <= FLOOR * float(sums[SIGNAL].sum()):
        return None
    return max(LEAST_DB, 10 * math.log10(signal / error))
