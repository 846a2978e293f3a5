"""A process that a library runs in, and that tells what it does while it does it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited(seconds: float, end: Callable[[], None], what: str) -> Iterator[None]:
    """Gives what is done inside so much time.

    Args:
        seconds: that it may take.
        end: stops it when they are over.
        what: is done, for the error.

    Raises:
        TimeoutError: they were over, and it ended without an error of its own.
    """
    late = threading.Event()

    def stop() -> None:
        late.set()
        end()

    watch = threading.Timer(seconds, stop)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
    if late.is_set():
        raise TimeoutError(f"{what} took longer than {seconds} s")


def run_telling(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    seconds: float,
    tell: Callable[[str], None],
) -> int:
    """Runs a command in a folder; what it prints goes where this process's output goes: the run log, in a step.

    Args:
        command: gets one more argument, the number of a file descriptor that it may write lines to.
        folder: to run in.
        environment: of the process.
        seconds: that it may take.
        tell: gets each of those lines as soon as it is written.

    Returns:
        Its exit code; a signal is a negative number.

    Raises:
        TimeoutError: it took longer, and was ended.
    """
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        try:
            process = subprocess.Popen(
                [*command, str(writer)], env=environment, cwd=folder, stdin=subprocess.DEVNULL, pass_fds=(writer,)
            )
        finally:
            # This end stays open in the process alone, so that the lines end when it does.
            os.close(writer)
        with limited(seconds, process.kill, command[0]):
            try:
                for line in lines:
                    tell(line.strip())
                code = process.wait()
            finally:
                process.kill()
                process.wait()
    return code
