"""The mobile target through the command line: what it refuses, and what a failure leaves behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import Workplace, refused

import targets.mobile
from exporter.artifacts import QuantScheme, Signature, TensorSpec
from exporter.errors import DataError, StageError
from exporter.registry import load_target
from exporter.target_api import ConvertRequest
from targets import _litert, _mobile_tflite
from targets._litert_jobs import FAILED

CALIB = ("--calib", "calib.npz", "--target", "mobile")
needs_extra = pytest.mark.skipif(
    load_target("mobile").missing(targets.mobile.MobileOptions()) is not None, reason="the extra `mobile` is missing"
)
LACKS = (
    "Failed to get quantization parameters for tensor: body/conv;1. Error: TFLOperationName.CONV_2D(index: 2) not "
    "found in tensor_name_to_qsv. Check if the correct calibration results are passed into the ParamsGenerator."
)
DETERMINANT = """

class Det(Net):
    def forward(self, image):
        return super().forward(image) * torch.linalg.det(image[:, 0, :3, :3])[:, None]


def lacking():
    torch.manual_seed(0)
    return Det(8)


class Keys(Net):
    def forward(self, image):
        return {"scores": super().forward(image), "key": image.sum((1, 2, 3)).long() + 2**31}


def keyed():
    torch.manual_seed(0)
    return Keys(8)


class Resized(Net):
    def forward(self, image):
        return super().forward(torch.nn.functional.interpolate(image, scale_factor=1.5, mode="bilinear")[..., 2:, 2:])


def resized():
    torch.manual_seed(0)
    return Resized(8)
"""


@pytest.fixture
def workplace(place: Workplace) -> Workplace:
    place.quadrants()
    place.factory(DETERMINANT)
    return place


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter whose process dies as a crash in native code makes it die."""
    (tmp_path / "a_converter_that_crashes.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_litert, "MODULE", "a_converter_that_crashes")
    monkeypatch.setattr(_litert, "CONVERTER", ())


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that gets as far as quantizing, and then lacks a tensor's statistics, in the quantizer's words."""
    lines = (
        "import json, os, sys, pathlib",
        "for stage in ('convert', 'calibrate', 'quantize to int8'):",
        "    os.write(int(sys.argv[2]), f'{stage}\\n'.encode())",
        f"failure = {{'stage': stage, 'kind': 'ValueError', 'message': {LACKS!r}}}",
        f"(pathlib.Path(sys.argv[1]).parent / {FAILED!r}).write_text(json.dumps(failure))",
        "sys.exit(1)",
    )
    (tmp_path / "a_converter_that_fails.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_litert, "MODULE", "a_converter_that_fails")
    monkeypatch.setattr(_litert, "CONVERTER", ())


def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.mobile, "find_spec", lambda name: None)


def test_without_the_extra_the_build_ends_and_names_what_brings_it(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_extra(monkeypatch)
    refused(workplace.run("build", "model.py:make", *CALIB), 4, "litert-torch", "pip install 'edge-exporter[mobile]'")
    assert workplace.bundles() == []


def test_without_the_extra_the_list_of_targets_says_so(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    without_extra(monkeypatch)
    (mobile,) = [one for one in workplace.run("targets", "--json").document["targets"] if one["name"] == "mobile"]
    assert mobile["ready"] is False
    assert "edge-exporter[mobile]" in mobile["missing"][1]


@needs_extra
def test_a_dynamic_axis_beside_the_batch_is_refused(workplace: Workplace) -> None:
    plan = workplace.write(
        "plan.toml",
        'schema = 1\nname = "x"\n[model]\nsource = "model.py:make"\n[model.inputs.image]\ndtype = "float32"\n'
        'shape = ["batch", 1, "height", 8]\n[calibration]\ndata = "calib.npz"\n[targets.mobile]\n',
    )
    refused(workplace.run("build", plan), 3, "fixed shapes", "'height'", "[model.inputs.image] shape")


@needs_extra
@pytest.mark.parametrize(
    ("setting", "mention"),
    [
        ("quantize.observer=entropy", "observer = 'entropy'"),
        ("quantize.activations=uint8", "activations = 'uint8'"),
        ("quantize.reduce_range=true", "reduce_range = True"),
        ('quantize.per_tensor=["conv"]', "per_tensor = ('conv',)"),
        ("quantize.equalize=true", "equalize = True"),
    ],
)
def test_what_the_quantizer_cannot_do_is_refused(workplace: Workplace, setting: str, mention: str) -> None:
    refused(
        workplace.run("build", "model.py:make", *CALIB, "--set", setting), 3, mention, "[targets.mobile.quantize]"
    )


@needs_extra
def test_an_integer_output_that_files_cannot_hold_is_refused_before_anything_is_converted(
    workplace: Workplace, crashing: None
) -> None:
    message = refused(workplace.run("build", "model.py:keyed", *CALIB), 3, "output 'key'", "do not fit int32")
    assert "give int32 where the model gives int64" in message
    assert workplace.bundles() == []


@needs_extra
def test_a_misspelt_variant_is_refused(workplace: Workplace) -> None:
    refused(workplace.run("build", "model.py:make", *CALIB, "--set", 'targets.mobile.variants=["int9"]'), 3, "int9")


@needs_extra
def test_litert_stays_what_the_other_runtime_is_compared_with(workplace: Workplace) -> None:
    only = 'targets.mobile.runtimes=["tflite-runtime"]'
    refused(workplace.run("build", "model.py:make", *CALIB, "--set", only), 3, "litert is what the other runtime")


@needs_extra
def test_a_crash_of_the_converter_is_one_message_and_finished_work_is_kept(
    workplace: Workplace, crashing: None
) -> None:
    result = workplace.run("build", "model.py:make", *CALIB)
    refused(result, 5, "signal 6", "run log")
    assert workplace.bundles() == []
    again = workplace.run("build", "model.py:make", *CALIB, "--progress", "json")
    assert "capture the torch program" not in again.rebuilt
    assert [one["step"] for one in again.events if one["type"] == "StepFinished" and one["cached"]]


@needs_extra
def test_what_the_converter_does_is_shown_while_it_does_it(workplace: Workplace, failing: None) -> None:
    events = workplace.run("build", "model.py:make", *CALIB, "--progress", "json").events
    stages = [one["stage"] for one in events if one["type"] == "StepStage"]
    assert stages == ["write the float .tflite", "calibrate", "quantize to int8"]
    again = workplace.run("build", "model.py:make", *CALIB, "--progress", "plain")
    assert "\nmobile: convert: write the float .tflite ...\nmobile: convert: calibrate ...\n" in again.err


@needs_extra
def test_a_tensor_without_statistics_is_named_and_finished_work_is_kept(workplace: Workplace, failing: None) -> None:
    message = refused(workplace.run("build", "model.py:make", *CALIB), 5, "'body/conv;1'", "quantize to int8")
    assert "[targets.mobile] exclude" in message
    assert workplace.bundles() == []
    again = workplace.run("build", "model.py:make", *CALIB, "--progress", "json")
    assert "capture the torch program" not in again.rebuilt


@needs_extra
def test_with_keep_going_the_other_targets_are_built(workplace: Workplace, crashing: None) -> None:
    result = workplace.run(
        "build", "model.py:make", *CALIB, "--target", "cpu", "--keep-going", "--no-profile", "--json"
    )
    assert result.code == 8
    assert {one["target"]: one["built"] for one in result.document["targets"]} == {"mobile": False, "cpu": True}


@needs_extra
@pytest.mark.slow
def test_an_operator_that_the_converter_lacks_is_named(workplace: Workplace) -> None:
    message = refused(workplace.run("build", "model.py:lacking", *CALIB), 5, "_linalg_det", "convert (litert-torch)")
    assert "--target cpu" in message
    assert workplace.bundles() == []


@needs_extra
@pytest.mark.slow
def test_what_the_converter_writes_as_something_else_is_refused(workplace: Workplace) -> None:
    # The converter resizes by the ratio of the sizes; 1.5 times 7 pixels are 10, and torch resizes by 1.5.
    odd = np.random.default_rng(0).normal(size=(16, 1, 7, 7)).astype(np.float32)
    workplace.npz("odd.npz", image=odd)
    message = refused(
        workplace.run("build", "model.py:resized", "--calib", "odd.npz", "--target", "mobile"), 5,
        "something else than the ONNX file", "output 'output'", "litert-torch",
    )  # fmt: skip
    assert "tolerance" in message
    assert workplace.bundles() == []


def request(tmp_path: Path, batches: list[dict[str, np.ndarray]]) -> ConvertRequest:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    return ConvertRequest(
        float_model=tmp_path / "unused.onnx",
        int8=(),
        signature=Signature(inputs=(spec,), outputs=(spec,)),
        program=tmp_path / "program.pt2",
        calibration=lambda: iter(batches),
    )


def base(tmp_path: Path) -> _litert.Base:
    return _litert.Base(float_file=tmp_path / "fp32" / "model.tflite", ranges=tmp_path / "ranges.json")


def test_no_calibration_samples_are_refused_before_anything_is_converted(tmp_path: Path) -> None:
    jobs = (_litert.VariantJob(precision="int8", file=str(tmp_path / "out" / "model.tflite")),)
    with pytest.raises(DataError, match="no calibration samples"):
        _litert.convert(request(tmp_path, []), base(tmp_path), jobs, ())


@needs_extra
def test_a_program_that_cannot_be_read_is_a_failed_stage(tmp_path: Path) -> None:
    (tmp_path / "program.pt2").write_bytes(b"no program")
    with pytest.raises(StageError, match="cannot be made a"):
        _litert.convert(request(tmp_path, []), base(tmp_path), (), ())


@pytest.mark.parametrize(
    ("variants", "scheme", "offered", "made"),
    [
        (("int8",), QuantScheme(activations="int8"), (), ("int8",)),
        (("float16", "int8"), None, ("dynamic",), ("float16",)),
        (("int8",), QuantScheme(activations="int8"), ("dynamic",), ("int8", "dynamic-int8")),
        (("dynamic-int8",), QuantScheme(activations="int8"), ("dynamic",), ("dynamic-int8",)),
        (("float16", "int8", "int16x8"), QuantScheme(dynamic=True), (), ("float16", "dynamic-int8")),
    ],
)
def test_what_is_made_follows_the_plan_and_what_is_offered(
    variants: tuple[str, ...], scheme: QuantScheme | None, offered: tuple[str, ...], made: tuple[str, ...]
) -> None:
    options = msgspec.convert({"variants": variants}, targets.mobile.MobileOptions)
    assert _mobile_tflite.precisions(options, scheme, offered=offered) == made
