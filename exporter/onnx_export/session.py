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


def onnx_session(path: Path) -> Session:
    """Opens an ONNX file.

    Args:
        path: the file, with its external data beside it.

    Returns:
        A function from arrays by input name to arrays by output name. Opening and running raise onnxruntime's own
        errors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run
