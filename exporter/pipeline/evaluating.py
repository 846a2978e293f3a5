"""Fidelity of a variant: run on its target's runtime over the evaluation data, against the trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from exporter.artifacts import Fidelity, Signature, canonical
from exporter.devices import cpu_features
from exporter.errors import InputError
from exporter.measure import compare_metric, load_metric, measure_fidelity, metric_digest
from exporter.pipeline.forms import formed_inputs
from exporter.pipeline.job import Job
from exporter.pipeline.results import Reference, load_json
from exporter.pipeline.steps import versions
from exporter.store import list_files
from exporter.target_api import Target, TensorForm, VariantFile, made_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


def evaluate(
    job: Job,
    target: Target,
    folder: Path,
    variant: VariantFile,
    signature: Signature,
    form: TensorForm,
    reference: Reference,
) -> Fidelity:
    """Divergence from the reference, and the task metric where there are labels; not gated yet.

    Args:
        job: the build.
        target: opens the variant.
        folder: where the target's files are.
        variant: what to run.
        signature: of the model.
        form: how the target's files take tensors.
        reference: outputs of the trained model on the same batches.
    """
    evaluation = job.plan.evaluation
    metric_name = evaluation.metric if evaluation is not None and evaluation.labels is not None else None
    output = evaluation.output if evaluation is not None else None
    label = f"{target.name}: accuracy of {variant.name}"
    simulated = not made_for(variant.requires, cpu_features())
    judged = (variant.stand_in if simulated else None) or variant.main
    progress = job.steps.progress(label)

    def build(result: Path) -> None:
        metric = load_metric(metric_name, output) if metric_name else None
        session = target.open_session(folder / judged, simulated=simulated)
        seen = _Seen(keep=metric is not None)
        samples = 0

        def pairs() -> Iterator[tuple[Arrays, Arrays]]:
            nonlocal samples
            from exporter.pipeline.arrays import read_groups

            wanted = read_groups(reference.path, [f"{index}/outputs" for index in range(reference.batches)])
            batches = zip(job.data.judged_batches(signature.inputs), wanted, strict=True)
            for done, (batch, expected) in enumerate(batches, start=1):
                got = session(formed_inputs(batch, signature.inputs, form))
                seen.add(expected, got)
                samples += _rows(batch)
                progress(done)
                yield expected, got

        fidelity = measure_fidelity(
            pairs(),
            reference="onnx" if job.source.kind == "onnx" else "torch",
            reference_digest="",
            data=job.data.judged,
        )
        # Counted by the inputs: an output may have no axis for samples.
        arithmetic: Literal["native", "simulated"] = "simulated" if simulated else "native"
        fidelity = msgspec.structs.replace(fidelity, samples=samples, arithmetic=arithmetic)
        # Users' metrics need numbers: without them the gate has failed already, and a repair goes by their count.
        whole = metric_name == "accuracy" or not any(output.broken for output in fidelity.outputs)
        if metric is not None and metric_name is not None and whole:
            labels = _labels(reference)
            values = [metric(seen.whole(side), labels) for side in ("expected", "got")]
            compared = compare_metric(metric_name.rpartition(":")[2], *values)
            fidelity = msgspec.structs.replace(fidelity, metric=compared)
        (result / "fidelity.json").write_bytes(canonical(fidelity))

    parts = {
        "files": [entry.sha256 for entry in list_files((folder / judged).parent)],
        "reference": reference.content,
        "form": form,
        "metric": metric_digest(metric_name, output) if metric_name else None,
        # Kernels differ by CPU: u8s8 saturates where VNNI is missing.
        "cpu": cpu_features(),
        "simulated": simulated,
        "target": [target.name, target.version],
        "versions": versions(*target.distributions),
    }
    stored = job.steps.stored("evaluate", 2, parts, build, label=label, total=reference.batches)
    fidelity = load_json(stored.folder / "fidelity.json", Fidelity)
    # Not in the stored result: another model with the same answers shares it.
    return msgspec.structs.replace(fidelity, reference_digest=job.source.digest)


def _rows(batch: Arrays) -> int:
    return next((len(values) for values in batch.values() if values.ndim), 1)


class _Seen:
    """Outputs of all batches, for metrics, which need the whole set."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._parts: dict[str, list[Arrays]] = {"expected": [], "got": []}

    def add(self, expected: Arrays, got: Arrays) -> None:
        if self._keep:
            self._parts["expected"].append(expected)
            self._parts["got"].append(got)

    def whole(self, side: str) -> dict[str, NDArray[np.generic]]:
        import numpy as np

        parts = self._parts[side]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            raise InputError(
                "a metric needs outputs that can be stacked, and batches have different shapes",
                where="[evaluation]",
                why=str(error),
                hint="remove `labels` from [evaluation]: divergence from the model is measured without it",
            ) from error


def _labels(reference: Reference) -> NDArray[np.generic]:
    import numpy as np

    from exporter.pipeline.arrays import read_groups

    groups = read_groups(reference.path, [str(index) for index in range(reference.batches)])
    return np.concatenate([group["labels"] for group in groups])
