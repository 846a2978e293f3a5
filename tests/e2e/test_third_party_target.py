"""A target from a package of its own: installed, listed, built beside a built-in one, and held to the same suite."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, Result, Workplace, refused

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "tests" / "third_party_target"
PAGE = CHECKOUT / "docs" / "targets.md"
SHOWN_IN_THE_PAGE = ("pyproject.toml", "edge_exporter_onnxref/target.py", "edge_exporter_onnxref/runtime.py")
EQUAL_INT8 = ("--set", "quantize.reduce_range=true")
"""Targets differ in what they prefer; said by the user, it is one scheme for all."""
BROKEN = {
    "it cannot be imported": ("import a_package_that_is_not_there", 4, "a_package_that_is_not_there"),
    "it exits when imported": ("raise SystemExit('only on Tuesdays')", 4, "only on Tuesdays"),
    "it lacks members": ("class T:\n    name = 'broken'\n\nTARGET = T()", 5, "it lacks version, summary"),
}

FAULTY = """\
from pathlib import Path

from edge_exporter_onnxref.target import OnnxRefTarget


class Faulty(OnnxRefTarget):
    name = "broken"
    version = {version}  # What another version converted is not taken for this one's.

    {member}


TARGET = Faulty()
"""
FAULTS = {
    "missing raises": ("def missing(self, options):\n        return 1 / 0", "ZeroDivisionError"),
    "requires raises": ("def requires(self, options):\n        raise KeyError('opset')", "KeyError: 'opset'"),
    "payload raises": ("def payload(self, options):\n        return Path('gone').read_text()", "FileNotFoundError"),
    "convert raises": ("def convert(self, *_):\n        raise ValueError('no such operator')", "no such operator"),
    "convert returns nothing": ("def convert(self, *_):\n        pass", "it returned None"),
    "convert forgets a file": (
        "def convert(self, *request):\n        made = super().convert(*request)\n"
        "        (request[-1] / made[0].main).unlink()\n        return made",
        "was not written",
    ),
    "int8 comes first": (
        "def convert(self, *request):\n        return super().convert(*request)[::-1]",
        "the first variant, 'int8', is quantized",
    ),
}

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it from its folder."""
    folder = tmp_path_factory.mktemp("third-party")
    # From a copy: what building leaves behind is not left in the checkout.
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def run(shared_place: Workplace, site: Path) -> Run:
    """A command line in a process of its own that sees the installed package."""
    shared_place.onnx()
    shared_place.quadrants()
    return lambda *arguments: shared_place.process(*arguments, PYTHONPATH=str(site))


@pytest.fixture
def run_here(run: Run, shared_place: Workplace, site: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in this process, which is faster; further packages can be on the path."""

    def run_here(*arguments: str | Path, also: Path | None = None) -> Result:
        for path in (site, also):
            if path is not None:
                monkeypatch.syspath_prepend(str(path))
        return shared_place.run(*arguments)

    return run_here


@pytest.fixture(scope="module")
def both(run: Run) -> list[dict[str, Any]]:
    """One build for the built-in target and the third party's."""
    result = run(
        "build", "model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y",
        "--target", "cpu", "--target", "onnxref", "--json", "--progress", "json", *QUICK, *EQUAL_INT8,
        "--set", "quantize.try_products=false",
    )  # fmt: skip
    assert result.code == 0, result.err
    targets = result.document["targets"]
    targets[0]["finished"] = [event for event in result.events if event["type"] == "StepFinished"]
    return list(targets)


@pytest.fixture(params=BROKEN)
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, str]:
    """A package beside the good ones whose target `broken` is none: its folder, the exit code, the reason."""
    source, code, reason = BROKEN[request.param]
    return package(tmp_path / "broken", source), code, reason


def package(folder: Path, source: str) -> Path:
    """An installed package whose target `broken` is what the source makes it."""
    sys.modules.pop("broken_target", None)
    info = folder / "edge_exporter_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "broken_target.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-exporter-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_exporter.targets]\nbroken = broken_target:TARGET\n")
    return folder


def test_nothing_in_the_exporter_knows_it() -> None:
    modules = [path for name in ("exporter", "targets") for path in (CHECKOUT / name).rglob("*.py")]
    assert len(modules) > 50
    assert not [path for path in modules if "onnxref" in path.read_text(encoding="utf-8")]
    declared = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    assert "onnxref" not in declared


def test_it_is_listed_beside_the_built_in_targets(run: Run) -> None:
    result = run("targets", "--json")
    assert result.code == 0, result.err
    listed = {one["name"]: one for one in result.document["targets"]}
    assert listed["cpu"]["ready"]
    assert listed["onnxref"]["ready"]
    assert "reference evaluator" in listed["onnxref"]["summary"]


def test_one_command_builds_for_it_and_for_a_built_in_target(both: list[dict[str, Any]]) -> None:
    assert [one["target"] for one in both] == ["cpu", "onnxref"]
    for one in both:
        assert one["built"]
        assert [variant["name"] for variant in one["variants"]] == ["fp32", "int8"]
        assert one["profile"]["measured"]
    assert both[1]["runtime"]["name"] == both[1]["profile"]["runtime"]["name"] == "onnx"


def test_what_both_targets_need_is_made_once(both: list[dict[str, Any]]) -> None:
    made = [event for event in both[0]["finished"] if event["step"].startswith("quantize")]
    assert [event["cached"] for event in made] == [False, True]


def test_both_bundles_verify(run: Run, both: list[dict[str, Any]]) -> None:
    for one in both:
        result = run("verify", one["bundle"])
        assert result.code == 0, result.err


def test_its_bundle_verifies_where_the_package_is_not_installed(
    shared_place: Workplace, both: list[dict[str, Any]]
) -> None:
    result = shared_place.run("verify", both[1]["bundle"])
    assert result.code == 0, result.err


def test_its_bundle_is_not_analyzed_and_its_plan_is_while_it_tells_nothing_of_its_files(
    run_here: Run, shared_place: Workplace, both: list[dict[str, Any]]
) -> None:
    bundle = both[1]["bundle"]
    refused(shared_place.run("analyze", bundle), 3, "no statically quantized ONNX file", "brings target 'onnxref'")
    refused(run_here("analyze", bundle), 3, "no statically quantized ONNX file", "`--target cpu`")
    text = 'schema = 1\n[model]\nsource = "model.onnx"\n[calibration]\ndata = "calib.npz"\n[targets.onnxref]\n'
    result = run_here("analyze", shared_place.write("analyzed.toml", text), "--json")
    assert result.code == 0, result.err
    assert [one["target"] for one in result.document["analyses"]] == ["onnxref"]


TELLING = """untimed = "nobody times it"

    def operators(self, float_model, model, batches):
        seen = [sorted(batch) for batch in batches]
        assert float_model.parent.name == "fp32" and model.parent.name == "int8"
        return {result}
"""


@pytest.mark.parametrize("whole", [True, False])
def test_a_bundle_is_analyzed_by_the_target_that_tells_of_its_files(
    run_here: Run, shared_place: Workplace, tmp_path: Path, whole: bool
) -> None:
    told = (
        '(OperatorFacts(node="a", op=str(seen[0]), bits=4), OperatorFacts(node="b", op="B"))' if whole else "[seen]"
    )
    source = FAULTY.format(member=TELLING.format(result=told), version=20 + whole)
    folder = package(tmp_path / "telling", f"from exporter.target_api import OperatorFacts\n{source}")
    flags = ("--no-profile", "--json", "--output", tmp_path / "bundles")
    made = run_here("build", "model.onnx", "--calib", "calib.npz", "--target", "broken", *flags, also=folder)
    assert made.code == 0, made.err
    result = run_here("analyze", made.document["targets"][0]["bundle"], also=folder)
    if not whole:
        refused(result, 5, "broken", "not a tuple of OperatorFacts")
        return
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "int8 for broken" in lines[0]
    assert lines[2].split()[:4] == ["a", "['image']", "4", "-"]
    assert "time: not measured, nobody times it" in result.out


def test_its_own_options_are_read_and_a_typo_in_them_is_refused(run_here: Run) -> None:
    flags = ("build", "model.onnx", "--calib", "calib.npz", "--target", "onnxref", "--no-profile", "--json")
    float_only = run_here(*flags, "--set", "targets.onnxref.int8=false")
    assert float_only.code == 0, float_only.err
    assert [one["name"] for one in float_only.document["targets"][0]["variants"]] == ["fp32"]
    typo = run_here(*flags, "--set", "targets.onnxref.int9=false")
    assert typo.code == 3
    assert "did you mean 'int8'" in typo.err


@pytest.mark.slow
def test_it_passes_the_conformance_suite(shared_place: Workplace, site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/conformance", "-k", "onnxref", "-p", "no:cacheprovider"],
        cwd=CHECKOUT,
        env=shared_place.environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 25


def test_a_broken_target_is_listed_with_its_reason_and_breaks_no_other(
    run_here: Run, fault: tuple[Path, int, str]
) -> None:
    folder, _, reason = fault
    result = run_here("targets", "--json", also=folder)
    assert result.code == 0, result.err
    listed = {one["name"]: one for one in result.document["targets"]}
    assert not listed["broken"]["ready"]
    assert reason in listed["broken"]["missing"][0]
    assert listed["cpu"]["ready"]
    assert listed["onnxref"]["ready"]


def test_building_for_a_broken_target_says_why_and_who_brings_it(run_here: Run, fault: tuple[Path, int, str]) -> None:
    folder, code, reason = fault
    result = run_here("build", "model.onnx", "--calib", "calib.npz", "--target", "broken", also=folder)
    assert result.code == code
    assert reason in result.err
    assert "edge-exporter-broken" in result.err
    assert "Traceback" not in result.err


def test_a_plan_that_names_a_broken_target_still_builds_the_others(
    run_here: Run, shared_place: Workplace, fault: tuple[Path, int, str]
) -> None:
    folder, code, _ = fault
    text = 'schema = 1\n[model]\nsource = "model.onnx"\n[calibration]\ndata = "calib.npz"\n'
    plan = shared_place.write("broken.toml", f"{text}[targets.cpu]\n[targets.broken]\n")
    assert run_here("build", plan, "--no-profile", also=folder).code == code
    result = run_here("build", plan, "--no-profile", "--target", "cpu", also=folder)
    assert result.code == 0, result.err


@pytest.mark.parametrize("member", FAULTS)
def test_a_target_that_fails_while_it_builds_is_named_as_the_one_at_fault(
    run_here: Run, shared_place: Workplace, tmp_path: Path, member: str
) -> None:
    source, reason = FAULTS[member]
    folder = package(tmp_path / "faulty", FAULTY.format(member=source, version=2 + list(FAULTS).index(member)))
    flags = ("--no-profile", "--json", "--output", tmp_path / "bundles")
    result = run_here("build", "model.onnx", "--calib", "calib.npz", "--target", "broken", *flags, also=folder)
    assert result.code == 5, result.err
    assert "broken" in result.err.splitlines()[-4]
    assert reason in result.err
    assert "a bug in edge-exporter" not in result.err
    assert list((tmp_path / "bundles").iterdir()) == []
    both = ("build", "model.onnx", "--calib", "calib.npz", "--target", "broken", "--target", "cpu", "--keep-going")
    kept = run_here(*both, *flags, also=folder)
    assert kept.code == 8
    assert [one["built"] for one in kept.document["targets"]] == [False, True]


def test_a_target_that_lacks_something_here_says_what_brings_it_before_any_work(
    run_here: Run, tmp_path: Path
) -> None:
    member = "def missing(self, options):\n        return 'no converter', 'pip install a-converter'"
    folder = package(tmp_path / "lacking", FAULTY.format(member=member, version=1))
    flags = ("--target", "broken", "--progress", "json", "--output", tmp_path / "bundles")
    result = run_here("build", "model.onnx", "--calib", "calib.npz", *flags, also=folder)
    assert result.code == 4
    assert "no converter" in result.err
    assert "pip install a-converter" in result.err
    assert not result.events
    (broken,) = [one for one in run_here("targets", "--json").document["targets"] if one["name"] == "broken"]
    assert broken["missing"] == ["no converter", "pip install a-converter"]


@pytest.mark.parametrize("name", SHOWN_IN_THE_PAGE)
def test_the_page_on_targets_shows_the_package_as_it_is(name: str) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert (PACKAGE / name).read_text(encoding="utf-8") in blocks, f"docs/targets.md shows another {name}"
