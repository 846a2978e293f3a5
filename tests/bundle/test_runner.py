"""The runner as a device sees it: a real bundle in a folder, driven through its command line."""

import ast
import hashlib
import importlib.util
import json
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from exporter.artifacts import (
    Choice,
    DataFacts,
    Fidelity,
    FileEntry,
    Manifest,
    ModelFacts,
    Profile,
    RuntimeNeed,
    Signature,
    TensorSpec,
    Tolerance,
    Variant,
    canonical,
)
from targets.runner import RUNNER_FILES, choice, host

RUNNER = Path(__file__).parents[2] / "targets" / "runner"
FILES = {**{name: name for name in RUNNER_FILES}, "runtime.py": "onnxruntime_runtime.py"}
QUICK = [
    "--min-samples",
    "30",
    "--min-seconds",
    "0",
    "--max-seconds",
    "5",
    "--ci-width",
    "10",
    "--warmup-seconds",
    "0",
]
ABSENT = "made_up_feature"


def save_model(path: Path, scale: float) -> None:
    """y = scale * (x @ w) + offset, and n = number of each row's token; x has a named and a dynamic batch axis."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) * np.float32(scale)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "offset"], ["y"]),
            helper.make_node("Add", ["token", "one"], ["file"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("file", TensorProto.INT64, ["batch"]),
        ],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([0.5], np.float32), "offset"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    path.parent.mkdir(parents=True)
    save(model, path)


def expected_of(x: np.ndarray, token: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) * np.float32(scale)
    return {"y": x @ weights + np.float32(0.5), "file": token + 1}


def seal(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest with the files as they lie in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    entries = tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=path.stat().st_size,
        )
        for path in paths
    )
    (folder / "manifest.json").write_bytes(canonical(msgspec.structs.replace(manifest, files=entries)))


def manifest_of(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)


def reseal(folder: Path, **changes: Any) -> None:
    seal(folder, msgspec.structs.replace(manifest_of(folder), **changes))


def variant(name: str, **changes: Any) -> Variant:
    tolerances = {"y": Tolerance(atol=1e-4, quantum=0.01), "file": Tolerance(atol=0)}
    fidelity = Fidelity(reference="torch", reference_digest="0", samples=1, data="evaluation", outputs=())
    return Variant(
        name=name, main=f"variants/{name}/model.onnx", precision=name,
        fidelity=fidelity, tolerances=tolerances, **{"runtime": "onnxruntime", **changes},
    )  # fmt: skip


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny bundle"
    folder.mkdir()
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    scales = {"fp32": 1.0, "int8": 1.01, "third": 0.99}
    for case, batch in enumerate([1, 1, 3]):
        x = draw.normal(size=(batch, 4)).astype(np.float32)
        token = draw.integers(0, 9, size=batch)
        arrays |= {f"{case}/inputs/x": x, f"{case}/inputs/token": token}
        for name, scale in scales.items():
            arrays |= {f"{case}/expected/{name}/{key}": y for key, y in expected_of(x, token, scale).items()}
    np.savez(folder / "samples.npz", **arrays)
    for name, scale in scales.items():
        save_model(folder / "variants" / name / "model.onnx", scale)
    for name, source in FILES.items():
        shutil.copyfile(RUNNER / source, folder / name)
    (folder / "requirements-onnxruntime.txt").write_text("onnxruntime>=1.19,<2\nnumpy>=1.21,<3\n")
    (folder / "README.md").write_text("tiny\n")
    specs = {"x": ("float32", ("batch", 4)), "token": ("int64", ("batch",))}
    results = {"y": ("float32", ("batch", 3)), "file": ("int64", ("batch",))}
    inputs, outputs = (
        tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in tensors.items())
        for tensors in (specs, results)
    )
    manifest = Manifest(
        name="tiny",
        target="cpu",
        digest="d" * 64,
        signature=Signature(inputs=inputs, outputs=outputs),
        variants=(variant("fp32"), variant("int8"), variant("third")),
        float_variant="fp32",
        runtime=RuntimeNeed(name="onnxruntime", minimum="1.19", requirements=("onnxruntime>=1.19", "numpy")),
        samples=3,
        model=ModelFacts(source="tiny", digest="0"),
        data=DataFacts(calibration=None, calibration_samples=0, evaluation=None, evaluation_samples=0),
        tools={},
        plan={},
        files=(),
        choice=Choice(variant="int8", why="it is faster here"),
    )
    seal(folder, manifest)
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "a bundle"))


def run(
    bundle: Path, *arguments: str | Path, cwd: Path | None = None, flags: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *flags, str(bundle / "run.py"), *map(str, arguments)],
        cwd=cwd or bundle.parent,
        env={**os.environ, "PYTHONPATH": "", "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def report(bundle: Path, code: int, *arguments: str) -> dict[str, Any]:
    done = run(bundle, "--self-test", "--json", *arguments)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["passed"] is (code == 0)
    return found


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


X = np.array([[1, 2, 3, 4], [0, 0, 0, 1]], np.float32)
TOKEN = np.array([7, 8], np.int64)


# Self-test -------------------------------------------------------------------------------------------------


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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


def change_samples(bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(bundle / "samples.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(bundle / "samples.npz", **arrays)
    reseal(bundle)


def wrong_value(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][1, 2] += 0.5


def wrong_integer(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/file"][1] += 1


def nan_expected(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][0, 0] = np.nan


def infinite_expected(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"][0, 0] = np.inf


def wrong_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"] = arrays["2/expected/int8/y"][:1]


def wrong_dtype(arrays: dict[str, np.ndarray]) -> None:
    arrays["2/expected/int8/y"] = arrays["2/expected/int8/y"].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_value, "case 2, output y: 1 of 9 values beyond 0.0001 + 0 * |expected|; first at [1, 2]"),
        (wrong_integer, "case 2, output file: 1 of 3 values beyond 0 "),
        (nan_expected, "case 2, output y: 1 of 9 values beyond 0.0001 "),
        (infinite_expected, "case 2, output y: 1 of 9 values beyond 0.0001 "),
        (wrong_shape, "case 2, output y: is float32[3, 3] instead of float32[1, 3]"),
        (wrong_dtype, "case 2, output y: is float32[3, 3] instead of float64[3, 3]"),
    ],
)
def test_an_output_other_than_expected_fails_that_variant_alone(
    bundle: Path, change: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    change_samples(bundle, change)
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert [name for name, item in tested.items() if not item["passed"]] == ["int8"]
    assert len(tested["int8"]["problems"]) == 1
    assert words in tested["int8"]["problems"][0]


def test_an_error_within_tolerance_passes_and_is_reported_in_quanta(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    loose = {"y": Tolerance(atol=0.6, quantum=0.25), "file": Tolerance(atol=0)}
    manifest = manifest_of(bundle)
    changed = [msgspec.structs.replace(item, tolerances=loose) for item in manifest.variants]
    reseal(bundle, variants=tuple(changed))
    tested = report(bundle, 0, "--variant", "int8")["variants"][0]
    assert tested["max_abs_error"] == pytest.approx(0.5, abs=1e-4)
    assert tested["max_quanta"] == pytest.approx(2, abs=1e-3)
    assert "(2 quanta)" in run(bundle, "--self-test", "--variant", "int8").stdout


def test_samples_that_lack_a_case_fail(bundle: Path) -> None:
    change_samples(bundle, lambda arrays: arrays.pop("1/expected/int8/y"))
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"] == ["samples.npz lacks 1/expected/int8/y"]


def test_pickled_samples_are_refused(bundle: Path) -> None:
    def pickled(arrays: dict[str, np.ndarray]) -> None:
        arrays["0/inputs/x"] = np.array([{}], dtype=object)

    change_samples(bundle, pickled)
    assert "allow_pickle" in report(bundle, 6)["variants"][0]["problems"][0]


def test_samples_that_are_no_archive_fail(bundle: Path) -> None:
    (bundle / "samples.npz").write_bytes(b"not a zip file")
    reseal(bundle)
    assert "samples.npz cannot be read" in report(bundle, 6)["variants"][0]["problems"][0]


def test_no_samples_is_a_failure_and_not_a_pass(bundle: Path) -> None:
    reseal(bundle, samples=0)
    assert "nothing was tested" in report(bundle, 6)["variants"][0]["problems"][0]


def test_a_model_that_the_runtime_refuses_fails_with_its_words(bundle: Path) -> None:
    (bundle / "variants/int8/model.onnx").write_bytes(b"no model")
    reseal(bundle)
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"][0].startswith("variants/int8/model.onnx cannot be opened: ")
    assert tested["fp32"]["passed"] is True


def test_a_failing_variant_says_which_required_feature_the_cpu_lacks(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    reseal(bundle, variants=(variant("fp32"), variant("int8", requires=(ABSENT,)), variant("third")))
    tested = {item["variant"]: item for item in report(bundle, 6, "--variant", "int8")["variants"]}
    assert tested["int8"]["problems"][-1] == f"this CPU does not show {ABSENT}, which int8 requires"


def test_variants_made_for_other_cpus_are_neither_tested_nor_measured_and_that_is_said(bundle: Path) -> None:
    reseal(bundle, variants=(variant("fp32"), variant("int8", requires=(ABSENT,)), variant("third")))
    tested = report(bundle, 0)
    assert [item["variant"] for item in tested["variants"]] == ["fp32", "third"]
    assert tested["skipped"] == [f"this CPU does not show {ABSENT}, which int8 requires"]
    done = run(bundle, "--bench", "--json", "--min-samples", "20", "--min-seconds", "0", "--max-seconds", "1")
    assert done.returncode == 0, done.stderr
    assert f"not run here: this CPU does not show {ABSENT}, which int8 requires" in done.stderr
    assert [item["variant"] for item in json.loads(done.stdout)["variants"]] == ["fp32", "third"]


def test_a_variant_whose_runtime_is_not_installed_is_left_out_and_another_one_runs(bundle: Path) -> None:
    other = RuntimeNeed(name="absentvino", minimum="1.0", requirements=("absentvino>=1",))
    (bundle / "runtime_absentvino.py").write_text("class RuntimeMissing(Exception):\n    command = 'x'\n"
        "def version():\n    raise RuntimeMissing('absent')\n")  # fmt: skip
    elsewhere = variant("int8", runtime="absentvino")
    reseal(bundle, variants=(variant("fp32"), elsewhere, variant("third")), other_runtimes=(other,))
    why = "absentvino is not installed, which int8 runs on (requirements-absentvino.txt brings it)"
    assert report(bundle, 0)["skipped"] == [why]
    assert json.loads(run(bundle, "--json").stdout)["here"] == {"variant": "third", "why": why, "elsewhere": None}


def second_runtime(bundle: Path) -> None:
    """Makes int8 and third run on another runtime, which is onnxruntime by another name."""
    text = (bundle / "runtime.py").read_text().replace('NAME = "onnxruntime"', 'NAME = "numpy"')
    (bundle / "runtime_numpy.py").write_text(text)
    other = RuntimeNeed(name="numpy", minimum="1.0", requirements=("numpy>=1",))
    both = (variant("int8", runtime="numpy"), variant("third", runtime="numpy"))
    reseal(bundle, variants=(variant("fp32"), *both), other_runtimes=(other,))


def test_one_of_two_runtimes_is_tested_and_measured_without_the_other(bundle: Path) -> None:
    second_runtime(bundle)
    (bundle / "runtime.py").write_text("raise ImportError('the main runtime is not here')")
    reseal(bundle)
    found = report(bundle, 0, "--runtime", "numpy")
    assert [one["variant"] for one in found["variants"]] == ["int8", "third"]
    assert found["runtime"]["name"] == "numpy"
    profile = profile_of(bundle, "--runtime", "numpy")
    assert [one.variant for one in profile.variants] == ["int8", "third"]
    assert [(one.variant, one.baseline) for one in profile.comparisons] == [("third", "int8")]


def test_the_main_runtime_alone_runs_its_own_variants(bundle: Path) -> None:
    second_runtime(bundle)
    assert [one["variant"] for one in report(bundle, 0, "--runtime", "onnxruntime")["variants"]] == ["fp32"]


def test_a_runtime_that_the_bundle_does_not_run_on_is_refused_with_those_that_it_does(bundle: Path) -> None:
    second_runtime(bundle)
    done = run(bundle, "--bench", "--runtime", "openvino")
    assert done.returncode == 2
    assert "does not run on 'openvino'; it runs on onnxruntime, numpy" in done.stderr
    assert "--runtime goes with" in run(bundle, "--runtime", "numpy").stderr


def test_an_alternative_that_is_not_what_works_here_is_missing(bundle: Path) -> None:
    main = manifest_of(bundle).runtime
    reseal(bundle, runtime=msgspec.structs.replace(main, alternatives={"other-runtime": ("other-runtime==1",)}))
    done = run(bundle, "--self-test", "--runtime", "other-runtime")
    assert done.returncode == 4
    assert "onnxruntime" in done.stderr
    assert "requirements-other-runtime.txt" in done.stderr


def test_a_bundle_with_no_variant_for_this_cpu_says_so(bundle: Path) -> None:
    other = {"requires": (ABSENT,)}
    reseal(bundle, variants=(variant("fp32", **other), variant("int8", **other), variant("third", **other)))
    done = run(bundle, "--self-test")
    assert done.returncode == 4
    assert "no variant of this bundle is made for this CPU" in done.stderr


@pytest.mark.skipif(not host.cpu_features(), reason="this system does not tell what its CPU can do")
def test_a_requirement_is_met_by_any_of_its_alternatives(bundle: Path) -> None:
    either = variant("int8", requires=(f"{ABSENT}|{host.cpu_features()[0]}",))
    reseal(bundle, variants=(variant("fp32"), either, variant("third")))
    assert len(report(bundle, 0)["variants"]) == 3


@pytest.mark.skipif(not host.cpu_features(), reason="this system does not tell what its CPU can do")
def test_a_variant_made_for_this_cpu_replaces_the_choice_unless_both_were_measured(bundle: Path) -> None:
    shown = host.cpu_features()[0]
    special = variant("third", requires=(f"{ABSENT}|{shown}",), specialises="int8")
    reseal(bundle, variants=(variant("fp32"), variant("int8"), special))
    answer = json.loads(run(bundle, "--json").stdout)["here"]
    assert answer == {
        "variant": "third", "why": f"this CPU shows {shown}, which it is made for in place of int8", "elsewhere": None
    }  # fmt: skip
    choice = Choice(variant="int8", why="it is faster here", measured=("fp32", "int8", "third"))
    reseal(bundle, variants=(variant("fp32"), variant("int8"), special), choice=choice)
    assert json.loads(run(bundle, "--json").stdout)["here"]["variant"] == "int8"
    absent = variant("third", requires=(ABSENT,), specialises="int8")
    reseal(bundle, variants=(variant("fp32"), variant("int8"), absent))
    assert json.loads(run(bundle, "--json").stdout)["here"]["variant"] == "int8"


HERE_FEATURES = host.cpu_features()
WIDE = [feature for feature in ("avx512_vnni", "avx_vnni", "asimddp") if feature in HERE_FEATURES]
OTHER_CPU = ["avx2"] if WIDE else ["avx2", "avx512_vnni"]


@pytest.mark.skipif(not HERE_FEATURES, reason="this system does not tell what its CPU can do")
def test_a_failing_int8_variant_says_when_the_cpus_saturate_differently(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    reseal(bundle, made_on={"features": OTHER_CPU})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert len(tested["int8"]["problems"]) == 2
    words = tested["int8"]["problems"][1]
    made, runs = ("without", "with") if WIDE else ("with avx512_vnni", "without")
    assert words.startswith(f"int8 was made on a CPU {made}")
    assert f" and runs on one {runs} " in words
    assert words.endswith("; rebuild with `--set quantize.reduce_range=true`")
    reseal(bundle, made_on={"features": list(HERE_FEATURES)})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert len(tested["int8"]["problems"]) == 1


def test_saturation_is_not_blamed_when_no_value_was_wrong(bundle: Path) -> None:
    change_samples(bundle, lambda arrays: arrays.pop("1/expected/int8/y"))
    reseal(bundle, made_on={"features": OTHER_CPU})
    tested = {item["variant"]: item for item in report(bundle, 6)["variants"]}
    assert tested["int8"]["problems"] == ["samples.npz lacks 1/expected/int8/y"]


@pytest.mark.parametrize(
    ("there", "here", "speaks"),
    [
        (["avx2", "avx512_vnni"], ["avx2"], True),
        (["avx_vnni"], ["avx2"], True),
        (["asimddp"], ["asimd"], True),
        (["avx2"], ["avx2", "avx_vnni"], True),
        (["avx512_vnni"], ["avx_vnni"], False),
        (["avx512_vnni"], ["asimddp"], False),
        (["avx2"], ["avx2"], False),
        ([], ["avx2"], False),
        (["avx512_vnni"], [], False),
        (None, ["avx2"], False),
    ],
)
def test_cpus_saturate_differently_where_one_alone_sums_in_32_bits(
    there: list[str] | None, here: list[str], speaks: bool
) -> None:
    manifest = {} if there is None else {"made_on": {"features": there}}
    int8 = {"name": "int8", "precision": "int8", "scheme": {"reduce_range": False}}
    assert (choice.saturation(int8, manifest, here) is not None) is speaks
    for other in ({**int8, "precision": "float32"}, {**int8, "scheme": {"reduce_range": True}}):
        assert choice.saturation(other, manifest, here) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "files": 3}'])
def test_a_manifest_that_is_none_fails_with_one_line(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    done = run(bundle, "--self-test")
    assert done.returncode == 6
    assert done.stderr.startswith("error: manifest.json ")
    assert len(done.stderr.splitlines()) == 1


# Measuring -------------------------------------------------------------------------------------------------


def profile_of(bundle: Path, *arguments: str) -> Profile:
    done = run(bundle, "--bench", "--json", *QUICK, *arguments)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Profile, strict=True)


def test_bench_prints_exactly_a_profile(bundle: Path) -> None:
    profile = profile_of(bundle, "--seed", "5")
    assert profile.bundle_digest == "d" * 64
    assert profile.seal == ""
    assert profile.provenance == "native"
    assert profile.settings.seed == 5
    assert profile.settings.batch == 1
    assert profile.settings.affinity is None
    assert [entry.variant for entry in profile.variants] == ["fp32", "int8", "third"]
    for entry in profile.variants:
        assert len(entry.samples_ns) == entry.summary.count >= 30
        assert min(entry.load_ns, entry.first_ns, *entry.samples_ns) > 0
        assert set(entry.summary.percentiles) <= {"p50", "p90", "p95", "p99"}
        assert entry.peak_rss_bytes is None or entry.peak_rss_bytes > 10_000_000
    assert [(found.variant, found.baseline) for found in profile.comparisons] == [("int8", "fp32"), ("third", "fp32")]
    assert {found.pairs for found in profile.comparisons} == {profile.variants[0].summary.count}


def test_one_variant_alone_is_measured_without_comparison(bundle: Path) -> None:
    profile = profile_of(bundle, "--variant", "int8")
    assert [entry.variant for entry in profile.variants] == ["int8"]
    assert profile.comparisons == ()


def test_a_precision_that_was_not_reached_is_flagged(bundle: Path) -> None:
    profile = profile_of(bundle, "--ci-width", "0.000001", "--max-seconds", "0.2")
    assert any(flag.startswith("confidence interval wider than asked: ") for flag in profile.flags)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_affinity_is_applied_and_recorded(bundle: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    assert profile_of(bundle, "--affinity", str(cpu), "--variant", "fp32").settings.affinity == (cpu,)
    done = run(bundle, "--bench", "--affinity", "0,4000")
    assert done.returncode == 3
    assert "--affinity 0,4000: the CPUs here are " in done.stderr


def test_the_most_frequent_batch_is_measured_where_there_is_no_single_sample(bundle: Path) -> None:
    def without_singles(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith(("0/", "1/"))]:
            arrays[name] = np.concatenate([arrays[name]] * 2)

    change_samples(bundle, without_singles)
    assert profile_of(bundle, "--variant", "fp32").settings.batch == 2


def test_people_get_a_table_of_80_columns(bundle: Path) -> None:
    done = run(bundle, "--bench", *QUICK)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("fp32 ", "int8 ", "third "))][:3] == [
        "fp32",
        "int8",
        "third",
    ]
    flowing = " ".join(done.stdout.split())
    assert re.search(r"int8 [a-z ]+ fp32: [\d.]+ of its time \(95 % interval [\d.]+-[\d.]+\)", flowing)


def test_nothing_is_measured_when_the_self_test_fails(bundle: Path) -> None:
    change_samples(bundle, wrong_value)
    done = run(bundle, "--bench", "--json", *QUICK)
    assert done.returncode == 6
    assert done.stdout == ""
    assert "case 2, output y" in done.stderr
    assert "nothing was measured" in done.stderr


# One inference ---------------------------------------------------------------------------------------------


def test_inference_writes_the_outputs_of_the_default_variant_and_says_why(bundle: Path, tmp_path: Path) -> None:
    given, result = save_npz(tmp_path / "x.npz", x=X, token=TOKEN), tmp_path / "y.npz"
    done = run(bundle, "--input", given, "--output", result)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "variant int8: it is faster here\n"
    with np.load(result, allow_pickle=False) as archive:
        assert archive.files == ["y", "file"]
        np.testing.assert_allclose(archive["y"], expected_of(X, TOKEN, 1.01)["y"], rtol=1e-5)
        np.testing.assert_array_equal(archive["file"], TOKEN + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle", "x.npz", "y.npz"]


def infer(bundle: Path, *arguments: str) -> tuple[str, str]:
    given = save_npz(bundle.parent / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", bundle.parent / "y.npz", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["variant"], done.stderr


def test_a_variant_that_is_asked_for_runs(bundle: Path) -> None:
    assert infer(bundle, "--variant", "fp32") == ("fp32", "variant fp32: asked for\n")


def test_without_a_required_feature_the_next_variant_runs_and_float_only_last(bundle: Path) -> None:
    why = f"this CPU does not show {ABSENT}, which int8 requires\n"
    lacks = variant("int8", requires=(ABSENT,))
    reseal(bundle, variants=(variant("fp32"), lacks, variant("third")))
    assert infer(bundle) == ("third", f"variant third: {why}")
    reseal(bundle, variants=(variant("fp32"), lacks, variant("third", requires=(ABSENT,))))
    assert infer(bundle) == ("fp32", f"variant fp32: {why}")
    assert f"here     fp32 runs by default: {why}" in run(bundle).stdout
    assert infer(bundle, "--variant", "int8") == ("int8", f"warning: {why}variant int8: asked for\n")


def broken_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 and no more")


def plain_npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, X)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ({"x": X}, "token: missing"),
        ({"x": X, "token": TOKEN, "z": X}, "z: there is no such input"),
        ({"x": X.astype(np.float64), "token": TOKEN}, "x: dtype is float64 instead of float32"),
        ({"x": X[:, :3], "token": TOKEN}, "x: shape is [2, 3] instead of [batch, 4]"),
        ({"x": X[0], "token": TOKEN}, "x: shape is [4] instead of [batch, 4]"),
        ({"x": X, "token": TOKEN[:1]}, "token: axis 'batch' is 1, but 2 in x"),
        ({"x": X[:0], "token": TOKEN[:0]}, "x: is empty, shape [0, 4]"),
        ({"x": np.array([{}], dtype=object), "token": TOKEN}, "allow_pickle"),
        (broken_zip, "cannot be read as an npz file"),
        (plain_npy, "cannot be read as an npz file"),
        (None, "No such file"),
    ],
)
def test_input_that_does_not_fit_is_refused_and_nothing_is_written(
    bundle: Path, tmp_path: Path, make: Any, words: str
) -> None:
    given, result = tmp_path / "x.npz", tmp_path / "y.npz"
    if callable(make):
        make(given)
    elif make is not None:
        save_npz(given, **make)
    done = run(bundle, "--input", given, "--output", result)
    assert done.returncode == 3
    assert words in done.stderr
    assert done.stdout == ""
    assert not result.exists()


def test_all_misfits_are_named_at_once_with_what_the_model_takes(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle, "--input", save_npz(tmp_path / "x.npz", a=X, x=X[0]), "--output", tmp_path / "y.npz")
    assert done.stderr.splitlines()[1:] == [
        "  - a: there is no such input",
        "  - x: shape is [4] instead of [batch, 4]",
        "  - token: missing",
        "  hint: the model takes x: float32[batch, 4]; token: int64[batch]",
    ]


@pytest.mark.parametrize("place", ["no/such/folder/y.npz", "folder"])
def test_output_that_cannot_be_written_is_an_error_and_leaves_nothing(
    bundle: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", tmp_path / place)
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle", "folder", "x.npz"]


def test_a_changed_model_is_not_used_for_inference(bundle: Path, tmp_path: Path) -> None:
    flip(bundle / "variants/int8/model.onnx")
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", tmp_path / "y.npz")
    assert done.returncode == 6
    assert "variants/int8/model.onnx: contents differ" in done.stderr


def test_output_inside_the_bundle_is_warned_of(bundle: Path, tmp_path: Path) -> None:
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", "y.npz", cwd=bundle)
    assert done.returncode == 0
    assert "warning: y.npz lies in the bundle" in done.stderr


# Around it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input", "x.npz"],
        ["--output", "y.npz"],
        ["--self-test", "--bench"],
        ["--self-test", "--variant", "nope"],
        ["--input", "x.npz", "--output", "y.npz", "--variant", "all"],
        ["--bench", "--threads", "0"],
        ["--bench", "--affinity", "a"],
        ["--bench", "--ci-width", "nan"],
        ["--bench", "--min-samples", "-1"],
        ["--unknown"],
    ],
)
def test_a_wrong_command_line_exits_with_2(bundle: Path, arguments: list[str]) -> None:
    done = run(bundle, *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert done.stdout == ""


def test_without_action_it_says_what_it_is_even_without_numpy(bundle: Path) -> None:
    done = run(bundle, flags=["-S"])
    assert done.returncode == 0
    for words in (
        "tiny for cpu, onnxruntime >= 1.19",
        "x: float32[batch, 4]",
        "int8",
        "it is faster here",
        "--bench",
    ):
        assert words in done.stdout
    assert json.loads(run(bundle, "--json").stdout)["here"] == {
        "variant": "int8", "why": "it is faster here", "elsewhere": None
    }  # fmt: skip


def test_help_shows_examples_and_every_option(bundle: Path) -> None:
    shown = run(bundle, "-h").stdout
    assert "python run.py --self-test" in shown
    assert "--affinity" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("module", ["numpy", "onnxruntime"])
def test_a_missing_library_exits_with_4_and_the_command_that_brings_it(
    bundle: Path, tmp_path: Path, module: str
) -> None:
    fake = tmp_path / "path" / f"{module}.py"
    fake.parent.mkdir()
    fake.write_text(f"raise ImportError('no {module} here')\n")
    done = run(bundle, "--self-test", PYTHONPATH=str(fake.parent))
    assert done.returncode == 4
    assert f"{module} cannot be imported: no {module} here" in done.stderr
    assert f'-m pip install -r "{bundle}/requirements-onnxruntime.txt"' in done.stderr


def test_a_runtime_older_than_the_bundle_needs_exits_with_4(bundle: Path) -> None:
    reseal(bundle, runtime=RuntimeNeed(name="onnxruntime", minimum="99.1", requirements=()))
    done = run(bundle, "--self-test")
    assert done.returncode == 4
    assert "is older than 99.1" in done.stderr


def needing(**needs: Any) -> RuntimeNeed:
    return RuntimeNeed(name="onnxruntime", minimum="1.19", requirements=("onnxruntime>=1.19", "numpy"), **needs)


def test_on_a_machine_of_another_family_it_says_so_tests_what_runs_here_and_measures_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    reseal(bundle, runtime=needing(machine="sparc64"))
    said = f"this machine is {platform.machine()}, and the bundle is made for sparc64"
    assert said in run(bundle).stdout
    assert json.loads(run(bundle, "--json").stdout)["here"]["elsewhere"] == said
    tested = run(bundle, "--self-test", "--json")
    assert tested.returncode == 0, tested.stderr
    assert json.loads(tested.stdout)["elsewhere"] == said
    assert f"{said}: only what runs on any machine is tested here" in tested.stderr
    measured = run(bundle, "--bench", *QUICK)
    assert measured.returncode == 4
    assert measured.stdout == ""
    assert f"error: {said}" in measured.stderr
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    used = run(bundle, "--input", given, "--output", tmp_path / "y.npz")
    assert used.returncode == 0
    assert f"warning: {said}" in used.stderr
    reseal(bundle, runtime=needing(machine=platform.machine()))
    assert json.loads(run(bundle, "--self-test", "--json").stdout)["elsewhere"] is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_a_library_that_a_too_old_system_cannot_load_is_explained(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("raise ImportError('version GLIBC_9.9 not found')\n")
    for glibc, explained in (("9.9", True), ("2.0", False)):
        reseal(bundle, runtime=needing(glibc=glibc))
        done = run(bundle, "--self-test", PYTHONPATH=str(tmp_path))
        assert done.returncode == 4
        assert ("the newest wheels of onnxruntime need glibc 9.9, and this system has" in done.stderr) == explained


def test_it_runs_from_any_folder_and_nothing_there_replaces_its_modules(bundle: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("bench.py", "runtime.py", "numpy.py", "json.py", "manifest.json"):
        (trap / name).write_text("raise SystemExit('hijacked')\n")
    done = run(bundle, "--self-test", cwd=trap)
    assert done.returncode == 0, done.stderr
    (trap / "numpy.py").unlink()
    (trap / "json.py").unlink()
    assert run(bundle, "--self-test", PYTHONPATH=str(trap)).returncode == 0


def test_using_a_bundle_leaves_it_as_it_was(bundle: Path, tmp_path: Path) -> None:
    before = sorted(bundle.rglob("*"))
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    for arguments in (["--self-test"], ["--bench", *QUICK], ["--input", given, "--output", tmp_path / "y.npz"], []):
        assert run(bundle, *arguments, PYTHONDONTWRITEBYTECODE="").returncode == 0
    assert sorted(bundle.rglob("*")) == before


def test_the_runtime_leaves_nothing_in_the_home_folder(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = os.environ.pop("ORT_DISABLE_TELEMETRY", None)
    try:
        done = run(bundle, "--self-test", HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    finally:
        if before is not None:
            os.environ["ORT_DISABLE_TELEMETRY"] = before
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


def test_a_read_only_bundle_works(bundle: Path) -> None:
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert run(bundle, "--self-test").returncode == 0
    finally:
        for path in [bundle, *bundle.rglob("*")]:
            path.chmod(0o755)


def test_every_module_of_the_runner_travels() -> None:
    there = {path.name for path in RUNNER.glob("*.py")}
    runtimes = {"onnxruntime_runtime.py", "openvino_runtime.py", "tflite_runtime.py"}
    assert there == {"__init__.py", *runtimes, *RUNNER_FILES}


@pytest.mark.parametrize("source", sorted(FILES.values()))
def test_the_runner_is_python_3_9_and_imports_only_the_standard_library_and_numpy(source: str) -> None:
    tree = ast.parse((RUNNER / source).read_text(), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert f"{node.module}.py" in RUNNER_FILES
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy"}


def test_the_written_archive_is_whole(bundle: Path) -> None:
    infer(bundle)
    with zipfile.ZipFile(bundle.parent / "y.npz") as archive:
        assert archive.testzip() is None


def test_a_console_without_a_letter_of_the_text_does_not_end_the_run(bundle: Path) -> None:
    reseal(bundle, choice=Choice(variant="int8", why="schnell für hier"))
    done = run(bundle, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "schnell f\\xfcr hier" in done.stdout
