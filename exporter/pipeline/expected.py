"""samples.npz of a bundle: the cases' inputs, and what each variant answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from exporter.artifacts import TensorSpec, Tolerance
from exporter.devices import cpu_features
from exporter.pipeline.arrays import read_groups, writing_arrays
from exporter.pipeline.forms import formed_inputs
from exporter.target_api import Target, TensorForm, VariantFile, made_for

if TYPE_CHECKING:
    from numpy.typing import NDArray


MARGIN = 2.0
"""Other devices may be as far from the expected values again as the ways that were compared here."""


class Cases(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of a bundle's self-test.

    Attributes:
        path: npz with `<case>/inputs/<name>`, as the model takes them.
        count: number of cases.
        inputs: of the model.
        form: how the target's files take them.
    """

    path: Path
    count: int
    inputs: tuple[TensorSpec, ...]
    form: TensorForm

    def read(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        """The inputs of each case as the files take them."""
        return (formed for _, formed in self.both())

    def both(self) -> Iterator[tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]]:
        """The inputs of each case as the model takes them, and as the files do."""
        groups = [f"{index}/inputs" for index in range(self.count)]
        for arrays in read_groups(self.path, groups):
            yield dict(arrays), formed_inputs(arrays, self.inputs, self.form)


def expected_samples(
    cases: Cases, samples: Path, target: Target, folder: Path, variants: Sequence[VariantFile]
) -> Mapping[str, dict[str, Tolerance]]:
    """Runs every variant on every case and writes inputs and outputs.

    Tolerances of int8 variants hold what other ways to compute their files gave as well.

    Args:
        cases: the inputs.
        samples: the npz to write, with `<case>/expected/<variant>/<name>` added.
        target: opens the variants and states their tolerances.
        folder: where the variants' files are.
        variants: what to run.

    Returns:
        Tolerances by variant and output.
    """
    answers: dict[str, list[dict[str, np.ndarray]]] = {}
    with writing_arrays(samples, compressed=True) as add:
        for index, inputs in enumerate(cases.read()):
            add(f"{index}/inputs", inputs)
        for variant in variants:
            simulated = not made_for(variant.requires, cpu_features())
            judged = (variant.stand_in if simulated else None) or variant.main
            session = target.open_session(folder / judged, simulated=simulated)
            for index, inputs in enumerate(cases.read()):
                outputs = session(inputs)
                add(f"{index}/expected/{variant.name}", outputs)
                answers.setdefault(variant.name, []).append(dict(outputs))
    return {variant.name: _tolerances(cases, target, folder, variant, answers[variant.name]) for variant in variants}


def _tolerances(
    cases: Cases, target: Target, folder: Path, variant: VariantFile, answers: Sequence[dict[str, np.ndarray]]
) -> dict[str, Tolerance]:
    """What the target says, or more where the model lets more of a rounding through than a step of its outputs."""
    model = folder / (variant.stand_in or variant.main)
    names = list(answers[0]) if answers else []
    flat = {name: np.concatenate([one[name].reshape(-1) for one in answers]) for name in names}
    stated = target.tolerance(variant, model, flat)
    if variant.scheme is None or model.suffix != ".onnx":
        return stated
    from exporter.quantize import largest_differences

    apart = largest_differences(model, cases.read, answers, dynamic=variant.scheme.dynamic)
    return {name: _widened(one, flat[name], apart.get(name, 0.0)) for name, one in stated.items()}


def _widened(tolerance: Tolerance, values: np.ndarray, apart: float) -> Tolerance:
    # Whole numbers (the index of the largest score) are as far apart as they are, or not at all.
    least = MARGIN * apart if np.issubdtype(values.dtype, np.floating) else apart
    return msgspec.structs.replace(tolerance, atol=max(tolerance.atol, least))
