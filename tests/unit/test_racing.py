"""A short race tells which of two forms is faster, whatever slows the machine down meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.measure import latency_ratio


class Machine:
    """A clock that runs on as forms are run, on a machine that is slowed down from time to time."""

    def __init__(self, slowdowns: list[float]) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self._slowdowns = slowdowns

    def clock(self) -> float:
        return self.now

    def run(self, name: str, seconds: float) -> None:
        slow = self._slowdowns[(len(self.order) // 2) % len(self._slowdowns)]
        self.order.append(name)
        self.now += seconds * slow


@given(
    before=st.floats(1e-3, 1.0),
    ratio=st.floats(0.1, 10.0),
    slowdowns=st.lists(st.floats(1.0, 5.0), min_size=1, max_size=7),
)
def test_the_ratio_is_that_of_the_forms_however_the_machine_is_slowed_from_round_to_round(before, ratio, slowdowns):
    machine = Machine(slowdowns)
    found = latency_ratio(
        lambda: machine.run("after", before * ratio),
        lambda: machine.run("before", before),
        seconds=0.5,
        clock=machine.clock,
    )
    assert found == pytest.approx(ratio, rel=1e-6)


def test_either_form_begins_as_often_and_long_runs_end_after_ten_rounds():
    machine = Machine([1.0])
    latency_ratio(
        lambda: machine.run("after", 10.0), lambda: machine.run("before", 10.0), seconds=1.0, clock=machine.clock
    )
    rounds = list(zip(machine.order[4::2], machine.order[5::2], strict=True))
    assert len(rounds) == 10
    assert rounds.count(("before", "after")) == rounds.count(("after", "before")) == 5
