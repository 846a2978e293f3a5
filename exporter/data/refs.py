"""What the `data` of a plan points at: a file, a folder or a Python callable."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporter.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
KINDS = "an .npz or .safetensors file, a folder of .npy files or of images, or a callable like file.py:function"

_CALLABLE = re.compile(r"(?P<home>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<function>[A-Za-z_]\w*(?:\.\w+)*)")


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """An .npz or .safetensors file."""

    kind: Literal["npz", "safetensors"]
    path: Path


@dataclass(frozen=True, kw_only=True)
class FolderRef:
    """A folder; `files` are all that count, relative to it, sorted, none of them outside."""

    kind: Literal["npy", "images"]
    path: Path
    files: tuple[str, ...]
    others: int = 0


@dataclass(frozen=True, kw_only=True)
class PythonRef:
    """A callable: `home` is a file ending in .py or a dotted module."""

    home: str
    function: str


Ref = FileRef | FolderRef | PythonRef


def resolve(data: str) -> Ref:
    """Finds out what `data` is.

    Raises:
        DataError: nothing is there, it is of no known kind, or a link in a folder leads outside.
    """
    path = Path(data)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if match := _CALLABLE.fullmatch(data):
        home = match["home"]
        if home.endswith(".py") and not Path(home).is_file():
            raise DataError("the file with the data callable does not exist", where=home)
        return PythonRef(home=home, function=match["function"])
    raise DataError("the data do not exist", where=data, hint=f"`data` is {KINDS}")


def _file(path: Path) -> FileRef:
    match path.suffix.lower():
        case ".npz":
            return FileRef(kind="npz", path=path)
        case ".safetensors":
            return FileRef(kind="safetensors", path=path)
        case ".npy":
            hint = "put it into a folder, named after the input, and give the folder"
        case ".py":
            hint = f"name the callable, as in {path.name}:function"
        case ".pt" | ".pth" | ".pkl" | ".pickle":
            hint = "pickles can run code; save the arrays with numpy.savez or safetensors"
        case _:
            hint = f"`data` is {KINDS}"
    raise DataError(f"data cannot be read from a '{path.suffix}' file", where=str(path), hint=hint)


def _folder(path: Path) -> FolderRef:
    root = path.resolve()
    arrays: list[str] = []
    images: list[str] = []
    others = 0
    for found in sorted(path.rglob("*")):
        relative = found.relative_to(path)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if found.is_symlink() and not found.resolve().is_relative_to(root):
            raise DataError(
                "a link in the data folder leads outside of it",
                where=str(found),
                hint="copy the file into the folder, or give the folder that it lies in",
            )
        if not found.is_file():
            continue
        suffix = found.suffix.lower()
        if suffix == ".npy":
            arrays.append(relative.as_posix())
        elif suffix in IMAGE_SUFFIXES:
            images.append(relative.as_posix())
        else:
            others += 1
    if arrays and images:
        raise DataError(
            "the data folder has both .npy files and images",
            where=str(path),
            why=f"for example {arrays[0]} and {images[0]}",
            hint="keep one kind in a folder",
        )
    if not arrays and not images:
        raise DataError("the data folder has no .npy files and no images", where=str(path))
    if arrays:
        return FolderRef(kind="npy", path=path, files=tuple(sorted(arrays)), others=others)
    return FolderRef(kind="images", path=path, files=tuple(sorted(images)), others=others)
