"""A target's whole life through the command line: build, verify, self-test, run, measure again, build again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.material import write_cnn, write_torch_cnn
from support import Result, Workplace, quadrants, refused

from exporter.artifacts import Manifest, Profile
from exporter.bundle import read_manifest, read_profiles
from exporter.devices import cpu_features
from exporter.registry import load_target, target_names
from exporter.target_api import Analyzable, Need, Target, made_for

ALONE = """
import runpy, sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ImportError
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Life:
    """One target's bundle and the place that it was built in."""

    def __init__(self, target: Target, place: Workplace) -> None:
        self.target = target
        self.place = place
        self.first = self.build()
        assert self.first.code == 0, self.first.err
        (self.document,) = self.first.document["targets"]
        self.bundle = Path(self.document["bundle"])

    def build(self) -> Result:
        """Builds the CNN for this target alone, from torch where the target converts from there."""
        return build(self.place, "model.py:make" if self.need.program else "model.onnx", self.target.name)

    @property
    def need(self) -> Need:
        return self.target.requires(self.target.options_type())

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.bundle)

    @property
    def profiles(self) -> dict[str, Profile]:
        return dict(read_profiles(self.bundle, self.manifest))

    @property
    def made_for_here(self) -> bool:
        """Whether this machine is of the family that the bundle is made for."""
        return self.manifest.runtime.machine in (None, platform.machine())


def build(place: Workplace, model: str, *targets: str) -> Result:
    chosen = [flag for name in targets for flag in ("--target", name)]
    # A race decides which form of int8 is taken, and on a busy machine not always alike.
    sets = ("--set", "gate.min_sqnr_db=15", "--set", "quantize.try_products=false")
    return place.build(model, "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y", *chosen, *sets)


def place_with_model(folder: Path) -> Workplace:
    place = Workplace(folder)
    write_cnn(place / "model.onnx")
    write_torch_cnn(place / "model.py")
    place.quadrants()
    return place


@pytest.fixture(scope="module")
def life(ready: Target, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(ready, place_with_model(tmp_path_factory.mktemp(ready.name)))


def buildable() -> list[str]:
    targets = (load_target(name) for name in target_names())
    return [target.name for target in targets if target.missing(target.options_type()) is None]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One command for all targets: their documents by name."""
    result = build(place_with_model(tmp_path_factory.mktemp("together")), "model.py:make", *buildable())
    assert result.code == 0, result.err
    return {one["target"]: one for one in result.document["targets"]}


def runner(life: Life, folder: Path, *arguments: str | Path, python: tuple[str, ...] = ()) -> Any:
    """Starts the bundle's runner as a device does: no environment, from another folder, nothing on the path."""
    command = [sys.executable, "-I", "-B", *(python or (str(life.bundle / "run.py"),)), *map(str, arguments)]
    # Windows cannot start a process without its own variables.
    environment = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if sys.platform == "win32" else {}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_bundle_has_a_float_variant_and_all_that_was_asked(life: Life) -> None:
    manifest = life.manifest
    assert manifest.target == life.target.name
    assert life.bundle.name == f"{manifest.name}-{life.target.name}-{manifest.digest[:12]}"
    assert manifest.float_variant == manifest.variants[0].name
    assert [spec.name for spec in manifest.signature.outputs] == ["scores", "best"]
    asked = bool(life.need.int8) or life.need.calibration
    assert any(variant.precision == "int8" for variant in manifest.variants) == asked


def test_the_readme_has_what_the_target_adds_and_each_runtime_has_its_requirements(life: Life) -> None:
    payload = life.target.payload(life.target.options_type())
    if payload.guide is not None:
        assert payload.guide(life.manifest) in (life.bundle / "README.md").read_text(encoding="utf-8")
    runtime = life.manifest.runtime
    for name, wanted in {runtime.name: runtime.requirements, **runtime.alternatives}.items():
        assert (life.bundle / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines() == list(wanted)


def test_every_variant_was_judged_and_gated(life: Life) -> None:
    for variant in life.manifest.variants:
        assert variant.fidelity.samples == 24
        assert variant.fidelity.gate.passed is True
        assert variant.fidelity.metric is not None
        assert set(variant.tolerances) == {"scores", "best"}


def test_latency_was_measured_on_the_runtime_that_the_bundle_names(life: Life) -> None:
    if not life.made_for_here:
        assert life.profiles == {}
        assert life.document["profile"]["measured"] is False
        assert str(life.manifest.runtime.machine) in life.document["profile"]["reason"]
        return
    (profile,) = life.profiles.values()
    assert profile.provenance == "native"
    assert profile.runtime.name == life.manifest.runtime.name
    assert {one.variant for one in profile.variants} == {one.name for one in life.manifest.variants}
    assert all(len(one.samples_ns) >= 1 and one.summary.median > 0 for one in profile.variants)
    assert life.manifest.choice.profile in life.profiles


def test_verify_passes_and_tests_every_variant_that_this_cpu_is_made_for(life: Life) -> None:
    result = life.place.run("verify", life.bundle, "--json")
    assert result.code == 0, result.err
    reports = result.document["self_test"]["variants"]
    here = [one.name for one in life.manifest.variants if made_for(one.requires, cpu_features())]
    assert life.manifest.float_variant in here
    assert [one["variant"] for one in reports] == here
    others = [one.name for one in life.manifest.variants if one.name not in here]
    skipped = result.document["self_test"]["skipped"]
    assert [re.search(r"which (\S+) (requires|runs on)", reason)[1] for reason in skipped] == others
    assert all(one["passed"] and one["cases"] > 0 for one in reports)


def test_verify_finds_a_changed_model(life: Life, tmp_path: Path) -> None:
    damaged = tmp_path / life.bundle.name
    shutil.copytree(life.bundle, damaged)
    model = damaged / life.manifest.variants[0].main
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    result = life.place.run("verify", damaged)
    assert result.code == 6
    assert life.manifest.variants[0].main in result.err


def test_the_self_test_runs_from_anywhere_without_an_environment(life: Life, tmp_path: Path) -> None:
    done = runner(life, tmp_path, "--self-test", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


def test_the_runner_needs_nothing_of_the_exporter_nor_of_the_package_that_brings_the_target(
    life: Life, tmp_path: Path
) -> None:
    blocked = ["exporter", "targets", type(life.target).__module__.partition(".")[0]]
    script = ALONE.format(blocked=blocked, arguments=[str(life.bundle / "run.py"), "--self-test", "--json"])
    done = runner(life, tmp_path, python=("-c", script))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


def test_the_runner_answers_as_the_trained_model_does(life: Life, tmp_path: Path) -> None:
    images, labels = quadrants(1 if life.need.program else 5, seed=9)
    np.savez(tmp_path / "x.npz", image=images)
    for variant in life.manifest.variants:
        output = tmp_path / f"{variant.name}.npz"
        done = runner(
            life, tmp_path, "--input", tmp_path / "x.npz", "--output", output, "--variant", variant.name
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with np.load(output) as answers:
            np.testing.assert_array_equal(answers["best"], labels)
            np.testing.assert_array_equal(answers["scores"].argmax(axis=1), labels)


def test_its_bundle_is_analyzed_where_something_tells_of_its_files(life: Life) -> None:
    if not isinstance(life.target, Analyzable) and life.manifest.runtime.name != "onnxruntime":
        refused(life.place.run("analyze", life.bundle), 3, "no statically quantized ONNX file")
        return
    result = life.place.run("analyze", life.bundle, "--json")
    assert result.code == 0, result.err
    (analysis,) = result.document["analyses"]
    (variant,) = [one for one in life.manifest.variants if one.name == analysis["variant"]]
    assert variant.coverage is not None
    assert analysis["target"] == life.target.name
    assert analysis["samples"] > 0
    integer = [one for one in analysis["nodes"] if one["bits"] or one["weight_bits"]]
    assert 0 < len(integer) <= variant.coverage.eligible
    assert any(one["sqnr_db"] for one in integer)
    assert (analysis["runtime"] is None) == all(one["share"] is None for one in analysis["nodes"])
    assert analysis["runtime"] or analysis["why"]


def test_it_can_be_measured_again_and_keeps_its_digest(life: Life, tmp_path: Path) -> None:
    bundle = tmp_path / life.bundle.name
    shutil.copytree(life.bundle, bundle)
    if not life.made_for_here:
        refused(life.place.run("profile", bundle), 4, f"made for {life.manifest.runtime.machine}", "hint")
        return
    result = life.place.run("profile", bundle, "--set-default", "--json")
    assert result.code == 0, result.err
    assert result.document["profile"]["measured"] is True
    assert result.document["profile"]["bundle_digest"] == life.manifest.digest
    assert life.place.run("verify", bundle, "--no-run").code == 0


def test_a_second_build_rebuilds_nothing(life: Life) -> None:
    before = {path: path.stat().st_mtime_ns for path in life.bundle.rglob("*")}
    again = life.build()
    assert again.code == 0, again.err
    (document,) = again.document["targets"]
    assert document["cached"] is True
    assert document["digest"] == life.document["digest"]
    assert not [event for event in again.events if event["type"] == "StepFinished" and not event["cached"]]
    assert {path: path.stat().st_mtime_ns for path in life.bundle.rglob("*")} == before


def test_another_store_gives_the_same_bundle(life: Life, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if life.need.program:
        # Converting takes long: what was built together with other targets is another store's bundle as well, but for
        # what comparing it with them found.
        other = read_manifest(Path(request.getfixturevalue("together")[life.target.name]["bundle"]))
        told = ("README.md", "plan.toml")
        assert [one for one in other.files if one.path not in told] == [
            one for one in life.manifest.files if one.path not in told
        ]
        return
    other = Life(life.target, place_with_model(tmp_path)).document
    assert other["digest"] == life.document["digest"]


def test_all_targets_that_can_be_built_here_are_built_by_one_command(together: dict[str, Any]) -> None:
    assert list(together) == buildable()
    assert all(one["built"] for one in together.values())
