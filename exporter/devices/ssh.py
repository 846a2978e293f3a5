"""A device reached by the system's ssh, with the user's own configuration, keys, agents and jump hosts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.artifacts import DeviceFacts, Manifest
from exporter.devices.channel import Channel, Lost, boot
from exporter.devices.config import NamedDevice, ssh_destination
from exporter.devices.local import PROBE, PROBE_SECONDS, RUNTIMES, probed
from exporter.devices.remote import RemoteBundle, bundle_on, emulation, emulation_note, folder_of, speaking
from exporter.errors import ExporterError, MissingError, StageError, shorten
from exporter.events import Emit

LOGIN_SECONDS = 30.0
"""After the connection: keys, login scripts, and the start of Python on a slow card."""
NOT_FOUND, NOT_RUNNABLE = 127, 126
FAULTS: Sequence[tuple[str, str, str]] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{0} shows another host key than before",
        "was it set up anew? `ssh-keygen -R {1}` forgets the old key; else someone may stand between",
    ),
    (
        "Host key verification failed",
        "the host key of {0} is not known",
        "connect once with `{2}`, compare the fingerprint, and accept it",
    ),
    (
        "Permission denied",
        "{0} refuses the login",
        "nothing is asked for here: `{2}` must work without a password (`ssh-copy-id`, `ssh-add`)",
    ),
    ("Too many authentication failures", "{0} refuses the login", "name the key (IdentityFile) in ~/.ssh/config"),
    ("Could not resolve hostname", "there is no host {1}", "is the name right, and the device in this network?"),
)
"""What ssh says, what that means, and what to do: device, host, a command to try."""


class SshDevice:
    """A device at `ssh://user@host:port`."""

    def __init__(self, named: NamedDevice) -> None:
        self.name = named.name
        self.address = named.plan.address
        self._named = named

    def check(self) -> DeviceFacts:
        """Asks the interpreter that would run a bundle."""
        plan = self._named.plan
        with self._connected() as channel, speaking(self.name, "looking at the device"):
            python = plan.python or channel.hello["python"]
            emulated = emulation(channel, self._named)
            probe = [python, "-I", "-c", PROBE.read_text(encoding="utf-8"), folder_of(plan), *RUNTIMES]
            code, printed, words = channel.run(probe, PROBE_SECONDS)
        if code != 0:
            raise StageError(f"{self.name} could not be looked at", where=python, why=shorten(words, 600))
        made = "an environment with the bundle's runtime is made when a bundle is measured"
        notes = [*([] if plan.python else [made]), *([emulation_note(emulated)] if emulated else [])]
        return probed(printed, self.name, self.address, notes, "emulated" if emulated else "native")

    @contextmanager
    def prepared(self, bundle: Path, manifest: Manifest, emit: Emit) -> Iterator[RemoteBundle]:
        """The bundle on the device, with an environment made there once."""
        with self._connected() as channel, bundle_on(channel, self._named, bundle, manifest, emit) as ready:
            yield ready

    @contextmanager
    def _connected(self) -> Iterator[Channel]:
        plan = self._named.plan
        try:
            channel = Channel(self._command(), plan.connect_seconds + LOGIN_SECONDS)
        except FileNotFoundError as error:
            hint = "install the OpenSSH client (Debian: `sudo apt install openssh-client`)"
            raise MissingError("there is no ssh on this machine", hint=hint) from error
        except Lost as error:
            raise self._unreachable(error) from error
        try:
            yield channel
        finally:
            channel.close()

    def _command(self) -> list[str]:
        """The command line of ssh; the one place where words become text for a remote shell."""
        plan = self._named.plan
        destination, port = ssh_destination(plan.address)
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(max(1, round(plan.connect_seconds))),
            # A cut cable must end the conversation here, as the end of stdin does on the device.
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            # What a user has set for an interactive login to this host has no place here.
            "RemoteCommand": "none",
            "ClearAllForwardings": "yes",
        }
        return [
            "ssh", "-T",
            *(["-F", str(plan.ssh_config)] if plan.ssh_config else []),
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
            *(["-p", str(port)] if port else []),
            "--", destination, shlex.join(["exec", *boot(plan.python or "python3")]),
        ]  # fmt: skip

    def _unreachable(self, error: Lost) -> ExporterError:
        destination, port = ssh_destination(self.address)
        host, python = destination.rpartition("@")[2], self._named.plan.python or "python3"
        attempt = " ".join(["ssh", *(["-p", str(port)] if port else []), destination])
        where, why = self.address, shorten(error.words, 600) or None
        if error.code == NOT_FOUND or (error.code == NOT_RUNNABLE and python in error.words):
            hint = "install Python 3.9 or newer there, or set `python` in devices.toml to where it is"
            return MissingError(f"{self.name} has no {python}", where=where, why=why, hint=hint)
        if "edge-exporter needs Python" in error.words:
            hint = "set `python` in devices.toml to a newer interpreter there"
            return MissingError(f"the Python of {self.name} is too old", where=where, why=why, hint=hint)
        for words, what, hint in FAULTS:
            if re.search(words, error.words, re.IGNORECASE):
                known = (self.name, host, attempt)
                return MissingError(what.format(*known), where=where, why=why, hint=hint.format(*known))
        hint = f"is it on, and reachable from here? try `{attempt}`"
        return MissingError(f"{self.name} cannot be reached", where=where, why=why, hint=hint)
