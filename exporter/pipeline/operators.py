"""`analyze` of files that a target quantizes by itself: operator by operator, as the target tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.analysis import AnalysedNode, Analysis, DataSource
from exporter.artifacts import Coverage, Lint, Manifest, QuantScheme, Variant, canonical, file_digest
from exporter.bundle import SAMPLES
from exporter.errors import InputError, MissingError, StageError, closest, shorten
from exporter.pipeline.arrays import read_groups
from exporter.pipeline.converting import VARIANTS, Converting
from exporter.pipeline.forms import formed_inputs
from exporter.pipeline.job import Job
from exporter.pipeline.ranking import ranked_batches
from exporter.pipeline.results import load_json
from exporter.pipeline.steps import Steps, versions
from exporter.plan import TargetPlan
from exporter.target_api import Analyzable, OperatorFacts, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


class _Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The file to look at, and what is known of it."""

    source: str
    variant: str
    precision: str
    model: Path
    float_model: Path
    scheme: QuantScheme | None
    coverage: Coverage
    lints: tuple[Lint, ...] | None
    data: DataSource


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """operators.json: what the target told, and on how many samples."""

    samples: int
    operators: tuple[OperatorFacts, ...]


def operators_of_plan(
    job: Job, target: Target, target_plan: TargetPlan, variant: str | None, source: str
) -> Analysis:
    """Looks at a file as the target first makes it, before any repair.

    Args:
        job: what would be built.
        target: for which target; it is `Analyzable`.
        target_plan: the plan's values for it.
        variant: which file, by its name; the first quantized one by default.
        source: how to call the plan.

    Raises:
        InputError: the target makes no such file.
        MissingError: the target lacks something here.
    """
    if (missing := target_lacks(target, target_plan, job.steps)) is not None:
        raise MissingError(f"target '{target.name}' cannot be built here: {missing[0]}", hint=missing[1])
    converting = Converting(job, target, target_plan)
    inputs, form = converting.inputs, converting.need.form
    checked, data = job.check_data(inputs)
    stored, variants = converting.convert(converting.given(checked, data), ())
    folder = stored.folder / VARIANTS
    made = {one.name: one for one in variants if one.coverage is not None}
    if not made:
        raise none_quantized(f"target {target.name}", [one.name for one in variants])
    chosen = made[chosen_name(variant, list(made), f"target {target.name}")]
    assert chosen.coverage is not None, "looked at above"
    subject = _Subject(
        source=source,
        variant=chosen.name,
        precision=chosen.precision,
        model=folder / chosen.main,
        float_model=folder / variants[0].main,
        scheme=chosen.scheme,
        coverage=chosen.coverage,
        lints=None,
        data=job.data.judged,
    )
    parts = {**job.data.judged_parts(), "inputs": inputs, "form": form}
    return _analysis(
        job.steps,
        target,
        subject,
        parts,
        lambda: (formed_inputs(batch, inputs, form) for batch in ranked_batches(job, inputs)),
    )


def operators_of_bundle(bundle: Path, manifest: Manifest, chosen: Variant, target: Target, steps: Steps) -> Analysis:
    """Looks at a file of a bundle, on the bundle's own samples.

    Args:
        bundle: its folder, checked.
        manifest: what it holds.
        chosen: a quantized variant.
        target: that it was made for; it is `Analyzable`.
        steps: runs the steps.

    Raises:
        MissingError: what reads or runs such files is not installed.
    """
    floats = next(one for one in manifest.variants if one.name == manifest.float_variant)
    subject = _Subject(
        source=str(bundle),
        variant=chosen.name,
        precision=chosen.precision,
        model=bundle / chosen.main,
        float_model=bundle / floats.main,
        scheme=chosen.scheme,
        coverage=chosen.coverage or Coverage(eligible=0, quantized=0),
        lints=chosen.lints or None,
        data="samples of the bundle",
    )
    groups = [f"{index}/inputs" for index in range(manifest.samples)]
    parts = {"samples": file_digest(bundle / SAMPLES)}
    return _analysis(steps, target, subject, parts, lambda: read_groups(bundle / SAMPLES, groups))


def target_lacks(target: Target, target_plan: TargetPlan, steps: Steps) -> tuple[str, str] | None:
    """What a target lacks here to build, and what brings it."""
    with steps.guarded(f"{target.name}: look for what it needs"):
        return target.missing(target_plan.options)


def none_quantized(where: str, there: Sequence[str]) -> InputError:
    """What is said where all files are in float."""
    return InputError(
        "there is no quantized file to look at",
        where=where,
        why=f"it has {', '.join(there)}",
        hint="the plan asks for quantized files with `[quantize] enabled = true`, and with the target's own options",
    )


class NoVariantError(InputError):
    """A plan or bundle has no variant of the name that was asked for."""


def chosen_name(variant: str | None, names: Sequence[str], where: str) -> str:
    """The variant that was asked for, or the first one.

    Raises:
        NoVariantError: it is not there.
        InputError: there is none.
    """
    if not names:
        raise InputError("there is no quantized file to look at", where=where, hint="build one, as `[quantize]` says")
    if variant is not None and variant not in names:
        raise NoVariantError(
            f"there is no quantized variant '{variant}'{closest(variant, names)}",
            where=where,
            hint=f"one of {', '.join(names)}",
        )
    return variant or names[0]


def _analysis(
    steps: Steps,
    target: Target,
    subject: _Subject,
    parts: Mapping[str, object],
    batches: Callable[[], Iterator[Arrays]],
) -> Analysis:
    assert isinstance(target, Analyzable), "the caller has looked"
    analyzable = target
    label = f"{target.name}: noise of the operators of {subject.variant}"
    progress = steps.progress(label)

    def build(folder: Path) -> None:
        samples = 0

        def counted() -> Iterator[Arrays]:
            nonlocal samples
            for done, batch in enumerate(batches(), start=1):
                samples += next((len(values) for values in batch.values() if values.ndim), 1)
                yield batch
                progress(done)

        found = analyzable.operators(subject.float_model, subject.model, counted())
        _check(target.name, found)
        (folder / "operators.json").write_bytes(canonical(_Found(samples=samples, operators=found)))

    everything = {
        **parts,
        "target": [target.name, target.version],
        "files": [file_digest(subject.float_model), file_digest(subject.model)],
        "versions": versions(*target.distributions),
    }
    stored = steps.stored("analyze-operators", 1, everything, build, label=label)
    found = load_json(stored.folder / "operators.json", _Found)
    return Analysis(
        source=subject.source,
        target=target.name,
        variant=subject.variant,
        precision=subject.precision,
        scheme=subject.scheme,
        data=subject.data,
        samples=found.samples,
        nodes=_rows(found.operators, subject.coverage),
        added={},
        runtime=None,
        why=analyzable.untimed,
        lints=subject.lints,
    )


def _check(target: str, found: object) -> None:
    """Raises StageError where a target, which can be anyone's, tells something else than it should."""
    if isinstance(found, tuple) and all(isinstance(one, OperatorFacts) for one in found):
        return
    raise StageError(
        f"{target}: what it tells of operators is not what `analyze` shows",
        where=f"target {target}",
        why=shorten(f"it returned {found!r}, not a tuple of OperatorFacts"),
        hint="update the package that brings this target",
    )


def _rows(operators: tuple[OperatorFacts, ...], coverage: Coverage) -> tuple[AnalysedNode, ...]:
    """One row each: those that compute in integers, the worst first, what only moves values, and those in float."""
    reasons = {one.node: one.reason for one in coverage.skipped}
    scores = [one.damage.score if one.damage is not None else float("inf") for one in operators]
    rows = [
        AnalysedNode(
            node=one.node,
            op=one.op,
            bits=one.bits,
            weight_bits=one.weight_bits,
            range=one.range,
            scale=one.scale,
            zero_point=one.zero_point,
            sqnr_db=one.damage.sqnr_db if one.damage else None,
            channel_db=one.damage.channel_db if one.damage else None,
            accumulated_db=one.accumulated_db,
            reason=None if _in_integers(one) else reasons.get(one.node),
        )
        for one in operators
    ]
    order = sorted(range(len(rows)), key=lambda place: (not _in_integers(operators[place]), scores[place]))
    return tuple(rows[place] for place in order)


def _in_integers(one: OperatorFacts) -> bool:
    return one.bits is not None or one.weight_bits is not None
