"""The arm target: what it asks for, what it makes of it, and which variant a core gets."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support import Workplace, quadrant_onnx, refused

from exporter.artifacts import Manifest, Signature, TensorSpec
from exporter.bundle import read_manifest
from exporter.target_api import ConvertRequest
from targets.arm import TARGET, ArmOptions
from targets.runner.bundle import bundle_of
from targets.runner.choice import choose, runnable

PI4 = ("asimd",)
PI5 = ("asimd", "asimddp", "asimdhp", "fphp")
X86 = ("avx2", "avx512_vnni", "fma")


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    """With all variants that the target can make."""
    import onnx

    onnx.save(quadrant_onnx(), shared_place / "model.onnx")
    shared_place.quadrants()
    _, bundle = shared_place.built(
        "model.onnx", "--calib", "calib.npz", "--target", "arm", "--set", "targets.arm.fp16=true"
    )
    return bundle


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def chosen(manifest: Manifest, features: tuple[str, ...], default: str) -> tuple[str, str]:
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    plain["choice"] = {"variant": default, "why": "it was measured"}
    return choose(bundle_of(plain), features)


def test_the_manifest_says_which_machines_systems_and_cores_the_files_are_for(manifest: Manifest) -> None:
    assert (manifest.runtime.machine, manifest.runtime.glibc, manifest.runtime.python) == ("aarch64", "2.28", "3.9")
    assert {one.name: (one.precision, one.requires, one.specialises) for one in manifest.variants} == {
        "fp32": ("float32", (), None),
        "int8": ("int8", ("asimd",), None),
        "int8-dotprod": ("int8", ("asimddp",), "int8"),
        "fp16": ("float16", ("fphp", "asimdhp"), None),
    }


def test_weights_use_all_8_bits_and_activations_are_what_each_core_computes_best(manifest: Manifest) -> None:
    schemes = {one.name: one.scheme for one in manifest.variants if one.scheme is not None}
    assert {name: scheme.activations for name, scheme in schemes.items()} == {
        "int8": "uint8", "int8-dotprod": "int8",
    }  # fmt: skip
    for scheme in schemes.values():
        assert (scheme.weights, scheme.per_channel) == ("int8", True)
        assert not scheme.reduce_range
        assert not scheme.symmetric_activations


@pytest.mark.parametrize(
    ("features", "default", "wanted"),
    [
        (PI4, "int8", "int8"), (PI5, "int8", "int8-dotprod"), (X86, "int8", "fp32"),
        (PI4, "int8-dotprod", "int8"), (PI4, "fp16", "int8"), (X86, "fp16", "fp32"),
        (PI4, "fp32", "fp32"), (PI5, "fp32", "fp32"), (PI5, "fp16", "fp16"),
    ],
)  # fmt: skip
def test_a_core_gets_the_variant_that_it_can_run_and_is_told_why(
    manifest: Manifest, features: tuple[str, ...], default: str, wanted: str
) -> None:
    name, why = chosen(manifest, features, default)
    assert name == wanted
    if wanted == default:
        assert why == "it was measured"
    else:
        assert "this CPU" in why
        assert any(feature in why for feature in ("asimd", "asimddp", "fphp"))


def test_no_core_of_another_family_runs_a_file_made_for_arm(manifest: Manifest) -> None:
    plain = bundle_of(msgspec.to_builtins(manifest))
    assert runnable(plain, X86)[0] == ["fp32"]
    assert runnable(plain, PI4)[0] == ["fp32", "int8"]
    assert runnable(plain, PI5)[0] == ["fp32", "int8", "int8-dotprod", "fp16"]


def test_in_ort_format_files_are_optimized_for_arm_and_judged_by_the_onnx_they_were_made_from(
    manifest: Manifest, shared_place: Workplace
) -> None:
    flags = ("--set", "targets.arm.fp16=true", "--set", "targets.arm.format='ort'")
    _, bundle = shared_place.built("model.onnx", "--calib", "calib.npz", "--target", "arm", *flags)
    made = read_manifest(bundle)
    assert {one.name: one.main for one in made.variants} == {
        "fp32": "variants/fp32/model.ort", "int8": "variants/int8/model.ort",
        "int8-dotprod": "variants/int8-dotprod/model.ort", "fp16": "variants/fp16/model.onnx",
    }  # fmt: skip
    assert {path.parent.name for path in bundle.rglob("model.*")} == {one.name for one in made.variants}
    content = {one.name: (bundle / one.main).read_bytes() for one in made.variants}
    for name in ("fp32", "int8", "int8-dotprod"):
        # x86's own layout of floats: an ARM runtime cannot open a file that has it.
        assert b"ReorderInput" not in content[name]
        assert (b"QLinearConv" in content[name]) == (name != "fp32")
    assert content["int8"] != content["int8-dotprod"]
    before = {one.name: one for one in manifest.variants}
    for one in made.variants:
        assert one.fidelity.outputs == before[one.name].fidelity.outputs
        assert one.tolerances == before[one.name].tolerances
    assert shared_place.run("verify", bundle).code == 0
    refused(shared_place.run("analyze", bundle), 3, "ORT format", "analyze the plan")


def test_its_onnx_files_are_analyzed_and_no_time_is_made_up_for_them(bundle: Path, shared_place: Workplace) -> None:
    for flags in ((), ("--variant", "int8-dotprod")):
        result = shared_place.run("analyze", bundle, "--json", *flags)
        assert result.code == 0, result.err
        (analysis,) = result.document["analyses"]
        assert {node["op"] for node in analysis["nodes"] if node["sqnr_db"]} >= {"Conv", "MatMul"}
        if platform.machine() != "aarch64":
            assert analysis["runtime"] is None
            assert {node["share"] for node in analysis["nodes"]} == {None}


def test_half_precision_keeps_the_models_inputs_and_outputs_and_external_weights(tmp_path: Path) -> None:
    import onnx

    model = tmp_path / "given" / "model.onnx"
    model.parent.mkdir()
    made = quadrant_onnx(width=64)
    onnx.save(made, model, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    image = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    scores = TensorSpec(name="scores", dtype="float32", shape=("batch", 4))
    request = ConvertRequest(float_model=model, int8=(), signature=Signature(inputs=(image,), outputs=(scores,)))
    whole, half = TARGET.convert(request, ArmOptions(fp16=True), tmp_path / "variants")
    assert half.precision == "float16"
    folder = (tmp_path / "variants" / half.main).parent
    sizes = [sum(file.stat().st_size for file in where.iterdir()) for where in (folder, model.parent)]
    assert sizes[0] < 0.75 * sizes[1]
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    exact, got = (
        TARGET.open_session(tmp_path / "variants" / one.main, simulated=False)({"image": images})["scores"]
        for one in (whole, half)
    )
    assert got.dtype == np.float32
    tolerance = TARGET.tolerance(half, folder / "model.onnx", {"scores": exact})["scores"]
    assert 0 < np.abs(got - exact).max() <= tolerance.atol < np.ptp(exact) / 10
