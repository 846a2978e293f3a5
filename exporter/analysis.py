"""What `analyze` finds: one row a node, with its noise, its range and its share of the time."""

from __future__ import annotations

from typing import Literal

from exporter.artifacts import Lint, NodeDamage, NodeLatency, NoiseCauses, QuantScheme, Value

DataSource = Literal["evaluation", "calibration", "samples of the bundle"]


class AnalysedNode(Value, frozen=True, kw_only=True):
    """One node of an int8 file.

    Attributes:
        node: its name.
        op: its operator.
        module: dotted path of the torch module that it came from, where the file keeps it.
        bits: width of its result's integers; None for a result in float.
        weight_bits: width of its weights' integers, in files of targets that tell it.
        range: lowest and highest value that its quantized result holds.
        scale: what one step of its result's integers stands for, in files of targets that tell it.
        zero_point: the integer that stands for zero, likewise.
        sqnr_db: SQNR of its own quantization, on the float model's activations; None in float, or without noise.
        channel_db: mean of its channels' SQNR.
        accumulated_db: SQNR of its result in the whole int8 model.
        causes: where its own noise comes from.
        share: of the time; None where another node's kernel does its work too.
        median_ns: time in it.
        runs_as: operators that onnxruntime ran for it.
        reason: why it stayed float.
    """

    node: str
    op: str
    module: str | None = None
    bits: int | None = None
    weight_bits: int | None = None
    range: tuple[float, float] | None = None
    scale: float | None = None
    zero_point: int | None = None
    sqnr_db: float | None = None
    channel_db: float | None = None
    accumulated_db: float | None = None
    causes: NoiseCauses | None = None
    share: float | None = None
    median_ns: int | None = None
    runs_as: tuple[str, ...] = ()
    reason: str | None = None


class Analysis(Value, frozen=True, kw_only=True):
    """An int8 file, looked at node by node.

    Attributes:
        source: the plan or bundle.
        target: what it was made for.
        variant: its name there.
        precision: of weights and activations.
        scheme: how it was quantized, where a scheme says it.
        data: where the inputs came from.
        samples: how many of them noise was measured on.
        nodes: the worst first, then those in float, by their time.
        added: time in what onnxruntime added between nodes, by operator; empty without latency.
        runtime: that ran for latency, with version and threads; None where it was not measured, and `why` says why.
        why: latency was not measured.
        lints: findings; None where nothing was looked for.
    """

    source: str
    target: str
    variant: str
    precision: str
    scheme: QuantScheme | None
    data: DataSource
    samples: int
    nodes: tuple[AnalysedNode, ...]
    added: dict[str, float]
    runtime: str | None
    why: str | None
    lints: tuple[Lint, ...] | None


class Places(Value, frozen=True, kw_only=True):
    """A node of the int8 file as the graph has it: name, operator, names of its results."""

    node: str
    op: str
    outputs: tuple[str, ...]


def rows_of(
    places: tuple[Places, ...],
    damages: tuple[NodeDamage, ...],
    latencies: tuple[NodeLatency, ...],
    modules: dict[str, str],
    reasons: dict[str, str],
) -> tuple[AnalysedNode, ...]:
    """Joins what is known of each node, the worst first.

    Args:
        places: nodes of the int8 file, in its order.
        damages: noise of those that are int8.
        latencies: time of what ran.
        modules: module paths by the names of nodes and of tensors.
        reasons: why nodes stayed float.
    """
    by_name = {damage.node: damage for damage in damages}
    spent: dict[str, list[NodeLatency]] = {}
    for latency in latencies:
        spent.setdefault(latency.node or "", []).append(latency)
    rows = []
    for place in places:
        damage, ran, reason = by_name.get(place.node), spent.get(place.node, []), reasons.get(place.node)
        if damage is None and not ran and reason is None:
            continue  # Arithmetic of shapes, folded away.
        named = [modules[name] for name in (place.node, *place.outputs) if name in modules]
        rows.append(
            AnalysedNode(
                node=place.node,
                op=place.op,
                module=named[0] if named else None,
                bits=damage.bits if damage and reason is None else None,
                range=damage.range if damage else None,
                sqnr_db=damage.sqnr_db if damage else None,
                channel_db=damage.channel_db if damage else None,
                accumulated_db=damage.accumulated_db if damage else None,
                causes=damage.causes if damage else None,
                share=sum(one.share for one in ran) if ran else None,
                median_ns=sum(one.median_ns for one in ran) if ran else None,
                runs_as=tuple(dict.fromkeys(one.op for one in ran)),
                reason=reason,
            )
        )
    scores = {damage.node: damage.score for damage in damages}
    rows.sort(key=lambda row: (row.bits is None, scores.get(row.node, 0.0), -(row.share or 0.0)))
    return tuple(rows)
