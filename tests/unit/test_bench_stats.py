import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runner import stats

THRESHOLDS = {"p90": 64, "p95": 130, "p99": 662, "p99.9": 6636}
series = st.lists(st.integers(min_value=1, max_value=10**9), min_size=1, max_size=200)


@pytest.mark.parametrize(("label", "least"), THRESHOLDS.items())
def test_a_percentile_is_supported_from_exactly_its_threshold_on(label: str, least: int) -> None:
    assert label not in stats.supported_percentiles(least - 1)
    assert stats.supported_percentiles(least)[label] == least - 1
    assert label in stats.supported_percentiles(least + 1)


@pytest.mark.parametrize("n", [1, 2, 11, 64, 200, 1000])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_rank_is_the_smallest_with_99_percent_by_the_exact_binomial_sum(n: int, p: float) -> None:
    terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
    exact = next((k for k in range(1, n) if math.fsum(terms[:k]) >= 0.99), None)
    assert stats.percentile_rank(n, p) == exact


@given(st.integers(min_value=0, max_value=20_000))
def test_ranks_stay_below_the_maximum_and_rise_with_the_percentile(n: int) -> None:
    ranks = list(stats.supported_percentiles(n).values())
    assert ranks == sorted(ranks)
    assert all(n / 2 < rank < n for rank in ranks)


def test_a_conservative_percentile_is_rarely_below_the_true_one() -> None:
    draw, below, tries = random.Random(7), 0, 2000
    rank = stats.percentile_rank(80, 0.9)
    assert rank is not None
    for _ in range(tries):
        below += sorted(draw.random() for _ in range(80))[rank - 1] < 0.9
    assert below / tries <= 0.015


@pytest.mark.parametrize("n", [6, 15, 60, 301])
def test_the_median_interval_covers_the_true_median_in_95_percent_of_trials(n: int) -> None:
    draw, hits, tries = random.Random(n), 0, 2000
    for _ in range(tries):
        interval = stats.median_interval([draw.expovariate(1.0) for _ in range(n)])
        hits += interval.low <= math.log(2) <= interval.high
    # At least 0.95 by construction; four standard errors of the simulation below that.
    assert hits / tries >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / tries)
    assert hits < tries


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_median_ranks_are_those_of_the_published_sign_test_tables(n: int, rank: int) -> None:
    assert stats.median_rank(n) == rank


@given(series)
def test_the_interval_holds_the_sample_median_and_lies_in_the_sample(values: list[int]) -> None:
    interval = stats.median_interval(values)
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval.median == statistics.median(values)
    assert (interval.confidence == 0.95) == (len(values) >= 6)


@given(series, st.integers(min_value=2, max_value=1000))
def test_scaling_all_samples_scales_the_interval(values: list[int], factor: int) -> None:
    plain, scaled = stats.median_interval(values), stats.median_interval([value * factor for value in values])
    assert (scaled.low, scaled.high) == (plain.low * factor, plain.high * factor)


def test_below_six_samples_the_interval_admits_its_lower_confidence() -> None:
    assert stats.median_interval([3, 1, 2]) == (2.0, 1, 3, 0.75)
    assert stats.relative_width([3, 1, 2]) == math.inf


def test_no_samples_have_no_median() -> None:
    with pytest.raises(statistics.StatisticsError):
        stats.median_interval([])


@given(series)
def test_a_summary_is_ordered_and_prints_only_supported_percentiles(values: list[int]) -> None:
    summary = stats.summarize(values)
    assert summary["minimum"] <= summary["median_low"] <= summary["median"] <= summary["median_high"]
    assert set(summary["percentiles"]) == set(stats.supported_percentiles(len(values)))
    assert "p50" not in summary["percentiles"], "beside the median, a bound of it would be a second one"
    shown = list(summary["percentiles"].values())
    assert shown == sorted(shown)
    assert summary["count"] == len(values)
    assert math.isclose(summary["mean"], statistics.fmean(values))


@given(series)
def test_a_series_compared_with_itself_is_no_difference(values: list[int]) -> None:
    found = stats.compare("a", "b", values, values)
    assert (found["ratio"], found["low"], found["high"]) == (1, 1, 1)
    assert found["verdict"] == "no difference"


def test_two_series_from_one_distribution_are_called_different_in_few_trials() -> None:
    draw, wrong, tries = random.Random(3), 0, 1000
    for _ in range(tries):
        one, other = ([round(1e6 * (1 + draw.expovariate(10))) for _ in range(100)] for _ in range(2))
        wrong += stats.compare("a", "b", one, other)["verdict"] != "no difference"
    assert wrong / tries <= 0.07


@given(st.integers(min_value=6, max_value=300), st.integers(min_value=1, max_value=10**6))
def test_verdicts_follow_the_interval_and_swapping_swaps_them(n: int, base: int) -> None:
    slow, fast = [base * 3] * n, [base * 2] * n
    assert stats.compare("a", "b", slow, fast)["verdict"] == "slower"
    found = stats.compare("b", "a", fast, slow)
    assert found["verdict"] == "faster"
    assert found["pairs"] == n


def test_pairing_cancels_what_slows_both_variants_of_a_round() -> None:
    draw = random.Random(1)
    base = [round(1e6 * draw.uniform(1, 10)) for _ in range(60)]
    found = stats.compare("a", "b", [round(0.98 * value) for value in base], base)
    assert found["verdict"] == "faster"
    assert found["high"] - found["low"] < 0.001


def test_five_pairs_never_support_a_verdict() -> None:
    found = stats.compare("a", "b", [1] * 5, [100] * 5)
    assert found["verdict"] == "no difference"
    assert found["confidence"] < 0.95


def test_series_of_unequal_length_do_not_pair() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        stats.compare("a", "b", [1, 2, 3], [1, 2])


def test_drift_needs_both_a_shift_and_separate_intervals() -> None:
    draw = random.Random(5)
    noise = [draw.randint(990, 1010) for _ in range(90)]
    assert stats.drift(noise) is None
    moved = stats.drift(noise[:60] + [value + 100 for value in noise[60:]])
    assert moved is not None
    assert moved[1] > moved[0]
    wide = [draw.randint(500, 1500) for _ in range(24)]
    assert stats.drift([*wide[:16], *(value + 60 for value in wide[16:])]) is None
    assert stats.drift([1, 2]) is None
