"""kill -9 at any moment leaves nothing that is taken for a result, and the next run completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, Workplace

SCRIPT = Path(__file__).with_name("killed.py")
KILLED = -9
TOY = {"a": "first", "sub/b": "second", "sub/deeper/c": ""}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


def killed(*arguments: str | Path, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """What killed.py found, one object a moment."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("scenario", ["build", "rebuild", "clear"])
def test_a_store_killed_at_every_moment_is_never_wrong_and_completes(tmp_path: Path, scenario: str) -> None:
    *moments, last = killed("toy", tmp_path, scenario)
    assert len(moments) > 20
    assert {moment["code"] for moment in moments} == {KILLED}
    assert last["code"] == 0
    for moment in [*moments, last]:
        assert moment["kept"] in (None, TOY), "half a result was taken for one"
        assert moment["then"] == TOY
        assert len(moment["entries"]) == 1
        assert moment["left"] == [], "what a killed run left was not removed"
    kept = [moment["kept"] is not None for moment in moments]
    assert kept == sorted(kept, reverse=scenario == "clear"), "published, or removed, in one step"


@pytest.fixture
def model(place: Workplace) -> Workplace:
    place.onnx()
    place.quadrants()
    return place


def check_build(place: Workplace, warm: str, moments: int, *flags: str) -> list[dict[str, Any]]:
    command = ["build", str(place / "model.onnx"), "--calib", str(place / "calib.npz"), *QUICK, *flags]
    whole, counted, *found = killed(
        "build", place.folder, warm, str(moments), *command, environment=place.environment()
    )
    assert whole["code"] == counted["code"] == 0, whole["log"]
    (digest,) = whole["visible"].values()
    assert len(found) >= min(moments, counted["total"]) - 1
    for moment in found:
        assert moment["code"] == KILLED
        after, then = moment["after"], moment["then"]
        assert after["visible"] in ({}, whole["visible"]), "something unfinished, or damaged, is in the output folder"
        for name, files in after["entries"].items():
            assert files == whole["entries"][name], f"the store holds a wrong result: {name}"
        assert moment["next_code"] == 0, moment["log"]
        assert then["visible"] == whole["visible"], "the next run made another bundle"
        assert digest in then["visible"].values()
        assert then["entries"] == whole["entries"]
        assert then["temporary"] == [], "what a killed run left in the store stays"
        assert then["hidden"] == [], "what a killed run left in the output folder stays"
    return found


def test_a_build_killed_while_it_fills_the_store_completes_next_time(model: Workplace) -> None:
    found = check_build(model, "cold", 16, "--no-profile")
    counts = [len(moment["after"]["entries"]) for moment in found]
    assert counts == sorted(counts)
    assert counts[0] == 0, "the first moment is before the first result"
    assert len(set(counts)) > 5, "the moments are spread over the steps"
    assert any(moment["after"]["temporary"] for moment in found), "some moments are in the midst of a step"
    resumed = [moment for moment in found if moment["after"]["entries"]]
    assert all(": cached" in moment["log"] for moment in resumed), "finished steps are kept"


def test_a_build_killed_while_it_measures_and_publishes_completes_next_time(model: Workplace) -> None:
    found = check_build(model, "warm", 10)
    assert any(moment["after"]["hidden"] for moment in found), "some moments are in the midst of publishing"
    assert found[-1]["after"]["visible"], "the last moment is after it was published"
    assert not found[0]["after"]["visible"]


def test_staging_folders_of_killed_runs_are_removed_and_nothing_else_is(model: Workplace) -> None:
    flags = ("model.onnx", "--calib", "calib.npz", "--no-profile")
    _, bundle = model.built(*flags)
    output = bundle.parent
    own, old, young, other = (
        output / f".{bundle.name}-0123456789ab",
        output / ".gone-cpu-0123456789ab-0123456789ab",
        output / ".busy-cpu-0123456789ab-0123456789ab",
        output / ".git",
    )
    for folder in (own, old, young, other):
        (folder / "inside").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (0, 0))
    target, again = model.built(*flags)
    assert (target["cached"], again) == (True, bundle)
    assert sorted(output.iterdir()) == sorted([bundle, young, other]), "another bundle may just be in the making"


def test_a_damaged_bundle_makes_room_for_a_whole_one(model: Workplace) -> None:
    flags = ("model.onnx", "--calib", "calib.npz", "--no-profile")
    _, bundle = model.built(*flags)
    (bundle / "README.md").write_text("changed")
    target, again = model.built(*flags)
    assert (target["cached"], again) == (False, bundle)
    assert (bundle / "README.md").read_text() != "changed"
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_profile_run_killed_while_it_writes_leaves_a_bundle_that_the_next_one_mends(model: Workplace) -> None:
    _, bundle = model.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    (bundle / "profiles").mkdir()
    for name in ("manifest.json", "profiles/host.json"):
        path = bundle / name
        path.with_name(f".{path.name}.{'0' * 32}").write_bytes(b"{half")
    assert model.run("verify", bundle, "--no-run").code == 6, "it is not taken for whole"
    flags = ("--min-seconds", "0.02", "--max-seconds", "0.5")
    result = model.run("profile", bundle, *flags)
    assert result.code == 0, result.err
    assert model.run("verify", bundle, "--no-run").code == 0


def test_profiles_measured_elsewhere_survive_a_new_measurement(model: Workplace) -> None:
    import msgspec

    from exporter.artifacts import Profile, canonical
    from exporter.bundle import read_manifest, read_profiles, sealed_profile
    from exporter.pipeline.publish import set_default

    flags = ("model.onnx", "--calib", "calib.npz")
    _, bundle = model.built(*flags)
    ((name, profile),) = read_profiles(bundle, read_manifest(bundle)).items()
    elsewhere: Profile = sealed_profile(
        msgspec.structs.replace(profile, runtime=msgspec.structs.replace(profile.runtime, version="1.0"))
    )
    (bundle / "profiles" / name).unlink()
    (bundle / "profiles" / "elsewhere.json").write_bytes(canonical(elsewhere))
    manifest = read_manifest(bundle)
    set_default(bundle, manifest, msgspec.structs.replace(manifest.choice, profile="elsewhere.json"))
    target, _ = model.built(*flags)
    assert not target["cached"], "the only profile is of another runtime"
    assert set(read_profiles(bundle, read_manifest(bundle))) == {name, "elsewhere.json"}
