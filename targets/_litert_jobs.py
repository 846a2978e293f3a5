"""What the conversion process is told, and what it answers when it fails."""

from __future__ import annotations

from typing import Literal

import msgspec

from exporter.artifacts import Value
from exporter.target_api import PixelInput
from targets._tflite_schemes import Left

Precision = Literal["float32", "float16", "int8", "int16x8", "dynamic-int8"]
STATIC: tuple[Precision, ...] = ("int8", "int16x8")
"""What needs ranges of activations, and with them calibration data."""
FAILED = "failed.json"
RUN = "run once as"
"""The stage in which a file is run, before a precision."""


class VariantJob(Value, frozen=True, kw_only=True):
    """One quantized file to write.

    Attributes:
        precision: of weights and activations; `int16x8` has int8 weights and int16 activations.
        file: where to write it.
        integer_io: quantized inputs and outputs stay integers at the model's edge.
        left: what stays in float.
    """

    precision: Precision
    file: str
    integer_io: bool = False
    left: Left = Left()


class Program(Value, frozen=True, kw_only=True):
    """A torch program, and how its file is to take and give tensors.

    Attributes:
        file: the .pt2 file.
        inputs: (name, dtype, shape) of each input, in the order of the program's arguments.
        outputs: names, in the order of the program's result.
        channels_last: inputs (by name) that become NHWC.
        pixels: inputs that become bytes.
    """

    file: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    channels_last: tuple[str, ...] = ()
    pixels: tuple[PixelInput, ...] = ()


class ConversionJob(Value, frozen=True, kw_only=True):
    """A conversion, or a part of it: what is there already is not made again.

    Attributes:
        float_file: the float .tflite.
        program: what it is made from; None where the file is there.
        ranges: what tensors reach on the calibration data, as `calibrate` writes it.
        calibration: npz with `<sample>/<input name>`, as the float file takes them, that `ranges` is made from; None
            where nothing needs ranges, or they are there.
        observer: how the ranges of samples become one range.
        variants: quantized files to write.
    """

    float_file: str
    program: Program | None = None
    ranges: str
    calibration: str | None = None
    observer: Literal["minmax", "moving-average"] = "minmax"
    variants: tuple[VariantJob, ...] = ()


class Failure(Value, frozen=True, kw_only=True):
    """What a library raised, and while doing what."""

    stage: str
    kind: str
    message: str


def read_job(content: bytes) -> ConversionJob:
    """A job from its JSON."""
    return msgspec.json.decode(content, type=ConversionJob)
