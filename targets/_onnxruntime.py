"""Functions that targets running onnxruntime share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import RuntimeNeed, Tolerance
from exporter.target_api import Payload
from targets import runner_files

if TYPE_CHECKING:
    from exporter.target_api import Arrays

RUNTIME = Path(__file__).parent / "runner" / "onnxruntime_runtime.py"
FLOAT_RELATIVE = 1e-4
"""fp32 on another CPU differs by rounding and by the order of sums: far below this share of the largest value."""


def payload(minimum: str) -> Payload:
    """The runner for onnxruntime and the requirements that bring it."""
    return Payload(
        files=runner_files(RUNTIME),
        runtime=RuntimeNeed(
            name="onnxruntime", minimum=minimum, requirements=(f"onnxruntime>={minimum},<2", "numpy>=1.21,<3")
        ),
    )


def float_tolerance(expected: Arrays) -> dict[str, Tolerance]:
    """Self-test tolerance of float outputs: a small share of the largest value; integers must be equal."""
    import numpy as np

    tolerances = {}
    for name, values in expected.items():
        exact = not np.issubdtype(values.dtype, np.floating)
        finite = np.abs(values[np.isfinite(values)]) if not exact else np.zeros(0)
        largest = float(finite.max()) if finite.size else 0.0
        tolerances[name] = Tolerance(atol=0.0 if exact else FLOAT_RELATIVE * max(largest, 1e-6), rtol=0.0)
    return tolerances
