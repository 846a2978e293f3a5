"""An ONNX file as a function of arrays, on onnxruntime's CPU provider with one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], dict[str, NDArray[np.generic]]]


def onnx_session(path: Path, *, simulated: bool = False) -> Session:
    """Opens an ONNX file.

    Args:
        path: the file, with its external data beside it.
        simulated: compute in float between the file's QuantizeLinear and DequantizeLinear nodes instead of in int8
            kernels, some of which saturate on CPUs that lack wide sums of products.

    Returns:
        A function from arrays by input name to arrays by output name. Opening and running raise onnxruntime's own
        errors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if simulated:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run
