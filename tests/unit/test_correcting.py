"""Bias correction: channels of int8 layers get the mean that they have in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import QuantScheme
from exporter.errors import StageError
from exporter.onnx_export import onnx_session
from exporter.quantize import PREPARED, calibrate, correct_biases, quantize_calibrated, quantize_static

CHANNELS = 6


def network(kind: str, *, rank: int = 4, bias: bool = True) -> Any:
    """One layer whose inputs are all positive, as behind a ReLU: rounded weights shift the means of its channels."""
    random = np.random.default_rng(2)
    space = (5, 5)[: rank - 2]
    weights = {"b": random.standard_normal(CHANNELS, np.float32)}
    if kind in ("Conv", "ConvTranspose"):
        weights["w"] = random.standard_normal((CHANNELS, CHANNELS, *(3 for _ in space)), np.float32)
        nodes = [helper.make_node(kind, ["x", "w", "b"] if bias else ["x", "w"], ["y"], name="layer")]
        shapes = [["n", CHANNELS, *space], None]
    elif kind == "depthwise":
        weights["w"] = random.standard_normal((CHANNELS, 1, 3, 3), np.float32)
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer", group=CHANNELS)]
        shapes = [["n", CHANNELS, *space], None]
    elif kind == "Gemm":
        weights["w"] = random.standard_normal((CHANNELS, CHANNELS), np.float32)
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=1)]
        shapes = [["n", CHANNELS], None]
    else:
        weights["w"] = random.standard_normal((CHANNELS, CHANNELS), np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="layer")]
        nodes += [helper.make_node("Add", ["m", "b"], ["y"], name="add")]
        shapes = [["n", 7, CHANNELS], None]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("x", "y"), shapes, strict=True)
    ]
    used = [numpy_helper.from_array(value, name) for name, value in weights.items() if bias or name != "b"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], used)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(model: Any, count: int = 96) -> Any:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.abs(np.random.default_rng(3).standard_normal((count, *shape), np.float32))


def means(model: Path, x: Any, axis: int) -> Any:
    values = onnx_session(model, simulated=True)({"x": x})["y"].astype(np.float64)
    return values.mean(axis=tuple(one for one in range(values.ndim) if one != axis % values.ndim))


@pytest.mark.parametrize(
    ("kind", "rank", "axis", "ops"),
    [
        ("Conv", 4, 1, ()),
        ("Conv", 3, 1, ()),
        ("depthwise", 4, 1, ()),
        ("ConvTranspose", 4, 1, ()),
        ("Gemm", 4, 1, ()),
        ("MatMul", 4, -1, ("MatMul",)),
    ],
)
def test_channels_have_nearly_the_means_of_the_float_model(
    tmp_path: Path, kind: str, rank: int, axis: int, ops: tuple[str, ...]
) -> None:
    model = network(kind, rank=rank)
    onnx.save(model, tmp_path / "float.onnx")
    x = data(model)
    errors = {}
    for corrected in (False, True):
        scheme = QuantScheme(reduce_range=True, per_channel=False, ops=ops, correct_biases=corrected)
        path = tmp_path / f"int8-{corrected}.onnx"
        quantize_static(
            tmp_path / "float.onnx", path, scheme=scheme,
            batches=lambda: ({"x": x[start : start + 40]} for start in range(0, len(x), 40)),
            progress=lambda done: None,
        )  # fmt: skip
        onnx.checker.check_model(onnx.load(path), full_check=True)
        errors[corrected] = np.abs(means(path, x, axis) - means(tmp_path / "float.onnx", x, axis)).max()
    # What is left is the rounding of the bias itself, and of the result.
    assert errors[True] < 0.2 * errors[False]


def prepared(folder: Path, model: Any, ops: tuple[str, ...] = ()) -> Any:
    onnx.save(model, folder / "float.onnx")
    x = data(model)
    calibrate(
        folder / "float.onnx", folder, histogram=False, symmetric=False, batches=[{"x": x}],
        progress=lambda done: None,
    )  # fmt: skip
    quantize_calibrated(folder, folder / "int8.onnx", scheme=QuantScheme(reduce_range=True, ops=ops))
    return x


def test_other_batches_give_the_same_biases(tmp_path: Path) -> None:
    files = []
    for step in (96, 13):
        folder = tmp_path / str(step)
        folder.mkdir()
        x = prepared(folder, network("Conv"))
        batches = ({"x": x[start : start + step]} for start in range(0, len(x), step))
        assert correct_biases(folder / PREPARED, folder / "int8.onnx", batches) == 1
        files.append((folder / "int8.onnx").read_bytes())
    assert files[0] == files[1]


def test_a_layer_without_a_bias_is_left_as_it_is(tmp_path: Path) -> None:
    x = prepared(tmp_path, network("Conv", bias=False))
    before = (tmp_path / "int8.onnx").read_bytes()
    assert correct_biases(tmp_path / PREPARED, tmp_path / "int8.onnx", [{"x": x}]) == 0
    assert (tmp_path / "int8.onnx").read_bytes() == before


def test_a_bias_that_others_read_too_is_left_as_it_is(tmp_path: Path) -> None:
    model = network("MatMul")
    model.graph.node.append(helper.make_node("Add", ["y", "b"], ["z"], name="again"))
    model.graph.output[0].name = "z"
    x = prepared(tmp_path, model, ops=("MatMul",))
    assert correct_biases(tmp_path / PREPARED, tmp_path / "int8.onnx", [{"x": x}]) == 0


def test_no_data_is_an_error(tmp_path: Path) -> None:
    prepared(tmp_path, network("Conv"))
    with pytest.raises(StageError, match="no data"):
        correct_biases(tmp_path / PREPARED, tmp_path / "int8.onnx", [])
