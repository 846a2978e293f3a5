"""Findings about what calibration saw: too little, nothing, always the same, or mostly far from the extremes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np

from exporter.artifacts import Lint, ObserverName, QuantScheme
from exporter.quantize.histogram import Histogram
from exporter.quantize.observer import MOMENTUM, PERCENTILE, Observed
from exporter.quantize.states import States, merged, unstable_tensors

FEW_SAMPLES = 32
"""Below this, extremes of activations still grow much with every further sample."""
FEW_PARTS = 20
"""Extremes that a moving average needs until its start weighs less than an eighth."""
CENTRAL = 0.999
"""Share of values that the width of the extremes is compared with."""
OUTLIERS = 8.0
"""The extremes are so many times wider than the central values: three of eight bits are spent on the rest."""
CLIPS = ("percentile", "entropy", "mse")


def few_data(states: States, observer: ObserverName, samples: int) -> Iterator[Lint]:
    """Whether there were enough samples for the observer."""
    if samples < FEW_SAMPLES:
        yield Lint(
            kind="few-data",
            subject="calibration data",
            text=f"ranges were measured on {samples} samples, and {FEW_SAMPLES} at least are advised",
            action="give more samples, some hundred are usual",
        )
    if not states:
        return
    if observer == "moving-average":
        parts = min(sum(_parts(half) for half in halves) for halves in states.values())
        if 0 < parts < FEW_PARTS:
            yield Lint(
                kind="few-data",
                subject="calibration data",
                text=f"a moving average over {parts} extremes depends on each of them",
                action="give more samples, or take the observer minmax",
            )
    if observer == "percentile":
        needed = round(100 / (100 - PERCENTILE))
        counts = {name: sum(half.values for half in halves) for name, halves in states.items()}
        short = {name: count for name, count in counts.items() if 0 < count < needed}
        if short:
            name = min(short, key=lambda one: short[one])
            yield Lint(
                kind="few-data",
                subject=name,
                text=f"percentile {PERCENTILE} needs {needed} values to clip one; {len(short)} tensors had fewer, "
                f"this one {short[name]}",
                action="their ranges are the extremes; give more samples",
            )


def range_lints(states: States, scheme: QuantScheme) -> Iterator[Lint]:
    """Findings about single tensors."""
    whole = {name: merged(halves) for name, halves in states.items()}
    seen = {name: state for name, state in whole.items() if state.values}
    for name, state in whole.items():
        if not state.values:
            why = "all its values were masked" if state.masked else "it was empty in every sample"
            yield Lint(
                kind="never-seen",
                subject=name,
                text=f"calibration never saw a value of it: {why}",
                action="nodes with masked values stay in float" if state.masked else "check the calibration data",
            )
    for name, state in seen.items():
        if state.masked:
            yield Lint(
                kind="masked",
                subject=name,
                text=f"{state.masked} of {state.masked + state.values} values are infinite, NaN or as large as masks",
                action="they are left out of the range, and the nodes at this tensor stay in float",
            )
    yield from _single_valued(seen)
    yield from _outliers(seen, scheme)
    for name in unstable_tensors(states, scheme):
        yield Lint(
            kind="unstable",
            subject=name,
            text="its ranges differ between two halves of the calibration data",
            action="give more samples, or an observer that clips",
        )


def _single_valued(seen: dict[str, Observed]) -> Iterator[Lint]:
    for name, state in seen.items():
        if state.minimum != state.maximum:
            continue
        if state.minimum == 0:
            text, action = "it is zero in every sample", "what computes it can be pruned, or the data do not reach it"
            yield Lint(kind="dead", subject=name, text=text, action=action)
        else:
            text = f"it is {state.minimum:.4g} in every sample"
            action = "check that the calibration data vary; its range holds this value alone"
            yield Lint(kind="constant", subject=name, text=text, action=action)


def _outliers(seen: dict[str, Observed], scheme: QuantScheme) -> Iterator[Lint]:
    found = []
    for name, state in seen.items():
        whole = _width(state.minimum, state.maximum)
        if state.histogram.total:
            low, high = _central(state.histogram)
            what = f"{CENTRAL:.1%} of its values, kurtosis {_kurtosis(state.histogram):.3g}"
        else:
            low, high = state.averages.range()
            what = "the average sample's"
        width = _width(low, high)
        if width > 0 and whole > OUTLIERS * width:
            kept = _width(*state.range(scheme.observers.get(name, scheme.observer)))
            found.append((whole / width, name, what, kept < 0.5 * whole))
    for ratio, name, what, clipped in sorted(found, reverse=True):
        observer = scheme.observers.get(name, scheme.observer)
        yield Lint(
            kind="outliers",
            subject=name,
            text=f"its extremes are {ratio:.3g} times as wide as {what}",
            action=f"the observer {observer} clips them" if clipped else _advice(observer),
        )


def _advice(observer: ObserverName) -> str:
    others = [name for name in CLIPS if name != observer]
    return f"`--set quantize.observer={others[0]}` (or {' or '.join(others[1:])}) clips them where that helps"


def _width(low: float, high: float) -> float:
    """Quantized ranges always hold zero."""
    return max(high, 0.0) - min(low, 0.0)


def _central(histogram: Histogram) -> tuple[float, float]:
    cumulated = np.cumsum(histogram.counts) / histogram.total
    cut = (1 - CENTRAL) / 2
    edges = histogram.edges
    left, right = (int(np.searchsorted(cumulated, share)) for share in (cut, 1 - cut))
    return float(edges[left]), float(edges[min(right + 1, len(edges) - 1)])


def _kurtosis(histogram: Histogram) -> float:
    """The fourth standardised moment, 3 for normal values; from the centres of bins."""
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    weights = histogram.counts / histogram.total
    centred = centres - float(np.sum(weights * centres))
    variance = float(np.sum(weights * centred**2))
    return float(np.sum(weights * centred**4)) / variance**2 if variance > 0 else math.nan


def _parts(state: Observed) -> int:
    """How many extremes a moving average is made of, as far as its start has any weight left."""
    decay = max(state.averages.decay, sys.float_info.min)
    return round(math.log(decay) / math.log(MOMENTUM))
