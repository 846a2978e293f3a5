"""ORT format of the mobile target: what is in the bundle, and what a reduced build of onnxruntime is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import Workplace, quadrant_onnx, refused

from exporter.artifacts import Manifest
from exporter.bundle import read_manifest
from targets.mobile import TARGET, MobileOptions

ORT = ("--set", "targets.mobile.format='ort'")
OPERATORS = "required_operators_and_types.config"
needs_extra = pytest.mark.skipif(
    TARGET.missing(MobileOptions()) is not None, reason="the extra `mobile` is missing"
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    import onnx

    onnx.save(quadrant_onnx(), shared_place / "model.onnx")
    shared_place.quadrants()
    _, made = shared_place.built("model.onnx", "--calib", "calib.npz", "--target", "mobile", *ORT)
    return made


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_a_ready_onnx_file_becomes_float_and_int8_files_in_ort_format_for_arm(manifest: Manifest) -> None:
    assert (manifest.runtime.name, manifest.runtime.machine) == ("onnxruntime", "aarch64")
    assert {one.name: (one.main, one.requires, one.specialises) for one in manifest.variants} == {
        "fp32": ("variants/fp32/model.ort", (), None),
        "int8": ("variants/int8/model.ort", ("asimd",), None),
        "int8-dotprod": ("variants/int8-dotprod/model.ort", ("asimddp",), "int8"),
    }


def test_the_bundle_verifies_on_onnxruntime_with_what_runs_here(shared_place: Workplace, bundle: Path) -> None:
    result = shared_place.run("verify", bundle, "--json")
    assert result.code == 0, result.err
    report = result.document["self_test"]
    assert report["runtime"]["name"] == "onnxruntime"
    assert "fp32" in [one["variant"] for one in report["variants"]]


def test_it_is_analyzed_from_the_plan_and_the_bundle_says_so(shared_place: Workplace, bundle: Path) -> None:
    refused(shared_place.run("analyze", bundle), 3, "ORT format", "analyze the plan")
    text = 'schema = 1\n[model]\nsource = "model.onnx"\n[calibration]\ndata = "calib.npz"\n[targets.mobile]\n'
    plan = shared_place.write("ort.toml", text + 'format = "ort"\n')
    result = shared_place.run("analyze", plan, "--variant", "int8-dotprod", "--json")
    assert result.code == 0, result.err
    (analysis,) = result.document["analyses"]
    assert (analysis["target"], analysis["variant"]) == ("mobile", "int8-dotprod")
    assert {node["op"] for node in analysis["nodes"] if node["sqnr_db"]} >= {"Conv", "MatMul"}


def executed(model: Path, feed: dict[str, np.ndarray], folder: Path) -> set[str]:
    """Operators that onnxruntime ran, by its own trace."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def test_a_reduced_build_is_told_every_operator_that_any_variant_runs_and_their_types(
    bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    heading, *rules = (bundle / "variants" / "shared" / OPERATORS).read_text().splitlines()
    assert heading.startswith("#")
    assert str(tmp_path.anchor) not in heading
    bare = "\n".join(re.sub(r"\{.*?\}\}", "", rule) for rule in rules)
    listed = set(re.findall(r"[;,]([A-Z]\w*)", bare))
    ran: set[str] = set()
    for variant in manifest.variants:
        ran |= executed(bundle / variant.main, {"image": np.zeros((1, 1, 8, 8), np.float32)}, tmp_path)
    assert any(name.startswith("QLinear") for name in ran)
    assert ran <= listed
    assert any('{"inputs"' in rule for rule in rules), "types are not reduced"


def test_the_readme_opens_the_file_in_kotlin_and_swift_and_says_how_to_build_a_small_runtime(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    assert (
        "OnnxTensor.createTensor(environment, FloatBuffer.allocate(1 * 1 * 8 * 8), longArrayOf(1, 1, 8, 8))" in text
    )
    assert '(results["scores"].get() as OnnxTensor).floatBuffer' in text
    assert "NSMutableData(length: 1 * 1 * 8 * 8 * 4)!, elementType: .float, shape: [1, 1, 8, 8]" in text
    assert f"--include_ops_by_config BUNDLE/variants/shared/{OPERATORS}" in text
    assert "`int8-dotprod`" in text


def test_without_the_extra_ort_format_can_still_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.mobile.find_spec", lambda name: None)
    assert TARGET.missing(MobileOptions()) is not None
    assert TARGET.missing(MobileOptions(format="ort")) is None


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (("layout='NHWC'",), ["layout"]),
        (("variants=['float16']", "io='integer'", "exclude=['ADD']"), ["variants", "io", "exclude"]),
    ],
)
def test_options_of_tflite_are_refused_by_name_all_at_once(
    shared_place: Workplace, bundle: Path, settings: tuple[str, ...], keys: list[str]
) -> None:
    del bundle  # The model and its data are there.
    flags = [word for setting in settings for word in ("--set", f"targets.mobile.{setting}")]
    result = shared_place.run("build", "model.onnx", "--calib", "calib.npz", "--target", "mobile", *ORT, *flags)
    refused(result, 3, "format = 'ort'", *(f"targets.mobile.{key}" for key in keys))


@needs_extra
def test_the_oldest_onnxruntime_means_nothing_to_tflite(shared_place: Workplace, bundle: Path) -> None:
    del bundle
    flags = ("--set", "targets.mobile.min_runtime='1.20'")
    result = shared_place.run("build", "model.onnx", "--calib", "calib.npz", "--target", "mobile", *flags)
    refused(result, 3, "targets.mobile.min_runtime", "format = 'tflite'")
