"""Packed bundles read back. Nothing of what they claim is trusted before it was held against the manifest.

Members are plain files of a plain tar archive; what else the format knows (links, devices, extended headers of any
length) is refused by its type, before anything is read of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from pathlib import Path
from typing import IO

from exporter.artifacts import Manifest
from exporter.bundle.manifest import LARGEST_JSON, MANIFEST, PROFILES, check_inside, read_manifest
from exporter.bundle.packing import CHUNK, zstd
from exporter.bundle.verify import check_bundle
from exporter.bundle.write import bundle_name
from exporter.errors import BundleError, shorten
from exporter.views import printable

LARGEST_WINDOW = 1 << 27
"""Bytes of memory that a frame may ask for: as much as the highest level of zstd does."""
MOST_FILES, MOST_PROFILES = 10_000, 1_000
"""More than any bundle has: an empty file costs a packed one three bytes, and a disk an inode."""
AGAIN = "pack it again, or fetch it again from where it came from"


def unpack_into(file: Path, place: Path) -> Path:
    """Unpacks a bundle into a folder of its own in an empty folder, and checks every byte.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: naming what does not hold.
        MissingError: zstandard is not installed.
        OSError: it cannot be written.
    """
    library = zstd()
    decompressor = library.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    try:
        with file.open("rb") as stream, decompressor.stream_reader(stream, read_across_frames=True) as content:
            folder, manifest = _first(content, file, place)
            _others(content, file, folder, manifest)
    except library.ZstdError as error:
        raise BundleError("the packed bundle is damaged", where=str(file), why=shorten(error), hint=AGAIN) from error
    check_bundle(folder)
    return folder


def _first(content: IO[bytes], file: Path, place: Path) -> tuple[Path, Manifest]:
    """The manifest, which comes first and says how large everything else is."""
    head = _member(content, file)
    name = head.name.removesuffix(f"/{MANIFEST}") if head is not None else ""
    if head is None or not name or "/" in name or name.startswith(".") or head.name != f"{name}/{MANIFEST}":
        raise BundleError("the file holds no packed bundle", where=str(file), hint="`edge-exporter pack` makes one")
    check_inside(name, file)
    if head.size > LARGEST_JSON:
        raise BundleError("the manifest is too large for what it is", where=f"{file}: {printable(head.name)}")
    folder = place / name
    folder.mkdir()
    _write(content, head, folder / MANIFEST, file)
    manifest = read_manifest(folder)
    if bundle_name(manifest) != name:
        said = f"the packed folder is called '{printable(name)}', its manifest says '{bundle_name(manifest)}'"
        raise BundleError(said, where=str(file), hint=AGAIN)
    return folder, manifest


def _others(content: IO[bytes], file: Path, folder: Path, manifest: Manifest) -> None:
    sizes = {entry.path: entry.size for entry in manifest.files}
    if len(sizes) > MOST_FILES:
        raise BundleError(f"the manifest lists {len(sizes):,} files, which no bundle has", where=str(file))
    wanted = sum(sizes.values())
    if wanted > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    profiles = count = 0
    while (member := _member(content, file)) is not None:
        where = f"{file}: {printable(member.name)}"
        top, _, name = member.name.partition("/")
        check_inside(name, file)
        if top != folder.name or name == MANIFEST or (folder / name).exists():
            raise BundleError("the packed bundle has a file twice, or one outside its folder", where=where)
        if name.startswith(f"{PROFILES}/") and name.endswith(".json") and name not in sizes:
            profiles, count = profiles + member.size, count + 1
            if profiles > LARGEST_JSON or count > MOST_PROFILES:
                raise BundleError("the profiles are too many, or too large, for what they are", where=where)
        elif name not in sizes:
            raise BundleError("the packed bundle has a file that its manifest does not list", where=where)
        elif sizes[name] != member.size:
            raise BundleError(f"the file has {member.size} bytes where {sizes[name]} were written", where=where)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write(content, member, folder / name, file)
    padding = 0
    while part := content.read(CHUNK):
        padding += len(part)
        # Some writers of archives fill them up with zeros; behind many of them more could hide.
        if any(part) or padding > CHUNK:
            raise BundleError("something follows the end of the packed bundle", where=str(file), hint=AGAIN)


def _member(content: IO[bytes], file: Path) -> tarfile.TarInfo | None:
    """The next header, of a plain file; None at the end."""
    block = _exactly(content, tarfile.BLOCKSIZE, file)
    if not any(block):
        if any(_exactly(content, tarfile.BLOCKSIZE, file)):
            raise BundleError("the packed bundle is damaged: half an end", where=str(file), hint=AGAIN)
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise BundleError("the file holds no packed bundle", where=str(file), why=shorten(error)) from error
    if member.type != tarfile.REGTYPE or member.size < 0:
        raise BundleError("the packed bundle holds something that is no plain file", where=f"{file}: {member.name!r}")
    return member


def _write(content: IO[bytes], member: tarfile.TarInfo, path: Path, file: Path) -> None:
    left = member.size
    with path.open("xb") as stream:
        while left:
            part = _exactly(content, min(CHUNK, left), file)
            stream.write(part)
            left -= len(part)
    _exactly(content, -member.size % tarfile.BLOCKSIZE, file)


def _exactly(content: IO[bytes], count: int, file: Path) -> bytes:
    parts, left = [], count
    while left and (part := content.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise BundleError("the packed bundle is cut off", where=str(file), hint=AGAIN)
    return b"".join(parts)
