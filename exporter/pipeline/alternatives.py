"""`[[variants]]`: every alternative of a plan built, and one table of accuracy, size and latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from exporter.artifacts import Alternative, Profile, canonical
from exporter.bundle import write_atomically
from exporter.bundle.packing import packed_size
from exporter.errors import GateError
from exporter.events import Note
from exporter.pipeline.build import Outcome, TargetFailure, build
from exporter.pipeline.publish import Published
from exporter.pipeline.steps import Steps
from exporter.plan import Plan
from exporter.target_api import Target
from exporter.views import LATENCY_TIE, SIZE_TIE, beats


def build_alternatives(
    plan: Plan, output: Path, steps: Steps, load_target: Callable[[str], Target], *, keep_going: bool
) -> tuple[list[tuple[Plan, Outcome]], list[Alternative]]:
    """Builds all alternatives; one that a gate or a comparison refuses is a row of the table, and stops nothing.

    Args:
        plan: has alternatives.
        output: folder that bundles are published in; `<plan>-variants.json` is written there with the table.
        steps: runs the steps; what alternatives share is done once.
        load_target: finds targets by name.
        keep_going: record other failures too and go on.

    Raises:
        ExporterError: of the first target that fails otherwise, without `keep_going`; of the first refusal where
            every alternative was refused.
    """
    outcomes: list[tuple[Plan, Outcome]] = []
    for alternative in plan.variants:
        steps.emit(Note(text=f"variant {alternative.label}"))
        for outcome in build(alternative, output, steps, load_target, keep_going=True):
            if isinstance(outcome, TargetFailure) and not isinstance(outcome.error, GateError) and not keep_going:
                raise outcome.error
            outcomes.append((alternative, outcome))
    failures = [outcome.error for _, outcome in outcomes if isinstance(outcome, TargetFailure)]
    if len(failures) == len(outcomes):
        raise failures[0]
    rows = [row for one, outcome in outcomes for row in _rows(one.label, outcome)]
    if any(row.packed_bytes is not None for row in rows):
        rows = [_packed(row, outcomes) for row in rows]
    rows = mark_pareto(rows)
    write_atomically(output / f"{plan.name}-variants.json", canonical(rows))
    return outcomes, rows


def mark_pareto(rows: Sequence[Alternative]) -> list[Alternative]:
    """Marks the rows that no other row of their target beats; what was not measured of all is left out of it.

    Packed sizes count where all rows have them, else sizes of files. A few bytes or a hundredth of the latency more
    or less put nothing on the front.
    """
    marked = []
    for row in rows:
        rivals = [one for one in rows if one.target == row.target and one.variant is not None]
        measures = [
            (name, sign, tie)
            for name, sign, tie in (("metric", -1, 0.0), (_size(rivals), 1, SIZE_TIE), ("latency_ms", 1, LATENCY_TIE))
            if all(getattr(one, name) is not None for one in rivals)
        ]
        ties = [tie for *_, tie in measures]

        def costs(one: Alternative, measures: Sequence[tuple[str, int, float]] = measures) -> list[float]:
            return [sign * getattr(one, name) for name, sign, _ in measures]

        beaten = row.variant is None or any(beats(costs(rival), costs(row), ties) for rival in rivals)
        marked.append(msgspec.structs.replace(row, pareto=not beaten))
    return marked


def _size(rows: Sequence[Alternative]) -> str:
    """The size that all rows have: zeros are worth nothing in a file, and much in a packed one."""
    return "packed_bytes" if rows and all(one.packed_bytes is not None for one in rows) else "size"


def _packed(row: Alternative, outcomes: Sequence[tuple[Plan, Outcome]]) -> Alternative:
    """A row with the size of its file when packed, so that it is held against sparse ones by the same measure."""
    if row.packed_bytes is not None or row.variant is None:
        return row
    for _, outcome in outcomes:
        if isinstance(outcome, Published) and outcome.path.name == row.bundle:
            main = next(one.main for one in outcome.manifest.variants if one.name == row.variant)
            files = (path for path in sorted((outcome.path / main).parent.rglob("*")) if path.is_file())
            return msgspec.structs.replace(row, packed_bytes=packed_size(files))
    return row


def _rows(name: str, outcome: Outcome) -> list[Alternative]:
    if isinstance(outcome, TargetFailure):
        return [Alternative(name=name, target=outcome.target, failure=outcome.error.what.partition("\n")[0])]
    return _published(name, outcome)


def _published(name: str, published: Published) -> list[Alternative]:
    manifest, profile = published.manifest, published.profile
    medians = {}
    if isinstance(profile, Profile):
        medians = {one.variant: one.summary.median / 1e6 for one in profile.variants}
    return [
        Alternative(
            name=name,
            target=manifest.target,
            variant=variant.name,
            metric=variant.fidelity.metric.value if variant.fidelity.metric else None,
            sqnr_db=min((one.sqnr_db for one in variant.fidelity.outputs if one.sqnr_db is not None), default=None),
            size=manifest.size_of(variant),
            packed_bytes=variant.packed_bytes,
            latency_ms=medians.get(variant.name),
            bundle=published.path.name,
        )
        for variant in manifest.variants
    ]
