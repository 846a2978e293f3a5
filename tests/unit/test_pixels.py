"""Preprocessing inside the graph: bytes in, the same values as preprocessing outside gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporter.artifacts import Preprocessing, Signature, TensorSpec
from exporter.data.preprocess import apply_to_arrays
from exporter.errors import DataError, InputError, StageError
from exporter.onnx_export import onnx_session, write_with_pixels
from exporter.pipeline.forms import form_notes, form_of_data, formed_inputs, formed_signature
from exporter.pipeline.pixels import with_pixels
from exporter.target_api import ConvertRequest, Need, TensorForm
from targets import _mobile_tflite
from targets.mobile import TARGET, MobileOptions

SHAPES = {"CHW": ("batch", 3, 4, 5), "HWC": ("batch", 4, 5, 3), "HW": ("batch", 4, 5)}


def need(**more: Any) -> Need:
    return Need(opset=17, ir_version=8, runtime="onnxruntime 1.19", **more)


def spec_of(steps: Preprocessing) -> TensorSpec:
    return TensorSpec(name="x", dtype="float32", shape=SHAPES[steps.layout])


def form_of(steps: Preprocessing, **more: Any) -> TensorForm:
    return with_pixels("t", need(form=TensorForm(**more)), (spec_of(steps),), {"x": steps}).form


channels = st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3).map(tuple)
one_or_three = st.one_of(st.just(()), st.tuples(st.floats(0.1, 0.9)), channels)


@st.composite
def preprocessing(draw: st.DrawFn) -> Preprocessing:
    layout = draw(st.sampled_from(("CHW", "HWC", "HW")))
    gray = layout == "HW"
    values = st.one_of(st.just(()), st.tuples(st.floats(0.1, 0.9))) if gray else one_or_three
    return Preprocessing(
        data_layout="HW" if gray else "HWC",
        layout=layout,
        channel_order="GRAY" if gray else "RGB",
        scale=draw(st.sampled_from((1 / 255, 1.0, 1 / 127.5))),
        mean=draw(values),
        std=draw(values),
    )


def write_identity(path: Path, spec: TensorSpec) -> None:
    """y = x, as a node does it."""
    shape = list(spec.shape)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@settings(deadline=None, max_examples=40)  # Opening a session is not quick.
@given(steps=preprocessing(), seed=st.integers(0, 9))
def test_files_compute_of_bytes_what_preprocessing_outside_does(
    tmp_path_factory: pytest.TempPathFactory, steps: Preprocessing, seed: int
) -> None:
    spec = spec_of(steps)
    shape = (2, 4, 5) if steps.layout == "HW" else (2, 4, 5, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    outside = apply_to_arrays(pixels, steps)
    form = form_of(steps)
    # Data are read as the model takes them, and given to the files as the bytes that they were.
    given = formed_inputs({"x": outside}, (spec,), form)["x"]
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, pixels)
    folder = tmp_path_factory.mktemp("pixels")
    write_identity(folder / "model.onnx", spec)
    write_with_pixels(folder / "model.onnx", folder / "bytes.onnx", form.pixels)
    onnx.checker.check_model(onnx.load(folder / "bytes.onnx"), full_check=True)
    inside = onnx_session(folder / "bytes.onnx")({"x": pixels})["y"]
    np.testing.assert_allclose(inside, outside, rtol=1e-6, atol=1e-6 * np.abs(outside).max())


def test_the_signature_says_what_the_files_take_and_what_is_left_to_do() -> None:
    steps = Preprocessing(size=(4, 5), mean=(0.5,), std=(0.2, 0.3, 0.4), channel_order="BGR")
    signature = Signature(inputs=(spec_of(steps),), outputs=(), preprocessing={"x": steps})
    form = form_of(steps, channels_last=True)
    taken = formed_signature(signature, form)
    assert taken.inputs == (TensorSpec(name="x", dtype="uint8", shape=("batch", 4, 5, 3)),)
    left = taken.preprocessing["x"]
    assert (left.scale, left.mean, left.std, left.layout) == (1.0, (), (), "HWC")
    assert (left.size, left.channel_order) == ((4, 5), "BGR")
    assert form_notes(signature, form) == (
        "input 'x' takes bytes, NHWC; scale, mean and std are applied in the files",
    )


@pytest.mark.parametrize("values", [0.5, -1.0, 2.0, np.nan])
def test_values_that_no_byte_becomes_are_refused(values: float) -> None:
    steps = Preprocessing(scale=1 / 255, mean=(0.5,))
    array = np.full((1, 3, 4, 5), values - 0.5 + 0.3 / 255, np.float32)
    with pytest.raises(DataError, match="no 8-bit pixels"):
        formed_inputs({"x": array}, (spec_of(steps),), form_of(steps))


@pytest.mark.parametrize("layout", ["CHW", "HW"])
def test_values_for_other_channels_than_the_input_has_are_refused(layout: Any) -> None:
    steps = Preprocessing(layout=layout, std=(0.2, 0.3))
    with pytest.raises(InputError, match=r"std of input 'x' has 2 values, and the input [13] channels") as caught:
        form_of(steps)
    assert str(caught.value.where).startswith("model.inputs.x.preprocess.std")


def test_what_is_channels_last_already_is_not_moved_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = (1, 4, 4, 3)
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in ("bytes", "hwc", "chw"))
    steps = {"bytes": Preprocessing(), "hwc": Preprocessing(layout="HWC"), "chw": Preprocessing()}
    asked = MobileOptions(layout="NHWC")
    form = form_of_data(TARGET.requires(asked).form, steps)
    taken = with_pixels("mobile", need(form=form), inputs[:1], {"bytes": steps["bytes"]}).form
    signature = Signature(inputs=inputs, outputs=(), preprocessing=steps)
    assert [spec.shape for spec in formed_signature(signature, taken).inputs[1:]] == [shape, (1, 4, 3, 4)]
    assert [note.split()[1] for note in form_notes(signature, taken) if "NCHW in the model" in note] == ["'chw'"]
    moved: list[tuple[str, ...]] = []
    monkeypatch.setattr(_mobile_tflite, "convert", lambda _request, _options, names, _folder: moved.append(names))
    request = ConvertRequest(float_model=tmp_path, int8=(), signature=signature, form=taken)
    TARGET.convert(request, asked, tmp_path)
    assert moved == [("chw",)]


def test_a_plan_without_preprocessing_is_refused() -> None:
    with pytest.raises(InputError, match="no input has preprocessing") as caught:
        with_pixels("cpu", need(), (spec_of(Preprocessing()),), {})
    assert "[model.inputs.NAME.preprocess]" in str(caught.value.why)


@pytest.mark.parametrize(("dtype", "shape"), [("float16", ("batch", 3, 4, 5)), ("float32", ("batch", 4, 5))])
def test_an_input_that_takes_no_float32_images_is_refused(dtype: Any, shape: tuple[int | str, ...]) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=shape)
    with pytest.raises(InputError, match="does not take float32 images"):
        with_pixels("cpu", need(), (spec,), {"x": Preprocessing()})


def test_a_scale_of_zero_is_refused() -> None:
    steps = Preprocessing(scale=0.0)
    with pytest.raises(InputError, match="scale of input 'x' is zero"):
        form_of(steps)


@pytest.mark.parametrize("asked", [{"program": True}, {"calibration": True}])
def test_a_target_that_cannot_do_it_is_refused(asked: dict[str, bool]) -> None:
    with pytest.raises(InputError, match="cannot make preprocessing a part") as caught:
        with_pixels("other", need(**asked), (spec_of(Preprocessing()),), {"x": Preprocessing()})
    assert '[targets.other.export] preprocess = "outside"' in str(caught.value.hint)


def test_an_input_that_passes_through_is_refused(tmp_path: Path) -> None:
    steps = Preprocessing()
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "through",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 5]) for name in ("x", "y")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(StageError, match="is an output as well"):
        write_with_pixels(tmp_path / "model.onnx", tmp_path / "bytes.onnx", form_of(steps).pixels)


def test_nodes_inside_nodes_read_the_values_too(tmp_path: Path) -> None:
    spec = TensorProto.FLOAT, [1, 3, 4, 5]
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", *spec)],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["which"], ["y"], **branches)],
        "branches",
        [helper.make_tensor_value_info("x", *spec), helper.make_tensor_value_info("which", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", *spec)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    write_with_pixels(tmp_path / "model.onnx", tmp_path / "bytes.onnx", form_of(Preprocessing()).pixels)
    pixels = np.full((1, 4, 5, 3), 255, np.uint8)
    found = onnx_session(tmp_path / "bytes.onnx")({"x": pixels, "which": np.asarray(False)})["y"]
    np.testing.assert_allclose(found, -1.0)
