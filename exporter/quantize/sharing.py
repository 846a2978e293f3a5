"""Weights that several nodes read: one copy where they want the same scales, and one each where they do not.

Exporters write tied weights once for each user, or once for users that need scales along different axes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from exporter.quantize.coverage import quantizable_ops
from exporter.quantize.naming import free_name, read_inside

if TYPE_CHECKING:
    import onnx

    Uses = dict[str, list[tuple[onnx.NodeProto, int]]]

LEAST_BYTES = 1024
"""Biases and scalars stay apart: each is quantized at scales of its own node, and they weigh nothing."""
PLAIN = ("", "", 0, False)
"""The role of what is quantized as values, with one scale: everything but weights and biases."""
BIASED = ("Conv", "ConvTranspose", "Gemm")
NORMALIZED = ("InstanceNormalization", "LayerNormalization", "BatchNormalization")


def separate_weights(model: onnx.ModelProto) -> int:
    """Gives each role that a constant has in int8 a copy of its own: it gets one set of scales, along one axis.

    Args:
        model: with its weights in memory; changed in place.

    Returns:
        How many copies were made.
    """
    from onnx import TensorProto

    graph = model.graph
    uses, with_int8_form = _uses(graph), quantizable_ops()
    ends = {value.name for value in graph.output}
    taken = set(uses) | ends
    copies = 0
    for tensor in list(graph.initializer):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        # What the model hands out is not to be rounded.
        names: dict[tuple[object, ...], str] = {("",): tensor.name} if tensor.name in ends else {}
        for node, index in uses[tensor.name]:
            if node.op_type not in with_int8_form:
                continue
            role = _role(node, index) if _weighs(node, index) else PLAIN
            if names and role not in names:
                copy = graph.initializer.add()
                copy.CopyFrom(tensor)
                copy.name = free_name(f"{tensor.name}_", taken)
                taken.add(copy.name)
                names[role] = copy.name
                copies += 1
            node.input[index] = names.setdefault(role, tensor.name)
    return copies


def share_weights(model: onnx.ModelProto) -> int:
    """Lets nodes of one operator read equal weights from one initializer, and drops the copies and what nobody reads.

    Only nodes that use it alike share: others could want scales along another axis.

    Args:
        model: with its weights in memory; changed in place.

    Returns:
        How many initializers were dropped.
    """
    from onnx import numpy_helper

    graph = model.graph
    uses = _uses(graph)
    kept: dict[tuple[object, ...], str] = {}
    dropped = set()
    elsewhere = {value.name for value in graph.output} | read_inside(graph)
    for tensor in graph.initializer:
        if tensor.name in elsewhere:
            continue
        roles = {_role(node, index) for node, index in uses[tensor.name]}
        if not roles:
            dropped.add(tensor.name)
        values = numpy_helper.to_array(tensor)
        if len(roles) != 1 or values.nbytes < LEAST_BYTES:
            continue
        key = (*roles, tensor.data_type, values.shape, hashlib.sha256(values.tobytes()).digest())
        first = kept.setdefault(key, tensor.name)
        if first != tensor.name:
            for node, index in uses[tensor.name]:
                node.input[index] = first
            dropped.add(tensor.name)
    if dropped:
        left = [tensor for tensor in graph.initializer if tensor.name not in dropped]
        del graph.initializer[:]
        graph.initializer.extend(left)
        inputs = [value for value in graph.input if value.name not in dropped]
        del graph.input[:]
        graph.input.extend(inputs)
    return len(dropped)


def _uses(graph: onnx.GraphProto) -> Uses:
    uses: Uses = defaultdict(list)
    for node in graph.node:
        for index, name in enumerate(node.input):
            uses[name].append((node, index))
    return uses


def _role(node: onnx.NodeProto, index: int) -> tuple[str, str, int, bool]:
    """How a node uses an input: weights of one role have their channels along one axis."""
    turned = node.op_type == "Gemm" and any(one.name == "transB" and one.i for one in node.attribute)
    return node.op_type, node.domain, index, turned


def _weighs(node: onnx.NodeProto, index: int) -> bool:
    """Whether an input gets the scales of a weight, or of a bias, which are those of input and weight multiplied."""
    return node.op_type == "MatMul" or (index > 0 and node.op_type in (*BIASED, *NORMALIZED))
