"""The cpu target's int8 files: which are asked for, and what one that this CPU cannot run is worth here."""

from __future__ import annotations

import numpy as np
import pytest
from conformance.material import write_cnn
from support import Workplace, quadrants

from exporter.artifacts import QuantScheme
from exporter.devices import cpu_features
from exporter.onnx_export import onnx_session
from exporter.quantize import quantize_static
from exporter.target_api import made_for
from targets.cpu import TARGET, CpuOptions

VNNI = "avx512_vnni|avx_vnni"


def test_one_file_for_every_cpu_is_the_default():
    (wanted,) = TARGET.requires(CpuOptions()).int8
    assert (wanted.name, wanted.changes, wanted.requires) == ("int8", {}, ())


def test_each_kind_is_made_once_in_the_order_asked():
    wanted = TARGET.requires(CpuOptions(int8=("any", "vnni", "any"))).int8
    assert [one.name for one in wanted] == ["int8", "int8-vnni"]
    assert wanted[1].requires == (VNNI,)
    assert wanted[1].specialises == "int8"


@pytest.mark.parametrize(
    ("requires", "features", "met"),
    [((), (), True), ((VNNI,), ("avx_vnni",), True), ((VNNI,), ("avx2",), False), (("fma", "avx2"), ("fma",), False)],
)
def test_a_file_is_made_for_a_cpu_that_shows_one_of_each(requires, features, met):
    assert made_for(requires, features) is met


def test_simulation_gives_what_int8_kernels_that_cannot_saturate_give(tmp_path):
    """7-bit weights are exact on every CPU, so both ways of computing agree to far less than one of 255 steps."""
    write_cnn(tmp_path / "model.onnx", opset=21, ir_version=10)
    images, _ = quadrants(32, seed=2)
    scheme = QuantScheme(reduce_range=True)
    quantize_static(
        tmp_path / "model.onnx",
        tmp_path / "int8.onnx",
        scheme=scheme,
        batches=lambda: [{"image": images}],
        progress=lambda done: None,
    )
    native, simulated = (
        onnx_session(tmp_path / "int8.onnx", simulated=way)({"image": images})["scores"] for way in (False, True)
    )
    assert np.abs(native - simulated).max() <= 0.01 * np.ptp(native) / 255


def test_a_variant_for_other_cpus_is_judged_by_simulation_and_neither_tested_nor_measured_here(place: Workplace):
    write_cnn(place / "model.onnx", opset=21, ir_version=10)
    place.quadrants()
    target, bundle = place.built(
        "model.onnx", "--calib", "calib.npz", "--target", "cpu", "--set", 'targets.cpu.int8=["any", "vnni"]'
    )
    variants = {variant["name"]: variant for variant in target["variants"]}
    assert list(variants) == ["fp32", "int8", "int8-vnni"]
    assert variants["int8"]["scheme"]["reduce_range"] is True
    assert variants["int8-vnni"]["scheme"]["reduce_range"] is False
    here = made_for((VNNI,), cpu_features())
    assert variants["int8-vnni"]["fidelity"]["arithmetic"] == ("native" if here else "simulated")
    assert variants["int8"]["fidelity"]["arithmetic"] == "native"
    measured = [variant["variant"] for variant in target["profile"]["variants"]]
    assert ("int8-vnni" in measured) is here
    verified = place.run("verify", bundle)
    assert verified.code == 0, verified.err
    assert ("not tested: this CPU does not show " in verified.out) is not here
