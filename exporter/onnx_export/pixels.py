"""Puts what becomes of pixels into an ONNX file: it then takes unsigned bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import StageError
from exporter.target_api import PixelInput

if TYPE_CHECKING:
    import onnx


def write_with_pixels(source: Path, destination: Path, pixels: Sequence[PixelInput]) -> None:
    """Copies a model, whose named inputs then take bytes: `pixels * factor + offset`, laid out for the model.

    Args:
        source: an ONNX file in float or int8; tensors beside it travel along.
        destination: the file to write, in a folder that is there.
        pixels: inputs to change.

    Raises:
        StageError: an input cannot be changed.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    for one in pixels:
        _prepend(model.graph, one)
    onnx.save(model, destination)
    for beside in source.parent.glob(f"{source.name}.*"):
        shutil.copyfile(beside, destination.with_name(beside.name))


def _prepend(graph: onnx.GraphProto, one: PixelInput) -> None:
    from onnx import TensorProto, helper

    given = next(value for value in graph.input if value.name == one.name)
    dims = [dim.dim_param or dim.dim_value or None for dim in given.type.tensor_type.shape.dim]
    taken = _unused(graph, f"{one.name}/values")
    if any(output.name == one.name for output in graph.output):
        raise StageError(
            f"input '{one.name}' is an output as well, and cannot be bytes and values at once",
            where="[export] preprocess",
            hint="remove `preprocess`",
        )
    _rename(graph, one.name, taken)
    nodes = []

    def append(op: str, source: str, *more: str, result: str = "", **attributes: Any) -> str:
        result = result or _unused(graph, f"{one.name}/{op.lower()}")
        nodes.append(helper.make_node(op, [source, *more], [result], name=f"{one.name}/{op}", **attributes))
        return result

    last = one.name
    if one.layout == "CHW":
        dims = [dims[axis] for axis in (0, 2, 3, 1)]
        # Bytes are moved before they become four times as large.
        last = append("Transpose", last, perm=[0, 3, 1, 2])
    last = append("Cast", last, to=TensorProto.FLOAT)
    last = append("Mul", last, _constant(graph, one, "factor", one.factor))
    append("Add", last, _constant(graph, one, "offset", one.offset), result=taken)
    given.CopyFrom(helper.make_tensor_value_info(one.name, TensorProto.UINT8, dims))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Has all nodes read another tensor, those of graphs inside nodes too."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == before:
                node.input[index] = after
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, before, after)


def _constant(graph: onnx.GraphProto, one: PixelInput, kind: str, values: tuple[float, ...]) -> str:
    """Adds one value, or one for each channel, as it is broadcast over a batch; gives its name."""
    from onnx import numpy_helper

    array = np.asarray(values, np.float32)
    shaped = array.reshape(-1, 1, 1) if one.layout == "CHW" and len(array) > 1 else array
    name = _unused(graph, f"{one.name}/{kind}")
    graph.initializer.append(numpy_helper.from_array(shaped, name))
    return name


def _unused(graph: onnx.GraphProto, name: str) -> str:
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.initializer, *graph.input)}
    while name in taken:
        name += "_"
    return name
