"""Profiles from devices that nobody here can reach: kept apart from measured ones, refused when they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import Workplace, refused

from exporter.bundle import read_manifest, read_profiles


@pytest.fixture(scope="module")
def printed(ready: Workplace) -> dict[str, Any]:
    """What the bundle's runner prints, copied to a folder of its own as it would be to a device."""
    _, bundle = ready.built("model.onnx", "--calib", "calib.npz", "--no-profile", "--output", str(ready / "first"))
    flags = ["--bench", "--json", "--min-seconds", "0.02", "--max-seconds", "0.3"]
    command = [sys.executable, "-B", str(bundle / "run.py"), *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


@pytest.fixture
def bundle(ready: Workplace, tmp_path: Path) -> Path:
    _, made = ready.built("model.onnx", "--calib", "calib.npz", "--no-profile", "--output", str(tmp_path / "b"))
    return made


def written(folder: Path, document: object, name: str = "camera.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def test_an_imported_profile_is_kept_as_imported_and_decides_nothing(ready, bundle, printed, tmp_path) -> None:
    before = read_manifest(bundle)
    result = ready.run("profile", bundle, "--import", written(tmp_path, printed))
    assert result.code == 0, result.err
    assert "imported on camera: " in result.out
    ((name, profile),) = read_profiles(bundle, before).items()
    assert name.startswith("imported-camera-")
    assert (profile.device, profile.provenance) == ("camera", "imported")
    assert list(profile.variants[0].samples_ns) == printed["variants"][0]["samples_ns"]
    assert read_manifest(bundle) == before
    assert ready.run("verify", bundle, "--no-run").code == 0


def test_it_may_be_named_and_may_choose_the_default_when_told_to(ready, bundle, printed, tmp_path) -> None:
    result = ready.run("profile", bundle, "--import", written(tmp_path, printed), "--as", "door", "--set-default")
    assert result.code == 0, result.err
    assert "(door, imported)" in read_manifest(bundle).choice.why
    assert ready.run("verify", bundle, "--no-run").code == 0


def test_a_build_does_not_take_an_imported_profile_for_its_own(ready, printed, tmp_path) -> None:
    build = ("model.onnx", "--calib", "calib.npz", "--output", str(tmp_path / "measured"))
    _, bundle = ready.built(*build)
    mine = {**printed, "bundle_digest": read_manifest(bundle).digest}
    assert ready.run("profile", bundle, "--import", written(tmp_path, mine), "--set-default").code == 0
    document, again = ready.built(*build)
    assert again == bundle
    assert document["profile"]["provenance"] == "native"
    assert document["default"]["profile"].startswith("imported-") is False
    provenances = sorted(profile.provenance for profile in read_profiles(bundle, read_manifest(bundle)).values())
    assert provenances == ["imported", "native"]


def test_a_profile_of_another_bundle_is_refused(ready, bundle, printed, tmp_path) -> None:
    other = {**printed, "bundle_digest": "0" * 64}
    refused(ready.run("profile", bundle, "--import", written(tmp_path, other)), 6, "belongs to another bundle")
    assert read_profiles(bundle, read_manifest(bundle)) == {}


def test_a_failed_self_test_is_refused(ready, bundle, printed, tmp_path) -> None:
    for document in ({**printed, "self_test": "failed"}, {"passed": False, "problems": ["run.py: missing"]}):
        result = ready.run("profile", bundle, "--import", written(tmp_path, document))
        refused(result, 6, "self-test did not pass", hint=False)
    assert read_profiles(bundle, read_manifest(bundle)) == {}


def changed(printed: dict[str, Any], **summary: object) -> dict[str, Any]:
    first, *rest = printed["variants"]
    return {**printed, "variants": [{**first, "summary": {**first["summary"], **summary}}, *rest]}


def test_numbers_that_contradict_their_samples_are_refused(ready, bundle, printed, tmp_path) -> None:
    for summary in ({"median": 1.0}, {"minimum": 1}, {"count": 3}, {"percentiles": {"p50": 1}}):
        result = ready.run("profile", bundle, "--import", written(tmp_path, changed(printed, **summary)))
        refused(result, 6, "contradicts itself", hint=False)
    unknown = json.loads(json.dumps(printed).replace('"variant": "int8"', '"variant": "int4"'))
    refused(ready.run("profile", bundle, "--import", written(tmp_path, unknown)), 6, "variants are not", hint=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("variant median\nfp32 1.2\n", "no JSON document"),
        ("[1]", "no JSON document"),
        ('{"passed": true}', "report of a self-test"),
        ('{"schema": 1}', "no profile"),
        ("[" * 100_000, "no JSON document"),
    ],
)
def test_what_is_no_profile_is_refused(ready, bundle, tmp_path, text, words) -> None:
    path = tmp_path / "camera.json"
    path.write_text(text)
    refused(ready.run("profile", bundle, "--import", path), 3, words, "run.py --bench --json")


def test_options_that_would_do_nothing_are_errors(ready, bundle, printed, tmp_path) -> None:
    file = written(tmp_path, printed)
    refused(ready.run("profile", bundle, "--import", file, "--threads", "2"), 2, "--import measures nothing")
    refused(ready.run("profile", bundle, "--as", "x"), 2, "--import", hint=False)
    refused(ready.run("profile", bundle, "--import", file, "--as", "local"), 2, "cannot name a device")
    refused(ready.run("profile", bundle, "--import", tmp_path / "none.json"), 3, "does not exist")
