"""A conversation with the agent on a device, through whatever command reaches it.

One connection carries everything: requests, files and what a benchmark printed. The agent is a script that travels
over stdin, so the command line that the remote shell sees is constant and nothing else is ever quoted; a device needs
Python and no sftp server; the lock on the device, and every process started there, end with the connection; and a
file is checked by its digest where it arrives. A connection for each step (scp, then ssh, then scp) would have none
of this, and would make each step wait for another login or need a shared one that outlives its owner.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from exporter.errors import ExporterError, MissingError, StageError, shorten

AGENT = Path(__file__).parent / "onboard" / "agent.py"
BOOT = (
    "import sys;sys.version_info<(3,9)and sys.exit('edge-exporter needs Python 3.9 or newer, this is '"
    "+sys.version.split()[0]);exec(sys.stdin.buffer.raw.read(int(sys.argv[1])))"
)
"""All that the device's command line holds; the agent comes over stdin."""
ANSWER_SECONDS = 120.0
CHUNK = 1 << 16


class Refused(Exception):
    """The agent's answer to a request that it could not meet: a kind, and its words."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why


class Lost(Exception):
    """The connection ended: the exit code of the command that held it, and what that said."""

    def __init__(self, code: int | None, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


class Channel:
    """An open conversation.

    Attributes:
        hello: what the agent said of its interpreter: `python`, `version`, `machine`, `emulator`.
    """

    def __init__(self, command: Sequence[str], connect_seconds: float) -> None:
        """Starts the agent.

        Args:
            command: reaches the device and runs there what `boot` gives, its stdin and stdout connected.
            connect_seconds: how long that may take.

        Raises:
            Lost: it could not be started.
            FileNotFoundError: there is no such command here.
        """
        self._held = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the channel
        # A session of its own: Ctrl-C must reach the exporter, which then ends the conversation in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        token = uuid.uuid4().hex
        try:
            self._write(agent_source(token), connect_seconds)
            self._skip_to(token.encode(), connect_seconds)
            self.hello: dict[str, Any] = msgspec.json.decode(self._line(connect_seconds))
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, *, within: float = ANSWER_SECONDS, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            Refused: the agent could not do it.
            Lost: the connection ended, or no answer came in time.
        """
        self._write(msgspec.json.encode({"op": op, **request}) + b"\n", within)
        return self._answer(within)

    def put(self, digest: str, file: Path) -> None:
        """Sends a file.

        Raises:
            Refused: the agent could not keep it.
            Lost: the connection ended.
        """
        size = file.stat().st_size
        self._write(msgspec.json.encode({"op": "put", "digest": digest, "size": size}) + b"\n", ANSWER_SECONDS)
        with file.open("rb") as stream:
            while block := stream.read(CHUNK):
                self._write(block, ANSWER_SECONDS)
        self._answer(ANSWER_SECONDS)

    def run(self, argv: Sequence[str], seconds: float) -> tuple[int, bytes, str]:
        """Runs a program on the device: exit code (negative for a signal), stdout, stderr.

        Raises:
            Refused: `timeout`, or it could not be started.
            Lost: the connection ended.
        """
        done = self.ask("run", within=seconds + ANSWER_SECONDS, argv=list(argv), seconds=seconds)
        return done["code"], done["printed"], done["err"]

    def close(self) -> None:
        """Ends the conversation: the agent sees the end of its stdin, frees its locks and ends."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        reply: dict[str, Any] = msgspec.json.decode(self._line(seconds))
        if not reply["ok"]:
            raise Refused(reply["kind"], reply["why"])
        reply["printed"] = self._exactly(reply["size"], ANSWER_SECONDS)
        return reply

    def _write(self, content: bytes, seconds: float) -> None:
        view = memoryview(content)
        while view:
            if not select.select([], [self._to], [], seconds)[1]:
                self._lost(f"nothing was taken for {seconds:.0f} s")
            try:
                view = view[os.write(self._to, view[:CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError:
                self._lost()

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._from], [], [], left)[0]:
            self._lost("no answer came in time")
        got = os.read(self._from, CHUNK)
        if not got:
            self._lost()
        self._held += got

    def _line(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._held:
            self._fill(deadline)
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _skip_to(self, token: bytes, seconds: float) -> None:
        """Passes over what login scripts print."""
        deadline = time.monotonic() + seconds
        while self._line(max(0.0, deadline - time.monotonic())).strip() != token:
            continue

    def _exactly(self, size: int, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while len(self._held) < size:
            self._fill(deadline)
        got, self._held = self._held[:size], self._held[size:]
        return got

    def _lost(self, why: str = "") -> NoReturn:
        try:
            code: int | None = self._process.wait(timeout=0.0 if why else 5.0)
        except subprocess.TimeoutExpired:
            code = None
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip()
        raise Lost(code, why or words)


def boot(python: str) -> list[str]:
    """The words of the command that starts the agent on a device."""
    return [python, "-I", "-c", BOOT, str(len(agent_source("0" * 32)))]


def agent_source(token: str) -> bytes:
    """The agent, told by which token its answers begin."""
    return AGENT.read_bytes() + f"\nserve({token!r})\n".encode()


def trouble(device: str, doing: str, error: Refused | Lost) -> ExporterError:
    """The user's error for a request that was not met while doing something."""
    where, why = f"device {device}", shorten(error, 600)
    if isinstance(error, Lost):
        return StageError(
            f"the connection to {device} was lost while {doing}",
            where=where,
            why=why or None,
            hint="run the same command again: what has arrived whole is not sent again",
        )
    if error.kind == "full":
        return StageError(
            f"no space left on {device} while {doing}",
            where=where,
            why=why,
            hint="free some space there, or choose another `folder` in devices.toml",
        )
    if error.kind == "timeout":
        return StageError(f"{doing} on {device} did not end within {why}", where=where, hint="is the device busy?")
    if error.kind == "locked":
        return MissingError(f"{device} is in use: {why}", where=where, hint="run the same command again later")
    if error.kind == "damaged":
        return StageError(f"a file arrived damaged on {device}", where=where, why=why, hint="run the command again")
    return StageError(f"{doing} failed on {device}", where=where, why=f"{error.kind}: {why}")
