"""Ratios of latencies: intervals that hold what they claim, whatever the runs look like."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifacts import LatencySummary, VariantProfile
from exporter.comparison import Compared, ComparedVariants, LatencyPair, Pair, judged, parse_gates
from exporter.errors import InputError, UsageError
from exporter.measure import bootstrap_ratio, bootstrap_ratios, paired_ratio
from exporter.pipeline.latencies import _paired
from targets.runner.stats import summarize


def noisy(random: np.random.Generator, count: int, level: float, memory: float) -> list[int]:
    """Latencies around a level, each remembering its predecessor so much."""
    noise = np.empty(count)
    noise[0] = random.normal()
    for index in range(1, count):
        noise[index] = memory * noise[index - 1] + np.sqrt(1 - memory**2) * random.normal()
    return [int(level * (1 + 0.03 * one)) for one in noise]


def measured(runs: int, level: int) -> VariantProfile:
    """One variant's profile, with the summary that the runner makes of its runs."""
    samples = tuple(level + 1000 * index for index in range(runs))
    return VariantProfile(
        variant="fp32", load_ns=1, first_ns=1, peak_rss_bytes=None, warmup_runs=0, samples_ns=samples,
        summary=msgspec.convert(summarize(samples), LatencySummary),
    )  # fmt: skip


def test_rounds_are_compared_by_percentiles_of_their_runs_and_not_by_bounds_of_them() -> None:
    few, many = [measured(60, 1_000_000)] * 6, [measured(101, 2_000_000)] * 6
    found = _paired(many, many, "p90")
    assert found is not None
    assert found.a == 2_090_000 < many[0].summary.percentiles["p90"]
    assert _paired(many, few, "p90") is None, "60 runs bound no p90"
    median = _paired(few, many, "p50")
    assert median is not None
    assert (median.a, median.b) == (few[0].summary.median, many[0].summary.median)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says(memory: float) -> None:
    held = 0
    for trial in range(40):
        random = np.random.default_rng(trial)
        found = bootstrap_ratio(noisy(random, 300, 2.2e6, memory), noisy(random, 300, 2e6, memory), 0.5)
        assert found is not None
        held += found.low <= 1.1 <= found.high
    assert held >= 33, f"{held} of 40: at 95 % fewer than 33 come by chance once in thousands"


def test_a_series_against_itself_makes_no_difference_and_a_far_one_does() -> None:
    series = noisy(np.random.default_rng(0), 200, 1e6, 0.3)
    same, far = bootstrap_ratio(series, series, 0.5), bootstrap_ratio(series, [2 * one for one in series], 0.5)
    assert same is not None
    assert far is not None
    assert (same.ratio, same.verdict) == (1.0, "no difference")
    assert far.ratio == pytest.approx(0.5, rel=1e-3)
    assert far.verdict == "faster"


def test_several_quantiles_at_once_are_those_of_one_each() -> None:
    random = np.random.default_rng(0)
    series, base = (random.integers(1_000_000, 1_500_000, count).tolist() for count in (400, 700))
    quantiles = [0.5, 0.9, 0.99]
    assert bootstrap_ratios(series, base, quantiles) == [bootstrap_ratio(series, base, one) for one in quantiles]
    assert bootstrap_ratios(series, base[:5], quantiles) == []


def test_too_few_runs_or_rounds_give_no_ratio() -> None:
    assert bootstrap_ratio([1000] * 19, [1000] * 500, 0.5) is None
    assert paired_ratio([1.0] * 5, [1.0] * 5) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(1e3, 1e9), st.floats(1e3, 1e9)), min_size=6, max_size=30))
def test_an_interval_of_rounds_lies_around_its_ratio_with_at_least_95_percent(
    pairs: list[tuple[float, float]],
) -> None:
    found = paired_ratio([one for one, _ in pairs], [other for _, other in pairs])
    assert found is not None
    assert found.low <= found.ratio <= found.high
    assert found.confidence >= 0.95


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("accurcy=-1%", "did you mean 'accuracy'"),
        ("p50", "a name and a number"),
        ("p50=fast", "a name and a number"),
        ("p50=nan%", "a name and a number"),
        ("p50=1e3%", "a name and a number"),
        ("p50=5", "percentage"),
        ("sqnr=-3%", "dB"),
        ("=5%", "no gate ''"),
    ],
)
def test_a_gate_that_cannot_be_read_is_told(text: str, mentions: str) -> None:
    with pytest.raises(UsageError, match=mentions):
        parse_gates([text])


def test_one_gate_twice_is_told() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_gates(["size=+1%", "size=+2%"])


def compared(**changes: Pair | dict[str, LatencyPair]) -> Compared:
    same = Pair(a=100.0, b=100.0)
    values = {"size": same, "accuracy": Pair(a=0.8, b=0.8), "sqnr": same, "int8": same, "memory": same, "latency": {}}
    pair = ComparedVariants(a="int8", b="int8", default=True, ops=None, **(values | changes))  # type: ignore[arg-type]
    return Compared(
        a="a", b="b", variants=(pair,), metric="accuracy", measured="", not_measured="", remeasured=0, differences=()
    )


def passed(gate: str, **changes: Pair | dict[str, LatencyPair]) -> bool:
    (outcome,) = judged(compared(**changes), parse_gates([gate])).gates
    return outcome.passed


def latency(ratio: float, low: float, high: float) -> dict[str, LatencyPair]:
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
    return {
        "p50": LatencyPair(a=1.0, b=ratio, ratio=ratio, low=low, high=high, confidence=0.95, count=9, verdict=verdict)  # type: ignore[arg-type]
    }


def test_gates_look_at_the_change_in_their_own_direction() -> None:
    assert passed("size=+0%")
    assert not passed("size=+0%", size=Pair(a=100.0, b=101.0))
    assert passed("size=+1%", size=Pair(a=100.0, b=101.0))
    assert not passed("size=-5%", size=Pair(a=100.0, b=96.0))
    assert passed("accuracy=-0.5%", accuracy=Pair(a=0.8, b=0.796))
    assert not passed("accuracy=-0.5%", accuracy=Pair(a=0.8, b=0.7959))
    assert passed("accuracy=-0.01", accuracy=Pair(a=0.8, b=0.79))
    assert not passed("accuracy=+1%", accuracy=Pair(a=0.8, b=0.8))
    assert not passed("sqnr=-3", sqnr=Pair(a=30.0, b=26.0))


def test_float_outputs_that_differ_by_rounding_alone_are_as_good_as_equal_ones() -> None:
    assert passed("sqnr=-1", sqnr=Pair(a=144.0, b=110.0))
    assert passed("sqnr=-1", sqnr=Pair(a=None, b=128.0, exact=(True, False)))
    assert passed("sqnr=-1", sqnr=Pair(a=30.0, b=None, exact=(False, True)))
    assert not passed("sqnr=-1", sqnr=Pair(a=None, b=30.0, exact=(True, False)))
    with pytest.raises(InputError, match="cannot be gated: outputs are not finite"):
        passed("sqnr=-1", sqnr=Pair(a=30.0, b=None, why="outputs are not finite where the model's are"))


def test_a_latency_gate_holds_no_chance_against_anyone_but_asks_for_gains_to_be_there() -> None:
    assert passed("p50=+5%", latency=latency(1.04, 1.03, 1.05))
    assert not passed("p50=+5%", latency=latency(1.06, 1.03, 1.09))
    assert passed("p50=+0%", latency=latency(1.01, 0.98, 1.04)), "no difference"
    assert not passed("p50=-10%", latency=latency(0.98, 0.9, 1.02)), "a gain that was asked for is not there"


def test_a_gate_on_what_is_not_known_is_told_and_not_passed() -> None:
    with pytest.raises(InputError, match="cannot be gated"):
        passed("p50=+5%")
    with pytest.raises(InputError, match="no labels"):
        passed("accuracy=-1%", accuracy=Pair(a=None, b=None, why="no labels"))
