"""Models that onnxruntime's quantizer makes something else of, or fails on: int8 answers like float all the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import Coverage, QuantScheme
from exporter.quantize import (
    PREPARED,
    calibrate,
    decibels,
    idle_names,
    lint,
    node_damage,
    prepare_float,
    quantize_calibrated,
    quantize_dynamic,
    quantize_static,
)

WIDTH = 16
SCHEME = QuantScheme(reduce_range=True)  # Seven-bit weights, whose sums saturate on no CPU.
Arrays = dict[str, NDArray[Any]]


def values(seed: int, *shape: int, spread: float = 0.0) -> NDArray[Any]:
    """Normal values; `spread` makes rows of very different ranges."""
    rng = np.random.default_rng(seed)
    rows = np.exp(spread * rng.normal(size=(shape[0], *[1] * (len(shape) - 1)))) if spread else 1.0
    return np.asarray(rng.normal(size=shape) * rows, np.float32)


def net(
    nodes: list[Any],
    weights: Mapping[str, Any],
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    batch: str | int = "batch",
    sample: tuple[int, ...] = (WIDTH,),
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *sample]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(path: Path, feed: Arrays, *, fused: bool) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fused else "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, feed)]


def compared(folder: Path, model: Any, scheme: QuantScheme = SCHEME) -> tuple[float, Coverage]:
    """Worst SQNR of any output, by the int8 kernels and by what ONNX says of the file, and the coverage."""
    onnx.save(model, folder / "float.onnx")
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    shapes = {name: [dim.dim_value or 32 for dim in shape] for name, shape in dims.items()}
    feed = {name: values(index, *shape) for index, (name, shape) in enumerate(shapes.items())}
    (folder / "out").mkdir()
    output = folder / "out" / "model.onnx"
    coverage = quantize_static(
        folder / "float.onnx", output, scheme=scheme, batches=lambda: [feed], progress=lambda _: None
    )
    onnx.checker.check_model(onnx.load(output), full_check=True)
    expected = answers(folder / "float.onnx", feed, fused=True)
    found = [
        decibels(float(np.square(one).sum()), float(np.square(one - other).sum()))
        for fused in (True, False)
        for one, other in zip(expected, answers(output, feed, fused=fused), strict=True)
    ]
    return min(np.inf if one is None else one for one in found), coverage


def gemms(bias: NDArray[Any], **attributes: float) -> list[Any]:
    return [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first", **attributes),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v"], ["y"], name="second"),
    ]


@pytest.mark.parametrize("attributes", [{"beta": 0.1}, {"alpha": 0.5, "beta": 2.0}, {"beta": 0.0}])
def test_factors_of_a_gemm_go_into_its_weights_and_bias(tmp_path: Path, attributes: dict[str, float]) -> None:
    bias = 5 * values(2, WIDTH)
    weights = {"w": values(1, WIDTH, WIDTH), "b": bias, "v": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(gemms(bias, **attributes), weights))
    assert decibel > 30
    assert coverage.quantized_ops == {"Gemm": 2}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, WIDTH)])
def test_a_bias_that_is_one_for_all_rows_becomes_one_value_a_column(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bias = np.asarray(np.random.default_rng(2).normal(size=shape), np.float32)
    weights = {"w": values(1, WIDTH, WIDTH), "b": bias, "v": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(gemms(bias), weights))
    assert decibel > 30
    assert coverage.quantized_ops == {"Gemm": 2}


@pytest.mark.parametrize("shape", [(4, 1), (4, WIDTH)])
def test_a_gemm_with_a_bias_of_its_own_for_each_row_stays_float(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = {"w": values(1, WIDTH, WIDTH), "b": values(2, *shape), "v": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(gemms(weights["b"]), weights, batch=4))
    assert decibel > 30
    assert {one.node: one.reason for one in coverage.skipped}["first"] == "its bias is not one value a channel"


def test_a_normalization_over_several_axes_stays_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm", axis=1),
        helper.make_node("MatMul", ["n", "w"], ["y"], name="product"),
    ]
    weights = {"g": np.exp(values(1, 8, WIDTH)), "b": values(2, 8, WIDTH), "w": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(nodes, weights, sample=(8, WIDTH)))
    assert decibel > 28
    assert coverage.quantized_ops == {"MatMul": 1}


def test_constants_that_are_handed_out_are_not_rounded(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["y"])]
    model = net(nodes, {"w": values(1, WIDTH, WIDTH)}, outputs=("y", "w"))
    onnx.save(model, tmp_path / "float.onnx")
    coverage = quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", scheme=QuantScheme(dynamic=True))
    assert coverage.quantized_ops == {"Gemm": 1}
    _, handed = answers(tmp_path / "int8.onnx", {"x": values(0, 32, WIDTH)}, fused=True)
    np.testing.assert_array_equal(handed, values(1, WIDTH, WIDTH))


def test_a_computed_bias_keeps_its_factor(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "x"], ["a"], name="first", beta=3.0),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    assert compared(tmp_path, net(nodes, {"w": values(1, WIDTH, WIDTH)}))[0] > 25


@pytest.mark.parametrize("name", ["w_scale", "w_zero_point", "w_quantized", "x_scale", "w_DequantizeLinear_Output"])
def test_names_that_the_quantizer_would_give_are_free(tmp_path: Path, name: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", name], ["y"], name="scaled"),
    ]
    assert compared(tmp_path, net(nodes, {"w": values(1, WIDTH, WIDTH), name: values(2, WIDTH)}))[0] > 28


def test_inputs_and_outputs_keep_names_that_the_quantizer_would_give(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "x_scale"], ["m"], name="scaled"),
        helper.make_node("Gemm", ["m", "v"], ["y"], name="second"),
        helper.make_node("Relu", ["y"], ["y_scale"], name="relu"),
    ]
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(2, WIDTH, WIDTH)}
    model = net(nodes, weights, inputs=("x", "x_scale"), outputs=("y", "y_scale"))
    decibel, coverage = compared(tmp_path, model)
    assert decibel > 28
    assert coverage.quantized_ops["Gemm"] == 2
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "x_scale", "y", "y_scale"]


def test_an_input_that_is_an_output_too_is_handed_out_as_it_is(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["y"])]
    decibel, coverage = compared(tmp_path, net(nodes, {"w": values(1, WIDTH, WIDTH)}, outputs=("y", "x")))
    assert decibel > 28
    assert coverage.quantized_ops["Gemm"] == 1


def test_an_output_in_front_of_a_clipping_keeps_what_the_clipping_takes_off(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v"], ["y"], name="second"),
    ]
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(2, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(nodes, weights, outputs=("y", "a")))
    assert decibel > 28
    assert coverage.quantized_ops == {"Gemm": 2, "Relu": 1}


@pytest.mark.parametrize("shape", [(1, WIDTH, 8), (6, WIDTH, 8)])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_stacked_matrices_on_the_right_have_kernels_that_run(
    tmp_path: Path, shape: tuple[int, ...], weights: Any
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = net(nodes, {"w": values(1, *shape)}, batch=shape[0], sample=(4, WIDTH))
    scheme = QuantScheme(weights=weights, reduce_range=weights == "int8")
    decibel, coverage = compared(tmp_path, model, scheme)
    assert decibel > 28
    assert coverage.quantized_ops == {"MatMul": 1}


def test_stacked_matrices_on_the_left_have_kernels_that_run(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["w", "x"], ["y"], name="product")]
    model = net(nodes, {"w": values(1, 3, 8, 4)}, batch=3, sample=(4, WIDTH))
    decibel, coverage = compared(tmp_path, model, QuantScheme(weights="uint8"))
    assert decibel > 28
    assert coverage.quantized_ops == {"MatMul": 1}


def in_halves(model: Any) -> Any:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_model_in_halves_becomes_int8_and_keeps_its_inputs_and_outputs(tmp_path: Path, dynamic: bool) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Cast", ["a"], ["f"], name="to-float", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["f"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["h"], name="to-half", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    weights = {"w": values(1, WIDTH, WIDTH), "b": values(2, WIDTH), "v": values(3, WIDTH, WIDTH)}
    onnx.save(in_halves(net(nodes, weights, outputs=("y", "x"))), tmp_path / "float.onnx")
    feed = {"x": values(0, 32, WIDTH).astype(np.float16)}
    if dynamic:
        coverage = quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", scheme=SCHEME)
    else:
        coverage = quantize_static(
            tmp_path / "float.onnx", tmp_path / "int8.onnx", scheme=SCHEME, batches=lambda: [feed], progress=print
        )
    assert coverage.quantized_ops["Gemm"] == coverage.quantized_ops["MatMul"] == 1
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds == dict.fromkeys(("x", "y"), TensorProto.FLOAT16)
    wide = {
        tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type != TensorProto.INT8
    }
    assert not wide, "weights are stored as bytes"
    (wanted, same), (got, handed) = (
        answers(tmp_path / name, feed, fused=True) for name in ("float.onnx", "int8.onnx")
    )
    np.testing.assert_array_equal(same, handed)
    error = np.square(wanted.astype(float) - got).sum()
    assert 10 * np.log10(np.square(wanted.astype(float)).sum() / error) > 28


def test_a_mask_of_halves_is_left_out_of_ranges(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="scores"),
        helper.make_node("Where", ["m", "s", "low"], ["masked"], name="where"),
        helper.make_node("Softmax", ["masked"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="product"),
    ]
    mask = np.arange(WIDTH) % 3 > 0
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(2, WIDTH, WIDTH), "m": mask, "low": np.float32(-65504)}
    onnx.save(in_halves(net(nodes, weights)), tmp_path / "float.onnx")
    feed = {"x": values(0, 32, WIDTH).astype(np.float16)}
    coverage = quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", scheme=SCHEME, batches=lambda: [feed], progress=print
    )
    assert {one.node: one.reason for one in coverage.skipped}["softmax"] == "masked values pass through it"
    wanted, got = (
        answers(tmp_path / name, feed, fused=True)[0].astype(float) for name in ("float.onnx", "int8.onnx")
    )
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 25


def test_a_graph_inside_of_a_node_reads_what_a_clipping_reads(tmp_path: Path) -> None:
    def branch(op: str) -> Any:
        node = helper.make_node(op, ["a"], [f"{op}_y"], name=op)
        return helper.make_graph([node], op, [], [helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v", "b"], ["z"], name="second"),
        helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["k"], name="if", then_branch=branch("Neg"), else_branch=branch("Abs")),
        helper.make_node("Add", ["z", "k"], ["y"], name="add"),
    ]
    weights = {"w": values(1, WIDTH, WIDTH), "b": values(2, WIDTH), "v": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(nodes, weights | {"zero": np.float32(0)}))
    assert decibel > 28
    assert coverage.quantized_ops["Gemm"] == 2


@pytest.mark.parametrize("copied", [False, True])
def test_weights_have_scales_for_each_way_of_reading_them(tmp_path: Path, copied: bool) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v" if copied else "w", "b"], ["y"], name="second", transB=1),
    ]
    tied = values(1, WIDTH, WIDTH, spread=2)
    weights = {"w": tied, "b": values(2, WIDTH)} | ({"v": tied.copy()} if copied else {})
    decibel, coverage = compared(tmp_path, net(nodes, weights))
    assert decibel > 28
    assert coverage.quantized_ops["Gemm"] == 2


def test_a_table_that_is_looked_up_may_be_weights_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["place"], name="place", axis=1, keepdims=0),
        helper.make_node("Gather", ["w", "place"], ["row"], name="look"),
        helper.make_node("Gemm", ["row", "v", "c"], ["l"], name="first"),
        helper.make_node("Add", ["x", "l"], ["a"], name="add"),
        helper.make_node("Gemm", ["a", "w", "b"], ["z"], name="second", transB=1),
        helper.make_node("Relu", ["z"], ["y"], name="relu"),
    ]
    weights = {"w": values(1, 50, WIDTH), "b": values(2, 50)}
    weights |= {"v": values(3, WIDTH, WIDTH), "c": values(4, WIDTH)}
    decibel, coverage = compared(tmp_path, net(nodes, weights))
    assert decibel > 28
    assert coverage.quantized_ops["Gemm"] == 2


def test_convolutions_of_both_directions_may_share_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "w", "b"], ["y"], name="second"),
    ]
    weights = {"w": values(1, 8, 8, 3, 3, spread=2), "b": values(2, 8)}
    assert compared(tmp_path, net(nodes, weights, sample=(8, 10, 10)))[0] > 25


def test_a_transposed_convolution_in_groups_may_have_a_bias(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="first", group=2)]
    weights = {"w": values(1, 8, 4, 3, 3), "b": values(2, 8)}
    decibel, coverage = compared(tmp_path, net(nodes, weights, sample=(8, 10, 10)))
    assert decibel > 28
    assert coverage.quantized_ops == {"ConvTranspose": 1}


def clipped(bounds: list[str]) -> list[Any]:
    return [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first"),
        helper.make_node("Clip", ["a", *bounds], ["c"], name="clip"),
        helper.make_node("Gemm", ["c", "v"], ["y"], name="second"),
    ]


@pytest.mark.parametrize(("low", "high"), [(2.0, 6.0), (-6.0, -2.0), (None, -2.0)])
def test_a_clip_whose_bounds_leave_out_zero_stays(tmp_path: Path, low: float | None, high: float) -> None:
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(3, WIDTH, WIDTH), "high": np.float32(high)}
    weights |= {} if low is None else {"low": np.asarray(low, np.float32)}
    decibel, coverage = compared(tmp_path, net(clipped(["" if low is None else "low", "high"]), weights))
    assert decibel > 28
    assert [(one.node, one.reason) for one in coverage.skipped] == [
        ("clip", "8-bit ranges hold zero, and its bounds do not")
    ]


def test_products_before_and_behind_a_clip_that_stays_have_int8_kernels(tmp_path: Path) -> None:
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(3, WIDTH, WIDTH), "low": np.float32(2)}
    compared(tmp_path, net(clipped(["low"]), weights))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert (ops.count("QGemm"), ops.count("Gemm")) == (2, 0)


def test_what_a_clip_takes_off_is_no_noise_of_the_product_before_it(tmp_path: Path) -> None:
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(3, WIDTH, WIDTH)}
    weights |= {"low": np.float32(2), "high": np.float32(6)}
    onnx.save(net(clipped(["low", "high"]), weights), tmp_path / "float.onnx")
    feed = {"x": values(0, 32, WIDTH)}
    calibrate(
        tmp_path / "float.onnx", tmp_path, histogram=False, symmetric=False, batches=[feed], progress=lambda _: None
    )
    output = tmp_path / "int8.onnx"
    coverage = quantize_calibrated(tmp_path, output, scheme=SCHEME)
    damages = {one.node: one for one in node_damage(tmp_path / PREPARED, output, [feed], causes=True)}
    assert min(damages["first"].sqnr_db or 0, damages["first"].accumulated_db or 0) > 28
    lints = lint(tmp_path, output, scheme=SCHEME, coverage=coverage, samples=32)
    assert [one.subject for one in lints if one.kind in ("unfused", "float-ops")] == ["Clip"]


def test_damage_is_told_of_a_model_that_hands_out_its_input(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["y"])]
    decibel, _ = compared(tmp_path, net(nodes, {"w": values(1, WIDTH, WIDTH)}, outputs=("y", "x")))
    prepared = prepare_float(tmp_path / "float.onnx", tmp_path, equalized=False)
    damages = node_damage(prepared, tmp_path / "out" / "model.onnx", [{"x": values(0, 32, WIDTH)}])
    assert [one.node for one in damages] == ["first"]
    assert damages[0].sqnr_db == pytest.approx(decibel, abs=3)


def test_a_clip_whose_bounds_are_computed_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["low"], name="mean", keepdims=0), *clipped(["low"])]
    weights = {"w": values(1, WIDTH, WIDTH), "v": values(3, WIDTH, WIDTH)}
    decibel, coverage = compared(tmp_path, net(nodes, weights))
    assert decibel > 25
    assert {one.node: one.reason for one in coverage.skipped}["clip"] == "its bounds are computed at run time"


def test_a_clip_that_a_range_can_do_becomes_one(tmp_path: Path) -> None:
    weights = {
        "w": values(1, WIDTH, WIDTH),
        "v": values(3, WIDTH, WIDTH),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    decibel, coverage = compared(tmp_path, net(clipped(["low", "high"]), weights))
    assert decibel > 28
    assert coverage.quantized_ops == {"Gemm": 2}


def test_a_relu_that_gives_nothing_but_zeros_stays_where_no_range_begins_at_zero(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="dead"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v"], ["q"], name="second"),
        helper.make_node("Gemm", ["x", "v"], ["p"], name="third"),
        helper.make_node("Add", ["q", "p"], ["y"], name="add"),
    ]
    weights = {"w": values(1, WIDTH, WIDTH) / 10, "b": values(2, WIDTH) - 20, "v": values(3, WIDTH, WIDTH)}
    scheme = QuantScheme(activations="int8", reduce_range=True)
    decibel, coverage = compared(tmp_path, net(nodes, weights), scheme)
    assert decibel > 28
    assert [one.node for one in coverage.skipped] == ["relu"]


def test_names_that_act_on_nothing_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Erf", ["r"], ["e"], name="erf"),
        helper.make_node("Gemm", ["e", "v"], ["y"], name="last"),
    ]
    onnx.save(net(nodes, {"w": values(1, WIDTH, WIDTH), "v": values(2, WIDTH, WIDTH)}), tmp_path / "float.onnx")
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "model.onnx"
    observers = {"x": "mse", "h": "mse", "r": "mse", "e": "mse"}
    scheme = QuantScheme(
        reduce_range=True, exclude=("last",), observers=observers, per_tensor=("first", "relu", "last")
    )
    feed = {"x": values(0, 32, WIDTH)}
    quantize_static(tmp_path / "float.onnx", file, scheme=scheme, batches=lambda: [feed], progress=lambda _: None)
    assert idle_names(file, scheme) == {"observers": ("h", "e"), "per_tensor": ("relu", "last")}
    wide = QuantScheme(per_channel=False, per_tensor=("first",))
    assert idle_names(file, wide) == {"per_tensor": ("first",)}, "all have one scale already"


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("after", ["", "Relu"])
def test_a_node_left_in_float_between_others_in_int8_is_computed_in_float(
    tmp_path: Path, op: str, after: str
) -> None:
    shape = (WIDTH, WIDTH) if op == "Gemm" else (WIDTH, WIDTH, 1, 1)
    weights = {"a": values(1, *shape), "b": values(2, *shape), "bias": values(3, WIDTH), "c": values(4, *shape)}
    weights["two"] = np.full(1, 2, np.float32)
    # A large weight on a channel that is zero: with one scale for all weights the others would be lost.
    outputs, inputs = (0, 1) if op == "Conv" else (1, 0)
    np.moveaxis(weights["a"], outputs, 0)[0] = 0
    np.moveaxis(weights["b"], inputs, 0)[0] = 1000
    nodes = [
        helper.make_node(op, ["x", "a"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "two"], ["twice"], name="twice"),
        helper.make_node(op, ["twice", "b", "bias"], ["m"], name="middle"),
        *([helper.make_node(after, ["m"], ["r"], name="after")] if after else []),
        helper.make_node(op, ["r" if after else "m", "c"], ["y"], name="last"),
    ]
    scheme = QuantScheme(reduce_range=True, exclude=("middle",))
    model = net(nodes, weights, sample=(WIDTH,) if op == "Gemm" else (WIDTH, 2, 2))
    found, coverage = compared(tmp_path, model, scheme)
    assert (coverage.quantized_ops[op], [one.op for one in coverage.skipped]) == (
        2,
        [op, *([after] if after else [])],
    )
    assert found > 25
    prepared = prepare_float(tmp_path / "float.onnx", tmp_path, equalized=False)
    feed = {"x": values(0, 32, *shape[1:2], *([] if op == "Gemm" else [2, 2]))}
    damages = {one.node: one for one in node_damage(prepared, tmp_path / "out" / "model.onnx", [feed])}
    assert damages.keys() == {"first", "twice", "middle", "last"}
    assert (damages["middle"].sqnr_db or 0) > 35, "what its input and result lose, and nothing of its weights"
