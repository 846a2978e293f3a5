"""Dynamic int8: for which models it is offered, what becomes int8, and how near it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import WIDTH, attention, net, weight
from support import quadrant_onnx

from exporter.artifacts import QuantScheme
from exporter.errors import InputError
from exporter.onnx_export import onnx_session
from exporter.quantize import quantize_dynamic, suits_dynamic

SCHEME = QuantScheme(dynamic=True, reduce_range=True)


def lstm() -> Any:
    hidden = 16
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W", "R"], ["h"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "one"], ["y"], name="squeeze"),
    ]
    weights = {"W": weight(1, 1, 4 * hidden, WIDTH), "R": weight(2, 1, 4 * hidden, hidden), "one": np.array([1])}
    return net(nodes, weights)


def saved(folder: Path, model: Any) -> Path:
    path = folder / "float.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("model", "suits"), [(attention, True), (lstm, True), (quadrant_onnx, False)])
def test_it_is_offered_to_transformers_and_lstms(tmp_path, model, suits):
    assert suits_dynamic(saved(tmp_path, model())) is suits


@pytest.mark.parametrize(("model", "ops"), [(attention, {"MatMul": 4}), (lstm, {"LSTM": 1})])
def test_weights_become_int8_and_answers_stay_near(tmp_path, model, ops):
    path = saved(tmp_path, model())
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "model.onnx"
    coverage = quantize_dynamic(path, output, scheme=SCHEME)
    assert coverage.quantized_ops == ops
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"], "nothing is left beside it"
    x = np.random.default_rng(0).normal(size=(3, 12, WIDTH)).astype(np.float32)
    wanted, got = (onnx_session(file)({"x": x})["y"] for file in (path, output))
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 25
    assert output.stat().st_size < 0.6 * path.stat().st_size


def test_products_of_computed_values_stay_float_and_that_is_said(tmp_path):
    coverage = quantize_dynamic(saved(tmp_path, attention()), tmp_path / "int8.onnx", scheme=SCHEME)
    assert {skipped.node: skipped.reason for skipped in coverage.skipped} == {
        "scores": "none of its inputs is constant",
        "mix": "none of its inputs is constant",
    }


@pytest.mark.parametrize("shape", [(3, WIDTH, WIDTH), (WIDTH,)], ids=["several matrices", "a row"])
def test_weights_that_are_no_matrix_stay_float_and_that_is_said(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "M"], ["m"], name="matrix"),
        helper.make_node("MatMul", ["m", "S"], ["y"], name="stacked"),
    ]
    path, output = (
        saved(tmp_path, net(nodes, {"M": weight(0, WIDTH, WIDTH), "S": weight(1, *shape)})),
        tmp_path / "int8.onnx",
    )
    coverage = quantize_dynamic(path, output, scheme=SCHEME)
    assert coverage.quantized_ops == {"MatMul": 1}
    ((node, reason),) = ((one.node, one.reason) for one in coverage.skipped)
    assert node == "stacked"
    assert reason.startswith("its weights are no matrix")
    x = np.random.default_rng(0).normal(size=(3, 12, WIDTH)).astype(np.float32)
    wanted, got = (onnx_session(file)({"x": x})["y"] for file in (path, output))
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 25


def test_nodes_named_stay_float(tmp_path):
    path = saved(tmp_path, attention())
    coverage = quantize_dynamic(path, tmp_path / "int8.onnx", scheme=QuantScheme(dynamic=True, exclude=("out",)))
    assert coverage.quantized_ops == {"MatMul": 3}
    with pytest.raises(InputError, match="no node is called 'oot'"):
        quantize_dynamic(path, tmp_path / "other.onnx", scheme=QuantScheme(dynamic=True, exclude=("oot",)))


def mixed() -> Any:
    """Two Gemms and a MatMul."""
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"], name="rows"),
        helper.make_node("Gemm", ["r", "U", "b"], ["u"], name="up", transB=1),
        helper.make_node("Gemm", ["u", "D", "b"], ["d"], name="down"),
        helper.make_node("MatMul", ["d", "O"], ["y"], name="out"),
    ]
    weights = {name: weight(index, WIDTH, WIDTH) for index, name in enumerate("UDO")}
    return net(nodes, weights | {"b": weight(4, WIDTH), "rows": np.array([-1, WIDTH])})


@pytest.mark.parametrize(
    ("choice", "quantized", "left"),
    [
        ({"exclude": ("up",)}, {"Gemm": 1, "MatMul": 1}, {"up": "left in float by name"}),
        ({"ops": ("Gemm",)}, {"Gemm": 2}, {"out": "its operator is not among those to quantize"}),
        (
            {"ops": ("MatMul",)},
            {"MatMul": 1},
            dict.fromkeys(("up", "down"), "its operator is not among those to quantize"),
        ),
    ],
)
def test_gemms_are_left_alone_by_name_and_by_operator(
    tmp_path: Path, choice: dict[str, Any], quantized: dict[str, int], left: dict[str, str]
) -> None:
    scheme = QuantScheme(dynamic=True, reduce_range=True, **choice)
    coverage = quantize_dynamic(saved(tmp_path, mixed()), tmp_path / "int8.onnx", scheme=scheme)
    assert coverage.quantized_ops == quantized
    assert {one.node: one.reason for one in coverage.skipped} == left
    products = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == sum(quantized.values()), "what is told is what the file holds"


def test_operators_without_a_dynamic_form_are_refused_instead_of_taking_all(tmp_path: Path) -> None:
    path = saved(tmp_path, mixed())
    with pytest.raises(InputError, match="no dynamic int8 is made of Reshape"):
        quantize_dynamic(path, tmp_path / "int8.onnx", scheme=QuantScheme(dynamic=True, ops=("Reshape",)))


def test_doubles_stay_what_they_are_and_that_is_told(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"w": (WIDTH, WIDTH), "b": (WIDTH,)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", WIDTH])],
        [numpy_helper.from_array(weight(i, *s).astype(np.float64), n) for i, (n, s) in enumerate(shapes.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    coverage = quantize_dynamic(saved(tmp_path, model), tmp_path / "int8.onnx", scheme=SCHEME)
    assert (coverage.quantized, coverage.eligible) == (0, 1)


def test_it_is_not_offered_where_only_other_operators_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, attention())
    assert suits_dynamic(path, ("MatMul",))
    assert not suits_dynamic(path, ("Softmax",))
