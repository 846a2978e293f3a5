"""samples.npz of a bundle: the cases' inputs, and what each variant answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exporter.artifacts import Tolerance
from exporter.devices import cpu_features
from exporter.pipeline.arrays import read_groups, writing_arrays
from exporter.target_api import Target, VariantFile, made_for


def expected_samples(
    cases: Path, count: int, samples: Path, target: Target, folder: Path, variants: Sequence[VariantFile]
) -> Mapping[str, dict[str, Tolerance]]:
    """Runs every variant on every case and writes inputs and outputs.

    Args:
        cases: npz with `<case>/inputs/<name>`.
        count: number of cases.
        samples: the npz to write, with `<case>/expected/<variant>/<name>` added.
        target: opens the variants and states their tolerances.
        folder: where the variants' files are.
        variants: what to run.

    Returns:
        Tolerances by variant and output.
    """
    groups = [f"{index}/inputs" for index in range(count)]
    answers: dict[str, dict[str, list[np.ndarray]]] = {}
    with writing_arrays(samples, compressed=True) as add:
        for index, inputs in enumerate(read_groups(cases, groups)):
            add(f"{index}/inputs", inputs)
        for variant in variants:
            simulated = not made_for(variant.requires, cpu_features())
            session = target.open_session(folder / variant.main, simulated=simulated)
            seen = answers.setdefault(variant.name, {})
            for index, inputs in enumerate(read_groups(cases, groups)):
                outputs = session(inputs)
                add(f"{index}/expected/{variant.name}", outputs)
                for name, values in outputs.items():
                    seen.setdefault(name, []).append(values.reshape(-1))
    return {
        variant.name: target.tolerance(
            variant,
            folder / variant.main,
            {name: np.concatenate(parts) for name, parts in answers[variant.name].items()},
        )
        for variant in variants
    }
