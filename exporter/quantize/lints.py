"""What may cost an int8 model accuracy or speed, each with what was done about it or can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from exporter.artifacts import Coverage, Lint, QuantScheme
from exporter.quantize.fusion import fusion_lints
from exporter.quantize.lints_graph import graph_lints
from exporter.quantize.lints_ranges import few_data, range_lints
from exporter.quantize.prepare import PREPARED
from exporter.quantize.states import load_states
from exporter.quantize.static import STATES

if TYPE_CHECKING:
    from collections.abc import Iterable


def lint(
    calibrated: Path, int8_model: Path, *, scheme: QuantScheme, coverage: Coverage, samples: int, arm: bool = False
) -> tuple[Lint, ...]:
    """Looks an int8 model over.

    Args:
        calibrated: what `calibrate` wrote.
        int8_model: the QDQ file that was made from it.
        scheme: how it was made.
        coverage: which of its nodes are int8.
        samples: calibration samples.
        arm: the file is made for ARM, which may be another machine than this one.

    Returns:
        Findings, by kind in the order of `LintKind`, within a kind the worst first.
    """
    return tuple(_lints(calibrated, int8_model, scheme, coverage, samples, arm))


def _lints(
    calibrated: Path, int8_model: Path, scheme: QuantScheme, coverage: Coverage, samples: int, arm: bool
) -> Iterator[Lint]:
    states = load_states(calibrated / STATES)
    float_model, quantized = onnx.load(calibrated / PREPARED), onnx.load(int8_model)
    yield from few_data(states, scheme.observer, samples)
    yield from range_lints(states, scheme)
    yield from graph_lints(float_model, quantized, scheme, coverage)
    told = {one.node for one in coverage.skipped}  # With a reason of their own.
    unfused = fusion_lints(int8_model, quantized, signed=arm and scheme.activations == "int8")
    yield from (one for one in unfused if one.subject not in told)
    yield from _left_in_float(coverage)


def _left_in_float(coverage: Coverage) -> Iterable[Lint]:
    """One finding for each operator and reason."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for skipped in coverage.skipped:
        kinds.setdefault((skipped.op, skipped.reason), []).append(skipped.node)
    for (op, reason), nodes in sorted(kinds.items(), key=lambda item: -len(item[1])):
        yield Lint(
            kind="float-ops",
            subject=op,
            text=f"{len(nodes)} in float, the first is {nodes[0]}",
            action=reason,
        )
