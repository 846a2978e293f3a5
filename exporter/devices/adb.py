"""An Android device reached by the `adb` command, with a Python that the user put there."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.artifacts import DeviceFacts, Manifest
from exporter.devices.android import android_facts
from exporter.devices.channel import Channel, Lost, boot
from exporter.devices.config import ADB, NamedDevice
from exporter.devices.local import PROBE, PROBE_SECONDS, RUNTIMES, probed
from exporter.devices.remote import RemoteBundle, bundle_on, emulation, emulation_note, folder_of, speaking
from exporter.errors import ExporterError, MissingError, StageError, shorten
from exporter.events import Emit

SERVER_SECONDS = 30.0
"""The first call starts adb's own server."""
STATES = {
    "unauthorized": "unlock it and accept the question whether this computer may debug it",
    "authorizing": "unlock it and accept the question whether this computer may debug it",
    "offline": "unplug it and plug it in again, or `adb reconnect`",
    "no permissions": "this user may not use the USB device: `sudo apt install android-sdk-platform-tools-common` "
    "brings the udev rules, then plug it in again",
    "recovery": "let it start Android",
    "sideload": "let it start Android",
    "bootloader": "let it start Android",
}
"""What to do about a device that adb sees and cannot use, by the state that `adb devices` shows."""


class Adb:
    """The adb command, and the one device that it is to use."""

    def __init__(self, named: NamedDevice) -> None:
        self._named = named
        self._serial = named.plan.address.removeprefix(ADB)

    def ready(self) -> str:
        """The serial of the device, once adb can use it.

        Raises:
            MissingError: there is no adb, no such device, or adb cannot use it.
        """
        name = self._named.name
        found = self._devices()
        seen = ", ".join(f"{serial} ({state})" for serial, state in found.items()) or "none"
        if not self._serial and len(found) > 1:
            hint = f"say which: --device adb:{next(iter(found))}, or `address` in devices.toml"
            raise MissingError("several Android devices are connected", why=f"adb sees {seen}", hint=hint)
        serial = self._serial or next(iter(found), "")
        if serial not in found:
            what = f"adb sees no device '{serial}'" if serial else "no Android device is connected"
            hint = "turn on USB debugging in its developer options, connect it, and look with `adb devices`"
            raise MissingError(what, where=f"device {name}", why=f"adb sees {seen}", hint=hint)
        state = found[serial]
        if state != "device":
            hint = next((words for known, words in STATES.items() if state.startswith(known)), "see `adb devices`")
            raise MissingError(f"adb cannot use {serial}: {state}", where=f"device {name}", hint=hint)
        return serial

    def shell(self, serial: str, words: Sequence[str]) -> list[str]:
        """A command line that runs a program on the device; the one place where words become text for its shell."""
        return ["adb", "-s", serial, "shell", "-T", shlex.join(words)]

    def _devices(self) -> dict[str, str]:
        try:
            done = subprocess.run(
                ["adb", "devices"], stdin=subprocess.DEVNULL, capture_output=True, timeout=SERVER_SECONDS, check=False
            )
        except FileNotFoundError as error:
            hint = "install Android's platform tools (Debian: `sudo apt install adb`)"
            raise MissingError("there is no adb on this machine", hint=hint) from error
        except subprocess.TimeoutExpired as error:
            why, hint = f"nothing came in {SERVER_SECONDS:.0f} s", "`adb kill-server`, then again"
            raise MissingError("adb does not answer", why=why, hint=hint) from error
        text = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            words = shorten(done.stderr.decode(errors="replace") or text, 600)
            raise MissingError("adb cannot list devices", why=words, hint="`adb kill-server`, then again")
        lines = text.partition("List of devices attached")[2].splitlines()
        return {serial: state for serial, tab, state in (line.strip().partition("\t") for line in lines) if tab}


class AdbDevice:
    """A device at `adb:SERIAL`, or the only one that is connected at `adb:`."""

    def __init__(self, named: NamedDevice) -> None:
        self.name = named.name
        self.address = named.plan.address
        self._named = named
        self._adb = Adb(named)

    def check(self) -> DeviceFacts:
        """Asks its Python, or where none is configured what Android itself tells."""
        serial, python = self._adb.ready(), self._named.plan.python
        if python is None:
            folder = folder_of(self._named.plan)
            return android_facts(lambda words: self._adb.shell(serial, words), self.name, self.address, folder)
        with self._connected(python) as channel, speaking(self.name, "looking at the device"):
            probe = [python, "-I", "-c", PROBE.read_text(encoding="utf-8"), folder_of(self._named.plan), *RUNTIMES]
            code, printed, words = channel.run(probe, PROBE_SECONDS)
            emulated = emulation(channel, self._named)
        if code != 0:
            raise StageError(f"{self.name} could not be looked at", where=python, why=shorten(words, 600))
        notes = [emulation_note(emulated)] if emulated else []
        return probed(printed, self.name, self.address, notes, "emulated" if emulated else "native")

    @contextmanager
    def prepared(self, bundle: Path, manifest: Manifest, emit: Emit) -> Iterator[RemoteBundle]:
        """The bundle on the device, run by the Python that is there."""
        python = self._named.plan.python
        if python is None:
            raise MissingError(
                f"nothing is known on {self.name} that runs a bundle",
                where=self.address,
                why="Android brings no Python",
                hint="name one with `python = ...` in devices.toml, or reach Termux over ssh (docs/devices.md)",
            )
        with self._connected(python) as channel, bundle_on(channel, self._named, bundle, manifest, emit) as ready:
            yield ready

    @contextmanager
    def _connected(self, python: str) -> Iterator[Channel]:
        command = self._adb.shell(self._adb.ready(), ["exec", *boot(python)])
        try:
            channel = Channel(command, self._named.plan.connect_seconds)
        except Lost as error:
            raise self._unreachable(error, python) from error
        try:
            yield channel
        finally:
            channel.close()

    def _unreachable(self, error: Lost, python: str) -> ExporterError:
        where, why = self.address, shorten(error.words, 600) or None
        if error.code in (126, 127):
            hint = "`python` must be a file that adb's shell may run: `adb shell PYTHON --version` tries it"
            return MissingError(f"{self.name} cannot run {python}", where=where, why=why, hint=hint)
        if "edge-exporter needs Python" in error.words:
            return MissingError(f"the Python of {self.name} is too old", where=where, why=why)
        return MissingError(f"{self.name} cannot be reached", where=where, why=why, hint="see `adb devices`")
