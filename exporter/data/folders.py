"""Folders of .npy files: one stacked file per input, a sub-folder per input, or one file per sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.data.arrays import Found, npy_column, npy_header
from exporter.data.headers import unusable_dtype
from exporter.data.refs import FolderRef
from exporter.data.values import Problem, Wanted
from exporter.errors import DataError, ExporterError, shorten

if TYPE_CHECKING:
    from exporter.data.values import Array, Reader


@dataclass(frozen=True, kw_only=True)
class FilesColumn:
    """One sample per file, read one by one; `load` gives a sample and raises Problem where it cannot."""

    paths: Sequence[Path]
    load: Callable[[Path], Array]
    single: bool = True

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self.paths)

    @cached_property
    def _first(self) -> Array:
        return self.load(self.paths[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the first sample."""
        return self._first.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first sample."""
        return self._first.shape

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Starts a pass; see `Column`."""
        left = iter(self.paths)

        def take(rows: int) -> Array:
            return np.stack([self.load(next(left)) for _ in range(rows)])

        yield take


def load_sample(path: Path) -> Array:
    """One sample from an .npy file.

    Raises:
        Problem: not a sound .npy file, or values that no model takes.
    """
    try:
        header = npy_header(path)
        if fault := unusable_dtype(header.dtype):
            raise Problem(f"{fault.text} (file {path.name})", fault.hint)
        sample: Array = np.load(path, allow_pickle=False)
    except ExporterError as error:
        why = f": {error.why}" if error.why else ""
        raise Problem(f"cannot be read from {path.name}: {error.what}{why}") from error
    except (OSError, ValueError) as error:
        raise Problem(f"cannot be read from {path.name}: {shorten(error)}") from error
    return sample


def npy_folder_columns(ref: FolderRef, wanted: Wanted) -> tuple[Found, tuple[str, ...]]:
    """Columns of a folder of .npy files, and notes on how it was understood.

    Raises:
        DataError: sub-folders of sub-folders, or a name that is both a file and a folder.
    """
    top: dict[str, Path] = {}
    groups: dict[str, list[Path]] = {}
    for relative in ref.files:
        parts = PurePosixPath(relative).parts
        path = ref.path / relative
        if len(parts) == 1:
            top[path.stem] = path
        elif len(parts) == 2:
            groups.setdefault(parts[0], []).append(path)
        else:
            raise DataError(
                "a data folder has sub-folders of sub-folders",
                where=str(path),
                hint="use one sub-folder per input with one .npy file per sample in it",
            )
    for name in groups:
        if name in top:
            raise DataError(f"'{name}' is both a file and a folder", where=str(top[name]))
    notes = [f"{ref.others} files that are not .npy were left out"] if ref.others else []
    found: Found = {}
    stems = [stem for stem in top if stem != wanted.labels and stem not in wanted.plan.ignore]
    if stems and _are_samples(stems, list(groups), wanted):
        found[wanted.sole_input()] = FilesColumn(paths=[top.pop(stem) for stem in stems], load=load_sample)
        notes.append(f"each of {len(stems)} .npy files is one sample of input '{wanted.sole_input()}'")
    found |= {name: npy_column(path) for name, path in top.items()}
    found |= {name: FilesColumn(paths=paths, load=load_sample) for name, paths in groups.items()}
    if len({tuple(path.name for path in paths) for paths in groups.values()}) > 1:
        notes.append("the files of the sub-folders have different names; they are paired by their sorted order")
    return found, tuple(notes)


def _are_samples(stems: Sequence[str], groups: Sequence[str], wanted: Wanted) -> bool:
    """Whether files at the top of the folder are samples of one input, not one array per input."""
    names = {wanted.input_name(stem) for stem in (*stems, *groups)}
    known = {*wanted.inputs, *wanted.preprocessing, *wanted.plan.rename.values()}
    if names & known:
        return False
    if wanted.inputs:
        return len(wanted.inputs) == 1
    return len(stems) > 1 and _are_numbered(stems)


def _are_numbered(stems: Sequence[str]) -> bool:
    return len({re.sub(r"\d+$", "", stem) for stem in stems}) == 1
