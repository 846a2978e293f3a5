"""Bundles whose files take bytes: the same answers as with preprocessing outside, on every target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Workplace, refused, run_bundle, toml_plan

from exporter.bundle import read_manifest
from exporter.data.preprocess import apply_to_arrays
from exporter.registry import load_target

target = load_target("mobile")
needs_extra = pytest.mark.skipif(target.missing(target.options_type()) is not None, reason="no extra `mobile`")
MODEL = """\
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )
"""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.write("model.py", MODEL)
    draw = np.random.default_rng(1)
    for name, count in (("calib.npz", 32), ("eval.npz", 24)):
        shared_place.npz(name, image=draw.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8))
    return shared_place


def plan(target: str, where: str = "graph", **more: Any) -> str:
    sections = {
        "model": {"source": "model.py:make"},
        "model.inputs.image.preprocess": {"mean": MEAN, "std": STD},
        "calibration": {"data": "calib.npz"},
        "evaluation": {"data": "eval.npz"},
        "export": {"preprocess": where},
        f"targets.{target}": {},
    }
    return toml_plan({name: values for name, values in (sections | more).items() if values is not None})


def taken(place: Workplace, target: str, tmp_path: Path) -> dict[str, Any]:
    """Builds for a target, and checks what its bundle says and answers."""
    place.write(f"{target}.toml", plan(target))
    document, bundle = place.built(f"{target}.toml", "--no-profile")
    manifest = read_manifest(bundle)
    (image,) = manifest.signature.inputs
    assert (image.dtype, image.shape[1:]) == ("uint8", (16, 16, 3))
    assert manifest.signature.preprocessing["image"].mean == ()
    assert any("'image' takes bytes, NHWC" in note for note in manifest.notes)
    assert "| input | `image` | uint8 |" in (bundle / "README.md").read_text()
    with np.load(bundle / "samples.npz") as samples:
        pixels = samples["0/inputs/image"]
    assert pixels.dtype == np.uint8
    found = {one["name"]: one["fidelity"]["outputs"][0]["sqnr_db"] for one in document["variants"]}
    assert found["fp32"] > 110
    assert found["int8"] > 30
    answers = run_bundle(bundle, {"image": pixels}, tmp_path, "--variant", "fp32")
    wanted = answer_of_torch(place, pixels)
    np.testing.assert_allclose(answers["output"], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    return document


def answer_of_torch(place: Workplace, pixels: Any) -> Any:
    import runpy

    import torch

    from exporter.artifacts import Preprocessing

    module = runpy.run_path(str(place / "model.py"))["make"]().eval()
    values = apply_to_arrays(pixels, Preprocessing(mean=tuple(MEAN), std=tuple(STD)))
    with torch.no_grad():
        return module(torch.from_numpy(values)).numpy()


def test_onnx_files_take_bytes_and_lose_nothing_by_it(place: Workplace, tmp_path: Path) -> None:
    inside = taken(place, "cpu", tmp_path)
    place.write("outside.toml", plan("cpu", "outside"))
    outside, bundle = place.built("outside.toml", "--no-profile", "--output", "outside")
    assert read_manifest(bundle).signature.inputs[0].dtype == "float32"
    int8 = [one["fidelity"]["outputs"][0]["sqnr_db"] for one in (inside["variants"][1], outside["variants"][1])]
    assert abs(int8[0] - int8[1]) < 0.5
    analysis = place.run("analyze", inside["bundle"])
    assert analysis.code == 0, analysis.err


def test_files_for_arm_boards_take_bytes_too(place: Workplace) -> None:
    place.write("arm.toml", plan("arm", **{"targets.arm": {"fp16": True}}))
    document, _ = place.built("arm.toml", "--no-profile")
    found = {one["name"]: one["fidelity"]["outputs"][0]["sqnr_db"] for one in document["variants"]}
    assert found["fp32"] > 110
    assert all(value > 30 for value in found.values())


@needs_extra
@pytest.mark.slow
def test_tflite_files_take_bytes_and_turn_them_into_values_in_float(place: Workplace, tmp_path: Path) -> None:
    document = taken(place, "mobile", tmp_path)
    int8 = next(one for one in document["variants"] if one["name"] == "int8")
    reason = "turns bytes into the values that are quantized"
    assert [one["op"] for one in int8["coverage"]["skipped"] if one["reason"] == reason] == ["CAST", "MUL", "ADD"]
    guide = (Path(document["bundle"]) / "README.md").read_text()
    assert "ByteArray(3)" in guide
    assert "`image`: unsigned bytes, 0 to 255" in guide


def test_without_preprocessing_it_is_refused_before_any_work(place: Workplace) -> None:
    place.write("none.toml", plan("cpu", **{"model.inputs.image.preprocess": None}))
    refused(place.run("build", "none.toml"), 3, "no input has preprocessing", "[export] preprocess")


def test_data_that_are_prepared_already_are_refused(place: Workplace) -> None:
    draw = np.random.default_rng(2)
    place.npz("floats.npz", image=draw.normal(size=(32, 3, 16, 16)).astype(np.float32))
    place.write("floats.toml", plan("cpu", calibration={"data": "floats.npz"}, evaluation=None))
    refused(place.run("build", "floats.toml", "--no-profile"), 3, "no 8-bit pixels", "[export] preprocess")
