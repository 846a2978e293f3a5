"""`pack` and `unpack`: a bundle as one file, and back, each put in place whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import msgspec

from exporter.artifacts import Manifest
from exporter.bundle import bundle_name, check_bundle, is_packed, read_manifest
from exporter.bundle.packing import SUFFIX, write_packed
from exporter.bundle.unpacking import unpack_into
from exporter.disk import sync_folder, sync_tree, writing_failed
from exporter.errors import InputError, OutputError
from exporter.pipeline.publish import clear_partial, lock_of
from exporter.pipeline.steps import Steps


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A packed bundle.

    Attributes:
        file: that holds it.
        manifest: of the bundle.
        sizes: bytes of each file in the bundle and in the packed one, by its path.
        size: bytes of the packed file.
    """

    file: Path
    manifest: Manifest
    sizes: dict[str, tuple[int, int]]
    size: int


def pack(bundle: Path, output: Path | None, steps: Steps, *, level: int, force: bool) -> Packed:
    """Checks a bundle and packs it into one file, beside it where no other place is given.

    Raises:
        BundleError: it does not hold what it claims.
        InputError: it is packed already, or there is none.
        OutputError, StageError: the file is there already, or cannot be written.
    """
    manifest = read_manifest(bundle)
    file = output or bundle.absolute().parent / (bundle_name(manifest) + SUFFIX)
    if file.absolute().is_relative_to(bundle.absolute()):
        raise OutputError(
            "a packed bundle inside the bundle would count as a file that was added",
            where=str(file),
            hint="choose another place with --output",
        )
    _check_free(
        file, "replace it with --force, or choose another place with --output", force=force and file.is_file()
    )
    temp = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        # Nobody writes a profile into it meanwhile.
        with steps.store.exclusive(lock_of(manifest)):
            clear_partial(bundle)
            manifest = check_bundle(bundle)
            packed = write_packed(bundle, manifest, temp, level)
            sizes = {name: ((bundle / name).stat().st_size, size) for name, size in packed.items()}
        with temp.open("rb") as stream:
            os.fsync(stream.fileno())
        temp.replace(file)
        sync_folder(file.absolute().parent)
    except OSError as error:
        raise writing_failed(error, "pack", file.parent) from error
    finally:
        temp.unlink(missing_ok=True)
    return Packed(file=file, manifest=manifest, sizes=sizes, size=file.stat().st_size)


def unpack(file: Path, output: Path | None) -> tuple[Path, Manifest]:
    """Unpacks and checks a bundle; its folder lies beside the file where no other place is given.

    Raises:
        BundleError: it does not hold what it claims.
        InputError: there is no such file, or it is no packed bundle.
        OutputError, StageError: the folder is there already, or cannot be written.
    """
    if not is_packed(file):
        there = "the file holds no packed bundle" if file.exists() else "there is no such packed bundle"
        raise InputError(there, where=str(file), hint="`edge-exporter pack BUNDLE` makes one")
    place = output or file.absolute().parent
    staging = place / f".{uuid.uuid4().hex}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        folder = unpack_into(file, staging)
        final = place / folder.name
        _check_free(final, "remove it, or choose another folder with --output")
        sync_tree(folder)
        folder.rename(final)
        sync_folder(place)
    except OSError as error:
        raise writing_failed(error, "unpack", place) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final, read_manifest(final)


def _check_free(path: Path, hint: str, *, force: bool = False) -> None:
    if (path.exists() or path.is_symlink()) and not force:
        raise OutputError("there is something already where the result would go", where=str(path), hint=hint)
