"""A bundle as one compressed file: its folder as a tar archive in one zstd frame, which `tar --zstd -xf` reads too.

The same bundle gives the same bytes: members are sorted behind the manifest, and carry no time, owner or mode of
their own.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from exporter.artifacts import Manifest
from exporter.bundle.manifest import MANIFEST, PROFILES
from exporter.bundle.write import bundle_name
from exporter.errors import InputError, MissingError

SUFFIX = ".tar.zst"
LEVEL = 10
"""Of zstd. 19 makes files a tenth smaller and takes thirty times as long; `pack --level` chooses."""
CHUNK = 1 << 20


def write_packed(bundle: Path, manifest: Manifest, file: Path, level: int = LEVEL) -> dict[str, int]:
    """Packs a checked bundle into a new file.

    Args:
        bundle: its folder.
        manifest: what is in it.
        file: to write.
        level: of zstd, 1 to 22.

    Returns:
        Packed bytes of each file, by its path in the bundle.

    Raises:
        InputError: a name or file is too large for the format (255 characters, 8 GiB).
        MissingError: zstandard is not installed.
    """
    compressor = zstd().ZstdCompressor(level=level, write_checksum=True)
    profiles = sorted(path.relative_to(bundle).as_posix() for path in (bundle / PROFILES).glob("*.json"))
    names = [MANIFEST, *sorted(entry.path for entry in manifest.files), *profiles]
    packed: dict[str, int] = {}
    with file.open("xb") as stream, compressor.stream_writer(stream, closefd=False) as writer:
        for name in names:
            before, path = stream.tell(), bundle / name
            writer.write(_header(f"{bundle_name(manifest)}/{name}", path.stat().st_size))
            with path.open("rb") as content:
                shutil.copyfileobj(content, writer, CHUNK)
            writer.write(bytes(-path.stat().st_size % tarfile.BLOCKSIZE))
            # Ends a block, so that what each file takes is known; it costs a few bytes a file.
            writer.flush(zstd().FLUSH_BLOCK)
            packed[name] = stream.tell() - before
        writer.write(bytes(2 * tarfile.BLOCKSIZE))
    return packed


def packed_size(files: Iterable[Path]) -> int | None:
    """Bytes of files after zstd, as `pack` does it; None where zstandard is not installed."""
    try:
        compressor = zstd().ZstdCompressor(level=LEVEL)
    except MissingError:
        return None
    total = 0
    for path in files:
        chunker = compressor.chunker(chunk_size=CHUNK)
        with path.open("rb") as stream:
            while content := stream.read(CHUNK):
                total += sum(map(len, chunker.compress(content)))
        total += sum(map(len, chunker.finish()))
    return total


def zstd() -> ModuleType:
    """The library.

    Raises:
        MissingError: it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingError(
            "packed bundles need zstandard, which is not installed",
            hint="pip install 'edge-exporter[compress]'; `tar --zstd -xf FILE` unpacks one without it",
        ) from error
    return zstandard


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise InputError(
            "the bundle does not fit the format of packed ones",
            where=name,
            why=str(error),
            hint="`edge-exporter build --name` gives a shorter name; files over 8 GiB stay in a folder",
        ) from error
