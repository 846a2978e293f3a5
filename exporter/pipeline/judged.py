"""Int8 models with what judging them found: which of two is nearer to the gate, and what a change brought."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from exporter.artifacts import Fidelity, QuantScheme, Repair
from exporter.pipeline.results import Int8Model

GAIN_DB = 0.1
"""SQNR that a change must bring to stay where it does not better the metric."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """An int8 model and its gated fidelity."""

    model: Int8Model
    fidelity: Fidelity

    @property
    def passed(self) -> bool:
        """Whether the gate was met by a model of which something is int8."""
        return not self.fidelity.gate.failures and self.model.file.coverage.quantized > 0

    @property
    def sqnr_db(self) -> float | None:
        """Of the worst output; None when all are equal bit for bit."""
        found = [output.sqnr_db for output in self.fidelity.outputs if output.sqnr_db is not None]
        return min(found, default=None)


@dataclass(frozen=True)
class Change:
    """A change that stayed: its place among the repairs, what it does to a scheme, and whether it costs latency."""

    index: int
    apply: Callable[[QuantScheme], QuantScheme]
    slower: bool


def products_only(ops: Sequence[str]) -> str:
    """The change that leaves int8 to these operators, in words."""
    return f"only {', '.join(ops)} in int8"


def products_among(known: Sequence[str], model: Int8Model) -> tuple[str, ...]:
    """The operators of a static model that multiply by weights; none where nothing else is int8, or a list was given.

    Args:
        known: operators that do.
        model: a static one.
    """
    done = model.file.coverage.quantized_ops
    if model.file.scheme.ops or not set(done) - set(known):
        return ()
    return tuple(op for op in known if op in done)


def change_of(
    text: str, before: Judged, after: Judged, *, kept: bool, reason: Literal["gate", "speed"] = "gate"
) -> Repair:
    """A change in words, and what it brought."""
    metrics = before.fidelity.metric, after.fidelity.metric
    return Repair(
        change=text,
        kept=kept,
        sqnr_db=(before.sqnr_db, after.sqnr_db),
        metric=(metrics[0].value, metrics[1].value) if metrics[0] and metrics[1] else None,
        quantized=(before.model.file.coverage.quantized, after.model.file.coverage.quantized),
        reason=reason,
    )


def changed(scheme: QuantScheme, values: Mapping[str, object]) -> QuantScheme:
    """A scheme with other values; observers and names of nodes are added to those that are there."""
    added: dict[str, object] = {}
    for key, value in values.items():
        there = getattr(scheme, key)
        if isinstance(value, dict):
            added[key] = {**there, **value}
        elif key == "per_tensor" and isinstance(value, tuple):
            added[key] = (*there, *(name for name in value if name not in there))
        else:
            added[key] = value
    return msgspec.structs.replace(scheme, **added)


def noise_db(one: Judged) -> float:
    """SQNR of the worst output in dB, endless where all are equal bit for bit."""
    return float("inf") if one.sqnr_db is None else one.sqnr_db


def better(one: Judged, other: Judged) -> bool:
    """Whether a model is nearer to the gate: it passes, falls less short of it, or, where both do alike, is better.

    One that has nothing in int8 is exact and of no use.
    """
    if one.passed != other.passed:
        return one.passed
    filled = [side.model.file.coverage.quantized > 0 for side in (one, other)]
    if filled[0] != filled[1]:
        return filled[0]
    short = [side.fidelity.gate.short for side in (one, other)]
    if short[0] != short[1]:
        return short[0] < short[1]
    losses = [_loss(side.fidelity) for side in (one, other)]
    return losses[0] < losses[1] or (losses[0] == losses[1] and noise_db(one) > noise_db(other) + GAIN_DB)


def _loss(fidelity: Fidelity) -> tuple[int, float]:
    """Values that are no numbers count before any metric, which may pass over them."""
    broken = sum(output.broken for output in fidelity.outputs)
    return broken, fidelity.metric.relative_loss if fidelity.metric else 0.0
