"""The same files on a second runtime: judged, tested and measured there, and part of the race."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conformance.material import write_cnn
from onnx import TensorProto, helper, numpy_helper
from small_graphs import WIDTH, attention
from support import Workplace

from exporter.bundle import read_manifest
from targets import cpu

pytestmark = pytest.mark.skipif(
    util.find_spec("openvino") is None, reason="openvino is not installed (`pip install 'edge-exporter[openvino]'`)"
)
BOTH = 'targets.cpu.runtimes=["onnxruntime", "openvino"]'


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    write_cnn(shared_place / "model.onnx")
    shared_place.quadrants()
    return shared_place


@pytest.fixture(scope="module")
def built(place: Workplace) -> tuple[dict[str, Any], Path]:
    data = ("--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y", "--target", "cpu")
    return place.built("model.onnx", *data, "--set", BOTH)


def test_each_file_is_a_variant_on_either_runtime_judged_on_its_own(built):
    target, bundle = built
    variants = {variant["name"]: variant for variant in target["variants"]}
    assert list(variants) == ["fp32", "int8", "fp32-openvino", "int8-openvino"]
    for name in ("fp32", "int8"):
        here, there = variants[name], variants[f"{name}-openvino"]
        assert (here["runtime"], there["runtime"]) == ("onnxruntime", "openvino")
        files = [bundle / "variants" / one / "model.onnx" for one in (name, f"{name}-openvino")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert there["fidelity"]["metric"]["value"] == pytest.approx(here["fidelity"]["metric"]["value"], abs=0.05)


def test_the_profile_measures_all_of_them_and_names_both_runtimes(built):
    target, bundle = built
    profile = target["profile"]
    assert {one["variant"] for one in profile["variants"]} == {"fp32", "int8", "fp32-openvino", "int8-openvino"}
    assert profile["runtime"]["name"] == "onnxruntime"
    assert list(profile["runtime"]["others"]) == ["openvino"]
    assert (bundle / "requirements-openvino.txt").read_text().startswith("openvino>=")
    assert [runtime.name for runtime in read_manifest(bundle).other_runtimes] == ["openvino"]


def test_the_bundle_answers_on_the_other_runtime_and_verifies(place, built):
    _, bundle = built
    verified = place.run("verify", bundle)
    assert verified.code == 0, verified.err
    assert "int8-openvino: passed" in verified.out


@pytest.fixture(scope="module")
def transformer(place: Workplace) -> tuple[str, ...]:
    onnx.save(attention(), place / "attention.onnx")
    draw = np.random.default_rng(0)
    data = [place.npz(f"{name}.npz", x=draw.normal(size=(16, 12, WIDTH)).astype(np.float32)) for name in ("c", "e")]
    return ("attention.onnx", "--calib", str(data[0]), "--eval", str(data[1]), "--target", "cpu", "--set", BOTH)


def test_a_transformer_gets_a_file_without_zero_points_that_openvino_alone_runs(place, transformer):
    target, bundle = place.built(*transformer, "--no-profile")
    variants = {variant["name"]: variant for variant in target["variants"]}
    symmetric = variants["int8-symmetric-openvino"]
    assert (symmetric["runtime"], symmetric["scheme"]["activations"]) == ("openvino", "int8")
    assert "int8-symmetric" not in variants
    assert not any(zero.any() for zero in zero_points(bundle, "int8-symmetric-openvino"))
    assert any(zero.any() for zero in zero_points(bundle, "int8"))
    verified = place.run("verify", bundle)
    assert "int8-symmetric-openvino: passed" in verified.out


def zero_points(bundle: Path, variant: str) -> list[Any]:
    graph = onnx.load(bundle / "variants" / variant / "model.onnx").graph
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [named[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]


def test_what_was_only_offered_is_left_out_where_it_fails_the_gate_and_kept_to_fail_where_asked_for(
    place, transformer
):
    tight = ("--no-profile", "--set", "quantize.budget=0", "--set", "quantize.try_dynamic=false")
    result = place.build(*transformer, *tight, "--set", "gate.min_sqnr_db=90", "--output", "tight")
    assert result.code == 7
    assert "int8-symmetric-openvino is left out: " in result.err
    asked = ("--set", 'targets.cpu.int8=["symmetric"]', "--set", "gate.min_sqnr_db=90", "--output", "tight")
    result = place.build(*transformer, *tight, *asked)
    assert result.code == 7
    assert "left out" not in result.err


def test_a_file_for_openvino_alone_is_refused_without_openvino(place):
    asked = ("--set", 'targets.cpu.int8=["symmetric"]')
    result = place.build("model.onnx", "--calib", "calib.npz", "--target", "cpu", *asked, "--output", "none")
    assert result.code == 3
    assert "which is not among the runtimes" in result.err


def test_outputs_keep_their_names_where_openvino_takes_nodes_away(tmp_path):
    from targets.runner import openvino_runtime

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Identity", ["h"], ["y"]),
        helper.make_node("Identity", ["h"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    session = openvino_runtime.open_session(str(tmp_path / "model.onnx"), 1)
    assert set(session.run({"x": np.ones((2, 4), np.float32)})) == {"y", "z"}
    assert [name for name, _, _ in session.outputs()] == ["y", "z"]


def test_a_session_answers_for_shapes_that_come_later_and_again_for_the_first(tmp_path):
    from targets.runner import openvino_runtime

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in ("b", "a", "total", "most")
    ]
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["less"]),
        helper.make_node("Relu", ["less"], ["total"]),
        helper.make_node("Neg", ["less"], ["most"]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], [ends[3], ends[2]])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    session = openvino_runtime.open_session(str(tmp_path / "model.onnx"), 1)
    draw = np.random.default_rng(0)
    for shape in ((1, 4), (2, 4), (1, 4), (3, 5)):
        a, b = draw.standard_normal((2, *shape)).astype(np.float32)
        found = session.run({"a": a, "b": b})
        np.testing.assert_array_equal(found["total"], np.maximum(a - b, 0))
        np.testing.assert_array_equal(found["most"], b - a)
    assert [(name, shape) for name, _, shape in session.inputs()] == [("b", ["?", "?"]), ("a", ["?", "?"])]


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_sums_of_three_axes_are_right_in_every_sample_of_a_batch(tmp_path, operator, axes):
    from targets.runner import openvino_runtime

    weights = {"scale": np.float32(0.25), "zero": np.uint8(100)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("ReduceSum", ["d", "axes"], ["y"], keepdims=0)
        if operator == "ReduceSum"
        else helper.make_node("ReduceMean", ["d"], ["y"], keepdims=0, axes=axes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array(axes), "axes")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    x = np.random.default_rng(0).integers(-80, 80, (4, 1, 20)).astype(np.float32) / 4
    found = openvino_runtime.open_session(str(tmp_path / "model.onnx"), 1).run({"x": x})["y"]
    expected = x.sum(axes) if operator == "ReduceSum" else x.mean(axes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_the_package_the_build_says_what_brings_it(place, monkeypatch):
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    result = place.build("model.onnx", "--calib", "calib.npz", "--target", "cpu", "--set", BOTH, "--output", "none")
    assert result.code == 4
    assert "pip install 'edge-exporter[openvino]'" in result.err


def test_onnxruntime_stays_what_others_are_compared_with(place):
    only = 'targets.cpu.runtimes=["openvino"]'
    result = place.build("model.onnx", "--calib", "calib.npz", "--target", "cpu", "--set", only, "--output", "none")
    assert result.code == 3
    assert "onnxruntime is what the other runtimes are compared with" in result.err
