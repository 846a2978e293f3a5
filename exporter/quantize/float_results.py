"""Results of int8 matrix products that nothing in int8 reads: they stay float.

onnxruntime's quantizer rounds the result of every node that it quantizes. Where float nodes alone read it, or the
user, that costs two passes over the tensor and most of its bits for nothing: kernels for matrix products can write
floats, MatMulIntegerToFloat and QGemm in onnxruntime. Those for convolutions cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.quantize.coverage import DEQUANTIZE, FLOAT_RESULTS, QUANTIZE, quantizable_ops
from exporter.quantize.naming import all_graphs

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A product's result, and the way that it goes into 8 bits and back."""

    product: onnx.NodeProto
    quantize: onnx.NodeProto
    back: list[onnx.NodeProto]


AT_THE_END = "_QuantizeLinear_Input"
"""What onnxruntime's quantizer adds to the name of a result whose own name the pair at the model's end has."""


def release_results(model: onnx.ModelProto, float_model: onnx.ModelProto) -> list[str]:
    """Takes away the Q/DQ pairs behind matrix products whose results no int8 node reads.

    Args:
        model: a QDQ file, changed in place.
        float_model: what it was made of.

    Returns:
        Names of the products.
    """
    graph = model.graph
    _, *inner = all_graphs(graph)
    if inner:
        return []  # Graphs inside of nodes read tensors of this one by name.
    results = {node.name: node.output[0] for node in float_model.graph.node if node.op_type in FLOAT_RESULTS}
    found = [pair for pair in _Pairs(graph).idle() if _whole(pair.product, results)]
    ends = {value.name for value in graph.output}
    names: dict[str, str] = {}
    for pair in found:
        backs = [one.output[0] for one in pair.back]
        # What the user reads keeps its name.
        result = next((name for name in backs if name in ends), pair.product.output[0])
        pair.product.output[0] = result
        names |= dict.fromkeys(backs, result)
    gone = [node for pair in found for node in (pair.quantize, *pair.back)]
    for node in gone:
        graph.node.remove(node)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    constants = {name for node in gone for name in node.input[1:]}
    constants -= {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in constants]:
        graph.initializer.remove(tensor)
    return [pair.product.name for pair in found]


def _whole(product: onnx.NodeProto, results: Mapping[str, str]) -> bool:
    """Whether a product's result is that of the float model; a clipping behind it may be left to the pair's range."""
    return results.get(product.name) == str(product.output[0]).removesuffix(AT_THE_END)


class _Pairs:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = graph.node
        self._producer = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._with_int8_form = quantizable_ops()
        self._ends = {value.name for value in graph.output}
        # Kernels that write floats take scales in float alone.
        self._scales = {tensor.name for tensor in graph.initializer if tensor.data_type == tensor.FLOAT}
        self._sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def idle(self) -> list[_Pair]:
        """Pairs behind products that bring nothing."""
        pairs = [pair for node in self._nodes if (pair := self._pair(node)) is not None]
        return [
            pair
            for pair in pairs
            if not any(self._int8(reader) for one in pair.back for reader in self._readers.get(one.output[0], ()))
        ]

    def _pair(self, node: onnx.NodeProto) -> _Pair | None:
        if node.op_type not in FLOAT_RESULTS or not self._from_int8(node) or node.output[0] in self._ends:
            return None
        first = self._readers.get(node.output[0], [])
        if [one.op_type for one in first] != [QUANTIZE] or first[0].output[0] in self._ends:
            return None
        quantize, back = first[0], self._readers.get(first[0].output[0], [])
        alike = all(one.op_type == DEQUANTIZE and one.input[1:] == quantize.input[1:] for one in back)
        # Two outputs of the model cannot be one tensor.
        single = sum(one.output[0] in self._ends for one in back) <= 1
        fit = quantize.input[1] in self._scales and self._plain(node)
        return _Pair(product=node, quantize=quantize, back=back) if back and alike and single and fit else None

    def _plain(self, node: onnx.NodeProto) -> bool:
        """Whether several scales, where an input has them, belong to the columns of a matrix on the right.

        onnxruntime fuses products of stacked matrices with several scales as well, and then refuses to run them.
        """
        for place, name in enumerate(node.input[:2]):
            back = self._producer[name]
            if math.prod(self._sizes.get(back.input[1], ())) > 1:
                integers = self._sizes.get(back.input[0])
                if place == 0 or integers is None or len(integers) != 2:
                    return False
        return True

    def _int8(self, node: onnx.NodeProto) -> bool:
        """Whether a node that reads a result computes in int8, or hands it on as such."""
        if node.op_type == QUANTIZE:
            return True
        if node.op_type not in self._with_int8_form:
            return False
        quantized = any(one.op_type == QUANTIZE for name in node.output for one in self._readers.get(name, ()))
        if node.op_type == "Clip" and quantized:
            return True  # A product whose float result is clipped and then rounded gets no int8 kernel at all.
        return self._from_int8(node) and (quantized or node.op_type in FLOAT_RESULTS)

    def _from_int8(self, node: onnx.NodeProto) -> bool:
        """Whether the first two inputs, behind which only a bias can follow, come out of 8 bits."""
        makers = [self._producer.get(name) for name in node.input[:2]]
        return bool(makers) and all(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)
