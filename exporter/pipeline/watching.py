"""Files that a build reads: one that changes meanwhile must not stand in the store for what it was before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from exporter.errors import DataError

Stamp = tuple[int, int, int] | None


class Watch:
    """Remembers what files looked like when their digests were taken."""

    def __init__(self) -> None:
        self._stamps: dict[Path, Stamp] = {}

    def add(self, files: Iterable[Path]) -> None:
        """Remembers how files look now; those that are known keep what is known."""
        for file in files:
            self._stamps.setdefault(file, _stamp(file))

    def check(self) -> None:
        """Looks at all files again.

        Raises:
            DataError: one is another file now, or was written to.
        """
        for file, before in self._stamps.items():
            if _stamp(file) != before:
                raise DataError(
                    "a file changed while the build was reading it",
                    where=str(file),
                    why="nobody knows which of its contents the step saw, so its result is not kept",
                    hint="build again when nothing writes to it; finished steps are kept",
                )


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
