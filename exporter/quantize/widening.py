"""A model that computes in half precision as one in float32, the only floats that int8 kernels of CPUs know.

Between halves onnxruntime would put casts in front of all weights, and quantize them anew in each inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.quantize.naming import all_graphs, free_name, rename_reads, tensor_names

SINGLE_FILE_LIMIT = 1_900_000_000
"""Protobuf ends at 2 GB; above this the weights go to a file beside the model."""
TYPED = ("to", "dtype", "output_datatype", "output_dtype")
"""Attributes that hold an element type."""
EXTREMES = {float(np.finfo(np.float16).max): np.finfo(np.float32).max, -65504.0: np.finfo(np.float32).min}
"""Constants that stand for the type's own end, most often as a mask, become the end of the other type."""


def in_float32(model: Path, folder: Path) -> Path:
    """A copy of a model that computes in float32 where it has halves; the model itself where it has none.

    Inputs and outputs keep their types. Its answers are the same but for rounding: what int8 makes of it is judged
    against the model as it was given.

    Args:
        model: ONNX file, its external data beside it.
        folder: where the copy is written.
    """
    if not _has_halves(onnx.load(model, load_external_data=False)):
        return model
    wider = onnx.load(model)
    _widen(wider)
    copy = folder / f"float32-{model.name}"
    size = sum(len(tensor.raw_data) for tensor in wider.graph.initializer)
    onnx.save(wider, copy, save_as_external_data=size > SINGLE_FILE_LIMIT, location=f"{copy.name}.data")
    return copy if _opens(copy) else model


def _opens(model: Path) -> bool:
    """Whether onnxruntime knows a model's types; operators of some domain may want halves."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own types of errors.
        return False
    return True


def _has_halves(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in _constants(model)) or any(
        value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in model.graph.input
    )


def _widen(model: onnx.ModelProto) -> None:
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    taken = set(tensor_names(graph))
    for tensor in _constants(model):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_widened(tensor))
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.name in TYPED and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    _, *inside = all_graphs(graph)
    inner_values = (value for one in inside for value in (*one.input, *one.output, *one.value_info))
    for value in (*inner_values, *graph.value_info, *(one for one in graph.input if one.name in stored)):
        _widen_type(value.type)
    given = [value.name for value in graph.input if value.name not in stored and _is_half(value)]
    for name in given:
        inner = _renamed(graph, name, taken)
        graph.node.insert(0, helper.make_node("Cast", [name], [inner], name=f"{inner}cast", to=TensorProto.FLOAT))
    for name in (value.name for value in graph.output if _is_half(value)):
        if name in given:
            continue  # Handed out as it was given.
        inner = _renamed(graph, name, taken)
        for node in graph.node:
            node.output[:] = [inner if one == name else one for one in node.output]
        for tensor in graph.initializer:
            tensor.name = inner if tensor.name == name else tensor.name
        cast = helper.make_node("Cast", [inner], [name], name=f"{inner}cast", to=TensorProto.FLOAT16)
        graph.node.append(cast)


def _renamed(graph: onnx.GraphProto, name: str, taken: set[str]) -> str:
    """Lets all nodes read another tensor than an input or output; its name."""
    inner = free_name(f"{name}_", taken)
    taken.add(inner)
    for one in all_graphs(graph):
        rename_reads(one, {name: inner})
    return inner


def _constants(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All initializers, and tensors in attributes."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
    yield from (attribute.t for node in _nodes(model) for attribute in node.attribute if attribute.HasField("t"))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in all_graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _widened(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    wide = values.astype(np.float32)
    for half, single in EXTREMES.items():
        wide[values == half] = single
    return numpy_helper.from_array(wide, tensor.name)


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _widen_type(kind: onnx.TypeProto) -> None:
    """A type, and what a sequence or an optional holds."""
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.FLOAT16:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)
