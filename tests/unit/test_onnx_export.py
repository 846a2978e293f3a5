"""torch to ONNX: calling conventions, names, dynamic axes, and the check against torch."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from exporter.artifacts import TensorSpec
from exporter.errors import ExporterError, InputError, ModelError, StageError
from exporter.onnx_export import (
    check_eval,
    compare_with_torch,
    export_onnx,
    export_opset,
    mismatch_hint,
    normalise_onnx,
    onnx_session,
    opset_for_runtime,
    prepare_module,
    torch_session,
)
from exporter.onnx_export.compare import _open as open_float
from exporter.onnx_export.prepare import flatten

RNG = np.random.default_rng(0)
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 4))


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def export(module, inputs, example, path: Path, *, names=(), opset: int = 18, ir_version: int = 8):
    prepared = prepare_module(module, inputs, names)
    signature = export_onnx(
        prepared, example=example, inputs=inputs, opset=opset, ir_version=ir_version, path=path / "model.onnx"
    )
    return prepared, signature, path / "model.onnx"


class TwoInputs(nn.Module):
    """Two inputs, a dict with a nested tuple, a None and an input that is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, image, scale):
        scores = self.linear(image) * scale
        return {"scores": scores, "parts": (scores[:, :1], None, scores.mean(1)), "same": scores}


class Text(nn.Module):
    """A small transformer with a position table, so that the sequence is bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.register_buffer("positions", torch.randn(16, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        hidden = self.layer(hidden, src_key_padding_mask=attention_mask == 0)
        return hidden.mean(1), hidden


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        return self.lstm(x)


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    inputs = (
        TensorSpec(name="my scale", dtype="float32", shape=("batch", 1)),
        TensorSpec(name="image", dtype="float32", shape=("batch", 4)),
    )

    class Swapped(TwoInputs):
        def forward(self, scale, image):
            return super().forward(image, scale)

    example = {"my scale": floats(2, 1), "image": floats(2, 4)}
    return (*export(Swapped().eval(), inputs, example, tmp_path_factory.mktemp("two")), example)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    shape = ("batch", "sequence")
    inputs = (
        TensorSpec(name="attention_mask", dtype="int64", shape=shape),
        TensorSpec(name="input_ids", dtype="int64", shape=shape),
    )
    example = {"attention_mask": np.ones((2, 6), np.int64), "input_ids": RNG.integers(0, 50, (2, 6))}
    return (*export(Text().eval(), inputs, example, tmp_path_factory.mktemp("text")), example)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    example = {"image": floats(2, 4)}
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return (*export(module, (IMAGE,), example, tmp_path_factory.mktemp("linear"), names=("logits",)), example)


def test_inputs_given_in_order_keep_the_users_names_and_outputs_are_named_by_their_keys(two_inputs):
    _, signature, _, _ = two_inputs
    assert [spec.name for spec in signature.inputs] == ["my scale", "image"]
    assert [spec.name for spec in signature.outputs] == ["scores", "parts.0", "parts.2", "same"]
    assert [spec.shape for spec in signature.outputs] == [("batch", 3), ("batch", 1), ("batch",), ("batch", 3)]


def test_exported_file_equals_torch_at_two_batch_sizes(two_inputs):
    prepared, _, path, example = two_inputs
    second = {"my scale": floats(5, 1), "image": floats(5, 4)}
    error = compare_with_torch(torch_session(prepared), path, [example, second], 1e-4)
    assert 0 <= error < 1e-5


def test_inputs_named_like_parameters_are_passed_by_name_with_shared_dynamic_axes(text):
    prepared, signature, path, example = text
    assert [spec.shape for spec in signature.inputs] == [("batch", "sequence")] * 2
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1"]
    assert signature.outputs[1].shape == ("batch", "sequence", 8)
    other = {"attention_mask": np.ones((3, 11), np.int64), "input_ids": RNG.integers(0, 50, (3, 11))}
    other["attention_mask"][:, 7:] = 0
    assert compare_with_torch(torch_session(prepared), path, [example, other], 1e-3) < 1e-3


def test_lstm_exports_with_a_dynamic_batch_and_its_state_as_outputs(tmp_path):
    inputs = (TensorSpec(name="anything", dtype="float32", shape=("batch", 3, 4)),)
    example = {"anything": floats(2, 3, 4)}
    prepared, signature, path = export(Recurrent().eval(), inputs, example, tmp_path)
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1.0", "output_1.1"]
    assert compare_with_torch(torch_session(prepared), path, [example, {"anything": floats(4, 3, 4)}], 1e-4) < 1e-4


def test_users_output_names_opset_and_ir_version_stand_in_the_file(linear):
    _, signature, path, _ = linear
    model = onnx.load(str(path))
    assert [spec.name for spec in signature.outputs] == ["logits"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8


def test_exported_file_holds_no_paths_of_this_machine_and_is_the_same_each_time(linear, tmp_path):
    prepared, _, path, example = linear
    export_onnx(prepared, example=example, inputs=(IMAGE,), opset=18, ir_version=8, path=tmp_path / "again.onnx")
    data = path.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == data
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data


def test_file_with_other_weights_is_reported_with_numbers(linear):
    _, _, path, example = linear
    other = prepare_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (IMAGE,), ("logits",))
    with pytest.raises(StageError, match=r"differs from torch by .* more than 0\.001") as caught:
        compare_with_torch(torch_session(other), path, [example], 1e-3)
    assert "logits" in str(caught.value)


def test_a_model_with_fused_attention_is_told_how_it_differs(linear):
    prepared, *_ = linear
    assert "set_fastpath_enabled" not in mismatch_hint(prepared)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert "set_fastpath_enabled(False)" in mismatch_hint(prepare_module(layer, (IMAGE,), ()))


def test_torch_program_exports_with_the_users_names(tmp_path):
    batch = torch.export.Dim("batch")
    program = torch.export.export(TwoInputs().eval(), (torch.randn(2, 4), torch.randn(2, 1)),
                                  dynamic_shapes=({0: batch}, {0: batch}))  # fmt: skip
    inputs = (
        TensorSpec(name="scale", dtype="float32", shape=("batch", 1)),
        TensorSpec(name="image", dtype="float32", shape=("batch", 4)),
    )
    example = {"image": floats(2, 4), "scale": floats(2, 1)}
    prepared, signature, path = export(program, inputs, example, tmp_path)
    assert [spec.name for spec in signature.outputs] == ["scores", "parts.0", "parts.2", "same"]
    check_eval(prepared, example)
    other = {"image": floats(3, 4), "scale": floats(3, 1)}
    assert compare_with_torch(torch_session(prepared), path, [example, other], 1e-4) < 1e-4


class ControlFlow(nn.Module):
    def forward(self, image):
        if image.sum() > 0:
            return image + 1
        return image - 1


def test_control_flow_on_data_gives_torchs_words_the_line_and_a_hint(tmp_path):
    with pytest.raises(StageError, match="control flow depends on the data") as caught:
        export(ControlFlow(), (IMAGE,), {"image": floats(2, 4)}, tmp_path)
    error = caught.value
    assert "data-dependent expression" in error.why
    assert "test_onnx_export.py:" in error.where
    assert "torch.cond" in error.hint
    assert len(str(error)) < 1000


class PythonIf(nn.Module):
    def forward(self, image):
        return image * 2 if image.shape[0] == 2 else image + 1


class FixedBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.ones(2, 4))

    def forward(self, image):
        return image + self.held


@pytest.mark.parametrize("module", [PythonIf(), FixedBuffer()], ids=["python if", "buffer"])
def test_specialised_axis_is_named_with_its_input_and_how_to_fix_it(module, tmp_path):
    with pytest.raises(StageError, match="axis 'batch' was specialised to 2") as caught:
        export(module, (IMAGE,), {"image": floats(2, 4)}, tmp_path)
    assert "input 'image', axis 0" in caught.value.where
    assert "[export] batch = 2" in caught.value.hint
    assert "axis0_" not in str(caught.value)


def fixed_file(path: Path, batch: int | str, constant: bool) -> Path:
    """A model whose batch is declared, or silently baked into a Reshape."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Identity", ["image"], ["output"])]
    stored = []
    if constant:
        nodes = [helper.make_node("Reshape", ["image", "shape"], ["output"])]
        stored = [helper.make_tensor("shape", TensorProto.INT64, [2], [2, 4])]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4]) for n in ("image", "output")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize(("batch", "constant"), [(2, False), ("batch", True)], ids=["declared", "silent"])
def test_axis_specialised_in_the_file_is_found_at_the_second_batch_size(batch, constant, tmp_path):
    path = fixed_file(tmp_path / "m.onnx", batch, constant)
    session = torch_session(prepare_module(nn.Identity(), (IMAGE,)))
    batches = [{"image": floats(2, 4)}, {"image": floats(3, 4)}]
    with pytest.raises(StageError, match="axis 'batch' was specialised to 2"):
        compare_with_torch(session, path, batches, 1e-3, (IMAGE,))


class AlwaysDropout(nn.Module):
    def forward(self, image):
        return functional.dropout(image, 0.5)


class StaysInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        return self

    def forward(self, image):
        return self.drop(image)


def test_functional_dropout_is_random_in_eval_mode_and_its_operator_is_named():
    with pytest.raises(ModelError, match="random in eval mode") as caught:
        check_eval(prepare_module(AlwaysDropout(), (IMAGE,)), {"image": floats(8, 4)})
    assert "random numbers with" in caught.value.why
    assert "F.dropout" in caught.value.hint


class Branches(nn.Module):
    def forward(self, image):
        return torch.cond(image.sum() > 0, lambda given: given + 1, lambda given: given - 1, (image,))


def test_control_flow_is_run_twice_like_any_other_model():
    program = torch.export.export(Branches(), (torch.ones(8, 4),))
    fixed = (TensorSpec(name="image", dtype="float32", shape=(8, 4)),)
    check_eval(prepare_module(program, fixed), {"image": floats(8, 4)})


def test_submodules_left_in_training_mode_are_named():
    with pytest.raises(ModelError, match="random in eval mode") as caught:
        check_eval(prepare_module(StaysInTraining(), (IMAGE,)), {"image": floats(8, 4)})
    assert "drop (Dropout)" in caught.value.why


def test_module_in_training_mode_is_switched_to_eval():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    check_eval(prepare_module(module, (IMAGE,)), {"image": floats(8, 4)})
    assert not module.training


@dataclass
class Result:
    scores: torch.Tensor
    hidden: object


Pair = namedtuple("Pair", ["left", "right"])
ONE = torch.zeros(1)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (ONE, ["output"]),
        ([ONE, None, ONE], ["output_0", "output_2"]),
        ({"a": ONE, "b": [ONE, {"c": ONE}]}, ["a", "b.0", "b.1.c"]),
        (Result(ONE, Pair(ONE, (ONE,))), ["scores", "hidden.left", "hidden.right.0"]),
        (Pair(ONE, ONE), ["left", "right"]),
    ],
)
def test_outputs_are_named_by_their_structure(value, names):
    assert [name for name, _ in flatten(value)] == names


@pytest.mark.parametrize("value", [None, 3, {"a": "text"}, (ONE, 1.5)])
def test_outputs_that_are_no_tensors_are_refused(value):
    with pytest.raises(ModelError, match="is no tensor but"):
        list(flatten(value))


def test_names_that_fit_no_parameter_are_listed_beside_those_of_forward():
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in "abc")
    with pytest.raises(ModelError, match="do not fit") as caught:
        prepare_module(TwoInputs(), inputs)
    assert "forward() takes image, scale" in caught.value.why


def test_labels_among_the_inputs_are_sent_to_what_calibration_ignores():
    names = ("image", "scale", "label")
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in names)
    with pytest.raises(ModelError, match="do not fit") as caught:
        prepare_module(TwoInputs(), inputs)
    assert """--set 'calibration.ignore=["label"]'""" in caught.value.hint


def test_missing_required_parameter_is_named():
    with pytest.raises(ModelError, match="not there: scale"):
        prepare_module(TwoInputs(), (IMAGE,))


def test_another_count_of_output_names_is_an_error_that_lists_the_models_own():
    prepared = prepare_module(nn.LSTM(4, 5), (IMAGE,), ("a", "b"))
    with pytest.raises(ModelError, match="names 2 outputs, the model has 3") as caught:
        prepared.names({"image": floats(2, 4)})
    assert "output_1.0" in caught.value.why


def test_output_with_the_name_of_an_input_is_an_error():
    prepared = prepare_module(nn.Identity(), (IMAGE,), ("image",))
    with pytest.raises(ModelError, match="'image' belongs to two"):
        prepared.names({"image": floats(2, 4)})


def test_error_inside_forward_names_the_shapes():
    session = torch_session(prepare_module(nn.Linear(4, 3), (IMAGE,)))
    with pytest.raises(StageError, match="raised RuntimeError") as caught:
        session({"image": floats(2, 5)})
    assert "[2, 5]" in caught.value.where


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.14", (18, 8)), ("1.17.3", (20, 9)), ("1.20", (21, 10)), ("1.23.0", (23, 11)), ("1.99", (26, 13))],
)
def test_runtime_version_gives_opset_and_ir_version(version, expected):
    assert opset_for_runtime(version) == expected


@pytest.mark.parametrize("version", ["1.13.1", "0.5", "new", "1"])
def test_too_old_or_malformed_runtime_version_is_an_input_error(version):
    with pytest.raises(InputError):
        opset_for_runtime(version)


def test_export_opset_is_torchs_default_or_lower():
    assert [export_opset(maximum) for maximum in (18, 19, 20, 26)] == [18, 19, 20, 20]
    with pytest.raises(ExporterError, match="older than what torch exports"):
        export_opset(17)


def test_nodes_of_one_name_are_told_apart(tmp_path):
    from onnx import helper

    names = ["same", "same", "same_1", "", "", "same"]
    tensors = ["x", *(f"t{index}" for index in range(5)), "y"]
    nodes = [
        helper.make_node("Relu", tensors[index : index + 1], tensors[index + 1 : index + 2], name=name)
        for index, name in enumerate(names)
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "in.onnx")
    normalise_onnx(tmp_path / "in.onnx", tmp_path / "model.onnx")
    found = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert found == ["same", "same_2", "same_1", "", "", "same_3"]
    assert onnx_session(tmp_path / "model.onnx")({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1]


def test_a_model_in_bfloat16_is_told_what_to_do(tmp_path):
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, [1, 2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(StageError, match="cannot load") as caught:
        open_float(path)
    assert "`.float()`" in str(caught.value.hint)


def test_users_onnx_file_is_copied_byte_for_byte(linear, tmp_path):
    normalise_onnx(linear[2], tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == linear[2].read_bytes()


def test_external_data_of_a_small_users_file_are_taken_into_one_file(linear, tmp_path):
    prepared, _, path, example = linear
    (tmp_path / "in").mkdir()
    onnx.save(onnx.load(str(path)), str(tmp_path / "in" / "m.onnx"), save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    normalise_onnx(tmp_path / "in" / "m.onnx", tmp_path / "model.onnx")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["model.onnx"]
    assert compare_with_torch(torch_session(prepared), tmp_path / "model.onnx", [example], 1e-4) < 1e-4


def test_batch_of_a_users_file_can_be_fixed(linear, tmp_path):
    from exporter.onnx_export.graph import read_signature

    normalise_onnx(linear[2], tmp_path / "model.onnx", {"batch": 1})
    assert read_signature(tmp_path / "model.onnx").inputs[0].shape == (1, 4)


def test_outputs_of_a_users_file_follow_the_sizes_that_its_inputs_get(tmp_path):
    from onnx import TensorProto, helper

    from exporter.onnx_export.graph import read_signature

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (
        ("x", [None, 3, "high", "high"]), ("y", ["rows", 3, "other", "other"]), ("z", ["some", "more"]),
    )]  # fmt: skip
    nodes = [
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["y"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(tmp_path / "free.onnx"))
    normalise_onnx(tmp_path / "free.onnx", tmp_path / "model.onnx", {"batch": 2, "high": 8})
    found = read_signature(tmp_path / "model.onnx")
    assert found.inputs[0].shape == (2, 3, 8, 8)
    assert [spec.shape for spec in found.outputs] == [(2, 3, 4, 4), (2, 48)]


def test_users_file_with_contradictory_shapes_is_refused(tmp_path):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("a", [2, 3]), ("y", [2, 3]))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["y"])], "g", values[:1], values[1:],
        [helper.make_tensor("w", TensorProto.FLOAT, [5, 3], [0.0] * 15)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(tmp_path / "bad.onnx"))
    with pytest.raises(ModelError, match="contradict"):
        normalise_onnx(tmp_path / "bad.onnx", tmp_path / "model.onnx")
