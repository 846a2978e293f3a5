"""[merge] method = "transfer": one student learns from several teachers of any architecture and any classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter import sources
from exporter.artifacts import HistoryEntry, canonical
from exporter.errors import DataError, ModelError
from exporter.pipeline.comparing import compare
from exporter.pipeline.composing import known_classes, member_plan
from exporter.pipeline.composition import Composition, MemberModel
from exporter.pipeline.merge_work import MergeWork
from exporter.pipeline.models import Inputs, Models, TorchModel, write_model
from exporter.pipeline.results import DataChecked, Reference, load_json
from exporter.pipeline.steps import versions
from exporter.plan import Plan
from exporter.plan_types import MergeModelPlan

if TYPE_CHECKING:
    from torch import nn

    from exporter.onnx_export import FlatModule


class Transferring(MergeWork):
    """Teaches the model of [model] to answer as the models of [merge] do, without labels."""

    def __init__(self, models: Models, plan: Plan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        super().__init__(models, plan, inputs, checked, data)
        if models.data.taught not in models.data.sections:
            raise DataError(
                "a student is taught on real inputs, and there are none",
                where="[training] or [calibration]",
                hint='add `[calibration] data = "file.npz"`; no labels are needed',
            )

    def members(self) -> dict[str, TorchModel]:
        """The teachers as their files have them."""
        found = {}
        for member in self.merge.models:
            plan = member_plan(self.plan, member)
            source = sources.identify(plan)
            if source.kind == "onnx":
                raise ModelError(
                    f"'{member.label}' is a ready .onnx file, which cannot teach",
                    where="[[merge.models]] source",
                    hint="give the factory or the torch.export .pt2 that it was exported from",
                )
            found[member.label] = TorchModel(plan=plan, kind=source.kind, content=source.digest)
        return found

    def run(
        self, members: Mapping[str, TorchModel], given: Mapping[str, TorchModel] | None = None
    ) -> tuple[TorchModel, tuple[HistoryEntry, ...]]:
        """The student, and the table of it and its teachers.

        Args:
            members: the teachers by name.
            given: the same as their files have them, where they were compressed: the student is compared with those.

        Raises:
            ModelError: outputs of student and teachers do not match.
            GateError: the student is worse than the best teacher, and `accept` is `better`.
        """
        student, notes = self._taught(members)
        reference = self.models.outputs(student, self.inputs)
        names = self.models.output_names(student, self.inputs, self.data)
        entries = []
        for member in self.merge.models:
            teacher = self._judgeable(member, (given or members)[member.label], names)
            entries.append(self._entry(teacher, member.label, "member", reference))
        result = self._entry(student, "student", "merged", reference)
        entries.append(msgspec.structs.replace(result, fidelity=None, notes=notes))
        compare(entries, self.models.steps.emit, refuses=self.merge.refuses)
        return student, tuple(entries)

    def _taught(self, members: Mapping[str, TorchModel]) -> tuple[TorchModel, tuple[str, ...]]:
        label = "teach the student"
        source = sources.identify(self.plan.model)
        parts = {
            "student": source.digest,
            "teachers": [[members[one.label].content, one.classes, one.inputs] for one in self.merge.models],
            "teaching": self.merge.teaching,
            "hints": [one.hints for one in self.merge.models],
            "total": known_classes(self.plan),
            "inputs": self.inputs,
            "training": self.models.data.parts(self.models.data.taught),
            "versions": versions("torch"),
        }
        unfinished = self.models.steps.unfinished("transfer", 3, parts)
        stored = self.models.steps.stored(
            "transfer", 3, parts, lambda folder: self._build(folder, members, label, unfinished), label=label,
            total=self.merge.teaching.epochs,
        )  # fmt: skip
        bare = msgspec.structs.replace(self.plan.model, weights=None)
        student = TorchModel(plan=bare, kind="factory", content=stored.content, folder=stored.folder)
        return student, load_json(stored.folder / "notes.json", tuple[str, ...])

    def _build(self, folder: Path, members: Mapping[str, TorchModel], label: str, unfinished: Path) -> None:
        import torch

        from exporter.compress import Teaching, distil
        from exporter.onnx_export import FlatModule, prepare_module

        teaching = self.merge.teaching
        hints = tuple(teaching.hints if one.hints is None else one.hints for one in self.merge.models)
        values = {key: value for key, value in msgspec.structs.asdict(teaching).items() if value is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(teaching.seed)
            student = prepare_module(sources.load_factory(self.plan.model), self.inputs).flat
        names = self._own_names(student)
        teachers = [self._teacher(member, members[member.label], names) for member in self.merge.models]
        try:
            taught = distil(
                student,
                teachers,
                self.models.lesson(self.inputs),
                Teaching(**(values | {"hints": hints})),
                within=_own,
                progress=self.models.steps.progress(label),
                unfinished=unfinished,
            )
        except ModelError as error:
            # What is said of a step stands in other keys here.
            _, _, key = (error.where or "").partition(", ")
            hint = "give the student as many outputs, and as many classes, as its teachers have together; `classes` "
            raise ModelError(
                error.what,
                where='[merge] method = "transfer"' + (f", {key}" if key else ""),
                why=error.why,
                hint=f"{hint}says which classes a teacher knows" if error.why and not key else error.hint,
            ) from error
        assert isinstance(taught.student, FlatModule)
        write_model(folder, taught.student.inner.state_dict(), ())
        note = f"taught by {len(teachers)}: {taught.told(teaching.epochs)}"
        again = (f"a run that was stopped was taken up after epoch {taught.resumed}",) if taught.resumed else ()
        (folder / "notes.json").write_bytes(canonical((note, *again)))

    def _teacher(self, member: MergeModelPlan, model: TorchModel, names: list[str]) -> nn.Module:
        """A teacher whose outputs stand in the order of the student's, where both call them the same."""
        from exporter.compress import Ordered
        from exporter.merge import Teacher
        from exporter.onnx_export import prepare_module

        flat = prepare_module(self._alone(member, model).load(), self.inputs).flat
        order = self._order([name.removeprefix(f"{member.label}.") for name in self._own_names(flat)], names)
        return Teacher(Ordered(flat, order) if order else flat, member.classes, known_classes(self.plan))

    def _own_names(self, flat: FlatModule) -> list[str]:
        """What a model itself calls its outputs."""
        import torch

        from exporter.onnx_export import flatten

        few = tuple(tensor[:2] for tensor in next(iter(self.models.taught(self.inputs))))
        with torch.no_grad():
            return [name for name, _ in flatten(flat.call(*few))]

    def _order(self, own: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
        """Where a teacher's outputs are in the student's order; () for where they stand, as names of the plan go."""
        from exporter.compress import order_by_name

        return () if self.plan.model.outputs else order_by_name(own, names)

    def _alone(self, member: MergeModelPlan, model: TorchModel) -> TorchModel:
        """A teacher that takes the inputs of the plan."""
        part = MemberModel(label=member.label, model=model, takes=member.inputs)
        composition = Composition(members=(part,), inputs=tuple(spec.name for spec in self.inputs))
        plan = msgspec.structs.replace(self.plan.model, weights=None, outputs=())
        return TorchModel(plan=plan, kind="factory", content=composition.content, composition=composition)

    def _judgeable(self, member: MergeModelPlan, model: TorchModel, names: tuple[str, ...]) -> TorchModel:
        """A teacher whose outputs have the student's names, and its classes' places among all."""
        from exporter.merge import Fusion

        alone = self._alone(member, model)
        assert alone.composition is not None
        total = known_classes(self.plan)
        fusion = Fusion(by="mean", weights=(1.0,))
        if member.classes:
            fusion = Fusion(by="probabilities", weights=(1.0,), classes=(member.classes,), total=total)
        composition = msgspec.structs.replace(alone.composition, fusion=fusion)
        judged = msgspec.structs.replace(alone, content=composition.content, composition=composition)
        own = self._own_names(self.models.prepared(judged, self.inputs).flat)
        outputs = () if self._order(own, names) else names
        return msgspec.structs.replace(judged, plan=msgspec.structs.replace(alone.plan, outputs=outputs))

    def _entry(self, model: TorchModel, name: str, role: str, reference: Reference) -> HistoryEntry:
        fidelity = self.models.judged(model, self.inputs, reference, name)
        return HistoryEntry(
            name=name,
            role=role,  # type: ignore[arg-type]
            digest=model.content,
            cost=self.models.cost(model, self.inputs, self.checked, self.data),
            fidelity=fidelity,
            metric=fidelity.metric.value if fidelity.metric else None,
        )


def _own(module: nn.Module) -> nn.Module:
    """The user's module within a student or teacher, whose layers hints name."""
    from exporter.compress import Ordered
    from exporter.merge import Composite, Teacher
    from exporter.onnx_export import FlatModule

    while isinstance(module, (FlatModule, Ordered, Teacher, Composite)):
        module = next(module.members.children()) if isinstance(module, Composite) else module.inner
    return module
