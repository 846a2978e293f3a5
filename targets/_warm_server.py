"""Imports what jobs need once, and runs each job in a fork of itself, as `python -m MODULE` would.

Started by `targets._warm` as `python -m targets._warm_server SOCKET`. Nothing is computed before it forks:
what a job leaves behind, or takes down, goes with its own process.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers until the other end is closed, and ends a job that runs then."""
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        nowhere = os.open(os.devnull, os.O_RDWR)
        while True:
            content, given, _, _ = socket.recv_fds(asking, 4096, 3)
            if not content:
                return
            job = json.loads(Path(os.fsdecode(content)).read_bytes())
            point(given[0], given[1])
            for name in job["imports"]:
                # The job imports it again, and says what it found.
                with suppress(Exception):
                    importlib.import_module(name)
            sys.stdout.flush()
            alive, held = os.pipe()
            child = os.fork()
            if child == 0:
                asking.close()
                run(job, given)
            point(nowhere, nowhere)
            for descriptor in (*given, held):
                os.close(descriptor)
            if asking.fileno() in select.select([asking.fileno(), alive], [], [])[0]:
                os.kill(child, signal.SIGKILL)
            os.close(alive)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(BrokenPipeError):
                asking.send(str(code).encode())


def point(out: int, err: int) -> None:
    """Sends what is printed somewhere else."""
    os.dup2(out, 1)
    os.dup2(err, 2)


def run(job: dict[str, Any], given: Sequence[int]) -> None:
    """Runs a job in this process, and ends it."""
    code = 1
    try:
        for descriptor in given[:2]:
            os.close(descriptor)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv = ["", *job["arguments"], str(given[2])]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
