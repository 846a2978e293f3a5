"""[compress]: the trained model made smaller, step by step; each step is stored, counted and judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter import sources
from exporter.artifacts import HistoryEntry, canonical, file_digest
from exporter.errors import DataError
from exporter.pipeline.models import Inputs, Models, TorchModel, write_model
from exporter.pipeline.racing import Race
from exporter.pipeline.results import DataChecked, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan_types import (
    CompressPlan,
    CompressStep,
    DistilStep,
    LowRankStep,
    ModelPlan,
    NormsStep,
    PruneChannelsStep,
)
from exporter.registry import load_target

if TYPE_CHECKING:
    from torch import nn

    from exporter.compress import Structure


class Made(msgspec.Struct, kw_only=True):
    """What a step made: a module, how its architecture came about, and what the user should know."""

    module: nn.Module
    structure: Structure
    notes: tuple[str, ...] = ()


class Compressing:
    """Runs the steps of [compress] on a trained model."""

    def __init__(self, models: Models, plan: CompressPlan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        self.models = models
        self.plan = plan
        self.inputs = inputs
        self.checked = checked
        self.data = data
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
                    cost=self.models.cost(model, self.inputs, self.checked, self.data),
                    fidelity=fidelity,
                    metric=fidelity.metric.value if fidelity.metric else None,
                    notes=notes,
                )
            )
        return model, tuple(entries)

    def _step(self, name: str, step: CompressStep, model: TorchModel) -> tuple[TorchModel, tuple[str, ...]]:
        label = f"compress: {name}"

        def build(folder: Path) -> None:
            made = self._made(step, model, label)
            write_model(folder, made.module.state_dict(), made.structure)
            (folder / "notes.json").write_bytes(canonical(made.notes))

        parts = {
            "model": model.content,
            "step": msgspec.to_builtins(step, enc_hook=file_digest),
            "teacher": self.trained.content if isinstance(step, DistilStep) and not step.teachers else None,
            "inputs": self.inputs,
            "calibration": self.models.data.parts("calibration"),
            "latency": self._raced(step),
            "versions": versions("torch", "torch-pruning"),
        }
        total = step.epochs if isinstance(step, DistilStep) else None
        stored = self.models.steps.stored("compress", 1, parts, build, label=label, total=total)
        after = TorchModel(
            plan=_plan_after(step, model),
            kind=model.kind,
            content=stored.content,
            folder=stored.folder,
            composition=None if isinstance(step, DistilStep) and step.student is not None else model.composition,
        )
        return after, load_json(stored.folder / "notes.json", tuple[str, ...])

    def _made(self, step: CompressStep, model: TorchModel, label: str) -> Made:
        module = self.models.prepared(model, self.inputs).flat.inner
        call = self.models.call(model, self.inputs)
        if isinstance(step, NormsStep):
            from exporter.compress import batch_norms, reestimate_norms

            count = len(batch_norms(module))
            changed = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
            return Made(module=changed, structure=model.structure, notes=(f"{count} batch norms",))
        if isinstance(step, LowRankStep):
            from exporter.compress import factorise

            changed, change, left = factorise(module, rank=step.rank, energy=step.energy, ignore=step.ignore)
            pairs = ", ".join(f"{name} to rank {rank}" for name, rank in change.ranks.items())
            return Made(module=changed, structure=(*model.structure, change), notes=(pairs, *left))
        if isinstance(step, PruneChannelsStep):
            return self._narrowed(step, model, label)
        if isinstance(step, DistilStep):
            return self._distilled(step, model, label)
        raise TypeError(f"{label}: no such step")

    def _narrowed(self, step: PruneChannelsStep, model: TorchModel, label: str) -> Made:
        from exporter.compress import ChannelPruning, prune_channels

        module = self.models.prepared(model, self.inputs).flat.inner
        what, target = step.goal
        race = self._race(step, model, module) if what == "latency" else None
        pruned = prune_channels(
            module,
            lambda: self.models.calibration(self.inputs),
            ChannelPruning(**{key: getattr(step, key) for key in ChannelPruning.__dataclass_fields__}),
            target=target,
            cost=race.share if race else self._share(what, module, model),
            what=what,
            noisy=race is not None,
            call=self.models.call(model, self.inputs),
            progress=self.models.steps.progress(label),
        )
        widths = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in pruned.widths.items())
        how = f" on {race.target.name} ({race.host}, {pruned.tried} candidates measured)" if race else ""
        notes = (f"{what} {pruned.cost:.3f}x of the model before{how}, {target:.3g}x asked for; channels: {widths}",)
        return Made(module=pruned.module, structure=(*model.structure, pruned.change), notes=notes + pruned.left)

    def _raced(self, step: CompressStep) -> object:
        """What decides a latency, beside the machine, which no result depends on by name."""
        if not isinstance(step, PruneChannelsStep) or step.latency is None:
            return None
        name = step.target or self.models.plan.targets[0].name
        plan = next(one for one in self.models.plan.targets if one.name == name)
        target = load_target(name)
        versions_ = versions(*target.distributions)
        return [
            name,
            target.version,
            plan.options,
            plan.profile,
            plan.export.opset,
            self.checked.cases_digest,
            versions_,
        ]

    def _race(self, step: PruneChannelsStep, model: TorchModel, module: nn.Module) -> Race:
        name = step.target or self.models.plan.targets[0].name
        plan = next(one for one in self.models.plan.targets if one.name == name)
        return Race(load_target(name), plan, self.inputs, model.plan.outputs, self.checked, self.data, module)

    def _share(self, what: str, module: nn.Module, model: TorchModel) -> Callable[[nn.Module], float]:
        """The share that a candidate has of a module's cost."""
        from exporter.compress import count_macs

        if what == "macs":
            batch = next(iter(self.models.calibration(self.inputs)))
            call = self.models.call(model, self.inputs)
            dense = count_macs(module, batch, call=call)
            return lambda candidate: count_macs(candidate, batch, call=call) / dense

        def values(one: nn.Module) -> int:
            tensors = one.parameters() if what == "parameters" else one.state_dict().values()
            return sum(tensor.numel() * (1 if what == "parameters" else tensor.element_size()) for tensor in tensors)

        whole = values(module)
        return lambda candidate: values(candidate) / whole

    def _distilled(self, step: DistilStep, model: TorchModel, label: str) -> Made:
        import torch

        from exporter.compress import Teaching, distil

        structure = model.structure
        if step.student is None:
            student = self.models.prepared(model, self.inputs).flat.inner
        else:
            structure = ()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(step.seed)
                student = sources.load_factory(msgspec.structs.replace(_plan_after(step, model), weights=None))
        plans = [msgspec.structs.replace(self.trained.plan, weights=path) for path in step.teachers]
        teachers = [sources.load_factory(plan) for plan in plans] or [
            self.models.prepared(self.trained, self.inputs).flat.inner
        ]
        batches = list(self.models.calibration(self.inputs))
        taught = distil(
            student,
            teachers,
            tuple(torch.cat(parts) for parts in zip(*batches, strict=True)),
            Teaching(**{key: getattr(step, key) for key in Teaching.__dataclass_fields__}),
            call=self.models.call(model, self.inputs),
            progress=self.models.steps.progress(label),
        )
        note = (
            f"held-out loss {taught.before:.4g} -> {taught.best:.4g} after {taught.epoch} of {step.epochs} epochs; "
            f"{taught.stopped}"
        )
        return Made(module=taught.student, structure=structure, notes=(note,))


def _plan_after(step: CompressStep, model: TorchModel) -> ModelPlan:
    """What makes the architecture that a step left behind."""
    if isinstance(step, DistilStep) and step.student is not None:
        return msgspec.structs.replace(model.plan, args=step.student)
    return model.plan


def _method(step: Any) -> str:
    return str(step.__struct_config__.tag)
