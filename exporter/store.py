"""Content-addressed results of stages.

An entry is a folder `<root>/v1/<stage>/<key>/` that holds what the stage wrote and `entry.json`, which lists every
file with its size and SHA-256. A result is built in a temporary folder under an exclusive lock, hashed, synced, and
renamed into place; `entry.json` is written last, so a folder without a valid one is never taken for a result.
Removing goes the other way: renamed out of place first. Failures are not stored.

Temporary folders carry the name of the lock that protects them, so that one whose lock is free is known to be the
rest of a killed run.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import FileEntry, Value, canonical, digest_of, file_digest
from exporter.disk import (
    DISK_FULL,
    DiskFullError,
    disk_is_full,
    sync_folder,
    sync_tree,
    write_synced,
    writing_failed,
)
from exporter.errors import StageError

ENTRY = "entry.json"
LAYOUT = "v1"
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
LOCK_NAME = 40
"""Characters of a key that name its lock and its temporary folders; far more than chance can repeat."""


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

    @property
    def content(self) -> str:
        """SHA-256 over what the stage wrote: what later stages depend on, so that an equal result changes nothing."""
        entry = msgspec.json.decode((self.folder / ENTRY).read_bytes(), type=Entry)
        return digest_of(entry.files)


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
        self._unfinished = root / "unfinished"

    def find(self, stage: str, key: str) -> Path | None:
        """The folder of an intact entry, or None."""
        folder = self._entries / stage / key
        # A damaged entry stays: who has no lock may be looking at one that another process is just replacing.
        return folder if (folder / ENTRY).is_file() and _intact(folder, stage, key) else None

    def get_or_build(self, stage: str, key: str, build: Callable[[Path], None]) -> Stored:
        """Returns the entry, building it first when it is not there.

        `build` writes only into the folder it is given, and no `entry.json` at its top. Two processes that want the
        same key build it once: the second waits for the first and takes its result. A damaged entry is built again.

        Raises:
            OutputError: the store cannot be written.
            StageError: the disk is full.
        """
        found = self.find(stage, key)
        if found is not None:
            _touch(found)
            return Stored(folder=found, key=key, cached=True)
        with self._writing(stage), self.exclusive(key):
            found = self.find(stage, key)
            if found is not None:
                return Stored(folder=found, key=key, cached=True)
            self._clear_temp(key)
            temp = self._new_temp(key)
            temp.mkdir(parents=True)
            try:
                build(temp)
                folder = self._publish(temp, stage, key)
            except DiskFullError:
                raise
            except Exception as error:
                # Asked here, because what was written goes next, and space comes back with it.
                if disk_is_full(error, temp):
                    raise writing_failed(error, f"stage {stage}", self.root, full=True) from error
                raise
            finally:
                self._clear_temp(key)
        return Stored(folder=folder, key=key, cached=False)

    def unfinished(self, key: str) -> Path:
        """A file that a stage may keep its progress in while it builds this key, and removes at the end."""
        return self._unfinished / key

    @contextmanager
    def exclusive(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Holds a lock among all processes that use this store; gives False when it is taken and `wait` is off."""
        import filelock

        self._locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._locks / f"{name[:LOCK_NAME]}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_writing_error(self, error: OSError) -> bool:
        """Whether the store could not be written, as opposed to a fault of whatever else the stage opened."""
        inside = error.filename is not None and Path(str(error.filename)).is_relative_to(self.root)
        return error.errno in DISK_FULL or (inside and error.errno in UNWRITABLE)

    def usage(self) -> list[Usage]:
        """Every entry with its size in bytes and its age, oldest first."""
        now = time.time()
        found = []
        for entry in self._entries.glob(f"*/*/{ENTRY}"):
            try:
                size = sum(file.stat().st_size for file in entry.parent.rglob("*") if file.is_file())
                age = max(0.0, now - entry.stat().st_mtime)
            except FileNotFoundError:  # Another process removed it in the meantime.
                continue
            found.append(Usage(stage=entry.parent.parent.name, key=entry.parent.name, size=size, age_seconds=age))
        return sorted(found, key=lambda usage: -usage.age_seconds)

    def collect(self, *, older_than_seconds: float = 0.0, max_bytes: int | None = None) -> list[Usage]:
        """Removes entries unused for `older_than_seconds`, oldest first, until at most `max_bytes` are left.

        Without `max_bytes` every entry that is old enough goes. What killed runs left behind goes as well. Entries
        that another process is building, or has used in the meantime, stay.
        """
        self._sweep()
        entries = self.usage()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            enough = max_bytes is not None and total <= max_bytes
            if enough or entry.age_seconds < older_than_seconds:
                continue
            with self.exclusive(entry.key, wait=False) as held:
                folder = self._entries / entry.stage / entry.key
                if not held or _age(folder) < entry.age_seconds:
                    continue
                self._remove(folder, entry.key)
            total -= entry.size
            removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Removes temporary folders and progress of runs that are gone, and entries that lack their entry.json."""
        for temp in self._temp.glob("*"):
            key = temp.name.partition("-")[0]
            with self.exclusive(key, wait=False) as held:
                if held:
                    _delete(temp)
        for file in self._unfinished.glob("*"):
            with self.exclusive(file.name.partition(".")[0], wait=False) as held:
                if held:
                    _delete(file)
        for folder in self._entries.glob("*/*"):
            with self.exclusive(folder.name, wait=False) as held:
                if held and not (folder / ENTRY).exists():
                    self._remove(folder, folder.name)

    def _new_temp(self, key: str) -> Path:
        return self._temp / f"{key[:LOCK_NAME]}-{uuid.uuid4().hex}"

    def _clear_temp(self, key: str) -> None:
        """Removes all temporary folders of a key, and what stages put beside them; its lock is held."""
        for temp in self._temp.glob(f"{key[:LOCK_NAME]}-*"):
            _delete(temp)

    def _remove(self, folder: Path, key: str) -> None:
        """Takes an entry out of sight in one step, then removes it; its lock is held."""
        self._temp.mkdir(parents=True, exist_ok=True)
        temp = self._new_temp(key)
        folder.rename(temp)
        _delete(temp)

    def _publish(self, temp: Path, stage: str, key: str) -> Path:
        if (temp / ENTRY).exists():
            raise ValueError(f"stage {stage} wrote a file of its own named {ENTRY}")
        entry = Entry(stage=stage, key=key, files=list_files(temp))
        sync_tree(temp)
        write_synced(temp / ENTRY, canonical(entry))
        sync_folder(temp)
        if not _intact(temp, stage, key):
            raise StageError(f"the result of stage {stage} changed while it was stored", where=str(temp))
        folder = self._entries / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            self._remove(folder, key)  # It is damaged: `find` has just refused it.
        temp.rename(folder)
        sync_folder(folder.parent)
        return folder

    @contextmanager
    def _writing(self, stage: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.is_writing_error(error):
                raise writing_failed(error, f"stage {stage}", self.root) from error
            raise


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every regular file below a folder with its size and SHA-256, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / ENTRY:
            relative = path.relative_to(folder).as_posix()
            found.append(FileEntry(path=relative, sha256=file_digest(path), size=path.stat().st_size))
    return tuple(found)


def _intact(folder: Path, stage: str, key: str) -> bool:
    try:
        entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
        return entry.stage == stage and entry.key == key and entry.files == list_files(folder)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _delete(path: Path) -> None:
    """Removes a folder or a file; what cannot be removed now is left to the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _age(folder: Path) -> float:
    """Seconds since an entry's last use; minus infinity when it is gone."""
    try:
        return max(0.0, time.time() - (folder / ENTRY).stat().st_mtime)
    except OSError:
        return -math.inf


def _touch(folder: Path) -> None:
    """Marks an entry as used, for `collect`; a store that is read-only stays usable."""
    try:
        os.utime(folder / ENTRY)
    except OSError:
        return
