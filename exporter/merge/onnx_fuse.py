"""The nodes that fuse the outputs of several ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.errors import ModelError
from exporter.merge.fusing import Fusion, class_axis, no_numbers
from exporter.merge.wiring import output_name


def fused_outputs(
    given: Mapping[str, Sequence[str]], values: Mapping[str, ir.Value], fusion: Fusion
) -> tuple[dict[str, ir.Value], list[ir.Node], list[ir.Value]]:
    """Results by name, and the nodes and constants that make them.

    Args:
        given: names of outputs by member, in the stack's order.
        values: of all outputs.
        fusion: how.

    Raises:
        ModelError: outputs cannot be fused.
    """
    (first, own), *_ = given.items()
    if other := next((label for label, names in given.items() if len(names) != len(own)), None):
        raise ModelError(
            f"'{first}' has {len(own)} outputs and '{other}' {len(given[other])}: they cannot be fused",
            where="[[merge.models]]",
        )
    builder = _Builder()
    results = {}
    for index, name in enumerate(own):
        outputs = [values[output_name(label, names[index])] for label, names in given.items()]
        results[name] = builder.fused(outputs, fusion)
    return results, builder.nodes, builder.constants


class _Builder:
    """The nodes that fuse outputs; the same arithmetic as `fusing.fuse`."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def fused(self, outputs: Sequence[ir.Value], fusion: Fusion) -> ir.Value:
        parts = [self._kind(output, fusion, index) for index, output in enumerate(outputs)]
        shapes = {str(part.shape) for part in parts if part.shape is not None}
        if len(shapes) > 1:
            raise ModelError(
                "the outputs that are to be fused have different shapes",
                where="[[merge.models]]",
                why=", ".join(sorted(shapes)),
                hint='name each model\'s `classes`, or stack the models instead (`method = "stack"`)',
            )
        if fusion.by == "max":
            return self._like(parts[0], self._add("Max", parts))
        kind = parts[0].dtype.numpy() if parts[0].dtype else np.float32
        shares, scale = fusion.shares()
        scaled = [
            self._add("Mul", [part, self._constant(np.array(share, kind))])
            for part, share in zip(parts, shares, strict=True)
        ]
        whole = self._add("Sum", scaled)
        if scale != 1:
            whole = self._add("Mul", [self._like(parts[0], whole), self._constant(np.array(scale, kind))])
        return self._like(parts[0], whole)

    def _kind(self, output: ir.Value, fusion: Fusion, index: int) -> ir.Value:
        if output.dtype is not None and not output.dtype.is_floating_point():
            raise no_numbers(str(output.dtype).lower())
        if fusion.by == "mean":
            return output
        kind = output.dtype.numpy() if output.dtype else np.float32
        shape, places = output.shape, fusion.places(index)
        axis = class_axis(list(shape), lone=bool(places)) if shape is not None else -1
        classes = shape[axis] if shape is not None else None
        if fusion.by == "vote":
            if not isinstance(classes, int):
                raise ModelError("votes need outputs with a fixed number of classes", where='[merge] by = "vote"')
            chosen = self._add("ArgMax", [output], axis=axis, keepdims=0)
            depth = self._constant(np.array(classes, np.int64))
            own = self._add("OneHot", [chosen, depth, self._constant(np.array([0, 1], kind))], axis=axis)
        else:
            own = self._add("Softmax", [output], axis=axis)
        self._like(output, own)
        if not places:
            return own
        if classes != len(fusion.classes[index]):
            raise ModelError(
                f"a model with {classes} outputs was given {len(fusion.classes[index])} classes",
                where="[[merge.models]] classes",
            )
        assert shape is not None
        # A column of zeros at the end is what a class gets that the member does not know.
        ends = np.zeros(2 * len(shape), np.int64)
        ends[len(shape) + axis] = 1
        padded = self._add("Pad", [own, self._constant(ends), self._constant(np.array(0, kind))])
        result = self._add("Gather", [padded, self._constant(np.array(places, np.int64))], axis=axis)
        result.type = output.type
        result.shape = ir.Shape([fusion.total if at == axis else dim for at, dim in enumerate(shape)])
        return result

    def _add(self, op: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        name = f"fuse.{op}_{len(self.nodes)}"
        node = ir.node(op, inputs, attributes or None, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, array: Any) -> ir.Value:
        name = f"fuse.constant_{len(self.constants)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor)
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        self.constants.append(value)
        return value

    @staticmethod
    def _like(other: ir.Value, value: ir.Value) -> ir.Value:
        value.type, value.shape = other.type, other.shape
        return value
