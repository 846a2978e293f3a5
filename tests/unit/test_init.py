"""The plan that `init` writes: what is no input is not taken for one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

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
