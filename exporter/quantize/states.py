"""Observed states to a file and back, and how far ranges from two halves of the data disagree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import QuantScheme
from exporter.quantize.observer import Observed

if TYPE_CHECKING:
    from numpy.typing import NDArray

States = Mapping[str, tuple[Observed, Observed]]

UNSTABLE = 0.25
"""Share of the common range by which the ranges of two halves may differ before the tensor is named."""


def save_states(path: Path, states: States) -> None:
    """Writes states as an npz without pickles; names are an array of text."""
    arrays: dict[str, NDArray[np.generic]] = {"names": np.array(list(states), np.str_)}
    for index, halves in enumerate(states.values()):
        for half, state in enumerate(halves):
            histogram, averages = state.histogram, state.averages
            arrays[f"{index}.{half}.floats"] = np.array(
                [state.minimum, state.maximum, averages.low, averages.high, averages.decay,
                 histogram.minimum, histogram.maximum]
            )  # fmt: skip
            arrays[f"{index}.{half}.integers"] = np.array(
                [state.values, state.masked, histogram.exponent, histogram.first], np.int64
            )
            arrays[f"{index}.{half}.counts"] = histogram.counts
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_states(path: Path) -> dict[str, tuple[Observed, Observed]]:
    """Reads what `save_states` wrote."""
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["names"]]
        return {name: (_load(file, f"{index}.0"), _load(file, f"{index}.1")) for index, name in enumerate(names)}


def merged(halves: tuple[Observed, Observed]) -> Observed:
    """The state of all data; the halves stay as they are."""
    whole = Observed()
    for half in halves:
        whole.merge(half)
    return whole


def unstable_tensors(states: States, scheme: QuantScheme) -> list[str]:
    """Tensors whose range depends on which half of the data was seen: more data, or another observer, may help."""
    found = []
    for name, halves in states.items():
        if any(half.values == 0 for half in halves):
            continue
        observer = scheme.observers.get(name, scheme.observer)
        (low, high), (other_low, other_high) = (half.range(observer) for half in halves)
        spread = max(high, other_high) - min(low, other_low)
        if spread > 0 and max(abs(low - other_low), abs(high - other_high)) > UNSTABLE * spread:
            found.append(name)
    return found


def _load(file: Mapping[str, NDArray[np.generic]], prefix: str) -> Observed:
    state = Observed()
    floats = [float(value) for value in np.asarray(file[f"{prefix}.floats"], np.float64)]
    integers = [int(value) for value in np.asarray(file[f"{prefix}.integers"], np.int64)]
    state.minimum, state.maximum = floats[:2]
    state.averages.low, state.averages.high, state.averages.decay = floats[2:5]
    state.histogram.minimum, state.histogram.maximum = floats[5:]
    state.values, state.masked, state.histogram.exponent, state.histogram.first = integers
    state.histogram.counts = np.asarray(file[f"{prefix}.counts"], np.int64)
    return state
