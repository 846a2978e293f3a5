"""Bias correction: what quantization adds to the mean of a layer's results is taken off its bias.

Rounding weights shifts the mean of a channel where its inputs have a mean of their own, as behind every ReLU, most
where a channel sums few products, as in depthwise convolutions. After Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction (2019), appendix D, with means taken from calibration data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.quantize.biases import BIAS, INT32, WEIGHT, Weights
from exporter.quantize.paired_graph import INT8, PairedGraph
from exporter.quantize.prepare import rewrite
from exporter.quantize.summing import Sums, summed

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic]]

_Bias = tuple[str, "NDArray[np.floating[Any]] | None"]
"""An initializer, and the scale of its steps where it is not in float."""
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer whose bias can be corrected.

    Attributes:
        bias: the initializer to change.
        scale: of its steps, one for each channel or one for all; None where it is in float.
        shift: graph output with what the layer's int8 form adds to the sum of each channel.
        size: graph output with the number of values of its result.
    """

    bias: str
    scale: NDArray[np.floating[Any]] | None
    shift: str
    size: str


def correct_biases(
    float_model: Path,
    int8_model: Path,
    batches: Iterable[Inputs],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Makes the mean of each channel of a static int8 model's layers that of the float model.

    Each layer's int8 form runs on the float model's activations, rounded as in the int8 model. Layers are Conv,
    ConvTranspose and Gemm with a bias of their own, and MatMul where a float Add of a constant follows.

    Args:
        float_model: the prepared.onnx that `calibrate` wrote and that the int8 model was made from.
        int8_model: the QDQ file, written anew.
        batches: input name to array; they run a few samples at a time.
        progress: called with the number of batches done.

    Returns:
        Biases that changed.

    Raises:
        StageError: no batch was given.
        ExporterError: whatever `batches` raises.
    """
    import onnx

    model = onnx.load(int8_model)
    built = _Shifts(onnx.load(float_model), model)
    sizes = {layer.size for layer in built.layers}
    # The network, its int8 form and each layer once more are alive at most.
    totals = summed(built.finish(), float_model.parent, batches, sizes=sizes, runs=3, progress=progress)
    weights = Weights(model)
    changed = sum(_corrected(weights, layer, totals) for layer in built.layers)
    if changed:
        rewrite(model, int8_model)
    return changed


def _corrected(weights: Weights, layer: _Layer, totals: Sums) -> bool:
    shift, bias = totals[layer.shift], weights.array(layer.bias)
    # Every channel has as many values as the others.
    mean = shift * len(shift) / float(totals[layer.size].sum())
    if not np.isfinite(mean).all() or mean.size != bias.size:
        return False
    steps = mean.reshape(bias.shape) / (1.0 if layer.scale is None else layer.scale)
    changed = bias - steps if layer.scale is None else np.clip(np.rint(bias - steps), -INT32, INT32)
    weights.put(layer.bias, changed)
    return not np.array_equal(weights.array(layer.bias), bias)


class _Shifts(PairedGraph):
    """A graph that sums how far the int8 form of each layer is from the layer, channel by channel."""

    def __init__(self, float_model: onnx.ModelProto, int8_model: onnx.ModelProto) -> None:
        super().__init__(float_model, int8_model)
        self._weights = Weights(int8_model)
        self._counts = Counter(name for node in self._weights.nodes for name in node.input)
        self._origins = {node.name: node for node in float_model.graph.node}
        self.layers = tuple(self._found())

    def finish(self) -> onnx.ModelProto:
        """The graph with all that `layers` name as its outputs."""
        import onnx

        names = dict.fromkeys(name for layer in self.layers for name in (layer.shift, layer.size))
        self.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return self.model

    def _found(self) -> Iterator[_Layer]:
        for node in self._int8.nodes:
            before = self._origins.get(node.name.removeprefix(INT8))
            if before is None or before.op_type != node.op_type or not self._from_int8(node):
                continue
            bias = self._bias(node)
            rank = self._types.get(before.output[0], (0, None))[1]
            if bias is None or rank is None:
                continue
            channel = 1 if node.op_type in CONVOLUTIONS else rank - 1
            own = self._run(node, [self._quantized_input(name) for name in node.input])[node.output[0]]
            result = before.output[0]
            shift = self._node("Sub", [self._as_float(own, result), self._as_float(result, result)])
            yield _Layer(
                bias=bias[0],
                scale=bias[1],
                shift=self._reduced("ReduceSum", shift, [axis for axis in range(rank) if axis != channel]),
                size=self._node("Size", [result]),
            )

    def _from_int8(self, node: onnx.NodeProto) -> bool:
        return len(node.input) > WEIGHT and all(self._int8.origin(name)[1] for name in node.input[: WEIGHT + 1])

    def _bias(self, node: onnx.NodeProto) -> _Bias | None:
        if node.op_type in (*CONVOLUTIONS, "Gemm"):
            return self._stored_bias(node)
        return self._added_bias(node) if node.op_type == "MatMul" else None

    def _stored_bias(self, node: onnx.NodeProto) -> _Bias | None:
        """A bias of 32-bit integers that no other node reads."""
        name = node.input[BIAS].removeprefix(INT8) if len(node.input) > BIAS else ""
        stored = self._weights.stored(name)
        if stored is None or stored[0].dtype != np.int32:
            return None
        pair = stored[1]
        alone = self._counts[name] == self._counts[pair.input[0]] == 1
        return (pair.input[0], self._weights.array(pair.input[1])) if alone else None

    def _added_bias(self, node: onnx.NodeProto) -> _Bias | None:
        """A row of floats that is added to a product's result and to nothing else."""
        readers = self._int8.readers.get(node.output[0], ())
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        other = next((name for name in readers[0].input if name != node.output[0]), "").removeprefix(INT8)
        row = self._weights.initializers.get(other)
        if row is None or row.data_type != row.FLOAT or self._counts[other] != 1 or len(row.dims) != 1:
            return None
        return other, None
