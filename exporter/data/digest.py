"""What identifies the contents of a data set, without decoding it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from exporter.artifacts import digest_of, file_digest
from exporter.data.refs import FileRef, FolderRef, PythonRef, resolve
from exporter.data.values import labels_of
from exporter.errors import DataError, shorten
from exporter.plan_types import DataPlan


def content_digest(plan: DataPlan, labels: str | None = None) -> str:
    """SHA-256, in hex, of everything in the data and the plan that changes which samples come out.

    File contents count, with their names inside a folder; where the data lie and the batch size do not. What a
    callable yields can depend on anything, so it is called and its arrays are hashed, beside its source.

    Args:
        plan: the section of the plan that names the data.
        labels: name of the array with labels; by default what an `[evaluation]` section says.

    Raises:
        DataError: the data do not exist or cannot be read, or the callable fails.
    """
    ref = resolve(plan.data)
    try:
        contents = _contents(ref, plan)
    except OSError as error:
        raise DataError("the data cannot be read", where=plan.data, why=shorten(error)) from error
    return digest_of(
        {
            "contents": contents,
            "samples": plan.samples,
            "rename": dict(plan.rename),
            "ignore": sorted(set(plan.ignore)),
            "labels": labels_of(plan, labels),
        }
    )


def files_of(plan: DataPlan) -> tuple[Path, ...]:
    """The files that data are read from; of a callable, its own.

    Raises:
        DataError: the data do not exist.
    """
    ref = resolve(plan.data)
    if isinstance(ref, FileRef):
        return (ref.path,)
    if isinstance(ref, FolderRef):
        return tuple(ref.path / name for name in ref.files)
    return (Path(ref.home),) if ref.home.endswith(".py") else ()


def _contents(ref: FileRef | FolderRef | PythonRef, plan: DataPlan) -> dict[str, Any]:
    if isinstance(ref, FileRef):
        return {"kind": ref.kind, "sha256": file_digest(ref.path)}
    if isinstance(ref, FolderRef):
        return {"kind": ref.kind, "files": [[name, file_digest(ref.path / name)] for name in ref.files]}
    return _callable_contents(ref, plan)


def _callable_contents(ref: PythonRef, plan: DataPlan) -> dict[str, Any]:
    from exporter.data.python import forget_passes, python_source, rows_of, source_file

    forget_passes(ref)
    file = source_file(ref)
    digest = hashlib.sha256()
    left = plan.samples
    for values in python_source(ref, plan.ignore).yielded():
        for name in sorted(values):
            array = values[name]
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(array.tobytes())
        rows = rows_of(values)
        if left is not None:
            left -= 1 if rows is None else rows
            if left <= 0:
                break
    return {"kind": "python", "source": file_digest(file) if file else None, "arrays": digest.hexdigest()}
