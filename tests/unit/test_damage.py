"""Noise of each int8 node: what the definition says, worst first, independent of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import NodeDamage, QuantScheme
from exporter.errors import StageError
from exporter.quantize import calibrate, node_damage, quantize_calibrated
from exporter.quantize.prepare import PREPARED

Arrays = Mapping[str, NDArray[Any]]


def model_of(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: Arrays, opset: int) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def damage(
    folder: Path, model: Any, batches: Sequence[Arrays], scheme: QuantScheme | None = None, **options: Any
) -> tuple[tuple[NodeDamage, ...], onnx.ModelProto]:
    scheme = scheme or QuantScheme()
    onnx.save(model, folder / "float.onnx")
    calibrated = folder / "calibrated"
    calibrated.mkdir()
    calibrate(
        folder / "float.onnx", calibrated, histogram=False, symmetric=False, equalized=False, batches=batches,
        progress=lambda done: None,
    )  # fmt: skip
    (folder / "int8").mkdir()
    quantize_calibrated(calibrated, folder / "int8" / "model.onnx", scheme=scheme)
    found = node_damage(calibrated / PREPARED, folder / "int8" / "model.onnx", batches, **options)
    return found, onnx.load(folder / "int8" / "model.onnx")


def two_layers(opset: int = 17) -> Any:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="sigmoid"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="second"),
    ]
    weights = {"w": random.normal(size=(6, 5)), "v": random.normal(size=(5, 3))}
    return model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 3]}, weights, opset)


def feeds(*counts: int, seed: int = 1) -> list[Arrays]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(count, 6)).astype(np.float32)} for count in counts]


def decibels(reference: NDArray[Any], noisy: NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(noisy - reference).sum()))


def rounded(values: NDArray[Any], int8: onnx.ModelProto, tensor: str) -> NDArray[Any]:
    """Values through the pair that follows a tensor of the QDQ file."""
    stored = {one.name: numpy_helper.to_array(one) for one in int8.graph.initializer}
    (pair,) = [node for node in int8.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor]
    scale, point = (stored[name].astype(np.float64) for name in pair.input[1:])
    kind = np.iinfo(stored[pair.input[2]].dtype)
    return (np.clip(np.rint(values / scale) + point, kind.min, kind.max) - point) * scale


def weight(int8: onnx.ModelProto, name: str) -> NDArray[Any]:
    stored = {one.name: numpy_helper.to_array(one) for one in int8.graph.initializer}
    (node,) = [node for node in int8.graph.node if node.input and node.input[0] == f"{name}_quantized"]
    return stored[node.input[0]].astype(np.float64) * stored[node.input[1]]


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_local_noise_is_that_of_the_node_on_the_float_models_activations(tmp_path, opset):
    batches = feeds(9, 4)
    found, int8 = damage(tmp_path, two_layers(opset), batches)
    stored = {one.name: numpy_helper.to_array(one) for one in two_layers().graph.initializer}
    x = np.concatenate([batch["x"] for batch in batches]).astype(np.float64)
    a = x @ stored["w"]
    b = 1 / (1 + np.exp(-a))
    y = b @ stored["v"]
    own_first = rounded(rounded(x, int8, "x") @ weight(int8, "w"), int8, "a")
    own_second = rounded(b, int8, "b") @ weight(int8, "v")  # The user reads it: it is not rounded.
    by_node = {one.node: one for one in found}
    assert set(by_node) == {"first", "sigmoid", "second"}
    assert by_node["first"].sqnr_db == pytest.approx(decibels(a, own_first), abs=0.3)
    assert by_node["second"].sqnr_db == pytest.approx(decibels(y, own_second), abs=0.3)
    # Nothing comes before the first node; before the second there is noise that is not its own.
    assert by_node["first"].accumulated_db == pytest.approx(by_node["first"].sqnr_db)
    assert by_node["second"].accumulated_db < by_node["second"].sqnr_db


def test_what_is_told_of_a_node(tmp_path):
    found, int8 = damage(tmp_path, two_layers(), feeds(16), causes=True)
    one = next(one for one in found if one.node == "sigmoid")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    assert (one.op, one.output, one.bits) == ("Sigmoid", "b", 8)
    assert one.range == pytest.approx((0.0, 255 * float(stored["b_scale"])), abs=1e-6)
    assert one.causes.weights == 0
    assert one.causes.inputs + one.causes.result == pytest.approx(1)


def test_sums_do_not_depend_on_the_batches(tmp_path):
    whole, _ = damage(tmp_path, two_layers(), feeds(40))
    x = feeds(40)[0]["x"]
    pieces = [{"x": x[:7]}, {"x": x[7:8]}, {"x": x[8:]}]
    seen: list[int] = []
    parts = node_damage(
        tmp_path / "calibrated" / PREPARED, tmp_path / "int8" / "model.onnx", pieces, progress=seen.append
    )
    assert [one.node for one in parts] == [one.node for one in whole]
    assert [one.sqnr_db for one in parts] == pytest.approx([one.sqnr_db for one in whole], abs=1e-3)
    assert [one.channel_db for one in parts] == pytest.approx([one.channel_db for one in whole], abs=1e-3)
    assert seen == [1, 2, 3]


def test_a_model_that_fits_one_number_of_rows_is_looked_at_with_it(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"], name="rows"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="product"),
    ]
    model = model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 3]}, {"w": np.random.default_rng(0).normal(size=(6, 3))}, 17)
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 6]), "rows"))
    found, _ = damage(tmp_path, model, feeds(4, 4))
    assert {one.node for one in found} >= {"product"}


def test_no_data_is_an_error(tmp_path):
    damage(tmp_path, two_layers(), feeds(4))
    with pytest.raises(StageError, match="no data"):
        node_damage(tmp_path / "calibrated" / PREPARED, tmp_path / "int8" / "model.onnx", [])


# --- broken nodes rank first ---------------------------------------------------------------------------------------


def convolutions(kernels: list[NDArray[Any]], groups: list[int]) -> Any:
    nodes, name = [], "x"
    for index, group in enumerate(groups):
        nodes.append(
            helper.make_node(
                "Conv", [name, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1], group=group
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        name = f"r{index}"
    weights = {f"w{index}": kernel for index, kernel in enumerate(kernels)}
    channels = kernels[-1].shape[0]
    shapes = {"x": ["n", kernels[0].shape[1], 8, 8]}, {name: ["n", channels, 8, 8]}
    return model_of(nodes, *shapes, weights, 17)


def images(count: int = 8, channels: int = 3) -> list[Arrays]:
    return [{"x": np.random.default_rng(3).normal(size=(count, channels, 8, 8)).astype(np.float32)}]


def test_a_node_with_an_outlier_channel_ranks_first(tmp_path):
    random = np.random.default_rng(0)
    kernels = [random.normal(size=(8, 3, 3, 3)), random.normal(size=(8, 8, 3, 3)), random.normal(size=(8, 8, 3, 3))]
    kernels[1][2] *= 1000
    found, _ = damage(tmp_path, convolutions(kernels, [1, 1, 1]), images())
    assert found[0].node in ("conv1", "conv2"), "the one that makes the channel, or the one that reads it"
    assert "conv0" not in [one.node for one in found[:2]]
    made = next(one for one in found if one.node == "conv1")
    assert made.channel_db < 15 < made.sqnr_db, "the large channel hides it from the total"


def test_a_concat_of_coordinates_and_scores_ranks_first(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["boxes"], name="boxes"),
        helper.make_node("MatMul", ["x", "v"], ["logits"], name="logits"),
        helper.make_node("Sigmoid", ["logits"], ["scores"], name="scores"),
        helper.make_node("Concat", ["boxes", "scores"], ["y"], name="concat", axis=1),
    ]
    weights = {"w": 300 * random.normal(size=(6, 40)), "v": random.normal(size=(6, 2))}
    model = model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 42]}, weights, 17)
    found, _ = damage(tmp_path, model, feeds(64))
    assert found[0].node == "concat"
    assert found[0].channel_db < 5 < 30 < found[0].sqnr_db


def test_a_depthwise_convolution_with_one_scale_ranks_first_and_its_weights_are_to_blame(tmp_path):
    random = np.random.default_rng(0)
    # What one channel has in its input it lacks in its weights, as where a BatchNorm was folded.
    spread = np.geomspace(1, 30, 8).reshape(-1, 1, 1, 1)
    kernels = [random.normal(size=(8, 1, 3, 3)) * spread, *random.normal(size=(2, 8, 8, 3, 3))]
    batches = [{"x": (batch["x"] / spread.reshape(1, -1, 1, 1)).astype(np.float32)} for batch in images(channels=8)]
    model = convolutions(kernels, [8, 1, 1])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
    (tmp_path / "channel").mkdir()
    found, _ = damage(tmp_path, model, batches, QuantScheme(per_channel=False), causes=True)
    assert found[0].node == "conv0"
    assert found[0].causes.weights > 0.2
    better, _ = damage(tmp_path / "channel", model, batches, QuantScheme(per_channel=True), causes=True)
    repaired = next(one for one in better if one.node == "conv0")
    assert repaired.causes.weights < 0.5 * found[0].causes.weights
    assert repaired.score > found[0].score + 1


def test_causes_are_told_of_a_node_whose_result_was_clipped_by_the_next_one(tmp_path):
    kernels = [np.random.default_rng(0).normal(size=(8, 3, 3, 3))]
    found, _ = damage(tmp_path, convolutions(kernels, [1]), images(), causes=True)
    assert [one.output for one in found] == ["r0"]
    assert 0.05 < found[0].causes.weights < 0.6
    assert found[0].causes.inputs > 0.05
    assert found[0].causes.result > 0.05
