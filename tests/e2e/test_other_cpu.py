"""A bundle on an x86 CPU without VNNI, emulated by qemu-user: another variant is chosen, and answers rightly."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance.material import write_cnn
from support import Workplace

from exporter.artifacts import Choice
from exporter.bundle import read_manifest
from exporter.pipeline.publish import set_default

EMULATOR = shutil.which("qemu-x86_64")
HASWELL = "processor\t: 0\nmodel name\t: Haswell\nflags\t\t: fpu sse4_1 sse4_2 avx avx2 fma f16c\n\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed (`apt-get install qemu-user`)"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 Python to emulate"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose default, as if measured on a CPU with VNNI, is the variant made for such CPUs."""
    place = Workplace(tmp_path_factory.mktemp("other"))
    write_cnn(place / "model.onnx")
    place.quadrants()
    _, folder = place.built(
        "model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y", "--target", "cpu",
        "--set", 'targets.cpu.int8=["any", "vnni"]', "--no-profile",
    )  # fmt: skip
    measured = ("int8-vnni", "int8", "fp32")
    set_default(
        folder, read_manifest(folder), Choice(variant="int8-vnni", why="it is the fastest", measured=measured)
    )
    return folder


def on_haswell(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's runner on the emulated CPU, whose /proc/cpuinfo stands under a prefix."""
    prefix = folder / "haswell"
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    (prefix / "proc" / "cpuinfo").write_text(HASWELL)
    assert EMULATOR is not None
    return subprocess.run(
        [EMULATOR, "-L", str(prefix), "-cpu", "Haswell", sys.executable, "-B", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def test_the_variant_for_any_cpu_takes_the_place_of_one_that_needs_vnni(bundle: Path, tmp_path: Path) -> None:
    done = on_haswell(tmp_path, bundle / "run.py", "--json")
    assert done.returncode == 0, done.stderr
    here = json.loads(done.stdout)["here"]
    assert here["variant"] == "int8"
    assert here["why"] == "this CPU does not show avx512_vnni or avx_vnni, which int8-vnni requires"


def test_its_answers_are_those_that_the_bundle_promises(bundle: Path, tmp_path: Path) -> None:
    samples = np.load(bundle / "samples.npz", allow_pickle=False)
    np.savez(tmp_path / "x.npz", image=samples["0/inputs/image"])
    done = on_haswell(tmp_path, bundle / "run.py", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert done.returncode == 0, done.stderr
    assert "variant int8: " in done.stderr
    answers = np.load(tmp_path / "y.npz", allow_pickle=False)
    (variant,) = [one for one in read_manifest(bundle).variants if one.name == "int8"]
    for name, tolerance in variant.tolerances.items():
        expected = samples[f"0/expected/int8/{name}"]
        np.testing.assert_allclose(answers[name], expected, atol=tolerance.atol, rtol=tolerance.rtol)
