import itertools

import pytest

from targets.runner import bench


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
    return dict.fromkeys(
        ("load_average", "frequency_mhz", "temperature_c", "governor", "throttling", "throttle_events")
    )


@pytest.fixture(autouse=True)
def no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on this machine while testing is no concern of a fake clock."""
    monkeypatch.setattr(bench, "busy_seconds", lambda: None)


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
    how = settings(max_seconds=10)
    steady = measured(Clock(), how, calm=[10_000_000], wild=[10_000_000, 30_000_000])
    assert 330 <= len(steady.samples["calm"]) == len(steady.samples["wild"]) <= 340
    found = bench.flags(steady, how, cores=2)
    assert len(found) == 1
    assert found[0].startswith("confidence interval wider than asked: ")
    assert found[0].endswith(" > 0.02 (wild)")


def test_a_short_run_is_timed_with_its_caches_filled_as_they_are_where_it_runs_alone() -> None:
    clock, last = Clock(), []

    def runs(name: str, cold: int, warm: int):  # type: ignore[no-untyped-def]
        def run(feed: int) -> None:
            clock.now += warm if last[-2:] == [name, name] else cold
            last.append(name)

        return run

    variants = {"float": runs("float", 300_000, 250_000), "int8": runs("int8", 400_000, 250_000)}
    steady = bench.measure(variants, [0], settings(), clock=clock, state=quiet)
    assert steady.samples == {"float": [250_000] * 20, "int8": [250_000] * 20}


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
        steady = measured(clock, settings(seed=seed), a=[10_000_000], b=[20_000_000])
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


def test_what_heats_or_holds_back_the_cpu_is_flagged() -> None:
    before = {**quiet(), "temperature_c": 50.0, "governor": "performance", "throttle_events": 4, "throttling": ["a"]}
    after = {**quiet(), "temperature_c": 71.5, "governor": "ondemand", "throttle_events": 7, "throttling": ["a", "b"]}
    assert bench.changes(before, after) == [
        "governor changed: performance to ondemand",
        "CPU grew warmer: 50 to 72 C",
        "throttled: counters rose by 3 while measuring",
        "held back: a",
        "held back: b",
    ]
    assert bench.changes(before | {"throttling": []}, before | {"throttling": []}) == []
