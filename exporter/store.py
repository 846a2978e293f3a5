"""Content-addressed results of stages.

An entry is a folder `<root>/v1/<stage>/<key>/` that holds what the stage wrote and `entry.json`, which lists every
file with its size and SHA-256. A result is built in a temporary folder under an exclusive lock, hashed, synced, and
renamed into place; `entry.json` is written last, so a folder without a valid one is never taken for a result.
Failures are not stored.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import FileEntry, Value, canonical, digest_of, file_digest
from exporter.errors import OutputError, StageError

ENTRY = "entry.json"
LAYOUT = "v1"
STALE_SECONDS = 24 * 3600
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Entry(Value, frozen=True, kw_only=True):
    """entry.json: which stage, which key, which files."""

    stage: str
    key: str
    files: tuple[FileEntry, ...]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A result in the store: its folder, and whether it was there already."""

    folder: Path
    key: str
    cached: bool


class Usage(Value, frozen=True, kw_only=True):
    """One entry as `cache list` shows it; `age_seconds` counts from its last use."""

    stage: str
    key: str
    size: int
    age_seconds: float


def stage_key(stage: str, version: int, parts: Mapping[str, Any]) -> str:
    """SHA-256 over everything that can change a stage's output: its name, its version and `parts`."""
    return digest_of({"stage": stage, "version": version, "parts": dict(parts)})


def default_root() -> Path:
    """`$EDGE_EXPORTER_CACHE`, or the user's cache folder."""
    override = os.environ.get("EDGE_EXPORTER_CACHE")
    if override:
        return Path(override).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edge-exporter"))


class Store:
    """Results by stage and key below one root folder. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries = root / LAYOUT
        self._locks = root / "locks"
        self._temp = root / "tmp"

    def find(self, stage: str, key: str) -> Path | None:
        """The folder of an intact entry, or None; a damaged entry is removed."""
        folder = self._entries / stage / key
        if not (folder / ENTRY).is_file():
            return None
        if not _intact(folder, stage, key):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return folder

    def has(self, stage: str, key: str) -> bool:
        """Whether an entry exists; its contents are checked only when it is used."""
        return (self._entries / stage / key / ENTRY).is_file()

    def get_or_build(self, stage: str, key: str, build: Callable[[Path], None]) -> Stored:
        """Returns the entry, building it first when it is not there.

        `build` writes only into the folder it is given. Two processes that want the same key build it once: the
        second waits for the first and takes its result.

        Raises:
            OutputError: the store cannot be written.
            StageError: the disk is full.
        """
        found = self.find(stage, key)
        if found is not None:
            _touch(found)
            return Stored(folder=found, key=key, cached=True)
        with self._writing(stage), self._lock(key):
            found = self.find(stage, key)
            if found is not None:
                return Stored(folder=found, key=key, cached=True)
            temp = self._temp / f"{key[:16]}-{uuid.uuid4().hex}"
            temp.mkdir(parents=True)
            try:
                build(temp)
                folder = self._publish(temp, stage, key)
            finally:
                shutil.rmtree(temp, ignore_errors=True)
        return Stored(folder=folder, key=key, cached=False)

    def is_writing_error(self, error: OSError) -> bool:
        """Whether the store could not be written, as opposed to a fault of whatever else the stage opened."""
        return error.errno in DISK_FULL or str(error.filename or "").startswith(str(self.root))

    def usage(self) -> list[Usage]:
        """Every entry with its size in bytes and its age, oldest first."""
        now = time.time()
        found = []
        for entry in self._entries.glob(f"*/*/{ENTRY}"):
            size = sum(file.stat().st_size for file in entry.parent.rglob("*") if file.is_file())
            age = max(0.0, now - entry.stat().st_mtime)
            found.append(Usage(stage=entry.parent.parent.name, key=entry.parent.name, size=size, age_seconds=age))
        return sorted(found, key=lambda usage: -usage.age_seconds)

    def collect(self, *, older_than_seconds: float = 0.0, max_bytes: int | None = None) -> list[Usage]:
        """Removes entries unused for `older_than_seconds`, oldest first, until at most `max_bytes` are left.

        Without `max_bytes` every entry that is old enough goes. What a killed run left behind goes as well.
        """
        self._sweep()
        entries = self.usage()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            enough = max_bytes is not None and total <= max_bytes
            if enough or entry.age_seconds < older_than_seconds:
                continue
            with self._lock(entry.key):
                folder = self._entries / entry.stage / entry.key
                # Without its entry.json a half-removed folder is no result, so that file goes first.
                (folder / ENTRY).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            total -= entry.size
            removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Removes temporary folders older than a day: no stage runs that long without touching its folder."""
        for temp in self._temp.glob("*"):
            if time.time() - temp.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(temp, ignore_errors=True)

    def _publish(self, temp: Path, stage: str, key: str) -> Path:
        entry = Entry(stage=stage, key=key, files=list_files(temp))
        sync_tree(temp)
        write_synced(temp / ENTRY, canonical(entry))
        sync_folder(temp)
        if not _intact(temp, stage, key):
            raise StageError(f"the result of stage {stage} changed while it was stored", where=str(temp))
        folder = self._entries / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What stands there without a valid entry.json is the rest of a killed run.
        shutil.rmtree(folder, ignore_errors=True)
        temp.rename(folder)
        sync_folder(folder.parent)
        return folder

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        import filelock

        self._locks.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._locks / f"{key[:32]}.lock"):
            yield

    @contextmanager
    def _writing(self, stage: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.is_writing_error(error):
                raise writing_failed(error, f"stage {stage}", self.root) from error
            raise


def writing_failed(error: OSError, what: str, folder: Path) -> OutputError | StageError:
    """The user-facing error for an OSError while writing."""
    if error.errno in DISK_FULL:
        return StageError(
            f"no space left on the disk while writing the result of {what}",
            where=str(error.filename or folder),
            why=error.strerror,
            hint="free some space (`edge-exporter cache gc` removes old results) and run the same command again: "
            "finished steps are kept",
        )
    return OutputError(
        f"cannot write the result of {what}",
        where=str(error.filename or folder),
        why=error.strerror or str(error),
        hint="choose another folder with --output, or with EDGE_EXPORTER_CACHE for the store",
    )


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every regular file below a folder with its size and SHA-256, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / ENTRY:
            relative = path.relative_to(folder).as_posix()
            found.append(FileEntry(path=relative, sha256=file_digest(path), size=path.stat().st_size))
    return tuple(found)


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
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _intact(folder: Path, stage: str, key: str) -> bool:
    try:
        entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
        return entry.stage == stage and entry.key == key and entry.files == list_files(folder)
    except (OSError, msgspec.MsgspecError):
        return False


def _touch(folder: Path) -> None:
    """Marks an entry as used, for `collect`; a store that is read-only stays usable."""
    try:
        os.utime(folder / ENTRY)
    except OSError:
        return
