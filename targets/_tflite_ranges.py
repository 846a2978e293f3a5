"""What the tensors of a float .tflite file reach on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from targets import _tflite
from targets._tflite_running import interpreter
from targets._tflite_values import is_constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = 0.95
"""What a moving average keeps of itself at each sample."""


class _Range:
    """Least and largest value of one tensor, over all samples and as a moving average of them."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self._shape = (1,) * values.ndim
        self._extremes = self._average = np.array([values.min(), values.max()], np.float64)

    def add(self, values: NDArray[np.generic]) -> None:
        """Counts a sample; NaN stays."""
        new = np.array([values.min(), values.max()], np.float64)
        old = self._extremes
        self._extremes = np.array([np.minimum(old[0], new[0]), np.maximum(old[1], new[1])])
        self._average = KEPT * self._average + (1 - KEPT) * new

    def found(self, *, average: bool) -> Mapping[str, Any]:
        """As the quantizer takes it; an average must not hide that some samples held values that mask others."""
        averaged = average and not _tflite.has_masks(self._extremes)
        sides = zip(("min", "max"), self._average if averaged else self._extremes, strict=True)
        return {side: np.full(self._shape, value, np.float32).tolist() for side, value in sides}


def observe(
    model: Path, samples: Iterable[Mapping[str, NDArray[np.generic]]], *, average: bool
) -> Mapping[str, Mapping[str, Any]]:
    """Ranges of all tensors that operators take and give, constants left out; one sample is held at a time.

    The quantizer's own calibration leaves out what is not between -3e38 and 3e38, so that a mask of infinities looks
    as if there were none, and takes all samples into memory.

    Args:
        model: the float file.
        samples: inputs by name, as the file takes them.
        average: a moving average of the samples' extremes instead of the extremes themselves.

    Returns:
        By tensor, `min` and `max`; empty where there are no samples. Graphs inside the graph are not in it: what runs
        several times, or in one of two cases, cannot be seen from outside.
    """
    read = _tflite.read_model(model)
    graph = read.subgraphs[0]
    used = {int(one) for one in graph.inputs}
    for operator in graph.operators:
        used |= {int(one) for one in (*operator.inputs, *operator.outputs)}
    computed = [one for one in sorted(used) if one >= 0 and not is_constant(read, graph.tensors[one])]
    running = interpreter(model.read_bytes(), preserve=True)
    run = running.get_signature_runner()
    found: dict[int, _Range] = {}
    for sample in samples:
        run(**sample)
        for index in computed:
            values = running.get_tensor(index)
            if not values.size:
                continue
            if index in found:
                found[index].add(values)
            else:
                found[index] = _Range(values)
    return {_tflite.text(graph.tensors[one].name): seen.found(average=average) for one, seen in found.items()}
