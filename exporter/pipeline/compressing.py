"""[compress]: the trained model made smaller, step by step; each step is stored, counted and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import HistoryEntry, canonical, file_digest
from exporter.bundle import write_atomically
from exporter.disk import disk_is_full, writing_failed
from exporter.errors import DataError, ModelError, OutputError
from exporter.events import Note
from exporter.pipeline.distilling import distil_parts, distilled, plan_of_student
from exporter.pipeline.making import Bench, Made
from exporter.pipeline.models import STATE, STRUCTURE, Inputs, Models, TorchModel, write_model
from exporter.pipeline.pruning import narrowed, race_parts, sparse
from exporter.pipeline.results import DataChecked, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan_types import (
    CompressPlan,
    CompressStep,
    DistilStep,
    LowRankStep,
    NormsStep,
    PruneChannelsStep,
    PruneWeightsStep,
)

VERSION = 4
"""Of what the steps do with the same values: what an older one stored is not taken up."""


class Compressing:
    """Runs the steps of [compress] on a trained model."""

    def __init__(self, models: Models, plan: CompressPlan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        self.models = models
        self.plan = plan
        self.inputs = inputs
        self.bench = Bench(models=models, inputs=inputs, checked=checked, data=data)
        if "calibration" not in models.data.sections:
            raise DataError(
                "[compress] needs calibration inputs",
                where="[calibration]",
                why="norms are estimated, importances weighed and students taught on real inputs, without labels",
                hint='add `[calibration] data = "file.npz"`',
            )

    def run(self, trained: TorchModel, reference: Reference) -> tuple[TorchModel, tuple[HistoryEntry, ...]]:
        """The compressed model, and one entry a step.

        Args:
            trained: what every step is judged against.
            reference: its outputs.
        """
        self.trained = trained
        self._check_copyable(trained)
        model, entries = trained, []
        for index, step in enumerate(self.plan.steps, start=1):
            name = f"{index} {_method(step)}"
            model, notes = self._step(name, step, model)
            fidelity = self.models.judged(model, self.inputs, reference, name)
            entries.append(
                HistoryEntry(
                    name=name,
                    role="step",
                    digest=model.content,
                    cost=self.models.cost(model, self.inputs, self.bench.checked, self.bench.data),
                    fidelity=fidelity,
                    metric=fidelity.metric.value if fidelity.metric else None,
                    notes=notes,
                )
            )
        if self.plan.save is not None and self.models.steps.writes:
            self._save(model, self.plan.save)
        return model, tuple(entries)

    def _check_copyable(self, trained: TorchModel) -> None:
        from torch.nn.utils import prune

        module = self.models.prepared(trained, self.inputs).flat.inner
        if prune.is_pruned(module):
            raise ModelError(
                "the factory's module holds masks of torch.nn.utils.prune, and cannot be copied",
                where="model.source",
                why="such a weight is computed again at every run",
                hint="call `torch.nn.utils.prune.remove(layer, 'weight')` in the factory; zeros stay zeros",
            )

    def _save(self, model: TorchModel, folder: Path) -> None:
        """Leaves the compressed model where the user wants it, each file whole or not at all."""
        assert model.folder is not None, "a plan has at least one step"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (STATE, STRUCTURE):
                write_atomically(folder / name, (model.folder / name).read_bytes())
        except OSError as error:
            if disk_is_full(error, folder):
                raise writing_failed(error, "the compressed model", folder) from error
            raise OutputError(
                "the compressed model cannot be written",
                where=f"compress.save: {folder}",
                why=error.strerror or str(error),
                hint="name a folder, or one that can be made",
            ) from error
        self.models.steps.emit(Note(text=f"the compressed model is in {folder}: {STATE} and {STRUCTURE}"))

    def _step(self, name: str, step: CompressStep, model: TorchModel) -> tuple[TorchModel, tuple[str, ...]]:
        label = f"compress: {name}"

        parts = {
            "model": model.content,
            "step": msgspec.to_builtins(step, enc_hook=file_digest),
            "inputs": self.inputs,
            "calibration": self.models.data.parts("calibration"),
            "versions": versions("torch", "torch-pruning"),
        }
        if isinstance(step, DistilStep):
            parts |= distil_parts(step, self.bench, model, self.trained)
        if isinstance(step, PruneChannelsStep):
            parts["latency"] = race_parts(step, self.bench)
        unfinished = self.models.steps.unfinished("compress", VERSION, parts)

        def build(folder: Path) -> None:
            tied = self._tied(step, model)
            made = self._made(step, model, label, unfinished)
            made.notes += (*tied, *self._sharing(step, model, made))
            write_model(folder, made.module.state_dict(), made.structure)
            (folder / "notes.json").write_bytes(canonical(made.notes))

        total = step.epochs if isinstance(step, DistilStep) else None
        stored = self.models.steps.stored("compress", VERSION, parts, build, label=label, total=total)
        after = TorchModel(
            plan=plan_of_student(step, model) if isinstance(step, DistilStep) else model.plan,
            kind=model.kind,
            content=stored.content,
            folder=stored.folder,
            composition=None if isinstance(step, DistilStep) and step.fresh else model.composition,
        )
        return after, load_json(stored.folder / "notes.json", tuple[str, ...])

    def _tied(self, step: CompressStep, model: TorchModel) -> tuple[str, ...]:
        """Lets steps that would change equal layers of members apart change them as one, and says so."""
        apart = isinstance(step, PruneChannelsStep | PruneWeightsStep) or (
            isinstance(step, DistilStep) and not step.fresh
        )
        if model.composition is None or not apart:
            return ()
        from exporter.compress import tie_members

        count = tie_members(self.models.prepared(model, self.inputs).flat.inner.get_submodule("members"))
        return (f"{count} modules that members have alike were changed as one",) if count else ()

    def _sharing(self, step: CompressStep, model: TorchModel, made: Made) -> tuple[str, ...]:
        """What the user should know of weights that members share; a fresh student has no members."""
        if model.composition is None or (isinstance(step, DistilStep) and step.fresh):
            return ()
        from exporter.compress import check_sharing

        whole = self.models.prepared(model, self.inputs).flat.inner
        return check_sharing(whole, made.module, f'[[compress.steps]] method = "{_method(step)}"')

    def _made(self, step: CompressStep, model: TorchModel, label: str, unfinished: Path) -> Made:
        module = self.models.prepared(model, self.inputs).flat.inner
        call = self.models.call(model, self.inputs)
        if isinstance(step, NormsStep):
            from exporter.compress import batch_norms, reestimate_norms

            if not (count := len(batch_norms(module))):
                raise ModelError(
                    "there is nothing to estimate again: the model has no batch norms that keep statistics",
                    where='[[compress.steps]] method = "norms"',
                    hint="leave the step out; other norms have no statistics",
                )
            changed = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
            return Made(module=changed, structure=model.structure, notes=(f"{count} batch norms",))
        if isinstance(step, LowRankStep):
            from exporter.compress import factorise

            batch = next(iter(self.models.calibration(self.inputs)))
            changed, change, left = factorise(
                module, rank=step.rank, energy=step.energy, ignore=step.ignore, batch=batch, call=call
            )
            pairs = ", ".join(f"{name} to rank {rank}" for name, rank in change.ranks.items())
            return Made(module=changed, structure=(*model.structure, change), notes=(pairs, *left))
        if isinstance(step, PruneChannelsStep):
            return narrowed(step, self.bench, model, label)
        if isinstance(step, PruneWeightsStep):
            return sparse(step, self.bench, model)
        if isinstance(step, DistilStep):
            return distilled(step, self.bench, model, self.trained, label, unfinished)
        raise TypeError(f"{label}: no such step")


def _method(step: Any) -> str:
    return str(step.__struct_config__.tag)
