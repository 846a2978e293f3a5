"""What was made of several models against each of them."""

from __future__ import annotations

import pytest

from exporter.artifacts import HistoryEntry, ModelCost
from exporter.errors import GateError
from exporter.events import Event, Note
from exporter.pipeline.comparing import compare

COST = ModelCost(parameters=1, macs=1, bytes=4, compressed_bytes=None, zeros=0.0)


def entry(name: str, metric: float | None) -> HistoryEntry:
    return HistoryEntry(name=name, role="member", digest="0" * 64, cost=COST, metric=metric)


@pytest.mark.parametrize(
    ("merged", "others", "loses"),
    [
        (0.5, {"a": 0.4, "b": 0.5}, None),
        (0.4, {"a": 0.4, "b": 0.5}, "b"),
        # Metrics may be negative, and a model that has none is not one with 0.
        (-3.0, {"base": None, "a": -2.0, "b": -4.0}, "a"),
        (-1.0, {"base": None, "a": -2.0}, None),
        (None, {"a": 0.4}, "a"),
    ],
)
def test_a_result_is_held_against_the_best_that_is_known(
    merged: float | None, others: dict[str, float | None], loses: str | None
) -> None:
    said: list[Event] = []
    entries = [*(entry(name, metric) for name, metric in others.items()), entry("merged", merged)]
    if loses is None:
        compare(entries, said.append, refuses=True)
        assert said == []
        return
    with pytest.raises(GateError, match=f"is worse than '{loses}' alone"):
        compare(entries, said.append, refuses=True)
    compare(entries, said.append, refuses=False)
    assert [type(one) for one in said] == [Note]


def test_without_labels_nothing_is_compared() -> None:
    said: list[Event] = []
    compare([entry("a", None), entry("merged", None)], said.append, refuses=True)
    assert isinstance(said[0], Note)
    assert "no labels" in said[0].text
