"""The runner wherever it is started: command lines, missing libraries, other machines, folders and consoles."""

import ast
import json
import os
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from lone_bundle import FILES, QUICK, RUNNER, TOKEN, X, infer, reseal, run, save_npz

from exporter.artifacts import (
    Choice,
    RuntimeNeed,
)
from targets.runner import RUNNER_FILES


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
