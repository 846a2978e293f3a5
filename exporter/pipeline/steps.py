"""Runs one step: store, events, the noise of libraries, and what their exceptions become."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from exporter.artifacts import digest_of, file_digest
from exporter.disk import writing_failed
from exporter.errors import ExporterError, StageError, shorten
from exporter.events import Emit, Quiet, StepFailed, StepFinished, StepProgress, StepStage, StepStarted
from exporter.pipeline.watching import Watch
from exporter.store import Store, Stored, stage_key

LOGS_KEPT = 100
OURS = Path(__file__).resolve().parent.parent


class RunLog:
    """A file that takes what libraries print, so that it neither mixes with results nor is lost."""

    def __init__(self, folder: Path, *, echo: Callable[[str], None] | None = None) -> None:
        self._folder = folder
        self._echo = echo
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The log's path; the file and its folder are made on first use."""
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(self._folder.glob("*.log"))[: -LOGS_KEPT + 1]:
                old.unlink(missing_ok=True)
            self._path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            self._path.touch()
        return self._path

    def write(self, text: str) -> None:
        """Appends text."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Sends this process's stdout and stderr, and that of its C libraries and children, to the log."""
        path = self.path
        before = path.stat().st_size
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(1), os.dup(2)]
        log = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                # On a full disk the log is lost; the message that says so must still find the terminal.
                with suppress(OSError):
                    stream.flush()
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.close(log)
            if self._echo is not None:
                with path.open(encoding="utf-8", errors="replace") as stream:
                    stream.seek(before)
                    for line in stream:
                        self._echo(line.rstrip("\n"))


NOT_INSTALLED = "not installed"


class Steps:
    """Runs steps against a store.

    Args:
        store: keeps their results.
        emit: is told what goes on.
        log: takes what libraries print.
        jobs: processes that a step may use where it can be split; they never change its result.
    """

    writes = True
    """Whether files outside the store may be written; not while it is only looked at."""

    def __init__(self, store: Store, emit: Emit, log: RunLog, jobs: int = 1) -> None:
        self.jobs = jobs
        self.store = store
        self.emit = emit
        self.log = log
        self.watch = Watch()

    def key(self, stage: str, stage_version: int, parts: Mapping[str, Any]) -> str:
        """The store's key of a stage's result; another version of the exporter's own code makes another key."""
        return stage_key(stage, stage_version, {**parts, "exporter": code_digest()})

    def unfinished(self, stage: str, stage_version: int, parts: Mapping[str, Any]) -> Path:
        """A file that a stage may keep its progress in, for the run that follows a killed one."""
        return self.store.unfinished(self.key(stage, stage_version, parts))

    def stored(
        self,
        stage: str,
        stage_version: int,
        parts: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        label: str,
        total: int | None = None,
    ) -> Stored:
        """Takes a stage's result from the store, or builds it.

        Args:
            stage: name of the stage.
            stage_version: raised when the stage's code gives other results.
            parts: everything else that can change the result.
            build: writes the result into the folder it is given.
            label: how the step is called on the screen.
            total: units of work, for a progress bar.
        """
        key = self.key(stage, stage_version, parts)
        started = time.perf_counter()
        self.emit(StepStarted(step=label, total=total))
        with self._failing(label):
            result = self.store.get_or_build(stage, key, lambda folder: self._guarded(label, build, folder))
        seconds = time.perf_counter() - started
        self.emit(StepFinished(step=label, cached=result.cached, seconds=seconds, key=key))
        return result

    @contextmanager
    def measuring(self, label: str, at_most: float | None = None) -> Iterator[None]:
        """A step that measures: the console holds still, and nothing is stored.

        Args:
            label: how the step is called on the screen.
            at_most: seconds that timed runs take at most, said beforehand, since a bar would move while it measures.
        """
        started = time.perf_counter()
        self.emit(Quiet(step=label, at_most=at_most))
        with self._failing(label):
            yield
        self.emit(StepFinished(step=label, cached=False, seconds=time.perf_counter() - started))

    def progress(self, label: str) -> Callable[[int], None]:
        """A callback for a step's progress."""
        return lambda done: self.emit(StepProgress(step=label, done=done))

    def stages(self, label: str) -> Callable[[str], None]:
        """A callback for what a step does now."""
        return lambda stage: self.emit(StepStage(step=label, stage=stage))

    @contextmanager
    def guarded(self, label: str) -> Iterator[None]:
        """Captures noise, and turns what a library raises into a StageError; our own bugs stay what they are."""
        try:
            with self.log.capture():
                yield
        except ExporterError as error:
            if error.__cause__ is not None:
                self.log.write(f"\n{label} failed\n{traceback.format_exc()}")
            raise
        except Exception as error:
            if isinstance(error, OSError) and self.store.is_writing_error(error):
                raise writing_failed(error, label, self.store.root) from error
            with suppress(OSError):
                self.log.write(f"\n{label} failed\n{traceback.format_exc()}")
            if _is_ours(error):
                raise
            raise StageError(
                f"{label} failed",
                where=_raised_in(error),
                why=shorten(f"{type(error).__name__}: {error}"),
                hint=f"the library's log is in {self.log.path}",
            ) from error

    def _guarded(self, label: str, build: Callable[[Path], None], folder: Path) -> None:
        with self.guarded(label):
            build(folder)
            self.watch.check()

    @contextmanager
    def _failing(self, label: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.emit(StepFailed(step=label))
            raise


@cache
def code_digest() -> str:
    """SHA-256 over the exporter's own modules, so that no result outlives the code that made it."""
    files = sorted(OURS.rglob("*.py"))
    return digest_of([[file.relative_to(OURS).as_posix(), file_digest(file)] for file in files])


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions, for keys and manifests; nothing is imported."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def _last_file(error: BaseException) -> Path:
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename) if frames else OURS


def _is_ours(error: BaseException) -> bool:
    return OURS in _last_file(error).resolve().parents


def _raised_in(error: BaseException) -> str:
    file = _last_file(error)
    parts = file.parts
    return "/".join(parts[parts.index("site-packages") + 1 :]) if "site-packages" in parts else file.name
