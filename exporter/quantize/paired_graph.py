"""One graph that runs a float model and its QDQ form side by side, with room for more nodes between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph

from exporter.quantize.coverage import DEQUANTIZE, QUANTIZE, is_shield
from exporter.quantize.opset import opset_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INT8, LOCAL = "int8/", "local/"
LAYOUT = (QUANTIZE, DEQUANTIZE)
AXES_AS_INPUT = {"ReduceSum": 13, "ReduceSumSquare": 18}
"""The opsets from which reductions take their axes as an input."""


@dataclass
class GraphIndex:
    """Nodes of a graph, who makes each tensor and who reads it."""

    nodes: list[onnx.NodeProto]
    initializers: dict[str, onnx.TensorProto]
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> GraphIndex:
        """The index of a graph."""
        found = cls(list(graph.node), {tensor.name: tensor for tensor in graph.initializer})
        for node in graph.node:
            found.producer |= dict.fromkeys(node.output, node)
            for name in node.input:
                found.readers.setdefault(name, []).append(node)
        return found

    def origin(self, name: str) -> tuple[str, list[onnx.NodeProto]]:
        """What a tensor is before Q/DQ pairs, and those pairs, first to last."""
        chain: list[onnx.NodeProto] = []
        while (node := self.producer.get(name)) is not None and (node.op_type in LAYOUT or is_shield(node)):
            if node.op_type in LAYOUT:
                chain.insert(0, node)
            name = node.input[0]
        return name, chain

    def pair_after(self, name: str) -> list[onnx.NodeProto]:
        """The Q/DQ pair that a tensor goes through, or nothing."""
        quantize = next((node for node in self.readers.get(name, ()) if node.op_type == QUANTIZE), None)
        if quantize is None:
            return []
        back = [node for node in self.readers.get(quantize.output[0], ()) if node.op_type == DEQUANTIZE]
        return [quantize, *back[:1]]


class PairedGraph:
    """The graph; its nodes are added in the order in which methods are called.

    Args:
        float_model: with inferred shapes; the names of its tensors are those of the QDQ model.
        int8_model: the QDQ form.
    """

    def __init__(self, float_model: onnx.ModelProto, int8_model: onnx.ModelProto) -> None:
        self.opset = opset_of(int8_model)
        if opset_of(float_model) != self.opset:
            float_model = onnx.version_converter.convert_version(float_model, self.opset)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(float_model)
        self.float_names = {name for node in float_model.graph.node for name in node.output}
        self.float_names |= {value.name for value in float_model.graph.input}
        self._types = _types(float_model.graph)
        self._float = GraphIndex.of(float_model.graph)
        quantized = onnx.GraphProto()
        quantized.CopyFrom(int8_model.graph)
        del quantized.output[:]  # An input among them would be renamed after all.
        add_prefix_graph(quantized, INT8, rename_inputs=False, inplace=True)
        self._int8 = GraphIndex.of(quantized)
        graph = self.model.graph
        graph.node.extend(quantized.node)
        graph.initializer.extend(quantized.initializer)
        graph.sparse_initializer.extend(quantized.sparse_initializer)
        del graph.output[:]
        domains = {entry.domain for entry in self.model.opset_import}
        self.model.opset_import.extend(
            entry for entry in int8_model.opset_import if entry.domain not in domains and entry.domain != "ai.onnx"
        )
        self.model.ir_version = max(float_model.ir_version, int8_model.ir_version)
        self._copies: dict[str, str] = {}
        self._floats: dict[str, str] = {}
        self._constants: set[str] = set()
        self._count = 0

    def _float_name(self, name: str) -> str:
        """The float model's name of a tensor of the QDQ model; where a pair ends the graph, the pair has the name."""
        while (plain := name.removeprefix(INT8)) not in self.float_names:
            pair = self._int8.pair_after(name)
            if len(pair) < 2:
                return plain
            name = pair[-1].output[0]
        return plain

    def _constant(self, name: str) -> bool:
        return bool(name) and self._int8.origin(name)[0] in self._int8.initializers

    def _float_input(self, name: str) -> str:
        origin = self._int8.origin(name)[0]
        tensor = self._float_name(origin)
        return tensor if origin not in self._int8.initializers and tensor in self.float_names else name

    def _quantized_input(self, name: str) -> str:
        chain = self._int8.origin(name)[1]
        tensor = self._float_input(name)
        if tensor == name or not chain:
            return tensor
        if name not in self._copies:
            self._copies[name] = self._through(chain, tensor)
        return self._copies[name]

    def _through(self, chain: list[onnx.NodeProto], name: str) -> str:
        """A tensor after a chain of nodes with one input each that counts."""
        for node in chain:
            name = self._run(node, [name, *node.input[1:]])[node.output[0]]
        return name

    def _run(self, node: onnx.NodeProto, inputs: list[str]) -> dict[str, str]:
        """A copy of a node on other inputs; its results by the original's."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        self._count += 1
        copy.name = f"{LOCAL}{self._count}"
        outputs = {name: f"{LOCAL}{self._count}/{name}" if name else "" for name in node.output}
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs.values())
        self.model.graph.node.append(copy)
        return outputs

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        output = f"{LOCAL}{self._count}"
        self.model.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _reduced(self, op: str, name: str, axes: list[int]) -> str:
        """A reduction over some axes, or over all where none is named."""
        as_input = self.opset >= AXES_AS_INPUT[op]
        inputs = [name, self._constant_of(*axes)] if axes and as_input else [name]
        attributes: dict[str, Any] = {"axes": axes} if axes and not as_input else {}
        return self._node(op, inputs, keepdims=0, **attributes)

    def _constant_of(self, *values: int) -> str:
        name = f"{LOCAL}constant/{'/'.join(map(str, values))}"
        if name not in self._constants:
            self._constants.add(name)
            self.model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def _as_float(self, name: str, tensor: str) -> str:
        """A tensor in float32; halves would overflow when squared."""
        if self._types[tensor][0] == TensorProto.FLOAT:
            return name
        if name not in self._floats:
            self._floats[name] = self._node("Cast", [name], to=TensorProto.FLOAT)
        return self._floats[name]

    def _bits(self, chain: list[onnx.NodeProto]) -> int:
        return 8 * self._point(chain[0]).dtype.itemsize

    def _range(self, quantize: onnx.NodeProto) -> tuple[float, float]:
        import numpy as np

        point = self._point(quantize)
        scale = numpy_helper.to_array(self._int8.initializers[quantize.input[1]]).astype(np.float64)
        kinds = np.iinfo(point.dtype)
        offset = point.astype(np.float64)
        return float(((kinds.min - offset) * scale).min()), float(((kinds.max - offset) * scale).max())

    def _point(self, node: onnx.NodeProto) -> NDArray[np.integer[Any]]:
        import numpy as np

        if len(node.input) < 3 or node.input[2] not in self._int8.initializers:
            return np.zeros((), np.uint8)  # The default of both operators.
        return np.asarray(numpy_helper.to_array(self._int8.initializers[node.input[2]]))


def _types(graph: onnx.GraphProto) -> dict[str, tuple[int, int | None]]:
    """Element type and rank of each float tensor."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return {
        value.name: (tensor.elem_type, len(tensor.shape.dim) if tensor.HasField("shape") else None)
        for value in [*graph.value_info, *graph.input, *graph.output]
        if (tensor := value.type.tensor_type).elem_type in floats
    }
