"""The corpus of the benchmarks imports, and its table says plainly which rows miss the goal."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _row(**changes: Any) -> dict[str, Any]:
    ours = {
        "variant": "int8", "value": 0.9, "sqnr_db": 30.0, "size": 300, "ratio": 0.5,
        "repairs": [{"change": "conv in float", "kept": True}, {"change": "observer mse", "kept": False}],
        "eligible": 9, "quantized": 8,
    }  # fmt: skip
    plain = {"value": 0.6, "sqnr_db": 9.0, "size": 280, "ratio": 0.49}
    row = {
        "name": "net", "task": "a net", "metric": "accuracy", "note": "", "float": 0.9, "size_float": 1000,
        "failure": "", "default": "int8", "why": "", "plain": plain, "ours": ours, "speed_kept": 0.98,
    }  # fmt: skip
    return row | changes


def test_every_case_names_a_function_that_is_there() -> None:
    from corpus import CASES

    for reference in CASES.values():
        module, function = reference.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_row_within_the_goal_is_met_and_shows_only_repairs_that_were_kept() -> None:
    from corpus.table import cells

    text = cells(_row())
    assert text[-1] == "met"
    assert "conv in float" in text
    assert "8/9" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"float": 0.95}, "accuracy"),
        ({"speed_kept": 0.8}, "80% of plain int8's speed"),
        ({"failure": "the accuracy gate was not met"}, "no int8 within the gate"),
    ],
)
def test_a_row_that_misses_the_goal_says_in_what(changes: dict[str, Any], said: str) -> None:
    from corpus.table import missed

    assert any(said in text for text in missed(_row(**changes)))


def test_a_model_that_failed_is_a_row_that_says_why() -> None:
    from corpus.table import table

    text = table([_row(), {"name": "other", "error": "no such file", "date": ""}])
    assert "| other |" in text
    assert "other: failed: no such file" in text


def test_a_detection_counts_only_with_the_right_class_and_enough_overlap() -> None:
    from corpus.metrics import detected

    found = np.zeros((3, 2, 15), np.float32)
    found[:, 1, :5] = [20, 20, 10, 10, 0.9]
    found[:, 1, 5 + 3] = 1.0
    labels = np.array([[3, 20, 20, 10, 10], [4, 20, 20, 10, 10], [3, 40, 40, 10, 10]], np.float32)
    assert detected({"out": found}, labels) == pytest.approx(1 / 3)


def test_characters_are_counted_after_repeats_and_blanks_fall_away() -> None:
    from corpus.metrics import characters

    steps = np.eye(4)[[1, 1, 0, 1, 2, 0, 3]]
    assert characters({"out": steps[None]}, np.array([[1, 1, 2, 3]])) == 1.0
    assert characters({"out": steps[None]}, np.array([[1, 2, 2, 3]])) == 0.75


def test_recall_looks_for_each_query_among_all_names() -> None:
    from corpus.metrics import recall_at_1

    vectors = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    assert recall_at_1({"out": vectors}, np.array([0, 1, 1, 0])) == 1.0
    assert recall_at_1({"out": vectors}, np.array([0, 1, 0, 1])) == 0.0


def test_rows_of_each_machine_have_a_table_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corpus import results

    def put(machine: str, name: str, value: int) -> None:
        monkeypatch.setattr(results, "_machine", lambda: machine)
        row = {"name": name, "date": "2026-01-01", "value": value}
        told = lambda rows: "".join(f"{one['name']}={one['value']}\n" for one in rows)  # noqa: E731
        results.put_row(tmp_path, "speed", row, ["a", "b"], "Speed", "How fast.", told)

    for machine, name, value in (("old", "b", 1), ("new", "a", 2), ("old", "a", 3), ("old", "b", 4)):
        put(machine, name, value)
    head, new, old = (tmp_path / "speed.md").read_text().split("## ")
    assert "benchmarks/speed.py" in head
    assert new.startswith("new\n")
    assert new.endswith("a=2\n\n")
    assert old.endswith("a=3\nb=4\n")
