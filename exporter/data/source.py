"""From what a plan names to a source of raw samples."""

from __future__ import annotations

from typing import assert_never

from exporter.data.refs import FileRef, FolderRef, PythonRef, resolve
from exporter.data.values import Source, Wanted


def open_source(wanted: Wanted) -> Source:
    """Opens what the plan names.

    Raises:
        DataError: it does not exist, is of no known kind, or cannot be read.
        MissingError: images without Pillow.
    """
    ref = resolve(wanted.plan.data)
    ignore = wanted.plan.ignore
    if isinstance(ref, PythonRef):
        from exporter.data.python import python_source

        return python_source(ref, ignore)
    from exporter.data.columns import from_found

    if isinstance(ref, FileRef):
        from exporter.data.arrays import npz_columns, safetensors_columns

        found = npz_columns(ref.path) if ref.kind == "npz" else safetensors_columns(ref.path)
        return from_found(found, ignore=ignore)
    if isinstance(ref, FolderRef):
        if ref.kind == "npy":
            from exporter.data.folders import npy_folder_columns

            found, notes = npy_folder_columns(ref, wanted)
            return from_found(found, ignore=ignore, notes=notes)
        from exporter.data.images import image_columns

        found, notes = image_columns(ref, wanted)
        return from_found(found, ignore=ignore, notes=notes, prepared=True)
    assert_never(ref)
