"""`analyze`: an int8 file node by node, from a plan or from a bundle: which file, and who looks at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.analysis import Analysis
from exporter.artifacts import Manifest
from exporter.bundle import check_bundle
from exporter.errors import InputError, PlanError
from exporter.events import Note
from exporter.pipeline.job import Job
from exporter.pipeline.nodes import RUNTIME, nodes_of_bundle, nodes_of_plan
from exporter.pipeline.operators import (
    NoVariantError,
    chosen_name,
    none_quantized,
    operators_of_bundle,
    operators_of_plan,
    target_lacks,
)
from exporter.pipeline.steps import Steps
from exporter.plan import Plan, TargetPlan
from exporter.target_api import Analyzable, Requantizing, Target

OFF = "`--set quantize.enabled=true --set quantize.dynamic=false` looks at what static int8 would be"
ON = "`--set quantize.enabled=true` makes quantized files, whose operators are then shown"
OTHER_TARGET = "`--target NAME` chooses another target"
BY_ITSELF = (
    "`--target cpu` analyzes the ONNX form of the same model; operators of this target's own files are ranked while "
    "`build` repairs a file that fails the gate ([quantize] budget), and the manifest keeps what was changed"
)


def analyze_plan(
    plan: Plan, load: Callable[[str], Target], variant: str | None, source: str, steps: Steps
) -> list[Analysis]:
    """Looks at the int8 files that a plan makes, before any repair; steps before it run, or come from the store.

    Args:
        plan: what would be built. Those of its targets that cannot be looked at are noted, where others can.
        load: finds a target by its name.
        variant: which int8 file, by its name; each target's first one by default.
        source: how to call the plan.
        steps: runs the steps.

    Raises:
        InputError: no target makes such a file.
        MissingError: a target lacks something here.
    """
    job = Job(plan, steps)
    reasons = {one.name: _unfit(job, load(one.name), one) for one in plan.targets}
    chosen = [one for one in plan.targets if reasons[one.name] is None] or plan.targets
    found, lacking = [], []
    for one in chosen:
        try:
            found.append(_of_target(job, load(one.name), one, variant, source))
        except NoVariantError as error:
            lacking.append(error)
            reasons[one.name] = f"{error.what} ({error.hint})"
    if len(lacking) == len(chosen) == 1:
        raise lacking[0]
    if not found:
        raise NoVariantError(
            lacking[0].what,
            where="; ".join(str(error.where) for error in lacking),
            hint="; ".join(f"{error.where}: {error.hint}" for error in lacking),
        )
    for name, reason in reasons.items():
        if reason is not None:
            steps.emit(Note(text=f"{name} is left out: {reason}"))
    return found


def _unfit(job: Job, target: Target, target_plan: TargetPlan) -> str | None:
    """Why a target's files cannot be looked at."""
    if _static_names(target, target_plan, job.steps):
        return None
    if not _tells(target, target_plan):
        return "it has no statically quantized ONNX file"
    if (missing := target_lacks(target, target_plan, job.steps)) is not None:
        return f"{missing[0]} ({missing[1]})"
    if job.source.kind == "onnx" and target.requires(target_plan.options).program:
        return "it converts torch models, and the source is a ready .onnx file"
    return None


def _tells(target: Target, target_plan: TargetPlan) -> bool:
    """Whether a target makes quantized files of a plan by itself, and tells of their operators."""
    quantizes = target.requires(target_plan.options).calibration and target_plan.quantize.enabled
    return quantizes and isinstance(target, Analyzable)


def _static_names(target: Target, target_plan: TargetPlan, steps: Steps) -> list[str]:
    """Names of the static ONNX files that a target makes of a plan."""
    with steps.guarded(f"{target.name}: requires"):
        need = target.requires(target_plan.options)
    quantize = target_plan.quantize
    return [wanted.name for wanted in need.int8] if quantize.enabled and not quantize.dynamic else []


def _of_target(job: Job, target: Target, target_plan: TargetPlan, variant: str | None, source: str) -> Analysis:
    names = _static_names(target, target_plan, job.steps)
    if not names and _tells(target, target_plan):
        return operators_of_plan(job, target, target_plan, variant, source)
    need, quantize = target.requires(target_plan.options), target_plan.quantize
    where = f"target {target.name}"
    if not names:
        off = not quantize.enabled or quantize.dynamic
        itself = BY_ITSELF if isinstance(target, Requantizing) else OTHER_TARGET
        raise _no_static(where, ON if off and need.calibration else OFF if off and need.int8 else itself)
    name = chosen_name(variant, names, where)
    wanted = next(one for one in need.int8 if one.name == name)
    return nodes_of_plan(job, target, target_plan, wanted, source)


def analyze_bundle(bundle: Path, variant: str | None, steps: Steps, load: Callable[[str], Target]) -> Analysis:
    """Looks at a quantized file of a bundle, on the bundle's own samples.

    Args:
        bundle: its folder.
        variant: which file, by its name; the default one where that can be looked at, else the first.
        steps: runs the steps.
        load: finds a target by its name, where the files are no ONNX.

    Raises:
        BundleError: it does not hold what it claims.
        InputError: it has no such file.
        MissingError: what reads or runs its files is not installed.
    """
    manifest = check_bundle(bundle)
    variants = sorted(manifest.variants, key=lambda one: one.name != manifest.choice.variant)
    static = [one for one in variants if one.scheme is not None and one.runtime == RUNTIME and not one.scheme.dynamic]
    own = [one for one in variants if one.coverage is not None and one.runtime != RUNTIME]
    where = f"bundle {bundle.name}"
    target = None if static or manifest.runtime.name == RUNTIME else _installed(manifest.target, load)
    if target is not None and isinstance(target, Analyzable):
        if not own:
            raise none_quantized(where, [one.name for one in variants])
        name = chosen_name(variant, [one.name for one in own], where)
        chosen = next(one for one in own if one.name == name)
        return operators_of_bundle(bundle, manifest, chosen, target, steps)
    if not static:
        raise _no_static(where, _hint(manifest, target))
    name = chosen_name(variant, [one.name for one in static], where)
    chosen = next(one for one in static if one.name == name)
    if not chosen.main.endswith(".onnx"):
        raise InputError(
            f"variant '{chosen.name}' is in ORT format, whose nodes are fused already",
            where=str(bundle / chosen.main),
            hint="analyze the plan: its ONNX files are looked at, as they are before they are made ORT format",
        )
    return nodes_of_bundle(bundle, manifest, chosen, steps)


def _installed(name: str, load: Callable[[str], Target]) -> Target | None:
    """A bundle's target; None where no installed package brings it."""
    try:
        return load(name)
    except PlanError:
        return None


def _hint(manifest: Manifest, target: Target | None) -> str:
    """What to do with a bundle that nothing can be told of."""
    if manifest.runtime.name == RUNTIME:
        return "analyze the plan"
    if target is None:
        return f"install the package that brings target '{manifest.target}'; or of the plan, {OTHER_TARGET}"
    return f"of the plan: {BY_ITSELF}"


def _no_static(where: str, hint: str) -> InputError:
    return InputError(
        "there is no statically quantized ONNX file to look at",
        where=where,
        why="noise is told of nodes whose ranges were calibrated, in files that onnxruntime runs",
        hint=hint,
    )
