"""`profile --runtime`: one of a bundle's runtimes, alone, in an environment of its own."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest
from support import Workplace, refused

from exporter.bundle import read_manifest, read_profiles
from exporter.registry import load_target
from exporter.target_api import Target

MOBILE: Target = load_target("mobile")
MISSING = MOBILE.missing(MOBILE.options_type())
SHORT = ("--max-seconds", "0.5", "--min-seconds", "0.02")
BOTH = 'targets.cpu.runtimes=["onnxruntime", "openvino"]'


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    shared_place.onnx()
    shared_place.quadrants()
    return shared_place


@pytest.fixture(scope="module")
def bundle(place: Workplace) -> Path:
    return place.built("model.onnx", "--calib", "calib.npz", "--target", "cpu")[1]


def contents(bundle: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_an_unknown_runtime_is_refused_with_those_that_there_are(place: Workplace, bundle: Path) -> None:
    message = refused(place.run("profile", bundle, "--runtime", "onnx-runtime"), 3, "did you mean 'onnxruntime'?")
    assert "it runs on: onnxruntime" in message


@pytest.mark.parametrize(
    "flags", [("--import", "x.json"), ("--device", "ssh://pi@board"), ("--device", "emulated:pi5")]
)
def test_a_runtime_is_chosen_on_this_machine_only(place: Workplace, bundle: Path, flags: tuple[str, str]) -> None:
    refused(place.run("profile", bundle, "--runtime", "onnxruntime", *flags), 2, "--runtime")


def test_without_an_index_the_message_is_pips_and_the_bundle_stays_as_it_was(
    place: Workplace, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    before = contents(bundle)
    result = place.run("profile", bundle, "--runtime", "onnxruntime")
    refused(result, 4, "could not install onnxruntime>=", "ERROR: No matching distribution found for onnxruntime")
    assert contents(bundle) == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_runtime_beside_the_main_one_is_measured_without_it_and_chooses_no_default(place: Workplace) -> None:
    flags = ("model.onnx", "--calib", "calib.npz", "--target", "cpu", "--set", BOTH, "--output", "both")
    _, bundle = place.built(*flags, "--no-profile")
    result = place.run("profile", bundle, "--runtime", "openvino", *SHORT, "--json")
    assert result.code == 0, result.err
    profile = result.document["profile"]
    assert (profile["runtime"]["name"], profile["runtime"]["others"]) == ("openvino", {})
    assert [one["variant"] for one in profile["variants"]] == ["fp32-openvino", "int8-openvino"]
    assert [one["baseline"] for one in profile["comparisons"]] == ["fp32-openvino"]
    assert result.document["fastest_here"] is None
    again = place.run("profile", bundle, "--runtime", "openvino", "--set-default")
    refused(again, 2, "chooses among all variants")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(MISSING is not None, reason="the extra `mobile` is missing")
def test_a_phones_files_are_tested_and_measured_on_the_older_runtime(place: Workplace) -> None:
    place.factory()
    _, bundle = place.built("model.py:make", "--calib", "calib.npz", "--target", "mobile", "--no-profile")
    result = place.run("profile", bundle, "--runtime", "tflite-runtime", *SHORT)
    assert result.code == 0, result.err
    (profile,) = read_profiles(bundle, read_manifest(bundle)).values()
    assert (profile.runtime.name, profile.runtime.version) == ("tflite-runtime", "2.14.0")
    assert profile.runtime.numpy.startswith("1.")
    assert [one.variant for one in profile.variants] == ["fp32", "int8"]
    assert place.run("verify", bundle).code == 0
