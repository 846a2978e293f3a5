"""What a bundle's manifest says, before its files are listed and its latency is measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from exporter.artifacts import Choice, DataFacts, HistoryEntry, Manifest, ModelFacts, Signature, Variant
from exporter.devices import cpu_features
from exporter.pipeline.candidates import Made
from exporter.pipeline.job import Job
from exporter.pipeline.results import DataChecked
from exporter.pipeline.steps import NOT_INSTALLED, versions
from exporter.target_api import EnvironmentNeed, Payload, Target

TOOLS = ("edge-exporter", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def draft_manifest(
    job: Job,
    target: Target,
    payload: Payload,
    made: Made,
    signature: Signature,
    checked: DataChecked,
    resolved: Mapping[str, Any],
    history: tuple[HistoryEntry, ...],
    *,
    notes: tuple[str, ...],
    environment: EnvironmentNeed | None,
) -> Manifest:
    """The manifest of what a target made.

    Args:
        job: the build.
        target: whose bundle it is.
        payload: what travels beside the variants.
        made: variants with their fidelity, and the int8 models behind them.
        signature: as the bundle's user sees it.
        checked: what checking the data found.
        resolved: the plan with every default written out.
        history: what merging and compressing did.
        notes: what a reader of the bundle should know of the target's files.
        environment: what converting ran in, where not in this one.
    """
    overlap = [
        f"{count} samples are in both {role} and evaluation data"
        for role, count in (("calibration", checked.overlap), ("training", checked.taught_overlap))
        if count
    ]
    plan = job.plan
    digests = job.data.digests
    repairs = {model.file.name: model.repairs for model in made.models}
    lints = {model.file.name: model.lints for model in made.models}
    float_variant = made.judged[0][0].name
    return Manifest(
        name=plan.name,
        target=target.name,
        signature=signature,
        variants=tuple(
            Variant(
                name=variant.name,
                runtime=variant.runtime,
                main=f"variants/{variant.main}",
                precision=variant.precision,
                scheme=variant.scheme,
                coverage=variant.coverage,
                lints=lints.get(variant.name, ()),
                fidelity=fidelity,
                tolerances={},
                requires=variant.requires,
                specialises=variant.specialises,
                repairs=repairs.get(variant.name, ()),
                edges=variant.edges,
                not_on=variant.not_on,
            )
            for variant, fidelity in made.judged
        ),
        float_variant=float_variant,
        runtime=payload.runtime,
        other_runtimes=payload.others,
        samples=checked.cases,
        model=ModelFacts(
            source=str(resolved["model"]["source"]), digest=job.source.digest, licence=plan.model.licence
        ),
        data=DataFacts(
            calibration=digests.get("calibration"),
            calibration_samples=checked.calibration.samples if checked.calibration else 0,
            evaluation=digests.get("evaluation"),
            evaluation_samples=checked.evaluation.samples if checked.evaluation else 0,
            overlap=checked.overlap,
            training=digests.get("training"),
            training_samples=checked.training.samples if checked.training else 0,
        ),
        tools={
            name: found for name, found in versions(*TOOLS, *target.distributions).items() if found != NOT_INSTALLED
        }
        | (environment.pinned() if environment is not None else {}),
        made_on={"machine": platform.machine(), "features": list(cpu_features())},
        notes=(*job.notes, *notes, *overlap),
        history=history,
        plan=dict(resolved),
        files=(),
        choice=Choice(variant=float_variant, why="no variant was measured yet: the float one runs"),
    )
