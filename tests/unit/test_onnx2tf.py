"""From ONNX to .tflite: what onnx2tf is given, what its failures mean, and the comparison of its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from packaging.requirements import Requirement

from exporter.artifacts import Signature, TensorSpec
from exporter.errors import StageError
from exporter.onnx_export import onnx_session
from exporter.target_api import TensorForm
from targets import _litert, _onnx2tf
from targets._float_check import check
from targets._litert_jobs import Failure
from targets._onnx_edges import write_settled

INT32 = {"int64": "int32"}
IMAGE = TensorSpec(name="image:0", dtype="float32", shape=(1, 3, 4, 6))
IDS = TensorSpec(name="in/ids", dtype="int64", shape=(1, 5))
MASK = TensorSpec(name="out.mask", dtype="float32", shape=(1, 3, 4, 6))
TWICE = TensorSpec(name="twice", dtype="int64", shape=(1, 5))
SIGNATURE = Signature(inputs=(IMAGE, IDS), outputs=(MASK, TWICE))


def value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = TensorProto.FLOAT if spec.dtype == "float32" else TensorProto.INT64
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Names that TensorFlow does not take, an image in and out, 64-bit integers, and a Gelu in steps."""
    nodes = [
        helper.make_node("Div", ["image:0", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["half", "c"], ["d"]),
        helper.make_node("Mul", ["image:0", "d"], ["bent"]),
        helper.make_node("Relu", ["bent"], ["out.mask"]),
        helper.make_node("Add", ["in/ids", "in/ids"], ["twice"]),
    ]
    constants = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    graph = helper.make_graph(
        nodes, "g", [value(IMAGE), value(IDS)], [value(MASK), value(TWICE)],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [number]) for name, number in constants.items()],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("nhwc", [False, True])
def test_a_settled_file_computes_the_same(model: Path, tmp_path: Path, nhwc: bool) -> None:
    form = TensorForm(types=INT32, channels_last=nhwc)
    write_settled(model, SIGNATURE, form, tmp_path / "settled.onnx")
    random = np.random.default_rng(0)
    image = random.normal(size=(1, 3, 4, 6)).astype(np.float32)
    ids = random.integers(0, 100, (1, 5))
    expected = onnx_session(model)({"image:0": image, "in/ids": ids})
    got = onnx_session(tmp_path / "settled.onnx")(
        {"input_0": image.transpose(0, 2, 3, 1) if nhwc else image, "input_1": ids.astype(np.int32)}
    )
    assert list(got) == ["output_0", "output_1"]
    np.testing.assert_allclose(got["output_0"], expected["out.mask"], atol=1e-6)
    np.testing.assert_array_equal(got["output_1"], expected["twice"])
    assert got["output_1"].dtype == np.int32


def test_a_gelu_is_given_as_one_operator_and_an_image_at_the_edge_through_a_flat_form(
    model: Path, tmp_path: Path
) -> None:
    write_settled(model, SIGNATURE, TensorForm(types=INT32), tmp_path / "settled.onnx")
    nodes = onnx.load(tmp_path / "settled.onnx").graph.node
    assert [(node.op_type, node.domain) for node in nodes if node.op_type in ("Gelu", "Erf")] == [("Gelu", "")]
    assert [node.op_type for node in nodes if "output_0" in "".join(node.output)][-2:] == ["Reshape", "Reshape"]


def test_an_output_whose_shape_depends_on_values_is_refused(model: Path, tmp_path: Path) -> None:
    free = TensorSpec(name="twice", dtype="int64", shape=(1, "found"))
    signature = Signature(inputs=SIGNATURE.inputs, outputs=(MASK, free))
    with pytest.raises(StageError, match="'twice' cannot be told beforehand") as caught:
        write_settled(model, signature, TensorForm(types=INT32), tmp_path / "settled.onnx")
    assert "found" in (caught.value.why or "")


def stand_in(folder: Path, script: str) -> str:
    """What is started in place of the Python that holds onnx2tf."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "what", "why"),
    [
        ("echo 'ERROR: Foo OP is not yet implemented.'; exit 1", "operator Foo has no .tflite form", "Foo OP"),
        (r"printf '\033[31mERROR:\033[0m Bar OP is not yet implemented.\n'; exit 1", "operator Bar", "Bar OP"),
        ("echo 'Custom ops: Erfc, Foo'; exit 1", "operator Erfc, Foo", "Custom ops"),
        ("echo 'ERROR: The trace log is below.'; echo later; exit 1", "cannot be made a .tflite file", "trace log"),
        ("echo 'ValueError: shapes'; exit 3", "cannot be made a .tflite file", "ValueError: shapes"),
        ("kill -9 $$", "ended with signal 9", "want of memory"),
        ("kill -6 $$", "ended with signal 6", "crashed"),
        ("exit 0", "ended without a file", None),
    ],
)
def test_a_failure_is_one_message_in_the_users_terms(
    model: Path, tmp_path: Path, script: str, what: str, why: str | None
) -> None:
    out = tmp_path / "out" / "model.tflite"
    with pytest.raises(StageError, match=what) as caught:
        _onnx2tf.convert(model, SIGNATURE, TensorForm(types=INT32), stand_in(tmp_path, script), out)
    assert why is None or why in (caught.value.why or "")
    assert caught.value.hint
    assert not out.parent.exists()


def answers(**arrays: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values, np.float32) for name, values in arrays.items()}


@pytest.mark.parametrize(
    ("given", "mention"),
    [
        ({"y": [1.0, 2.0, 4.004]}, "0.001 of its largest value"),
        ({"y": [[1.0, 2.0, 4.0]]}, "its shape is [1, 3]"),
        ({"y": [1.0, float("nan"), 4.0]}, "NaN or infinity"),
    ],
)
def test_a_file_that_computes_something_else_is_refused_by_output(
    given: dict[str, list[float]], mention: str
) -> None:
    with pytest.raises(StageError, match="computes something else") as caught:
        checked(answers(y=[1.0, 2.0, 4.0]), answers(**given))
    assert "output 'y'" in (caught.value.where or "")
    assert mention in (caught.value.why or "")


def checked(exact: dict[str, Any], found: dict[str, Any]) -> float:
    limits = {"tolerance": _onnx2tf.TOLERANCE, "where": _onnx2tf.WHERE, "hint": _onnx2tf.HINT}
    return check(lambda _: exact, lambda _: found, [({}, {})], **limits)  # type: ignore[arg-type]


def test_rounding_is_no_difference_and_the_largest_one_is_told() -> None:
    exact, rounded = answers(y=[1.0, 2.0, 4.0]), answers(y=[1.0, 2.0, 4.0001])
    assert 0 < checked(exact, rounded) < _onnx2tf.TOLERANCE


def test_the_environment_is_pinned_to_the_last_package() -> None:
    found = [Requirement(line) for line in _onnx2tf.ENVIRONMENT.requirements]
    assert all([one.operator for one in requirement.specifier] == ["=="] for requirement in found)
    names = [one.name.lower() for one in found if one.marker is None or one.marker.evaluate()]
    assert len(set(names)) == len(names)
    assert {"onnx2tf", "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"} <= set(names)


def test_a_tensor_that_nothing_uses_is_told_in_the_users_terms() -> None:
    failure = Failure(
        stage="calibrate", kind="ValueError", message="Tensor data is null. Run allocate_tensors() first"
    )
    told = _litert._meaning(failure)
    assert "nothing uses" in told.what
    assert "dynamic-int8" in (told.hint or "")
