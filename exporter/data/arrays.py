"""Columns of samples stacked in one array: members of .npz, .npy files, tensors of .safetensors."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from exporter.data.headers import (
    NpyHeader,
    check_safetensors_header,
    read_npy_header,
    unusable,
)
from exporter.data.values import Column, Problem
from exporter.errors import DataError, shorten

if TYPE_CHECKING:
    from exporter.data.values import Array, Reader

BOMB_RATIO = 1000
BOMB_BYTES = 1 << 30
_SAFETENSORS_DTYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip

Found = dict[str, Column | Problem]


@dataclass(frozen=True, kw_only=True)
class StackedColumn:
    """Samples along axis 0 of one array; `start` begins a pass."""

    count: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: Callable[[], Iterator[Reader]]
    single: bool = False

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Starts a pass; see `Column`."""
        yield from self.start()


def npz_columns(path: Path) -> Found:
    """The arrays of an .npz file, in its order.

    Raises:
        DataError: not a zip file, a member that is no array, or one that claims an absurd size.
    """
    found: Found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                where = f"{path}, array '{name}'"
                _refuse_bomb(info, path.stat().st_size, where)
                if name == info.filename or name in found:
                    raise DataError("the .npz file has a member that is no array of its own", where=where)
                with archive.open(info) as stream:
                    header = read_npy_header(stream, available=info.file_size, where=where)
                found[name] = unusable(header.dtype, header.shape) or _npz_column(path, info.filename, header)
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError("the .npz file cannot be read", where=str(path), why=shorten(error)) from error
    return found


def _refuse_bomb(info: zipfile.ZipInfo, file_size: int, where: str) -> None:
    if info.compress_size > file_size or (
        info.compress_type == zipfile.ZIP_STORED and info.file_size > info.compress_size
    ):
        raise DataError(f"a member claims {info.file_size} bytes, more than the file holds", where=where)
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise DataError(
            f"a member of {info.compress_size} bytes claims to unpack to {info.file_size}; it is refused",
            where=where,
            hint="if the data are real, save them with numpy.savez, uncompressed",
        )


def _npz_column(path: Path, member: str, header: NpyHeader) -> StackedColumn:
    count, *rest = header.shape

    def start() -> Iterator[Reader]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            stream.read(header.offset)
            yield _stream_reader(stream, header)

    return StackedColumn(count=count, dtype=header.dtype, shape=tuple(rest), start=start)


def _stream_reader(stream: IO[bytes], header: NpyHeader) -> Reader:
    """Reads C-ordered values as they are unpacked: memory holds one chunk, compressed or not."""
    count, *rest = header.shape
    row_bytes = header.nbytes // count if count else 0
    left = count
    fortran: list[Array] = []

    def take(rows: int) -> Array:
        nonlocal left
        done = count - left
        left -= rows
        if header.fortran and rest:
            if not fortran:
                values = np.frombuffer(_read(stream, header.nbytes, last=True), dtype=header.dtype)
                fortran.append(values.reshape(header.shape, order="F"))
            return np.ascontiguousarray(fortran[0][done : done + rows])
        raw = _read(stream, rows * row_bytes, last=left == 0)
        return np.frombuffer(raw, dtype=header.dtype).reshape((rows, *rest))

    return take


def _read(stream: IO[bytes], size: int, *, last: bool) -> bytearray:
    values = bytearray(size)
    view = memoryview(values)
    done = 0
    try:
        while done < size:
            piece = stream.read(size - done)
            if not piece:
                raise Problem(f"is cut off {size - done} bytes early")
            view[done : done + len(piece)] = piece
            done += len(piece)
        if last:
            stream.read()  # zipfile compares the checksum only at the end of a member
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise Problem(f"is corrupt: {shorten(error)}") from error
    return values


def npy_header(path: Path) -> NpyHeader:
    """The header of an .npy file.

    Raises:
        DataError: see `read_npy_header`.
    """
    with path.open("rb") as stream:
        return read_npy_header(stream, available=path.stat().st_size, where=str(path))


def npy_column(path: Path) -> Column | Problem:
    """A memory-mapped .npy file whose axis 0 counts samples."""
    header = npy_header(path)
    if fault := unusable(header.dtype, header.shape):
        return fault
    count, *rest = header.shape

    def start() -> Iterator[Reader]:
        values: Array
        if header.nbytes:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            values = np.empty(header.shape, header.dtype)
        yield _slices(values)

    return StackedColumn(count=count, dtype=header.dtype, shape=tuple(rest), start=start)


def _slices(values: Any) -> Reader:
    done = 0

    def take(rows: int) -> Array:
        nonlocal done
        done += rows
        return np.array(values[done - rows : done], order="C")

    return take


def safetensors_columns(path: Path) -> Found:
    """The tensors of a .safetensors file, memory-mapped by the library.

    Raises:
        DataError: a header that is too long, or a file that the library refuses.
    """
    from safetensors import SafetensorError, safe_open

    check_safetensors_header(path)
    found: Found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(name)
                kind = view.get_dtype()
                shape = tuple(view.get_shape())
                if kind not in _SAFETENSORS_DTYPES:
                    hint = "save it as float32" if kind == "BF16" else None
                    label = "bfloat16" if kind == "BF16" else kind
                    found[name] = Problem(f"has dtype {label}, which numpy cannot hold", hint)
                    continue
                dtype = np.dtype(_SAFETENSORS_DTYPES[kind])
                found[name] = unusable(dtype, shape) or _safetensors_column(path, name, dtype, shape)
    except (SafetensorError, OSError) as error:
        raise DataError("the .safetensors file cannot be read", where=str(path), why=shorten(error)) from error
    return found


def _safetensors_column(path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> StackedColumn:
    from safetensors import safe_open

    def start() -> Iterator[Reader]:
        if 0 in shape:
            yield _slices(np.empty(shape, dtype))
            return
        with safe_open(path, framework="numpy") as file:
            yield _slices(file.get_slice(name))

    return StackedColumn(count=shape[0], dtype=dtype, shape=shape[1:], start=start)
