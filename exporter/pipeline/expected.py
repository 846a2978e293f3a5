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

    Args:
        cases: the inputs.
        samples: the npz to write, with `<case>/expected/<variant>/<name>` added.
        target: opens the variants and states their tolerances.
        folder: where the variants' files are.
        variants: what to run.

    Returns:
        Tolerances by variant and output.
    """
    answers: dict[str, dict[str, list[np.ndarray]]] = {}
    with writing_arrays(samples, compressed=True) as add:
        for index, inputs in enumerate(cases.read()):
            add(f"{index}/inputs", inputs)
        for variant in variants:
            simulated = not made_for(variant.requires, cpu_features())
            judged = (variant.stand_in if simulated else None) or variant.main
            session = target.open_session(folder / judged, simulated=simulated)
            seen = answers.setdefault(variant.name, {})
            for index, inputs in enumerate(cases.read()):
                outputs = session(inputs)
                add(f"{index}/expected/{variant.name}", outputs)
                for name, values in outputs.items():
                    seen.setdefault(name, []).append(values.reshape(-1))
    return {
        variant.name: target.tolerance(
            variant,
            folder / (variant.stand_in or variant.main),
            {name: np.concatenate(parts) for name, parts in answers[variant.name].items()},
        )
        for variant in variants
    }
