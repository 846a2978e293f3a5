"""Measures latency and says no more than the samples support. Standard library only.

Three parts: statistics (order statistics, no distribution assumed), interleaved measuring, and facts of the host.
All times are integer nanoseconds. Everything unknown is None; nothing is estimated.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
SUPPORT = 0.99
"""Confidence with which a printed percentile is not below the true one."""
CONFIDENCE = 0.95
"""Confidence of the interval around a median."""
DRIFT = 0.05
"""Relative change between the first and the last third of a series that counts as drift."""
FEATURES = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16",
)  # fmt: skip
"""CPU features, in Linux's spelling, that decide how fast or how exact a model runs."""

PROC = Path("/proc")
SYS = Path("/sys")


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


class Interval(NamedTuple):
    """A median and an interval that holds the true one with at least `confidence`."""

    median: float
    low: float
    high: float
    confidence: float


class Steady(NamedTuple):
    """Steady state of some variants: sample i of each comes from the same round and the same input."""

    samples: dict[str, list[int]]
    warmup_runs: int
    before: dict[str, Any]
    after: dict[str, Any]
    other_cores: float | None


# Statistics ------------------------------------------------------------------------------------------------


def _binomial_cdf(n: int, p: float) -> tuple[int, list[float]]:
    """(first, values) with values[i] = P(Binomial(n, p) <= first + i).

    Only a window of at least 12 standard deviations around the mean is computed, in logarithms: what lies outside
    is below 1e-20, and the cost grows with the root of n.
    """
    centre, reach = int(n * p), int(12 * math.sqrt(n * p * (1 - p))) + 60
    first, last = max(0, centre - reach), min(n, centre + reach)
    odds = math.log(p) - math.log1p(-p)
    logs = [0.0]
    for i in range(first, last):
        logs.append(logs[-1] + math.log((n - i) / (i + 1)) + odds)
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    total = math.fsum(weights)
    values, reached = [], 0.0
    for weight in weights:
        reached += weight / total
        values.append(reached)
    return first, values


@lru_cache(maxsize=256)
def percentile_rank(n: int, p: float) -> int | None:
    """Rank (from 1) of the order statistic that is at least the p-quantile with 99 % confidence.

    It is the smallest k with P(Binomial(n, p) <= k - 1) >= 0.99. None when that is the maximum or beyond: then the
    sample says nothing about the percentile. For p50, p90, p95, p99, p99.9 this needs 11, 64, 130, 662, 6636 samples.
    """
    if n < 2:
        return None
    first, values = _binomial_cdf(n, p)
    for offset, value in enumerate(values):
        if value >= SUPPORT:
            rank = first + offset + 1
            return rank if rank <= n - 1 else None
    return None


def supported_percentiles(n: int) -> dict[str, int]:
    """The percentiles that n samples support, each with the rank (from 1) of its conservative order statistic."""
    ranks = {label: percentile_rank(n, p) for label, p in PERCENTILES.items()}
    return {label: rank for label, rank in ranks.items() if rank is not None}


@lru_cache(maxsize=256)
def median_rank(n: int) -> int:
    """The largest l for which [x(l), x(n+1-l)] holds the median with 95 % confidence; 0 below 6 samples."""
    if n < 1:
        return 0
    first, values = _binomial_cdf(n, 0.5)
    below = sum(1 for value in values if value <= (1 - CONFIDENCE) / 2)
    return first + below if below else 0


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its distribution-free 95 % confidence interval, by order statistics.

    Below 6 samples no such interval exists: the range is given with the confidence that it has, 1 - 2^(1 - n).

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    n, rank = len(ordered), median_rank(len(ordered))
    middle = float(statistics.median(ordered))
    if rank == 0:
        return Interval(middle, ordered[0], ordered[-1], 1 - 2.0 ** (1 - n))
    return Interval(middle, ordered[rank - 1], ordered[n - rank], CONFIDENCE)


def relative_width(samples: Sequence[int]) -> float:
    """Width of the median's interval over the median; infinite where 95 % confidence cannot be had."""
    interval = median_interval(samples)
    if interval.confidence < CONFIDENCE:
        return math.inf
    return (interval.high - interval.low) / interval.median if interval.median else math.inf


def summarize(samples: Sequence[int]) -> dict[str, Any]:
    """Count, minimum, mean, median with interval, and the supported percentiles of latencies in ns."""
    ordered = sorted(samples)
    interval = median_interval(ordered)
    return {
        "count": len(ordered),
        "minimum": ordered[0],
        "mean": math.fsum(ordered) / len(ordered),
        "median": interval.median,
        "median_low": int(interval.low),
        "median_high": int(interval.high),
        "percentiles": {label: ordered[k - 1] for label, k in supported_percentiles(len(ordered)).items()},
    }


def compare(variant: str, baseline: str, samples: Sequence[int], base: Sequence[int]) -> dict[str, Any]:
    """Latency of a variant as a ratio to the baseline: the median of the ratios of each round, with its interval.

    "faster" and "slower" are said only if a 95 % interval excludes 1.

    Raises:
        ValueError: the series are empty or differ in length, so rounds do not pair.
    """
    if len(samples) != len(base) or not base:
        raise ValueError(f"{len(samples)} and {len(base)} samples do not pair")
    interval = median_interval([mine / max(1, theirs) for mine, theirs in zip(samples, base)])
    verdict = "no difference"
    if interval.confidence >= CONFIDENCE and interval.high < 1:
        verdict = "faster"
    elif interval.confidence >= CONFIDENCE and interval.low > 1:
        verdict = "slower"
    return {
        "variant": variant,
        "baseline": baseline,
        "ratio": interval.median,
        "low": interval.low,
        "high": interval.high,
        "confidence": interval.confidence,
        "pairs": len(base),
        "verdict": verdict,
    }


def drift(samples: Sequence[int]) -> tuple[float, float] | None:
    """Medians of the first and last third where they differ by over 5 % and their intervals do not overlap."""
    third = len(samples) // 3
    if third == 0:
        return None
    start, end = median_interval(samples[:third]), median_interval(samples[-third:])
    if min(start.confidence, end.confidence) < CONFIDENCE:
        return None
    apart = start.high < end.low or end.high < start.low
    return (start.median, end.median) if apart and abs(end.median / start.median - 1) > DRIFT else None


# Measuring -------------------------------------------------------------------------------------------------


def measure(
    runs: Mapping[str, Callable[[Any], object]],
    feeds: Sequence[Any],
    settings: Settings,
    clock: Callable[[], int] = time.perf_counter_ns,
    state: Callable[[], dict[str, Any]] | None = None,
) -> Steady:
    """Warms up, then measures all variants interleaved until every one is precise enough or time is over.

    A round runs each variant once on the same input, in an order drawn from the seed, so that whatever changes on the
    host meets all variants alike. The garbage collector rests while samples are taken.

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
    begun, warmups = clock(), 0
    while warmups == 0 or clock() - begun < settings.warmup_seconds * 1e9:
        for name in order:
            runs[name](feeds[warmups % len(feeds)])
        warmups += 1

    before, busy = read(), _busy_seconds()
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
    return Steady(samples, warmups, before, read(), _others(busy, _busy_seconds()))


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
    pair = steady.before["frequency_mhz"], steady.after["frequency_mhz"]
    if pair[0] and pair[1] and abs(max(pair[1]) / max(pair[0]) - 1) > DRIFT:
        found.append(f"CPU frequency changed: {max(pair[0]):.0f} to {max(pair[1]):.0f} MHz")
    return found


def _busy_seconds(proc: Path | None = None) -> tuple[float, float, float] | None:
    """(now, CPU seconds of all work on the host, CPU seconds of this process); None where unknown."""
    fields = re.match(r"cpu +([\d ]+)", _text((proc or PROC) / "stat") or "")
    if not fields or not hasattr(os, "sysconf"):
        return None
    user, nice, kernel, _idle, _wait, irq, soft, steal = ([*map(int, fields[1].split())] + [0] * 8)[:8]
    ticks = user + nice + kernel + irq + soft + steal
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def _others(before: tuple[float, float, float] | None, after: tuple[float, float, float] | None) -> float | None:
    """Cores that other processes kept busy between two readings; None when too short to tell."""
    if before is None or after is None or after[0] - before[0] < 0.5:
        return None
    everyone, mine = after[1] - before[1], after[2] - before[2]
    return max(0.0, everyone - mine) / (after[0] - before[0])


# Facts of the host -----------------------------------------------------------------------------------------


def host_facts(proc: Path | None = None, sysfs: Path | None = None) -> dict[str, Any]:
    """CPU, features, cores, memory, governor of this machine. The two paths stand in for /proc and /sys."""
    proc, sysfs = proc or PROC, sysfs or SYS
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(proc / "meminfo") or "", re.MULTILINE)
    governors = sorted({text for path in _cpufreq(sysfs, "scaling_governor") if (text := _text(path))})
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(proc, sysfs),
        "cores": os.cpu_count() or 1,
        "features": list(cpu_features(proc)),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "python": platform.python_version(),
        "governor": "+".join(governors) or None,
    }


def host_state(proc: Path | None = None, sysfs: Path | None = None) -> dict[str, Any]:
    """Load average, frequency in MHz of each CPU, and temperature in degrees Celsius, now."""
    proc, sysfs = proc or PROC, sysfs or SYS
    load = re.match(r"([\d.]+) ([\d.]+) ([\d.]+)", _text(proc / "loadavg") or "")
    khz = [_text(path) for path in _cpufreq(sysfs, "scaling_cur_freq")]
    mhz = [int(text) / 1000 for text in khz if text and text.isdigit()]
    # Where the kernel does not scale frequencies (virtual machines), cpuinfo still has the clock.
    mhz = mhz or [float(text) for text in re.findall(r"(?m)^cpu MHz\s*: ([\d.]+)", _text(proc / "cpuinfo") or "")]
    return {
        "load_average": [float(text) for text in load.groups()] if load else None,
        "frequency_mhz": mhz or None,
        "temperature_c": _temperature(sysfs),
    }


def cpu_features(proc: Path | None = None) -> tuple[str, ...]:
    """Those of FEATURES that every CPU has, sorted; empty where the system does not tell."""
    lines = re.findall(r"(?m)^(?:flags|Features)[ \t]*:(.*)$", _text((proc or PROC) / "cpuinfo") or "")
    # Cores can differ (big.LITTLE): a model may run on any of them, so only what all have counts.
    common = set.intersection(*(set(line.split()) for line in lines)) if lines else set()
    return tuple(sorted(common.intersection(FEATURES)))


def peak_rss_bytes(proc: Path | None = None) -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not tell."""
    # On Linux ru_maxrss is inherited through fork and exec, so a large parent would be charged to its child.
    peak = re.search(r"(?m)^VmHWM:\s+(\d+) kB", _text((proc or PROC) / "self" / "status") or "")
    if peak:
        return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _cpu_model(proc: Path, sysfs: Path) -> str:
    found = re.search(r"(?m)^(?:model name|Model|Hardware)\s*: (.+)$", _text(proc / "cpuinfo") or "")
    if found:
        return found[1].strip()
    board = _text(sysfs / "firmware" / "devicetree" / "base" / "model")
    return (board or platform.processor() or platform.machine() or "unknown").strip("\0 ")


def _temperature(sysfs: Path) -> float | None:
    """The hottest CPU sensor; other zones (battery, board) say nothing about throttling."""
    found = []
    for zone in sorted((sysfs / "class" / "thermal").glob("thermal_zone*")):
        kind, value = _text(zone / "type") or "", _text(zone / "temp") or ""
        if re.search(r"cpu|x86_pkg|soc|package", kind, re.IGNORECASE) and re.fullmatch(r"-?\d+", value):
            found.append(int(value) / 1000)
    return max(found, default=None)


def _cpufreq(sysfs: Path, leaf: str) -> list[Path]:
    paths = (sysfs / "devices" / "system" / "cpu").glob(f"cpu[0-9]*/cpufreq/{leaf}")
    return sorted(paths, key=lambda path: int(path.parent.parent.name[3:]))


def _text(path: Path) -> str | None:
    """A small text file, stripped; None when it cannot be read (sysfs files can vanish or refuse)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
