"""[merge] with methods that keep every member in the graph: `stack` and `fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter import sources
from exporter.artifacts import HistoryEntry, canonical, digest_of
from exporter.errors import DataError, InputError
from exporter.merge.wiring import feeding
from exporter.merge_checks import COMPOSED
from exporter.pipeline.comparing import compare
from exporter.pipeline.composition import Composition, MemberModel
from exporter.pipeline.merge_work import MergeWork
from exporter.pipeline.models import TorchModel
from exporter.pipeline.results import Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan import Plan
from exporter.plan_types import MergeModelPlan, ModelPlan
from exporter.sources import Source

if TYPE_CHECKING:
    from exporter.merge import Fusion


def member_plan(plan: Plan, member: MergeModelPlan) -> ModelPlan:
    """What a member is loaded from; what it does not say is as in [model]."""
    own = member.source is not None
    args = member.args if member.args is not None else {} if own else plan.model.args
    source = member.source or plan.model.source
    return msgspec.structs.replace(
        plan.model, source=source, args=args, weights=member.weights, outputs=(), inputs={}
    )


def merged_source(plan: Plan) -> Source:
    """The plan's source; one for all members where each stays in the graph.

    Raises:
        InputError: some members are torch models and others ready .onnx files.
    """
    if plan.merge is None or plan.merge.method not in COMPOSED:
        return sources.identify(plan.model)
    found = {member.label: sources.identify(member_plan(plan, member)) for member in plan.merge.models}
    files = [label for label, source in found.items() if source.kind == "onnx"]
    if files and len(files) < len(found):
        raise InputError(
            f"{', '.join(files)} is a ready .onnx file, and other members are torch models",
            where="[[merge.models]]",
            hint="give members of one kind: export the torch models to .onnx first, or name all factories",
        )
    facts = [[label, source.digest] for label, source in found.items()]
    return Source(
        kind="onnx" if files else "factory",
        digest=digest_of([facts, msgspec.to_builtins(plan.merge, enc_hook=lambda path: path.name)]),
        files=tuple(file for source in found.values() for file in source.files),
    )


def known_classes(plan: Plan) -> int:
    """Number of classes of the result where members know parts of them, else 0.

    Raises:
        InputError: a member knows a class that the plan does not name.
    """
    known = [one for member in (plan.merge.models if plan.merge else ()) for one in member.classes]
    if not known:
        return 0
    total = len(plan.model.labels) or max(known) + 1
    if max(known) >= total:
        raise InputError(
            f"class {max(known)} is none of the {total} that [model] labels names",
            where="[[merge.models]] classes",
            hint="classes are numbered from 0",
        )
    return total


def several_notes(by: str, names: Sequence[str]) -> tuple[str, ...]:
    """Says that all outputs are taken for scores of classes, where there are several and one may be another thing."""
    if by == "mean" or len(names) < 2:
        return ()
    taken = "the highest of every output" if by == "vote" else "a softmax of every output"
    return (
        f'`by = "{by}"` takes {taken}: {", ".join(names)}; where one is not scores of classes, leave it out in '
        "forward(), or fuse by `mean`",
    )


class Composing(MergeWork):
    """Stacks or fuses the members of a plan."""

    def members(self) -> dict[str, TorchModel]:
        """The members as their files have them."""
        found = {}
        for member in self.merge.models:
            plan = member_plan(self.plan, member)
            source = sources.identify(plan)
            found[member.label] = TorchModel(plan=plan, kind=source.kind, content=source.digest)
        return found

    def run(self, members: dict[str, TorchModel]) -> tuple[TorchModel, tuple[HistoryEntry, ...]]:
        """The composed model, and the table of it and its members.

        Args:
            members: by name; they may have been compressed before.

        Raises:
            ModelError: they do not fit together.
            GateError: fused outputs are worse than the best member's, and `accept` is `better`.
        """
        composed = self.compose(members)
        reference = self.models.outputs(composed, self.inputs)
        entries = []
        assert composed.composition is not None
        for member in composed.composition.members:
            entries.append(self._entry(self._fed(composed.composition, member), member.label, "member"))
            if self.merge.method == "fuse":
                alone = self._alone(composed, member)
                fidelity = self.models.judged(alone, self.inputs, reference, member.label)
                entries[-1] = msgspec.structs.replace(
                    entries[-1], fidelity=fidelity, metric=fidelity.metric.value if fidelity.metric else None
                )
        result = self._entry(composed, self.name, "merged")
        fidelity = self.models.judged(composed, self.inputs, reference, self.name)
        notes = self._notes(composed)
        entries.append(
            msgspec.structs.replace(result, metric=fidelity.metric.value if fidelity.metric else None, notes=notes)
        )
        if self.merge.method == "fuse":
            compare(entries, self.models.steps.emit, refuses=self.merge.refuses)
        return composed, tuple(entries)

    def compressed(self, members: dict[str, TorchModel], reference: Reference) -> tuple[TorchModel, HistoryEntry]:
        """The composed model of members that were compressed, judged against that of the members as they were."""
        composed = self.compose(members)
        name = f"{self.name} of compressed members"
        fidelity = self.models.judged(composed, self.inputs, reference, name)
        return composed, msgspec.structs.replace(
            self._entry(composed, name, "step"),
            fidelity=fidelity,
            metric=fidelity.metric.value if fidelity.metric else None,
        )

    @property
    def name(self) -> str:
        """What tables call the result."""
        return "stack" if self.merge.method == "stack" else f"fused ({self.merge.by})"

    def compose(self, members: dict[str, TorchModel]) -> TorchModel:
        """All members in one model."""
        parts = tuple(
            MemberModel(
                label=member.label,
                model=members[member.label],
                takes=member.inputs,
                outputs=member.outputs,
                classes=member.classes,
                weight=member.weight,
            )
            for member in self.merge.models
        )
        composition = Composition(
            members=parts,
            inputs=tuple(spec.name for spec in self.inputs),
            expose=self.merge.expose,
            fusion=self._fusion(parts) if self.merge.method == "fuse" else None,
        )
        return self._model(composition)

    def _model(self, composition: Composition) -> TorchModel:
        plan = msgspec.structs.replace(self.plan.model, weights=None)
        return TorchModel(plan=plan, kind="factory", content=composition.content, composition=composition)

    def _alone(self, composed: TorchModel, member: MemberModel) -> TorchModel:
        """A member whose outputs are of the same kind as the fused ones."""
        from exporter.merge import Fusion

        composition = composed.composition
        if composition is None or composition.fusion is None:
            raise ValueError("outputs are fused in a composition")
        whole = composition.fusion
        fusion = Fusion(
            by=whole.by,
            weights=(1.0,),
            classes=(member.classes,) if member.classes else (),
            total=whole.total,
        )
        alone = self._model(msgspec.structs.replace(composition, members=(member,), fusion=fusion))
        names = self.models.output_names(composed, self.inputs, self.data)
        return msgspec.structs.replace(alone, plan=msgspec.structs.replace(alone.plan, outputs=names))

    def _fusion(self, parts: tuple[MemberModel, ...]) -> Fusion:
        from exporter.merge import Fusion

        total = known_classes(self.plan)
        classes = tuple(member.classes for member in parts) if total else ()
        fusion = Fusion(
            by=self.merge.by, weights=tuple(member.weight for member in parts), classes=classes, total=total
        )
        return (
            msgspec.structs.replace(fusion, weights=self._learned(parts, fusion))
            if fusion.by == "learned"
            else fusion
        )

    def _learned(self, parts: tuple[MemberModel, ...], fusion: Fusion) -> tuple[float, ...]:
        """Weights that make the labels of the calibration data most likely."""
        data = self.models.data

        def build(folder: Path) -> None:
            import numpy as np
            import torch

            from exporter.merge import Composite, fuse, learn_weights
            from exporter.onnx_export import tensors_of

            whole = self._model(
                Composition(members=parts, inputs=tuple(spec.name for spec in self.inputs), fusion=fusion)
            )
            prepared = self.models.prepared(whole, self.inputs)
            composite = prepared.flat.inner
            assert isinstance(composite, Composite)
            seen: list[list[torch.Tensor]] = [[] for _ in parts]
            labels = []
            for batch in data.learning(self.inputs).batches(data.sections["calibration"].batch_size):
                with torch.inference_mode():
                    outputs = composite.each(*tensors_of(prepared, batch.inputs))
                for index, output in enumerate(outputs):
                    own = fusion.classes[index : index + 1]
                    alone = msgspec.structs.replace(fusion, by="probabilities", weights=(1.0,), classes=own)
                    seen[index].append(fuse([output], alone))
                labels.append(np.asarray(batch.labels))
            answers = torch.from_numpy(np.concatenate(labels).astype(np.int64))
            if answers.dim() != 1 or int(answers.min()) < 0 or int(answers.max()) >= seen[0][0].shape[-1]:
                raise DataError(
                    "weights are learned from one class for each sample",
                    where="merge.labels",
                    why=f"labels have shape {list(answers.shape)} and reach from {int(answers.min())} to "
                    f"{int(answers.max())}; the models tell {seen[0][0].shape[-1]} classes apart",
                )
            weights = learn_weights([torch.cat(member) for member in seen], answers)
            (folder / "weights.json").write_bytes(canonical(weights))

        parts_of_key = {
            "members": [[member.model.content, member.takes, member.classes] for member in parts],
            "inputs": self.inputs,
            "data": data.parts("calibration"),
            "labels": data.learned,
            "versions": versions("torch"),
        }
        data.learning(self.inputs)  # Says at once that there are no data.
        stored = self.models.steps.stored("fuse", 1, parts_of_key, build, label="learn the weights of outputs")
        return load_json(stored.folder / "weights.json", tuple[float, ...])

    def _notes(self, composed: TorchModel) -> tuple[str, ...]:
        fusion = composed.composition.fusion if composed.composition else None
        if fusion is None:
            return ()
        names = self.models.output_names(composed, self.inputs, self.data)
        if fusion.by != "learned":
            return several_notes(fusion.by, names)
        shares = ", ".join(
            f"{member.label} {weight:.3f}" for member, weight in zip(self.merge.models, fusion.weights, strict=True)
        )
        return (f"weights learned on the calibration data: {shares}", *several_notes(fusion.by, names))

    def _entry(self, model: TorchModel, name: str, role: str) -> HistoryEntry:
        return HistoryEntry(
            name=name,
            role=role,  # type: ignore[arg-type]
            digest=model.content,
            cost=self.models.cost(model, self.inputs, self.checked, self.data),
        )

    def _fed(self, whole: Composition, member: MemberModel) -> TorchModel:
        """A member and those that feed it: what can be run on the inputs."""
        labels = [one.label for one in whole.members]
        wanted = {member.label}
        while more := {
            feeder
            for one in whole.members
            if one.label in wanted
            for source in one.takes.values()
            if (feeder := feeding(source, labels)) is not None and feeder not in wanted
        }:
            wanted |= more
        members = tuple(one for one in whole.members if one.label in wanted)
        return self._model(msgspec.structs.replace(whole, members=members, expose=(), fusion=None))
