"""Bundles as real aarch64 code on emulated devices: their own self-test, and counted instructions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import Workplace, refused

from exporter.artifacts import InstructionProfile, RuntimeFacts, canonical
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
from exporter.devices.arm64 import TOOLS, check_tools, pinned
from exporter.errors import BundleError, MissingError
from exporter.store import Store

MISSING = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
emulates = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"apt-get install {' '.join(MISSING)}"),
]
POSITIONS, INNER, OUTER = 64, 256, 128
MACS = POSITIONS * INNER * OUTER


def write_product(path: Path) -> None:
    """A model that is one matrix product of known size: x [batch, POSITIONS, INNER] @ w [INNER, OUTER]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(INNER, OUTER)).astype(np.float32) / 16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", POSITIONS, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", POSITIONS, OUTER])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


@pytest.fixture(scope="module")
def bundle(shared_place: Workplace) -> Path:
    """A bundle of the matrix product, in float and int8."""
    write_product(shared_place / "product.onnx")
    values = np.random.default_rng(1).normal(size=(4, POSITIONS, INNER)).astype(np.float32)
    np.savez(shared_place / "calib.npz", x=values)
    _, path = shared_place.built("product.onnx", "--calib", "calib.npz", "--no-profile")
    return path


@pytest.fixture(scope="module")
def store(shared_place: Workplace) -> Store:
    return Store(shared_place.cache)


@pytest.fixture(scope="module", params=["pi4", "pi5"])
def profile(bundle: Path, shared_place: Workplace, request: pytest.FixtureRequest) -> InstructionProfile:
    """What the command line says of it, read back from where it was written."""
    result = shared_place.run("profile", bundle, "--device", f"emulated:{request.param}", "--json")
    assert result.code == 0, result.err
    printed = msgspec.convert(result.document["instructions"], InstructionProfile)
    assert printed in read_instruction_profiles(bundle, check_bundle(bundle)).values()
    return printed


class TestOnADevice:
    pytestmark = emulates

    def test_the_bundle_passes_its_own_self_test_with_what_this_machine_answered(
        self, profile: InstructionProfile
    ) -> None:
        assert profile.self_test == "passed"
        for variant in profile.variants:
            assert variant.cases > 0
            assert variant.exact_share is not None
            if variant.variant == "int8":
                assert variant.exact_share == 1

    def test_it_is_labelled_and_holds_no_time(self, profile: InstructionProfile) -> None:
        assert profile.provenance == "emulated"
        assert profile.device == f"emulated:{'pi5' if profile.cpu == 'cortex-a76' else 'pi4'}"
        names = {name for part in (profile, *profile.variants) for name in part.__struct_fields__}
        assert not {name for name in names if name.endswith(("_ns", "_ms", "seconds", "samples", "latency"))}

    def test_classes_add_up_and_multiplications_are_those_of_the_model(self, profile: InstructionProfile) -> None:
        for variant in profile.variants:
            counts = dict(variant.guest_instructions)
            assert counts.pop("total") == sum(counts.values())
        counts = {variant.variant: variant.guest_instructions for variant in profile.variants}
        # Four float products an instruction, sixteen int8 products where the core has dot products.
        assert counts["fp32"]["fma"] == MACS // 4
        assert counts["int8"]["fma"] == 0
        dotprod = "asimddp" in profile.features
        assert counts["int8"]["dot"] == (MACS // 16 if dotprod else 0)
        assert (counts["int8"]["widening"] >= MACS // 8) != dotprod

    def test_int8_executes_fewer_instructions_than_float(self, profile: InstructionProfile) -> None:
        totals = {variant.variant: variant.guest_instructions["total"] for variant in profile.variants}
        assert totals["int8"] < totals["fp32"]

    def test_the_guest_sees_the_device_and_not_this_machine(self, profile: InstructionProfile) -> None:
        wanted = {"asimd"} if profile.cpu == "cortex-a72" else {"asimd", "asimddp", "asimdhp", "fphp"}
        assert set(profile.features) == wanted

    def test_counting_again_gives_the_same_within_a_thousandth(
        self, profile: InstructionProfile, bundle: Path, store: Store
    ) -> None:
        manifest = read_manifest(bundle)
        with EmulatedDevice("again", profile.device, store).booted(manifest) as guest:
            counts, _, flags = guest.count(bundle, {one.name: one.main for one in manifest.variants})
        assert flags == ()
        for variant in profile.variants:
            assert counts[variant.variant]["total"] == pytest.approx(variant.guest_instructions["total"], rel=1e-3)


def test_emulated_counts_are_never_read_as_latency(bundle: Path) -> None:
    manifest = check_bundle(bundle)
    profile = InstructionProfile(
        bundle_digest=manifest.digest, target="cpu", device="emulated:pi5", cpu="cortex-a76", features=(),
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
