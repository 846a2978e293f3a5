"""[merge] and [compress]: what becomes of the trained model before it is exported, each step stored and judged."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exporter.artifacts import HistoryEntry
from exporter.errors import InputError
from exporter.merge_checks import COMPOSED
from exporter.pipeline.composing import Composing
from exporter.pipeline.compressing import Compressing
from exporter.pipeline.datasets import DataSets
from exporter.pipeline.merging import Merging
from exporter.pipeline.models import Inputs, Models, TorchModel
from exporter.pipeline.results import DataChecked
from exporter.pipeline.steps import Steps
from exporter.pipeline.transferring import Transferring
from exporter.plan import Plan
from exporter.sources import Source


class Reworked(msgspec.Struct, frozen=True, kw_only=True):
    """The model that variants are judged against, the one that is exported, and what lies between."""

    trained: TorchModel
    final: TorchModel
    history: tuple[HistoryEntry, ...]


class Rework:
    """Runs [merge] and [compress] of a plan; nothing at all where it has neither.

    Raises:
        InputError: the source is no factory, whose architecture could be made again.
    """

    def __init__(self, plan: Plan, source: Source, data: DataSets, steps: Steps) -> None:
        self.plan = plan
        self.source = source
        self.models = Models(plan, data, steps)
        self._done: dict[Inputs, Reworked] = {}
        for section in ("merge", "compress"):
            stays = section == "merge" and plan.merge is not None and plan.merge.method in COMPOSED
            if getattr(plan, section) is not None and source.kind != "factory" and not stays:
                raise InputError(
                    f"[{section}] needs a torch module, and the source is a model file",
                    where="model.source",
                    hint='give the factory that makes the module, `source = "model.py:make"`, and its `weights`',
                )

    def done(self, inputs: Inputs) -> Reworked:
        """What `run` gave for these inputs; the trained model itself where nothing was to be done."""
        if inputs in self._done:
            return self._done[inputs]
        if self.needed:
            raise RuntimeError("run() comes first")
        model = TorchModel(plan=self.plan.model, kind=self.source.kind, content=self.source.digest)
        return Reworked(trained=model, final=model, history=())

    @property
    def needed(self) -> bool:
        """Whether the plan merges or compresses."""
        return self.plan.merge is not None or self.plan.compress is not None

    def run(self, inputs: Inputs, taught: Inputs, checked: DataChecked, data: Path) -> Reworked:
        """Merges and compresses.

        Args:
            inputs: of a target's files, by which `done` finds the result.
            taught: what the models are run on meanwhile; they may leave the batch free.
            checked: of the data for `taught`.
            data: folder of the checked data.

        Raises:
            GateError: the merged model is worse than what went into it.
        """
        if taught not in self._done:
            self._done[taught] = self._run(taught, checked, data)
        self._done[inputs] = self._done[taught]
        return self._done[inputs]

    def _run(self, inputs: Inputs, checked: DataChecked, data: Path) -> Reworked:
        if not self.needed:
            return self.done(inputs)
        trained = TorchModel(plan=self.plan.model, kind=self.source.kind, content=self.source.digest)
        if self.source.kind == "onnx":  # Its members were put together before, as files.
            return Reworked(trained=trained, final=trained, history=())
        if self.plan.merge is not None and self.plan.merge.order == "compress-first":
            return self._compressed_first(inputs, checked, data)
        history: tuple[HistoryEntry, ...] = ()
        if self.plan.merge is not None:
            merging = self._merging(inputs, checked, data)
            trained, history = merging.run(merging.members())
        reference = self.models.outputs(trained, inputs)
        if not history:
            itself = self.models.judged(trained, inputs, reference, "the trained model")
            history = (
                HistoryEntry(
                    name="trained",
                    role="trained",
                    digest=trained.content,
                    cost=self.models.cost(trained, inputs, checked, data),
                    metric=itself.metric.value if itself.metric else None,
                ),
            )
        final = trained
        if self.plan.compress is not None:
            compressing = Compressing(self.models, self.plan.compress, inputs, checked, data)
            final, steps = compressing.run(trained, reference)
            history += steps
        return Reworked(trained=trained, final=final, history=history)

    def _merging(self, inputs: Inputs, checked: DataChecked, data: Path) -> Merging | Composing | Transferring:
        method = self.plan.merge.method if self.plan.merge else ""
        room = Composing if method in COMPOSED else Transferring if method == "transfer" else Merging
        return room(self.models, self.plan, inputs, checked, data)

    def _compressed_first(self, inputs: Inputs, checked: DataChecked, data: Path) -> Reworked:
        """Does the steps of [compress] on each member, and merges what comes out.

        Members that stay in the graph are judged as they were: what is exported has to keep up with that.
        """
        if self.plan.compress is None:
            raise ValueError("the plan compresses nothing")
        merging = self._merging(inputs, checked, data)
        members = merging.members()
        models = self.models if not isinstance(merging, Composing) else self.models.without_metric()
        compressing = Compressing(models, self.plan.compress, inputs, checked, data)
        smaller, steps = {}, []
        for label, member in members.items():
            reference = models.outputs(member, inputs, f"run {label}")
            smaller[label], entries = compressing.run(member, reference)
            steps += [msgspec.structs.replace(entry, name=f"{label}: {entry.name}") for entry in entries]
        if not isinstance(merging, Composing):
            trained, history = merging.run(smaller, members)
            return Reworked(trained=trained, final=trained, history=(*steps, *history))
        trained, history = merging.run(members)
        final, entry = merging.compressed(smaller, self.models.outputs(trained, inputs))
        entry = msgspec.structs.replace(entry, notes=(*entry.notes, *self._sharing(trained, final, inputs)))
        return Reworked(trained=trained, final=final, history=(*history, *steps, entry))

    def _sharing(self, whole: TorchModel, smaller: TorchModel, inputs: Inputs) -> tuple[str, ...]:
        from exporter.compress import check_sharing

        before = self.models.prepared(whole, inputs).flat.inner
        after = self.models.prepared(smaller, inputs).flat.inner
        return check_sharing(before, after, '[merge] order = "compress-first"')
