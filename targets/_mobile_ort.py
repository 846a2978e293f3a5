"""Phones on onnxruntime, `format = "ort"` of the mobile target: the arm target's files, with what an app needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Tolerance
from exporter.quantize import int8_tolerance
from exporter.target_api import SHARED, ConvertRequest, Payload, VariantFile
from targets import _arm64, _onnxruntime
from targets._handover_ort import OPERATORS, app_guide

if TYPE_CHECKING:
    from exporter.target_api import Arrays


def convert(request: ConvertRequest, folder: Path) -> tuple[VariantFile, ...]:
    """The files, and the configuration of a build of onnxruntime that runs them and nothing else."""
    variants = _arm64.ort_files(request, folder)
    (folder / SHARED).mkdir()
    _arm64.write_required_operators([folder / one.main for one in variants], folder / SHARED / OPERATORS)
    return tuple(variants)


def payload(minimum: str) -> Payload:
    """The onnxruntime runner, and how an app opens the files."""
    return msgspec.structs.replace(_arm64.payload(minimum), guide=app_guide)


def tolerance(variant: VariantFile, model: Path, expected: Arrays) -> dict[str, Tolerance]:
    """One int8 step for quantized variants, rounding for float ones."""
    return int8_tolerance(model, expected) if variant.scheme is not None else _onnxruntime.float_tolerance(expected)
