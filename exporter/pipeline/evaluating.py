"""Fidelity of a variant: run on its target's runtime over the evaluation data, against the trained model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exporter.artifacts import Fidelity, Signature, canonical
from exporter.devices import cpu_features
from exporter.pipeline.forms import formed_inputs
from exporter.pipeline.job import Job
from exporter.pipeline.judging import judge, judged_by
from exporter.pipeline.results import Reference, load_json
from exporter.pipeline.steps import versions
from exporter.store import list_files
from exporter.target_api import Target, TensorForm, VariantFile, made_for


def evaluate(
    job: Job,
    target: Target,
    folder: Path,
    variant: VariantFile,
    signature: Signature,
    form: TensorForm,
    reference: Reference,
) -> Fidelity:
    """Divergence from the reference, and the task metric where there are labels; not gated yet.

    Args:
        job: the build.
        target: opens the variant.
        folder: where the target's files are.
        variant: what to run.
        signature: of the model.
        form: how the target's files take tensors.
        reference: outputs of the trained model on the same batches.
    """
    label = f"{target.name}: accuracy of {variant.name}"
    simulated = not made_for(variant.requires, cpu_features())
    judged = (variant.stand_in if simulated else None) or variant.main
    progress = job.steps.progress(label)

    def build(result: Path) -> None:
        session = target.open_session(folder / judged, simulated=simulated)
        fidelity = judge(
            job.data,
            signature.inputs,
            reference,
            lambda batch: session(formed_inputs(batch, signature.inputs, form)),
            job.plan.evaluation,
            runs_in="onnx" if job.source.kind == "onnx" else "torch",
            progress=progress,
        )
        fidelity = msgspec.structs.replace(fidelity, arithmetic="simulated" if simulated else "native")
        (result / "fidelity.json").write_bytes(canonical(fidelity))

    parts = {
        "files": [entry.sha256 for entry in list_files((folder / judged).parent)],
        "reference": reference.content,
        "form": form,
        "metric": judged_by(job.plan.evaluation),
        # Kernels differ by CPU: u8s8 saturates where VNNI is missing.
        "cpu": cpu_features(),
        "simulated": simulated,
        "runtime": variant.runtime,
        "target": [target.name, target.version],
        "versions": versions(*target.distributions),
    }
    stored = job.steps.stored("evaluate", 4, parts, build, label=label, total=reference.batches)
    fidelity = load_json(stored.folder / "fidelity.json", Fidelity)
    # Not in the stored result: another model with the same answers shares it.
    return msgspec.structs.replace(fidelity, reference_digest=job.trained_digest(signature.inputs))
