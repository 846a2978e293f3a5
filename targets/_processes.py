"""A process that a library runs in, and that tells what it does while it does it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


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
    late = threading.Event()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        try:
            process = subprocess.Popen(
                [*command, str(writer)], env=environment, cwd=folder, stdin=subprocess.DEVNULL, pass_fds=(writer,)
            )
        finally:
            # This end stays open in the process alone, so that the lines end when it does.
            os.close(writer)

        def end() -> None:
            late.set()
            process.kill()

        watch = threading.Timer(seconds, end)
        watch.start()
        try:
            for line in lines:
                tell(line.strip())
            code = process.wait()
        finally:
            watch.cancel()
            process.kill()
            process.wait()
    if late.is_set():
        raise TimeoutError(f"{command[0]} took longer than {seconds} s")
    return code
