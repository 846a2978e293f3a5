"""The steps that belong to a target: variants, their fidelity and gates, and the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import (
    Fidelity,
    Manifest,
    Signature,
    TensorSpec,
    canonical,
    file_digest,
)
from exporter.bundle import BundleParts, read_manifest, write_bundle
from exporter.bundle.packing import packed_size
from exporter.devices import cpu_features, kept_python, run_self_test
from exporter.errors import InputError, closest
from exporter.events import Note
from exporter.pipeline.candidates import Candidates, Made
from exporter.pipeline.converted import check_variants, larger_notes
from exporter.pipeline.crosschecking import MadeAlike, cross_checked, static_sides
from exporter.pipeline.evaluating import evaluate
from exporter.pipeline.forms import form_notes, form_of_data, formed_inputs, formed_signature
from exporter.pipeline.gates import Gates
from exporter.pipeline.inputs import with_batch
from exporter.pipeline.job import PROGRAM, Job
from exporter.pipeline.manifesting import draft_manifest
from exporter.pipeline.pixels import onnx_with_pixels, with_pixels
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.requantized import Requantized
from exporter.pipeline.results import DataChecked, FloatModel, Int8Model, load_json
from exporter.pipeline.steps import versions
from exporter.plan import TargetPlan
from exporter.store import Stored, list_files
from exporter.target_api import ConvertRequest, Requantizing, Target, VariantFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.pipeline.expected import Cases

    Arrays = Mapping[str, NDArray[np.generic]]

VARIANTS = "variants"
SPARSE = 0.05
"""Share of zeros among a model's weights from which on its packed size is told."""
FIXED_BATCH = "the files have fixed shapes: the batch is 1"


class Drafted(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in the store: complete and self-tested, but neither measured nor published.

    `beside` are runtimes that it is to be measured on beside its main one.
    """

    folder: Path
    manifest: Manifest
    beside: tuple[str, ...] = ()


class Bundling:
    """Makes one target's bundle out of the job's artifacts."""

    def __init__(self, job: Job, target: Target, plan: TargetPlan) -> None:
        self.job = job
        self.target = target
        self.plan = plan
        self.steps = job.steps
        self.notes: tuple[str, ...] = ()

    def draft(self) -> Drafted:
        """Runs every step up to the sealed bundle in the store.

        Raises:
            GateError: a variant lost more than the gate allows.
        """
        job, plan = self.job, self.plan
        with self.steps.guarded(f"{self.target.name}: requires"):
            need = self.target.requires(plan.options)
        self.need = need = msgspec.structs.replace(need, form=form_of_data(need.form, job.data.preprocessing))
        with self.steps.guarded(f"{self.target.name}: payload"):
            self.payload = self.target.payload(plan.options)
        self._check_dynamic()
        inputs = self._inputs()
        if plan.export.preprocess == "graph":
            self.need = need = with_pixels(self.target.name, need, inputs, job.data.preprocessing)
        checked, data = job.check_data(inputs)
        gates = Gates(self.steps, self.target.name, job.plan, plan)
        gates.hold_history(job.rework(inputs, checked, data).history)
        float_model = job.float_model(inputs, checked, data, plan.export, need)
        signature = self._signature(float_model, inputs)
        self._check_output(signature)
        reference = job.reference(inputs, float_model)
        samples = checked.calibration.samples if checked.calibration else 0
        program = job.program(inputs, checked, data) if need.program else None

        self.cases = self._cases(inputs, checked, data)

        def gated(folder: Path, variant: VariantFile) -> Fidelity:
            found = evaluate(job, self.target, folder, variant, signature, need.form, reference)
            return gates.applied(found)

        first: Sequence[tuple[VariantFile, Fidelity]] | None = None

        def judge(models: Sequence[Int8Model], only: str | None) -> Made:
            nonlocal first
            stored, variants = self._convert(float_model, models, program, signature)
            folder = stored.folder / VARIANTS
            judged = [(variant, gated(folder, variant)) for variant in variants if only in (None, variant.name)]
            if first is None:
                first = judged
            return Made(folder=folder, content=stored.content, judged=judged, models=models)

        def files(model: Int8Model) -> tuple[Path, VariantFile]:
            stored, variants = self._convert(float_model, [model], program, signature, why=" for a race")
            return stored.folder / VARIANTS, next(one for one in variants if one.name == model.file.name)

        races = QuickRaces(
            steps=self.steps,
            target=self.target,
            machine=self.payload.runtime.machine,
            enabled=plan.profile.enabled,
            cases=self.cases,
            cases_digest=checked.cases_digest,
            files=files,
        )
        made = Candidates(job, plan, inputs, float_model, samples, judge, races).settle(need)
        if isinstance(self.target, Requantizing) and need.calibration and plan.quantize.enabled:
            again = Requantized(job, self.target, self.target, plan, inputs, need.form, gated, races)
            made = again.settle(made)
        sides = static_sides(self.target.name, first or ())
        if need.calibration:
            alike = MadeAlike(job=job, inputs=inputs, float_model=float_model, reference=reference, samples=samples)
            made, texts = cross_checked(made, sides, job.int8_sides, alike)
            self.notes += texts
        else:
            job.int8_sides += sides
        gates.warn_of_chance(made.judged[0][1], signature)
        gates.hold(made.judged)
        self.notes += gates.unseen(made.judged)
        return self._assemble(made, signature, checked, data)

    def _check_dynamic(self) -> None:
        """Refuses dynamic int8 for a target that says of none of its files how such a one must be judged."""
        quantize = self.plan.quantize
        if quantize.enabled and quantize.dynamic and self.need.int8 and not self.need.dynamic:
            raise InputError(
                f"target '{self.target.name}' makes no dynamic int8",
                where="quantize.dynamic",
                why="its int8 files are simulated where another CPU builds them, and ranges at run time cannot be",
                hint=f"`[targets.{self.target.name}.quantize] dynamic = false` makes static int8 for it",
            )

    def _inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs; all fixed where the target needs the captured program."""
        job, plan = self.job, self.plan
        if not (self.need.program or self.need.fixed):
            return job.inputs(plan.export)
        if self.need.program and job.source.kind == "onnx":
            raise InputError(
                f"target '{self.target.name}' converts torch models, and the source is a ready .onnx file",
                where="model.source",
                hint=self.need.otherwise
                or "give the torch model as source (`file.py:factory` or a torch.export .pt2), or leave the target "
                "out: `--target cpu`",
            )
        found = job.inputs(plan.export)
        inputs = tuple(with_batch(spec, 1) for spec in found)
        dynamic = inputs != found
        if free := [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]:
            axes = sorted({str(dim) for spec in free for dim in spec.shape if isinstance(dim, str)})
            raise InputError(
                f"target '{self.target.name}' needs fixed shapes, and axis {', '.join(map(repr, axes))} is dynamic",
                where="; ".join(f"input {spec}" for spec in free),
                hint=f"write numbers in `[model.inputs.{free[0].name}] shape`, and give data of that size",
            )
        if dynamic:
            self.notes += (FIXED_BATCH,)
        return inputs

    def _signature(self, float_model: FloatModel, inputs: tuple[TensorSpec, ...]) -> Signature:
        return msgspec.structs.replace(
            float_model.exported.signature,
            inputs=inputs,
            preprocessing=self.job.data.preprocessing,
            labels=self.job.plan.model.labels,
        )

    def _check_output(self, signature: Signature) -> None:
        evaluation = self.job.plan.evaluation
        names = [spec.name for spec in signature.outputs]
        if evaluation is not None and evaluation.output is not None and evaluation.output not in names:
            raise InputError(
                f"the model has no output '{evaluation.output}'{closest(evaluation.output, names)}",
                where="evaluation.output",
                hint=f"its outputs: {', '.join(names)}",
            )

    def _convert(
        self,
        float_model: FloatModel,
        int8: Sequence[Int8Model],
        program: Stored | None,
        signature: Signature,
        *,
        why: str = "",
    ) -> tuple[Stored, tuple[VariantFile, ...]]:
        job = self.job
        calibrates = self.need.calibration and self.plan.quantize.enabled
        scheme = self.plan.quantize.scheme if calibrates else None
        ranged = calibrates and self.need.ranges and not self.plan.quantize.dynamic
        calibration = job.calibration_parts() if ranged else None
        offered = ("dynamic",) if calibrates and self._welcomes_dynamic(float_model) else ()
        request = ConvertRequest(
            float_model=float_model.path,
            int8=tuple(model.file for model in int8),
            signature=signature,
            program=program.folder / PROGRAM if program else None,
            pixels=self.need.form.pixels,
            form=self.need.form,
            quantize=scheme,
            offered=offered,
            calibration=(lambda: self._calibration(signature)) if ranged else None,
            tell=self.steps.stages(f"{self.target.name}: convert{why}"),
            examples=self.cases.both,
        )

        def build(folder: Path) -> None:
            (folder / VARIANTS).mkdir()
            with onnx_with_pixels(msgspec.structs.replace(request, python=python)) as given:
                made = self.target.convert(given, self.plan.options, folder / VARIANTS)
            check_variants(self.target.name, made, folder / VARIANTS)
            (folder / "variants.json").write_bytes(canonical(made))

        parts = {
            "target": [self.target.name, self.target.version],
            "options": self.plan.options,
            "float": float_model.content,
            "int8": [[model.content, model.file.name, model.file.requires, model.file.specialises] for model in int8],
            "program": program.key if program else None,
            "quantize": scheme,
            "offered": offered,
            "form": self.need.form,
            "calibration": calibration,
            "signature": signature,
            "environment": self.need.environment,
            "versions": versions(*self.target.distributions),
        }
        python = self._python(self.steps.key("convert", 1, parts))
        stored = self.steps.stored("convert", 1, parts, build, label=f"{self.target.name}: convert{why}")
        return stored, load_json(stored.folder / "variants.json", tuple[VariantFile, ...])

    def _python(self, key: str) -> str | None:
        """Of the environment that converting needs, unless it was done before."""
        steps, environment = self.steps, self.need.environment
        if environment is None or not steps.writes or steps.store.find("convert", key) is not None:
            return None
        return kept_python(steps.store, environment, steps.emit)

    def _welcomes_dynamic(self, float_model: FloatModel) -> bool:
        """Whether a target that quantizes by itself is to make a dynamic file that the plan does not ask for."""
        from exporter.quantize import suits_dynamic

        return self.need.dynamic and self.plan.quantize.try_dynamic and suits_dynamic(float_model.path)

    def _calibration(self, signature: Signature) -> Iterator[Arrays]:
        """The calibration samples as the target's files take them."""
        form = self.need.form
        return (
            formed_inputs(batch, signature.inputs, form) for batch in self.job.calibration_batches(signature.inputs)
        )

    def _assemble(
        self,
        made: Made,
        signature: Signature,
        checked: DataChecked,
        data: Path,
    ) -> Drafted:
        payload = self.payload
        with self.steps.guarded(f"{self.target.name}: payload"):
            runner = {name: file_digest(path) for name, path in payload.files.items()}
        resolved = self.job.plan.resolved(self.plan)
        folder, variants = made.folder, [variant for variant, _ in made.judged]
        form = self.need.form
        self.notes += (*form_notes(signature, form), *larger_notes(folder, variants))
        for note in self.notes:
            self.steps.emit(Note(text=f"{self.target.name}: {note}"))
        taken = formed_signature(signature, form)
        history = self.job.rework(signature.inputs, checked, data).history
        draft = draft_manifest(
            self.job,
            self.target,
            payload,
            made,
            taken,
            checked,
            resolved,
            history,
            notes=self.notes,
            environment=self.need.environment,
        )
        guide = payload.guide(draft) if payload.guide else None
        sparse = bool(history) and history[-1].cost.zeros >= SPARSE

        def build(bundle: Path) -> None:
            from exporter.pipeline.expected import expected_samples

            samples = bundle.parent / f"{bundle.name}-samples.npz"
            try:
                tolerances = expected_samples(self.cases, samples, self.target, folder, variants)
                manifest = msgspec.structs.replace(
                    draft,
                    variants=tuple(
                        msgspec.structs.replace(
                            variant,
                            tolerances=tolerances[variant.name],
                            packed_bytes=packed_size(_files(folder.parent / variant.main)) if sparse else None,
                        )
                        for variant in draft.variants
                    ),
                )
                parts = BundleParts(
                    variants=folder, samples=samples, runner=payload.files, plan=resolved, guide=payload.guide
                )
                write_bundle(bundle, manifest, parts)
            finally:
                samples.unlink(missing_ok=True)
            run_self_test(bundle)

        parts = {
            "manifest": draft,
            "variants": [entry.sha256 for entry in list_files(folder)],
            "cases": checked.cases_digest,
            "runner": runner,
            "guide": guide,
            "cpu": cpu_features(),
            "packed": versions("zstandard") if sparse else None,
        }
        stored = self.steps.stored("bundle", 1, parts, build, label=f"{self.target.name}: bundle and self-test")
        return Drafted(folder=stored.folder, manifest=read_manifest(stored.folder), beside=payload.beside)

    def _cases(self, inputs: tuple[TensorSpec, ...], checked: DataChecked, data: Path) -> Cases:
        from exporter.pipeline.expected import Cases

        return Cases(path=data / "cases.npz", count=checked.cases, inputs=inputs, form=self.need.form)


def _files(main: Path) -> list[Path]:
    return [path for path in sorted(main.parent.rglob("*")) if path.is_file()]
