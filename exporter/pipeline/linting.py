"""Which findings about an int8 file concern its users, and how the screen names them."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.artifacts import Lint

KINDS = {
    "few-data": "too few data",
    "never-seen": "tensors never seen",
    "masked": "tensors with masked values",
    "dead": "tensors that are always zero",
    "constant": "tensors that never change",
    "outliers": "ranges made by outliers",
    "unstable": "ranges that differ between halves of the calibration data",
    "saturation": "nodes that can saturate without VNNI",
    "bias-overflow": "nodes with biases too large for their weights' scales",
    "transposed-axis": "transposed convolutions with shared scales",
    "tied-weights": "shared weights quantized in part",
    "unfused": "int8 nodes that onnxruntime runs in float",
    "conversions": "conversions left",
}
"""What is counted, by kind of finding; what stayed float has lines of its own beside the result."""


def for_arm(requires: Sequence[str]) -> bool:
    """Whether a file is made for ARM, by the CPU features that it requires."""
    return any(need.startswith("asimd") for need in requires)


def lints_for(lints: Sequence[Lint], requires: Sequence[str]) -> tuple[Lint, ...]:
    """Findings that matter on the CPUs that a file is made for."""
    # ARM's kernels, too, sum products of bytes in 32 bits.
    exact = for_arm(requires) or any("vnni" in need for need in requires)
    return tuple(one for one in lints if not (exact and one.kind == "saturation"))


def lint_text(lints: Sequence[Lint]) -> str:
    """One line: how many of each kind, and the worst of it; empty when there is nothing to tell."""
    parts = []
    for kind, words in KINDS.items():
        found = [one for one in lints if one.kind == kind]
        if kind in ("few-data", "conversions"):
            parts += [one.text for one in found]
        elif found:
            parts.append(f"{len(found)} {words} (first: {found[0].subject})")
    return "; ".join(parts)
