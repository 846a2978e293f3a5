"""`method = "distil"`: which student, which teachers, which data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter import data as data_room
from exporter import sources
from exporter.artifacts import file_digest
from exporter.errors import DataError, InputError, ModelError
from exporter.pipeline.making import Bench, Made
from exporter.pipeline.models import TorchModel
from exporter.plan_types import DistilStep, ModelPlan

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.compress import Structure


def plan_of_student(step: DistilStep, model: TorchModel) -> ModelPlan:
    """What makes the student's architecture; the model's own where no fresh one is asked for."""
    if not step.fresh:
        return model.plan
    return msgspec.structs.replace(
        model.plan, source=step.source or model.plan.source, args=step.student or {}, weights=None
    )


def distil_parts(step: DistilStep, bench: Bench, model: TorchModel, trained: TorchModel) -> dict[str, Any]:
    """What decides a student, beside the step's own values: for its key."""
    data = bench.models.data
    section = data.sections[data.taught]
    return {
        "training": data.parts(data.taught),
        "step": msgspec.to_builtins(msgspec.structs.replace(step, source=None), enc_hook=file_digest),
        "student": _digest(step, model) if step.fresh else None,
        "teacher": None if step.teachers else trained.content,
        "labels": data_room.content_digest(section, step.labels) if step.labels else None,
    }


def distilled(
    step: DistilStep, bench: Bench, model: TorchModel, trained: TorchModel, label: str, unfinished: Path
) -> Made:
    """The taught student.

    Args:
        step: how it is taught.
        bench: data and loading.
        model: what the steps before left; it is taught itself, or a fresh student in its place.
        trained: the teacher, unless the step names others.
        label: of the step, for its progress.
        unfinished: keeps the state of teaching for a run that follows a killed one.
    """
    import torch

    from exporter.compress import Teaching, distil, sparse_weights

    models, inputs = bench.models, bench.inputs
    if step.fresh:
        structure: Structure = ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step.seed)
            with _of_student():
                student = sources.load_factory(plan_of_student(step, model))
    else:
        structure = model.structure
        student = models.prepared(model, inputs).flat.inner
    plans = [msgspec.structs.replace(trained.plan, weights=path) for path in step.teachers]
    teachers = [sources.load_factory(plan) for plan in plans] or [models.prepared(trained, inputs).flat.inner]
    samples, labels = _samples(bench, step.labels)
    values = {key: getattr(step, key) for key in Teaching.__dataclass_fields__}
    taught = distil(
        student,
        teachers,
        samples,
        Teaching(**{key: value for key, value in values.items() if value is not None}),
        labels=labels,
        zeros=sparse_weights(student, structure),
        call=models.call(model, inputs),
        progress=models.steps.progress(label),
        unfinished=unfinished,
    )
    note = (
        f"held-out loss {taught.before:.4g} -> {taught.best:.4g} after {taught.epoch} of {step.epochs} epochs; "
        f"{taught.stopped}"
    )
    again = (f"a run that was stopped was taken up after epoch {taught.resumed}",) if taught.resumed else ()
    return Made(module=taught.student, structure=structure, notes=(note, *again))


def _digest(step: DistilStep, model: TorchModel) -> str:
    with _of_student():
        return sources.identify(plan_of_student(step, model)).digest


@contextmanager
def _of_student() -> Iterator[None]:
    """Says of a factory's faults that they are the student's, whose keys stand in the step."""
    try:
        yield
    except InputError as error:
        raise ModelError(
            f"the student cannot be made: {error.what}",
            where='[[compress.steps]] method = "distil", source and student',
            why=error.why,
            hint="`source` names the student's factory, by default the model's, and `student` has its arguments",
        ) from error


def _samples(bench: Bench, labels: str | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """All inputs to learn from, and their labels where the step names them."""
    import numpy as np
    import torch

    if labels is None:
        batches = list(bench.models.taught(bench.inputs))
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True)), None
    role = bench.models.data.taught
    section = bench.models.data.sections[role]
    section = msgspec.structs.replace(section, ignore=tuple(name for name in section.ignore if name != labels))
    opened = data_room.open_set(
        section,
        inputs=bench.inputs,
        preprocessing=bench.models.data.preprocessing,
        labels=labels,
        class_names=bench.models.data.class_names,
    )
    inputs, found = [], []
    try:
        for batch in opened.batches(section.batch_size):
            inputs.append(
                tuple(torch.from_numpy(np.array(batch.inputs[spec.name], order="C")) for spec in bench.inputs)
            )
            found.append(torch.from_numpy(np.array(batch.labels, order="C")))
    except DataError as error:
        raise DataError(
            f"the {role} data have no labels '{labels}' to learn from",
            where='[[compress.steps]] method = "distil", labels',
            why=error.what,
            hint=f"remove `labels`: teachers are enough; or name an array of the data in [{role}]",
        ) from error
    return tuple(torch.cat(parts) for parts in zip(*inputs, strict=True)), torch.cat(found)
