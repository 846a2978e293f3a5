"""Packed bundles for those who only read: unpacked for as long as they are looked at.

What is needed for that is imported late: commands that read bundles start in no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exporter.disk import writing_failed

MAGIC = b"\x28\xb5\x2f\xfd"


def is_packed(path: Path) -> bool:
    """Whether this is a file that starts as zstd's do; what is in it is not looked at."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                return stream.read(len(MAGIC)) == MAGIC
    return False


@contextmanager
def opened_bundle(path: Path) -> Iterator[Path]:
    """A bundle's folder: the one that is given, or that of a packed bundle, unpacked and checked, for as long.

    Raises:
        BundleError: the packed bundle does not hold what it claims.
        MissingError: zstandard is not installed.
        OutputError, StageError: there is no space to unpack it.
    """
    if not is_packed(path):
        yield path
        return
    import tempfile

    from exporter.bundle.unpacking import unpack_into

    with tempfile.TemporaryDirectory(prefix="edge-exporter-") as place:
        try:
            folder = unpack_into(path, Path(place))
        except OSError as error:
            raise writing_failed(error, "unpacking", Path(place)) from error
        yield folder
