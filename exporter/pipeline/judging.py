"""Divergence of a model from its reference, and the task metric of both, on the evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from exporter.artifacts import Fidelity, TensorSpec
from exporter.errors import InputError
from exporter.measure import compare_metric, load_metric, measure_fidelity, metric_digest
from exporter.pipeline.datasets import DataSets
from exporter.pipeline.results import Reference
from exporter.plan import Plan
from exporter.plan_types import EvaluationPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.target_api import Session

    Arrays = Mapping[str, NDArray[np.generic]]


def judged_by(evaluation: EvaluationPlan | None) -> str | None:
    """What decides a metric beside outputs and labels; None where there is no metric."""
    if evaluation is None or evaluation.labels is None:
        return None
    return metric_digest(evaluation.metric, evaluation.output)


def unjudged(plan: Plan, outputs: Sequence[str]) -> tuple[str, ...]:
    """Outputs that the metric does not read: other heads' or models' answers, which the gate must hold as well.

    A function of the user's own gets all outputs, and is taken to judge them all.
    """
    evaluation = plan.evaluation
    if evaluation is None or judged_by(evaluation) is None or evaluation.metric != "accuracy":
        return ()
    read = evaluation.output or outputs[0]
    return tuple(name for name in outputs if name != read)


def judge(
    data: DataSets,
    inputs: tuple[TensorSpec, ...],
    reference: Reference,
    session: Session,
    evaluation: EvaluationPlan | None,
    *,
    runs_in: Literal["torch", "onnx"],
    progress: Callable[[int], None],
) -> Fidelity:
    """Divergence from the reference, and the task metric where there are labels; not gated yet.

    Args:
        data: of the plan.
        inputs: of the model.
        reference: outputs of the trained model on the same batches.
        session: runs the model that is judged.
        evaluation: which metric, if any.
        runs_in: what the reference ran in.
        progress: told how many batches are done.
    """
    named = evaluation is not None and evaluation.labels is not None
    metric = load_metric(evaluation.metric, evaluation.output) if evaluation is not None and named else None
    seen = _Seen(keep=metric is not None)
    samples = 0

    def pairs() -> Iterator[tuple[Arrays, Arrays]]:
        nonlocal samples
        batches = zip(data.judged_batches(inputs), reference.outputs(), strict=True)
        for done, (batch, expected) in enumerate(batches, start=1):
            got = session(batch)
            seen.add(expected, got)
            samples += _rows(batch)
            progress(done)
            yield expected, got

    fidelity = measure_fidelity(pairs(), reference=runs_in, reference_digest="", data=data.judged)
    # Counted by the inputs: an output may have no axis for samples.
    fidelity = msgspec.structs.replace(fidelity, samples=samples)
    # Users' metrics need numbers: without them the gate has failed already, and a repair goes by their count.
    if metric is None or evaluation is None:
        return fidelity
    if evaluation.metric != "accuracy" and any(output.broken for output in fidelity.outputs):
        return fidelity
    labels = _labels(reference)
    values = [metric(seen.whole(side), labels) for side in ("expected", "got")]
    compared = compare_metric(evaluation.metric.rpartition(":")[2], *values)
    return msgspec.structs.replace(fidelity, metric=compared)


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
