"""A full disk, or one that cannot be written, gives an error that says so; nothing half-written stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, Workplace

SCRIPT = Path(__file__).with_name("full.py")


@cache
def private_mounts() -> tuple[str, ...]:
    """The command that gives a process mounts of its own, as root or as a user; empty where neither may."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return ()
    for flags in (("-m",), ("-rm",)):
        probe = ["unshare", *flags, "mount", "-t", "tmpfs", "-o", "size=8192", "tmpfs", "/mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return ("unshare", *flags)
    return ()


needs_mounts = pytest.mark.skipif(not private_mounts(), reason="this user may not mount a small disk (unshare -rm)")


@pytest.fixture
def model(place: Workplace) -> Workplace:
    place.onnx(width=256)
    place.quadrants()
    return place


def found(place: Workplace, *arguments: str, mounts: bool = True, profile: bool = False) -> list[dict[str, Any]]:
    build = ["build", str(place / "model.onnx"), "--calib", str(place / "calib.npz"), *QUICK]
    scenario, *rest = arguments
    where = rest[:1] if mounts else []
    count = rest[1:]
    command = [
        *(private_mounts() if mounts else ()), sys.executable, SCRIPT, scenario, *where, place.folder, *count, *build,
        *(() if profile else ("--no-profile",)),
    ]  # fmt: skip
    done = subprocess.run(command, env=place.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(whole: dict[str, Any], tries: list[dict[str, Any]], *words: str) -> None:
    assert whole["code"] == 0, whole["log"]
    assert len(whole["visible"]) == 1
    for one in tries:
        assert one["code"] == 5, one["log"]
        error = one["log"].partition("error: ")[2]
        assert any(word in error for word in words), error
        assert "hint:  " in error
        assert "run the same command again" in error
        assert "Traceback" not in one["log"]
        assert "a bug in" not in one["log"]
        after, then = one["after"], one["then"]
        assert after["visible"] == {}, "a bundle was published"
        assert after["hidden"] == after["temporary"] == [], "something half-written stays and takes space"
        assert "damaged" not in after["entries"].values(), "a half-written result was stored"
        for name, files in after["entries"].items():
            assert files == whole["entries"][name], f"the store holds a wrong result: {name}"
        assert one["next_code"] == 0, one["next_log"]
        assert then["visible"] == whole["visible"]
        assert then["entries"] == whole["entries"]


@needs_mounts
def test_a_disk_too_small_for_the_store_is_named_at_whatever_step_it_fills(model: Workplace) -> None:
    whole, *tries = found(model, "tmpfs", "store", "10")
    assert len(tries) >= 10
    check(whole, tries, "no space left on the disk")
    counts = {len(one["after"]["entries"]) for one in tries}
    assert len(counts) > 4, "it fills at several steps"
    kept = [one for one in tries if one["after"]["entries"]]
    assert all(": cached" in one["next_log"] for one in kept), "finished steps are kept"


@needs_mounts
def test_a_disk_too_small_for_the_bundle_is_named_and_nothing_is_published(model: Workplace) -> None:
    whole, *tries = found(model, "tmpfs", "output", "5", profile=True)
    assert len(tries) == 5
    check(whole, tries, "no space left on the disk")
    assert "measure latency" in tries[-1]["log"], "it also fills while the profile is written"


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
def test_a_limit_on_the_size_of_files_is_named_and_nothing_half_written_stays(model: Workplace) -> None:
    whole, *tries = found(model, "limit", mounts=False)
    assert tries
    check(whole, tries, "larger than the disk or a limit allows")


@needs_mounts
@pytest.mark.parametrize(("where", "hint"), [("output", "--output"), ("store", "EDGE_EXPORTER_CACHE")])
def test_a_read_only_disk_is_the_users_error_before_any_work(model: Workplace, where: str, hint: str) -> None:
    (one,) = found(model, "readonly", where)
    assert one["code"] == 3, one["log"]
    assert "Read-only file system" in one["log"]
    assert hint in one["log"]
    assert (one["entries"], one["visible"], one["hidden"]) == ({}, {}, [])
    assert "quantize" not in one["log"]


@pytest.mark.parametrize("output", ["taken", "taken/below"])
def test_a_file_in_place_of_the_output_folder_is_the_users_error_before_any_work(
    model: Workplace, output: str
) -> None:
    taken = model.write("taken", "a file")
    result = model.build("model.onnx", "--calib", "calib.npz", "--output", output)
    assert result.code == 3
    assert json.loads(result.out)["error"]["what"] == "the output folder cannot be written"
    assert result.err.startswith("error: the output folder cannot be written\n")
    assert str(taken) in result.err
    assert "hint:  choose another one with --output" in result.err
    assert result.events == [], "no step has begun"
    assert taken.read_text() == "a file"
    assert not (model.cache / "v1").exists()


@pytest.mark.parametrize("command", ["build", "init", "plan"])
def test_a_file_in_place_of_the_store_is_the_users_error(model: Workplace, command: str) -> None:
    model.write(
        "plan.toml", 'schema = 1\n[model]\nsource = "model.onnx"\n[calibration]\ndata = "calib.npz"\n[targets.cpu]\n'
    )
    model.cache.write_text("a file")
    arguments = {
        "build": ("model.onnx", "--calib", "calib.npz"),
        "init": ("model.onnx", "--calib", "calib.npz", "--force"),
        "plan": ("plan.toml",),
    }[command]
    result = model.run(command, *arguments)
    assert result.code == 3, result.err
    assert "EDGE_EXPORTER_CACHE" in result.err
    assert model.bundles() == []


def test_a_probe_of_a_killed_run_does_not_stay(model: Workplace) -> None:
    probe = model.folder / "bundles" / ".edge-exporter-probe"
    probe.parent.mkdir()
    probe.write_bytes(b"")
    model.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    assert not probe.exists()
