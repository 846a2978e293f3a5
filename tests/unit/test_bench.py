import itertools
import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runner import bench

THRESHOLDS = {"p50": 11, "p90": 64, "p95": 130, "p99": 662, "p99.9": 6636}
series = st.lists(st.integers(min_value=1, max_value=10**9), min_size=1, max_size=200)


@pytest.mark.parametrize(("label", "least"), THRESHOLDS.items())
def test_a_percentile_is_supported_from_exactly_its_threshold_on(label: str, least: int) -> None:
    assert label not in bench.supported_percentiles(least - 1)
    assert bench.supported_percentiles(least)[label] == least - 1
    assert label in bench.supported_percentiles(least + 1)


@pytest.mark.parametrize("n", [1, 2, 11, 64, 200, 1000])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_rank_is_the_smallest_with_99_percent_by_the_exact_binomial_sum(n: int, p: float) -> None:
    terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
    exact = next((k for k in range(1, n) if math.fsum(terms[:k]) >= 0.99), None)
    assert bench.percentile_rank(n, p) == exact


@given(st.integers(min_value=0, max_value=20_000))
def test_ranks_stay_below_the_maximum_and_rise_with_the_percentile(n: int) -> None:
    ranks = list(bench.supported_percentiles(n).values())
    assert ranks == sorted(ranks)
    assert all(n / 2 < rank < n for rank in ranks)


def test_a_conservative_percentile_is_rarely_below_the_true_one() -> None:
    draw, below, tries = random.Random(7), 0, 2000
    rank = bench.percentile_rank(80, 0.9)
    assert rank is not None
    for _ in range(tries):
        below += sorted(draw.random() for _ in range(80))[rank - 1] < 0.9
    assert below / tries <= 0.015


@pytest.mark.parametrize("n", [6, 15, 60, 301])
def test_the_median_interval_covers_the_true_median_in_95_percent_of_trials(n: int) -> None:
    draw, hits, tries = random.Random(n), 0, 2000
    for _ in range(tries):
        interval = bench.median_interval([draw.expovariate(1.0) for _ in range(n)])
        hits += interval.low <= math.log(2) <= interval.high
    # At least 0.95 by construction; four standard errors of the simulation below that.
    assert hits / tries >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / tries)
    assert hits < tries


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_median_ranks_are_those_of_the_published_sign_test_tables(n: int, rank: int) -> None:
    assert bench.median_rank(n) == rank


@given(series)
def test_the_interval_holds_the_sample_median_and_lies_in_the_sample(values: list[int]) -> None:
    interval = bench.median_interval(values)
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval.median == statistics.median(values)
    assert (interval.confidence == 0.95) == (len(values) >= 6)


@given(series, st.integers(min_value=2, max_value=1000))
def test_scaling_all_samples_scales_the_interval(values: list[int], factor: int) -> None:
    plain, scaled = bench.median_interval(values), bench.median_interval([value * factor for value in values])
    assert (scaled.low, scaled.high) == (plain.low * factor, plain.high * factor)


def test_below_six_samples_the_interval_admits_its_lower_confidence() -> None:
    assert bench.median_interval([3, 1, 2]) == (2.0, 1, 3, 0.75)
    assert bench.relative_width([3, 1, 2]) == math.inf


def test_no_samples_have_no_median() -> None:
    with pytest.raises(statistics.StatisticsError):
        bench.median_interval([])


@given(series)
def test_a_summary_is_ordered_and_prints_only_supported_percentiles(values: list[int]) -> None:
    summary = bench.summarize(values)
    assert summary["minimum"] <= summary["median_low"] <= summary["median"] <= summary["median_high"]
    assert set(summary["percentiles"]) == set(bench.supported_percentiles(len(values)))
    shown = list(summary["percentiles"].values())
    assert shown == sorted(shown)
    assert summary["count"] == len(values)
    assert math.isclose(summary["mean"], statistics.fmean(values))


@given(series)
def test_a_series_compared_with_itself_is_no_difference(values: list[int]) -> None:
    found = bench.compare("a", "b", values, values)
    assert (found["ratio"], found["low"], found["high"]) == (1, 1, 1)
    assert found["verdict"] == "no difference"


def test_two_series_from_one_distribution_are_called_different_in_few_trials() -> None:
    draw, wrong, tries = random.Random(3), 0, 1000
    for _ in range(tries):
        one, other = ([round(1e6 * (1 + draw.expovariate(10))) for _ in range(100)] for _ in range(2))
        wrong += bench.compare("a", "b", one, other)["verdict"] != "no difference"
    assert wrong / tries <= 0.07


@given(st.integers(min_value=6, max_value=300), st.integers(min_value=1, max_value=10**6))
def test_verdicts_follow_the_interval_and_swapping_swaps_them(n: int, base: int) -> None:
    slow, fast = [base * 3] * n, [base * 2] * n
    assert bench.compare("a", "b", slow, fast)["verdict"] == "slower"
    found = bench.compare("b", "a", fast, slow)
    assert found["verdict"] == "faster"
    assert found["pairs"] == n


def test_pairing_cancels_what_slows_both_variants_of_a_round() -> None:
    draw = random.Random(1)
    base = [round(1e6 * draw.uniform(1, 10)) for _ in range(60)]
    found = bench.compare("a", "b", [round(0.98 * value) for value in base], base)
    assert found["verdict"] == "faster"
    assert found["high"] - found["low"] < 0.001


def test_five_pairs_never_support_a_verdict() -> None:
    found = bench.compare("a", "b", [1] * 5, [100] * 5)
    assert found["verdict"] == "no difference"
    assert found["confidence"] < 0.95


def test_series_of_unequal_length_do_not_pair() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        bench.compare("a", "b", [1, 2, 3], [1, 2])


def test_drift_needs_both_a_shift_and_separate_intervals() -> None:
    draw = random.Random(5)
    noise = [draw.randint(990, 1010) for _ in range(90)]
    assert bench.drift(noise) is None
    moved = bench.drift(noise[:60] + [value + 100 for value in noise[60:]])
    assert moved is not None
    assert moved[1] > moved[0]
    wide = [draw.randint(500, 1500) for _ in range(24)]
    assert bench.drift([*wide[:16], *(value + 60 for value in wide[16:])]) is None
    assert bench.drift([1, 2]) is None


class Clock:
    """A clock that moves only when a fake inference says so."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> int:
        return self.now

    def takes(self, name: str, durations: list[int]):  # type: ignore[no-untyped-def]
        cycle = itertools.cycle(durations)

        def run(feed: int) -> None:
            self.calls.append((name, feed))
            self.now += next(cycle)

        return run


def quiet() -> dict[str, object]:
    return {"load_average": None, "frequency_mhz": None, "temperature_c": None}


def settings(**changes: object) -> bench.Settings:
    base = bench.Settings(min_samples=20, min_seconds=0, max_seconds=10, ci_width=0.02, warmup_seconds=0)
    return base._replace(**changes)


def measured(clock: Clock, how: bench.Settings, **series: list[int]) -> bench.Steady:
    runs = {name: clock.takes(name, durations) for name, durations in series.items()}
    return bench.measure(runs, [0, 1, 2], how, clock=clock, state=quiet)


def test_measuring_stops_as_soon_as_count_time_and_width_are_met() -> None:
    steady = measured(Clock(), settings(), a=[1_000_000], b=[2_000_000])
    assert steady.samples == {"a": [1_000_000] * 20, "b": [2_000_000] * 20}


def test_measuring_goes_on_until_the_minimum_time() -> None:
    steady = measured(Clock(), settings(min_seconds=1), a=[1_000_000])
    assert 1000 <= len(steady.samples["a"]) <= 1100


def test_one_imprecise_variant_keeps_all_going_until_time_is_over() -> None:
    how = settings(max_seconds=1)
    steady = measured(Clock(), how, calm=[1_000_000], wild=[1_000_000, 3_000_000])
    assert 330 <= len(steady.samples["calm"]) == len(steady.samples["wild"]) <= 340
    found = bench.flags(steady, how, cores=2)
    assert len(found) == 1
    assert found[0].startswith("confidence interval wider than asked: ")
    assert found[0].endswith(" > 0.02 (wild)")


def test_too_few_samples_are_flagged_with_their_number() -> None:
    how = settings(max_seconds=0.01)
    steady = measured(Clock(), how, slow=[5_000_000])
    assert bench.flags(steady, how, cores=2) == [
        "fewer samples than asked: 2 < 20 (slow)",
        "too few samples for a 95 % confidence interval: 2 (slow)",
    ]


def test_rounds_pair_inputs_and_the_order_is_random_but_follows_the_seed() -> None:
    def calls(seed: int) -> list[tuple[str, int]]:
        clock = Clock()
        steady = measured(clock, settings(seed=seed), a=[1_000_000], b=[2_000_000])
        return clock.calls[2 * steady.warmup_runs :]

    rounds = list(zip(calls(1)[::2], calls(1)[1::2], strict=True))
    assert all({one[0], other[0]} == {"a", "b"} and one[1] == other[1] for one, other in rounds)
    assert [one[1] for one, _ in rounds] == [index % 3 for index in range(len(rounds))]
    assert {one[0] for one, _ in rounds} == {"a", "b"}
    assert calls(1) == calls(1)
    assert calls(1) != calls(2)


def test_warm_up_lasts_as_long_as_asked_and_its_runs_are_not_samples() -> None:
    clock = Clock()
    steady = measured(clock, settings(warmup_seconds=0.1), a=[10_000_000])
    assert steady.warmup_runs == 10
    assert len(clock.calls) == 10 + len(steady.samples["a"])


def test_the_garbage_collector_rests_while_timing_and_comes_back_after_a_failure() -> None:
    import gc

    seen = []

    def run(feed: int) -> None:
        seen.append(gc.isenabled())
        if len(seen) == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        bench.measure({"a": run}, [0], settings(), state=quiet)
    assert seen == [True, False, False, False, False]
    assert gc.isenabled()


def steady_with(**changes: object) -> bench.Steady:
    base = bench.Steady({"a": [1_000_000] * 20}, 1, quiet(), quiet(), None)
    return base._replace(**changes)


def test_a_calm_host_has_no_flags() -> None:
    assert bench.flags(steady_with(other_cores=0.1), settings(), cores=2) == []


def test_a_busy_host_is_flagged_by_load_and_by_other_work() -> None:
    before = {**quiet(), "load_average": [3.5, 1.0, 1.0]}
    assert bench.flags(steady_with(before=before, other_cores=0.8), settings(), cores=2) == [
        "host busy: load average 3.50 over 2 cores",
        "host busy: other work used 0.8 of 2 cores while measuring",
    ]


def test_a_changed_frequency_is_flagged() -> None:
    before, after = {**quiet(), "frequency_mhz": [3000.0, 800.0]}, {**quiet(), "frequency_mhz": [2000.0, 800.0]}
    flags = bench.flags(steady_with(before=before, after=after), settings(), cores=2)
    assert flags == ["CPU frequency changed: 3000 to 2000 MHz"]


def test_drift_is_flagged_with_both_medians() -> None:
    samples = {"a": [1_000_000] * 20 + [1_100_000] * 20 + [1_200_000] * 20}
    flags = bench.flags(steady_with(samples=samples), settings(ci_width=1), cores=2)
    assert flags == ["drift: median 1 ms at first, 1.2 ms at last (a)"]


X86 = """\
processor\t: 0
model name\t: Some CPU @ 3.00GHz
cpu MHz\t\t: 2445.406
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni hypervisor
vmx flags\t: avx2_is_not_here

processor\t: 1
model name\t: Some CPU @ 3.00GHz
cpu MHz\t\t: 1200.000
flags\t\t: fpu sse4_2 avx2 avx512f hypervisor
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 fphp asimdhp asimddp i8mm

Model\t\t: Raspberry Pi 5 Model B
"""


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_features_are_those_that_every_core_has_and_only_relevant_ones(tmp_path: Path) -> None:
    assert bench.cpu_features(tree(tmp_path / "x86", cpuinfo=X86)) == ("avx2", "avx512f", "sse4_2")
    arm = bench.cpu_features(tree(tmp_path / "arm", cpuinfo=ARM))
    assert arm == ("asimd", "asimddp", "asimdhp", "fphp", "i8mm")


def test_host_facts_come_from_proc_and_sys(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", cpuinfo=ARM, meminfo="MemTotal:        1024 kB\nMemFree: 1 kB\n")
    cpufreq = "devices__system__cpu__cpu{}__cpufreq__scaling_governor"
    sysfs = tree(tmp_path / "sys", **{cpufreq.format(0): "ondemand\n", cpufreq.format(1): "performance\n"})
    facts = bench.host_facts(proc, sysfs)
    assert facts["cpu"] == "Raspberry Pi 5 Model B"
    assert facts["memory_bytes"] == 1024 * 1024
    assert facts["governor"] == "ondemand+performance"


def test_host_state_reads_load_frequencies_in_cpu_order_and_the_hottest_cpu_sensor(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", loadavg="0.50 0.25 0.10 1/200 3\n", cpuinfo=X86)
    cpufreq = "devices__system__cpu__cpu{}__cpufreq__scaling_cur_freq"
    files = {cpufreq.format(cpu): f"{1000000 + cpu}\n" for cpu in (0, 2, 10)}
    zones = [("cpu-thermal", "51000"), ("battery", "90000"), ("x86_pkg_temp", "55500")]
    for index, (kind, value) in enumerate(zones):
        files[f"class__thermal__thermal_zone{index}__type"] = kind
        files[f"class__thermal__thermal_zone{index}__temp"] = value
    assert bench.host_state(proc, tree(tmp_path / "sys", **files)) == {
        "load_average": [0.5, 0.25, 0.1],
        "frequency_mhz": [1000.0, 1000.002, 1000.01],
        "temperature_c": 55.5,
    }
    assert bench.host_state(proc, tmp_path / "empty")["frequency_mhz"] == [2445.406, 1200.0]


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    facts, state = bench.host_facts(tmp_path, tmp_path), bench.host_state(tmp_path, tmp_path)
    assert facts["memory_bytes"] is None
    assert facts["governor"] is None
    assert facts["features"] == []
    assert facts["cpu"]
    assert state == {"load_average": None, "frequency_mhz": None, "temperature_c": None}
    assert bench._busy_seconds(tmp_path) is None


def test_other_work_is_all_work_less_our_own_and_unknown_over_short_times() -> None:
    assert bench._others((10.0, 100.0, 5.0), (12.0, 103.0, 6.0)) == 1.0
    assert bench._others((10.0, 100.0, 5.0), (12.0, 101.0, 7.0)) == 0.0
    assert bench._others((10.0, 100.0, 5.0), (10.1, 100.1, 5.1)) is None
    assert bench._others(None, None) is None


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = bytearray(b"x" * 50_000_000)
    peak = bench.peak_rss_bytes()
    assert peak is None or peak >= len(held)


def test_a_large_parent_is_not_charged_to_the_process_it_starts() -> None:
    import subprocess
    import sys

    held = bytearray(b"x" * 300_000_000)
    code = "import bench; print(bench.peak_rss_bytes())"
    folder = Path(bench.__file__).parent
    command = [sys.executable, "-B", "-c", code]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "None" or int(child.stdout) < len(held) / 2
