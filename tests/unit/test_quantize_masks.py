"""Attention masks, graphs without names, and graphs in which nothing can be int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.artifacts import QuantScheme
from exporter.errors import InputError, StageError
from exporter.onnx_export import onnx_session
from exporter.onnx_export.compare import _compared
from exporter.quantize import int8_tolerance, quantize_static
from targets._onnxruntime import float_tolerance


def masked_attention(folder: Path, mask: float) -> Path:
    """softmax(x @ k / 2 + mask) @ v, with the mask added where `keep` is zero; no node has a name."""
    random = np.random.default_rng(0)
    weights = {
        "k": random.standard_normal((8, 6), np.float32),
        "v": random.standard_normal((6, 4), np.float32),
        "mask": np.float32(mask),
        "zero": np.float32(0),
        "scale": np.float32(0.5),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "k"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scores"]),
        helper.make_node("Where", ["keep", "zero", "mask"], ["bias"]),
        helper.make_node("Add", ["scores", "bias"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, ["batch", 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    path = folder / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def inputs(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    keep = random.random((count, 6)) > 0.4
    keep[:, 0] = True
    return {"x": random.standard_normal((count, 8), np.float32), "keep": keep}


@pytest.mark.parametrize("mask", [-np.inf, float(np.finfo(np.float32).min), -1e9, -1e4])
def test_what_a_mask_passes_through_stays_float_and_the_rest_is_int8(tmp_path, mask):
    path = masked_attention(tmp_path, mask)
    batch = inputs(64)
    coverage = quantize_static(
        path, tmp_path / "int8.onnx", scheme=QuantScheme(reduce_range=True), batches=lambda: [batch],
        progress=lambda done: None,
    )  # fmt: skip
    wanted, got = (onnx_session(tmp_path / name)(batch)["y"] for name in ("float.onnx", "int8.onnx"))
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - got) ** 2)) > 25
    told = "masked values pass through it" if mask < -1e8 else "a Softmax needs its values told apart more finely"
    left = {skipped.op for skipped in coverage.skipped if skipped.reason.startswith(told)}
    assert {"Add", "Softmax"} <= left
    assert coverage.quantized_ops["MatMul"] == 2


def test_nodes_without_names_can_be_excluded_by_the_name_that_they_get(tmp_path):
    path = masked_attention(tmp_path, -np.inf)
    arguments = {"batches": lambda: [inputs(8)], "progress": lambda done: None}
    with pytest.raises(InputError, match="did you mean 'MatMul_"):
        quantize_static(path, tmp_path / "a.onnx", scheme=QuantScheme(exclude=("MatMul_1",)), **arguments)
    coverage = quantize_static(path, tmp_path / "b.onnx", scheme=QuantScheme(exclude=("MatMul_0",)), **arguments)
    assert coverage.quantized_ops["MatMul"] == 1
    assert [skipped.node for skipped in coverage.skipped if skipped.reason == "left in float by name"] == ["MatMul_0"]


def test_a_graph_without_anything_to_quantize_is_left_as_it_is(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "f.onnx"
    )
    coverage = quantize_static(
        tmp_path / "f.onnx", tmp_path / "q.onnx", scheme=QuantScheme(),
        batches=lambda: [{"x": np.ones((3, 2), np.float32)}], progress=lambda done: None,
    )  # fmt: skip
    assert (coverage.eligible, coverage.quantized) == (0, 0)


def test_a_finite_mask_is_no_scale_for_what_it_leaves(tmp_path):
    masked = np.array([[0.5, -1e9, -0.25]], np.float32)
    wrong = np.array([[0.0, -1e9, 0.0]], np.float32)
    with pytest.raises(StageError, match=r"ONNX differs from torch by 1 of the output's largest value"):
        _compared("y", masked, wrong, 1e-3, {"x": masked}, "")
    assert _compared("y", masked, masked, 1e-3, {"x": masked}, "") == 0.0
    large = np.array([[2e9, 4e9]], np.float32)
    with pytest.raises(StageError, match=r"ONNX differs from torch by 0\.5"):
        _compared("y", large, large / 2, 1e-3, {"x": large}, "")
    model = masked_attention(tmp_path, -1e9)
    for found in (float_tolerance({"y": masked})["y"], int8_tolerance(model, {"y": masked})["y"]):
        assert found.atol < 0.01
        assert 64 < found.rtol * 1e9 < 1e5, "a mask plus a score, rounded to float32"


def test_halves_have_a_largest_value_that_masks_and_are_judged_by_the_others(tmp_path):
    masked = np.array([[0.5, -65504.0, -0.25]], np.float16)
    wide = np.array([[-60000.0, 60000.0]], np.float16)
    model = masked_attention(tmp_path, -1e9)
    for tolerances in (float_tolerance, lambda expected: int8_tolerance(model, expected)):
        assert tolerances({"y": masked})["y"].atol < 0.01
        assert tolerances({"y": masked})["y"].rtol > 0
        assert np.isfinite(tolerances({"y": wide})["y"].atol)
        assert tolerances({"y": wide})["y"].rtol == 0
