"""Cross-layer equalization: the same float function, with channels of like range, which one int8 scale fits better.

After Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (arXiv 1906.04721). Where
nothing but positive-homogeneous operators (Relu, MaxPool, ...) lies between two layers, each channel can be scaled
down in the first and up in the second without changing what the network computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Weights = dict[str, NDArray[np.float32]]

ELEMENTWISE = {"Relu", "LeakyRelu"}
"""Operators with f(s x) = s f(x) for each value and s > 0."""
POOLING = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
"""The same for each channel of an image."""
MATRICES = {"Gemm", "MatMul"}
ROUNDS = 20
SETTLED = 1e-3
"""Largest change of a channel's scale at which a further round brings nothing."""
UNEVEN = 8.0
"""Ratio of the widest to the median channel range from which one scale a tensor loses two bits or more."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with constant weights; `axis` is that of the channels that are scaled."""

    weight: str
    bias: str | None
    axis: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers that share channels: the output channels of `first` are the input channels of `second`.

    `repeat`: inputs of `second` that one channel of `first` covers, more than one after a Flatten.
    """

    first: Layer
    second: Layer
    repeat: int


def uneven_pairs(path: Path) -> int:
    """How many pairs of layers have channels whose ranges differ so much that equalizing them promises something.

    Args:
        path: float ONNX file, BatchNorm folded.
    """
    import onnx

    model = onnx.load(path)
    weights = _weights(model)
    ratios = (_ranges(weights[pair.first.weight], pair.first.axis) for pair in _pairs(model, weights))
    return sum(1 for ranges in ratios if ranges.max(initial=0) > UNEVEN * max(float(np.median(ranges)), 1e-12))


def paired_layers(path: Path) -> int:
    """How many pairs of layers equalizing acts on.

    Args:
        path: float ONNX file, BatchNorm folded.
    """
    import onnx

    model = onnx.load(path)
    return sum(1 for _ in _pairs(model, _weights(model)))


def equalize(model: onnx.ModelProto) -> int:
    """Equalizes all pairs of layers in place.

    Args:
        model: float graph with its weights in it, BatchNorm folded.

    Returns:
        The number of pairs.
    """
    from onnx import numpy_helper

    weights = _weights(model)
    pairs = list(_pairs(model, weights))
    for _ in range(ROUNDS if pairs else 0):
        if max(_equalize(pair, weights) for pair in pairs) < SETTLED:
            break
    changed = {name for pair in pairs for layer in (pair.first, pair.second) for name in (layer.weight, layer.bias)}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return len(pairs)


def _equalize(pair: Pair, weights: Weights) -> float:
    """One pair; returns the largest relative change of a channel."""
    first, second = weights[pair.first.weight], weights[pair.second.weight]
    above = _ranges(first, pair.first.axis)
    below = _ranges(second, pair.second.axis).reshape(len(above), pair.repeat).max(axis=1)
    # A dead channel on either side says nothing about the other.
    alive = (above > 0) & (below > 0)
    scale = np.ones(len(above), np.float32)
    scale[alive] = np.sqrt(above[alive] * below[alive]) / below[alive]
    weights[pair.first.weight] = _divided(first, scale, pair.first.axis)
    if pair.first.bias is not None:
        weights[pair.first.bias] = weights[pair.first.bias] / scale
    weights[pair.second.weight] = _divided(second, np.repeat(1 / scale, pair.repeat), pair.second.axis)
    return float(np.abs(scale - 1).max(initial=0))


def _divided(values: NDArray[np.float32], scale: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = [1] * values.ndim
    shape[axis] = len(scale)
    return (values / scale.reshape(shape)).astype(np.float32)


def _ranges(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest magnitude of each slice along an axis."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    return np.asarray(np.abs(values).max(axis=others, initial=0), np.float32)


def _weights(model: onnx.ModelProto) -> Weights:
    import onnx
    from onnx import numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _pairs(model: onnx.ModelProto, weights: Weights) -> Iterator[Pair]:
    """Pairs of layers with nothing else between them, whose weights nobody else uses."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    ends = {value.name for value in model.graph.output}

    def alone(name: str) -> onnx.NodeProto | None:
        uses = consumers.get(name, [])
        return uses[0] if len(uses) == 1 and name not in ends else None

    def own(layer: Layer) -> bool:
        return all(len(consumers[name]) == 1 for name in (layer.weight, layer.bias) if name is not None)

    for node in model.graph.node:
        first = _first(node, weights)
        if first is None or not own(first):
            continue
        # Channels are the second axis of an image, and the last of what a matrix takes.
        given, image, after = node.output[0], node.op_type == "Conv", alone(node.output[0])
        while after is not None and _passes(after, image):
            given, image, after = after.output[0], image and after.op_type != "Flatten", alone(after.output[0])
        second = _second(after, weights, given) if after is not None else None
        if after is None or second is None or image != (after.op_type == "Conv") or not own(second):
            continue
        channels = weights[first.weight].shape[first.axis]
        inputs = weights[second.weight].shape[second.axis]
        if inputs % channels == 0:
            yield Pair(first=first, second=second, repeat=inputs // channels)


def _passes(node: onnx.NodeProto, image: bool) -> bool:
    """Whether scaling each channel of what goes in scales each channel of what comes out."""
    flattening = node.op_type == "Flatten" and _attribute(node, "axis", 1) == 1
    return node.op_type in ELEMENTWISE or (image and (node.op_type in POOLING or flattening))


def _first(node: onnx.NodeProto, weights: Weights) -> Layer | None:
    """The node as a layer whose output channels can be scaled."""
    if node.op_type not in {"Conv", *MATRICES} or len(node.input) < 2 or node.input[1] not in weights:
        return None
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and (bias not in weights or weights[bias].ndim != 1):
        return None
    weight = weights[node.input[1]]
    if node.op_type == "Conv":
        return Layer(weight=node.input[1], bias=bias, axis=0)
    if weight.ndim != 2:
        return None
    transposed = node.op_type == "Gemm" and _attribute(node, "transB", 0)
    return Layer(weight=node.input[1], bias=bias, axis=0 if transposed else 1)


def _second(node: onnx.NodeProto, weights: Weights, given: str) -> Layer | None:
    """The node as a layer whose input channels can be scaled; its bias is left alone."""
    if node.op_type not in {"Conv", *MATRICES} or node.input[0] != given or node.input[1] not in weights:
        return None
    weight = weights[node.input[1]]
    if node.op_type == "Conv":
        group = _attribute(node, "group", 1)
        if group not in (1, weight.shape[0]):
            return None
        # Depthwise: filter i reads channel i alone.
        return Layer(weight=node.input[1], bias=None, axis=1 if group == 1 else 0)
    if weight.ndim != 2 or (node.op_type == "Gemm" and _attribute(node, "transA", 0)):
        return None
    transposed = node.op_type == "Gemm" and _attribute(node, "transB", 0)
    return Layer(weight=node.input[1], bias=None, axis=1 if transposed else 0)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
