"""Whether a float .tflite computes what the ONNX file of the same model does: converters make mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import StageError
from exporter.masks import masked_alike

if TYPE_CHECKING:
    from exporter.target_api import Arrays, Session


def check(
    reference: Session,
    converted: Session,
    examples: Iterable[tuple[Arrays, Arrays]],
    *,
    tolerance: float,
    where: str,
    hint: str,
) -> float:
    """Compares the float .tflite with the ONNX file of the same model.

    Args:
        reference: the ONNX file.
        converted: the .tflite.
        examples: real inputs, each as the ONNX file takes it and as the .tflite does.
        tolerance: largest difference accepted, relative to the largest value of an output.
        where: the stage that wrote the .tflite, for the message.
        hint: what to do about a difference.

    Returns:
        The largest difference relative to the largest value of an output.

    Raises:
        StageError: shapes or values differ.
    """

    def differs(name: str, why: str) -> StageError:
        text = "the converted file computes something else than the ONNX file"
        return StageError(text, where=f"output '{name}', after {where}", why=why, hint=hint)

    worst = 0.0
    for given, formed in examples:
        expected, found = reference(given), converted(formed)
        for name, values in expected.items():
            if found[name].shape != values.shape:
                raise differs(name, f"its shape is {list(found[name].shape)}, in ONNX {list(values.shape)}")
            finite = np.isfinite(values.astype(np.float64))
            exact, got = values[finite].astype(np.float64), found[name][finite].astype(np.float64)
            if not np.isfinite(got).all():
                raise differs(name, "it holds NaN or infinity where the ONNX file gives numbers")
            alike = masked_alike(exact, got)
            if not alike.all():  # A finite mask (-1e9) must not be the scale of what it leaves.
                exact, got = exact[~alike], got[~alike]
            largest = max(float(np.abs(exact).max(initial=0.0)), 1e-12)
            error = float(np.abs(got - exact).max(initial=0.0)) / largest
            if error > tolerance:
                raise differs(name, f"by {error:.3g} of its largest value, more than {tolerance:g}")
            worst = max(worst, error)
    return worst
