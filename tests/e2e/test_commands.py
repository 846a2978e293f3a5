"""init, plan, profile, targets and cache; and --keep-going over several targets."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from support import QUICK, Workplace, refused, toml_plan

from exporter.bundle import read_manifest, read_profiles
from exporter.target_api import ENTRY_POINT_GROUP

MEASURED = ("--min-seconds", "0.02", "--max-seconds", "0.5")


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """model.onnx and its data; the store is shared."""
    shared_place.onnx()
    shared_place.quadrants()
    return shared_place


# --- init ----------------------------------------------------------------------------------------------------------


def test_init_of_an_onnx_file_writes_a_plan_that_plan_and_build_accept(place):
    result = place.run("init", "model.onnx", "--calib", "calib.npz", "--output", "onnx.toml")
    assert result.code == 0, result.err
    assert "image: float32[batch, 1, 8, 8]" in result.out
    assert "edge-exporter build onnx.toml" in result.out
    assert place.run("plan", "onnx.toml").code == 0
    assert place.run("build", "onnx.toml", "--no-profile").code == 0


def test_init_of_a_factory_writes_paths_relative_to_the_plan(place):
    place.factory()
    (place / "plans").mkdir()
    result = place.run("init", "model.py:make", "--calib", "calib.npz", "--output", "plans/made.toml", "--json")
    assert result.code == 0, result.err
    assert result.document["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    text = (place / "plans" / "made.toml").read_text()
    assert 'source = "../model.py:make"' in text
    assert 'data = "../calib.npz"' in text
    assert place.run("plan", "plans/made.toml").code == 0
    assert place.run("build", "plans/made.toml", "--no-profile").code == 0


def test_init_does_not_replace_a_plan_unless_told_to(place):
    place.write("mine.toml", "# mine\n")
    flags = ("init", "model.onnx", "--calib", "calib.npz", "--output", "mine.toml")
    refused(place.run(*flags), 3, "exists already", "mine.toml", "--force")
    assert (place / "mine.toml").read_text() == "# mine\n"
    assert place.run(*flags, "--force").code == 0
    assert "schema = 1" in (place / "mine.toml").read_text()


def test_init_with_data_that_are_not_there_is_told(place):
    refused(place.run("init", "model.onnx", "--calib", "no.npz", "--output", "x.toml"), 3, "no.npz", hint=False)
    assert not (place / "x.toml").exists()


def test_init_with_a_model_that_is_not_there_is_told(place):
    refused(place.run("init", "no.onnx", "--calib", "calib.npz", "--output", "x.toml"), 3, "no.onnx", hint=False)
    assert not (place / "x.toml").exists()


def test_init_into_a_folder_that_is_not_there_is_told(place):
    refused(place.run("init", "model.onnx", "--output", "nowhere/x.toml"), 3, "nowhere", hint=False)


# --- plan ----------------------------------------------------------------------------------------------------------


def test_plan_shows_each_value_with_its_origin_and_what_is_in_the_store(place, tmp_path):
    other = Workplace(tmp_path)
    for name in ("model.onnx", "calib.npz", "eval.npz"):
        shutil.copyfile(place / name, other / name)
    sections = {
        "model": {"source": "model.onnx"},
        "calibration": {"data": "calib.npz"},
        "evaluation": {"data": "eval.npz", "labels": "y"},
        "gate": {"max_relative_loss": 0.02},
        "targets.cpu": {},
        "targets.cpu.quantize": {"observer": "percentile"},
    }
    other.write("plan.toml", toml_plan(sections))
    document = other.run("plan", "plan.toml", "--set", "profile.threads=2", "--json").document
    values = document["targets"]["cpu"]
    assert values["gate.max_relative_loss"] == {"value": 0.02, "origin": "plan.toml"}
    assert values["quantize.observer"] == {"value": "percentile", "origin": "plan.toml [targets.cpu.quantize]"}
    assert values["profile.threads"] == {"value": 2, "origin": "--set"}
    assert values["quantize.activations"]["origin"] == "default of target cpu"
    assert values["quantize.per_channel"]["origin"] == "built-in default"
    assert values["targets.cpu.min_runtime"] == {"value": "1.19", "origin": "built-in default"}
    assert [state["cached"] for state in document["steps"]][-1] is False
    assert not (other.folder / "bundles").exists(), "plan builds nothing"
    # All values of the plan travel in the bundle: `built` shortens measuring, so the same flags are given here.
    built, _ = other.built("plan.toml", "--set", "profile.threads=2")
    after = other.run("plan", "plan.toml", "--set", "profile.threads=2", *QUICK, "--json").document["steps"]
    assert all(state["cached"] for state in after)
    assert after[-1]["step"] == f"bundle {Path(built['bundle']).name}"
    table = other.run("plan", "plan.toml").out
    assert "in the store" in table
    assert "plan.toml [targets.cpu.quantize]" in table


def test_plan_with_a_fault_is_refused_like_a_build(place):
    place.write("fault.toml", toml_plan({"model": {"source": "model.onnx"}, "targets.cpu": {"min_runtme": "1"}}))
    refused(place.run("plan", "fault.toml"), 3, "min_runtme", "did you mean 'min_runtime'?")


# --- profile -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(place: Workplace, tmp_path: Path) -> Path:
    _, bundle = place.built("model.onnx", "--calib", "calib.npz", "--no-profile", "--output", str(tmp_path / "b"))
    return bundle


def test_profile_measures_a_bundle_where_it_stands_and_keeps_its_digest(place, bundle):
    before = read_manifest(bundle)
    assert read_profiles(bundle, before) == {}
    result = place.run("profile", bundle, *MEASURED, "--json")
    assert result.code == 0, result.err
    after = read_manifest(bundle)
    assert after == before
    (profile,) = read_profiles(bundle, after).values()
    assert result.document["profile"]["measured"] is True
    assert profile.bundle_digest == before.digest
    assert profile.provenance == "native"
    assert len(profile.variants[0].samples_ns) == profile.variants[0].summary.count
    assert place.run("verify", bundle, "--no-run").code == 0


def test_profile_again_replaces_the_profile_of_the_same_host_and_threads(place, bundle):
    for threads in ("1", "1,2", "2"):
        assert place.run("profile", bundle, *MEASURED, "--threads", threads).code == 0
    profiles = read_profiles(bundle, read_manifest(bundle)).values()
    assert sorted(profile.settings.threads for profile in profiles) == [1, 2]
    assert {profile.device for profile in profiles} == {"local"}


def test_profile_pins_to_the_cpus_that_were_asked_for_and_records_them(place, bundle):
    cpu = min(os.sched_getaffinity(0))
    assert place.run("profile", bundle, *MEASURED, "--affinity", str(cpu)).code == 0
    (profile,) = read_profiles(bundle, read_manifest(bundle)).values()
    assert profile.settings.affinity == (cpu,)
    refused(place.run("profile", bundle, *MEASURED, "--affinity", "9999"), 3, "--affinity 9999", hint=False)
    assert place.run("profile", bundle, *MEASURED, "--affinity", "x").code == 2


def test_a_sweep_over_threads_makes_no_default(place, bundle):
    before = read_manifest(bundle)
    refused(place.run("profile", bundle, *MEASURED, "--threads", "1,2", "--set-default"), 2, "one thread count")
    assert read_manifest(bundle) == before


def test_set_default_records_the_choice_and_the_bundle_still_verifies(place, bundle):
    before = read_manifest(bundle)
    result = place.run("profile", bundle, *MEASURED, "--set-default")
    assert result.code == 0, result.err
    after = read_manifest(bundle)
    assert after.digest == before.digest
    assert after.choice.profile is not None
    assert "int8 is " in after.choice.why
    assert f"default variant: {after.choice.variant}" in result.out
    assert place.run("verify", bundle, "--no-run").code == 0


def test_profile_of_a_damaged_bundle_is_refused(place, bundle):
    (bundle / "samples.npz").write_bytes(b"x")
    refused(place.run("profile", bundle, *MEASURED), 6, "samples.npz")
    refused(place.run("profile", bundle / "nothing"), 3, "no such bundle")


# --- targets and cache ---------------------------------------------------------------------------------------------


def test_targets_lists_what_can_be_built(place):
    result = place.run("targets", "--json")
    (cpu,) = [target for target in result.document["targets"] if target["name"] == "cpu"]
    assert cpu["ready"] is True
    assert "onnxruntime" in cpu["summary"]
    assert "ready" in place.run("targets").out


def test_the_cache_can_be_listed_collected_and_cleared(place, tmp_path):
    other = Workplace(tmp_path)
    shutil.copyfile(place / "model.onnx", other / "model.onnx")
    shutil.copyfile(place / "calib.npz", other / "calib.npz")
    other.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    assert other.run("cache", "dir").out.strip() == str(other.cache)
    listed = other.run("cache", "list", "--json").document
    stages = {entry["stage"] for entry in listed["entries"]}
    assert {"check-data", "quantize", "bundle"} <= stages
    assert listed["bytes"] == sum(entry["size"] for entry in listed["entries"]) > 0
    assert f"{len(listed['entries'])} results" in other.run("cache").out
    assert other.run("cache", "gc", "--json").document["removed"] == [], "nothing is older than thirty days"
    removed = other.run("cache", "gc", "--max-size", "0", "--json").document
    assert removed["bytes"] == listed["bytes"]
    other.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    cleared = other.run("cache", "clear")
    assert cleared.code == 0
    assert cleared.out.startswith(f"removed {len(listed['entries'])} results")
    assert other.run("cache", "list", "--json").document["entries"] == []
    assert len(other.bundles()) == 1, "bundles are no cache"


def test_an_unknown_action_of_cache_is_a_usage_error(place):
    assert place.run("cache", "purge").code == 2


# --- several targets -----------------------------------------------------------------------------------------------


@pytest.fixture
def second_target(monkeypatch: pytest.MonkeyPatch) -> str:
    """A target `other` that is cpu under another name, and whose gate cannot be met."""
    from targets.cpu import CpuTarget

    class Other(CpuTarget):
        name = "other"
        defaults = {**CpuTarget.defaults, "gate": {"min_sqnr_db": 300.0}}

    class Point:
        name, value, dist = "other", "nowhere:TARGET", None

        def load(self) -> Other:
            return Other()

    real: tuple[EntryPoint, ...] = tuple(entry_points(group=ENTRY_POINT_GROUP))
    monkeypatch.setattr("exporter.registry.entry_points", lambda group: [*real, Point()])
    return "other"


def test_keep_going_builds_the_others_and_exits_with_8(place, second_target, tmp_path):
    flags = ("build", "model.onnx", "--calib", "calib.npz", "--target", second_target, "--target", "cpu",
             "--set", "quantize.budget=0", "--no-profile")  # fmt: skip
    result = place.run(*flags, "--keep-going", "--json", "--output", tmp_path / "b", *QUICK)
    assert result.code == 8, result.err
    failed, built = result.document["targets"]
    assert (failed["target"], failed["built"], failed["exit_code"]) == ("other", False, 7)
    assert "the gate asks for 300" in failed["error"]["what"]
    assert (built["target"], built["built"]) == ("cpu", True)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [Path(built["bundle"]).name]
    assert "the gate asks for 300" in result.err
    assert "1 of 2 targets failed: other" in result.err
    shared = [event for event in result.err.splitlines() if event.startswith("quantize")]
    assert len([line for line in shared if "cached" not in line]) <= 1, "equal needs are made once"


def test_without_keep_going_the_first_failure_ends_the_build(place, second_target, tmp_path):
    flags = ("build", "model.onnx", "--calib", "calib.npz", "--target", second_target, "--target", "cpu",
             "--no-profile")  # fmt: skip
    result = place.run(*flags, "--output", tmp_path / "b")
    refused(result, 7, "the gate asks for 300", "target other")
    assert list((tmp_path / "b").iterdir()) == []


def test_keep_going_with_nothing_to_fail_exits_with_0(place):
    assert place.run("build", "model.onnx", "--calib", "calib.npz", "--no-profile", "--keep-going").code == 0
