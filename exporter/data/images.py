"""Folders of images; sub-folders are classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from exporter.data.arrays import Found, StackedColumn
from exporter.data.folders import FilesColumn
from exporter.data.preprocess import load_image, pillow
from exporter.data.refs import FolderRef
from exporter.data.values import Wanted
from exporter.errors import DataError, closest

if TYPE_CHECKING:
    from exporter.data.values import Reader


def image_columns(ref: FolderRef, wanted: Wanted) -> tuple[Found, tuple[str, ...]]:
    """The images as samples of one input and, where labels are wanted, their classes from the folders.

    Raises:
        DataError: labels are wanted and an image is in no folder, or in one that names no class.
        MissingError: Pillow is not installed.
    """
    pillow()
    name = wanted.sole_input()
    preprocessing = wanted.preprocessing.get(wanted.input_name(name))
    paths = [ref.path / relative for relative in ref.files]
    found: Found = {name: FilesColumn(paths=paths, load=partial(load_image, preprocessing=preprocessing))}
    notes = [f"{ref.others} files that are not images were left out"] if ref.others else []
    if wanted.labels is not None:
        indices, facts = _labels(ref, wanted)
        found[wanted.labels] = _column(indices)
        notes += facts
    return found, tuple(notes)


def _labels(ref: FolderRef, wanted: Wanted) -> tuple[list[int], list[str]]:
    parts = [PurePosixPath(relative).parts for relative in ref.files]
    loose = [part[0] for part in parts if len(part) == 1]
    if loose:
        raise DataError(
            f"{len(loose)} images are in no class folder, the first is {loose[0]}",
            where=str(ref.path),
            hint="put each image into a folder named after its class, or remove `labels` from the plan",
        )
    folders = sorted({part[0] for part in parts})
    order, notes = wanted.class_names, []
    if not order:
        order = tuple(folders)
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(folders[:10]))
        more = ", ..." if len(folders) > 10 else ""
        notes.append(f"labels are the sorted folder names, as the plan names no classes: {listed}{more}")
    unknown = [f"'{name}'{closest(name, order)}" for name in folders if name not in order]
    if unknown:
        raise DataError(
            f"{len(unknown)} folders name no class of the model: " + ", ".join(unknown[:20]),
            where=str(ref.path),
            hint="rename the folders, or correct `labels` in [model]",
        )
    index = {name: position for position, name in enumerate(order)}
    return [index[part[0]] for part in parts], notes


def _column(indices: list[int]) -> StackedColumn:
    values = np.array(indices, np.int64)

    def start() -> Iterator[Reader]:
        done = 0

        def take(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
            nonlocal done
            done += rows
            return values[done - rows : done].copy()

        yield take

    return StackedColumn(count=len(values), dtype=values.dtype, shape=(), start=start)
