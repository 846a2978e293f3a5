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
from exporter.pipeline.models import TorchModel, at_once
from exporter.plan_types import DistilStep, ModelPlan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from exporter.compress import Structure
    from exporter.onnx_export import FlatModule


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
    from exporter.onnx_export import prepare_module

    models, inputs = bench.models, bench.inputs
    structure: Structure = ()
    if step.fresh:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step.seed)
            with _of_student():
                # Its parameters and outputs may be called otherwise than the model's.
                student = prepare_module(sources.load_factory(plan_of_student(step, model)), inputs).flat
    else:
        structure = model.structure
        student = models.prepared(model, inputs).flat
    plans = [msgspec.structs.replace(trained.plan, weights=path) for path in step.teachers]
    teachers = [prepare_module(sources.load_factory(plan), inputs).flat for plan in plans]
    teachers = teachers or [models.prepared(trained, inputs).flat]
    samples, labels = _samples(bench, step.labels)
    values = {key: getattr(step, key) for key in Teaching.__dataclass_fields__}
    # Names that the plan gives are given in the order of outputs; else the names are the models' own, and tell.
    taking = student if model.plan.outputs else _ordered(student, teachers[0], samples)
    prefix = next(name for name, one in taking.named_modules() if one is student.inner)
    taught = distil(
        taking,
        teachers,
        samples,
        Teaching(**{key: value for key, value in values.items() if value is not None}),
        labels=labels,
        zeros=[f"{prefix}.{name}" for name in sparse_weights(student.inner, structure)],
        within=_own,
        progress=models.steps.progress(label),
        unfinished=unfinished,
    )
    again = (f"a run that was stopped was taken up after epoch {taught.resumed}",) if taught.resumed else ()
    return Made(module=_own(taught.student), structure=structure, notes=(taught.told(step.epochs), *again))


def _ordered(student: FlatModule, teacher: FlatModule, samples: tuple[Tensor, ...]) -> nn.Module:
    """The student with its outputs in the order of the teacher's, where both call them the same."""
    import torch

    from exporter.compress import Ordered, order_by_name
    from exporter.onnx_export import flatten

    few = tuple(tensor[:2] for tensor in samples)
    with torch.no_grad():
        own, wanted = ([name for name, _ in flatten(one.call(*few))] for one in (student, teacher))
    order = order_by_name(own, wanted)
    return Ordered(student, order) if order else student


def _own(module: nn.Module) -> nn.Module:
    """The user's module within a student or teacher, whose layers hints name."""
    from exporter.compress import Ordered
    from exporter.onnx_export import FlatModule

    while isinstance(module, (FlatModule, Ordered)):
        module = module.inner
    return module


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
        return bench.models.lesson(bench.inputs), None
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
    return at_once(inputs, bench.inputs, role), torch.cat(found)
