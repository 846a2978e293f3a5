"""What a variant must keep to be published."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from exporter.artifacts import Fidelity, GateResult, OutputFidelity
from exporter.plan_types import GatePlan

DEFAULT_SQNR_DB = 20.0
"""What an output keeps at least where nobody said how good it must be: noise of 1 % of the signal's power."""
FAR = 1e6
"""Shortfall of what no small change mends."""
ROUNDING = 1e-9
"""A loss of exactly the limit is allowed; dividing two floats must not turn it into a failure."""


@dataclass
class _Findings:
    """Rules, what failed, and how far each failure is from what its rule asks, as a share of that."""

    rules: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    short: float = 0.0

    def failed(self, text: str, short: float) -> None:
        self.failures.append(text)
        self.short += min(short, FAR)

    def at_least(self, name: str, output: str, least: float | None, value: float) -> None:
        if least is None:
            return
        self.rules.append(f"{name} of '{output}': at least {least:g}")
        if value < least:
            short = (least - value) / (abs(least) or 1.0)
            self.failed(f"{name} of output '{output}' is {value:.4g}; the gate asks for {least:g}", short)


def apply_gate(fidelity: Fidelity, gate: GatePlan, unjudged: Collection[str] = ()) -> Fidelity:
    """Judges a fidelity; without labels only divergence rules can act, and the result says so.

    Args:
        fidelity: as measured.
        gate: what the plan asks for.
        unjudged: outputs of which the metric tells nothing, such as the other heads of a stack: they keep the default
            SQNR at least, where no rule of the plan holds them.
    """
    found = _Findings()
    if fidelity.metric is not None:
        metric = fidelity.metric
        found.rules.append(f"{metric.name}: at most {gate.max_relative_loss:.2%} relative loss")
        if metric.relative_loss > gate.max_relative_loss + ROUNDING:
            found.failed(
                f"{metric.name} fell from {metric.reference:.4f} to {metric.value:.4f}, a relative loss of "
                f"{metric.relative_loss:.2%}; the gate allows {gate.max_relative_loss:.2%}",
                metric.relative_loss - gate.max_relative_loss,
            )
    for output in fidelity.outputs:
        _divergence_rules(output, gate, found)
        if output.broken:
            found.rules.append(f"'{output.output}': finite where the trained model is")
            found.failed(
                f"output '{output.output}' holds {output.broken} NaN or infinite values where the trained model's is "
                "finite; the ranges seen in calibration may not cover the model's activations",
                FAR,
            )
    _top1_rule(fidelity.outputs, gate, found)
    by_default = msgspec.structs.replace(gate, min_sqnr_db=DEFAULT_SQNR_DB)
    if fidelity.metric is not None and gate.min_sqnr_db is None and gate.min_cosine is None:
        for output in fidelity.outputs:
            if output.output in unjudged and output.floating:
                _divergence_rules(output, by_default, found)
    if not found.rules:
        for output in fidelity.outputs:
            if output.floating:
                _divergence_rules(output, by_default, found)
    if not found.rules:
        reason = "no labels, and no output of floats: reported, not gated"
        return msgspec.structs.replace(fidelity, gate=GateResult(passed=None, reason=reason))
    result = GateResult(
        passed=not found.failures,
        rules=tuple(found.rules),
        failures=tuple(found.failures),
        short=found.short,
        reason="" if fidelity.metric else "no labels: gated by divergence from the trained model",
    )
    return msgspec.structs.replace(fidelity, gate=result)


def _divergence_rules(output: OutputFidelity, gate: GatePlan, found: _Findings) -> None:
    # SQNR of None means equal bit for bit, which passes whatever the limit.
    sqnr = math.inf if output.sqnr_db is None else output.sqnr_db
    found.at_least("SQNR in dB", output.output, gate.min_sqnr_db, sqnr)
    found.at_least("cosine", output.output, gate.min_cosine, output.cosine)


def _top1_rule(outputs: Sequence[OutputFidelity], gate: GatePlan, found: _Findings) -> None:
    """Top-1 agreement of each output that has rows of scores; a rule that none of them has cannot be met."""
    least = gate.min_top1_agreement
    agreements = [(output.output, output.top1_agreement) for output in outputs if output.top1_agreement is not None]
    for name, agreement in agreements:
        found.at_least("top-1 agreement", name, least, agreement)
    if least is not None and not agreements:
        found.rules.append(f"top-1 agreement: at least {least:g}")
        found.failed("top-1 agreement is gated, but applies to no output: none has rows of float scores", FAR)
