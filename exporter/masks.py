"""Values that are there to mask others, and not to be computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MASK = 1e8
"""Values of this magnitude (minus infinity, the smallest float, -1e9) mask: no 8-bit range holds them and others."""
MASK_ROUNDING = 1e-6
"""What adding to a mask changes of it in float32, as a share."""


def _threshold(values: NDArray[Any]) -> float:
    """Half precision cannot hold `MASK`: its own largest value masks there."""
    import numpy as np

    return min(MASK, float(np.finfo(values.dtype).max)) if values.dtype.kind == "f" else MASK


def unmasked(values: NDArray[Any]) -> NDArray[Any]:
    """The finite values that mask nothing; all finite ones where there are no others."""
    import numpy as np

    finite: NDArray[Any] = values[np.isfinite(values)]
    real: NDArray[Any] = finite[np.abs(finite) < _threshold(finite)]
    return real if real.size else finite


def masked_alike(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where both sides hold a finite mask of the same sign, whose exact value tells nothing."""
    import numpy as np

    if not left.size or max(left.max(), -left.min()) < MASK:
        return np.zeros(left.shape, bool)
    large = (np.abs(left) >= MASK) & (np.abs(right) >= MASK) & np.isfinite(left) & np.isfinite(right)
    alike: NDArray[np.bool_] = large & (np.signbit(left) == np.signbit(right))
    return alike


def rounding_of(values: NDArray[Any]) -> float:
    """Relative tolerance that finite masks among other values need, which must not set the others' tolerance."""
    import numpy as np

    finite = np.abs(values[np.isfinite(values)])
    masks = finite >= _threshold(finite)
    return MASK_ROUNDING if 0 < np.count_nonzero(masks) < masks.size else 0.0
