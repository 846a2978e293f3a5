"""Does the ONNX file compute what torch computes, at more than one size?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import TensorSpec
from exporter.errors import StageError, shorten
from exporter.masks import masked_alike
from exporter.onnx_export.failures import specialised
from exporter.onnx_export.graph import read_signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], dict[str, NDArray[np.generic]]]

_TINY = 1e-12
ROUNDING_HINT = "raise `tolerance` in [export] if this is rounding (float16); else export with another opset"


def compare_with_torch(
    session: Session,
    path: Path,
    batches: Sequence[Arrays],
    tolerance: float,
    inputs: Sequence[TensorSpec] = (),
    hint: str = ROUNDING_HINT,
) -> float:
    """Runs the file in onnxruntime and compares every output with the reference.

    Args:
        session: the torch model as a function of arrays by name.
        path: the ONNX file.
        batches: inputs; the first has the shape that was exported with, the others vary its dynamic axes.
        tolerance: largest |onnx - torch| accepted, relative to the largest |torch| of the output.
        inputs: the signature's inputs, so that an error can name the axis.
        hint: what to do when the results differ.

    Returns:
        The largest relative error over all batches and outputs.

    Raises:
        StageError: onnxruntime cannot run the file, a dynamic axis was specialised, or the results differ.
    """
    runtime = _open(path)
    names = [value.name for value in runtime.get_outputs()]
    worst = 0.0
    for index, batch in enumerate(batches):
        expected = session(batch)
        if index:
            _check_sizes(path, batch, inputs)
        try:
            given = dict(zip(names, runtime.run(names, dict(batch)), strict=True))
        except Exception as error:
            if index:
                raise _specialised(batches[0], batch, inputs, shorten(error)) from error
            raise StageError(
                "onnxruntime cannot run the exported model",
                where=f"{path.name} with {_shapes(batch)}",
                why=shorten(error),
                hint="export with another opset: `[export] opset = 18`",
            ) from error
        for name, reference in expected.items():
            if given[name].shape != reference.shape:
                if index:
                    why = f"output '{name}' has the shape {given[name].shape}, in torch {reference.shape}"
                    raise _specialised(batches[0], batch, inputs, why)
                raise StageError(
                    "ONNX differs from torch: an output has another shape",
                    where=f"output '{name}' with {_shapes(batch)}",
                    why=f"{given[name].shape} in onnxruntime, {reference.shape} in torch",
                    hint="export the .onnx yourself and use it as `source`",
                )
            worst = max(worst, _compared(name, reference, given[name], tolerance, batch, hint))
    return worst


def _open(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(
            "onnxruntime cannot load the exported model",
            where=path.name,
            why=shorten(error),
            hint="give the model in float32 (`.float()`) where it computes in bfloat16, of which onnxruntime has few "
            "kernels; else export with another opset"
            if "NOT_IMPLEMENTED" in str(error) or _in_bfloat16(path)
            else "export with another opset: `[export] opset = 18`",
        ) from error


def _in_bfloat16(path: Path) -> bool:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    return onnx.TensorProto.BFLOAT16 in kinds


def _compared(
    name: str, reference: NDArray[Any], given: NDArray[Any], tolerance: float, batch: Arrays, hint: str
) -> float:
    import numpy as np

    expected, found = reference.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        raise StageError(
            "ONNX differs from torch: NaN or infinity in other places",
            where=f"output '{name}' with {_shapes(batch)}",
            why=f"{int((~np.isfinite(found)).sum())} such values in onnxruntime, {int((~finite).sum())} in torch",
            hint="look for a division or logarithm of 0 in the model",
        )
    if not finite.any():
        return 0.0
    # A finite mask (-1e9) must not be the scale of what it leaves.
    alike = masked_alike(expected, found)
    compared = finite & ~alike if (finite & ~alike).any() else finite
    error = float(np.abs(found[compared] - expected[compared]).max())
    scale = max(float(np.abs(expected[compared]).max()), _TINY)
    if error > tolerance * scale:
        raise StageError(
            f"ONNX differs from torch by {error / scale:.3g} of the output's largest value, more than {tolerance:g}",
            where=f"output '{name}' with {_shapes(batch)}",
            why=f"largest |onnx - torch| is {error:.3g}, largest |torch| is {scale:.3g}",
            hint=hint,
        )
    return error / scale


def _check_sizes(path: Path, batch: Arrays, inputs: Sequence[TensorSpec]) -> None:
    """Finds axes that the file fixes although the batch varies them, which runtimes report less clearly."""
    specs = {spec.name: spec for spec in inputs}
    fixed: dict[str, int] = {}
    for read in read_signature(path).inputs:
        for axis, (have, size) in enumerate(zip(read.shape, batch[read.name].shape, strict=False)):
            if isinstance(have, int) and have != size:
                named = specs[read.name].shape[axis] if read.name in specs else "batch" if axis == 0 else None
                fixed[named if isinstance(named, str) else f"{read.name}, axis {axis}"] = have
    if fixed:
        raise specialised(fixed, inputs)


def _specialised(first: Arrays, batch: Arrays, inputs: Sequence[TensorSpec], why: str) -> StageError:
    """The axes whose size differs from that of the first batch are the suspects."""
    specs = {spec.name: spec for spec in inputs}
    fixed: dict[str, int] = {}
    for name, array in batch.items():
        for axis, (before, now) in enumerate(zip(first[name].shape, array.shape, strict=True)):
            if before != now:
                named = specs[name].shape[axis] if name in specs else "batch" if axis == 0 else f"{name}, axis {axis}"
                fixed[str(named)] = before
    return specialised(fixed, inputs, why=f"with {_shapes(batch)}: {why}")


def _shapes(batch: Arrays) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
