"""A real sshd on loopback that plays a device: a child process with its own keys, ended with the test."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import Result, Workplace

from exporter.artifacts import Profile
from exporter.bundle import read_manifest, read_profiles

MEASURED = ("--min-seconds", "0.02", "--max-seconds", "0.3")
SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)


@dataclass(frozen=True)
class Server:
    """A running sshd."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        """The client configuration that knows its host key, and has its key."""
        return self.folder / "client.conf"

    def client(self, name: str, **changes: str) -> Path:
        """A client configuration with some values changed."""
        lines = dict(line.split(" ", 1) for line in self.config.read_text().splitlines())
        path = self.folder / name
        path.write_text("".join(f"{key} {value}\n" for key, value in {**lines, **changes}.items()))
        return path

    def children(self) -> list[int]:
        """Processes of sshd that serve a connection."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found


class Board:
    """A device named `board` in a devices.toml of its own."""

    def __init__(self, place: Workplace, server: Server, folder: Path) -> None:
        self.place = place
        self.server = server
        self.file = folder / "devices.toml"
        self.home = folder / "on the device"
        self.keys: dict[str, object] = {
            "address": f"ssh://127.0.0.1:{server.port}",
            "ssh_config": str(server.config),
            "python": sys.executable,
            "folder": str(self.home),
            "connect_seconds": 5,
        }
        self.set()

    def set(self, **changes: object) -> Board:
        """Changes keys; None removes one."""
        self.keys |= changes
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.keys.items() if value is not None]
        self.file.write_text("\n".join(["schema = 1", "[devices.board]", *lines]) + "\n")
        return self

    def arguments(self, bundle: Path) -> list[str]:
        return ["profile", str(bundle), "--device", "board", "--devices", str(self.file), *MEASURED]

    def profile(self, bundle: Path, *more: str) -> Result:
        return self.place.run(*self.arguments(bundle), *more)

    def check(self, *more: str) -> Result:
        return self.place.run("devices", "check", "board", "--devices", self.file, *more)

    def files(self, folder: str = "") -> list[str]:
        """Regular files on the device."""
        top = self.home / folder
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def only_profile(bundle: Path) -> Profile:
    (profile,) = read_profiles(bundle, read_manifest(bundle)).values()
    return profile


@contextmanager
def serving(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None, small: tuple[Path, str] | None = None
) -> Iterator[Server]:
    """Starts an sshd.

    Args:
        folder: for its keys and configuration.
        options: further lines of its configuration.
        environment: variables of what runs there, beside those of a new login.
        small: a folder that is a disk of that size there (needs root).
    """
    assert SSHD is not None, "sshd is missing: install openssh-server"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    port = free_port()
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/authorized",
        "UsePAM no", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password", "PidFile none", "LogLevel VERBOSE", *options,
        *(["SetEnv " + " ".join(f"{name}={value}" for name, value in environment.items())] if environment else []),
    ]  # fmt: skip
    (folder / "server.conf").write_text("\n".join(lines) + "\n")
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (folder / "client.conf").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nLogLevel ERROR\n"
    )
    with (folder / "log").open("wb") as log:
        command = [SSHD, "-D", "-e", "-f", str(folder / "server.conf")]
        if small is not None:
            mount = 'mount -t tmpfs -o size="$1" tmpfs "$0" && shift && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", mount, str(small[0]), small[1], *command]
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait(port, process, folder / "log")
            yield Server(folder, port, process)
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"sshd did not start: {log.read_text()}")
