"""[merge] of weights: several state dicts into one, compared with each of them and with their base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from exporter import sources
from exporter.artifacts import Fidelity, HistoryEntry, canonical, file_digest
from exporter.errors import DataError, ModelError
from exporter.merge_checks import KNOWING
from exporter.pipeline.comparing import compare
from exporter.pipeline.judging import judged_by
from exporter.pipeline.merge_work import MergeWork
from exporter.pipeline.models import STATE, Inputs, Models, TorchModel, write_model
from exporter.pipeline.results import DataChecked, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.pipeline.weighing import Weighing, needs_base, numbers
from exporter.plan import Plan


class Merging(MergeWork):
    """Makes the merged model of a plan, and refuses it when it is worse than what went into it."""

    def __init__(self, models: Models, plan: Plan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        super().__init__(models, plan, inputs, checked, data)
        self._check_data()

    def members(self) -> dict[str, TorchModel]:
        """The members as their files have them, and `base` where there is one."""
        found = {one.label: self._own(one.weights) for one in self.merge.models if one.weights is not None}
        base = self.merge.base or self.plan.model.weights
        return ({"base": self._own(base)} if base is not None else {}) | found

    def run(
        self, members: Mapping[str, TorchModel], given: Mapping[str, TorchModel] | None = None
    ) -> tuple[TorchModel, tuple[HistoryEntry, ...]]:
        """The merged model, and the table of it, its members and its base.

        Args:
            members: by name, with `base` where there is one; they may have been compressed before.
            given: the members as their files have them, where they were: the merged model is compared with those.

        Raises:
            ModelError: the members are not of one architecture, or not of the factory's.
            GateError: the merged model is worse than the best of them, and `accept` is `better`.
        """
        own = {label: model for label, model in members.items() if label != "base"}
        base = members.get("base")
        merged, notes = self._merged(own, base)
        reference = self.models.outputs(merged, self.inputs)
        entries = [
            self._entry(model, label, "base" if label == "base" else "member", reference)
            for label, model in (given or members).items()
        ]
        result = self._entry(merged, f"merged ({self.merge.method})", "merged", reference, notes)
        entries.append(msgspec.structs.replace(result, fidelity=None))
        compare(entries, self.models.steps.emit, refuses=self.merge.refuses)
        return merged, tuple(entries)

    def _merged(
        self, members: Mapping[str, TorchModel], base: TorchModel | None
    ) -> tuple[TorchModel, tuple[str, ...]]:
        bare = msgspec.structs.replace(next(iter(members.values())).plan, weights=None)
        start = base if needs_base(self.merge) else None
        calibrated = "calibration" in self.models.data.sections
        scored = bool(self.merge.search) or self.merge.method == "greedy-soup"
        parts = {
            "architecture": sources.identify(bare).digest,
            # Notes name the members.
            "members": [[one.label, members[one.label].content, one.weight] for one in self.merge.models],
            "base": start.content if start is not None else None,
            "numbers": numbers(self.merge),
            "calibration": self.models.data.parts("calibration") if calibrated else None,
            "inputs": self.inputs,
            "scored": [self.models.data.judged_parts(), judged_by(self.plan.evaluation)] if scored else None,
            "versions": versions("torch"),
        }
        stored = self.models.steps.stored(
            "merge",
            3,
            parts,
            lambda folder: self._build(folder, members, start),
            label=f"merge ({self.merge.method})",
            total=self.merge.search or None,
        )
        model = TorchModel(plan=bare, kind="factory", content=stored.content, folder=stored.folder)
        return model, load_json(stored.folder / "notes.json", tuple[str, ...])

    def _build(self, folder: Path, members: Mapping[str, TorchModel], base: TorchModel | None) -> None:
        from exporter.compress import batch_norms, reestimate_norms

        structures = {label: model.structure for label, model in members.items()}
        first = next(iter(structures))
        if other := next((label for label in structures if structures[label] != structures[first]), None):
            raise ModelError(
                f"'{first}' and '{other}' were compressed to different architectures, whose weights cannot be merged",
                where='[merge] order = "compress-first"',
                hint='merge first, or keep every model in the graph: `method = "stack"` or `"fuse"`',
            )
        weighing = Weighing(self.models, self.plan, self.merge, self.inputs, members)
        state, notes = weighing.state(base, folder)
        write_model(folder, state, structures[first])
        if weighing.alone:
            pass  # One model is what it was.
        elif self.merge.norms and "calibration" in self.models.data.sections:
            plan = msgspec.structs.replace(members[first].plan, weights=None)
            content = file_digest(folder / STATE)
            model = TorchModel(plan=plan, kind="factory", content=content, folder=folder)
            module = self.models.prepared(model, self.inputs).flat.inner
            if count := len(batch_norms(module)):
                call = self.models.call(model, self.inputs)
                module = reestimate_norms(module, self.models.calibration(self.inputs), call=call)
                write_model(folder, module.state_dict(), structures[first])
                notes.append(f"the statistics of {count} batch norms were estimated again on the calibration inputs")
        elif self.merge.norms:
            notes.append("batch norms keep merged statistics: there are no calibration inputs to estimate them on")
        (folder / "notes.json").write_bytes(canonical(notes))

    def _own(self, weights: Path) -> TorchModel:
        plan = msgspec.structs.replace(self.plan.model, weights=weights)
        return TorchModel(plan=plan, kind="factory", content=sources.identify(plan).digest)

    def _check_data(self) -> None:
        """Says before any work what the method needs and does not have."""
        method = self.merge.method
        if method in KNOWING and "calibration" not in self.models.data.sections:
            raise DataError(
                f"'{method}' looks at what each model does with real inputs, and there are none",
                where="[calibration]",
                hint='add `[calibration] data = "file.npz"`, or take `average`',
            )
        if method == "greedy-soup" or self.merge.search:
            if self.merge.labels:
                self.models.data.learning(self.inputs)
            elif judged_by(self.plan.evaluation) is None:
                what = (
                    "a greedy soup adds models while the metric does not fall"
                    if not self.merge.search
                    else ("coefficients are searched by the metric")
                )
                raise DataError(
                    f"{what}, and there are no labels",
                    where="merge.search" if self.merge.search else "merge.method",
                    hint="name the labels, `[evaluation] labels = ...` or `[merge] labels = ...` of the calibration "
                    "data, or take `average`",
                )

    def _entry(
        self, model: TorchModel, name: str, role: str, reference: Reference, notes: tuple[str, ...] = ()
    ) -> HistoryEntry:
        fidelity: Fidelity = self.models.judged(model, self.inputs, reference, name)
        return HistoryEntry(
            name=name,
            role=role,  # type: ignore[arg-type]
            digest=model.content,
            cost=self.models.cost(model, self.inputs, self.checked, self.data),
            fidelity=fidelity,
            metric=fidelity.metric.value if fidelity.metric else None,
            notes=notes,
        )
