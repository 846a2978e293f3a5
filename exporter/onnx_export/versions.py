"""Which ONNX versions a runtime knows, and which of them torch can export."""

from __future__ import annotations

import re

from exporter.errors import InputError

# onnxruntime minor version -> (newest ONNX opset, newest IR version) that it accepts. From its compatibility table
# (1.14, 1.17, 1.18) and, for the others, from what the released packages load and refuse.
_RUNTIMES = {
    14: (18, 8),
    15: (19, 9),
    16: (19, 9),
    17: (20, 9),
    18: (21, 10),
    19: (21, 10),
    20: (21, 10),
    21: (22, 10),
    22: (22, 10),
    23: (23, 11),
    24: (25, 13),
    25: (26, 13),
}

PREFERRED_OPSET = 20
"""torch's own default."""
OLDEST_OPSET = 18
"""The exporter's operator library is written for this one; older opsets would need a lossy conversion."""


def opset_for_runtime(minimum: str) -> tuple[int, int]:
    """Newest ONNX opset and IR version that an onnxruntime version accepts.

    Args:
        minimum: version such as `1.17` or `1.17.3`. Versions newer than the table get its last row, which they
            accept too.

    Raises:
        InputError: the version is older than 1.14 or no version.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\w+)*", minimum.strip())
    if match is None:
        raise InputError(
            f"'{minimum}' is not a version of onnxruntime", where="min_runtime", hint="write it as in `1.17`"
        )
    major, minor = int(match[1]), int(match[2])
    oldest = min(_RUNTIMES)
    if (major, minor) < (1, oldest):
        raise InputError(
            f"onnxruntime {minimum} is too old",
            where="min_runtime",
            why=f"models are exported with ONNX opset {OLDEST_OPSET} or newer, which came with 1.{oldest}",
            hint=f"raise min_runtime to 1.{oldest} or newer",
        )
    return _RUNTIMES[min(minor, max(_RUNTIMES))] if major == 1 else _RUNTIMES[max(_RUNTIMES)]


def export_opset(max_opset: int) -> int:
    """The opset to export with, given the newest that is allowed: torch's default or the next lower one.

    Raises:
        InputError: none that torch can export is allowed.
    """
    if max_opset < OLDEST_OPSET:
        raise InputError(
            f"ONNX opset {max_opset} is older than what torch exports",
            where="[export] opset",
            why=f"the oldest is {OLDEST_OPSET}",
            hint="raise `opset` in [export], or `min_runtime` in the target's table",
        )
    return min(max_opset, PREFERRED_OPSET)
