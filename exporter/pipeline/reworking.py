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
        if self.plan.merge is not None or self.plan.compress is not None:
            raise RuntimeError("run() comes first")
        model = TorchModel(plan=self.plan.model, kind=self.source.kind, content=self.source.digest)
        return Reworked(trained=model, final=model, history=())

    def run(self, inputs: Inputs, checked: DataChecked, data: Path) -> Reworked:
        """Merges and compresses.

        Raises:
            GateError: the merged model is worse than what went into it.
        """
        if inputs not in self._done:
            self._done[inputs] = self._run(inputs, checked, data)
        return self._done[inputs]

    def _run(self, inputs: Inputs, checked: DataChecked, data: Path) -> Reworked:
        if self.plan.merge is None and self.plan.compress is None:
            return self.done(inputs)
        history: tuple[HistoryEntry, ...] = ()
        trained = TorchModel(plan=self.plan.model, kind=self.source.kind, content=self.source.digest)
        if self.source.kind == "onnx":  # Its members were put together before, as files.
            return Reworked(trained=trained, final=trained, history=())
        if self.plan.merge is not None and self.plan.merge.method in COMPOSED:
            composing = Composing(self.models, self.plan, inputs, checked, data)
            trained, history = composing.run(composing.members())
        elif self.plan.merge is not None:
            trained, history = Merging(self.models, self.plan, inputs, checked, data).run()
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
