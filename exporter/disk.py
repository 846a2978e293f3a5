"""Writing so that it is on the disk when it is said to be, and what to say when the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import ExporterError, OutputError, StageError, shorten

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYNCING = 8
"""Files that wait for the disk at the same time."""
SPARE_BYTES = 64 * 1024
"""With less space than this left, a library's failure that does not say why is put down to the disk."""


class DiskFullError(StageError):
    """There is no space left; the hint says how to make some."""


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an exception comes from a full disk, also when a library has put one of its own in its place.

    That shows in what it was raised from, in its words, or, where it says nothing, in the space that is left in
    `folder`.
    """
    if any(_full_words(cause) for cause in _causes(error)):
        return True
    if isinstance(error, ExporterError) and not isinstance(error, StageError):
        return False  # Its cause is known.
    try:
        return shutil.disk_usage(folder).free < SPARE_BYTES
    except OSError:
        return False


def writing_failed(
    error: BaseException, what: str, folder: Path, *, full: bool | None = None
) -> OutputError | DiskFullError:
    """The user-facing error for a failure to write.

    Args:
        error: what was raised.
        what: what was being written, after "the result of".
        folder: where to.
        full: whether the disk is full; by default that is looked up.
    """
    if disk_is_full(error, folder) if full is None else full:
        words = next(filter(None, map(_full_words, _causes(error))), None)
        too_large = words == os.strerror(errno.EFBIG)
        return DiskFullError(
            f"a file of the result of {what} is larger than the disk or a limit allows"
            if too_large
            else f"no space left on the disk while writing the result of {what}",
            where=str(folder),
            why=words or _words(error),
            hint=("raise the limit (`ulimit -f`), or choose another disk" if too_large else "free some space")
            + ", and run the same command again: finished steps are kept (`edge-exporter cache gc` removes old ones)",
        )
    return OutputError(
        f"cannot write the result of {what}",
        where=str(getattr(error, "filename", None) or folder),
        why=_words(error),
        hint="choose another folder with --output, or with EDGE_EXPORTER_CACHE for the store",
    )


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until every file and folder below is on the disk."""
    from concurrent.futures import ThreadPoolExecutor

    # Together, because a file system waits for the disk once for all that ask at the same time: an environment's
    # thousands of files are there in a second instead of half a minute.
    with ThreadPoolExecutor(SYNCING) as pool:
        for _ in pool.map(_sync, [*folder.rglob("*"), folder]):
            pass


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
    else:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _full_words(error: BaseException) -> str | None:
    """What the system says about a full disk, when that is what this exception is about."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in DISK_FULL else None
    # Native libraries, and shutil.Error, hand on the system's words only.
    return next((words for words in map(os.strerror, DISK_FULL) if words in str(error)), None)


def _words(error: BaseException) -> str:
    if isinstance(error, ExporterError):
        return error.why or error.what
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shorten(f"{type(error).__name__}: {error}")
