"""Findings about an int8 model: each is made where its fault is, and nowhere else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from platform import machine
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from exporter.artifacts import Coverage, Lint, QuantScheme
from exporter.pipeline.linting import lint_text, lints_for
from exporter.quantize import calibrate, lint, quantize_calibrated
from exporter.quantize.biases import clipped_biases
from exporter.quantize.lints_ranges import few_data
from exporter.quantize.observer import Observed

Arrays = Mapping[str, NDArray[Any]]
REDUCED = QuantScheme(reduce_range=True)


def network(nodes: list[Any], weights: Arrays, *, opset: int = 17) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def dense(**weights: Any) -> Any:
    """Gemm, Relu, Gemm; weights `w`, `b`, `v`, `c` may be given."""
    random = np.random.default_rng(0)
    stored = {
        "w": random.normal(size=(6, 8)), "b": random.normal(size=8),
        "v": random.normal(size=(8, 4)), "c": random.normal(size=4),
    } | weights  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="second"),
    ]
    return network(nodes, stored)


def found(
    folder: Path, model: Any, scheme: QuantScheme = REDUCED, *, x: NDArray[Any] | None = None, samples: int = 64
) -> tuple[list[Lint], Coverage]:
    x = np.random.default_rng(1).normal(size=(samples, 6)).astype(np.float32) if x is None else x
    onnx.save(model, folder / "float.onnx")
    (folder / "calibrated").mkdir()
    (folder / "int8").mkdir()
    output = folder / "int8" / "model.onnx"
    calibrate(
        folder / "float.onnx", folder / "calibrated", histogram=scheme.needs_histogram, symmetric=False,
        batches=[{"x": x}], progress=lambda done: None,
    )  # fmt: skip
    coverage = quantize_calibrated(folder / "calibrated", output, scheme=scheme)
    lints = lint(folder / "calibrated", output, scheme=scheme, coverage=coverage, samples=len(x))
    return list(lints), coverage


def outputs(folder: Path, x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Of the float file, then of the int8 one that `found` made beside it."""
    for name in ("float.onnx", "int8/model.onnx"):
        yield InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def of(lints: list[Lint], kind: str) -> list[str]:
    return [one.subject for one in lints if one.kind == kind]


def test_a_sound_model_has_no_findings(tmp_path):
    lints, coverage = found(tmp_path, dense())
    assert coverage.quantized == coverage.eligible
    assert lints == []


def test_eight_bit_weights_can_saturate_and_seven_bits_cannot(tmp_path):
    lints, _ = found(tmp_path, dense(), QuantScheme())
    assert sorted(of(lints, "saturation")) == ["first", "second"]
    assert "reduce_range" in lints[0].action
    assert of(list(lints_for(lints, ["avx512_vnni|avx_vnni"])), "saturation") == [], "those CPUs sum in 32 bits"
    assert of(list(lints_for(lints, ["asimd"])), "saturation") == [], "nor does ARM saturate"
    assert lints_for(lints, ["avx2"]) == tuple(lints)
    (tmp_path / "u8u8").mkdir()
    unsigned, _ = found(tmp_path / "u8u8", dense(), QuantScheme(weights="uint8", per_channel=False))
    assert of(unsigned, "saturation") == []


@pytest.mark.skipif(machine() not in ("x86_64", "AMD64"), reason="ARM fuses signed activations itself")
def test_what_another_kind_of_cpu_fuses_is_not_said_to_run_in_float_there(tmp_path):
    model = dense()
    model.graph.node[1].CopyFrom(helper.make_node("Mul", ["h", "h"], ["r"], name="square"))
    scheme = QuantScheme(activations="int8", symmetric_activations=False)
    here, _ = found(tmp_path, model, scheme)
    assert "square" in of(here, "unfused")
    coverage = Coverage(eligible=3, quantized=3)
    there = lint(
        tmp_path / "calibrated",
        tmp_path / "int8" / "model.onnx",
        scheme=scheme,
        coverage=coverage,
        samples=64,
        arm=True,
    )
    assert of(list(there), "unfused") == []


def test_few_samples_are_too_few_for_any_observer(tmp_path):
    lints, _ = found(tmp_path, dense(), samples=9)
    assert of(lints, "few-data") == ["calibration data"]
    assert "9 samples" in lints[0].text


@pytest.mark.parametrize(("observer", "word"), [("percentile", "100000 values"), ("moving-average", "over 2 ")])
def test_some_observers_need_more(tmp_path, observer, word):
    lints, _ = found(tmp_path, dense(), QuantScheme(reduce_range=True, observer=observer), samples=12)
    assert any(one.kind == "few-data" and word in one.text for one in lints)


def test_a_moving_average_over_many_batches_is_fine(tmp_path):
    model = dense()
    onnx.save(model, tmp_path / "float.onnx")
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    (tmp_path / "calibrated").mkdir()
    (tmp_path / "int8").mkdir()
    calibrate(
        tmp_path / "float.onnx", tmp_path / "calibrated", histogram=False, symmetric=False,
        batches=[{"x": part} for part in np.split(x, 64)], progress=lambda done: None,
    )  # fmt: skip
    scheme = QuantScheme(reduce_range=True, observer="moving-average")
    output = tmp_path / "int8" / "model.onnx"
    coverage = quantize_calibrated(tmp_path / "calibrated", output, scheme=scheme)
    lints = lint(tmp_path / "calibrated", output, scheme=scheme, coverage=coverage, samples=64)
    assert of(list(lints), "few-data") == []


def test_a_moving_average_over_very_many_batches_has_enough_of_them():
    state = Observed()
    for _ in range(8000):
        state.add_extremes(-1.0, 1.0, 2)
    assert state.averages.decay < 1e-300
    assert list(few_data({"x": (state, state)}, "moving-average", 8000)) == []


def test_outliers_are_named_with_their_kurtosis_and_told_whether_the_observer_clips_them(tmp_path):
    x = np.random.default_rng(1).normal(size=(20_000, 6)).astype(np.float32)
    x[77, 3] = 1000
    (tmp_path / "kept").mkdir()
    (tmp_path / "clipped").mkdir()
    kept, _ = found(tmp_path / "kept", dense(), x=x)
    assert of(kept, "outliers")[0] in ("x", "r")
    assert "quantize.observer=" in next(one for one in kept if one.kind == "outliers").action
    clipped, _ = found(tmp_path / "clipped", dense(), QuantScheme(reduce_range=True, observer="mse"), x=x)
    one = next(one for one in clipped if one.kind == "outliers" and one.subject == "x")
    assert "kurtosis" in one.text


def test_normal_activations_have_no_outliers(tmp_path):
    x = np.random.default_rng(1).normal(size=(20_000, 6)).astype(np.float32)
    lints, _ = found(tmp_path, dense(), QuantScheme(reduce_range=True, observer="entropy"), x=x)
    assert of(lints, "outliers") == []


def test_tensors_that_never_change_are_dead_or_constant(tmp_path):
    lints, _ = found(tmp_path, dense(b=np.full(8, -1e3)))
    assert of(lints, "dead") == ["h", "r"]
    assert of(lints, "constant") == []
    (tmp_path / "fed").mkdir()
    fed, _ = found(tmp_path / "fed", dense(), x=np.full((64, 6), 2.5, np.float32))
    assert of(fed, "constant")[0] == "x"
    assert "2.5" in next(one for one in fed if one.subject == "x").text


def test_a_tensor_of_masks_alone_was_never_seen(tmp_path):
    model = dense()
    nodes = [helper.make_node("Add", ["x", "mask"], ["m"], name="add"), *model.graph.node]
    nodes[1].input[0] = "m"
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    lints, coverage = found(tmp_path, network(nodes, {**stored, "mask": np.full(6, -np.inf)}))
    assert "m" in of(lints, "never-seen")
    assert "add" in [skipped.node for skipped in coverage.skipped]
    assert "Add" in of(lints, "float-ops")


def test_masked_values_beside_others_are_told_with_their_count(tmp_path):
    model = dense()
    nodes = [helper.make_node("Add", ["x", "mask"], ["m"], name="add"), *model.graph.node]
    nodes[1].input[0] = "m"
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    mask = np.array([0, 0, 0, 0, 0, -np.inf])
    lints, _ = found(tmp_path, network(nodes, {**stored, "mask": mask, "w": np.abs(stored["w"])}))
    assert next(one for one in lints if one.subject == "m").text.startswith("64 of 384 values")


def test_tensors_whose_range_differs_between_halves_of_the_data_are_named(tmp_path):
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    x[:32] *= 5  # Of one batch the first part is one half.
    lints, _ = found(tmp_path, dense(), x=x)
    assert "x" in of(lints, "unstable")


# --- biases --------------------------------------------------------------------------------------------------------


def huge_bias() -> Any:
    random = np.random.default_rng(0)
    w = random.normal(size=(6, 8))
    w[:, 5] *= 1e-7
    b = random.normal(size=8)
    b[5] = 3.0
    return dense(w=w, b=b)


def test_a_bias_that_int32_cannot_hold_widens_the_scale_of_its_weights(tmp_path):
    lints, coverage = found(tmp_path, huge_bias())
    assert of(lints, "bias-overflow") == ["first"]
    assert "1 channels" in next(one for one in lints if one.kind == "bias-overflow").text
    assert coverage.quantized == coverage.eligible
    assert clipped_biases(onnx.load(tmp_path / "int8" / "model.onnx")) == []


@given(
    small=st.floats(-12, -7), bias=st.floats(0.5, 20).flatmap(lambda size: st.sampled_from((size, -size))),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_unsigned_weights_get_a_wider_scale_too_and_lose_nothing_by_it(small, bias, seed):
    random = np.random.default_rng(seed)
    w, b = random.normal(size=(6, 8)), random.normal(size=8)
    w[:, 5] *= 10**small
    b[5] = bias
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lints, coverage = found(folder, dense(w=w, b=b), QuantScheme(weights="uint8"))
        assert of(lints, "bias-overflow") == ["first"]
        assert coverage.quantized == coverage.eligible
        assert clipped_biases(onnx.load(folder / "int8" / "model.onnx")) == []
        want, have = outputs(folder, np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32))
    # One step of a result that spans what the network gives.
    np.testing.assert_allclose(have, want, atol=0.05 * np.abs(want).max())


def test_a_bias_that_would_be_cut_leaves_its_node_in_float(tmp_path):
    w = np.random.default_rng(0).normal(size=(6, 8)) * 1e-7
    model = dense(w=w, b=np.full(8, 3.0))
    lints, coverage = found(tmp_path, model, QuantScheme(weights="uint8", per_channel=False))
    assert "first" in [skipped.node for skipped in coverage.skipped]
    assert "bias does not fit" in next(skipped.reason for skipped in coverage.skipped if skipped.node == "first")
    assert any("bias does not fit" in one.action for one in lints if one.kind == "float-ops")
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    want, have = outputs(tmp_path, x)
    assert np.abs(want - have).max() < 0.05 * np.abs(want).max()


# --- weights and fusion --------------------------------------------------------------------------------------------


def test_weights_shared_by_an_int8_and_a_float_node_are_named(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="second"),
    ]
    model = network(nodes, {"w": random.normal(size=(6, 6))})
    lints, _ = found(tmp_path, model, QuantScheme(reduce_range=True, exclude=("second",)))
    assert of(lints, "tied-weights") == ["w"]
    (tmp_path / "all").mkdir()
    lints, _ = found(tmp_path / "all", model)
    assert of(lints, "tied-weights") == []


def test_groups_of_a_transposed_convolution_that_share_scales_are_named(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["i"], name="reshape"),
        helper.make_node("ConvTranspose", ["i", "w"], ["y"], name="up", group=2, strides=[2]),
    ]
    model = network(nodes, {"w": random.normal(size=(2, 3, 2))})
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "shape"))
    lints, coverage = found(tmp_path, model)
    assert coverage.quantized_ops["ConvTranspose"] == 1
    assert of(lints, "transposed-axis") == ["up"]
    # onnxruntime has no int8 kernel for it: what is quantized there runs in float.
    assert of(lints, "unfused") == ["up"]


def test_conversions_that_are_left_are_counted(tmp_path):
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    name = "x"
    for index in range(4):
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"m{index}"], name=f"matmul{index}"))
        nodes.append(helper.make_node("Erf", [f"m{index}"], [f"e{index}"], name=f"erf{index}"))
        name = f"e{index}"
    nodes[-1].output[0] = "y"
    lints, _ = found(tmp_path, network(nodes, {f"w{index}": random.normal(size=(6, 6)) for index in range(4)}))
    (conversions,) = [one for one in lints if one.kind == "conversions"]
    assert conversions.text.startswith("4 of "), "one before each product; results stay float"
    (erf,) = [one for one in lints if one.kind == "float-ops"]
    assert (erf.subject, erf.text.split()[0]) == ("Erf", "4")


def test_the_line_for_the_screen_counts_kinds_and_names_the_first(tmp_path):
    lints, _ = found(tmp_path, dense(), QuantScheme(), samples=9)
    text = lint_text(lints)
    assert "2 nodes that can saturate without VNNI (first: " in text
    assert "ranges were measured on 9 samples" in text
    assert lint_text([]) == ""
