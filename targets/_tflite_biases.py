"""Biases that 32 bits of a static int8 .tflite file would not hold, made to fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from targets import _tflite
from targets._tflite_kept import bounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from targets._tflite_kept import Ranges

LARGEST = 2.0**30
"""What a bias may become as an integer; half of what 32 bits hold."""


class _Places(NamedTuple):
    """Where an operator has its input, weights and bias, and along which axis of the weights its channels lie."""

    given: int
    weights: int
    bias: int
    axis: int


PRODUCTS = {
    "FULLY_CONNECTED": _Places(0, 1, 2, 0),
    "CONV_2D": _Places(0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": _Places(0, 1, 2, 3),
    "TRANSPOSE_CONV": _Places(2, 1, 3, 0),
}


def fit_biases(model: Any, ranges: Ranges) -> int:
    """Widens the weights' scale of channels whose bias would overflow.

    The integers of a bias are in steps of the input's times the weights' scale. Where all weights of a channel are
    next to nothing, as those of a channel that training has given up, no 32 bits hold the bias in such steps, and the
    channel loses it. One weight of the channel is raised until they do, which changes the channel by less than a
    ten-thousandth of its bias.

    Args:
        model: the float file, read; its weights are changed.
        ranges: of its tensors.

    Returns:
        How many channels were changed.
    """
    graph, changed = model.subgraphs[0], 0
    for one in _tflite.graph_operators(model, graph):
        places = PRODUCTS.get(one.kind)
        if places is None or len(one.inputs) <= places.bias or one.inputs[places.bias] < 0:
            continue
        weights, bias = (_constant(model, graph.tensors[one.inputs[at]]) for at in (places.weights, places.bias))
        seen = ranges.get(_tflite.text(graph.tensors[one.inputs[places.given]].name))
        if weights is None or bias is None or seen is None:
            continue
        low, high = bounds_of(seen)
        step = (max(high, 0.0) - min(low, 0.0)) / 255
        if not 0 < step < np.inf:
            continue
        rows = np.moveaxis(weights, places.axis, 0).reshape(len(bias), -1)
        needed = np.abs(bias.astype(np.float64)) / (step * LARGEST) * 127
        short = np.flatnonzero(np.abs(rows).max(axis=1) < needed)
        if not short.size:
            continue
        moved = np.moveaxis(weights, places.axis, 0)  # A view: what is written to it is in `weights`.
        for channel in short:
            flat = np.unravel_index(int(np.abs(rows[channel]).argmax()), moved.shape[1:])
            moved[(channel, *flat)] = needed[channel] * (1 if moved[(channel, *flat)] >= 0 else -1)
        model.buffers[graph.tensors[one.inputs[places.weights]].buffer].data = weights.view(np.uint8).ravel()
        changed += short.size
    return changed


def _constant(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """A copy of the values of a float tensor that are in the file."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or _tflite.tensor_type(tensor) != "FLOAT32":
        return None
    return np.frombuffer(bytes(data), "<f4").reshape([int(size) for size in tensor.shape]).copy()
