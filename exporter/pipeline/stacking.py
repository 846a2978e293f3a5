"""Members that are ready .onnx files: put together as a file, and held against each of them run alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Fidelity, MetricResult, canonical, file_digest
from exporter.errors import InputError, ModelError, StageError, shorten
from exporter.events import Note
from exporter.merge.wiring import feeding, output_name, running_order
from exporter.pipeline.comparing import hold
from exporter.pipeline.composing import known_classes, member_plan, several_notes
from exporter.pipeline.datasets import DataSets
from exporter.pipeline.judging import judge, judged_by
from exporter.pipeline.models import Inputs, stored_outputs
from exporter.pipeline.results import FloatModel, Reference, load_json
from exporter.pipeline.steps import Steps, versions
from exporter.plan import Plan
from exporter.plan_types import MergeModelPlan, ModelPlan
from exporter.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.merge import OnnxPart
    from exporter.target_api import Session

    Arrays = Mapping[str, NDArray[np.generic]]

FILE = "model.onnx"
TOLERANCE = 1e-4
"""Largest difference between the stack and a member alone, relative to the member's largest value."""


def stacked_file(plan: Plan, source: Source, steps: Steps) -> ModelPlan:
    """A plan's model with the file that holds all members as its source."""
    merge = plan.merge
    if merge is None:
        return plan.model
    if merge.by == "learned":
        raise InputError(
            "weights of outputs are learned from torch models, and the members are ready .onnx files",
            where='[merge] by = "learned"',
            hint="give each model a `weight`, or give the factories that make the models",
        )

    def build(folder: Path) -> None:
        from exporter.merge import Fusion, stack_onnx
        from exporter.onnx_export import share_onnx

        fusion = None
        if merge.method == "fuse":
            total = known_classes(plan)
            fusion = Fusion(
                by=merge.by,
                weights=tuple(member.weight for member in merge.models),
                classes=tuple(member.classes for member in merge.models) if total else (),
                total=total,
            )
        stack_onnx(_parts(plan), folder / FILE, expose=merge.expose, fusion=fusion)
        share_onnx(folder / FILE)

    parts = {"source": source.digest, "labels": len(plan.model.labels), "versions": versions("onnx", "onnx-ir")}
    stored = steps.stored("stack", 2, parts, build, label=f"{merge.method} the ONNX files")
    return msgspec.structs.replace(plan.model, source=str(stored.folder / FILE))


def check_stacked(plan: Plan, path: Path, example: Path) -> tuple[int, int]:
    """Holds a stack of .onnx files against its members, each run alone on real inputs.

    Returns:
        Nodes of all members together, and of the stack.

    Raises:
        StageError: an output differs.
    """
    import numpy as np
    import onnx

    from exporter.onnx_export import onnx_session
    from exporter.pipeline.arrays import group_names, read_groups

    parts = {part.label: part for part in _parts(plan)}
    graphs = [onnx.load(str(part.path), load_external_data=False).graph for part in parts.values()]
    nodes = sum(len(graph.node) for graph in graphs), len(onnx.load(str(path), load_external_data=False).graph.node)
    if plan.merge is None or plan.merge.method != "stack":
        return nodes  # What is fused is held against the same arithmetic in torch by the tests, not here.
    sessions = {label: onnx_session(part.path) for label, part in parts.items()}
    stack = onnx_session(path)
    own = {
        label: [value.name for value in graph.input if value.name not in {one.name for one in graph.initializer}]
        for label, graph in zip(parts, graphs, strict=True)
    }
    for batch in read_groups(example, group_names(example)):
        takes = {label: {name: part.takes.get(name, name) for name in own[label]} for label, part in parts.items()}
        values = dict(batch)
        for label in running_order(takes, list(batch)):
            feeds = {name: values[source] for name, source in takes[label].items()}
            answers = _ran(sessions[label], feeds, f"'{label}' alone")
            names = parts[label].outputs or tuple(answers)
            values |= {output_name(label, name): value for name, value in zip(names, answers.values(), strict=True)}
        for name, got in _ran(stack, batch, "the stack of all members").items():
            wanted = values[name].astype(np.float64)
            error = float(np.abs(wanted - got.astype(np.float64)).max(initial=0.0))
            if error > TOLERANCE * max(float(np.abs(wanted).max(initial=0.0)), 1e-12):
                raise StageError(
                    f"the stack differs from its member by {error:.3g}",
                    where=f"output '{name}'",
                    hint="export the members with one opset",
                )
    return nodes


def _ran(session: Session, feeds: Arrays, what: str) -> Mapping[str, NDArray[np.generic]]:
    try:
        return session(feeds)
    except Exception as error:  # onnxruntime has no type of its own for what a model cannot be run on.
        given = ", ".join(f"{name} {values.dtype} {list(values.shape)}" for name, values in feeds.items())
        raise ModelError(
            f"{what} cannot be run on the data",
            where="[[merge.models]]",
            why=f"given {given}: {shorten(error)}",
            hint="what was exported for one size runs on that size only: export it again with a dynamic axis, or "
            "give the size to all in [model.inputs]",
        ) from error


def compare_fused(plan: Plan, fused: FloatModel, steps: Steps, data: DataSets, inputs: Inputs) -> None:
    """Holds the fused outputs of ready .onnx files against each of them alone, by the plan's metric.

    Args:
        plan: with a [merge].
        fused: the file that fuses them.
        steps: runs the steps.
        data: of the plan.
        inputs: of the file.

    Raises:
        GateError: fused outputs are worse than the best member's, and `accept` is `better`.
    """
    from exporter.onnx_export import onnx_session

    merge = plan.merge
    if merge is None or merge.method != "fuse":
        return
    for text in several_notes(merge.by, [spec.name for spec in fused.exported.signature.outputs]):
        steps.emit(Note(text=text))
    name, labels = f"fused ({merge.by})", [member.label for member in merge.models]
    members: dict[str, float | None] = {}
    result = None
    if judged_by(plan.evaluation) is not None:
        parts = {"model": fused.content, "versions": versions("onnxruntime")}
        reference = stored_outputs(
            data, steps, inputs, parts, lambda: onnx_session(fused.path), label=f"run the {name} file"
        )
        for member, part in zip(merge.models, _parts(plan), strict=True):
            if any(feeding(source, labels) for source in member.inputs.values()):
                steps.emit(Note(text=f"'{member.label}' is fed by another model and not compared with the fused one"))
                continue
            metric = _alone(plan, member, part, fused, reference, steps, data, inputs)
            members[member.label] = metric.value if metric else None
            result = metric.reference if metric else result
    lines = [f"  {label}  {value:.4f}" for label, value in [*members.items(), (name, result)] if value is not None]
    if lines:
        steps.emit(Note(text="; ".join(line.strip() for line in lines)))
    hold(members, result, lines, steps.emit, refuses=merge.refuses)


def _alone(
    plan: Plan,
    member: MergeModelPlan,
    part: OnnxPart,
    fused: FloatModel,
    reference: Reference,
    steps: Steps,
    data: DataSets,
    inputs: Inputs,
) -> MetricResult | None:
    """The metric of a member whose outputs are of the same kind as the fused ones, and of those."""
    merge = plan.merge
    assert merge is not None
    label = f"accuracy of {member.label}"

    def build(folder: Path) -> None:
        from exporter.merge import Fusion, stack_onnx
        from exporter.onnx_export import onnx_session

        total = known_classes(plan)
        fusion = Fusion(by=merge.by, weights=(1.0,), classes=(member.classes,) if total else (), total=total)
        names = tuple(spec.name for spec in fused.exported.signature.outputs)
        stack_onnx([dataclasses.replace(part, outputs=names)], folder / FILE, fusion=fusion)
        fidelity = judge(
            data,
            inputs,
            reference,
            onnx_session(folder / FILE),
            plan.evaluation,
            runs_in="onnx",
            progress=steps.progress(label),
        )
        (folder / FILE).unlink()
        (folder / f"{FILE}.data").unlink(missing_ok=True)
        (folder / "fidelity.json").write_bytes(canonical(fidelity))

    parts = {
        "member": [file_digest(part.path), member.inputs, member.classes, merge.by, known_classes(plan)],
        "inputs": inputs,
        "reference": reference.content,
        "metric": judged_by(plan.evaluation),
        "versions": versions("onnxruntime", "onnx-ir"),
    }
    stored = steps.stored("judge-member", 2, parts, build, label=label, total=reference.batches)
    return load_json(stored.folder / "fidelity.json", Fidelity).metric


def _parts(plan: Plan) -> list[OnnxPart]:
    from exporter.merge import OnnxPart

    return [
        OnnxPart(
            label=member.label,
            path=Path(member_plan(plan, member).source),
            takes=member.inputs,
            outputs=member.outputs,
        )
        for member in (plan.merge.models if plan.merge else ())
    ]
