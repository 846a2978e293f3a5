"""Headers of array files, read without trusting what they claim."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from exporter.data.values import Problem
from exporter.errors import DataError, shorten

MAX_ARRAY_BYTES = 64 << 30
MAX_SAFETENSORS_HEADER = 100_000_000
_KINDS = "fiub"


@dataclass(frozen=True, kw_only=True)
class NpyHeader:
    """What an .npy header says; `offset` is where the values start."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], *, available: int, where: str) -> NpyHeader:
    """Reads the header at the start of `stream`, which holds `available` bytes in all.

    Raises:
        DataError: not an .npy header, or it claims more than is there, or more than 64 GiB.
    """
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version[0]}.{version[1]} is not read")
    except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
        raise DataError("an array has no valid .npy header", where=where, why=shorten(error)) from error
    header = NpyHeader(shape=shape, dtype=dtype, fortran=fortran, offset=stream.tell())
    if any(size < 0 for size in shape):
        raise DataError(f"an array claims the impossible shape {list(shape)}", where=where)
    if dtype.hasobject:
        return header
    if header.nbytes > MAX_ARRAY_BYTES:
        raise DataError(
            f"an array claims {header.nbytes / (1 << 30):.1f} GiB, more than the 64 GiB that are read",
            where=where,
            hint="give large data through a Python callable that yields batches",
        )
    if header.offset + header.nbytes > available:
        raise DataError(
            f"an array is cut off: its header claims {header.nbytes} bytes of values, "
            f"{max(available - header.offset, 0)} are there",
            where=where,
        )
    return header


def unusable(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Problem | None:
    """Why an array of stacked samples can be no input at all, or None."""
    fault = unusable_dtype(dtype)
    if fault is None and not shape:
        return Problem("is a single number; samples are stacked along axis 0")
    return fault


def unusable_dtype(dtype: np.dtype[Any]) -> Problem | None:
    """Why values of this dtype can be no input at all, or None."""
    if dtype.hasobject:
        return Problem(
            "holds Python objects, which need pickling and are refused",
            "save an array of numbers: all samples of one shape, or one file per sample",
        )
    if dtype.kind not in _KINDS or dtype.itemsize > 8:
        return Problem(f"has dtype {dtype}, which is not one that models take")
    return None


def check_safetensors_header(path: Path) -> None:
    """Looks at the length of the header before the library allocates it.

    Raises:
        DataError: the header is over 100 MB, or longer than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
    if len(start) < 8:
        raise DataError("the file is too short for a safetensors header", where=str(path))
    (length,) = struct.unpack("<Q", start)
    if length > MAX_SAFETENSORS_HEADER:
        raise DataError(
            f"the safetensors header claims {length} bytes, more than the 100 MB that are read",
            where=str(path),
        )
    if 8 + length > size:
        raise DataError(f"the safetensors header claims {length} bytes, the file has {size}", where=str(path))
