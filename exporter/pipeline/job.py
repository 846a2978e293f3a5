"""The steps that belong to the model, whatever the target: inputs, data, ONNX, reference outputs, int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from exporter import data as data_room
from exporter import sources
from exporter.artifacts import (
    BATCH,
    Coverage,
    Preprocessing,
    QuantScheme,
    Signature,
    TensorSpec,
    Value,
    canonical,
)
from exporter.errors import DataError, InputError, ModelError, closest
from exporter.events import Note
from exporter.pipeline.steps import Steps, versions
from exporter.plan import Plan
from exporter.plan_types import DataPlan, ExportPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.data import CalibrationSet
    from exporter.onnx_export import Prepared
    from exporter.target_api import Session

    Arrays = Mapping[str, NDArray[np.generic]]

SINGLES = 8
"""Cases of one sample in a bundle: inputs for the self-test and for the benchmark."""
STACKED = 3
"""Samples in the case with a larger batch, and in the second batch of the export check."""
TRACED = 2
"""Batch of the example that torch traces; 1 would be taken for a constant."""
EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir")


class SetFacts(Value, frozen=True, kw_only=True):
    """What checking one set found."""

    samples: int
    notes: tuple[str, ...]


class DataChecked(Value, frozen=True, kw_only=True):
    """data.json of the data step; beside it lie example.npz (two batches) and cases.npz (inputs of samples)."""

    calibration: SetFacts | None
    evaluation: SetFacts | None
    overlap: int
    example_digest: str
    cases_digest: str
    cases: int
    second_batch: bool


class Inspected(Value, frozen=True, kw_only=True):
    """What a model file says about itself."""

    signature: Signature
    opset: int | None
    ir_version: int | None


class Exported(Value, frozen=True, kw_only=True):
    """export.json: the signature with the user's names, and how far ONNX is from torch (None for a ready file)."""

    signature: Signature
    max_relative_error: float | None
    batches_compared: int


class FloatModel(msgspec.Struct, frozen=True, kw_only=True):
    """A float ONNX file in the store."""

    path: Path
    key: str
    exported: Exported


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs of the trained model on the evaluation data: one group of arrays a batch, and its labels."""

    path: Path
    key: str
    batches: int


class Int8Model(msgspec.Struct, frozen=True, kw_only=True):
    """A QDQ ONNX file in the store."""

    path: Path
    key: str
    scheme: QuantScheme
    coverage: Coverage


class Job:
    """One build: a plan, its source, and the steps that targets share. Results are kept in the store only."""

    def __init__(self, plan: Plan, steps: Steps) -> None:
        self.plan = plan
        self.steps = steps
        with steps.guarded("read the model"):
            self.source = sources.identify(plan.model)
            self.data_digests = {
                name: data_room.content_digest(section, labels)
                for name, section, labels in self._sections()
                if section is not None
            }
        if not self.data_digests:
            raise DataError(
                "the plan names no data",
                where="[calibration], [evaluation]",
                why="a bundle tests itself with real inputs, and none are ever made up",
                hint='add `[calibration] data = "file.npz"`, or give --calib',
            )
        self._prepared: dict[tuple[TensorSpec, ...], Prepared] = {}

    @property
    def preprocessing(self) -> dict[str, Preprocessing]:
        """Preprocessing by input name."""
        return {name: spec.preprocess for name, spec in self.plan.model.inputs.items() if spec.preprocess}

    @property
    def judged_by(self) -> Literal["evaluation", "calibration"]:
        """Which data fidelity is measured on."""
        return "evaluation" if self.plan.evaluation is not None else "calibration"

    @property
    def judged_digest(self) -> str:
        """Content digest of that data."""
        return self.data_digests[self.judged_by]

    def inputs(self, export: ExportPlan) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the model's inputs, from the plan, the file, or the data."""
        specs = self._declared() if self.source.kind == "factory" else self._from_file()
        if self.source.kind == "onnx" and export.batch != "dynamic":
            raise InputError(
                "a ready .onnx file keeps its own batch axis",
                where="export.batch",
                hint="remove `batch` from [export], or export the model from torch",
            )
        if export.batch == "dynamic":
            return specs
        return tuple(
            msgspec.structs.replace(spec, shape=(export.batch, *spec.shape[1:]))
            if spec.shape and isinstance(spec.shape[0], str)
            else spec
            for spec in specs
        )

    def check_data(self, inputs: tuple[TensorSpec, ...]) -> tuple[DataChecked, Path]:
        """Checks calibration and evaluation data against the inputs, and takes real inputs for later steps."""
        stored = self.steps.stored(
            "check-data",
            1,
            {
                "data": self.data_digests,
                "inputs": inputs,
                "preprocessing": self.preprocessing,
                "labels": self.plan.model.labels,
            },
            lambda folder: self._check_data(folder, inputs),
            label="check data",
        )
        checked = msgspec.json.decode((stored.folder / "data.json").read_bytes(), type=DataChecked)
        for name, facts in (("calibration", checked.calibration), ("evaluation", checked.evaluation)):
            for note in facts.notes if facts else ():
                self.steps.emit(Note(text=f"{name} data: {note}"))
        if checked.overlap:
            text = f"{checked.overlap} samples are in both calibration and evaluation data: accuracy looks too good"
            self.steps.emit(Note(text=text))
        return checked, stored.folder

    def float_model(
        self, inputs: tuple[TensorSpec, ...], checked: DataChecked, folder: Path, export: ExportPlan, need: Any
    ) -> FloatModel:
        """The float ONNX file: exported from torch and compared with it, or the user's own, checked."""
        if self.source.kind == "onnx":
            return self._adopt(need)
        from exporter.onnx_export import export_opset

        opset = export_opset(need.opset) if export.opset is None else export.opset
        if opset > need.opset:
            raise InputError(
                f"opset {opset} is newer than the target's minimum runtime knows ({need.opset})",
                where="export.opset",
                hint="lower `[export] opset`, or raise the target's `min_runtime`",
            )
        parts = {
            "source": self.source.digest,
            "inputs": inputs,
            "outputs": self.plan.model.outputs,
            "example": checked.example_digest,
            "opset": opset,
            "ir": need.ir_version,
            "tolerance": export.tolerance,
            "versions": versions(*EXPORTERS, "onnxruntime"),
        }
        stored = self.steps.stored(
            "export",
            1,
            parts,
            lambda target: self._export(target, inputs, folder, opset, need.ir_version, export.tolerance),
            label="export to ONNX",
        )
        return _float_model(stored.folder, stored.key)

    def reference(self, inputs: tuple[TensorSpec, ...], float_model: FloatModel) -> Reference:
        """Outputs of the trained model on the evaluation data; of the given file itself when that is an .onnx."""
        parts: dict[str, Any] = {
            "inputs": inputs,
            "data": self.judged_digest,
            "batch": self._judged_plan().batch_size,
            "preprocessing": self.preprocessing,
            "labels": self.plan.model.labels,
        }
        if self.source.kind == "onnx":
            parts |= {"model": float_model.key, "versions": versions("onnxruntime")}
        else:
            parts |= {
                "source": self.source.digest,
                "outputs": self.plan.model.outputs,
                "versions": versions("torch", "numpy"),
            }
        label = "run the trained model"
        stored = self.steps.stored(
            "reference", 1, parts, lambda target: self._reference(target, inputs, float_model, label), label=label
        )
        batches = msgspec.json.decode((stored.folder / "reference.json").read_bytes(), type=dict[str, int])["batches"]
        return Reference(path=stored.folder / "reference.npz", key=stored.key, batches=batches)

    def int8_model(
        self, inputs: tuple[TensorSpec, ...], float_model: FloatModel, scheme: QuantScheme, samples: int
    ) -> Int8Model:
        """The QDQ file, made with the calibration data."""
        calibration = self.plan.calibration
        if calibration is None:
            raise DataError(
                "int8 needs calibration data",
                where="[calibration]",
                why="ranges are measured on real inputs, and none are ever made up",
                hint='add `[calibration] data = "file.npz"`, or `--set quantize.enabled=false` for float alone',
            )
        from exporter.quantize import quantize_static

        label = f"quantize ({scheme.label})"
        progress = self.steps.progress(label)

        def build(folder: Path) -> None:
            data_set = self.open("calibration", inputs)
            coverage = quantize_static(
                float_model.path,
                folder / "model.onnx",
                scheme=scheme,
                batches=lambda: (batch.inputs for batch in data_set.batches(calibration.batch_size)),
                progress=progress,
            )
            (folder / "coverage.json").write_bytes(canonical(coverage))

        parts = {
            "model": float_model.key,
            "data": self.data_digests["calibration"],
            "inputs": inputs,
            "preprocessing": self.preprocessing,
            "batch": calibration.batch_size,
            "scheme": scheme,
            "versions": versions("onnxruntime", "onnx"),
        }
        total = -(-samples // calibration.batch_size)
        stored = self.steps.stored("quantize", 1, parts, build, label=label, total=total)
        coverage = msgspec.json.decode((stored.folder / "coverage.json").read_bytes(), type=Coverage)
        return Int8Model(path=stored.folder / "model.onnx", key=stored.key, scheme=scheme, coverage=coverage)

    def judged_batches(self, inputs: tuple[TensorSpec, ...]) -> Iterator[Arrays]:
        """The batches that `reference` ran, in the same order."""
        return (batch.inputs for batch in self.open(self.judged_by, inputs).batches(self._judged_plan().batch_size))

    def open(self, name: Literal["calibration", "evaluation"], inputs: tuple[TensorSpec, ...]) -> CalibrationSet:
        """Opens one of the plan's data sets."""
        section, labels = {section: (plan, labels) for section, plan, labels in self._sections()}[name]
        return data_room.open_set(
            cast(DataPlan, section),
            inputs=inputs,
            preprocessing=self.preprocessing,
            labels=labels,
            class_names=self.plan.model.labels,
        )

    def _sections(self) -> Iterator[tuple[str, DataPlan | None, str | None]]:
        labels = self.plan.evaluation.labels if self.plan.evaluation else None
        calibration = self.plan.calibration
        if calibration is not None and labels is not None:
            # Calibration data often carry labels too, under the same name: they are no input.
            calibration = msgspec.structs.replace(calibration, ignore=(*calibration.ignore, labels))
        yield "calibration", calibration, None
        yield "evaluation", self.plan.evaluation, labels

    def _judged_plan(self) -> DataPlan:
        return cast(DataPlan, self.plan.evaluation or self.plan.calibration)

    def _declared(self) -> tuple[TensorSpec, ...]:
        declared = self.plan.model.inputs
        if declared and all(spec.dtype and spec.shape is not None for spec in declared.values()):
            return tuple(
                TensorSpec(name=name, dtype=spec.dtype or "float32", shape=spec.shape or ())
                for name, spec in declared.items()
            )
        inferred: dict[str, TensorSpec] = {}
        with self.steps.guarded("read the data's shapes"):
            for _, section, labels in self._sections():
                if section is not None and not inferred:
                    specs = data_room.infer_inputs(section, labels=labels, preprocessing=self.preprocessing)
                    inferred = {spec.name: spec for spec in specs}
        unknown = [f"'{name}'{closest(name, list(inferred))}" for name in declared if name not in inferred]
        if unknown:
            raise DataError(
                f"the data have no array for input {', '.join(unknown)}",
                where="[model.inputs]",
                hint=f'arrays in the data: {", ".join(inferred)}; rename them with `rename = {{ array = "input" }}`',
            )
        # The plan's order comes first: it is the order of the model's arguments.
        order = [*declared, *(name for name in inferred if name not in declared)]
        return tuple(_refined(inferred[name], declared.get(name)) for name in order)

    def _from_file(self) -> tuple[TensorSpec, ...]:
        inspected = self.inspected()
        declared = self.plan.model.inputs
        names = [spec.name for spec in inspected.signature.inputs]
        problems = [f"input '{name}'{closest(name, names)}" for name in declared if name not in names]
        specs = []
        for spec in inspected.signature.inputs:
            wanted = declared.get(spec.name)
            refined = _refined(spec, wanted)
            named_only = len(refined.shape) == len(spec.shape) and all(
                left == right or (isinstance(left, str) and isinstance(right, str))
                for left, right in zip(spec.shape, refined.shape, strict=True)
            )
            if refined.dtype != spec.dtype or not named_only:
                problems.append(f"{refined}, where the file has {spec}")
            specs.append(refined if self.source.kind == "torch-export" else spec)
        if problems:
            raise ModelError(
                f"the model file does not have {'; '.join(problems)}",
                where="[model.inputs]",
                hint=f"its inputs: {', '.join(map(str, inspected.signature.inputs))}",
            )
        return tuple(specs)

    def inspected(self) -> Inspected:
        """What a .pt2 or .onnx file says about itself."""

        def build(folder: Path) -> None:
            if self.source.kind == "onnx":
                facts = sources.inspect_onnx(Path(self.plan.model.source))
                found = Inspected(signature=facts.signature, opset=facts.opset, ir_version=facts.ir_version)
            else:
                program = sources.load_program(Path(self.plan.model.source), self.plan.model.allow_pickle)
                signature = Signature(inputs=sources.program_inputs(program), outputs=())
                found = Inspected(signature=signature, opset=None, ir_version=None)
            (folder / "inspected.json").write_bytes(canonical(found))

        parts = {
            "source": self.source.digest,
            "versions": versions("onnx" if self.source.kind == "onnx" else "torch"),
            "allow_pickle": self.plan.model.allow_pickle,
        }
        stored = self.steps.stored("inspect", 1, parts, build, label="read the model")
        return msgspec.json.decode((stored.folder / "inspected.json").read_bytes(), type=Inspected)

    def _check_data(self, folder: Path, inputs: tuple[TensorSpec, ...]) -> None:
        from exporter.pipeline.samples import write_samples

        facts: dict[str, SetFacts | None] = {"calibration": None, "evaluation": None}
        reports = []
        for name, section, _ in self._sections():
            if section is None:
                continue
            data_set = self.open(cast(Literal["calibration", "evaluation"], name), inputs)
            report = data_room.check(data_set)
            facts[name] = SetFacts(samples=report.samples, notes=report.notes)
            reports.append(report)
        overlap = data_room.overlap(*reports) if len(reports) == 2 else 0
        samples = write_samples(folder, self.open(self.judged_by, inputs), inputs)
        checked = DataChecked(
            calibration=facts["calibration"],
            evaluation=facts["evaluation"],
            overlap=overlap,
            example_digest=samples.example_digest,
            cases_digest=samples.cases_digest,
            cases=samples.cases,
            second_batch=samples.second_batch,
        )
        (folder / "data.json").write_bytes(canonical(checked))

    def _export(
        self,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        data: Path,
        opset: int,
        ir_version: int,
        tolerance: float,
    ) -> None:
        from exporter.onnx_export import check_eval, compare_with_torch, export_onnx, torch_session
        from exporter.pipeline.arrays import read_groups
        from exporter.pipeline.samples import example_groups

        batches = list(read_groups(data / "example.npz", example_groups(data / "example.npz")))
        prepared = self._prepare(inputs)
        check_eval(prepared, batches[0])
        path = folder / "model.onnx"
        signature = export_onnx(
            prepared, example=batches[0], inputs=inputs, opset=opset, ir_version=ir_version, path=path
        )
        error = compare_with_torch(torch_session(prepared), path, batches, tolerance)
        exported = Exported(signature=signature, max_relative_error=error, batches_compared=len(batches))
        (folder / "export.json").write_bytes(canonical(exported))

    def _adopt(self, need: Any) -> FloatModel:
        def build(folder: Path) -> None:
            from exporter.onnx_export import normalise_onnx

            facts = sources.inspect_onnx(Path(self.plan.model.source))
            sources.check_opset(facts, need.opset, need.ir_version, need.runtime)
            normalise_onnx(Path(self.plan.model.source), folder / "model.onnx")
            exported = Exported(signature=facts.signature, max_relative_error=None, batches_compared=0)
            (folder / "export.json").write_bytes(canonical(exported))

        parts = {
            "source": self.source.digest,
            "opset": need.opset,
            "ir": need.ir_version,
            "versions": versions("onnx"),
        }
        stored = self.steps.stored("adopt", 1, parts, build, label="take the ONNX file")
        return _float_model(stored.folder, stored.key)

    def _reference(self, folder: Path, inputs: tuple[TensorSpec, ...], float_model: FloatModel, label: str) -> None:
        from exporter.pipeline.arrays import writing_arrays

        progress = self.steps.progress(label)
        session = self._reference_session(inputs, float_model)
        data_set = self.open(self.judged_by, inputs)
        count = 0
        with writing_arrays(folder / "reference.npz") as add:
            for batch in data_set.batches(self._judged_plan().batch_size):
                add(f"{count}/outputs", session(batch.inputs))
                if batch.labels is not None:
                    add(str(count), {"labels": batch.labels})
                count += 1
                progress(count)
        (folder / "reference.json").write_bytes(canonical({"batches": count}))

    def _reference_session(self, inputs: tuple[TensorSpec, ...], float_model: FloatModel) -> Session:
        if self.source.kind != "onnx":
            from exporter.onnx_export import torch_session

            return torch_session(self._prepare(inputs))
        from exporter.onnx_export import onnx_session

        return onnx_session(float_model.path)

    def _prepare(self, inputs: tuple[TensorSpec, ...]) -> Prepared:
        if inputs not in self._prepared:
            from exporter.onnx_export import prepare_module

            model = self.plan.model
            if self.source.kind == "factory":
                module = sources.load_factory(model)
            else:
                module = sources.load_program(Path(model.source), model.allow_pickle).module()
            self._prepared[inputs] = prepare_module(module, inputs, model.outputs)
        return self._prepared[inputs]


def _float_model(folder: Path, key: str) -> FloatModel:
    exported = msgspec.json.decode((folder / "export.json").read_bytes(), type=Exported)
    return FloatModel(path=folder / "model.onnx", key=key, exported=exported)


def _refined(spec: TensorSpec, wanted: Any) -> TensorSpec:
    if wanted is None:
        return spec
    return TensorSpec(name=spec.name, dtype=wanted.dtype or spec.dtype, shape=wanted.shape or spec.shape)


def is_dynamic(inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether samples can be stacked to any batch size."""
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)


__all__ = ["BATCH", "FloatModel", "Int8Model", "Job", "Reference", "is_dynamic"]
