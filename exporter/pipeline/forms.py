"""Tensors as a target's files take and give them, where that is not as the model does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Preprocessing, Signature, TensorSpec
from exporter.errors import DataError
from exporter.pipeline.pixels import outside, pixel_layout, pixel_spec, to_pixels
from exporter.target_api import TensorForm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

NCHW_TO_NHWC = (0, 2, 3, 1)


def form_of_data(form: TensorForm, preprocessing: Mapping[str, Preprocessing]) -> TensorForm:
    """The form of a target's files, given how raw data become inputs: those that are HWC already are not moved."""
    last = tuple(name for name, steps in preprocessing.items() if steps.layout == "HWC")
    return msgspec.structs.replace(form, already_last=last) if form.channels_last else form


def formed_signature(signature: Signature, form: TensorForm) -> Signature:
    """The signature of the files: other element types, and other layouts of inputs and of their preprocessing."""
    moved = {spec.name for spec in signature.inputs if form.moves(spec)}
    preprocessing = {
        name: msgspec.structs.replace(steps, layout="HWC") if name in moved and steps.layout == "CHW" else steps
        for name, steps in signature.preprocessing.items()
    }
    preprocessing |= {one.name: outside(preprocessing[one.name]) for one in form.pixels}
    return msgspec.structs.replace(
        signature,
        inputs=tuple(_spec(spec, form, moves=form.moves(spec)) for spec in signature.inputs),
        outputs=tuple(_spec(spec, form, moves=False) for spec in signature.outputs),
        preprocessing=preprocessing,
    )


def formed_inputs(arrays: Arrays, inputs: Iterable[TensorSpec], form: TensorForm) -> dict[str, NDArray[np.generic]]:
    """Inputs of the model as the files take them.

    Args:
        arrays: by input name, as the model takes them.
        inputs: of the model.
        form: of the files.

    Raises:
        DataError: a value does not fit the element type of the files.
    """
    import numpy as np

    formed: dict[str, NDArray[np.generic]] = {}
    for spec in inputs:
        values = arrays[spec.name]
        if (pixel := form.pixel(spec.name)) is not None:
            formed[spec.name] = to_pixels(values, pixel)
            continue
        if spec.dtype in form.types:
            values = _narrowed(values, spec, "input", form)
        formed[spec.name] = np.ascontiguousarray(values.transpose(NCHW_TO_NHWC)) if form.moves(spec) else values
    return formed


def check_outputs(batches: Iterable[Arrays], outputs: Iterable[TensorSpec], form: TensorForm) -> None:
    """Checks that what the model gives can be what the files give.

    Args:
        batches: outputs of the model, by name.
        outputs: of the model.
        form: of the files.

    Raises:
        DataError: a value does not fit the element type of the files.
    """
    narrowed = [spec for spec in outputs if spec.dtype in form.types]
    for arrays in batches if narrowed else ():
        for spec in narrowed:
            _narrowed(arrays[spec.name], spec, "output", form)


def _narrowed(values: NDArray[np.generic], spec: TensorSpec, side: str, form: TensorForm) -> NDArray[np.generic]:
    import numpy as np

    wanted = form.types[spec.dtype]
    narrow: NDArray[np.generic] = values.astype(wanted)
    if np.array_equal(narrow, values):
        return narrow
    verb = "take" if side == "input" else "give"
    raise DataError(
        f"{side} '{spec.name}' holds values that do not fit {wanted}",
        where=f"{side} {spec}",
        why=f"the target's files {verb} {wanted} where the model {verb}s {spec.dtype}",
        hint="use smaller values, such as indices below two thousand million"
        if side == "input"
        else "give such an output in floating point, or leave it out of the model",
    )


def form_notes(signature: Signature, form: TensorForm) -> tuple[str, ...]:
    """What differs from the model, in words, one line for each tensor."""
    sides = [("input", spec, form.moves(spec)) for spec in signature.inputs]
    sides += [("output", spec, False) for spec in signature.outputs]
    notes = []
    for side, spec, moves in sides:
        if spec.dtype in form.types:
            notes.append(
                f"{side} '{spec.name}' is {form.types[spec.dtype]} in the files and {spec.dtype} in the model"
            )
        if moves:
            notes.append(f"{side} '{spec.name}' is NHWC in the files and NCHW in the model")
        if side == "input" and (pixel := form.pixel(spec.name)) is not None:
            axes = "N" + pixel_layout(pixel)
            notes.append(f"input '{spec.name}' takes bytes, {axes}; scale, mean and std are applied in the files")
    return tuple(notes)


def _spec(spec: TensorSpec, form: TensorForm, *, moves: bool) -> TensorSpec:
    if (pixel := form.pixel(spec.name)) is not None:
        return pixel_spec(spec, pixel)
    shape = tuple(spec.shape[axis] for axis in NCHW_TO_NHWC) if moves else spec.shape
    return msgspec.structs.replace(spec, dtype=form.types.get(spec.dtype, spec.dtype), shape=shape)
