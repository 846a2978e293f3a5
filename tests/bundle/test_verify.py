"""verify: a bundle holds what its manifest claims, to the byte, and nothing else; attackers included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Workplace, quadrant_onnx, refused

from exporter.artifacts import FileEntry, Manifest, canonical, file_digest
from exporter.bundle import (
    check_bundle,
    check_runtime_signature,
    read_manifest,
    read_profiles,
    sealed_manifest,
    sealed_profile,
)
from exporter.errors import BundleError


@pytest.fixture(scope="module")
def original(shared_place: Workplace) -> Path:
    """A measured bundle that no test changes."""
    shared_place.onnx()
    shared_place.quadrants()
    _, bundle = shared_place.built("model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    return bundle


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy under another name, for one test to damage."""
    return Path(shutil.copytree(original, tmp_path / "copied bundle"))


def files_of(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def contents(bundle: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((bundle / name).read_bytes(), (bundle / name).stat().st_mtime_ns) for name in files_of(bundle)}


def fails(place: Workplace, bundle: Path, *mentions: str, run: bool = False) -> str:
    return refused(place.run("verify", bundle, *([] if run else ["--no-run"])), 6, *mentions, hint=False)


def resealed(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Rewrites the manifest, and profiles to match, as someone who knows how they are sealed would."""
    before = read_manifest(bundle)
    after = sealed_manifest(change(before))
    for name, profile in read_profiles(bundle, before).items():
        moved = sealed_profile(msgspec.structs.replace(profile, bundle_digest=after.digest))
        (bundle / "profiles" / name).write_bytes(canonical(moved))
    (bundle / "manifest.json").write_bytes(canonical(after))


# --- what holds ----------------------------------------------------------------------------------------------------


def test_an_intact_bundle_passes_with_its_self_test_and_stays_as_it_was(shared_place, bundle):
    before = contents(bundle)
    result = shared_place.run("verify", bundle)
    assert result.code == 0, result.err
    profiles = sum(name.startswith("profiles/") for name in before)
    assert f"{len(before) - profiles} files are as they were written" in result.out
    for variant in ("fp32", "int8"):
        assert f"  {variant}: passed, 9 cases" in result.out
    assert contents(bundle) == before
    folders = {path.name for path in bundle.rglob("*") if path.is_dir()}
    assert folders == {"fp32", "int8", "profiles", "variants"}


def test_the_document_says_what_was_tested_and_where(shared_place, bundle):
    document = shared_place.run("verify", bundle, "--json").document
    assert document["digest"] == read_manifest(bundle).digest
    assert document["self_test"]["passed"] is True
    assert [variant["variant"] for variant in document["self_test"]["variants"]] == ["fp32", "int8"]
    without = shared_place.run("verify", bundle, "--no-run", "--json").document
    assert without["self_test"] is None


def test_without_running_no_code_of_the_bundle_runs(shared_place, bundle, tmp_path):
    marker = tmp_path / "ran"
    text = (bundle / "run.py").read_text() + f"\nopen({str(marker)!r}, 'w').close()\n"
    (bundle / "run.py").write_text(text)

    def hashed_anew(manifest: Manifest) -> Manifest:
        entries = tuple(
            entry if entry.path != "run.py" else FileEntry(
                path="run.py", sha256=file_digest(bundle / "run.py"), size=(bundle / "run.py").stat().st_size
            )
            for entry in manifest.files
        )  # fmt: skip
        return msgspec.structs.replace(manifest, files=entries)

    resealed(bundle, hashed_anew)
    assert shared_place.run("verify", bundle, "--no-run").code == 0
    assert not marker.exists()


def test_a_bundle_may_be_moved_and_renamed(shared_place, original, tmp_path):
    moved = tmp_path / "deep" / "er" / "name with spaces"
    shutil.copytree(original, moved)
    assert shared_place.run("verify", moved).code == 0


def test_a_bundle_may_be_given_relative_to_the_working_folder_or_with_a_slash(shared_place, original):
    relative = f"{original.relative_to(shared_place.folder)}/"
    assert shared_place.run("verify", relative).code == 0


# --- what does not -------------------------------------------------------------------------------------------------


def test_one_flipped_bit_at_either_end_or_in_the_middle_of_every_file_is_found(shared_place, bundle):
    names = files_of(bundle)
    assert {"manifest.json", "run.py", "samples.npz", "variants/int8/model.onnx", "plan.toml"} <= set(names)
    assert any(name.startswith("profiles/") for name in names)
    for name in names:
        content = (bundle / name).read_bytes()
        for offset in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
            damaged = bytearray(content)
            damaged[offset] ^= 1
            (bundle / name).write_bytes(damaged)
            fails(shared_place, bundle, name)
        (bundle / name).write_bytes(content)
    check_bundle(bundle)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found_and_its_file_is_named(bundle, data):
    name = data.draw(st.sampled_from(files_of(bundle)))
    content = (bundle / name).read_bytes()
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (bundle / name).write_bytes(damaged)
    try:
        with pytest.raises(BundleError) as caught:
            check_bundle(bundle)
        assert name in str(caught.value)
    finally:
        (bundle / name).write_bytes(content)


@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
def test_a_file_of_another_length_is_found(shared_place, bundle, change):
    for name in files_of(bundle):
        content = (bundle / name).read_bytes()
        made = {"cut": content[:-1], "longer": content + b"\n", "empty": b""}[change]
        (bundle / name).write_bytes(made)
        fails(shared_place, bundle, name)
        (bundle / name).write_bytes(content)


def test_every_missing_file_is_found_and_several_are_told_together(shared_place, bundle):
    for name in files_of(bundle):
        if name.startswith("profiles/"):
            continue
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        fails(shared_place, bundle, name)
        (bundle / name).write_bytes(content)
    (bundle / "run.py").unlink()
    (bundle / "samples.npz").unlink()
    fails(shared_place, bundle, "run.py: missing", "samples.npz: missing")


def test_the_profile_that_the_default_rests_on_must_be_there(shared_place, bundle):
    (profile,) = (bundle / "profiles").iterdir()
    profile.unlink()
    (bundle / "profiles").rmdir()
    fails(shared_place, bundle, profile.name)


@pytest.mark.parametrize(
    "name",
    ["extra.py", ".hidden", "variants/int8/w.data", "__pycache__/run.pyc", "profiles/x.txt", "profiles/a/b.json"],
)
def test_an_added_file_is_found(shared_place, bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"")
    fails(shared_place, bundle, f"{name}: added")


@pytest.mark.parametrize("name", ["empty", "variants/empty", "profiles/empty"])
def test_an_added_empty_folder_is_found(shared_place, bundle, name):
    (bundle / name).mkdir()
    fails(shared_place, bundle, name)


def test_a_file_replaced_by_another_of_equal_size_is_found(shared_place, bundle):
    size = (bundle / "run.py").stat().st_size
    (bundle / "run.py").write_bytes(b"#" * size)
    fails(shared_place, bundle, "run.py")


def test_a_file_replaced_by_a_folder_is_found(shared_place, bundle):
    (bundle / "run.py").unlink()
    (bundle / "run.py").mkdir()
    (bundle / "run.py" / "x").write_bytes(b"")
    fails(shared_place, bundle, "run.py")


@pytest.mark.parametrize("name", ["run.py", "samples.npz", "manifest.json", "variants/fp32", "profiles"])
def test_a_symbolic_link_is_found_even_to_an_equal_file(shared_place, bundle, tmp_path, name):
    outside = tmp_path / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    fails(shared_place, bundle, name, "symbolic link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_does_not_make_verify_hang(shared_place, bundle):
    for name in ("pipe", "run.py"):
        (bundle / name).unlink(missing_ok=True)
        os.mkfifo(bundle / name)
        fails(shared_place, bundle, name)
        (bundle / name).unlink()
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    fails(shared_place, bundle, "manifest.json")


def test_something_else_than_a_bundle_is_told(shared_place, tmp_path):
    fails(shared_place, tmp_path, "manifest.json", "missing")
    (tmp_path / "file").write_bytes(b"")
    refused(shared_place.run("verify", tmp_path / "nothing"), 3, "no such bundle folder", "nothing")
    refused(shared_place.run("verify", tmp_path / "file"), 3, "a bundle's folder is needed", "file")


# --- attackers who can seal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../outside", "variants/../../outside", "a//b", "./run.py", "C:x", "a\\b", ""]
)
def test_a_path_that_leaves_the_bundle_is_refused_however_well_it_is_sealed(shared_place, bundle, path):
    (bundle.parent / "outside").write_bytes(b"x")
    added = FileEntry(path=path, sha256="0" * 64, size=1)
    resealed(bundle, lambda manifest: msgspec.structs.replace(manifest, files=(*manifest.files, added)))
    fails(shared_place, bundle, "manifest.json", repr(path))


def test_a_variants_file_outside_of_the_bundle_is_refused(shared_place, bundle):
    def changed(manifest: Manifest) -> Manifest:
        first, *rest = manifest.variants
        return msgspec.structs.replace(manifest, variants=(msgspec.structs.replace(first, main="../m.onnx"), *rest))

    resealed(bundle, changed)
    fails(shared_place, bundle, "'../m.onnx'")


def test_a_file_listed_twice_is_refused(shared_place, bundle):
    resealed(bundle, lambda manifest: msgspec.structs.replace(manifest, files=(*manifest.files, manifest.files[0])))
    fails(shared_place, bundle, "manifest.json", "twice")


def test_a_variants_file_that_is_not_listed_is_refused(shared_place, bundle):
    def changed(manifest: Manifest) -> Manifest:
        first, *rest = manifest.variants
        moved = msgspec.structs.replace(first, main="variants/none/model.onnx")
        return msgspec.structs.replace(manifest, variants=(moved, *rest))

    resealed(bundle, changed)
    fails(shared_place, bundle, "variants/none/model.onnx")


def test_a_default_variant_that_is_not_there_is_refused(shared_place, bundle):
    def changed(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, choice=msgspec.structs.replace(manifest.choice, variant="int4"))

    resealed(bundle, changed)
    fails(shared_place, bundle, "'int4'")


def test_a_signature_that_the_models_do_not_have_is_found_by_running_them(shared_place, bundle):
    def changed(manifest: Manifest) -> Manifest:
        (image,) = manifest.signature.inputs
        wrong = msgspec.structs.replace(image, name="picture")
        return msgspec.structs.replace(
            manifest, signature=msgspec.structs.replace(manifest.signature, inputs=(wrong,))
        )

    resealed(bundle, changed)
    fails(shared_place, bundle, "picture", run=True)


def test_a_profile_of_another_bundle_is_refused(shared_place, bundle):
    manifest = read_manifest(bundle)
    ((name, profile),) = read_profiles(bundle, manifest).items()
    other = sealed_profile(msgspec.structs.replace(profile, bundle_digest="0" * 64))
    (bundle / "profiles" / name).write_bytes(canonical(other))
    fails(shared_place, bundle, name, "another bundle")


@pytest.mark.parametrize("text", [b"{}", b"[]", b"nothing", b"", b"[" * 100_000, b'{"schema":2}'])
def test_a_manifest_that_is_none_is_told(shared_place, bundle, text):
    (bundle / "manifest.json").write_bytes(text)
    fails(shared_place, bundle, "manifest.json")


def test_a_manifest_without_what_later_versions_write_is_told_from_a_damaged_one(shared_place, bundle):
    document = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    for variant in document["variants"]:
        for output in variant["fidelity"]["outputs"]:
            del output["weakest"]
    (bundle / "manifest.json").write_bytes(canonical(document))
    refused(
        shared_place.run("verify", bundle),
        6,
        "lacks what this version",
        "another version made it",
        "build the bundle",
    )


def test_a_self_test_that_fails_is_told_with_the_variant(shared_place, bundle):
    model = bundle / "variants" / "fp32" / "model.onnx"
    model.write_bytes(quadrant_onnx(scale=1.5).SerializeToString())

    def hashed_anew(manifest: Manifest) -> Manifest:
        entry = FileEntry(path="variants/fp32/model.onnx", sha256=file_digest(model), size=model.stat().st_size)
        others = [old for old in manifest.files if old.path != entry.path]
        return msgspec.structs.replace(manifest, files=tuple(sorted([*others, entry], key=lambda one: one.path)))

    resealed(bundle, hashed_anew)
    assert shared_place.run("verify", bundle, "--no-run").code == 0
    fails(shared_place, bundle, "self-test", "fp32", "scores", run=True)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ([{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}], "['x']"),
        ([{"name": "image", "dtype": "float16", "shape": ["batch", 1, 8, 8]}], "float16"),
        ([{"name": "image", "dtype": "float32", "shape": [None, 1, 8, 9]}], "8, 9]"),
        ([{"name": "image", "dtype": "float32", "shape": [None, 1, 8]}], "1, 8]"),
        ([], "[]"),
    ],
)
def test_what_a_runtime_reports_must_be_the_signature(original, reported, words):
    manifest = read_manifest(original)
    with pytest.raises(BundleError) as caught:
        check_runtime_signature(manifest, "fp32", "inputs", reported)
    assert words in str(caught.value)
    right = [{"name": "image", "dtype": "float32", "shape": [None, 1, 8, 8]}]
    check_runtime_signature(manifest, "fp32", "inputs", right)


# --- fresh environments --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("minimum", [False, True])
def test_the_self_test_passes_in_an_environment_made_from_the_bundles_requirements(shared_place, bundle, minimum):
    before = contents(bundle)
    result = shared_place.run("verify", bundle, "--isolated", *(["--minimum"] if minimum else []), "--json")
    assert result.code == 0, result.err
    runtime = result.document["self_test"]["runtime"]
    assert runtime["name"] == "onnxruntime"
    assert runtime["version"].startswith("1.19.") == minimum
    assert result.document["environment"] == "a fresh environment"
    assert contents(bundle) == before


@pytest.mark.slow
def test_requirements_that_cannot_be_had_are_told(shared_place, bundle, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    refused(shared_place.run("verify", bundle, "--isolated"), 4, "onnxruntime", "package index")
