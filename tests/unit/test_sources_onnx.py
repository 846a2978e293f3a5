"""Ready ONNX files in: checked, described, and never reading outside their folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ModelError
from exporter.plan_types import ModelPlan
from exporter.sources import check_opset, identify, inspect_onnx
from exporter.sources.external_data import external_tensors

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
RAW = WEIGHT.tobytes()


def model(shape=("batch", 4), out=("batch", 3), *, dtype=TensorProto.FLOAT, extra_inputs=(), opset=18, ir=8):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape), *extra_inputs],
        [helper.make_tensor_value_info("y", dtype, out)],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def save(proto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def external(folder: Path, location="w.bin", *, length=48, data=RAW) -> Path:
    """A model whose weight lies in another file, at a location of the caller's choice."""
    folder.mkdir(exist_ok=True)
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    if data is not None and "/" not in location:
        (folder / location).write_bytes(data)
    return save(proto, folder / "m.onnx")


def refused(path: Path, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        inspect_onnx(path)
    assert caught.value.exit_code == 3
    return caught.value


def test_signature_versions_and_names_are_read(tmp_path):
    facts = inspect_onnx(save(model(("N", 4), ("N", 3)), tmp_path / "m.onnx"))
    assert [str(spec) for spec in facts.signature.inputs] == ["x: float32[N, 4]"]
    assert [str(spec) for spec in facts.signature.outputs] == ["y: float32[N, 3]"]
    assert (facts.opset, facts.ir_version, dict(facts.domains)) == (18, 8, {"": 18})


def test_nameless_axes_get_names(tmp_path):
    proto = model((None, None, 4), (None, None, 3))
    facts = inspect_onnx(save(proto, tmp_path / "m.onnx"))
    assert facts.signature.inputs[0].shape == ("batch", "x_axis1", 4)
    assert facts.signature.outputs[0].shape == ("y_axis0", "y_axis1", 3)


def test_shape_that_the_file_leaves_open_is_taken_from_its_operators(tmp_path):
    proto = model(("N", 4))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert inspect_onnx(save(proto, tmp_path / "m.onnx")).signature.outputs[0].shape == ("N", 3)


def test_initializer_that_is_listed_as_an_input_is_none(tmp_path):
    proto = model(extra_inputs=[helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])])
    assert [spec.name for spec in inspect_onnx(save(proto, tmp_path / "m.onnx")).signature.inputs] == ["x"]


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.STRING, "string")])
def test_element_type_that_is_not_supported_is_named(tmp_path, dtype, name):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", dtype, [1])], [helper.make_tensor_value_info("y", dtype, [1])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert "input 'x'" in refused(save(proto, tmp_path / "m.onnx"), f"element type {name}").where


def test_input_that_is_no_tensor_is_refused(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
    assert refused(save(model(extra_inputs=[sequence]), tmp_path / "m.onnx"), "no tensor but a sequence")


def test_input_without_axes_is_refused(tmp_path):
    proto = model()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    refused(save(proto, tmp_path / "m.onnx"), "how many axes")


def test_model_that_breaks_the_rules_gives_the_checkers_words(tmp_path):
    proto = model()
    proto.graph.node[0].input[1] = "not there"
    error = refused(save(proto, tmp_path / "m.onnx"), "not a valid ONNX model")
    assert "not there" in error.why
    assert len(error.why) <= 300


def test_corrupt_empty_and_missing_files_are_errors(tmp_path):
    whole = model().SerializeToString()
    for name, data in (("empty", b""), ("text", b"this is no model"), ("cut", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        refused(path, "not an ONNX model|not a valid ONNX model")
    refused(tmp_path / "none.onnx", "does not exist")


def test_external_data_beside_the_model_are_accepted_and_part_of_the_digest(tmp_path):
    path = external(tmp_path / "m")
    assert inspect_onnx(path).signature.inputs[0].name == "x"
    source = identify(ModelPlan(source=str(path)))
    assert source.kind == "onnx"
    assert [file.name for file in source.files] == ["m.onnx", "w.bin"]
    (path.parent / "w.bin").write_bytes(bytes(48))
    assert identify(ModelPlan(source=str(path))).digest != source.digest


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "..\\w.bin", "C:\\w.bin", "\\\\host\\w.bin", "", "x\0y"]
)
def test_external_data_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "m", location, data=None)
    error = refused(path, "outside its folder")
    assert "tensor 'w'" in error.where
    with pytest.raises(ModelError, match="outside its folder"):
        identify(ModelPlan(source=str(path)))


def test_external_data_behind_a_link_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "m", data=None)
    (tmp_path / "m" / "w.bin").symlink_to(tmp_path / "secret")
    assert "symbolic link" in refused(path, "outside its folder").why


def test_external_data_that_are_missing_or_too_short_are_refused(tmp_path):
    refused(external(tmp_path / "a", data=None), "does not exist")
    error = refused(external(tmp_path / "b", data=b"short"), "too short")
    assert "48" in error.why


def test_external_data_of_nested_graphs_are_found(tmp_path):
    proto = model()
    inner = helper.make_graph([], "inner", [], [])
    tensor = inner.initializer.add(name="deep", data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../deep.bin")
    proto.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    found = external_tensors(save(proto, tmp_path / "m.onnx"))
    assert [(entry.name, entry.location) for entry in found] == [("deep", "../deep.bin")]


def test_identifying_an_onnx_file_imports_neither_torch_nor_onnx(tmp_path):
    path = external(tmp_path / "m")
    code = (
        "import sys\nfrom exporter.sources import identify\nfrom exporter.plan_types import ModelPlan\n"
        f"assert identify(ModelPlan(source={str(path)!r})).kind == 'onnx'\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_model_newer_than_the_runtime_names_both_numbers(tmp_path):
    facts = inspect_onnx(save(model(opset=21, ir=10), tmp_path / "m.onnx"))
    check_opset(facts, 21, 10, "onnxruntime 1.18")
    with pytest.raises(ModelError, match=r"newer than onnxruntime 1\.16") as caught:
        check_opset(facts, 19, 9, "onnxruntime 1.16")
    assert "opset 21" in caught.value.why
    assert "up to 19" in caught.value.why
    assert "IR version 10" in caught.value.why
    assert "min_runtime" in caught.value.hint


@given(st.binary(max_size=200))
def test_any_bytes_give_tensors_or_a_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(data)
    try:
        assert isinstance(external_tensors(path), tuple)
    except ModelError as error:
        assert "not an ONNX model" in error.what  # noqa: PT017


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_changed_byte_never_lets_data_lie_outside(tmp_path_factory, position, value):
    folder = tmp_path_factory.getbasetemp() / "flip"
    path = external(folder)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        files = identify(ModelPlan(source=str(path))).files
    except ModelError:
        return
    assert all(file.resolve().is_relative_to(folder.resolve()) for file in files)
