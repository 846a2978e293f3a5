"""Outputs that a metric does not read are held by the gate all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.pipeline.judging import unjudged
from exporter.plan import read_plan
from exporter.registry import load_target


@pytest.mark.parametrize(
    ("evaluation", "left"),
    [
        ('labels = "y"', ("boxes",)),
        ('labels = "y"\noutput = "boxes"', ("scores",)),
        ('labels = "y"\nmetric = "own.py:f"', ()),
        ("", ()),
    ],
)
def test_accuracy_reads_one_output_and_the_others_are_gated_by_divergence(
    tmp_path: Path, evaluation: str, left: tuple[str, ...]
) -> None:
    for name in ("net.onnx", "eval.npz", "own.py"):
        (tmp_path / name).touch()
    (tmp_path / "plan.toml").write_text(
        'schema = 1\nname = "net"\n[model]\nsource = "net.onnx"\n[evaluation]\ndata = "eval.npz"\n'
        + evaluation
        + "\n[targets.cpu]\n"
    )
    plan = read_plan(tmp_path / "plan.toml", load_target=load_target)
    assert unjudged(plan, ["scores", "boxes"]) == left
