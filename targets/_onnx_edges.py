"""An ONNX file as onnx2tf can take it: the same computation, with nothing at its edge left to decide.

onnx2tf decides by itself which layout tensors have. So shapes are fixed, inputs are told to stay as they are, and
outputs with three axes or more pass through a flat form, which has one reading only. Names are made up, because those
that TensorFlow does not take would be changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import Signature, TensorSpec
from exporter.errors import StageError
from exporter.target_api import TensorForm
from targets._tflite_names import placeholder

if TYPE_CHECKING:
    import onnx

NHWC_TO_NCHW = (0, 3, 1, 2)
GELU_OPSET = 20
AMBIGUOUS = 3
"""Axes from which on onnx2tf may change the layout."""


def write_settled(model: Path, signature: Signature, form: TensorForm, path: Path) -> None:
    """Writes a model whose inputs are `placeholder("input", 0)` and so on, as the .tflite takes them; outputs alike.

    Args:
        model: an ONNX file with fixed shapes.
        signature: its inputs and outputs.
        form: how the .tflite takes and gives tensors.
        path: the file to write.

    Raises:
        StageError: the shape of an output depends on values.
    """
    import onnx

    loaded = _with_gelus(onnx.load(str(model)))
    graph = loaded.graph
    _rename(graph, {spec.name: f"inner_{placeholder('input', i)}" for i, spec in enumerate(signature.inputs)})
    _rename(graph, {spec.name: f"inner_{placeholder('output', i)}" for i, spec in enumerate(signature.outputs)})
    before = [node for i, spec in enumerate(signature.inputs) for node in _entering(graph, spec, i, form)]
    after = [node for i, spec in enumerate(signature.outputs) for node in _leaving(graph, spec, i, form)]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.save(loaded, str(path), save_as_external_data=False)


def _with_gelus(model: onnx.ModelProto) -> onnx.ModelProto:
    """Joins the steps of each GELU into one operator, which a .tflite has too: in 8 bits its steps would be noise."""
    import onnx_ir as ir
    from onnx import version_converter
    from onnxscript.rewriter.ort_fusions.erfgelu import fuse_erfgelu

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        raised = model if opset >= GELU_OPSET else version_converter.convert_version(model, GELU_OPSET)
    except Exception:  # The steps of a model that cannot be raised are converted as they are.
        return model
    graphs = ir.from_proto(raised)
    if not fuse_erfgelu(graphs):
        return model
    for node in ir.traversal.RecursiveGraphIterator(graphs.graph):
        if (node.domain, node.op_type) == ("com.microsoft", "Gelu"):
            node.domain = ""
    return ir.to_proto(graphs)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames tensors everywhere in a graph and in the graphs inside its nodes."""
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _entering(graph: onnx.GraphProto, spec: TensorSpec, index: int, form: TensorForm) -> list[onnx.NodeProto]:
    """Makes an input what the .tflite takes, and what leads from it to what the model takes."""
    from onnx import helper

    name = placeholder("input", index)
    value = next(one for one in graph.input if one.name == f"inner_{name}")
    shape = [int(size) for size in spec.shape]
    if form.moves(spec):
        shape = [shape[0], *shape[2:], shape[1]]
    value.CopyFrom(helper.make_tensor_value_info(name, _code(form.types.get(spec.dtype, spec.dtype)), shape))
    nodes, last = [], name
    if form.types.get(spec.dtype, spec.dtype) != spec.dtype:
        nodes.append(helper.make_node("Cast", [last], [f"cast_{name}"], to=_code(spec.dtype)))
        last = f"cast_{name}"
    if form.moves(spec):
        nodes.append(helper.make_node("Transpose", [last], [f"moved_{name}"], perm=NHWC_TO_NCHW))
        last = f"moved_{name}"
    return [*nodes, helper.make_node("Identity", [last], [f"inner_{name}"])]


def _leaving(graph: onnx.GraphProto, spec: TensorSpec, index: int, form: TensorForm) -> list[onnx.NodeProto]:
    """Makes an output what the .tflite gives."""
    import numpy as np
    from onnx import helper, numpy_helper

    name = placeholder("output", index)
    if free := [size for size in spec.shape if isinstance(size, str)]:
        raise StageError(
            f"the shape of output '{spec.name}' cannot be told beforehand, and .tflite files have fixed shapes",
            where=f"output {spec}",
            why=f"axis {', '.join(map(repr, free))} depends on the values of the inputs",
            hint='use `[targets.mobile] format = "ort"`, whose shapes may be dynamic',
        )
    value = next(one for one in graph.output if one.name == f"inner_{name}")
    kind = form.types.get(spec.dtype, spec.dtype)
    value.CopyFrom(helper.make_tensor_value_info(name, _code(kind), [int(size) for size in spec.shape]))
    nodes, last = [], f"inner_{name}"
    if kind != spec.dtype:
        nodes.append(helper.make_node("Cast", [last], [f"cast_{name}"], to=_code(kind)))
        last = f"cast_{name}"
    if len(spec.shape) < AMBIGUOUS:
        return [*nodes, helper.make_node("Identity", [last], [name])]
    for step, shape in (("flat", [1, -1]), ("shaped", list(spec.shape))):
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{step}_shape_{name}"))
    return [
        *nodes,
        helper.make_node("Reshape", [last, f"flat_shape_{name}"], [f"flat_{name}"]),
        helper.make_node("Reshape", [f"flat_{name}", f"shaped_shape_{name}"], [name]),
    ]


def _code(dtype: str) -> int:
    import numpy as np
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
