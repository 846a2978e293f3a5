"""The plan that `init` writes: what is no input is not taken for one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import InputError, UsageError
from exporter.pipeline.init import write_plan

CALLABLE = "import numpy as np\n\ndef data():\n    yield {{'x': np.zeros((2, 4), 'f'), {labels}}}\n"


@pytest.mark.parametrize("kind", ["npz", "python"])
@pytest.mark.parametrize("labelled", [True, False])
def test_labels_beside_the_inputs_are_ignored_by_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, labelled: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("def make():\n    raise AssertionError\n")
    arrays = {"x": np.zeros((2, 4), np.float32), **({"labels": np.zeros(2, np.int64)} if labelled else {})}
    np.savez("calib.npz", **arrays)
    Path("calib.py").write_text(CALLABLE.format(labels="'labels': np.zeros(2, int)" if labelled else ""))
    calib = "calib.npz" if kind == "npz" else "calib.py:data"
    specs = write_plan("net.py:make", calib, None, Path("plan.toml"), overwrite=False)
    assert [spec.name for spec in specs] == ["x"]
    plan = tomllib.loads(Path("plan.toml").read_text())
    assert list(plan["model"]["inputs"]) == ["x"]
    assert plan["calibration"] == {"data": calib, **({"ignore": ["labels"]} if labelled else {})}


def test_a_plan_has_the_evaluation_the_labels_by_their_name_and_the_targets_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("def make():\n    raise AssertionError\n")
    np.savez("calib.npz", x=np.zeros((2, 4), np.float32), y=np.zeros(2, np.int64))
    wanted: dict[str, Any] = {"evaluation": "test.npz", "labels": "y", "targets": ["mobile", "cpu"]}
    specs = write_plan("net.py:make", "calib.npz", None, Path("plan.toml"), overwrite=False, **wanted)
    assert [spec.name for spec in specs] == ["x"]
    text = Path("plan.toml").read_text()
    plan = tomllib.loads(text)
    assert plan["calibration"] == {"data": "calib.npz", "ignore": ["y"]}
    assert plan["evaluation"] == {"data": "test.npz", "labels": "y"}
    assert list(plan["targets"]) == ["mobile", "cpu"]
    assert "\n# [targets.arm]\n" in text


def test_labels_without_data_and_unknown_targets_write_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("def make():\n    raise AssertionError\n")
    with pytest.raises(UsageError, match="give --eval as well"):
        write_plan("net.py:make", None, None, Path("plan.toml"), overwrite=False, labels="y")
    with pytest.raises(InputError, match="mobil"):
        write_plan("net.py:make", None, None, Path("plan.toml"), overwrite=False, targets=["mobil"])
    assert not Path("plan.toml").exists()
