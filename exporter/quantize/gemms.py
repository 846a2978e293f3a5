"""Gemm as onnxruntime's quantizer knows it: A B + C, where C is one value a column.

It reads `beta` into the bias's scale and then sets it to one, and takes one value a channel from whatever shape the
bias has: with any other `beta`, or any other bias, the int8 file would compute something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exporter.quantize.biases import BIAS, WEIGHT
from exporter.quantize.naming import free_name

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


def simplify_gemms(model: onnx.ModelProto) -> None:
    """Puts `alpha` and `beta` into constant weights and biases, and biases into one row, where that can be done."""
    stored = _Constants(model.graph)
    for node in model.graph.node:
        if node.op_type != "Gemm":
            continue
        alpha, beta = (_factor(node, name) for name in ("alpha", "beta"))
        if alpha != 1 and (weight := stored.get(node.input[WEIGHT])) is not None:
            node.input[WEIGHT] = stored.add(node.input[WEIGHT], weight * weight.dtype.type(alpha))
            _set(node, "alpha")
        if not _has_bias(node):
            continue
        if beta == 0:
            node.input.pop()
            _set(node, "beta")
        elif (bias := stored.get(node.input[BIAS])) is not None:
            row = _row(bias * bias.dtype.type(beta), _columns(node, stored.tensors))
            if beta != 1 or row.shape != bias.shape:
                node.input[BIAS] = stored.add(node.input[BIAS], row)
                _set(node, "beta")


def unfit_gemms(graph: onnx.GraphProto) -> list[str]:
    """Names of nodes whose constant bias is not one value a column; biases that are computed stay as they are."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        bias = stored.get(node.input[BIAS]) if node.op_type == "Gemm" and _has_bias(node) else None
        if bias is not None and not (len(bias.dims) == 1 and (bias.dims[0] > 1 or _columns(node, stored) == 1)):
            found.append(node.name)
    return found


def _columns(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> int | None:
    """How many values a row of the result has; None where the weight is computed."""
    weight = stored.get(node.input[WEIGHT])
    if weight is None or len(weight.dims) != 2:
        return None
    return int(weight.dims[0 if any(one.name == "transB" and one.i for one in node.attribute) else 1])


class _Constants:
    """Constants of a graph, to which more can be added."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._taken = {*self.tensors, *(name for node in graph.node for name in (*node.input, *node.output))}

    def get(self, name: str) -> NDArray[Any] | None:
        """Values of a float constant."""
        from onnx import TensorProto, numpy_helper

        tensor = self.tensors.get(name)
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        return numpy_helper.to_array(tensor) if tensor is not None and tensor.data_type in floats else None

    def add(self, like: str, values: NDArray[Any]) -> str:
        """Stores a constant under a name like another's; its name."""
        from onnx import numpy_helper

        name = free_name(f"{like}_", self._taken)
        self._taken.add(name)
        self.tensors[name] = numpy_helper.from_array(values, name)
        self._graph.initializer.append(self.tensors[name])
        return name


def _row(bias: NDArray[Any], count: int | None) -> NDArray[Any]:
    """A bias of shape (N,), where it is the same for all rows; `count` is N, where it is known."""
    import numpy as np

    if bias.ndim == 2 and bias.shape[0] == 1 and (bias.shape[1] > 1 or count == 1):
        return bias.reshape(-1)
    if bias.size == 1 and count is not None:
        return np.repeat(bias.reshape(-1), count)
    return bias


def _has_bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > BIAS and bool(node.input[BIAS])


def _factor(node: onnx.NodeProto, name: str) -> float:
    return next((float(one.f) for one in node.attribute if one.name == name), 1.0)


def _set(node: onnx.NodeProto, name: str) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.f = 1.0
