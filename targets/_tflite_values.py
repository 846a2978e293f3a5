"""What the integers of a .tflite file's tensors stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from targets._tflite import tensor_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BITS = {"INT8": 8, "INT16": 16}
TYPES: Mapping[str, type[np.int8 | np.int16]] = {"INT8": np.int8, "INT16": np.int16}


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether a tensor's values are in the file."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def scale_of(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of an integer tensor that stands for real numbers."""
    steps = tensor.quantization
    if steps is None or steps.scale is None or len(steps.scale) != 1:
        return None
    return float(steps.scale[0]), int(steps.zeroPoint[0])


def reals(values: NDArray[np.generic], tensor: Any) -> Floats:
    """What the values of a tensor stand for."""
    scaled, numbers = scale_of(tensor), values.astype(np.float64)
    return numbers if scaled is None else (numbers - scaled[1]) * scaled[0]


def rounded(values: NDArray[np.generic], tensor: Any) -> NDArray[np.generic]:
    """Real numbers as the integers of a tensor; anything else as it is."""
    scaled = scale_of(tensor)
    if scaled is None:
        return values
    scale, zero_point = scaled
    kind = TYPES[tensor_type(tensor)]
    limits = np.iinfo(kind)
    steps = np.rint(values.astype(np.float64) / scale) + zero_point
    return steps.clip(limits.min, limits.max).astype(kind)


def range_of(tensor: Any) -> tuple[float, float] | None:
    """Lowest and highest real number that an integer tensor holds."""
    scaled = scale_of(tensor)
    if scaled is None:
        return None
    scale, zero_point = scaled
    limits = np.iinfo(TYPES[tensor_type(tensor)])
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale
