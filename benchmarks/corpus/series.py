"""Speakers told apart by two Japanese vowels (UCI JapaneseVowels, in the package aeon)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from corpus import nets
from corpus.case import HERE, Case
from corpus.packages import installed
from corpus.training import trained


def bilstm(folder: Path) -> Case:
    """A bidirectional LSTM."""
    return _case("BiLSTM", nets.BiLstm, folder, epochs=25, rate=3e-3)


def fcn(folder: Path) -> Case:
    """Convolutions over time."""
    return _case("FCN", nets.fcn, folder, epochs=25, rate=1e-3)


def _case(what: str, factory: Callable[[], nn.Module], folder: Path, *, epochs: int, rate: float) -> Case:
    place = installed("aeon") / "datasets" / "data" / "JapaneseVowels"
    (inputs, labels), (others, true) = (_read(place / f"JapaneseVowels_eq_{part}.ts") for part in ("TRAIN", "TEST"))
    mean, std = inputs.mean((0, 2), keepdims=True), inputs.std((0, 2), keepdims=True)
    inputs, others = (inputs - mean) / std, (others - mean) / std
    name = factory.__name__
    weights = trained(folder / f"{name}.safetensors", factory, inputs, labels, epochs=epochs, batch=32, rate=rate)
    return Case(
        task=f"{what}, JapaneseVowels speakers, {len(others)} test series",
        source=f"{HERE / 'nets.py'}:{name}",
        weights=weights,
        calibration={"series": inputs},
        evaluation={"series": others, "labels": true},
        note="calibrated on the training series",
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Series (n, 12, time) and labels (n,) of a .ts file."""
    lines = [
        line.strip().split(":") for line in path.read_text().splitlines() if line.strip() and line[0] not in "@#"
    ]
    series = [[[float(value) for value in channel.split(",")] for channel in line[:-1]] for line in lines]
    return np.array(series, np.float32), np.array([int(line[-1]) - 1 for line in lines])
