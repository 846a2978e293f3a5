"""Quantized weights and biases of a QDQ file, and biases that int32 cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from exporter.quantize.coverage import DEQUANTIZE

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

BIAS = 2
"""Index of the bias among the inputs of a Conv, ConvTranspose or Gemm."""
INT32 = np.iinfo(np.int32).max


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
        return np.asarray(numpy_helper.to_array(self.initializers[node.input[0]])), node


def clipped_biases(model: onnx.ModelProto) -> list[str]:
    """Nodes whose bias did not fit into int32 at the scale that the scales of input and weight make."""
    weights = Weights(model)
    found = []
    for node in weights.nodes:
        stored = weights.stored(node.input[BIAS]) if len(node.input) > BIAS else None
        if stored is not None and stored[0].dtype == np.int32 and stored[0].size:
            # As 64-bit integers: the lowest one has no positive counterpart.
            largest = int(np.abs(stored[0].astype(np.int64)).max())
            if largest >= INT32:
                found.append(node.name)
    return found
