"""Measures latency: warm-up, then all variants interleaved, until every one is precise enough or time is over.

Standard library only. All times are integer nanoseconds.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .host import busy_others, busy_seconds, host_state
from .stats import DRIFT, drift, relative_width

WARMER = 10.0
"""Degrees Celsius that a CPU may gain while it is measured before that is flagged."""
SETTLING_NS, SETTLING_RUNS = 2_000_000, 4
"""Untimed runs before a timed one: as many as fit into the time, and no more than these.

Taking turns fills the caches with the other variants' code and weights, which slows short runs down by some 15 %, and
not all variants alike.
"""


class Settings(NamedTuple):
    """How to measure; seconds are wall-clock, `ci_width` is relative to the median."""

    threads: int = 1
    affinity: tuple[int, ...] | None = None
    batch: int = 1
    min_samples: int = 200
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    ci_width: float = 0.02
    warmup_seconds: float = 0.3
    seed: int = 0


class Steady(NamedTuple):
    """Steady state of some variants: sample i of each comes from the same round and the same input."""

    samples: dict[str, list[int]]
    warmup_runs: int
    before: dict[str, Any]
    after: dict[str, Any]
    other_cores: float | None


def measure(
    runs: Mapping[str, Callable[[Any], object]],
    feeds: Sequence[Any],
    settings: Settings,
    clock: Callable[[], int] = time.perf_counter_ns,
    state: Callable[[], dict[str, Any]] | None = None,
) -> Steady:
    """Warms up, then measures all variants interleaved until every one is precise enough or time is over.

    A round times each variant once on the same input, in an order drawn from the seed, so that whatever changes on
    the host meets all variants alike. Before that a short run is repeated untimed, until the caches are its own. The
    garbage collector rests while samples are taken.

    Args:
        runs: for each variant, a call that runs one inference on one of `feeds`.
        feeds: inputs, taken in turn, one a round.
        settings: when to stop: `min_samples`, `min_seconds` and `ci_width` all met, or `max_seconds` over.
        clock: nanoseconds, monotonic.
        state: reads the host's state; called after warm-up and at the end.
    """
    read = state if state is not None else host_state
    order, draw = list(runs), random.Random(settings.seed)
    samples: dict[str, list[int]] = {name: [] for name in runs}
    fastest: dict[str, int] = {}
    begun, warmups = clock(), 0
    while warmups == 0 or clock() - begun < settings.warmup_seconds * 1e9:
        for name in order:
            start = clock()
            runs[name](feeds[warmups % len(feeds)])
            took = clock() - start
            fastest[name] = min(fastest.get(name, took), took)
        warmups += 1
    settling = {name: min(SETTLING_RUNS, SETTLING_NS // max(1, took)) for name, took in fastest.items()}

    before, busy = read(), busy_seconds()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begun, rounds, look = clock(), 0, settings.min_samples
        while True:
            feed = feeds[rounds % len(feeds)]
            draw.shuffle(order)
            for name in order:
                run = runs[name]
                for _ in range(settling[name] if len(order) > 1 else 0):
                    run(feed)
                start = clock()
                run(feed)
                samples[name].append(clock() - start)
            rounds += 1
            elapsed = (clock() - begun) / 1e9
            if elapsed >= settings.max_seconds:
                break
            if rounds >= look and elapsed >= settings.min_seconds:
                if all(relative_width(series) <= settings.ci_width for series in samples.values()):
                    break
                # Looking sorts every series; a tenth more samples each time keeps that cheap.
                look = rounds + max(1, rounds // 10)
    finally:
        if collecting:
            gc.enable()
    return Steady(samples, warmups, before, read(), busy_others(busy, busy_seconds()))


def flags(steady: Steady, settings: Settings, cores: int) -> list[str]:
    """What a reader must know before trusting the numbers, one sentence each; empty when nothing is wrong."""
    found: list[str] = []
    tick = time.get_clock_info("perf_counter").resolution * 1e9
    for name, series in steady.samples.items():
        width, middle = relative_width(series), statistics.median(series)
        if len(series) < settings.min_samples:
            found.append(f"fewer samples than asked: {len(series)} < {settings.min_samples} ({name})")
        if math.isinf(width):
            found.append(f"too few samples for a 95 % confidence interval: {len(series)} ({name})")
        elif width > settings.ci_width:
            found.append(f"confidence interval wider than asked: {width:.3g} > {settings.ci_width:g} ({name})")
        moved = drift(series)
        if moved:
            found.append(f"drift: median {moved[0] / 1e6:.4g} ms at first, {moved[1] / 1e6:.4g} ms at last ({name})")
        if tick > 0.01 * middle:
            found.append(f"timer too coarse: {tick:g} ns against a median of {middle:g} ns ({name})")
    load = steady.before["load_average"]
    if load and load[0] > cores:
        found.append(f"host busy: load average {load[0]:.2f} over {cores} cores")
    if steady.other_cores is not None and steady.other_cores > max(0.5, 0.1 * cores):
        found.append(f"host busy: other work used {steady.other_cores:.1f} of {cores} cores while measuring")
    return found + changes(steady.before, steady.after)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of the host's state changed while measuring, or held the CPU back, in a way that moves latency."""
    found: list[str] = []
    clocks = before["frequency_mhz"], after["frequency_mhz"]
    if clocks[0] and clocks[1] and abs(max(clocks[1]) / max(clocks[0]) - 1) > DRIFT:
        found.append(f"CPU frequency changed: {max(clocks[0]):.0f} to {max(clocks[1]):.0f} MHz")
    if before["governor"] != after["governor"]:
        found.append(f"governor changed: {before['governor']} to {after['governor']}")
    heat = before["temperature_c"], after["temperature_c"]
    if None not in heat and heat[1] - heat[0] >= WARMER:
        found.append(f"CPU grew warmer: {heat[0]:.0f} to {heat[1]:.0f} C")
    events = before["throttle_events"], after["throttle_events"]
    if None not in events and events[1] > events[0]:
        found.append(f"throttled: counters rose by {events[1] - events[0]} while measuring")
    for word in dict.fromkeys([*(before["throttling"] or ()), *(after["throttling"] or ())]):
        found.append(f"held back: {word}")
    return found
