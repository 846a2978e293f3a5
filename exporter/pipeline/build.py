"""`build`: every target of a plan, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import NotMeasured, Profile
from exporter.errors import ExporterError, MissingError
from exporter.history import TargetRecord
from exporter.pipeline.bundling import Bundling
from exporter.pipeline.crosschecking import in_build_order
from exporter.pipeline.job import Job
from exporter.pipeline.publish import Published, check_output, publish
from exporter.pipeline.recording import Recorder
from exporter.pipeline.steps import Steps
from exporter.plan import Plan, TargetPlan
from exporter.target_api import Target
from exporter.views import without_samples


class TargetFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a target was not built."""

    target: str
    error: ExporterError


Outcome = Published | TargetFailure


def build(
    plan: Plan, output: Path, steps: Steps, load_target: Callable[[str], Target], *, keep_going: bool
) -> list[Outcome]:
    """Builds all targets.

    Args:
        plan: what to build.
        output: folder that bundles are published in.
        steps: runs the steps.
        load_target: finds targets by name.
        keep_going: record a target's failure and go on with the next instead of raising it.

    Raises:
        ExporterError: of the first target that fails, without `keep_going`.
    """
    check_output(output)
    recorder = Recorder(steps)
    steps = recorder.steps
    targets = {target.name: load_target(target.name) for target in plan.targets}
    job = Job(plan, steps)
    made: dict[str, Outcome] = {}
    for target_plan in in_build_order(plan.targets, targets.__getitem__):
        try:
            made[target_plan.name] = _build_target(job, targets[target_plan.name], target_plan, output, steps)
        except ExporterError as error:
            if not keep_going:
                raise
            made[target_plan.name] = TargetFailure(target=target_plan.name, error=error)
    outcomes = [made[target_plan.name] for target_plan in plan.targets]
    recorder.keep(plan.name, [_target_record(outcome) for outcome in outcomes])
    return outcomes


def _target_record(outcome: Outcome) -> TargetRecord:
    if isinstance(outcome, TargetFailure):
        return TargetRecord(target=outcome.target, failed=outcome.error.what)
    return TargetRecord(target=outcome.manifest.target, digest=outcome.manifest.digest)


def _build_target(job: Job, target: Target, plan: TargetPlan, output: Path, steps: Steps) -> Published:
    with steps.guarded(f"{target.name}: look for what it needs"):
        missing = target.missing(plan.options)
    if missing is not None:
        what, hint = missing
        raise MissingError(f"target '{target.name}' cannot be built here: {what}", hint=hint)
    return publish(Bundling(job, target, plan).draft(), output, plan.profile, steps)


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON: everything that the table shows, without raw latency samples."""
    if isinstance(outcome, TargetFailure):
        error = outcome.error
        return {
            "target": outcome.target,
            "built": False,
            "exit_code": error.exit_code,
            "error": {"what": error.what, "where": error.where, "why": error.why, "hint": error.hint},
        }
    manifest = outcome.manifest
    return {
        "target": manifest.target,
        "built": True,
        "cached": outcome.cached,
        "bundle": str(outcome.path),
        "digest": manifest.digest,
        "default": manifest.choice,
        "runtime": manifest.runtime,
        "data": manifest.data,
        "history": manifest.history,
        "notes": manifest.notes,
        "variants": [
            {
                "name": variant.name,
                "precision": variant.precision,
                "runtime": variant.runtime,
                "size": manifest.size_of(variant),
                "packed_bytes": variant.packed_bytes,
                "scheme": variant.scheme,
                "coverage": variant.coverage,
                "lints": variant.lints,
                "fidelity": variant.fidelity,
                "repairs": variant.repairs,
            }
            for variant in manifest.variants
        ],
        "profile": profile_document(outcome.profile),
        "beside": {one.runtime: profile_document(one.profile) for one in outcome.beside},
    }


def profile_document(profile: Profile | NotMeasured) -> dict[str, Any]:
    """A profile without its raw samples, or why there is none."""
    if isinstance(profile, NotMeasured):
        return {"measured": False} | msgspec.structs.asdict(profile)
    return {"measured": True} | without_samples(profile)
