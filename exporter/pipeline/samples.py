"""Real inputs taken from the data: the example that torch traces, and the cases of a bundle's self-test."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from exporter.artifacts import TensorSpec
from exporter.pipeline.arrays import arrays_digest, writing_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exporter.data import CalibrationSet
    from exporter.pipeline.arrays import Arrays

SINGLES = 8
STACKED = 3
TRACED = 2


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: example.npz and cases.npz."""

    example_digest: str
    cases_digest: str
    cases: int


def write_samples(folder: Path, data_set: CalibrationSet, inputs: tuple[TensorSpec, ...]) -> Samples:
    """Writes example.npz (one or two batches) and cases.npz (inputs of each case).

    With a dynamic batch, cases hold one sample each, and one case holds three; the example has two samples, because
    torch takes a batch of one for a constant, and the second batch three. With a fixed batch all have that size.
    """
    taken = [batch.inputs for batch in islice(data_set.batches(1), SINGLES)]
    dynamic = all(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)
    batches = [_stack(taken, TRACED), _stack(taken, STACKED)] if dynamic else taken[:1]
    cases = [*taken, batches[-1]] if dynamic else taken
    example = {str(index): batch for index, batch in enumerate(batches)}
    named = {f"{index}/inputs": case for index, case in enumerate(cases)}
    for file, groups in (("example.npz", example), ("cases.npz", named)):
        with writing_arrays(folder / file) as add:
            for group, arrays in groups.items():
                add(group, arrays)
    return Samples(
        example_digest=arrays_digest(example),
        cases_digest=arrays_digest(named),
        cases=len(cases),
    )


def _stack(taken: Sequence[Arrays], count: int) -> dict[str, NDArray[np.generic]]:
    """The first samples of equal shape stacked to `count`; too few are repeated, which keeps them real."""
    first = taken[0]
    alike = [sample for sample in taken if all(sample[name].shape == first[name].shape for name in first)]
    chosen = [alike[index % len(alike)] for index in range(count)]
    return {name: np.concatenate([sample[name] for sample in chosen]) for name in first}
