"""Repairing an int8 model: the cheapest change first, no more nodes in float than needed, never over the budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.artifacts import (
    Coverage,
    Fidelity,
    GateResult,
    MetricResult,
    NodeDamage,
    OutputFidelity,
    QuantScheme,
)
from exporter.pipeline.judged import Judged, better
from exporter.pipeline.repair import Budget, Repairing, Workshop
from exporter.pipeline.results import Int8Model
from exporter.target_api import Int8File, SchemeNeed


class Net:
    """A made-up network: each node brings noise, a scheme can take some of it away, the gate allows so much."""

    def __init__(
        self,
        noise: dict[str, float],
        allowed: float,
        *,
        uneven: int = 0,
        metric: bool = False,
        small: frozenset[str] = frozenset(),
        saturating: float = 1.0,
        unsigned: float = 1.2,
        followers: frozenset[str] = frozenset(),
        biased: float | None = None,
    ) -> None:
        self.biased = biased
        self.saturating, self.unsigned = saturating, unsigned
        self.followers = followers
        self.small = small
        self.ops: dict[str, str] = {}
        self.noise = noise
        self.allowed = allowed
        self.uneven = uneven
        self.metric = metric
        self.judged: list[QuantScheme] = []

    def total(self, scheme: QuantScheme) -> float:
        kept = {name: value for name, value in self.noise.items() if self.is_int8(name, scheme)}
        for name in scheme.observers:
            if name in kept:
                kept[name] /= 2
        corrected = self.biased if self.biased is not None and scheme.correct_biases else 1
        even = 4 if scheme.equalize else 1
        return sum(kept.values()) * corrected / even * (self.saturating if scheme.reduce_range else 1)

    def is_int8(self, name: str, scheme: QuantScheme) -> bool:
        if name in self.followers:  # Int8 only where something else is.
            return any(self.is_int8(other, scheme) for other in set(self.noise) - self.followers)
        return name not in scheme.exclude and not (scheme.ops and name in self.small)

    def products(self, model: Int8Model) -> tuple[str, ...]:
        return ("Conv",) if self.small and not model.file.scheme.ops else ()

    def make(self, scheme: QuantScheme) -> Int8Model:
        count = sum(self.is_int8(name, scheme) for name in self.noise)
        file = Int8File(
            name="int8",
            path=Path("model.onnx"),
            scheme=scheme,
            coverage=Coverage(
                eligible=len(self.noise),
                quantized=count,
                quantized_ops={} if self.biased is None else {"Conv": count},
            ),
        )
        return Int8Model(file=file, content="", wanted=SchemeNeed())

    def race(self, after: Int8Model, before: Int8Model) -> float:
        """Every node in float costs a tenth of the latency."""
        floats = [len(self.noise) - model.file.coverage.quantized for model in (after, before)]
        slower = self.unsigned if after.file.scheme.weights == "uint8" != before.file.scheme.weights else 1
        return slower * (10 + floats[0]) / (10 + floats[1])

    def judge(self, scheme: QuantScheme) -> Judged:
        self.judged.append(scheme)
        total = self.total(scheme)
        failures = ("too much noise",) if total > self.allowed else ()
        quality = MetricResult(name="accuracy", reference=1.0, value=1 - total, relative_loss=total)
        fidelity = Fidelity(
            reference="torch",
            reference_digest="",
            samples=1,
            data="evaluation",
            outputs=(
                OutputFidelity(
                    output="y", sqnr_db=-10 * math.log10(total) if total else None, cosine=1, max_abs_error=0
                ),
            ),
            metric=quality if self.metric else None,
            gate=GateResult(passed=not failures, failures=failures),
        )
        return Judged(model=self.make(scheme), fidelity=fidelity)

    def rank(self, model: Int8Model) -> list[NodeDamage]:
        left = [name for name in self.noise if self.is_int8(name, model.file.scheme)]
        found = [
            NodeDamage(
                node=name,
                op=self.ops.get(name, "Mul" if name in self.small else "Conv"),
                output=name,
                bits=8,
                range=(0, 1),
                sqnr_db=-self.noise[name],
                channel_db=None,
                accumulated_db=None,
            )
            for name in left
        ]
        return sorted(found, key=lambda damage: damage.score)

    def repair(self, budget: int | str = 1000, scheme: QuantScheme | None = None, **options: Any) -> Judged:
        first = self.judge(scheme or QuantScheme(reduce_range=True))
        self.judged.clear()
        workshop = Workshop(
            judge=self.judge,
            rank=self.rank,
            uneven=lambda model: self.uneven,
            products=self.products,
            make=self.make,
            race=self.race,
        )
        self.repairing = Repairing(first, workshop, Budget(budget, **options))
        return self.repairing.run()


noises = st.dictionaries(st.text("abcdefgh", min_size=1), st.floats(0.001, 1), min_size=2, max_size=20)


@given(noise=noises, share=st.floats(0.0, 1.0), metric=st.booleans())
def test_the_gate_is_met_where_one_node_may_stay_int8_and_no_node_is_float_in_vain(noise, share, metric):
    net = Net(noise, allowed=share * sum(noise.values()), metric=metric)
    repaired = net.repair()
    best = repaired.model.file.scheme
    everything_but_the_quietest = QuantScheme(exclude=tuple(sorted(noise, key=noise.__getitem__)[1:]))
    if net.total(everything_but_the_quietest) <= net.allowed:
        assert repaired.passed
    if repaired.passed and best.exclude:
        one_less = best.exclude[:-1]
        assert net.total(QuantScheme(exclude=one_less, observers=best.observers)) > net.allowed
    if repaired.passed:
        assert repaired.model.file.coverage.quantized > 0


@given(noise=noises, budget=st.integers(0, 12))
def test_no_more_evaluations_than_the_budget_and_the_best_is_kept(noise, budget):
    net = Net(noise, allowed=0.0)
    repaired = net.repair(budget)
    assert len(net.judged) <= budget
    assert net.total(repaired.model.file.scheme) == min(
        [net.total(QuantScheme()), *(net.total(scheme) for scheme in net.judged)]
    )


@pytest.mark.parametrize(
    ("offers", "field", "change"),
    [
        ({"uneven": 3}, "equalize", "channels evened out between layers (3 uneven pairs)"),
        ({"biased": 0.25}, "correct_biases", "biases corrected by the mean error of their channels"),
    ],
)
def test_what_costs_no_latency_comes_first_and_only_where_it_promises_something(offers, field, change):
    net = Net({"a": 1.0, "b": 1.0}, allowed=0.6, **offers)
    repaired = net.repair()
    assert repaired.passed
    assert [getattr(scheme, field) for scheme in net.judged] == [True]
    assert repaired.model.repairs[0].change == change
    net = Net({"a": 1.0, "b": 1.0}, allowed=0.1)
    net.repair()
    assert not any(getattr(scheme, field) for scheme in net.judged)


def test_another_observer_for_the_worst_tensors_comes_before_nodes_in_float():
    net = Net({"a": 1.0, "b": 0.1, "c": 0.1, "d": 0.1}, allowed=0.8)
    repaired = net.repair()
    assert repaired.model.file.scheme.observers == {"a": "mse"}
    assert repaired.model.file.scheme.exclude == ()


def test_full_range_weights_are_tried_with_a_bit_less():
    net = Net({"a": 1.0, "b": 1.0}, allowed=0.1)
    net.repair(scheme=QuantScheme(reduce_range=False))
    assert net.judged[0].reduce_range


def test_unsigned_weights_of_8_bits_come_before_nodes_in_float_and_go_where_the_gate_is_met_without():
    net = Net({"a": 1.0, "b": 0.9, "c": 0.9, "d": 0.8}, allowed=0.4, saturating=4)
    scheme = net.repair().model.file.scheme
    assert (scheme.weights, scheme.reduce_range) == ("uint8", False)
    assert len(scheme.exclude) == 3
    net = Net({"worst": 1.0, "a": 0.01, "b": 0.01, "c": 0.01}, allowed=0.2, saturating=4)
    assert net.repair().model.file.scheme == QuantScheme(reduce_range=True, exclude=("worst",))


def test_unsigned_weights_are_not_tried_where_their_kernels_are_much_slower():
    net = Net({"a": 1.0, "b": 0.9, "c": 0.9, "d": 0.8}, allowed=0.4, saturating=4, unsigned=6)
    net.repair()
    assert {scheme.weights for scheme in net.judged} == {"int8"}


def test_a_model_of_which_nothing_is_int8_is_never_the_best_and_the_largest_number_of_floats_is_found():
    noise = {f"conv{number}": 1.0 - number / 100 for number in range(9)} | {
        f"clip{number}": 0.5 for number in range(9)
    }
    clips = frozenset(name for name in noise if name.startswith("clip"))
    net = Net(noise, allowed=5.5, followers=clips)
    repaired = net.repair()
    assert repaired.passed
    assert len(repaired.model.file.scheme.exclude) == 8
    hopeless = Net(noise, allowed=1.0, followers=clips).repair()
    assert not hopeless.passed
    assert hopeless.model.file.coverage.quantized > 0


def test_every_change_is_reported_with_what_it_brought():
    net = Net({"a": 1.0, "b": 0.1, "c": 0.1, "d": 0.1}, allowed=0.05, metric=True)
    repairs = net.repair().model.repairs
    assert len(repairs) == len(net.judged)
    kept = [repair for repair in repairs if repair.kept]
    assert kept
    for repair in kept:
        assert repair.metric is not None
        before, after = repair.metric
        assert after > before or repair.quantized[1] > repair.quantized[0]
        assert repair.latency is not None


def test_what_each_change_cost_in_latency_is_raced_against_what_was_there_before_it():
    net = Net({"a": 1.0, "b": 0.1, "c": 0.1, "d": 0.1}, allowed=0.15)
    kept = [repair for repair in net.repair().model.repairs if repair.kept]
    assert [repair.latency for repair in kept[:-1]] == [1.0] * (len(kept) - 1)
    assert kept[-1].change == "3 nodes in float: a, b, c"
    assert kept[-1].latency == 1.3


def test_chains_of_small_operators_become_float_together_before_products_do():
    noise = {"conv": 0.01, "gemm": 0.01} | {f"mul{number}": 0.5 for number in range(12)}
    net = Net(noise, allowed=0.05, small=frozenset(name for name in noise if name.startswith("mul")))
    scheme = net.repair().model.file.scheme
    assert scheme.ops == ("Conv",)
    assert scheme.exclude == ()
    assert net.repairing.best.model.file.coverage.quantized == 2


def test_a_change_that_a_later_one_made_useless_is_taken_back():
    noise = {"worst": 1.0, "a": 0.01, "b": 0.01, "c": 0.01}
    net = Net(noise, allowed=0.04)
    repaired = net.repair()
    assert repaired.model.file.scheme.exclude == ("worst",)
    # Halving the noise of a node that is float now brings nothing.
    assert repaired.model.file.scheme.observers == {}
    assert [repair.change for repair in repaired.model.repairs if repair.kept] == ["1 node in float: worst"]


def test_nodes_that_only_move_values_are_no_reason_for_float():
    net = Net({"reshape": 1.0, "conv": 0.9, "other": 0.1}, allowed=1.2)
    net.ops = {"reshape": "Reshape"}
    assert net.repair().model.file.scheme.exclude == ("conv",)


def test_a_budget_of_seconds_ends_when_they_are_over():
    ticks = iter(range(100))
    net = Net({"a": 1.0, "b": 1.0, "c": 1.0}, allowed=0.0)
    net.repair("3 s", clock=lambda: float(next(ticks)))
    assert len(net.judged) == 2
    assert net.repairing.ended


def test_fewer_values_that_are_no_numbers_are_nearer_to_the_gate_whatever_the_metric_says():
    def judged(broken: int, value: float) -> Judged:
        output = OutputFidelity(output="y", sqnr_db=-300.0, cosine=0.0, max_abs_error=0.0, broken=broken)
        made = Net({"a": 1.0}, 0.0).judge(QuantScheme())
        metric = MetricResult(name="accuracy", reference=0.9, value=value, relative_loss=(0.9 - value) / 0.9)
        fidelity = msgspec.structs.replace(made.fidelity, outputs=(output,), metric=metric)
        return msgspec.structs.replace(made, fidelity=fidelity)

    assert better(judged(1, 0.1), judged(5, 0.2))
    assert not better(judged(5, 0.2), judged(1, 0.1))


def test_what_fell_short_of_is_what_counts_and_not_the_metric_alone() -> None:
    """A gate on SQNR alone, with a metric that gets better while SQNR gets worse."""

    def judged(short: float, loss: float, sqnr_db: float) -> Judged:
        one = Net({"a": 1.0}, allowed=0.0, metric=True).judge(QuantScheme())
        fidelity = msgspec.structs.replace(
            one.fidelity,
            gate=GateResult(passed=False, failures=("too little SQNR",), short=short),
            metric=MetricResult(name="accuracy", reference=1.0, value=1 - loss, relative_loss=loss),
            outputs=(msgspec.structs.replace(one.fidelity.outputs[0], sqnr_db=sqnr_db),),
        )
        return msgspec.structs.replace(one, fidelity=fidelity)

    assert better(judged(0.1, 0.02, 30.0), judged(0.2, 0.0, 25.0))
    assert not better(judged(0.2, 0.0, 25.0), judged(0.1, 0.02, 30.0))
    assert better(judged(0.1, 0.0, 25.0), judged(0.1, 0.02, 30.0)), "equally short: the metric decides"


def test_a_change_is_told_against_those_that_stayed() -> None:
    """Evening out channels helps as long as sums saturate, and brings nothing when they do not any more."""

    class Saturating(Net):
        def total(self, scheme: QuantScheme) -> float:
            return 0.8 if scheme.reduce_range else 1.0 if scheme.equalize else 4.0

    net = Saturating({"a": 1.0, "b": 1.0}, allowed=0.9, uneven=1)
    repaired = net.repair(scheme=QuantScheme())
    assert [repair.kept for repair in repaired.model.repairs] == [False, True]
    assert repaired.model.repairs[1].sqnr_db == (-10 * math.log10(4.0), -10 * math.log10(0.8))
