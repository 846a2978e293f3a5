"""`[export] preprocess = "graph"`: files take bytes, and turn them into the values that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Preprocessing, TensorSpec
from exporter.errors import DataError, InputError
from exporter.target_api import ConvertRequest, Need, PixelInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.target_api import Arrays

    Examples = Callable[[], Iterator[tuple[Arrays, Arrays]]]

WHERE = "[export] preprocess"
RANKS = {"HW": 3, "HWC": 4, "CHW": 4}
BYTES = 255
OFF_GRID = 1e-3
"""How far from a whole number of 0..255 a pixel may come out; what rounding of floats leaves is far below."""
CHW_TO_HWC = (0, 2, 3, 1)


def with_pixels(
    target: str, need: Need, inputs: tuple[TensorSpec, ...], preprocessing: Mapping[str, Preprocessing]
) -> Need:
    """What a target needs, with inputs whose scale, mean and standard deviation become part of the files.

    Raises:
        InputError: no input has any, one is not what pixels become, or the target cannot do it.
    """
    if (need.program or need.calibration) and not need.pixels:
        raise InputError(
            f"target '{target}' cannot make preprocessing a part of its files",
            where=WHERE,
            hint=f'`[targets.{target}.export] preprocess = "outside"` leaves it out for this target',
        )
    pixels = _pixel_inputs(inputs, preprocessing)
    return msgspec.structs.replace(need, form=msgspec.structs.replace(need.form, pixels=pixels))


def _pixel_inputs(
    inputs: tuple[TensorSpec, ...], preprocessing: Mapping[str, Preprocessing]
) -> tuple[PixelInput, ...]:
    found = [(spec, preprocessing[spec.name]) for spec in inputs if spec.name in preprocessing]
    if not found:
        raise InputError(
            "no input has preprocessing that could become part of the files",
            where=WHERE,
            why="it is what [model.inputs.NAME.preprocess] says of scale, mean and std",
            hint="describe there how pixels become values, or remove `preprocess`",
        )
    for spec, steps in found:
        if spec.dtype != "float32" or len(spec.shape) != RANKS[steps.layout]:
            raise InputError(
                f"input '{spec.name}' does not take float32 images",
                where=f"{WHERE}; input {spec}",
                why=f"its preprocessing gives float32 with the axes of one sample {steps.layout}",
                hint="correct `layout` in its preprocessing, or remove `preprocess`",
            )
        _check_channels(spec, steps)
    return tuple(_pixel_input(spec.name, steps) for spec, steps in found)


def _check_channels(spec: TensorSpec, steps: Preprocessing) -> None:
    """Raises InputError where mean or std are given for other channels than the input has."""
    size = 1 if steps.layout == "HW" else spec.shape[steps.layout.index("C") + 1]
    for key, values in (("mean", steps.mean), ("std", steps.std)):
        if isinstance(size, int) and len(values) not in (0, 1, size):
            raise InputError(
                f"{key} of input '{spec.name}' has {len(values)} values, and the input {size} channels",
                where=f"model.inputs.{spec.name}.preprocess.{key}; input {spec}",
                hint="give one value, or one for each channel",
            )


def _pixel_input(name: str, steps: Preprocessing) -> PixelInput:
    """`(pixels * scale - mean) / std` as one product and one sum."""
    if not steps.scale:
        raise InputError(
            f"the scale of input '{name}' is zero", where=f"model.inputs.{name}.preprocess.scale", hint="as 1 / 255"
        )
    channels = max(len(steps.mean), len(steps.std), 1)
    mean = _spread(steps.mean or (0.0,), channels)
    std = _spread(steps.std or (1.0,), channels)
    return PixelInput(
        name=name,
        factor=tuple(steps.scale / one for one in (std if steps.std else std[:1])),
        offset=tuple(-one / other for one, other in zip(mean, std, strict=True)),
        layout=steps.layout,
    )


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def pixel_spec(spec: TensorSpec, one: PixelInput) -> TensorSpec:
    """The input as the files take it."""
    shape = tuple(spec.shape[axis] for axis in CHW_TO_HWC) if one.layout == "CHW" else spec.shape
    return msgspec.structs.replace(spec, dtype="uint8", shape=shape)


def pixel_layout(one: PixelInput) -> str:
    """Axes of one sample as the files take it."""
    return "HWC" if one.layout == "CHW" else one.layout


def outside(steps: Preprocessing) -> Preprocessing:
    """What is left to do before the files."""
    layout = "HWC" if steps.layout == "CHW" else steps.layout
    return msgspec.structs.replace(steps, scale=1.0, mean=(), std=(), layout=layout)


def to_pixels(values: NDArray[np.generic], one: PixelInput) -> NDArray[np.uint8]:
    """The bytes that became these values: data are read as the model takes them.

    Args:
        values: float32 [N, *layout].
        one: what the files do with bytes.

    Returns:
        uint8 [N, H, W, C], or [N, H, W].

    Raises:
        DataError: they were no bytes.
    """
    import numpy as np

    moved = values.transpose(CHW_TO_HWC) if one.layout == "CHW" else values
    factor, offset = np.asarray(one.factor), np.asarray(one.offset)
    exact = (moved.astype(np.float64) - offset) / factor
    whole = np.rint(exact)
    if not (np.abs(exact - whole) <= OFF_GRID).all() or whole.min() < 0 or whole.max() > BYTES:
        raise DataError(
            f"input '{one.name}' holds values that no 8-bit pixels become",
            where=f"{WHERE}; input '{one.name}'",
            why="the files take bytes, and calibration and evaluation data must be such images",
            hint="give uint8 arrays or image files; data that are prepared already need `preprocess` outside",
        )
    return np.ascontiguousarray(whole.astype(np.uint8))


@contextmanager
def onnx_with_pixels(request: ConvertRequest) -> Iterator[ConvertRequest]:
    """The request with ONNX files that take bytes, while the context lasts."""
    if not request.pixels:
        yield request
        return
    from exporter.onnx_export import write_with_pixels

    with TemporaryDirectory(prefix="edge-exporter-pixels-") as name:

        def written(source: Path, folder: str) -> Path:
            path = Path(name) / folder / source.name
            path.parent.mkdir()
            write_with_pixels(source, path, request.pixels)
            return path

        int8 = tuple(
            msgspec.structs.replace(one, path=written(one.path, f"int8-{place}"))
            for place, one in enumerate(request.int8)
        )
        yield msgspec.structs.replace(
            request,
            float_model=written(request.float_model, "float"),
            int8=int8,
            examples=None if request.examples is None else partial(_with_bytes, request.examples, request.pixels),
        )


def _with_bytes(examples: Examples, pixels: Sequence[PixelInput]) -> Iterator[tuple[Arrays, Arrays]]:
    """Examples for ONNX files that take bytes as the target's files do."""
    for given, formed in examples():
        yield {**given, **{one.name: formed[one.name] for one in pixels}}, formed
