"""The built wheel, installed away from the checkout, holds all it needs and builds a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
from support import QUICK, Result, Workplace

from targets.runner import RUNNER_FILES

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(CHECKOUT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; its dependencies are borrowed from the environment that runs tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / SCRIPTS / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*PIP, "--python", str(python), *install], check=True)
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    # Behind the environment's own packages. The .pth files of a folder that is added so are not read: the checkout,
    # which an editable install adds through one, stays out of the way.
    lent = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(site) / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("elsewhere"))


def run(place: Workplace, *command: str | Path) -> Result:
    """A process that knows nothing of the checkout."""
    environment = place.environment()
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, command)), cwd=place.folder, env=environment, capture_output=True, text=True, check=False
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def test_every_module_travels_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(CHECKOUT).as_posix()
        for package in ("exporter", "targets")
        for path in (CHECKOUT / package).rglob("*.py")
    }
    # The plugin that counts instructions is compiled where it is used.
    sources = {"exporter/devices/guest/instructions.c", "targets/onnx2tf-requirements.txt"}
    sources |= {f"exporter/report/templates/{name}" for name in ("page.html", "page.css")}
    assert names == modules | sources | {"exporter/py.typed", "targets/py.typed"}
    assert {f"targets/runner/{name}" for name in (*RUNNER_FILES, "onnxruntime_runtime.py")} <= names


def test_licence_and_metadata_travel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == (CHECKOUT / "LICENSE").read_bytes()
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert fields["Name"] == "edge-exporter"
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"


def test_the_command_and_the_targets_are_announced(wheel: Path) -> None:
    points = ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        points.read_string(archive.read(name).decode())
    assert points["console_scripts"]["edge-exporter"] == "exporter.cli:main"
    assert points["edge_exporter.targets"]["cpu"] == "targets.cpu:TARGET"


def test_the_installed_packages_are_those_of_the_wheel(fresh: Path, place: Workplace) -> None:
    script = "import exporter, targets, json; print(json.dumps([exporter.__file__, targets.__file__]))"
    result = run(place, fresh / SCRIPTS / "python", "-c", script)
    assert result.code == 0, result.err
    assert all(fresh in Path(file).parents for file in json.loads(result.out))


def test_the_installed_command_builds_a_bundle_and_verifies_it(fresh: Path, place: Workplace) -> None:
    place.onnx()
    place.quadrants()
    command = fresh / SCRIPTS / "edge-exporter"
    built = run(
        place, command, "build", "model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y",
        "--json", *QUICK,
    )  # fmt: skip
    assert built.code == 0, built.err
    (target,) = built.document["targets"]
    assert target["target"] == "cpu"
    assert target["profile"]["measured"]
    bundle = Path(target["bundle"])
    assert place.folder in bundle.parents
    verified = run(place, command, "verify", bundle, "--json")
    assert verified.code == 0, verified.err
    assert verified.document["digest"] == target["digest"]
    # What travels in the bundle came out of the wheel: the runner works where the checkout cannot be seen.
    tested = subprocess.run(
        [sys.executable, "-I", "-B", str(bundle / "run.py"), "--self-test"],
        cwd=place.folder, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    reported = run(place, command, "report", "bundles", "--output", "report.html")
    assert reported.code == 0, reported.err
    assert "<h1>model: bundles</h1>" in (place / "report.html").read_text(encoding="utf-8")


def test_the_installed_command_lists_the_built_in_targets(fresh: Path, place: Workplace) -> None:
    result = run(place, fresh / SCRIPTS / "edge-exporter", "targets", "--json")
    assert result.code == 0, result.err
    assert "cpu" in {target["name"] for target in result.document["targets"]}
