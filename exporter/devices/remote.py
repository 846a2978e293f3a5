"""A bundle on a device that is reached through a channel: sent, given an environment, tested, measured, removed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exporter.artifacts import Manifest, Profile, Provenance, digest_of, file_digest
from exporter.devices.channel import Channel, Lost, Refused, trouble
from exporter.devices.config import ADB, DevicePlan, NamedDevice
from exporter.devices.running import (
    SELF_TEST,
    SELF_TEST_SECONDS,
    bench_arguments,
    bench_seconds,
    printed_profile,
    printed_self_test,
    runner_failed,
)
from exporter.errors import InputError, MissingError, shorten
from exporter.events import Emit, Note, StepFinished, StepProgress, StepStarted
from exporter.plan_types import ProfilePlan

MANIFEST = "manifest.json"
READY = ".ready"
FOLDER = "~/.cache/edge-exporter"
ANDROID_FOLDER = "/data/local/tmp/edge-exporter"
"""Where a shell of an unrooted phone may write files and run them."""
SPARE_BYTES = 8 * 2**20
LOOK_SECONDS = 1.0
REMOVED: Mapping[str, Sequence[str]] = {
    "environment": ("tmp", "blobs", "bundles"),
    "all": ("tmp",),
    "nothing": ("tmp", "blobs", "bundles", "envs"),
}
"""What goes at the end, by what the user wants to keep."""


class RemoteBundle:
    """A bundle on a device, and the interpreter that runs it there."""

    def __init__(self, channel: Channel, named: NamedDevice, python: str, path: str, variants: int) -> None:
        self._channel = channel
        self._name = named.name
        self._command = [python, "-B", f"{path}/run.py"]
        self._variants = variants
        self._path = path
        self._hint = python_hint(named) if named.plan.python else None
        self.emulated = emulation(channel, named)
        self.provenance: Provenance = "emulated" if self.emulated else "native"

    def self_test(self) -> dict[str, Any]:
        """`run.py --self-test --json` there.

        Raises:
            BundleError: it failed.
            MissingError: the runtime is not there.
        """
        return printed_self_test(self._run(SELF_TEST, SELF_TEST_SECONDS, "self-test"), self._where())

    def profile(self, settings: ProfilePlan) -> Profile:
        """`run.py --bench --json` there, in a fresh process, from an empty folder.

        Raises:
            BundleError: the self-test that precedes measuring failed.
            MissingError: the runtime is not there.
        """
        printed = self._run(bench_arguments(settings), bench_seconds(settings, self._variants), "benchmark")
        return printed_profile(printed, self._where())

    def _run(self, arguments: Sequence[str], seconds: float, what: str) -> bytes:
        with speaking(self._name, f"the {what}"):
            code, printed, words = self._channel.run([*self._command, *arguments], seconds)
        if code == 0:
            return printed
        error = runner_failed(what, self._where(), code, words.strip() or printed.decode(errors="replace"))
        if isinstance(error, MissingError):
            error.hint = self._hint
        raise error

    def _where(self) -> str:
        return f"{self._path} on {self._name}"


def emulation(channel: Channel, named: NamedDevice) -> str:
    """What says that the device's processor is emulated: devices.toml, else the device; empty where it is not."""
    if named.plan.emulated is not None:
        return "devices.toml says so" if named.plan.emulated else ""
    return str(channel.hello["emulator"])


def emulation_note(why: str) -> str:
    """What a reader of measurements from an emulated device must know."""
    return f"the processor is emulated ({why}): latency there says nothing about a device"


def python_hint(named: NamedDevice) -> str:
    """What to do where the interpreter that the user chose lacks something."""
    return f"install it for {named.plan.python} there, or leave `python` out: an environment is made then"


@contextmanager
def speaking(device: str, doing: str) -> Iterator[None]:
    """Turns what goes wrong in a conversation into an error for the user."""
    try:
        yield
    except (Refused, Lost) as error:
        raise trouble(device, doing, error) from error


@contextmanager
def bundle_on(
    channel: Channel, named: NamedDevice, bundle: Path, manifest: Manifest, emit: Emit
) -> Iterator[RemoteBundle]:
    """Holds the device for this exporter, brings the bundle and an environment there, and cleans up at the end.

    Raises:
        MissingError: the device stays in use by another exporter, or an environment cannot be had.
        StageError: the connection was lost, or the device's disk is full.
    """
    plan = named.plan
    _hold(channel, named, emit)
    try:
        files = {MANIFEST: file_digest(bundle / MANIFEST)} | {entry.path: entry.sha256 for entry in manifest.files}
        sources = {digest: bundle / path for path, digest in files.items()}
        _send(channel, named.name, sources, "the bundle", emit)
        with speaking(named.name, "laying out the bundle"):
            path = channel.ask("arrange", name=f"bundles/{digest_of(files)[:32]}", files=files)["path"]
        python = plan.python or _environment(channel, named, manifest, emit)
        yield RemoteBundle(channel, named, python, path, len(manifest.variants))
    except Exception:
        # Where the connection is gone there is nobody to clean up; what arrived then serves the next run.
        with suppress(Lost, Refused):
            channel.ask("remove", names=REMOVED[plan.keep])
        raise
    else:
        with speaking(named.name, "cleaning up"):
            channel.ask("remove", names=REMOVED[plan.keep])


def _hold(channel: Channel, named: NamedDevice, emit: Emit) -> None:
    """Waits until no other exporter has the device."""
    deadline, told = time.monotonic() + named.plan.wait_seconds, False
    while True:
        try:
            channel.ask("open", folder=folder_of(named.plan))
        except Refused as error:
            if error.kind != "locked" or time.monotonic() >= deadline:
                raise trouble(named.name, "opening its folder", error) from error
            if not told:
                emit(Note(text=f"{named.name} is in use by another exporter: waiting until it is free"))
            told = True
            time.sleep(LOOK_SECONDS)
        except Lost as error:
            raise trouble(named.name, "opening its folder", error) from error
        else:
            return


def folder_of(plan: DevicePlan) -> str:
    """Where bundles are put on the device."""
    return plan.folder or (ANDROID_FOLDER if plan.address.startswith(ADB) else FOLDER)


def _send(channel: Channel, device: str, sources: Mapping[str, Path], what: str, emit: Emit) -> None:
    """Sends the files, by digest, that the device lacks."""
    sizes = {digest: file.stat().st_size for digest, file in sources.items()}
    with speaking(device, f"sending {what}"):
        reply = channel.ask("lacking", files=sizes)
        lacking = reply["lacking"]
        needed = sum(sizes[digest] for digest in lacking)
        if needed + SPARE_BYTES > reply["free_bytes"]:
            raise Refused(
                "full", f"{needed / 1e6:.1f} MB are to be sent, {reply['free_bytes'] / 1e6:.1f} MB are free"
            )
        step, begun = f"{device}: send {what}", time.perf_counter()
        emit(StepStarted(step=step, total=len(lacking)))
        for done, digest in enumerate(lacking, start=1):
            channel.put(digest, sources[digest])
            emit(StepProgress(step=step, done=done))
    detail = f"{len(lacking)} of {len(sizes)} files, {needed / 1e6:.2f} MB"
    seconds = time.perf_counter() - begun
    emit(StepFinished(step=step, cached=not lacking, seconds=seconds, detail=detail if lacking else ""))


def _environment(channel: Channel, named: NamedDevice, manifest: Manifest, emit: Emit) -> str:
    """An environment on the device with the bundle's requirements, made once; gives its interpreter."""
    device, plan, hello = named.name, named.plan, channel.hello
    wheels = _wheels(plan)
    made_of = [manifest.runtime.requirements, sorted(wheels), hello["python"], hello["version"], hello["machine"]]
    name = f"envs/{digest_of(made_of)[:32]}"
    step, begun = f"{device}: environment", time.perf_counter()
    with speaking(device, "looking for an environment"):
        found = channel.ask("exists", name=f"{name}/{READY}")
    python = str(found["path"]).removesuffix(READY) + "bin/python"
    if not found["exists"]:
        emit(StepStarted(step=step))
        offered = _offer(channel, device, wheels, emit) if wheels else []
        with speaking(device, "making an environment"):
            place = channel.ask("exists", name=name)["path"]
            channel.ask("remove", names=[name])
            _must(
                channel.run([hello["python"], "-m", "venv", place], plan.install_seconds),
                f"no virtual environment can be made on {device}",
                "install venv there (Debian: `sudo apt install python3-venv`), or set `python` in devices.toml to an "
                "interpreter that has the runtime",
            )
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
            _must(
                channel.run([*install, *offered, *manifest.runtime.requirements], plan.install_seconds),
                f"the bundle's requirements cannot be installed on {device}",
                _install_hint(manifest, hello, bool(wheels)),
            )
            channel.ask("mark", name=f"{name}/{READY}")
    seconds = time.perf_counter() - begun
    emit(StepFinished(step=step, cached=found["exists"], seconds=seconds))
    return python


def _wheels(plan: DevicePlan) -> dict[str, Path]:
    """Wheels to send, by digest."""
    if plan.wheels is None:
        return {}
    files = sorted(plan.wheels.glob("*.whl"))
    if not files:
        raise InputError(
            "the folder of wheels holds none", where=str(plan.wheels), hint="fill it with `pip download`"
        )
    return {file_digest(file): file for file in files}


def _offer(channel: Channel, device: str, wheels: Mapping[str, Path], emit: Emit) -> list[str]:
    """Sends wheels; gives the options with which pip takes them, and nothing from elsewhere."""
    _send(channel, device, wheels, "wheels", emit)
    with speaking(device, "laying out wheels"):
        files = {file.name: digest for digest, file in wheels.items()}
        return ["--no-index", "--find-links", channel.ask("arrange", name="bundles/wheels", files=files)["path"]]


def _must(done: tuple[int, bytes, str], what: str, hint: str) -> None:
    code, printed, words = done
    if code == 0:
        return
    said = words.strip() or printed.decode(errors="replace").strip()
    if "No space left" in said or "Disk quota exceeded" in said:
        raise Refused("full", shorten(said[-600:]))
    raise MissingError(what, why=shorten(said[-1500:], 600), hint=hint)


def _install_hint(manifest: Manifest, hello: Mapping[str, Any], sent: bool) -> str:
    """What brings the requirements to a device that cannot fetch them."""
    release = ".".join(hello["version"].split(".")[:2])
    system = {"aarch64": "manylinux_2_28_aarch64", "x86_64": "manylinux_2_28_x86_64"}.get(hello["machine"])
    platform = f"--platform {system} " if system else ""
    fetch = (
        f"`pip download --only-binary :all: {platform}--python-version {release} -d wheels "
        + " ".join(f'"{one}"' for one in manifest.runtime.requirements)
        + "`"
    )
    if sent:
        return f"the wheels must fit Python {release} on {hello['machine']}: {fetch} brings such"
    return f'where the device has no internet: {fetch}, then `wheels = "wheels"` in devices.toml'
