"""Tolerances of int8 files hold what other kernels make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import QuantScheme, TensorSpec
from exporter.onnx_export import onnx_session
from exporter.pipeline.arrays import writing_arrays
from exporter.pipeline.expected import Cases, expected_samples
from exporter.quantize import int8_tolerance, largest_differences, quantize_dynamic, quantize_static
from exporter.quantize.apart import _turn_weights
from exporter.target_api import TensorForm, VariantFile
from targets.arm import TARGET as ARM
from targets.cpu import TARGET as CPU

WIDTH, DEPTH = 16, 3
Arrays = dict[str, NDArray[Any]]


def values(seed: int, *shape: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def mixing() -> onnx.ModelProto:
    """Softmaxes between products: kernels for bytes tabulate them, and what follows makes much of a step."""
    nodes, weights, name = [], {}, "x"
    for level in range(DEPTH):
        weights |= {
            f"w{level}": values(40 + level, WIDTH, WIDTH) / 2,
            f"v{level}": values(45 + level, WIDTH, WIDTH) * 3,
        }
        nodes += [
            helper.make_node("MatMul", [name, f"w{level}"], [f"s{level}"], name=f"score{level}"),
            helper.make_node("Softmax", [f"s{level}"], [f"p{level}"], name=f"softmax{level}"),
            helper.make_node("MatMul", [f"p{level}", f"v{level}"], [f"y{level}"], name=f"mix{level}"),
        ]
        name = f"y{level}"
    nodes.append(helper.make_node("ArgMax", [name], ["best"], name="best", axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in float and with all 8 bits of weights, which saturate on some CPUs, and inputs."""
    place = tmp_path_factory.mktemp("mixing")
    for name in ("fp32", "int8"):
        (place / name).mkdir()
    onnx.save(mixing(), place / "fp32/model.onnx")
    quantize_static(
        place / "fp32/model.onnx",
        place / "int8/model.onnx",
        scheme=QuantScheme(),
        batches=lambda: [{"x": values(4, 32, WIDTH)}],
        progress=lambda done: None,
    )
    with writing_arrays(place / "cases.npz") as add:
        for index in range(2):
            add(f"{index}/inputs", {"x": values(4 + index, 32, WIDTH)})
    return place


def test_unsigned_weights_are_the_same_weights(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "int8/model.onnx")
    _turn_weights(model)
    assert not [one.name for one in model.graph.initializer if one.data_type == TensorProto.INT8]
    onnx.save(model, tmp_path / "unsigned.onnx")
    feed = {"x": values(4, 8, WIDTH)}
    signed, unsigned = (
        onnx_session(path, simulated=True)(feed) for path in (folder / "int8/model.onnx", tmp_path / "unsigned.onnx")
    )
    for name, wanted in signed.items():
        np.testing.assert_array_equal(unsigned[name], wanted)


@pytest.mark.parametrize(("target", "requires"), [(ARM, ("asimd",)), (CPU, ("avx512_vnni|avx_vnni",))])
def test_a_self_test_allows_for_kernels_that_round_otherwise(
    folder: Path, tmp_path: Path, target: Any, requires: tuple[str, ...]
) -> None:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", WIDTH)),)
    cases = Cases(path=folder / "cases.npz", count=2, inputs=inputs, form=TensorForm())
    variant = VariantFile(
        name="int8",
        main="int8/model.onnx",
        runtime="onnxruntime",
        precision="int8",
        scheme=QuantScheme(),
        requires=requires,
    )
    plain = VariantFile(name="fp32", main="fp32/model.onnx", runtime="onnxruntime", precision="float32")
    tolerances = expected_samples(cases, tmp_path / "samples.npz", target, folder, (plain, variant))
    with np.load(tmp_path / "samples.npz") as samples:
        expected = [{name: samples[f"{case}/expected/int8/{name}"] for name in ("y2", "best")} for case in range(2)]
    model = onnx.load(folder / "int8/model.onnx")
    _turn_weights(model)  # Exact on every CPU.
    onnx.save(model, tmp_path / "unsigned.onnx")
    ways = [onnx_session(folder / "int8/model.onnx", simulated=True), onnx_session(tmp_path / "unsigned.onnx")]
    step = int8_tolerance(folder / "int8/model.onnx", {"y2": np.concatenate([one["y2"].ravel() for one in expected])})
    beyond = 0.0
    for case, wanted in enumerate(expected):
        for way in ways:
            got = way({"x": values(4 + case, 32, WIDTH)})
            for name, values_ in wanted.items():
                error = np.abs(got[name].astype(float) - values_).max()
                assert error <= tolerances["int8"][name].atol
                beyond = max(beyond, error) if name == "y2" else beyond
    assert beyond > 2 * step["y2"].atol, "a step would not have done"
    assert tolerances["fp32"]["y2"].atol < step["y2"].atol, "floats have their own"
    assert tolerances["fp32"]["best"].atol == 0


def test_dynamic_int8_is_held_against_itself_without_optimizations(folder: Path, tmp_path: Path) -> None:
    quantize_dynamic(
        folder / "fp32/model.onnx", tmp_path / "model.onnx", scheme=QuantScheme(dynamic=True, reduce_range=True)
    )
    feed: Arrays = {"x": values(2, 32, WIDTH)}
    answers = [onnx_session(tmp_path / "model.onnx")(feed)]
    moved = [{name: one + 1 for name, one in answers[0].items()}]
    apart = largest_differences(tmp_path / "model.onnx", lambda: [feed], moved, dynamic=True)
    assert apart["y2"] == pytest.approx(1, abs=0.5)
    assert set(apart) == {"y2", "best"}


def test_what_onnxruntime_cannot_run_and_masks_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert largest_differences(tmp_path / "model.onnx", lambda: [{}], [{}], dynamic=False) == {}
    onnx.save(mixing(), tmp_path / "model.onnx")
    feed: Arrays = {"x": values(2, 4, WIDTH)}
    answer = dict(onnx_session(tmp_path / "model.onnx")(feed))
    answer["y2"] = np.where(answer["y2"] > 0, np.float32(-np.inf), answer["y2"])
    apart = largest_differences(tmp_path / "model.onnx", lambda: [feed], [answer], dynamic=False)
    assert apart == {"y2": pytest.approx(0, abs=1e-5), "best": 0.0}
    assert msgspec.json.encode(apart)
