"""benchmark_model on a phone: sent by digest, run, parsed, and kept apart from what a bundle measures itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support import Workplace, put_adb_on_path, refused

from exporter.artifacts import Manifest
from exporter.bundle import read_manifest
from exporter.devices import BenchmarkDevice
from exporter.devices.benchmark import parsed
from exporter.devices.config import DevicePlan, NamedDevice
from exporter.errors import MissingError, StageError
from exporter.events import Event, StepFinished
from exporter.plan_types import ProfilePlan

PRINTED = """\
INFO: STARTING!
INFO: Loaded model m.tflite
INFO: Initialized session in 17.187ms.
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 median=51962 p95=87112

INFO: count=1000 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=60716 p5=49620 median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 58147.4, Inference (avg): 63743.2
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=57.25
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A connected phone; gives the folder that plays its file system."""
    put_adb_on_path(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def material(shared_place: Workplace) -> tuple[Path, Manifest]:
    """A bundle's folder and a manifest whose first variant is a .tflite file."""
    shared_place.onnx()
    shared_place.quadrants()
    _, bundle = shared_place.built("model.onnx", "--calib", "calib.npz", "--no-profile")
    manifest = read_manifest(bundle)
    model = bundle / "variants" / "fp32" / "model.tflite"
    model.write_bytes(b"TFL3" * 1000)
    first = msgspec.structs.replace(manifest.variants[0], main="variants/fp32/model.tflite")
    return bundle, msgspec.structs.replace(manifest, variants=(first, *manifest.variants[1:]))


def binary(folder: Path, body: str) -> Path:
    path = folder / "benchmark_model"
    path.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\n{body}\n')
    return path


def device(folder: Path, body: str = f"cat <<'END' >&2\n{PRINTED}END", **keys: object) -> BenchmarkDevice:
    tool = binary(folder, body)
    home = str(folder / "data" / "on $HOME")
    plan = msgspec.convert({"address": "adb:R58M", "folder": home, "wait_seconds": 0, **keys}, DevicePlan)
    return BenchmarkDevice(NamedDevice(name="phone", plan=plan), tool)


def noted() -> tuple[list[Event], Callable[[Event], None]]:
    events: list[Event] = []
    return events, events.append


def test_files_are_sent_by_digest_and_times_are_what_the_tool_printed(phone, material) -> None:
    bundle, manifest = material
    events, emit = noted()
    with device(phone).ready(bundle, manifest, emit) as ready:
        profile = ready.profile(ProfilePlan(threads=2, affinity=(0,), min_samples=50))
    (variant,) = profile.variants
    assert (variant.count, variant.median_us, variant.p95_us) == (1000, 51891, 68628)
    assert (variant.init_us, variant.first_us, variant.memory_mb) == (119515, 87112, 57.25)
    assert (profile.self_test, profile.threads, profile.affinity) == ("not run", 2, (0,))
    assert "not measured: int8 is no .tflite file" in profile.flags
    asked = (phone / "arguments").read_text()
    assert "--num_threads=2" in asked
    assert "--num_runs=50" in asked
    assert [event.cached for event in events if isinstance(event, StepFinished)] == [False, False]
    # The binary stays, as an environment does; the model went.
    assert len(list((phone / "data" / "on $HOME" / "blobs").iterdir())) == 1
    again, emit = noted()
    with device(phone).ready(bundle, manifest, emit):
        pass
    assert sorted(event.cached for event in again if isinstance(event, StepFinished)) == [False, True]


def test_one_exporter_at_a_time(phone, material) -> None:
    bundle, manifest = material
    _, emit = noted()
    with (
        device(phone).ready(bundle, manifest, emit),
        pytest.raises(MissingError, match="phone is in use"),
        device(phone).ready(bundle, manifest, emit),
    ):
        pass
    with device(phone).ready(bundle, manifest, emit):
        pass


def test_a_tool_that_fails_or_prints_something_else_is_an_error(phone, material) -> None:
    bundle, manifest = material
    _, emit = noted()
    for body, words in (("echo broken model >&2; exit 1", "ended with exit code 1"), ("echo hi", "no timings")):
        with device(phone, body).ready(bundle, manifest, emit) as ready, pytest.raises(StageError, match=words):
            ready.profile(ProfilePlan())


def test_older_versions_print_no_median() -> None:
    text = "count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798\n" + PRINTED[-230:]
    found = parsed("fp32", text, "phone")
    assert (found.count, found.mean_us, found.median_us) == (50, 2950340.0, None)


def test_a_bundle_without_tflite_files_is_refused(shared_place, material, phone) -> None:
    bundle, _ = material
    (bundle / "variants" / "fp32" / "model.tflite").unlink()
    keys = {"address": "adb:R58M", "benchmark_binary": str(binary(phone, ":"))}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    (phone / "devices.toml").write_text("\n".join(["schema = 1", "[devices.phone]", *lines]) + "\n")
    flags = ("--device", "phone", "--devices", phone / "devices.toml")
    refused(shared_place.run("profile", bundle, *flags), 3, "the bundle has none", "--target mobile")
    refused(shared_place.run("profile", bundle, *flags, "--set-default"), 2, "compares no outputs")
