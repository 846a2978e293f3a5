"""The steps that belong to the model, whatever the target: data, ONNX, reference outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import data as data_room
from exporter import sources
from exporter.artifacts import TensorSpec, canonical, file_digest
from exporter.errors import DataError, InputError
from exporter.events import Note
from exporter.pipeline.composing import merged_source
from exporter.pipeline.datasets import DataSets, Role
from exporter.pipeline.inputs import fixed_axes, model_inputs
from exporter.pipeline.models import stored_outputs
from exporter.pipeline.results import (
    DataChecked,
    Exported,
    FloatModel,
    Int8Side,
    Reference,
    SetFacts,
    load_json,
)
from exporter.pipeline.reworking import Rework, Reworked
from exporter.pipeline.stacking import check_stacked, compare_fused, stacked_file
from exporter.pipeline.steps import Steps, versions
from exporter.plan import Plan
from exporter.plan_types import DataPlan, ExportPlan, ModelPlan
from exporter.sources import is_factory
from exporter.store import Stored
from exporter.target_api import Need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.onnx_export import Prepared

    Arrays = Mapping[str, NDArray[np.generic]]

Inputs = tuple[TensorSpec, ...]
PROGRAM = "program.pt2"
EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")


class Job:
    """One build: a plan, its source, and the steps that targets share.

    Results live in the store; the torch module is loaded when the first step needs it, and kept.
    """

    def __init__(self, plan: Plan, steps: Steps) -> None:
        self.plan = plan
        self.steps = steps
        with steps.guarded("read the model and its data"):
            self.source = merged_source(plan)
            self.data = DataSets(plan)
        self.data.watch.add(self.source.files)
        steps.watch = self.data.watch
        self.int8_sides: list[Int8Side] = []
        self._rework = Rework(plan, self.source, self.data, steps)
        self._noted: set[str] = set()
        for note in self.notes:
            steps.emit(Note(text=note))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the bundle should know about the model."""
        if self.source.kind == "factory" and self.plan.model.weights is None and self.plan.merge is None:
            return ("no weights were given: the model is as its factory makes it",)
        bare = [
            member.label
            for member in (self.plan.merge.models if self.plan.merge else ())
            if member.weights is None and is_factory(member.source or self.plan.model.source)
        ]
        return (f"no weights were given for {', '.join(bare)}: as the factory makes it",) if bare else ()

    def inputs(self, export: ExportPlan) -> Inputs:
        """Names, types and shapes of the model's inputs."""
        return model_inputs(self._read(), self.source, self.data, export, self.steps)

    def check_data(self, inputs: Inputs) -> tuple[DataChecked, Path]:
        """Checks calibration and evaluation data against the inputs, and takes real inputs for later steps."""
        parts = {
            "data": self.data.digests,
            "inputs": inputs,
            "preprocessing": self.data.preprocessing,
            "labels": self.data.class_names,
        }
        stored = self.steps.stored(
            "check-data", 1, parts, lambda folder: self._check_data(folder, inputs), label="check data"
        )
        checked = load_json(stored.folder / "data.json", DataChecked)
        roles = (
            ("calibration", checked.calibration),
            ("training", checked.training),
            ("evaluation", checked.evaluation),
        )
        for role, facts in roles:
            for note in facts.notes if facts else ():
                self._tell(f"{role} data: {note}")
        for role, count in (("calibration", checked.overlap), ("training", checked.taught_overlap)):
            if count:
                self._tell(f"{count} samples are in both {role} and evaluation data: accuracy looks too good")
        return checked, stored.folder

    def _tell(self, text: str) -> None:
        """A note, once: several targets may look at the same data."""
        if text not in self._noted:
            self._noted.add(text)
            self.steps.emit(Note(text=text))

    def rework(self, inputs: Inputs, checked: DataChecked, data: Path) -> Reworked:
        """The trained model, merged where the plan says so, and what [compress] made of it; done once.

        Torch runs any batch, whatever the files of a target are fixed to: norms, hints and gradients need several
        samples at a time, and targets share what comes out.
        """
        taught = self._taught_on(inputs) if self._rework.needed else inputs
        if taught != inputs:
            checked, data = self.check_data(taught)
        return self._rework.run(inputs, taught, checked, data)

    def _taught_on(self, inputs: Inputs) -> Inputs:
        """The inputs with a free batch, unless the plan fixes it for every target."""
        free = [target.export for target in self.plan.targets if target.export.batch == "dynamic"]
        return self.inputs(free[0]) if free else inputs

    def trained_digest(self, inputs: Inputs) -> str:
        """Digest of the model that variants are judged against."""
        return self._rework.done(inputs).trained.content

    def float_model(
        self, inputs: Inputs, checked: DataChecked, data: Path, export: ExportPlan, need: Need
    ) -> FloatModel:
        """The float ONNX file: exported from torch and compared with it, or the user's own, checked."""
        if self.source.kind == "onnx":
            model = self._told(self._adopt(inputs, export, need, data / "example.npz"))
            compare_fused(self.plan, model, self.steps, self.data, inputs)
            return model
        opset = self._opset(export, need)
        parts = {
            "source": self.rework(inputs, checked, data).final.content,
            "inputs": inputs,
            "outputs": self.plan.model.outputs,
            "example": checked.example_digest,
            "opset": opset,
            "ir": need.ir_version,
            "tolerance": export.tolerance,
            "versions": versions(*EXPORTERS),
        }

        def build(folder: Path) -> None:
            self._export(folder, inputs, data / "example.npz", opset, need.ir_version, export.tolerance)

        stored = self.steps.stored("export", 1, parts, build, label="export to ONNX")
        return self._told(_float_model(stored))

    def _told(self, model: FloatModel) -> FloatModel:
        """Says what sharing brought."""
        if (shared := model.exported.shared) is not None and shared[0] > shared[1]:
            text = f"sub-graphs that members share are computed once: {shared[0]} nodes became {shared[1]}"
            self.steps.emit(Note(text=text))
        return model

    def reference(self, inputs: Inputs, float_model: FloatModel) -> Reference:
        """Outputs of the trained model on the evaluation data; of the given file itself when that is an .onnx."""
        if self.source.kind != "onnx":
            return self._rework.models.outputs(self._rework.done(inputs).trained, inputs)
        from exporter.onnx_export import onnx_session

        parts = {"model": float_model.content, "versions": versions("onnxruntime")}
        return stored_outputs(self.data, self.steps, inputs, parts, lambda: onnx_session(float_model.path))

    def program(self, inputs: Inputs, checked: DataChecked, data: Path) -> Stored:
        """program.pt2: the torch module captured with the fixed shapes of its inputs."""

        def build(folder: Path) -> None:
            from exporter.onnx_export import save_program
            from exporter.pipeline.arrays import read_groups

            (example,) = read_groups(data / "example.npz", ["0"])
            save_program(self._prepare(inputs), example=example, inputs=inputs, path=folder / PROGRAM)

        parts = {
            "source": self.rework(inputs, checked, data).final.content,
            "inputs": inputs,
            "example": checked.example_digest,
            "versions": versions("torch"),
        }
        return self.steps.stored("capture", 1, parts, build, label="capture the torch program")

    def calibration_parts(self) -> dict[str, Any]:
        """What decides which calibration samples a model gets, beside its inputs."""
        self.calibration()
        return self.data.parts("calibration")

    def calibration_batches(self, inputs: Inputs) -> Iterator[Arrays]:
        """One pass over the calibration data."""
        section = self.calibration()
        return (batch.inputs for batch in self.data.open("calibration", inputs).batches(section.batch_size))

    def calibration(self) -> DataPlan:
        """The plan's section of calibration data.

        Raises:
            DataError: it has none.
        """
        section = self.data.sections.get("calibration")
        if section is None:
            raise DataError(
                "int8 needs calibration data",
                where="[calibration]",
                why="ranges are measured on real inputs, and none are ever made up",
                hint='add `[calibration] data = "file.npz"`, or `--set quantize.enabled=false` for float alone',
            )
        return section

    def _check_data(self, folder: Path, inputs: Inputs) -> None:
        from exporter.pipeline.samples import write_samples

        reports = {role: data_room.check(self.data.open(role, inputs)) for role in self.data.sections}
        facts = {role: SetFacts(samples=report.samples, notes=report.notes) for role, report in reports.items()}
        samples = write_samples(folder, self.data.open(self.data.judged, inputs), inputs)
        checked = DataChecked(
            calibration=facts.get("calibration"),
            evaluation=facts.get("evaluation"),
            training=facts.get("training"),
            overlap=_overlap(reports, "calibration"),
            taught_overlap=_overlap(reports, "training"),
            example_digest=samples.example_digest,
            cases_digest=samples.cases_digest,
            cases=samples.cases,
        )
        (folder / "data.json").write_bytes(canonical(checked))

    def _opset(self, export: ExportPlan, need: Need) -> int:
        from exporter.onnx_export import export_opset

        if export.opset is None:
            return export_opset(need.opset)
        if export.opset > need.opset:
            raise InputError(
                f"opset {export.opset} is newer than {need.runtime} knows ({need.opset})",
                where="export.opset",
                hint="lower `[export] opset`, or raise the target's `min_runtime`",
            )
        export_opset(export.opset)  # Refuses what torch cannot export.
        return export.opset

    def _export(
        self, folder: Path, inputs: Inputs, example: Path, opset: int, ir_version: int, tolerance: float
    ) -> None:
        from exporter.onnx_export import (
            check_eval,
            compare_with_torch,
            export_onnx,
            mismatch_hint,
            share_onnx,
            torch_session,
        )
        from exporter.pipeline.arrays import group_names, read_groups

        batches = list(read_groups(example, group_names(example)))
        prepared = self._prepare(inputs)
        check_eval(prepared, batches[0])
        path = folder / "model.onnx"
        signature = export_onnx(
            prepared, example=batches[0], inputs=inputs, opset=opset, ir_version=ir_version, path=path
        )
        shared = share_onnx(path) if self._rework.done(inputs).final.composition is not None else None
        error = compare_with_torch(torch_session(prepared), path, batches, tolerance, inputs, mismatch_hint(prepared))
        exported = Exported(
            signature=signature, max_relative_error=error, batches_compared=len(batches), shared=shared
        )
        (folder / "export.json").write_bytes(canonical(exported))

    def _read(self) -> ModelPlan:
        """What the model is read from: for members that are ready .onnx files, the file that holds them all."""
        if self.source.kind != "onnx" or self.plan.merge is None:
            return self.plan.model
        return stacked_file(self.plan, self.source, self.steps)

    def _adopt(self, inputs: Inputs, export: ExportPlan, need: Need, example: Path) -> FloatModel:
        if export.opset is not None:
            raise InputError(
                "a ready .onnx file keeps its own opset",
                where="export.opset",
                hint="remove `opset` from [export]",
            )

        path = Path(self._read().source)

        def build(folder: Path) -> None:
            from exporter.onnx_export import normalise_onnx

            facts = sources.inspect_onnx(path)
            sources.check_opset(facts, need.opset, need.ir_version, need.runtime)
            sizes = fixed_axes(facts.signature.inputs, inputs)
            normalise_onnx(path, folder / "model.onnx", sizes)
            signature = sources.inspect_onnx(folder / "model.onnx").signature if sizes else facts.signature
            shared = check_stacked(self.plan, path, example) if self.plan.merge is not None else None
            exported = Exported(signature=signature, max_relative_error=None, batches_compared=0, shared=shared)
            (folder / "export.json").write_bytes(canonical(exported))

        parts = {
            "source": self.source.digest,
            "inputs": inputs,
            "opset": need.opset,
            "ir": need.ir_version,
            "example": file_digest(example) if self.plan.merge is not None else None,
            "versions": versions("onnx"),
        }
        stored = self.steps.stored("adopt", 1, parts, build, label="take the ONNX file")
        return _float_model(stored)

    def _prepare(self, inputs: Inputs) -> Prepared:
        return self._rework.models.prepared(self._rework.done(inputs).final, inputs)


def _overlap(reports: Mapping[Role, data_room.DataReport], role: Role) -> int:
    """Samples that are in the evaluation data too."""
    return data_room.overlap(reports[role], reports["evaluation"]) if {role, "evaluation"} <= set(reports) else 0


def _float_model(stored: Stored) -> FloatModel:
    exported = load_json(stored.folder / "export.json", Exported)
    return FloatModel(path=stored.folder / "model.onnx", content=stored.content, exported=exported)
