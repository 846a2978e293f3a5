"""The captured torch program as a file, for targets that convert from torch rather than from ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exporter.artifacts import TensorSpec
from exporter.onnx_export.export import capture, quiet
from exporter.onnx_export.prepare import Prepared, tensors_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def save_program(
    prepared: Prepared,
    *,
    example: Mapping[str, NDArray[np.generic]],
    inputs: tuple[TensorSpec, ...],
    path: Path,
) -> None:
    """Captures a module with torch.export and saves the program.

    Args:
        prepared: the module.
        example: one array per input.
        inputs: the signature's inputs, whose shapes are all fixed.
        path: the .pt2 file to write. Its program takes tensors in the order of `inputs`, as positional arguments,
            and gives a tuple in the order in which the module's outputs are flattened.

    Raises:
        StageError: torch cannot capture the module.
    """
    with quiet():
        program, _ = capture(prepared, tensors_of(prepared, example), inputs)
        torch.export.save(program, path)
