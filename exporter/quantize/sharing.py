"""One copy of weights that several nodes of one kind have alike: exporters write tied weights once for each user."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LEAST_BYTES = 1024
"""Biases and scalars stay apart: each is quantized at scales of its own node, and they weigh nothing."""


def share_weights(model: onnx.ModelProto) -> int:
    """Lets nodes of one operator read equal weights from one initializer, and drops the copies.

    Only nodes of one operator, and the same input of theirs, share: another one could want scales along another axis.

    Args:
        model: with its weights in memory; changed in place.

    Returns:
        How many copies were dropped.
    """
    from onnx import numpy_helper

    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            uses[name].append((node, index))
    kept: dict[tuple[object, ...], str] = {}
    dropped = set()
    elsewhere = {value.name for value in model.graph.output} | set(_read_inside(model.graph))
    for tensor in model.graph.initializer:
        roles = {(node.op_type, node.domain, index) for node, index in uses[tensor.name]}
        values = numpy_helper.to_array(tensor)
        if len(roles) != 1 or values.nbytes < LEAST_BYTES or tensor.name in elsewhere:
            continue
        key = (*roles, tensor.data_type, values.shape, hashlib.sha256(values.tobytes()).digest())
        first = kept.setdefault(key, tensor.name)
        if first != tensor.name:
            for node, index in uses[tensor.name]:
                node.input[index] = first
            dropped.add(tensor.name)
    if dropped:
        left = [tensor for tensor in model.graph.initializer if tensor.name not in dropped]
        del model.graph.initializer[:]
        model.graph.initializer.extend(left)
        inputs = [value for value in model.graph.input if value.name not in dropped]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    return len(dropped)


def _read_inside(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that graphs inside of nodes read."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from (name for one in inner.node for name in one.input)
                yield from _read_inside(inner)
