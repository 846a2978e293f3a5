"""Static quantization: what becomes int8, with which types, what stays float and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from support import quadrant_onnx, quadrants

from exporter.artifacts import Coverage, QuantScheme
from exporter.errors import InputError, StageError
from exporter.onnx_export import onnx_session
from exporter.quantize import int8_tolerance, quantize_static

SCHEME = QuantScheme()


def make(
    nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], weights: dict[str, Any]
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(
    folder: Path, model: Any, scheme: QuantScheme, feeds: list[dict[str, NDArray[Any]]], seen: list[int] | None = None
) -> tuple[Coverage, onnx.ModelProto]:
    onnx.save(model, folder / "float.onnx")
    (folder / "out").mkdir(exist_ok=True)
    output = folder / "out" / "model.onnx"
    coverage = quantize_static(
        folder / "float.onnx", output, scheme=scheme, batches=lambda: iter(feeds),
        progress=(seen if seen is not None else []).append,
    )  # fmt: skip
    assert sorted(path.name for path in output.parent.iterdir()) == ["model.onnx"], "nothing is left beside it"
    return coverage, onnx.load(output)


def cnn(folder: Path, scheme: QuantScheme = SCHEME) -> tuple[Coverage, onnx.ModelProto]:
    images, _ = quadrants(16, seed=1)
    return quantized(folder, quadrant_onnx(), scheme, [{"image": images[:8]}, {"image": images[8:]}])


def values(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights_of(model: onnx.ModelProto) -> dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]]:
    """Float weight's name -> quantized values, scales, zero points, axis; biases are left out."""
    stored = values(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].itemsize == 1:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            name = node.input[0].removesuffix("_quantized")
            found[name] = (stored[node.input[0]], stored[node.input[1]], stored[node.input[2]], axis)
    return found


def activations_of(model: onnx.ModelProto) -> list[NDArray[Any]]:
    """Zero points of all activations."""
    stored = values(model)
    return [stored[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_the_int8_model_answers_nearly_like_the_float_one_and_is_valid(tmp_path):
    import onnxruntime

    # Seven-bit weights: with eight, CPUs without VNNI saturate sums of u8 times s8, and answers would depend on it.
    coverage, model = cnn(tmp_path, QuantScheme(reduce_range=True))
    onnx.checker.check_model(model, full_check=True)
    images, labels = quadrants(16, seed=1)  # The calibration data: nothing is outside of the ranges.
    answers = []
    for path in (tmp_path / "float.onnx", tmp_path / "out" / "model.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == ["image"]
        assert [value.name for value in session.get_outputs()] == ["scores"]
        answers.append(session.run(None, {"image": images})[0])
    assert answers[1].argmax(-1).tolist() == labels.tolist()
    error = answers[1] - answers[0]
    assert 10 * np.log10((answers[0] ** 2).sum() / (error**2).sum()) > 35
    assert coverage.quantized == coverage.eligible == sum(coverage.quantized_ops.values())
    assert coverage.quantized_ops["Conv"] == coverage.quantized_ops["MatMul"] == 1


def test_progress_counts_the_batches(tmp_path):
    seen: list[int] = []
    images, _ = quadrants(12, seed=1)
    quantized(tmp_path, quadrant_onnx(), SCHEME, [{"image": part} for part in np.split(images, 3)], seen)
    assert seen == [1, 2, 3]


def test_equal_calibration_in_other_batches_gives_the_same_file(tmp_path):
    images, _ = quadrants(16, seed=1)
    files = []
    for name, parts in (("a", 1), ("b", 4)):
        (tmp_path / name).mkdir()
        feeds = [{"image": part} for part in np.split(images, parts)]
        _, model = quantized(tmp_path / name, quadrant_onnx(), SCHEME, feeds)
        files.append(model.SerializeToString())
    assert files[0] == files[1]


# --- types and ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "activations", "weights"),
    [
        ({}, np.uint8, np.int8),
        ({"activations": "int8"}, np.int8, np.int8),
        ({"weights": "uint8"}, np.uint8, np.uint8),
    ],
)
def test_types_are_those_of_the_scheme(tmp_path, scheme, activations, weights):
    _, model = cnn(tmp_path, QuantScheme(**scheme, per_channel="weights" not in scheme))
    assert {point.dtype for point in activations_of(model)} == {np.dtype(activations)}
    assert {stored.dtype for stored, *_ in weights_of(model).values()} == {np.dtype(weights)}


@pytest.mark.parametrize(("activations", "middle"), [("int8", 0), ("uint8", 128)])
def test_symmetric_activations_have_the_middle_as_zero_point(tmp_path, activations, middle):
    _, model = cnn(tmp_path, QuantScheme(activations=activations, symmetric_activations=True))
    assert {int(point) for point in activations_of(model)} == {middle}
    (tmp_path / "b").mkdir()
    _, model = cnn(tmp_path / "b", QuantScheme(activations=activations))
    assert {int(point) for point in activations_of(model)} != {middle}, "images are positive: all the range is used"


def test_weights_are_symmetric_and_fill_their_range(tmp_path):
    _, model = cnn(tmp_path)
    for stored, _, zero_points, _ in weights_of(model).values():
        assert not zero_points.any()
        assert np.abs(stored.astype(int)).max() == 127


def test_a_reduced_range_keeps_weights_within_seven_bits(tmp_path):
    _, model = cnn(tmp_path, QuantScheme(reduce_range=True))
    for stored, *_ in weights_of(model).values():
        assert 60 <= np.abs(stored.astype(int)).max() <= 64


def test_per_channel_scales_follow_the_output_channels_and_per_tensor_has_one(tmp_path):
    _, model = cnn(tmp_path)
    _, scales, _, axis = weights_of(model)["kernel"]
    assert (scales.shape, axis) == ((8,), 0)
    (tmp_path / "b").mkdir()
    _, model = cnn(tmp_path / "b", QuantScheme(per_channel=False))
    assert all(scales.ndim == 0 for _, scales, _, _ in weights_of(model).values())


def test_each_channel_of_a_transposed_convolution_has_the_scale_of_its_own_weights(tmp_path):
    random = np.random.default_rng(0)
    # Outputs' channels, on axis 1, differ a hundredfold: a scale along another axis would lose the small ones.
    kernel = (random.normal(size=(3, 4, 2, 2)) * np.array([1, 10, 100, 1000]).reshape(1, 4, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])]
    model = make(nodes, {"x": ["n", 3, 5, 5]}, {"y": ["n", 4, 10, 10]}, {"w": kernel})
    feeds = [{"x": random.normal(size=(4, 3, 5, 5)).astype(np.float32)}]
    coverage, result = quantized(tmp_path, model, SCHEME, feeds)
    stored, scales, _, axis = weights_of(result)["w"]
    assert coverage.quantized_ops == {"ConvTranspose": 1}
    wanted = np.abs(kernel).max(axis=(0, 2, 3)) / 127
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    restored = stored.astype(np.float32) * scales.reshape(shape if scales.ndim else [])
    error = np.abs(restored - kernel).max(axis=(0, 2, 3))
    assert (error <= 0.51 * wanted).all(), f"scales {scales} along axis {axis}, errors {error}, steps {wanted}"


def test_tied_weights_are_quantized_for_each_of_their_users(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="second"),
    ]
    weight = random.normal(size=(6, 6)).astype(np.float32)
    model = make(nodes, {"x": ["n", 6]}, {"y": ["n", 6]}, {"w": weight})
    coverage, result = quantized(tmp_path, model, SCHEME, [{"x": random.normal(size=(9, 6)).astype(np.float32)}])
    assert coverage.quantized_ops["MatMul"] == 2
    assert "w" not in values(result), "no float copy is left"


# --- coverage ------------------------------------------------------------------------------------------------------


def test_equal_weights_of_nodes_of_one_kind_are_kept_once_and_biases_stay_apart(tmp_path):
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(8, 8, 3, 3)).astype(np.float32)
    scale = draw.normal(size=(8, 8, 8)).astype(np.float32)
    bias = np.zeros(8, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h"], name="first", pads=[1] * 4),
        helper.make_node("Conv", ["h", "w2", "b2"], ["y"], name="second", pads=[1] * 4),
        helper.make_node("Mul", ["y", "w3"], ["z"], name="scale"),
    ]
    model = make(
        nodes,
        {"x": ["batch", 8, 8, 8]},
        {"z": ["batch", 8, 8, 8]},
        {"w1": weights, "w2": weights.copy(), "b1": bias, "b2": bias.copy(), "w3": scale},
    )
    feeds = [{"x": draw.normal(size=(4, 8, 8, 8)).astype(np.float32)}]
    _, found = quantized(tmp_path, model, SCHEME, feeds)
    sizes = [value.nbytes for value in values(found).values() if value.dtype == np.int8 and value.ndim == 4]
    assert sizes == [weights.size]
    want = onnx_session(tmp_path / "float.onnx")(feeds[0])["z"]
    got = onnx_session(tmp_path / "out" / "model.onnx")(feeds[0])["z"]
    assert 10 * np.log10(np.square(want).sum() / np.square(got - want).sum()) > 25


def test_what_has_no_int8_form_is_float_and_the_reason_is_told(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
        helper.make_node("Erf", ["a"], ["b"], name="erf"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="last"),
    ]
    weights = {"w": random.normal(size=(6, 6)).astype(np.float32), "v": random.normal(size=(6, 2)).astype(np.float32)}
    model = make(nodes, {"x": ["n", 6]}, {"y": ["n", 2]}, weights)
    coverage, _ = quantized(tmp_path, model, SCHEME, [{"x": random.normal(size=(9, 6)).astype(np.float32)}])
    (erf,) = [skipped for skipped in coverage.skipped if skipped.op == "Erf"]
    assert erf.node == "erf"
    assert erf.reason == "onnxruntime has no int8 form of this operator"
    assert coverage.quantized_ops == {"MatMul": 2}
    assert (coverage.eligible, coverage.quantized) == (2, 2)


def test_an_excluded_node_is_float_and_says_that_the_plan_did_it(tmp_path):
    coverage, model = cnn(tmp_path, QuantScheme(exclude=("matmul",)))
    (skipped,) = [skipped for skipped in coverage.skipped if skipped.node == "matmul"]
    assert skipped.reason == "left in float by name"
    assert coverage.quantized == coverage.eligible - 1
    assert "head" in values(model)


def test_an_excluded_node_that_does_not_exist_is_answered_with_the_closest_one(tmp_path):
    with pytest.raises(InputError, match="no node is called 'matmu'; did you mean 'matmul'") as caught:
        cnn(tmp_path, QuantScheme(exclude=("matmu", "conv")))
    assert caught.value.where == "quantize.exclude"
    assert "conv" not in caught.value.what


def test_every_node_with_a_float_result_is_counted_once(tmp_path):
    coverage, model = cnn(tmp_path, QuantScheme(exclude=("pool",)))
    ops = Counter(node.op_type for node in model.graph.node)
    own = sum(count for op, count in ops.items() if op not in ("QuantizeLinear", "DequantizeLinear"))
    assert coverage.quantized + len(coverage.skipped) == own


# --- failures ------------------------------------------------------------------------------------------------------


def test_no_calibration_batch_is_an_error_in_the_users_terms(tmp_path):
    with pytest.raises(StageError, match="no calibration data"):
        quantized(tmp_path, quadrant_onnx(), SCHEME, [])


def test_an_error_of_the_data_stays_that_error(tmp_path):
    def broken() -> Iterator[dict[str, NDArray[Any]]]:
        yield {"image": quadrants(2, seed=0)[0]}
        raise InputError("the second batch is bad")

    onnx.save(quadrant_onnx(), tmp_path / "float.onnx")
    with pytest.raises(InputError, match="the second batch is bad"):
        quantize_static(
            tmp_path / "float.onnx", tmp_path / "q.onnx", scheme=SCHEME, batches=broken, progress=lambda done: None
        )


@pytest.mark.parametrize("observer", ["minmax", "entropy", "percentile"])
def test_every_observer_gives_a_model_that_keeps_the_answers(tmp_path, observer):
    import onnxruntime

    cnn(tmp_path, QuantScheme(observer=observer))
    images, labels = quadrants(16, seed=8)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": images})[0].argmax(-1).tolist() == labels.tolist()


# --- tolerances ----------------------------------------------------------------------------------------------------


def test_the_tolerance_of_an_int8_output_is_one_step_of_its_own_scale(tmp_path):
    convolution = helper.make_node("Conv", ["image", "w"], ["map"], name="conv")
    weights = {"w": np.ones((2, 1, 3, 3), np.float32)}
    net = make([convolution], {"image": ["n", 1, 8, 8]}, {"map": ["n", 2, 6, 6]}, weights)
    _, model = quantized(tmp_path, net, SCHEME, [{"image": quadrants(8, seed=1)[0]}])
    (node,) = [node for node in model.graph.node if "map" in node.output]
    assert node.op_type == "DequantizeLinear"
    scale = float(values(model)[node.input[1]])
    expected = {"map": np.zeros(8, np.float32)}
    tolerance = int8_tolerance(tmp_path / "out" / "model.onnx", expected)["map"]
    assert tolerance.quantum == pytest.approx(scale)
    assert scale <= tolerance.atol < 1.1 * scale


def test_an_output_computed_in_float_gets_a_255th_of_its_range_and_integers_none(tmp_path):
    cnn(tmp_path, QuantScheme(exclude=("matmul",)))
    expected = {"scores": np.array([-1.0, 4.1, np.inf], np.float32), "index": np.array([1, 2])}
    tolerances = int8_tolerance(tmp_path / "out" / "model.onnx", expected)
    assert tolerances["scores"].quantum is None
    assert tolerances["scores"].atol == pytest.approx(5.1 / 255, rel=0.02)
    assert tolerances["index"].atol == 0


def test_an_output_that_never_changes_may_be_rounded_all_the_same(tmp_path):
    cnn(tmp_path, QuantScheme(exclude=("matmul",)))
    expected = {"scores": np.full(3, 1000.0, np.float32)}
    tolerance = int8_tolerance(tmp_path / "out" / "model.onnx", expected)["scores"]
    assert tolerance.atol > np.spacing(np.float32(1000))


def test_nodes_named_get_one_scale_for_their_weights(tmp_path):
    _, model = cnn(tmp_path)
    several = {name: scale.size for name, (_, scale, _, _) in weights_of(model).items()}
    conv = next(node.name for node in onnx.load(tmp_path / "float.onnx").graph.node if node.op_type == "Conv")
    _, model = cnn(tmp_path, QuantScheme(per_tensor=(conv,)))
    sizes = {name: scale.size for name, (_, scale, _, _) in weights_of(model).items()}
    assert sum(size == 1 for size in sizes.values()) == 1 + sum(size == 1 for size in several.values())


def test_operators_named_are_quantized_and_no_others(tmp_path):
    coverage, _ = cnn(tmp_path, QuantScheme(ops=("Conv",)))
    assert set(coverage.quantized_ops) == {"Conv"}


def test_a_tensor_named_gets_the_range_of_its_own_observer(tmp_path):
    images, _ = quadrants(16, seed=1)
    images[0, 0, 0, 0] = 50.0  # An outlier, which the average of the samples forgets.
    feeds = [{"image": images}]

    def scale(scheme: QuantScheme) -> float:
        _, model = quantized(tmp_path, quadrant_onnx(), scheme, feeds)
        stored = values(model)
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        assert first.input[0] == "image"
        return float(stored[first.input[1]])

    assert scale(QuantScheme(observers={"image": "moving-average"})) < scale(SCHEME)
    assert scale(QuantScheme(observers={"image": "moving-average"})) == scale(QuantScheme(observer="moving-average"))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_the_range_of_a_softmax_is_what_was_seen_of_it(tmp_path, activations):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="score"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
    ]
    draw = np.random.default_rng(0)
    weights = {"w": draw.normal(size=(8, 64)) / 8, "v": draw.normal(size=(64, 8))}
    net = make(
        nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, {name: one.astype(np.float32) for name, one in weights.items()}
    )
    feeds = [{"x": draw.normal(size=(32, 8)).astype(np.float32)} for _ in range(8)]
    scores = np.concatenate([feed["x"] for feed in feeds]) @ weights["w"]
    largest = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).max()

    def scale(**changes: Any) -> float:
        _, model = quantized(tmp_path, net, QuantScheme(activations=activations, reduce_range=True, **changes), feeds)
        pair = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "p")
        return float(values(model)[pair.input[1]])

    assert largest < 0.5
    assert scale() == pytest.approx(largest / 255, rel=1e-4)
    assert scale(observers={"p": "moving-average"}) < 0.99 * scale()


@pytest.mark.parametrize(
    ("scheme", "where"),
    [
        (QuantScheme(exclude=("con",)), "quantize.exclude"),
        (QuantScheme(per_tensor=("con",)), "quantize.per_tensor"),
        (QuantScheme(ops=("Cnov",)), "quantize.ops"),
        (QuantScheme(observers={"imag": "mse"}), "quantize.observers"),
    ],
)
def test_names_that_the_graph_does_not_have_are_refused(tmp_path, scheme, where):
    with pytest.raises(InputError) as caught:
        cnn(tmp_path, scheme)
    assert caught.value.where == where
    if where in ("quantize.ops", "quantize.observers"):
        assert "did you mean" in caught.value.what


def old_network() -> tuple[Any, list[dict[str, NDArray[Any]]]]:
    """A convolution and a softmax in opset 12, whose softmax flattens, and data for it."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["h"], ["y"], axis=1),
    ]
    weights = {"w": random.normal(size=(3, 2, 3, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
    model = make(nodes, {"x": ["n", 2, 4, 4]}, {"y": ["n", 3, 4, 4]}, weights)
    model.opset_import[0].version, model.ir_version = 12, 7
    return model, [{"x": random.normal(size=(8, 2, 4, 4)).astype(np.float32)}]


def test_a_model_of_an_older_opset_gets_one_scale_a_channel_and_keeps_its_answers(tmp_path):
    model, feeds = old_network()
    coverage, made = quantized(tmp_path, model, QuantScheme(reduce_range=True), feeds)
    assert made.opset_import[0].version == 13
    assert coverage.quantized >= 1
    scales = values(made)["w_scale"]
    assert scales.shape == (3,)
    want, have = (
        InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds[0])[0]
        for one in (model, made)
    )
    np.testing.assert_allclose(have, want, atol=0.1)
    assert onnx.load(tmp_path / "float.onnx") == model


def test_a_model_that_no_newer_opset_can_hold_is_refused_with_what_does_without(tmp_path, monkeypatch):
    def unknown(*arguments: Any) -> Any:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", unknown)
    model, feeds = old_network()
    with pytest.raises(InputError, match="needs ONNX opset 13; the model has 12"):
        quantized(tmp_path, model, SCHEME, feeds)
    coverage, made = quantized(tmp_path, model, QuantScheme(per_channel=False), feeds)
    assert made.opset_import[0].version == 12
    assert coverage.quantized >= 1


def test_a_rescaled_network_is_saved_by_evening_out_its_channels(tmp_path):
    """The same function as an ordinary net, with channels scaled up before the Relu and down after it."""
    draw = np.random.default_rng(0)
    uneven = np.exp(draw.uniform(-6, 6, 16)).astype(np.float32)
    first = draw.normal(size=(16, 3, 3, 3)).astype(np.float32) * uneven[:, None, None, None]
    second = draw.normal(size=(8, 16, 3, 3)).astype(np.float32) / uneven[None, :, None, None]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="second"),
    ]
    model = make(nodes, {"x": [None, 3, 8, 8]}, {"y": [None, 8, 4, 4]}, {"w1": first, "w2": second})
    x = draw.normal(size=(8, 3, 8, 8)).astype(np.float32)
    onnx.save(model, tmp_path / "reference.onnx")
    wanted = onnx_session(tmp_path / "reference.onnx")({"x": x})["y"]

    def noise_db(scheme: QuantScheme) -> float:
        quantized(tmp_path, model, scheme, [{"x": x}])
        got = onnx_session(tmp_path / "out" / "model.onnx", simulated=True)({"x": x})["y"]
        return float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))

    assert noise_db(SCHEME) < 20
    assert noise_db(QuantScheme(equalize=True)) > 30
