"""External data of an ONNX file: which files its tensors lie in, without importing onnx.

Only the few protobuf fields that lead to tensors are followed. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from exporter.errors import ModelError

# message -> field number -> message that lies there
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_MAX_DEPTH = 64


@dataclass(frozen=True, kw_only=True)
class ExternalTensor:
    """Where a tensor's bytes lie: a path relative to the model, an offset and, if written down, a length."""

    name: str
    location: str
    offset: int
    length: int | None


def external_tensors(path: Path) -> tuple[ExternalTensor, ...]:
    """Tensors of an ONNX file that are stored in other files.

    Raises:
        ModelError: the file is not an ONNX model.
    """
    try:
        with path.open("rb") as stream:
            # Not closed by hand: slices that a traceback keeps alive would make closing it fail.
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return tuple(_tensors(memoryview(data), "model", 0))
    except (ValueError, IndexError) as error:
        raise ModelError(
            "the file is not an ONNX model, or is damaged",
            where=str(path),
            why="it is empty" if path.stat().st_size == 0 else str(error),
            hint="export or download it again",
        ) from error


def checked_external_files(path: Path) -> tuple[Path, ...]:
    """External data files of an ONNX model, each once, after checking that they are safe and complete.

    Raises:
        ModelError: a path that is absolute or leads out of the model's folder, a missing file, or one that is
            shorter than a tensor that lies in it.
    """
    files: dict[Path, None] = {}
    for tensor in external_tensors(path):
        file = _inside(path, tensor)
        needed = tensor.offset + (tensor.length or 0)
        size = file.stat().st_size
        if tensor.offset < 0 or (tensor.length or 0) < 0 or size < needed:
            raise ModelError(
                "the model's external data file is too short",
                where=f"{file}, tensor '{tensor.name}'",
                why=f"the tensor ends at byte {needed}, the file has {size}",
                hint="copy the file again",
            )
        files[file] = None
    return tuple(files)


def _inside(model: Path, tensor: ExternalTensor) -> Path:
    where = f"{model}, tensor '{tensor.name}', location {tensor.location!r}"
    posix, windows = PurePosixPath(tensor.location), PureWindowsPath(tensor.location)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        reason = "the location is an absolute path"
    elif ".." in posix.parts or ".." in windows.parts or not tensor.location or "\0" in tensor.location:
        reason = "the location leads out of the folder"
    else:
        file = model.parent / tensor.location
        if not file.resolve().is_relative_to(model.parent.resolve()):
            reason = "the location is a symbolic link out of the folder"
        elif not file.is_file():
            raise ModelError(
                "the model's external data file does not exist",
                where=where,
                hint=f"put {tensor.location} beside {model.name}",
            )
        else:
            return file
    raise ModelError(
        "the model's external data lies outside its folder, which is refused",
        where=where,
        why=reason,
        hint="save the model again with its data beside it",
    )


def _tensors(data: memoryview, message: str, depth: int) -> Iterator[ExternalTensor]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deeply")
    if message == "tensor":
        yield from _external(data)
        return
    children = _CHILDREN[message]
    for number, _, value in _fields(data):
        if number in children and isinstance(value, memoryview):
            yield from _tensors(value, children[number], depth + 1)


def _external(data: memoryview) -> Iterator[ExternalTensor]:
    name, external, entries = "", False, {}
    for number, _, value in _fields(data):
        if number == _TENSOR_NAME and isinstance(value, memoryview):
            name = str(value, "utf-8", "replace")
        elif number == _TENSOR_LOCATION:
            external = value == 1
        elif number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            pair = {key: str(text, "utf-8") for key, _, text in _fields(value) if isinstance(text, memoryview)}
            entries[pair.get(1, "")] = pair.get(2, "")
    if external:
        length = entries.get("length")
        yield ExternalTensor(
            name=name,
            location=entries.get("location", ""),
            offset=int(entries.get("offset") or 0),
            length=int(length) if length else None,
        )


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Fields of a protobuf message as (number, wire type, value)."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if number == 0:
            raise ValueError("a field has number 0")
        if kind == 0:
            value, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, position = data[position : position + size], position + size
        elif kind == 2:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if position > end:
            raise ValueError("a field runs past the end of the file")
        yield number, kind, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
