"""The runner checks its bundle first: what was changed, planted or points elsewhere is named and not run."""

import importlib.util
import json
import py_compile
import sys
from pathlib import Path

import msgspec
import pytest
from lone_bundle import FILES, QUICK, TOKEN, X, flip, manifest_of, report, run, save_npz

from exporter.artifacts import (
    FileEntry,
    canonical,
)


def test_an_intact_bundle_passes_and_the_report_says_what_the_runtime_sees(bundle: Path) -> None:
    found = report(bundle, 0)
    assert [tested["variant"] for tested in found["variants"]] == ["fp32", "int8", "third"]
    for tested in found["variants"]:
        assert tested["passed"] is True
        assert tested["cases"] == 3
        assert tested["problems"] == []
        assert 0 <= tested["max_abs_error"] <= 1e-4
        assert 0 < tested["exact_share"] <= 1
        assert tested["max_quanta"] == pytest.approx(tested["max_abs_error"] / 0.01)
        assert tested["inputs"] == [
            {"name": "x", "dtype": "float32", "shape": ["batch", 4]},
            {"name": "token", "dtype": "int64", "shape": ["batch"]},
        ]
        assert [spec["name"] for spec in tested["outputs"]] == ["y", "file"]
    assert set(found["runtime"]) == {"name", "version", "provider", "numpy", "others"}
    assert found["host"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_only_the_named_variant_is_tested(bundle: Path) -> None:
    assert [tested["variant"] for tested in report(bundle, 0, "--variant", "third")["variants"]] == ["third"]


def test_people_get_one_line_a_variant_on_stdout(bundle: Path) -> None:
    done = run(bundle, "--self-test")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("fp32         passed  3 cases, max abs error ")
    assert lines[-1].startswith("self-test passed on onnxruntime ")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["variants/int8/model.onnx", "samples.npz", "README.md", *FILES])
def test_a_flipped_byte_fails_and_names_the_file(bundle: Path, name: str) -> None:
    if name == "run.py":
        (bundle / name).write_text((bundle / name).read_text().replace("Runs, tests", "Runs, Tests"))
    else:
        flip(bundle / name)
    found = report(bundle, 6)
    assert len(found["problems"]) == 1
    assert found["problems"][0] == f"{name}: contents differ from the manifest's sha256"
    assert found["variants"] == []
    done = run(bundle, "--self-test")
    assert done.returncode == 6
    assert name in done.stdout


@pytest.mark.parametrize("name", sorted(set(FILES) - {"run.py"}))
def test_code_of_the_bundle_that_was_changed_is_not_run(bundle: Path, name: str) -> None:
    (bundle / name).write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    for arguments in (["--self-test"], ["--bench", *QUICK], ["--input", "x.npz", "--output", "y.npz"], []):
        done = run(bundle, *arguments)
        assert done.returncode == 6
        assert f"- {name}: has 64 bytes instead of " in done.stdout + done.stderr
    assert not (bundle / "ran").exists()


def test_of_files_that_differ_all_are_named(bundle: Path) -> None:
    for name in ("README.md", "stats.py", "samples.npz"):
        flip(bundle / name)
    (bundle / "numpy.py").touch()
    names = [problem.split(":")[0] for problem in report(bundle, 6)["problems"]]
    assert names == ["README.md", "samples.npz", "stats.py", "numpy.py"]


HIJACK = "raise SystemExit('hijacked')\n"


def planted(bundle: Path, name: str) -> None:
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(HIJACK)


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("numpy.py", "numpy.py"),
        ("numpy/__init__.py", "numpy"),
        ("onnxruntime/__init__.py", "onnxruntime"),
        ("json.py", "json.py"),
        ("__future__.py", "__future__.py"),
        ("argparse/__init__.py", "argparse"),
        ("helper.py", "helper.py"),
        ("numpy.pyc", "numpy.pyc"),
        ("numpy.abi3.so", "numpy.abi3.so"),
    ],
)
def test_a_module_planted_in_the_bundle_is_reported_and_never_imported(
    bundle: Path, tmp_path: Path, name: str, reported: str
) -> None:
    planted(bundle, name)
    done = run(bundle, "--self-test", "--json", cwd=bundle)
    assert done.returncode == 6
    words = f"{reported}: not listed in manifest.json, but Python could import it"
    assert json.loads(done.stdout)["problems"] == [words]
    assert f"  - {words}" in run(bundle, "--self-test").stdout
    assert "nothing was measured" in run(bundle, "--bench").stderr
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    for arguments in ([], ["-h"], ["--input", given, "--output", tmp_path / "y.npz"]):
        used = run(bundle, *arguments, cwd=bundle)
        assert used.returncode == 0, used.stderr
        assert "hijacked" not in used.stdout + used.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
@pytest.mark.parametrize("flag", ["-P", "-I", "-S"])
def test_flags_of_python_that_change_its_path_change_nothing(bundle: Path, flag: str) -> None:
    (bundle / "os.py").write_text(HIJACK)
    assert run(bundle, cwd=bundle, flags=[flag]).returncode == 0


def test_the_bundle_on_the_users_path_does_not_lend_its_modules(bundle: Path) -> None:
    (bundle / "numpy.py").write_text(HIJACK)
    done = run(bundle, "--self-test", "--json", PYTHONPATH=str(bundle))
    assert [problem.split(":")[0] for problem in json.loads(done.stdout)["problems"]] == ["numpy.py"]
    given = save_npz(bundle.parent / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", bundle.parent / "y.npz", PYTHONPATH=str(bundle))
    assert done.returncode == 0, done.stderr


def test_a_bundle_reached_through_a_link_is_off_the_path_too(bundle: Path, tmp_path: Path) -> None:
    (bundle / "json.py").write_text(HIJACK)
    (tmp_path / "link").symlink_to(bundle)
    done = run(tmp_path / "link", cwd=tmp_path / "link")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["notes.txt", "profiles/pi.json", "results/y.npz", ".venv/x.py", "a-b/x.py"])
def test_a_file_that_python_cannot_import_is_none_of_the_self_tests_business(bundle: Path, name: str) -> None:
    planted(bundle, name)
    report(bundle, 0)


def test_bytecode_cached_beside_the_runner_is_not_run(bundle: Path) -> None:
    for name in set(FILES) - {"run.py"}:
        source = bundle / name
        cached = Path(importlib.util.cache_from_source(str(source)))
        original = source.read_bytes()
        source.write_text(HIJACK)
        py_compile.compile(str(source), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        source.write_bytes(original)
    assert run(bundle).returncode == 0
    assert [problem.split(":")[0] for problem in report(bundle, 6)["problems"]] == ["__pycache__"]


def test_a_module_that_the_manifest_does_not_list_is_not_run(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    kept = tuple(entry for entry in manifest.files if entry.path != "stats.py")
    (bundle / "manifest.json").write_bytes(canonical(msgspec.structs.replace(manifest, files=kept)))
    (bundle / "stats.py").write_text(HIJACK)
    assert [problem.split(":")[0] for problem in report(bundle, 6)["problems"]] == ["stats.py"]
    done = run(bundle)
    assert done.returncode == 6
    assert done.stderr == "error: the runner cannot be loaded: No module named 'bundle_runner.stats'\n"


@pytest.mark.parametrize("name", ["variants/fp32/model.onnx", "samples.npz", "runtime.py", "bench.py", "faults.py"])
def test_a_missing_file_fails_and_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert report(bundle, 6)["problems"] == [f"{name}: missing"]


def test_a_resized_file_fails_with_both_sizes(bundle: Path) -> None:
    with (bundle / "README.md").open("a") as stream:
        stream.write("more")
    assert report(bundle, 6)["problems"] == ["README.md: has 9 bytes instead of 5"]


def test_a_file_replaced_by_a_link_fails_even_with_equal_contents(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle / "variants/fp32/model.onnx").rename(outside)
    (bundle / "variants/fp32/model.onnx").symlink_to(outside)
    assert report(bundle, 6)["problems"] == ["variants/fp32/model.onnx: is a symbolic link"]


@pytest.mark.parametrize("path", ["../x", "/etc/hostname", "a\\b", "C:/x", "variants/../../x"])
def test_a_manifest_that_points_outside_fails(bundle: Path, path: str) -> None:
    manifest = manifest_of(bundle)
    entry = FileEntry(path=path, sha256="0" * 64, size=1)
    changed = msgspec.structs.replace(manifest, files=(*manifest.files, entry))
    (bundle / "manifest.json").write_bytes(canonical(changed))
    assert report(bundle, 6)["problems"] == [f"{path}: not a path inside the bundle"]


def test_a_model_that_the_manifest_does_not_list_fails(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    kept = tuple(entry for entry in manifest.files if "int8" not in entry.path)
    (bundle / "manifest.json").write_bytes(canonical(msgspec.structs.replace(manifest, files=kept)))
    assert report(bundle, 6)["problems"] == ["variants/int8/model.onnx: not listed in manifest.json"]
