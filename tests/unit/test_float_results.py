"""Matrix products whose results nothing in int8 reads write floats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from exporter.artifacts import QuantScheme
from exporter.quantize import quantize_static
from exporter.quantize.float_results import release_results
from exporter.quantize.fusion import fusion_lints, optimised

WIDTH = 16
RANDOM = np.random.default_rng(5)
BOUNDS = {"low": 0.0, "high": 2.0}
X = RANDOM.standard_normal((32, WIDTH), np.float32)


def network(*operators: str, op: str = "MatMul") -> Any:
    """x through the operators, one after the other; `op` is one with weights of its own."""
    nodes, name = [], "x"
    for index, kind in enumerate(operators):
        output = "y" if index == len(operators) - 1 else f"t{index}"
        nodes.append(
            helper.make_node(kind, [name, f"w{index}"] if kind == op else [name], [output], name=f"n{index}")
        )
        name = output
    weights = [
        numpy_helper.from_array(RANDOM.standard_normal((WIDTH, WIDTH), np.float32) / 4, f"w{index}")
        for index, kind in enumerate(operators)
        if kind == op
    ]
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", WIDTH]) for one in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(folder: Path, model: Any, **scheme: Any) -> onnx.ModelProto:
    onnx.save(model, folder / "float.onnx")
    scheme = {"reduce_range": True} | scheme
    quantize_static(
        folder / "float.onnx", folder / "int8.onnx", scheme=QuantScheme(**scheme), batches=lambda: iter([{"x": X}]),
        progress=lambda done: None,
    )  # fmt: skip
    return onnx.load(folder / "int8.onnx")


def answers(path: Path) -> Any:
    return InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def producer(model: onnx.ModelProto, name: str) -> str:
    return next(node.op_type for node in model.graph.node if name in node.output)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("follower", ["Erf", None], ids=["float node", "the user"])
def test_a_result_for_a_float_node_or_the_user_is_float_and_the_product_int8(
    tmp_path: Path, op: str, follower: str | None
) -> None:
    model = quantized(tmp_path, network(*([op, follower] if follower else [op]), op=op))
    onnx.checker.check_model(model, full_check=True)
    product = next(node for node in model.graph.node if node.op_type == op)
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 1, "that of the input alone"
    assert {name for node in model.graph.node for name in node.input}.issuperset(
        tensor.name for tensor in model.graph.initializer
    ), "no scale is left over"
    assert product.output[0] == ("t0" if follower else "y")
    run = Counter(node.op_type for node in optimised(tmp_path / "int8.onnx").graph.node)
    assert run["MatMulIntegerToFloat"] + run["QGemm"] == 1
    assert not [lint for lint in fusion_lints(tmp_path / "int8.onnx", model, signed=False) if lint.kind == "unfused"]


def test_a_float_node_between_two_products_is_no_reason_to_round(tmp_path: Path) -> None:
    model = quantized(tmp_path, network("MatMul", "Erf", "MatMul"))
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 2, "those of the products' inputs"


def test_a_result_that_goes_on_in_int8_is_rounded_once(tmp_path: Path) -> None:
    model = quantized(tmp_path, network("MatMul", "MatMul"))
    assert producer(model, "y") == "MatMul"
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 2


def test_what_computes_in_int8_between_products_is_not_broken_up(tmp_path: Path) -> None:
    model = quantized(tmp_path, network("MatMul", "Relu", "MatMul"))
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] >= 2
    assert not [lint for lint in fusion_lints(tmp_path / "int8.onnx", model, signed=False) if lint.kind == "unfused"]


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_clipping_that_the_rounding_does_is_kept(tmp_path: Path, op: str, activation: str) -> None:
    net = network(op, activation, "Erf", op=op)
    if activation == "Clip":
        net.graph.initializer.extend(
            numpy_helper.from_array(np.float32(value), name) for name, value in BOUNDS.items()
        )
        net.graph.node[1].input.extend(BOUNDS)
    quantized(tmp_path, net)
    wanted, found = (answers(tmp_path / name) for name in ("float.onnx", "int8.onnx"))
    assert found.min() >= -1e-6
    assert np.abs(found - wanted).max() < 0.1


def test_the_answers_are_nearer_to_those_of_the_float_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("MatMul", "Erf", "MatMul")
    quantized(tmp_path, net)
    wanted, released = answers(tmp_path / "float.onnx"), answers(tmp_path / "int8.onnx")
    monkeypatch.setattr("exporter.quantize.static.release_results", lambda model, float_model: [])
    quantized(tmp_path, net)
    rounded = answers(tmp_path / "int8.onnx")
    assert not np.array_equal(rounded, released)
    assert np.square(released - wanted).sum() < np.square(rounded - wanted).sum()


def test_a_graph_with_graphs_inside_is_left_alone(tmp_path: Path) -> None:
    model = quantized(tmp_path, network("MatMul", "MatMul"))
    inner = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["z"], name="inner")],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["which"], ["other"], name="if", then_branch=inner, else_branch=inner)
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    model.graph.node.append(branch)
    before = model.SerializeToString()
    assert release_results(model, onnx.load(tmp_path / "float.onnx")) == []
    assert model.SerializeToString() == before
