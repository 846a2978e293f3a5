"""What the conversion process is told, and what it answers when it fails."""

from __future__ import annotations

from typing import Literal

import msgspec

from exporter.artifacts import Value

Precision = Literal["float32", "float16", "int8", "int16x8", "dynamic-int8"]
STATIC: tuple[Precision, ...] = ("int8", "int16x8")
"""What needs ranges of activations, and with them calibration data."""
FAILED = "failed.json"


class VariantJob(Value, frozen=True, kw_only=True):
    """One file to write.

    Attributes:
        precision: of weights and activations; `int16x8` has int8 weights and int16 activations.
        file: where to write it.
        integer_io: quantized inputs and outputs stay integers at the model's edge.
        exclude: operator types (CONV_2D, ...) that stay float.
    """

    precision: Precision
    file: str
    integer_io: bool = False
    exclude: tuple[str, ...] = ()


class ConversionJob(Value, frozen=True, kw_only=True):
    """A whole conversion.

    Attributes:
        program: the .pt2 file.
        inputs: (name, dtype, shape) of each input, in the order of the program's arguments.
        outputs: names, in the order of the program's result.
        channels_last: inputs (by name) that become NHWC.
        calibration: npz with `<sample>/<input name>`, as the float file takes them; None where nothing needs it.
        observer: how the ranges of samples become one range.
        variants: files to write; the float32 one comes first.
    """

    program: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    channels_last: tuple[str, ...] = ()
    calibration: str | None = None
    observer: Literal["minmax", "moving-average"] = "minmax"
    variants: tuple[VariantJob, ...]


class Failure(Value, frozen=True, kw_only=True):
    """What a library raised, and while doing what."""

    stage: str
    kind: str
    message: str


def read_job(content: bytes) -> ConversionJob:
    """A job from its JSON."""
    return msgspec.json.decode(content, type=ConversionJob)
