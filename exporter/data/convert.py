"""From raw arrays to the dtype and shape that the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.data.preprocess import apply_to_arrays
from exporter.data.values import Problem

if TYPE_CHECKING:
    from exporter.data.values import Array

_LOSSLESS_OR_USUAL = {
    ("int32", "int64"): "int32 values are widened to int64",
    ("float64", "float32"): "float64 values are rounded to float32",
}


def to_model(
    values: Array,
    spec: TensorSpec,
    preprocessing: Preprocessing | None,
    note: Callable[[str], None],
    *,
    whole: bool = False,
) -> Array:
    """Raw samples as the model takes them.

    Args:
        values: raw samples along axis 0.
        spec: what the model takes.
        preprocessing: applied to unsigned integers; floats that fit the spec are taken as they are.
        note: called with facts worth telling.
        whole: `values` is a whole model input, so that axis 0 is compared with the spec too.

    Returns:
        Native byte order, C-contiguous, in the dtype of `spec`.

    Raises:
        Problem: a dtype, rank or size that does not fit; its text continues "input 'NAME' ...".
    """
    if preprocessing is not None:
        values = _preprocessed(values, spec, preprocessing, note, whole=whole)
    values = _typed(values, spec, preprocessing, note)
    check_shape(values.shape, spec, whole=whole)
    return np.asarray(values, order="C")


def needs_preprocessing(dtype: np.dtype[np.generic]) -> bool:
    """Whether values of this dtype are raw pixels."""
    return dtype.kind == "u" and dtype.itemsize <= 2


def check_shape(shape: tuple[int, ...], spec: TensorSpec, *, whole: bool = False) -> None:
    """Compares rank and sizes with the spec; axis 0 only where the array is a whole input.

    Raises:
        Problem: they differ; the text says on which axis.
    """
    if len(shape) != len(spec.shape):
        raise Problem(
            f"has rank {len(shape)} with shape {_show(shape)}, the model takes rank {len(spec.shape)}: "
            f"{_show(spec.shape)}"
        )
    first = 0 if whole else 1
    wrong = [
        f"{shape[axis]} on axis {axis} (the model takes {spec.shape[axis]})"
        for axis in range(first, len(shape))
        if isinstance(spec.shape[axis], int) and shape[axis] != spec.shape[axis]
    ]
    if wrong:
        text = f"has size {', '.join(wrong)}; the model takes {_show(spec.shape)}"
        raise Problem(text, _shape_hint(shape[first:], spec.shape[first:], spec.name))
    if 0 in shape[first:]:
        raise Problem(f"has no values: its shape is {_show(shape)}")


def _shape_hint(got: tuple[int, ...], wanted: tuple[int | str, ...], name: str) -> str:
    if sorted(map(str, got)) == sorted(map(str, wanted)):
        return "the axes are in another order: transpose the arrays, or set `data_layout` in `preprocess`"
    return f"set `size` in [model.inputs.{name}] preprocess for images, or correct the shape in [model.inputs.{name}]"


def _preprocessed(
    values: Array,
    spec: TensorSpec,
    preprocessing: Preprocessing,
    note: Callable[[str], None],
    *,
    whole: bool,
) -> Array:
    if needs_preprocessing(values.dtype):
        return apply_to_arrays(values, preprocessing)
    if values.dtype.kind == "f":
        try:
            check_shape(values.shape, spec, whole=whole)
        except Problem as problem:
            raise Problem(f"{problem.text}; preprocessing applies to uint8 only, not to {values.dtype}") from problem
        note(f"input '{spec.name}': {values.dtype} arrays are taken as they are; preprocessing applies to uint8")
    return values


def _typed(
    values: Array, spec: TensorSpec, preprocessing: Preprocessing | None, note: Callable[[str], None]
) -> Array:
    have, want = values.dtype.newbyteorder("=").name, spec.dtype
    if have == want:
        return values.astype(want, copy=False)
    if text := _LOSSLESS_OR_USUAL.get((have, want)):
        note(f"input '{spec.name}': {text}")
        with np.errstate(over="ignore"):  # what overflows becomes inf, which is reported with its sample
            return values.astype(want)
    hint = f"convert the array with .astype('{want}') if that keeps its meaning"
    if have == "uint8" and want == "float32":
        hint = f"add [model.inputs.{spec.name}] preprocess = {{ scale = {1 / 255:.8f} }} with its data_layout"
    elif preprocessing is not None and have == "float32":
        hint = "preprocessing gives float32; remove it, or export the model with a float32 input"
    raise Problem(f"is {have}, the model takes {want}", hint)


def _show(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
