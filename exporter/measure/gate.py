"""What a variant must keep to be published."""

from __future__ import annotations

import msgspec

from exporter.artifacts import Fidelity, GateResult, OutputFidelity
from exporter.plan_types import GatePlan


def apply_gate(fidelity: Fidelity, gate: GatePlan) -> Fidelity:
    """Judges a fidelity; without labels only the divergence rules can act, and the result says so."""
    rules: list[str] = []
    failures: list[str] = []
    if fidelity.metric is not None:
        metric = fidelity.metric
        rules.append(f"{metric.name}: at most {gate.max_relative_loss:.2%} relative loss")
        if metric.relative_loss > gate.max_relative_loss:
            failures.append(
                f"{metric.name} fell from {metric.reference:.4f} to {metric.value:.4f}, a relative loss of "
                f"{metric.relative_loss:.2%}; the gate allows {gate.max_relative_loss:.2%}"
            )
    for output in fidelity.outputs:
        _divergence_rules(output, gate, rules, failures)
    if not rules:
        reason = "no labels and no divergence rule in [gate]: reported, not gated"
        return msgspec.structs.replace(fidelity, gate=GateResult(passed=None, reason=reason))
    reason = "" if fidelity.metric else "no labels: gated by divergence from the trained model"
    result = GateResult(passed=not failures, rules=tuple(rules), failures=tuple(failures), reason=reason)
    return msgspec.structs.replace(fidelity, gate=result)


def _divergence_rules(output: OutputFidelity, gate: GatePlan, rules: list[str], failures: list[str]) -> None:
    # SQNR of None means equal bit for bit, which passes whatever the limit.
    measured = (
        ("SQNR in dB", gate.min_sqnr_db, float("inf") if output.sqnr_db is None else output.sqnr_db),
        ("cosine", gate.min_cosine, output.cosine),
        ("top-1 agreement", gate.min_top1_agreement, output.top1_agreement),
    )
    for name, least, value in measured:
        if least is None:
            continue
        if value is None:
            failures.append(f"{name} of output '{output.output}' is gated, but does not apply to its shape")
            continue
        rules.append(f"{name} of '{output.output}': at least {least:g}")
        if value < least:
            failures.append(f"{name} of output '{output.output}' is {value:.4g}; the gate asks for {least:g}")
