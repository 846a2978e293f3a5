"""Functions that targets running onnxruntime share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import RuntimeNeed, Tolerance
from exporter.target_api import Payload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.target_api import Arrays, Session

RUNNER = Path(__file__).parent / "runner"
FLOAT_RELATIVE = 1e-4
"""fp32 on another CPU differs by rounding and by the order of sums: far below this share of the largest value."""


def payload(minimum: str) -> Payload:
    """The runner for onnxruntime and the requirements that bring it."""
    return Payload(
        files={
            "run.py": RUNNER / "run.py",
            "bench.py": RUNNER / "bench.py",
            "runtime.py": RUNNER / "onnxruntime_runtime.py",
        },
        runtime=RuntimeNeed(
            name="onnxruntime", minimum=minimum, requirements=(f"onnxruntime>={minimum},<2", "numpy>=1.21,<3")
        ),
    )


def open_session(model: Path) -> Session:
    """Opens an ONNX file on the CPU with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


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
