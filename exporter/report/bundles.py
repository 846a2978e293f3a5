"""One bundle in a report: accuracy by stage, latency, operators, what stayed float, findings, repairs, origin."""

from __future__ import annotations

from collections.abc import Mapping

import tomli_w

from exporter.artifacts import Fidelity, NodeLatency, Variant
from exporter.report.latency import latency_sections
from exporter.report.page import Block, Figure, Lines, Section, Shares, Table, Text
from exporter.tables import gate_text, human_size, made_for_text, percent
from exporter.views import BundleView

STAGES = ("stage", "metric", "SQNR dB", "cosine", "top-1", "max error", "size")
OPEN_ROWS = 12
WHY = {"gate": "the gate was not met", "speed": "for speed"}


def bundle_section(view: BundleView, operators: Mapping[str, tuple[NodeLatency, ...] | str]) -> Section:
    """Everything about one bundle."""
    manifest = view.manifest
    facts = [
        ("bundle", view.path.name),
        ("digest", manifest.digest),
        ("runtime", f"{manifest.runtime.name} {manifest.runtime.minimum} or newer"),
        *((f"input {index}", str(spec)) for index, spec in enumerate(manifest.signature.inputs, start=1)),
        *((f"output {index}", str(spec)) for index, spec in enumerate(manifest.signature.outputs, start=1)),
        ("default", f"{manifest.choice.variant}: {manifest.choice.why}"),
        ("gate", gate_text(manifest.variants[-1].fidelity.gate)),
    ]
    about = Table(caption="What it is", columns=("", "value"), rows=tuple(facts))
    notes = (Lines(items=manifest.notes),) if manifest.notes else ()
    sections = [
        Section(title="Accuracy by stage", blocks=(_stages(view),)),
        Section(title="Variants", blocks=(_variants(view),)),
        *latency_sections(view),
        Section(title="Time by operator", blocks=_operators(view, operators)),
        Section(title="Left in float", blocks=_left_in_float(view)),
        Section(title="Findings", blocks=_lints(view)),
        Section(title="Repairs", blocks=_repairs(view)),
        Section(title="Origin", blocks=_origin(view)),
    ]
    title = f"{manifest.name} for {manifest.target}"
    return Section(title=title, blocks=(about, *notes), sections=tuple(sections))


def _stages(view: BundleView) -> Table:
    """From the trained model over compressed ones to each variant, each judged against the trained model."""
    manifest = view.manifest
    rows = [
        (
            f"torch: {entry.name} ({entry.role})",
            "-" if entry.metric is None else f"{entry.metric:.4f}",
            *_divergence(entry.fidelity),
            human_size(entry.cost.bytes),
        )
        for entry in manifest.history
    ]
    first = manifest.variants[0].fidelity
    if not rows and first.metric is not None:
        rows.append((f"{first.reference}: as trained", f"{first.metric.reference:.4f}", "-", "-", "-", "-", "-"))
    for variant in manifest.variants:
        metric = variant.fidelity.metric
        simulated = " (simulated)" if variant.fidelity.arithmetic == "simulated" else ""
        rows.append(
            (
                f"{variant.name}{simulated}",
                f"{metric.value:.4f}" if metric else "-",
                *_divergence(variant.fidelity),
                human_size(view.manifest.size_of(variant)),
            )
        )
    name = first.metric.name if first.metric else "metric"
    judged = f"on {first.samples} {first.data} samples, against the model in {first.reference}"
    columns = (STAGES[0], name, *STAGES[2:])
    labels = "" if first.metric else "; no labels, so that no accuracy was measured"
    return Table(caption=f"{name} and divergence {judged}{labels}", columns=columns, rows=tuple(rows))


def _divergence(fidelity: Fidelity | None) -> tuple[str, str, str, str]:
    if fidelity is None:
        return "-", "-", "-", "-"
    measured = [one.sqnr_db for one in fidelity.outputs if one.sqnr_db is not None]
    agreement = next((one.top1_agreement for one in fidelity.outputs if one.top1_agreement is not None), None)
    return (
        f"{min(measured):.1f}" if measured else "exact",
        f"{min(one.cosine for one in fidelity.outputs):.5f}",
        percent(agreement),
        f"{max(one.max_abs_error for one in fidelity.outputs):.2g}",
    )


def _variants(view: BundleView) -> Table:
    rows = []
    for variant in view.manifest.variants:
        coverage = variant.coverage
        rows.append(
            (
                variant.name + (" (default)" if variant == view.default else ""),
                variant.runtime,
                variant.precision,
                human_size(view.manifest.size_of(variant)),
                variant.scheme.label if variant.scheme else "-",
                f"{coverage.quantized} of {coverage.eligible}" if coverage else "-",
                made_for_text(variant) if variant.requires else "any",
            )
        )
    columns = ("variant", "runtime", "precision", "size", "scheme", "nodes in int8", "CPUs")
    return Table(caption="Files of the bundle", columns=columns, rows=tuple(rows))


def _operators(view: BundleView, operators: Mapping[str, tuple[NodeLatency, ...] | str]) -> tuple[Block, ...]:
    if not operators:
        return (Lines(items=("not measured; `edge-exporter report --ops` measures it in runs of its own",)),)
    blocks: list[Block] = []
    for variant in view.manifest.variants:
        found = operators.get(variant.name, "not measured")
        if isinstance(found, str):
            blocks.append(Lines(items=(f"{variant.name}: {found}",)))
        else:
            blocks += _shares(variant, found)
    return tuple(blocks)


def _shares(variant: Variant, found: tuple[NodeLatency, ...]) -> list[Block]:
    shares: dict[str, list[NodeLatency]] = {}
    for node in found:
        shares.setdefault(node.op, []).append(node)
    ordered = sorted(shares.items(), key=lambda item: -sum(node.share for node in item[1]))
    rows = tuple(
        (op, str(len(nodes)), f"{sum(node.share for node in nodes):.1%}",
         f"{sum(node.median_ns for node in nodes) / 1e6:.3f}")
        for op, nodes in ordered
    )  # fmt: skip
    plot = Shares(
        labels=tuple(op for op, _ in ordered), shares=tuple(sum(node.share for node in nodes) for _, nodes in ordered)
    )
    return [
        Figure(
            caption=f"{variant.name}: share of the time by operator that onnxruntime ran, measured for this report",
            alt=f"share of the time by operator of {variant.name}; the table below has the numbers",
            plot=plot,
        ),
        Table(
            caption=f"{variant.name}: time by operator under onnxruntime's profiler, which itself takes time",
            columns=("operator", "nodes", "share", "ms"),
            rows=rows,
        ),
    ]


def _left_in_float(view: BundleView) -> tuple[Block, ...]:
    rows = [
        (skipped.node, variant.name, skipped.op, skipped.reason)
        for variant in view.manifest.variants
        if variant.coverage
        for skipped in variant.coverage.skipped
    ]
    if not rows:
        return (Lines(items=("nothing that has an int8 form",)),)
    columns = ("node", "variant", "operator", "why")
    return (
        Table(caption=f"{len(rows)} nodes in float", columns=columns, rows=tuple(rows), folded=len(rows) > OPEN_ROWS),
    )


def _lints(view: BundleView) -> tuple[Block, ...]:
    rows = [
        (lint.kind, variant.name, lint.subject, lint.text, lint.action)
        for variant in view.manifest.variants
        for lint in variant.lints
    ]
    if not rows:
        return (Lines(items=("none",)),)
    columns = ("rule", "variant", "about", "what was found", "what was done or can be")
    return (Table(caption=f"{len(rows)} findings", columns=columns, rows=tuple(rows), folded=len(rows) > OPEN_ROWS),)


def _repairs(view: BundleView) -> tuple[Block, ...]:
    rows = []
    for variant in view.manifest.variants:
        for repair in variant.repairs:
            metric = f"{repair.metric[0]:.4f} to {repair.metric[1]:.4f}" if repair.metric else "-"
            db = " to ".join("exact" if value is None else f"{value:.1f}" for value in repair.sqnr_db)
            nodes = f"{repair.quantized[0]} to {repair.quantized[1]}"
            latency = "-" if repair.latency is None else f"{repair.latency:.2f}x"
            kept = "yes" if repair.kept else "no"
            rows.append((repair.change, variant.name, WHY[repair.reason], kept, db, metric, nodes, latency))
    if not rows:
        return (Lines(items=("none were needed",)),)
    columns = ("change", "variant", "why", "kept", "SQNR dB", "metric", "nodes in int8", "latency")
    return (Table(caption="What was tried, what it brought, and what it cost", columns=columns,
                  rows=tuple(rows)),)  # fmt: skip


def _origin(view: BundleView) -> tuple[Block, ...]:
    manifest = view.manifest
    data = manifest.data
    facts = (
        ("model", manifest.model.source),
        ("model digest", manifest.model.digest),
        ("licence", manifest.model.licence or "not given"),
        ("calibration data", _data(data.calibration, data.calibration_samples)),
        ("evaluation data", _data(data.evaluation, data.evaluation_samples)),
        ("samples in both", str(data.overlap)),
        *((f"made with {name}", version) for name, version in sorted(manifest.tools.items())),
        *((f"made on: {name}", str(value)) for name, value in sorted(manifest.made_on.items()) if name != "features"),
    )
    files = tuple((entry.path, human_size(entry.size), entry.sha256) for entry in manifest.files)
    return (
        Table(caption="Model, data and tools", columns=("", "value"), rows=facts),
        Table(caption="Files", columns=("path", "size", "SHA-256"), rows=files, folded=True),
        Text(caption="The plan, with every value in force", text=tomli_w.dumps(manifest.plan)),
    )


def _data(digest: str | None, samples: int) -> str:
    return "none" if digest is None else f"{samples} samples, {digest}"
