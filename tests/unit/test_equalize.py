"""Cross-layer equalization: the function stays, channels even out, and what must not be touched is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import Coverage, QuantScheme
from exporter.onnx_export import onnx_session
from exporter.pipeline.candidates import Candidates
from exporter.pipeline.results import Int8Model
from exporter.quantize.equalize import equalize, paired_layers, uneven_pairs
from exporter.target_api import Int8File


def chain(draw: np.random.Generator, spread: float, *, between: list[str], depthwise: bool, last: str) -> Any:
    """Conv -> between -> Conv (depthwise or not) -> last: a net whose channels were scaled up here and down there."""
    channels = 6
    uneven = np.exp(draw.uniform(-np.log(spread), np.log(spread), channels)) if spread > 1 else np.ones(channels)
    first = draw.normal(size=(channels, 3, 3, 3)) * uneven[:, None, None, None]
    group = channels if depthwise else 1
    second = draw.normal(size=(channels, channels // group, 3, 3)) / (
        uneven[:, None, None, None] if depthwise else uneven[None, :, None, None]
    )
    weights = {
        "w1": first, "b1": draw.normal(size=channels) * uneven, "w2": second, "b2": draw.normal(size=channels),
    }  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["t0"], pads=[1, 1, 1, 1])]
    for index, op in enumerate(between):
        pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [1, 1]} if op.endswith("Pool") else {}
        nodes.append(helper.make_node(op, [f"t{index}"], [f"t{index + 1}"], **pool))
    nodes.append(helper.make_node("Conv", [f"t{len(between)}", "w2", "b2"], ["u"], group=group, pads=[1, 1, 1, 1]))
    if last == "Gemm":
        nodes += [
            helper.make_node("Relu", ["u"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("Gemm", ["f", "w3"], ["y"], transB=1),
        ]
        weights["w3"] = draw.normal(size=(4, channels))
    else:
        nodes.append(helper.make_node(last, ["u"], ["y"]))
    return model(nodes, weights, [None, 3, 8, 8])


def model(nodes: list[Any], weights: dict[str, Any], shape: list[Any]) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(proto: Any, x: np.ndarray, path: Any) -> np.ndarray:
    onnx.save(proto, path)
    return onnx_session(path)({"x": x})["y"]


def weight(proto: Any, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == name)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1.0, 10.0, 1000.0]),
    between=st.lists(st.sampled_from(["Relu", "LeakyRelu", "MaxPool", "AveragePool"]), max_size=2),
    depthwise=st.booleans(),
    last=st.sampled_from(["Gemm", "Relu"]),
)
def test_the_network_computes_what_it_did(tmp_path_factory, seed, spread, between, depthwise, last):
    draw, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("nets")
    proto = chain(draw, spread, between=between, depthwise=depthwise, last=last)
    x = draw.normal(size=(2, 3, 8, 8)).astype(np.float32)
    before = answer(proto, x, folder / "before.onnx")
    assert equalize(proto) == (2 if last == "Gemm" else 1)
    after = answer(proto, x, folder / "after.onnx")
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4 * np.abs(before).max())


def test_channels_of_both_layers_have_like_ranges_afterwards(tmp_path):
    proto = chain(np.random.default_rng(0), 1000.0, between=["Relu"], depthwise=False, last="Relu")
    onnx.save(proto, tmp_path / "before.onnx")
    assert uneven_pairs(tmp_path / "before.onnx") == 1
    equalize(proto)
    onnx.save(proto, tmp_path / "after.onnx")
    above = np.abs(weight(proto, "w1")).max(axis=(1, 2, 3))
    below = np.abs(weight(proto, "w2")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(above, below, rtol=1e-3)
    assert above.max() / above.min() < 2
    assert uneven_pairs(tmp_path / "after.onnx") == 0


@pytest.mark.parametrize("between", ["Sigmoid", "Clip"])
def test_layers_with_something_else_between_them_are_left_alone(between):
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node(between, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    proto = model(
        nodes, {"w1": draw.normal(size=(4, 3, 1, 1)), "w2": draw.normal(size=(4, 4, 1, 1))}, [None, 3, 4, 4]
    )
    assert equalize(proto) == 0


def test_a_result_that_two_layers_read_is_left_alone():
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Conv", ["a", "w2"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    proto = model(
        nodes, {"w1": draw.normal(size=(4, 3, 1, 1)), "w2": draw.normal(size=(4, 4, 1, 1))}, [None, 3, 4, 4]
    )
    assert equalize(proto) == 0


def test_a_weight_that_two_layers_share_is_left_alone():
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    assert equalize(model(nodes, {"w": draw.normal(size=(3, 3, 1, 1))}, [None, 3, 4, 4])) == 0


def test_a_matrix_after_a_convolution_reads_columns_and_not_channels():
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["y"]),
    ]
    proto = model(nodes, {"w1": draw.normal(size=(4, 3, 1, 1)), "w2": draw.normal(size=(4, 5))}, [None, 3, 4, 4])
    assert equalize(proto) == 0


def test_a_channel_that_is_zero_stays_zero():
    proto = chain(np.random.default_rng(1), 10.0, between=["Relu"], depthwise=False, last="Relu")
    values = weight(proto, "w1").copy()
    values[2] = 0
    next(tensor for tensor in proto.graph.initializer if tensor.name == "w1").CopyFrom(
        numpy_helper.from_array(values, "w1")
    )
    equalize(proto)
    assert np.isfinite(weight(proto, "w2")).all()
    assert not weight(proto, "w1")[2].any()


@pytest.mark.parametrize(("between", "told"), [("HardSwish", 1), ("Relu", 0)])
def test_asked_for_in_vain_it_says_so(tmp_path: Path, between: str, told: int) -> None:
    draw = np.random.default_rng(1)
    onnx.save(chain(draw, 1.0, between=[between], depthwise=False, last=between), tmp_path / "prepared.onnx")
    assert bool(paired_layers(tmp_path / "prepared.onnx")) is not bool(told)
    events: list[Any] = []
    job: Any = SimpleNamespace(steps=SimpleNamespace(emit=events.append))
    nothing: Any = None
    plan: Any = SimpleNamespace(quantize=SimpleNamespace(scheme=QuantScheme(equalize=True)))
    candidates = Candidates(job, plan, (), nothing, 1, nothing, nothing)
    file = Int8File(
        name="int8",
        path=tmp_path / "int8.onnx",
        scheme=QuantScheme(equalize=True),
        coverage=Coverage(eligible=2, quantized=2),
    )
    candidates._remark(Int8Model(file=file, content="", wanted=nothing, prepared=tmp_path / "prepared.onnx"))
    assert sum("evened out nothing" in event.text for event in events) == told
