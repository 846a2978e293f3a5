"""The examples do what their pages say: each plan is built, and what it shows is held."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import Workplace

ROOT = Path(__file__).resolve().parents[2]
QUICKLY = ("--no-profile", "--set", "quantize.try_products=false", "--target", "cpu", "--json", "--progress", "none")


@pytest.fixture(scope="module")
def examples(shared_place: Workplace) -> Workplace:
    """A copy, beside the data that the plans name."""
    for name in ("examples", "calibration_data"):
        shutil.copytree(ROOT / name, shared_place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return shared_place


def built(place: Workplace, name: str, *options: str) -> tuple[dict[str, Any], Path]:
    result = place.run("build", f"examples/{name}/plan.toml", *QUICKLY, *options)
    assert result.code == 0, result.err
    (target,) = result.document["targets"]
    return target, Path(target["bundle"])


def metrics(document: dict[str, Any]) -> dict[str, float]:
    return {entry["name"]: entry["metric"] for entry in document["history"]}


@pytest.mark.slow
def test_two_fine_tunes_become_one_model_that_is_better_than_both_and_their_base(examples: Workplace) -> None:
    document, _ = built(examples, "merge_two_tasks")
    reached = metrics(document)
    assert reached.pop("merged (ties)") > max(reached.values())
    assert set(reached) == {"base", "tops", "rest"}


@pytest.mark.slow
def test_one_student_knows_more_than_each_of_its_teachers(examples: Workplace) -> None:
    document, _ = built(examples, "ensemble_to_student")
    reached = metrics(document)
    assert reached.pop("student") > max(reached.values())


@pytest.mark.slow
def test_four_heads_are_hardly_larger_than_one_model(examples: Workplace) -> None:
    _, stack = built(examples, "stack_heads")
    plan = examples / "examples/stack_heads/plan.toml"
    text = plan.read_text()
    alone = text.partition("[evaluation]")[0].replace('name = "stack-heads"', 'name = "alone"').replace(
        "[calibration]\n", "[calibration]\nignore = ['labels']\n"
    ).replace("args =", 'weights = "kind.safetensors"\nargs =')  # fmt: skip
    (plan.parent / "alone.toml").write_text(alone + "[targets.cpu]\n")
    result = examples.run("build", plan.parent / "alone.toml", *QUICKLY)
    assert result.code == 0, result.err
    one = Path(result.document["targets"][0]["bundle"])
    sizes = [(bundle / "variants/fp32/model.onnx").stat().st_size for bundle in (stack, one)]
    assert sizes[0] <= 1.1 * sizes[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quarter_of_the_work_is_left_and_most_of_the_accuracy_comes_back(examples: Workplace) -> None:
    plan = examples / "examples/prune_and_distil/plan.toml"
    plan.write_text(plan.read_text().replace("epochs = 60", "epochs = 4"))  # The whole lesson takes a minute.
    document, _ = built(examples, "prune_and_distil", "--set", "gate.max_relative_loss=0.9")
    trained, pruned, *_, last = document["history"]
    assert pruned["cost"]["macs"] <= 0.25 * trained["cost"]["macs"]
    assert pruned["metric"] < 0.5 < 0.8 < last["metric"] < trained["metric"]
    assert last["cost"] == {**pruned["cost"], "compressed_bytes": last["cost"]["compressed_bytes"]}
