"""Bundles as real aarch64 code on emulated devices: their own self-test, and counted instructions."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from support import Workplace, refused

from exporter.artifacts import Choice, InstructionProfile, QuantScheme, RuntimeFacts, canonical
from exporter.bundle import (
    INSTRUCTIONS,
    check_bundle,
    read_instruction_profiles,
    read_manifest,
    read_profiles,
    sealed_profile,
    write_atomically,
)
from exporter.devices import EmulatedDevice
from exporter.devices.arm64 import TOOLS, check_tools, pinned, userland
from exporter.errors import BundleError, MissingError
from exporter.pipeline.publish import set_default
from exporter.quantize import quantize_static
from exporter.registry import load_target
from exporter.store import Store
from exporter.target_api import Target

MOBILE: Target = load_target("mobile")
NO_MOBILE = MOBILE.missing(MOBILE.options_type())
MISSING = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
emulates = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"apt-get install {' '.join(MISSING)}"),
]
POSITIONS, INNER, OUTER = 64, 256, 128
MACS = POSITIONS * INNER * OUTER
ROUNDING = 1e-5
VARIANTS = {"pi4": ["fp32", "int8"], "pi5": ["fp32", "int8", "int8-dotprod", "fp16"]}


def benchmark() -> ModuleType:
    """benchmarks/arm_instructions.py, which has the model and the table."""
    path = Path(__file__).parents[2] / "benchmarks" / "arm_instructions.py"
    spec = importlib.util.spec_from_file_location("arm_instructions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    """An ARM bundle of a small CNN with every variant that the target makes."""
    benchmark().write_cnn(shared_place / "cnn.onnx")
    benchmark().write_data(shared_place / "calib.npz")
    _, path = shared_place.built(
        "cnn.onnx", "--calib", "calib.npz", "--target", "arm", "--set", "targets.arm.fp16=true"
    )
    return path


@pytest.fixture(scope="module")
def store(bundle: Path, kept: Store, shared_place: Workplace) -> Store:
    """With the userland that all tests share; that of bundles for phones is made here."""
    shared_place.lend(userland(kept, read_manifest(bundle).runtime))
    return Store(shared_place.cache)


@pytest.fixture(scope="module", params=list(VARIANTS))
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def profile(bundle: Path, shared_place: Workplace, device: str, store: Store) -> InstructionProfile:
    """What the command line says of it, read back from where it was written."""
    result = shared_place.run("profile", bundle, "--device", f"emulated:{device}", "--json")
    assert result.code == 0, result.err
    printed = msgspec.convert(result.document["instructions"], InstructionProfile)
    assert printed in read_instruction_profiles(bundle, check_bundle(bundle)).values()
    return printed


@pytest.fixture(scope="module")
def counts(profile: InstructionProfile) -> dict[str, dict[str, int]]:
    return {one.variant: one.guest_instructions for one in profile.variants}


class TestOnADevice:
    pytestmark = emulates

    def test_the_bundles_own_self_test_passes_on_all_variants_made_for_the_core(
        self, profile: InstructionProfile, device: str
    ) -> None:
        assert profile.self_test == "passed"
        assert [one.variant for one in profile.variants] == VARIANTS[device]
        assert all(one.cases > 0 for one in profile.variants)
        others = [reason.partition(" which ")[2].partition(" ")[0] for reason in profile.skipped]
        assert [*VARIANTS[device], *others] == VARIANTS["pi5"]

    def test_int8_kernels_answer_as_the_simulation_here_said(self, profile: InstructionProfile) -> None:
        for one in profile.variants:
            if one.variant.startswith("int8"):
                # The last product writes floats: a step of any layer before it would show thousands of times as much.
                assert one.max_abs_error is not None
                assert one.max_abs_error < ROUNDING

    def test_it_is_labelled_and_holds_no_time(self, profile: InstructionProfile, device: str) -> None:
        assert profile.provenance == "emulated"
        assert profile.device == f"emulated:{device}"
        names = {name for part in (profile, *profile.variants) for name in part.__struct_fields__}
        assert not {name for name in names if name.endswith(("_ns", "_ms", "seconds", "samples", "latency"))}

    def test_the_guest_sees_the_device_and_not_this_machine(self, profile: InstructionProfile, device: str) -> None:
        wanted = {"pi4": {"asimd"}, "pi5": {"asimd", "asimddp", "asimdhp", "fphp"}}
        assert set(profile.features) == wanted[device]

    def test_classes_add_up(self, counts: dict[str, dict[str, int]]) -> None:
        for one in counts.values():
            assert one["total"] == sum(count for kind, count in one.items() if kind != "total") > 0

    def test_each_variant_runs_the_kernels_that_it_is_made_for(
        self, counts: dict[str, dict[str, int]], device: str
    ) -> None:
        assert counts["fp32"]["fma"] > 0
        for name, one in counts.items():
            assert (one["dot"] > 0) == (name.startswith("int8") and device == "pi5"), name
            assert (one["fma_half"] > 0) == (name == "fp16"), name
            if name != "fp32":
                assert one["fma"] < counts["fp32"]["fma"] / 100, name
        assert (counts["int8"]["widening"] > counts["fp32"]["fma"] / 4) == (device == "pi4")

    def test_each_variant_made_for_the_core_executes_less_than_the_one_that_it_replaces(
        self, counts: dict[str, dict[str, int]]
    ) -> None:
        totals = {name: one["total"] for name, one in counts.items()}
        assert totals["int8"] < totals["fp32"]
        assert totals.get("int8-dotprod", 0) < totals["int8"]
        assert totals.get("fp16", 0) < totals["fp32"]

    def test_counts_are_those_of_the_table_within_2_percent(
        self, bundle: Path, profile: InstructionProfile, counts: dict[str, dict[str, int]], device: str
    ) -> None:
        table = json.loads(benchmark().TABLE.read_text())
        row = benchmark().key(profile.runtime, read_manifest(bundle).model.digest)
        assert row in table, f"no row for {row}: python benchmarks/arm_instructions.py --update"
        counted = {device: {name: one["total"] for name, one in counts.items()}}
        assert benchmark().differences(counted, {device: table[row][device]}) == []

    def test_the_runner_picks_the_variant_for_the_core_that_it_finds(
        self, bundle: Path, device: str, store: Store, tmp_path: Path
    ) -> None:
        copy = tmp_path / bundle.name
        shutil.copytree(bundle, copy)
        manifest = set_default(copy, read_manifest(copy), Choice(variant="int8", why="it was measured"))
        with EmulatedDevice(device, f"emulated:{device}", store).booted(manifest) as guest:
            here = json.loads(guest.run([str(copy / "run.py"), "--json"], "description", str(copy)))["here"]
        assert here["elsewhere"] is None
        if device == "pi4":
            assert (here["variant"], here["why"]) == ("int8", "it was measured")
        else:
            assert here["variant"] == "int8-dotprod"
            assert "this CPU shows asimddp" in here["why"]

    def test_files_in_ort_format_made_here_compute_there_what_onnx_does(
        self, bundle: Path, shared_place: Workplace, device: str, store: Store
    ) -> None:
        flags = ("--set", "targets.arm.fp16=true", "--set", "targets.arm.format='ort'", "--output", f"ort-{device}")
        _, optimized = shared_place.built("cnn.onnx", "--calib", "calib.npz", "--target", "arm", *flags)
        manifest = read_manifest(optimized)
        with EmulatedDevice(device, f"emulated:{device}", store).booted(manifest) as guest:
            report = guest.self_test(optimized)
        assert [one["variant"] for one in report["variants"]] == VARIANTS[device]
        for one in report["variants"]:
            if one["variant"].startswith("int8"):
                assert one["max_abs_error"] < ROUNDING

    def test_multiplications_are_those_of_the_model_to_the_last_one(
        self, bundle: Path, device: str, store: Store, tmp_path: Path
    ) -> None:
        if device == "pi4":
            pytest.skip("one device is enough: the plugin is the same")
        write_product(tmp_path)
        shutil.copyfile(bundle / "runtime.py", tmp_path / "runtime.py")
        models = {"fp32": "fp32.onnx", "int8": "int8.onnx"}
        with EmulatedDevice(device, f"emulated:{device}", store).booted(read_manifest(bundle)) as guest:
            counts, batch, flags = guest.count(tmp_path, models)
        assert (batch, flags) == (1, ())
        # Four float products an instruction, sixteen int8 products.
        assert counts["fp32"]["fma"] == MACS // 4
        assert counts["int8"]["fma"] == 0
        assert counts["int8"]["dot"] == MACS // 16


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"apt-get install {' '.join(MISSING)}")
@pytest.mark.skipif(NO_MOBILE is not None, reason="the extra `mobile` is missing")
def test_files_for_phones_compute_as_arm_code_on_litert_what_they_do_here(shared_place: Workplace) -> None:
    shared_place.factory()
    shared_place.quadrants()
    flags = ("--calib", "calib.npz", "--target", "mobile", "--no-profile", "--output", "phone")
    _, bundle = shared_place.built("model.py:make", *flags)
    result = shared_place.run("profile", bundle, "--device", "emulated:pi5", "--json")
    assert result.code == 0, result.err
    counted = msgspec.convert(result.document["instructions"], InstructionProfile)
    assert [*read_instruction_profiles(bundle, check_bundle(bundle)).values()] == [counted]
    assert (counted.provenance, counted.runtime.name) == ("emulated", "ai-edge-litert")
    assert [one.variant for one in counted.variants] == ["fp32", "int8"]
    float32, int8 = counted.variants
    assert float32.max_abs_error is not None
    assert float32.max_abs_error < 1e-5
    assert int8.max_quanta is not None
    assert int8.max_quanta <= 1.01
    assert int8.exact_share is not None
    assert int8.exact_share > 0.9
    # XNNPACK's kernels, with dot products for int8.
    assert float32.guest_instructions["fma"] > 0 == float32.guest_instructions["dot"]
    assert int8.guest_instructions["dot"] > 0
    for one in counted.variants:
        assert one.delegation is not None
        assert one.delegation.operators is not None
        assert one.delegation.operators > 3


def write_product(folder: Path) -> None:
    """Writes one matrix product of known size, in float and int8: x [batch, POSITIONS, INNER] @ w [INNER, OUTER]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = random.normal(size=(INNER, OUTER)).astype(np.float32) / 16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", POSITIONS, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", POSITIONS, OUTER])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "fp32.onnx")
    values = random.normal(size=(1, POSITIONS, INNER)).astype(np.float32)
    quantize_static(
        folder / "fp32.onnx", folder / "int8.onnx", scheme=QuantScheme(activations="int8"),
        batches=lambda: [{"x": values}], progress=lambda done: None,
    )  # fmt: skip
    np.savez(folder / "samples.npz", **{"0/inputs/x": values})


def test_emulated_counts_are_never_read_as_latency(bundle: Path) -> None:
    manifest = check_bundle(bundle)
    profile = InstructionProfile(
        bundle_digest=manifest.digest, target="arm", device="emulated:pi5", cpu="cortex-a76", features=(),
        emulator="qemu", python="3.11", runtime=RuntimeFacts(name="r", version="1", provider="p", numpy="2"), batch=1,
        variants=(), skipped=(), flags=(), self_test="passed",
    )  # fmt: skip
    path = bundle / "profiles" / f"made-up{INSTRUCTIONS}"
    write_atomically(path, canonical(sealed_profile(profile)))
    try:
        assert read_profiles(bundle, manifest) == {}
        assert path.name in read_instruction_profiles(bundle, manifest)
        write_atomically(path, canonical(profile))
        with pytest.raises(BundleError, match="changed after it was sealed"):
            check_bundle(bundle)
    finally:
        path.unlink()


@pytest.mark.parametrize("flag", [("--threads", "2"), ("--max-seconds", "1"), ("--set-default",)])
def test_what_is_about_time_is_refused_for_an_emulated_device(
    bundle: Path, shared_place: Workplace, flag: tuple[str, ...]
) -> None:
    result = shared_place.run("profile", bundle, "--device", "emulated:pi5", *flag)
    refused(result, 2, "no latency is measured")


def test_an_unknown_device_is_refused_with_those_that_exist(bundle: Path, shared_place: Workplace) -> None:
    result = shared_place.run("profile", bundle, "--device", "emulated:pi6")
    assert "emulated:pi4" in refused(result, 3, "did you mean 'pi5'")


def test_missing_programs_are_named_together_with_the_command_that_brings_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="qemu-aarch64, gcc") as caught:
        check_tools()
    assert caught.value.exit_code == 4
    assert caught.value.hint == "apt-get install qemu-user gcc apt dpkg"


def test_the_device_gets_the_versions_that_are_installed_here() -> None:
    from importlib.metadata import version

    got = pinned(["numpy>=1.21,<3", "numpy<1", "no-such-distribution>=2"])
    assert got == [f"numpy=={version('numpy')}", "numpy<1", "no-such-distribution>=2"]
