"""`compare`: two bundles or profiles, variant by variant."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from exporter.artifacts import Manifest, Profile
from exporter.comparison import Compared, ComparedVariants, Control, OpCounts, Pair
from exporter.devices import run_bench, steady_seconds
from exporter.errors import InputError, UsageError, closest
from exporter.events import Note
from exporter.pipeline.latencies import Measured, control, latencies
from exporter.pipeline.publish import lock_of
from exporter.pipeline.sides import Side, differences, matching, open_side
from exporter.pipeline.steps import Steps
from exporter.plan_types import ProfilePlan
from exporter.views import BundleView


def compare(
    first: Path, second: Path, steps: Steps, *, variant: str | None, across: bool, remeasure: int, latency: bool
) -> Compared:
    """Compares two bundles or profiles; the first is what the second is held against.

    Args:
        first: a bundle's folder or a profile's file.
        second: likewise.
        steps: measures again where that is asked for.
        variant: compare this one alone, instead of the defaults and all that have a name in common.
        across: also where hosts, runtimes, settings or data differ.
        remeasure: rounds in which both are measured again, here, one after the other; 0 takes their profiles.
        latency: whether latency is compared at all.

    Raises:
        InputError: the sides cannot be compared.
        UsageError: what was asked for does not go together.
    """
    a, b = open_side(first), open_side(second)
    pairs = _pairs(a, b, variant)
    measured = _measured(a, b, steps, variant, across=across, remeasure=remeasure, latency=latency)
    different = [*measured.differences, *_edges(a, b)]
    metric, why_not = _metric(a, b)
    if why_not and across and "other data" in why_not:
        different.append(why_not)
        why_not = ""
    with steps.guarded("compare"):
        shift = control(a, b, measured)
        variants = tuple(_variants(a, b, pair, measured, shift, why_not) for pair in pairs)
    return Compared(
        a=a.label,
        b=b.label,
        variants=variants,
        metric=None if why_not else metric,
        measured=_where(measured),
        not_measured=measured.why,
        remeasured=len(measured.rounds),
        differences=tuple(different),
        control=shift,
        flags=_flags(measured),
    )


def _edges(a: Side, b: Side) -> list[str]:
    """Inputs and outputs, where the names differ: two models that do not stand in for each other."""
    if a.manifest is None or b.manifest is None:
        return []
    found = []
    for what in ("inputs", "outputs"):
        left, right = ([spec.name for spec in getattr(side.signature, what)] for side in (a.manifest, b.manifest))
        if sorted(left) != sorted(right):
            found.append(f"{what}: {', '.join(left)} and {', '.join(right)}")
    return found


def _flags(measured: Measured) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What disturbed either side; rounds in turn were disturbed alike."""
    if measured.profiles is None or measured.rounds:
        return (), ()
    first, second = measured.profiles
    return first.flags, second.flags


def _pairs(a: Side, b: Side, variant: str | None) -> list[tuple[str, str]]:
    common = [name for name in dict.fromkeys(a.variants) if name in b.variants]
    if variant is not None:
        if variant not in common:
            raise InputError(
                f"variant '{variant}' is not on both sides{closest(variant, common)}",
                where=f"{a.label}: {', '.join(a.variants)}; {b.label}: {', '.join(b.variants)}",
                hint="choose one that both have, or leave --variant out",
            )
        return [(variant, variant)]
    defaults = [(a.default, b.default)] if a.default is not None and b.default is not None else []
    found = [*defaults, *((name, name) for name in common)]
    if not found:
        raise InputError(
            "the two sides have no variant in common",
            where=f"{a.label}: {', '.join(a.variants)}; {b.label}: {', '.join(b.variants)}",
            hint="compare bundles, whose default variants are known",
        )
    return list(dict.fromkeys(found))


def _measured(
    a: Side, b: Side, steps: Steps, variant: str | None, *, across: bool, remeasure: int, latency: bool
) -> Measured:
    if not latency:
        return Measured(why="left out with --no-latency")
    if remeasure:
        return _again(a, b, steps, remeasure, variant)
    lacking = [side.label for side in (a, b) if not side.profiles]
    if lacking:
        return Measured(why=f"{' and '.join(lacking)} has no latency profile; `edge-exporter profile` makes one")
    same = matching(a, b)
    if same is not None:
        return Measured(profiles=same)
    chosen = a.profiles[a.main or ""], b.profiles[b.main or ""]
    found = differences(*chosen)
    if across:
        return Measured(profiles=chosen, differences=tuple(found))
    raise InputError(
        "latencies of different hosts, runtimes or settings do not compare"
        + "".join(f"\n  - {line}" for line in found),
        where=f"{a.label} and {b.label}",
        hint="measure both in one place (--remeasure does it here), leave latency out with --no-latency, or compare "
        "all the same with --across",
    )


def _again(a: Side, b: Side, steps: Steps, rounds: int, variant: str | None) -> Measured:
    """Fresh processes of both bundles in turn, so that what changes on the host meets both alike.

    A variant that is asked for runs alone: others in the same process would slow it down.
    """
    if a.view is None or b.view is None:
        raise UsageError("--remeasure runs bundles, and a profile alone cannot be run", hint="name bundle folders")
    settings = [_settings(side.view.manifest) for side in (a, b) if side.view]
    if settings[0].threads != settings[1].threads:
        steps.emit(Note(text=f"both are measured with {settings[0].threads} threads, as the first side's plan says"))
    found = []
    for index in range(rounds):
        views = (a.view, b.view)
        order = (0, 1) if index % 2 == 0 else (1, 0)
        label = f"measure again, round {index + 1} of {rounds}"
        with steps.measuring(label, 2 * steady_seconds(settings[0])):
            profiles = {side: _bench(views[side], settings[0], steps, variant) for side in order}
        found.append((profiles[0], profiles[1]))
    if len({found[0][0].runtime.name, found[0][1].runtime.name}) > 1:
        note = f"runtime: {found[0][0].runtime.name} and {found[0][1].runtime.name}"
        return Measured(profiles=found[-1], rounds=tuple(found), differences=(note,))
    return Measured(profiles=found[-1], rounds=tuple(found))


def _bench(view: BundleView, settings: ProfilePlan, steps: Steps, variant: str | None) -> Profile:
    with steps.store.exclusive(lock_of(view.manifest)):
        return run_bench(view.path, settings, len(view.manifest.variants), variant=variant)


def _settings(manifest: Manifest) -> ProfilePlan:
    return msgspec.convert({**manifest.plan.get("profile", {}), "enabled": True}, ProfilePlan)


def _metric(a: Side, b: Side) -> tuple[str | None, str]:
    """Name of the metric on both sides, and why it does not compare."""
    if a.manifest is None or b.manifest is None:
        return None, "a profile alone says nothing of accuracy"
    metrics = [manifest.variants[0].fidelity.metric for manifest in (a.manifest, b.manifest)]
    if metrics[0] is None or metrics[1] is None:
        return None, "the evaluation data have no labels"
    if metrics[0].name != metrics[1].name:
        return None, f"the metrics are {metrics[0].name} and {metrics[1].name}"
    if a.manifest.data.evaluation != b.manifest.data.evaluation:
        return metrics[0].name, "accuracy was measured on other data on each side"
    return metrics[0].name, ""


def _variants(
    a: Side, b: Side, names: tuple[str, str], measured: Measured, shift: Control | None, why_not: str
) -> ComparedVariants:
    alone = "a profile alone says nothing of it"
    left, right = a.variant(names[0]), b.variant(names[1])
    if left is None or right is None or a.view is None or b.view is None:
        size = accuracy = sqnr = int8 = Pair(a=None, b=None, why=alone)
        ops = None
    else:
        size = Pair(a=a.view.manifest.size_of(left), b=b.view.manifest.size_of(right))
        losses = left.fidelity.metric, right.fidelity.metric
        values = [loss.value if loss else None for loss in losses]
        accuracy = Pair(a=None, b=None, why=why_not) if why_not else Pair(a=values[0], b=values[1])
        sqnr = _sqnr_pair(a, b, names)
        counts = [one.coverage.quantized if one.coverage else None for one in (left, right)]
        int8 = Pair(a=counts[0], b=counts[1], why="one is no int8 file" if None in counts else "")
        ops = _ops(a.view.path / left.main, b.view.path / right.main)
    latency, memory = latencies(measured, names, shift)
    return ComparedVariants(
        a=names[0],
        b=names[1],
        default=(a.default, b.default) == names,
        size=size,
        accuracy=accuracy,
        sqnr=sqnr,
        int8=int8,
        ops=ops,
        latency=latency,
        memory=memory,
    )


def _sqnr_pair(a: Side, b: Side, names: tuple[str, str]) -> Pair:
    worst: list[float | None] = []
    broken = []
    for side, name in ((a, names[0]), (b, names[1])):
        variant = side.variant(name)
        assert variant is not None, "both sides have the variants of a pair"
        outputs = variant.fidelity.outputs
        worst.append(min((one.sqnr_db for one in outputs if one.sqnr_db is not None), default=None))
        broken.append(any(one.broken for one in outputs))
    left, right = worst
    return Pair(
        a=left,
        b=right,
        exact=(left is None and not broken[0], right is None and not broken[1]),
        why="outputs are not finite where the model's are" if any(broken) else "",
    )


def _ops(a: Path, b: Path) -> OpCounts | None:
    if a.suffix != ".onnx" or b.suffix != ".onnx":
        return None
    import onnx

    counts = [
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node) for path in (a, b)
    ]
    changed = {op: (counts[0][op], counts[1][op]) for op in sorted({*counts[0], *counts[1]})}
    return OpCounts(
        a=counts[0].total(),
        b=counts[1].total(),
        changed={op: pair for op, pair in changed.items() if pair[0] != pair[1]},
    )


def _where(measured: Measured) -> str:
    if measured.profiles is None:
        return ""
    one = measured.profiles[0]
    threads = f"{one.settings.threads} thread{'s' if one.settings.threads > 1 else ''}"
    place = "" if one.device == "local" else f"{one.device}, "
    where = f"{one.runtime.name} {one.runtime.version}, {threads}, {one.provenance} on {place}{one.host.cpu}"
    return where if not measured.differences or measured.rounds else f"{where}, against another place or way"
