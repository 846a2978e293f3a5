"""A ready ONNX file to a mobile bundle, with `converter = "onnx2tf"`.

The environment that holds TensorFlow takes minutes to install, so that a stand-in answers with what onnx2tf 1.29.24
wrote for the quadrant CNN (`quadrants_by_onnx2tf.tflite`). `EDGE_EXPORTER_ONNX2TF=1` runs the real one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Workplace, refused

from exporter.bundle import read_manifest
from exporter.devices import kept_python
from exporter.pipeline import converting
from exporter.registry import load_target
from exporter.target_api import Target

MOBILE: Target = load_target("mobile")
CONVERTED = Path(__file__).with_name("quadrants_by_onnx2tf.tflite")
ONNX2TF = ("--set", "targets.mobile.converter='onnx2tf'")
CALIB = ("--calib", "calib.npz", "--target", "mobile")
pytestmark = pytest.mark.skipif(
    MOBILE.missing(MOBILE.options_type()) is not None, reason="the extra `mobile` is missing"
)


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.onnx()
    shared_place.onnx("other.onnx", scale=2.0)
    shared_place.quadrants()
    return shared_place


@pytest.fixture(scope="module")
def asked(place: Workplace) -> Iterator[list[str]]:
    """Environments that were asked for, while a stand-in answers for what is in them."""
    python, names = place / "python", list[str]()
    python.write_text(f'#!/bin/sh\nmkdir out && cp "{CONVERTED}" out/model_float32.tflite\n')
    python.chmod(0o755)

    def stand_in(store: object, need: object, emit: object) -> str:
        names.append(need.name)
        return str(python)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(converting, "kept_python", stand_in)
        yield names


@pytest.fixture(scope="module")
def bundle(place: Workplace, asked: list[str]) -> Path:
    made = place.built("model.onnx", *CALIB, *ONNX2TF)[1]
    assert asked == ["onnx2tf"]
    return made


def test_a_ready_onnx_file_becomes_float_and_int8_tflite_as_accurate_as_it_is(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    found = {one.name: one.fidelity.outputs[0].sqnr_db for one in manifest.variants}
    assert found["fp32"] > 100
    assert found["int8"] > 35
    assert {one.main for one in manifest.variants} == {"variants/fp32/model.tflite", "variants/int8/model.tflite"}
    assert manifest.variants[1].coverage.quantized > 0
    assert manifest.tools["onnx2tf"] == "1.29.24"


def test_names_are_the_users_and_the_batch_is_one(place: Workplace, bundle: Path) -> None:
    signature = read_manifest(bundle).signature
    assert [str(spec) for spec in (*signature.inputs, *signature.outputs)] == [
        "image: float32[1, 1, 8, 8]", "scores: float32[1, 4]",
    ]  # fmt: skip
    assert any("the batch is 1" in note for note in read_manifest(bundle).notes)
    assert place.run("verify", bundle).code == 0


def test_what_was_converted_before_needs_no_environment(place: Workplace, bundle: Path, asked: list[str]) -> None:
    before = len(asked)
    result = place.build("model.onnx", *CALIB, *ONNX2TF)
    assert result.code == 0, result.err
    assert "mobile: convert" not in result.rebuilt
    assert len(asked) == before


def test_a_file_that_computes_something_else_than_the_onnx_file_is_refused(
    place: Workplace, bundle: Path, asked: list[str]
) -> None:
    before = place.bundles()
    result = place.run("build", "other.onnx", *CALIB, *ONNX2TF)
    refused(result, 5, "computes something else than the ONNX file", "'scores'", 'format = "ort"')
    assert place.bundles() == before


def test_without_the_option_the_message_says_which_one_to_use(place: Workplace) -> None:
    refused(place.run("build", "model.onnx", *CALIB), 3, 'converter = "onnx2tf"', 'format = "ort"')


PLAN = """schema = 1
name = "sized"
[model]
source = "model.onnx"
[model.inputs.image]
shape = {shape}
[calibration]
data = "calib.npz"
[profile]
enabled = false
[targets.cpu]
"""


def test_a_dynamic_axis_of_a_ready_onnx_file_gets_the_size_that_the_plan_says(place: Workplace) -> None:
    place.write("sized.toml", PLAN.format(shape=[2, 1, 8, 8]))
    result = place.run("build", "sized.toml", "--json")
    assert result.code == 0, result.err
    signature = read_manifest(Path(result.document["targets"][0]["bundle"])).signature
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(2, 1, 8, 8), (2, 4)]


def test_an_axis_that_has_a_size_in_the_file_keeps_it(place: Workplace) -> None:
    place.write("sized.toml", PLAN.format(shape=[2, 1, 9, 8]))
    refused(
        place.run("build", "sized.toml"), 3, "does not have image: float32[2, 1, 9, 8]", "float32[batch, 1, 8, 8]"
    )


@pytest.fixture
def real_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "kept_python", kept_python)


def test_an_environment_that_cannot_be_made_is_one_message_and_nothing_is_lost(
    real_environments: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    place = Workplace(tmp_path)
    place.onnx()
    place.quadrants()
    result = place.run("build", "model.onnx", *CALIB, *ONNX2TF)
    refused(result, 4, "could not install onnx2tf", "No matching distribution")
    assert place.bundles() == []
    again = place.run("build", "model.onnx", *CALIB, *ONNX2TF, "--progress", "json")
    assert "take the ONNX file" not in again.rebuilt
    entries = place.run("cache", "list", "--json").document["entries"]
    assert "environment" not in {one["stage"] for one in entries}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("EDGE_EXPORTER_ONNX2TF" not in os.environ, reason="installs TensorFlow: EDGE_EXPORTER_ONNX2TF=1")
def test_the_real_converter_makes_a_bundle_of_a_ready_onnx_file(real_environments: None, tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.onnx()
    place.quadrants()
    flags = ("--set", "targets.mobile.layout='NHWC'", "--set", 'targets.mobile.variants=["int8", "float16"]')
    _, made = place.built("model.onnx", *CALIB, *ONNX2TF, *flags)
    manifest = read_manifest(made)
    found = {one.name: one.fidelity.outputs[0].sqnr_db for one in manifest.variants}
    assert found["fp32"] > 100
    assert found["int8"] > 35
    assert found["fp16"] > 60
    assert [str(spec) for spec in manifest.signature.inputs] == ["image: float32[1, 8, 8, 1]"]
    assert place.run("verify", made).code == 0
