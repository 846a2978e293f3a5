"""The steps that belong to a target: variants, their fidelity and gates, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import (
    Fidelity,
    Manifest,
    Signature,
    file_digest,
)
from exporter.bundle import BundleParts, read_manifest, write_bundle
from exporter.bundle.packing import packed_size
from exporter.devices import cpu_features, run_self_test
from exporter.events import Note
from exporter.pipeline.candidates import Candidates, Made
from exporter.pipeline.converted import larger_notes
from exporter.pipeline.converting import VARIANTS, Converting
from exporter.pipeline.crosschecking import MadeAlike, cross_checked, static_sides
from exporter.pipeline.evaluating import evaluate
from exporter.pipeline.forms import check_outputs, form_notes, formed_signature
from exporter.pipeline.gates import Gates
from exporter.pipeline.job import Job
from exporter.pipeline.manifesting import draft_manifest
from exporter.pipeline.quick_races import QuickRaces
from exporter.pipeline.requantized import Requantized
from exporter.pipeline.results import DataChecked, Int8Model
from exporter.pipeline.steps import versions
from exporter.plan import TargetPlan
from exporter.store import list_files
from exporter.target_api import Requantizing, Target, VariantFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

SPARSE = 0.05
"""Share of zeros among a model's weights from which on its packed size is told."""


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
        converting = Converting(job, self.target, plan)
        self.notes += converting.notes
        self.need, inputs = converting.need, converting.inputs
        need = self.need
        with self.steps.guarded(f"{self.target.name}: payload"):
            self.payload = self.target.payload(plan.options)
        checked, data = job.check_data(inputs)
        gates = Gates(self.steps, self.target.name, job.plan, plan)
        gates.hold_history(job.rework(inputs, checked, data).history)
        given = converting.given(checked, data)
        float_model, signature, self.cases = given.float_model, given.signature, given.cases
        reference = job.reference(inputs, float_model)
        check_outputs(reference.outputs(), signature.outputs, need.form)
        samples = checked.calibration.samples if checked.calibration else 0

        def gated(folder: Path, variant: VariantFile) -> Fidelity:
            found = evaluate(job, self.target, folder, variant, signature, need.form, reference)
            return gates.applied(found)

        first: Sequence[tuple[VariantFile, Fidelity]] | None = None

        def judge(models: Sequence[Int8Model], only: str | None) -> Made:
            nonlocal first
            stored, variants = converting.convert(given, models)
            folder = stored.folder / VARIANTS
            judged = [(variant, gated(folder, variant)) for variant in variants if only in (None, variant.name)]
            if first is None:
                first = judged
            return Made(folder=folder, content=stored.content, judged=judged, models=models)

        def files(model: Int8Model) -> tuple[Path, VariantFile]:
            stored, variants = converting.convert(given, [model], why=" for a race")
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


def _files(main: Path) -> list[Path]:
    return [path for path in sorted(main.parent.rglob("*")) if path.is_file()]
