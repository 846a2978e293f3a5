"""A process that has imported heavy libraries, and runs jobs that need them in forks of itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from targets._processes import limited, run_telling

SERVER = "targets._warm_server"
JOB = "warm.json"
FORKS = sys.platform == "linux"
"""Elsewhere a process with such libraries cannot be forked, or none can."""


class _Server(NamedTuple):
    process: subprocess.Popen[bytes]
    asking: socket.socket
    read: Mapping[str, str]
    """Variables that an interpreter reads once, when it starts."""


class WarmProcess:
    """Runs `python -m MODULE`, from the second time on without the seconds that its imports take.

    The first job starts it, and it ends with this process. Each job is a process of its own: one that crashes
    harms no other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        imports: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        seconds: float,
        tell: Callable[[str], None],
    ) -> int:
        """Runs a module as a job; what it prints goes where this process's output goes.

        Args:
            module: gets one more argument, the number of a file descriptor that it may write lines to.
            arguments: of the module.
            imports: modules that it will need.
            folder: to run in, and to write into.
            environment: of the job; what an earlier job has imported has seen that one's.
            seconds: that it may take.
            tell: gets each of those lines as soon as it is written.

        Returns:
            Its exit code; a signal is a negative number.

        Raises:
            TimeoutError: it took longer, and was ended.
        """
        if not FORKS or not self._lock.acquire(blocking=False):
            command = [sys.executable, "-P", "-m", module, *arguments]
            return run_telling(command, folder=folder, environment=environment, seconds=seconds, tell=tell)
        try:
            job = {"module": module, "arguments": [*arguments], "imports": [*imports], "folder": str(folder)}
            path = folder / JOB
            path.write_text(json.dumps({**job, "environment": dict(environment)}), encoding="utf-8")
            return _run(self._started(environment), path, seconds, tell)
        except BaseException:
            self.close()
            raise
        finally:
            self._lock.release()

    def _started(self, environment: Mapping[str, str]) -> _Server:
        read = {name: value for name, value in environment.items() if name.startswith(("PYTHON", "LD_"))}
        if self._server is None or self._server.process.poll() is not None or self._server.read != read:
            self.close()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                number = theirs.fileno()
                # In a group of its own, which is ended with the job that runs in it.
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", SERVER, str(number)],
                    env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, pass_fds=(number,), process_group=0,
                )  # fmt: skip
            self._server = _Server(process, ours, read)
        return self._server

    def close(self) -> None:
        """Ends the process and the job that it runs; the next job starts another."""
        if self._server is not None:
            _end(self._server)
            self._server.process.wait()
            self._server.asking.close()
            self._server = None


def _run(server: _Server, job: Path, seconds: float, tell: Callable[[str], None]) -> int:
    with limited(seconds, lambda: _end(server), str(job)):
        reader, writer = os.pipe()
        with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            try:
                socket.send_fds(server.asking, [os.fsencode(job)], [1, 2, writer])
            finally:
                # This end stays open in the job alone, so that the lines end when it does.
                os.close(writer)
            for line in lines:
                tell(line.strip())
        answer = server.asking.recv(64)
    # No answer comes where importing ended the process itself.
    return int(answer) if answer else server.process.wait()


def _end(server: _Server) -> None:
    if server.process.poll() is None:
        os.killpg(server.process.pid, signal.SIGKILL)


@cache
def warm_process(owner: int) -> WarmProcess:
    """The one of a process, by its id: a fork of this process must not talk to that of its parent."""
    return WarmProcess()
