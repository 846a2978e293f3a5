"""ONNX graphs of a few nodes with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32


def net(nodes: list[Any], weights: dict[str, Any], width: int = WIDTH) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 12, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(seed: int, *shape: int) -> Any:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def attention() -> Any:
    """One head: products with constant weights, and two of computed values."""
    nodes = [
        *[helper.make_node("MatMul", ["x", name], [name.lower()], name=name) for name in ("Q", "K", "V")],
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["m"], name="mix"),
        helper.make_node("MatMul", ["m", "O"], ["y"], name="out"),
    ]
    return net(nodes, {name: weight(index, WIDTH, WIDTH) for index, name in enumerate("QKVO")})
