"""SQNR by channel of an output, streamed: the energy of the whole is that of its largest channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exporter.artifacts import WeakestChannel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FLOOR = 1e-12
"""A channel with so small a share of the strongest one's energy is below what float32 keeps beside it."""
LEAST_DB = -300.0


class Channels:
    """Energies of values and errors by index, along the second axis and the last."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Floats, Floats] | None] = {}

    def add(self, values: Floats, errors: Floats) -> None:
        """Adds one batch; an axis whose length changes between batches has no channels."""
        import numpy as np

        if values.ndim < 2:
            return
        energies = np.square(values), np.square(errors)
        for axis in sorted({1, values.ndim - 1}):
            others = tuple(one for one in range(values.ndim) if one != axis)
            found = energies[0].sum(others), energies[1].sum(others)
            before = self._sums.get(axis, found)
            if before is None or len(before[0]) != len(found[0]):
                self._sums[axis] = None
            elif before is not found:
                self._sums[axis] = before[0] + found[0], before[1] + found[1]
            else:
                self._sums[axis] = found

    def weakest(self) -> WeakestChannel | None:
        """The channel with the lowest SQNR; None where there are no two with a signal, or none has an error."""
        found = [one for axis, sums in self._sums.items() if sums and (one := _weakest(axis, *sums))]
        return min(found, key=lambda one: one.sqnr_db, default=None)


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
