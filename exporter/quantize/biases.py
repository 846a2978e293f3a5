"""Quantized weights and biases of a QDQ file, and biases that int32 cut: their weights get wider scales."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from exporter.quantize.coverage import DEQUANTIZE

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

WEIGHT, BIAS = 1, 2
"""Indices of weight and bias among the inputs of a Conv, ConvTranspose or Gemm."""
INT32 = np.iinfo(np.int32).max
LARGEST_BIAS = 2.0**30
"""What a bias that did not fit becomes in steps of its scale: products are added to it, which need room as well."""


class Weights:
    """Quantized initializers of a QDQ file, and who reads them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = list(model.graph.node)
        self._pairs = {node.output[0]: node for node in self.nodes if node.op_type == DEQUANTIZE}

    def stored(self, name: str) -> tuple[NDArray[np.integer[Any]], onnx.NodeProto] | None:
        """Integers of a weight or bias and the DequantizeLinear that reads them; None for what is computed."""
        node = self._pairs.get(name)
        if node is None or node.input[0] not in self.initializers:
            return None
        return self.array(node.input[0]), node

    def array(self, name: str) -> NDArray[Any]:
        """Values of an initializer."""
        return np.asarray(numpy_helper.to_array(self.initializers[name]))

    def put(self, name: str, values: NDArray[Any]) -> None:
        """Replaces the values of an initializer; its type stays."""
        there = self.initializers[name]
        there.CopyFrom(numpy_helper.from_array(values.astype(self.array(name).dtype), name))


def clipped_biases(model: onnx.ModelProto) -> list[str]:
    """Nodes whose bias did not fit into int32 at the scale that the scales of input and weight make."""
    weights = Weights(model)
    return [node.name for node in weights.nodes if _clipped(weights, node).any()]


def widen_scales(model: onnx.ModelProto, float_model: onnx.ModelProto) -> list[str]:
    """Gives the weights of each channel whose bias was cut a scale at which it fits.

    The wider scale costs its weights bits, and those weights can be missed: what they lose is at most half a step
    each, so that for k products of 8 bits the sum is wrong by no more than k * 255 / 2**31 of the bias itself.
    onnxruntime does the same for signed weights, and cuts the bias where they are unsigned.

    Args:
        model: the QDQ file, changed in place; with its external data.
        float_model: what it was made of, likewise.

    Returns:
        Nodes that cannot be helped so: all channels of their weights have one scale, or other nodes read them.
    """
    weights = Weights(model)
    floats = {tensor.name: tensor for tensor in float_model.graph.initializer}
    before = {node.name: node for node in float_model.graph.node}
    readers = Counter(name for node in weights.nodes for name in node.input)
    left = []
    for node in weights.nodes:
        if not (cut := _clipped(weights, node)).any():
            continue
        origin = before.get(node.name)
        stored = [floats.get(origin.input[index]) if origin else None for index in (WEIGHT, BIAS)]
        values = [np.asarray(numpy_helper.to_array(tensor)) for tensor in stored if tensor is not None]
        alone = readers[node.input[WEIGHT]] == readers[node.input[BIAS]] == 1
        if not (alone and len(values) == len(stored) and _widen(weights, node, cut, *values)):
            left.append(node.name)
    return left


def _clipped(weights: Weights, node: onnx.NodeProto) -> NDArray[np.bool_]:
    """Which channels of a node's bias are at the end of int32."""
    stored = weights.stored(node.input[BIAS]) if len(node.input) > BIAS else None
    if stored is None or stored[0].dtype != np.int32:
        return np.zeros(0, bool)
    # As 64-bit integers: the lowest one has no positive counterpart.
    return np.asarray(np.abs(stored[0].astype(np.int64)) >= INT32)


def _widen(
    weights: Weights,
    node: onnx.NodeProto,
    cut: NDArray[np.bool_],
    values: NDArray[np.floating[Any]],
    bias: NDArray[np.floating[Any]],
) -> bool:
    """Writes weights and bias of a node anew; False where its weights have no scale for each channel of the bias."""
    stored, cut_bias = weights.stored(node.input[WEIGHT]), weights.stored(node.input[BIAS])
    if stored is None or cut_bias is None:
        return False
    (integers, pair), (steps, bias_pair) = stored, cut_bias
    scales, points, bias_scales = (weights.array(name) for name in (*pair.input[1:3], bias_pair.input[1]))
    if not scales.shape == bias_scales.shape == bias.shape or integers.shape != values.shape:
        return False
    # Scales of a bias are those of input and weight multiplied: they grow together.
    wider = np.where(cut, np.abs(bias) / (bias_scales * LARGEST_BIAS), 1.0)
    axis = next((attribute.i for attribute in pair.attribute if attribute.name == "axis"), 1)
    along = [-1 if one == axis % integers.ndim else 1 for one in range(integers.ndim)]
    limits = np.iinfo(integers.dtype)
    fewer = np.rint(values / (scales * wider).reshape(along)) + points.reshape(along)
    weights.put(pair.input[0], np.where(cut.reshape(along), np.clip(fewer, limits.min, limits.max), integers))
    weights.put(pair.input[1], scales * wider)
    weights.put(bias_pair.input[0], np.where(cut, np.rint(bias / (bias_scales * wider)), steps))
    weights.put(bias_pair.input[1], bias_scales * wider)
    return True
