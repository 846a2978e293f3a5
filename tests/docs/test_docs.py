"""The documentation's blocks are run as a reader would, and generated pages are what their generator writes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.registry import load_target

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page: Path, folder: Path) -> list[str]:
    """Writes the page's files and runs its shell blocks in order; returns the output of each."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EDGE_EXPORTER_CACHE": str(folder / ".cache"),
    }
    outputs = []
    place = folder
    for language, info, content in BLOCK.findall(page.read_text(encoding="utf-8")):
        name = re.search(r"file=(\S+)", info or "")
        if name:
            (place / name[1]).write_text(content, encoding="utf-8")
        elif language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", content],
                cwd=place, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
    return outputs


def test_a_reader_can_follow_getting_started(tmp_path: Path) -> None:
    outputs = run_page(ROOT / "docs/getting-started.md", tmp_path)
    assert "hidden" in (tmp_path / "model.py").read_text()
    assert "ranker for cpu" in outputs[0]
    assert "at least 20" in outputs[1]
    assert "self-test" in outputs[2]
    assert "agreement" in outputs[-1]


def test_a_reader_can_find_the_node_at_fault(tmp_path: Path) -> None:
    outputs = run_page(ROOT / "docs/quantization.md", tmp_path)
    first = outputs[0].splitlines()[2].split()
    assert first[:3] == ["head", "Concat", "8"]
    assert "float" in next(line for line in outputs[1].splitlines() if line.startswith("head"))
    assert (tmp_path / "analysis.json").stat().st_size > 1000
    (manifest,) = (tmp_path / "bundles").glob("detector-cpu-*/manifest.json")
    assert "output 'out' is lost in part (int8): at index" in manifest.read_text()


@pytest.mark.slow
def test_a_reader_can_find_the_operator_at_fault(tmp_path: Path) -> None:
    target = load_target("mobile")
    if target.missing(target.options_type()) is not None:
        pytest.skip("the extra `mobile` is missing")
    outputs = run_page(ROOT / "docs/mobile.md", tmp_path)
    rows = [line.split() for line in outputs[0].splitlines()[2:]]
    assert rows[0][:4] == ["concatenation_5", "CONCATENATION", "-", "8"]
    assert "dynamic for mobile" in outputs[1]
    assert ["concatenation_5", "CONCATENATION", "-", "float"] in [
        line.split()[:4] for line in outputs[1].splitlines()
    ]
    (analysis,) = json.loads((tmp_path / "int16x8.json").read_text())["analyses"]
    assert {node["bits"] for node in analysis["nodes"]} == {16}


@pytest.mark.slow
def test_a_reader_can_bundle_a_ready_onnx_file(tmp_path: Path) -> None:
    outputs = run_page(ROOT / "docs/onnx.md", tmp_path)
    assert "magika for cpu" in outputs[-1]


def test_a_reader_can_compress_from_python(tmp_path: Path) -> None:
    page = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    (code,) = [text for _, info, text in BLOCK.findall(page) if "file=from_python.py" in (info or "")]
    (tmp_path / "from_python.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "from_python.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    share, taught, cost = done.stdout.splitlines()
    assert 0 < float(share.split()[0]) <= 0.5
    assert taught.startswith("loss ")
    assert cost.startswith("ModelCost(parameters=")


def test_a_reader_can_merge_from_python(tmp_path: Path) -> None:
    page = (ROOT / "docs/merge.md").read_text(encoding="utf-8")
    (code,) = [text for _, info, text in BLOCK.findall(page) if "file=merging.py" in (info or "")]
    (tmp_path / "merging.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "merging.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moved, sums, _ = done.stdout.splitlines()
    assert float(moved.split()[-1]) > 0
    assert float(sums.split()[-1]) == pytest.approx(1.0, rel=1e-5)


def test_the_plan_reference_is_what_the_types_say() -> None:
    spec = importlib.util.spec_from_file_location("make_plan_reference", ROOT / "docs/make_plan_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/plan.md").read_text(encoding="utf-8") == module.reference()


def test_the_schemas_are_what_the_types_say() -> None:
    spec = importlib.util.spec_from_file_location("make_schemas", ROOT / "docs/make_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, kind in module.KINDS.items():
        there = (ROOT / f"docs/schema/{name}.schema.json").read_text(encoding="utf-8")
        assert there == module.text(kind), "python docs/make_schemas.py"


def test_troubleshooting_quotes_messages_that_exist() -> None:
    literals = set()
    for path in [*(ROOT / "exporter").rglob("*.py"), *(ROOT / "targets/runner").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                literals.add("".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "…"
                                     for part in node.values))  # fmt: skip
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", page, re.MULTILINE)
    assert len(quoted) > 25
    for message in quoted:
        assert any(message in literal for literal in literals), message


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_shows_the_table_of_the_page_that_explains_it() -> None:
    shown, whole = (
        re.findall(r"<!-- prune-and-distil -->\n```\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[
            0
        ]
        for page in ("README.md", "docs/compress.md")
    )
    assert "3 distil" in shown
    assert not set(shown.splitlines()) - set(whole.splitlines())
