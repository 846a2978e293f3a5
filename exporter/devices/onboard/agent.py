"""What serves an exporter on a device: takes requests on stdin, answers on stdout, and ends when its exporter does.

A request is a line of JSON, `put` has the file's bytes behind it; an answer is a line of JSON, `run` has what was
printed behind it. Nothing passes through a shell. Files are kept by their SHA-256; one that is not whole stays in
`tmp` under another name and is never used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from typing import Any

IDLE_SECONDS = 300
"""A lost connection that nobody told the device about must not keep the lock for ever."""
CHUNK = 1 << 20
LOCK = "\0edge-exporter-measures"


class Refusal(Exception):
    """A request that could not be met: a kind that the exporter knows, and words."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Requests:
    """stdin, read without ever waiting for longer than an exporter can be silent."""

    def __init__(self) -> None:
        self.held = b""

    def fill(self) -> None:
        """Reads what is there; ends this process when nothing will come."""
        ready = select.select([0], [], [], IDLE_SECONDS)[0]
        got = os.read(0, CHUNK) if ready else b""
        if not got:
            os._exit(0)
        self.held += got

    def line(self) -> bytes:
        """One line."""
        while b"\n" not in self.held:
            self.fill()
        line, _, self.held = self.held.partition(b"\n")
        return line

    def some(self, most: int) -> bytes:
        """At least one byte, at most `most`."""
        if not self.held:
            self.fill()
        got, self.held = self.held[:most], self.held[most:]
        return got


class Agent:
    """The folder that bundles and environments are kept in, and the locks on it and on the device."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.folder = ""
        self.lock: Any = None

    def place(self, name: str) -> str:
        """A path inside the folder."""
        path = os.path.normpath(os.path.join(self.folder, name))
        if not self.folder or not path.startswith(self.folder + os.sep):
            raise Refusal("outside", name)
        return path

    def open(self, folder: str) -> dict[str, Any]:
        """Takes the folder and the device for one exporter, until this process ends."""
        where = os.path.abspath(os.path.expanduser(folder))
        os.makedirs(where, mode=0o700, exist_ok=True)
        self.lock = self.lock or lock_device()
        if self.lock is None or not lock_folder(where):
            raise Refusal("locked", "another exporter measures on this device")
        self.folder = where
        shutil.rmtree(self.place("tmp"), ignore_errors=True)  # What a cut connection left.
        for name in ("tmp", "blobs", "bundles", "envs"):
            os.makedirs(self.place(name), exist_ok=True)
        return {"folder": where}

    def lacking(self, files: dict[str, int]) -> dict[str, Any]:
        """Which of these files, by digest, are not here whole; and the space that is left."""
        absent = [digest for digest, size in files.items() if not self.whole(digest, size)]
        return {"lacking": absent, "free_bytes": shutil.disk_usage(self.folder).free}

    def whole(self, digest: str, size: int) -> bool:
        """Whether a file is here, read again: a card may have lost what was written to it."""
        path = self.place("blobs/" + digest)
        if not os.path.isfile(path) or os.path.getsize(path) != size:
            return False
        found = hashlib.sha256()
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(CHUNK), b""):
                found.update(block)
        return found.hexdigest() == digest

    def put(self, digest: str, size: int) -> dict[str, Any]:
        """Takes a file's bytes; it gets its name when all of them are on the disk and have the right digest."""
        path = self.place("tmp/" + uuid.uuid4().hex)
        try:
            if self.take(path, size) != digest:
                raise Refusal("damaged", digest)
            os.replace(path, self.place("blobs/" + digest))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return {}

    def take(self, path: str, size: int) -> str:
        """Writes the bytes that follow to a file and the disk; gives their digest."""
        found, fault, handle = hashlib.sha256(), None, -1
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        except OSError as error:
            fault = error
        while size:
            block = self.requests.some(min(size, CHUNK))
            size -= len(block)
            found.update(block)
            try:
                # On a full disk the rest is still on its way, and must be read before the answer.
                while block and fault is None:
                    block = block[os.write(handle, block) :]
            except OSError as error:
                fault = error
        if handle >= 0:
            try:
                os.fsync(handle)
            except OSError as error:
                fault = fault or error
            os.close(handle)
        if fault is not None:
            raise fault
        return found.hexdigest()

    def arrange(self, name: str, files: dict[str, str]) -> dict[str, Any]:
        """Lays files out under their names, in a folder that appears whole."""
        made, path = self.place("tmp/" + uuid.uuid4().hex), self.place(name)
        for relative, digest in files.items():
            target = os.path.normpath(os.path.join(made, relative))
            if not target.startswith(made + os.sep):
                raise Refusal("outside", relative)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                os.link(self.place("blobs/" + digest), target)
            except OSError:  # A file system without links, such as a phone's shared storage.
                shutil.copyfile(self.place("blobs/" + digest), target)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(made, path)
        return {"path": path}

    def exists(self, name: str) -> dict[str, Any]:
        """Whether there is such a file."""
        return {"exists": os.path.exists(self.place(name)), "path": self.place(name)}

    def mark(self, name: str) -> dict[str, Any]:
        """An empty file, on the disk before this returns: what lies beside it is complete."""
        with open(self.place(name), "wb") as stream:
            os.fsync(stream.fileno())
        os.sync()
        return {}

    def remove(self, names: list[str]) -> dict[str, Any]:
        """Removes files and folders."""
        for name in names:
            path = self.place(name)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.lexists(path):
                os.unlink(path)
        return {}

    def run(self, argv: list[str], seconds: float) -> dict[str, Any]:
        """Runs a program from an empty folder; it and all that it started end with this process, or in time."""
        away = self.place("tmp/" + uuid.uuid4().hex) if self.folder else None
        if away:
            os.makedirs(away)
        try:
            child = subprocess.Popen(
                argv, cwd=away, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Refusal("cannot start", f"{argv[0]}: {error.strerror}") from error
        awake, ended = os.pipe()
        watch = threading.Thread(target=end_with_exporter, args=(child.pid, awake), daemon=True)
        watch.start()
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            end(child.pid)
            child.communicate()
            raise Refusal("timeout", f"{seconds:.0f} s") from None
        finally:
            os.close(ended)
            watch.join()
            os.close(awake)
            if away:
                shutil.rmtree(away, ignore_errors=True)
        return {"code": child.returncode, "err": err.decode("utf-8", "replace")[-20000:], "bytes": out}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Does what a request asks for."""
        action = request.pop("op")
        if action not in ("open", "lacking", "put", "arrange", "exists", "mark", "remove", "run"):
            raise Refusal("unknown", action)
        reply: dict[str, Any] = getattr(self, action)(**request)
        printed: bytes = reply.pop("bytes", b"")
        return {"ok": True, "size": len(printed), **reply}, printed


def emulator() -> str:
    """What gives away that this processor is emulated; empty where nothing does: no proof that it is real."""
    machine, cpuinfo = platform.machine(), text("/proc/cpuinfo")
    process, kernel = text("/proc/self/comm"), text("/proc/sys/kernel/arch") or machine
    if process.startswith("qemu-"):
        return f"its programs run inside {process}"
    if family(kernel) != family(machine) or (family(machine) == "arm" and "vendor_id" in cpuinfo):
        return f"its programs are of {machine}, and its kernel is of another processor"
    board = text("/sys/firmware/devicetree/base/compatible") + text("/sys/class/dmi/id/sys_vendor")
    if family(machine) == "arm" and ("dummy-virt" in board or "QEMU" in board):
        return "it calls itself a board of QEMU's"
    return "it calls its processor QEMU's" if "QEMU TCG" in cpuinfo else ""


def family(machine: str) -> str:
    """Machines whose processors run each other's programs."""
    return "arm" if re.match("arm|aarch64", machine) else "x86" if re.match("x86|i.86|amd64", machine) else machine


def text(path: str) -> str:
    """A small file; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def lock_device() -> Any:
    """A name that only one process of this machine can hold, whoever runs it; freed when that process ends."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(LOCK)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            lock.close()
            return None
        # A system that knows no such names; the lock of the folder is what there is then.
    return lock


def lock_folder(folder: str) -> bool:
    """A lock that is freed when this process ends."""
    import fcntl

    handle = os.open(os.path.join(folder, "lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    return True


def end(group: int) -> None:
    """Ends a program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def end_with_exporter(group: int, awake: int) -> None:
    """While a program runs no request comes: what can be read from stdin is its end."""
    if 0 in select.select([0, awake], [], [])[0]:
        end(group)
        os._exit(0)


def send(reply: dict[str, Any], printed: bytes) -> None:
    """Writes an answer."""
    rest = json.dumps(reply).encode() + b"\n" + printed
    while rest:
        rest = rest[os.write(1, rest) :]


def serve(token: str) -> None:
    """Says who is there, then answers until stdin ends."""
    requests = Requests()
    agent = Agent(requests)
    hello = {
        "python": sys.executable,
        "version": platform.python_version(),
        "machine": platform.machine(),
        "emulator": emulator(),
    }
    # Login scripts may have printed something; the token says where answers begin.
    os.write(1, ("\n" + token + "\n").encode())
    send(hello, b"")
    while True:
        request = json.loads(requests.line())
        try:
            reply, printed = agent.answer(request)
        except Refusal as refusal:
            reply, printed = {"ok": False, "kind": refusal.kind, "why": str(refusal)}, b""
        except OSError as error:
            kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
            place = f" ({error.filename})" if error.filename else ""
            reply, printed = {"ok": False, "kind": kind, "why": f"{error.strerror or error}{place}"}, b""
        send(reply, printed)
