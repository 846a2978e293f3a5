"""Devices by name: `devices.toml`, and addresses such as `ssh://pi@host:22`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exporter.convert import convert_struct
from exporter.errors import InputError, closest, shorten

FILE = "devices.toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOCAL = "local"
SSH, ADB, EMULATED = "ssh://", "adb:", "emulated:"
ADDRESSES = "ssh://user@host:port, adb:SERIAL, emulated:NAME or local"


class DevicePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[devices.NAME]` of devices.toml.

    Attributes:
        address: `ssh://user@host:port` (user and port may be left to ssh's own configuration), `adb:SERIAL`, or
            `emulated:NAME`.
        python: ssh, adb: an interpreter on the device that has the bundle's runtime; without it ssh makes an
            environment there.
        wheels: ssh: a folder of wheels that are sent and installed from, for a device without internet.
        folder: ssh, adb: where bundles and environments are put on the device.
        benchmark_binary: adb: LiteRT's `benchmark_model` for the device, a file here; it runs `.tflite` variants
            where the device has no Python.
        threads: threads of the runtime, one number or several to be measured in turn.
        affinity: CPUs to run on.
        keep: what stays on the device: `environment`, `all` (the bundle as well), or `nothing`.
        ssh_config: ssh: a configuration file to use instead of the user's own.
        connect_seconds: how long reaching the device may take.
        wait_seconds: how long to wait while another exporter has the device.
        install_seconds: how long making an environment there may take.
        emulated: ssh, adb: whether its processor is emulated, where that cannot be told, or is told wrongly.
        notes: free text, shown by `edge-exporter devices`.
    """

    address: str
    python: Annotated[str, Meta(min_length=1)] | None = None
    wheels: Path | None = None
    folder: Annotated[str, Meta(min_length=1)] | None = None
    benchmark_binary: Path | None = None
    threads: Annotated[int, Meta(ge=1)] | Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1)] = ()
    affinity: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    keep: Literal["environment", "all", "nothing"] = "environment"
    ssh_config: Path | None = None
    connect_seconds: Annotated[float, Meta(gt=0)] = 15.0
    wait_seconds: Annotated[float, Meta(ge=0)] = 600.0
    install_seconds: Annotated[float, Meta(gt=0)] = 1800.0
    emulated: bool | None = None
    notes: str = ""


class NamedDevice(Struct, frozen=True, kw_only=True):
    """A device as the user named it, with all that was said about it."""

    name: str
    plan: DevicePlan

    @property
    def threads(self) -> tuple[int, ...]:
        """Thread counts to measure with; empty when nothing was said."""
        return (self.plan.threads,) if isinstance(self.plan.threads, int) else self.plan.threads


class Devices(Struct, frozen=True, kw_only=True):
    """The devices of one file; `file` is None where there is none."""

    file: Path | None
    named: Mapping[str, DevicePlan]


MEASURING = ("folder", "threads", "affinity", "keep", "connect_seconds", "wait_seconds", "emulated")
SCHEMES: Mapping[str, Sequence[str]] = {
    SSH: ("python", "wheels", "ssh_config", "install_seconds", *MEASURING),
    ADB: ("python", "benchmark_binary", *MEASURING),
    EMULATED: (),
}
"""Keys that act for each kind of address; others would be ignored there, so they are errors."""


def read_devices(file: Path | None) -> Devices:
    """Reads the first of: the given file, ./devices.toml, devices.toml in the user's configuration folder.

    Raises:
        InputError: the given file is not there, or everything that is wrong with the file that was found.
    """
    found = file if file is not None else next((path for path in search_path() if path.is_file()), None)
    if found is None:
        return Devices(file=None, named={})
    try:
        tables = tomllib.loads(found.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("the devices file does not exist", where=str(found)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the devices file cannot be read", where=str(found), why=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError("the devices file is not valid TOML", where=str(found), why=shorten(error)) from error
    problems: list[str] = []
    named = _named(tables, found.absolute().parent, problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        raise InputError(
            f"the devices file has {count}" + "".join(f"\n  - {problem}" for problem in problems),
            where=str(found),
            hint="docs/devices.md lists every key",
        )
    return Devices(file=found, named=named)


def search_path() -> tuple[Path, ...]:
    """Where devices.toml is looked for when no file is given."""
    from platformdirs import user_config_path

    return Path(FILE), user_config_path("edge-exporter", appauthor=False) / FILE


def named_device(text: str, devices: Devices) -> NamedDevice:
    """The device that `--device` asks for: a name from devices.toml, or an address.

    Raises:
        InputError: there is no such device, or the address is none.
    """
    if text in devices.named:
        return NamedDevice(name=text, plan=devices.named[text])
    if text == LOCAL:
        return NamedDevice(name=LOCAL, plan=DevicePlan(address=LOCAL))
    if any(text.startswith(scheme) for scheme in SCHEMES):
        problem = address_problem(text)
        if problem:
            raise InputError(f"--device {text}: {problem}", hint=f"an address is {ADDRESSES}")
        return NamedDevice(name=text, plan=DevicePlan(address=text))
    known = [LOCAL, *devices.named]
    where = str(devices.file) if devices.file else f"no {FILE} was found ({', '.join(map(str, search_path()))})"
    raise InputError(
        f"there is no device '{text}'{closest(text, known)}",
        where=where,
        hint=f"known devices: {', '.join(known)}; or give an address: {ADDRESSES}",
    )


def address_problem(address: str) -> str | None:
    """What is wrong with an address, or None."""
    scheme = next((scheme for scheme in SCHEMES if address.startswith(scheme)), None)
    if scheme is None:
        return f"is no address ({ADDRESSES})"
    try:
        if scheme == SSH:
            ssh_destination(address)
        elif scheme == ADB and re.fullmatch(r"[A-Za-z0-9._:-]*", address.removeprefix(ADB)) is None:
            return "a serial has letters, digits, '.', ':', '-' and '_' only, as `adb devices` shows it"
        elif scheme == EMULATED and not address.removeprefix(EMULATED):
            return "names no emulated device"
    except ValueError as error:
        return str(error)
    return None


def ssh_destination(address: str) -> tuple[str, int | None]:
    """(what to give to ssh: `host` or `user@host`, port or None) of an `ssh://` address.

    Raises:
        ValueError: saying what is wrong with it.
    """
    match = re.fullmatch(r"ssh://(?:([^@/:]+)@)?(\[[0-9A-Fa-f:.%\w]+\]|[^@/:\[\]]+)(?::(\d+))?/?", address)
    if match is None:
        raise ValueError("is not ssh://user@host:port")
    user, host, port = match[1], match[2].strip("[]"), match[3]
    # A host or user that starts with a dash would be an option of ssh.
    if host.startswith("-") or (user or "").startswith("-") or re.search(r"\s", (user or "") + host):
        raise ValueError("has a host or user that ssh would not take")
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port")
    return (f"{user}@{host}" if user else host), (int(port) if port else None)


def _named(tables: Mapping[str, Any], base: Path, problems: list[str]) -> dict[str, DevicePlan]:
    known = ("schema", "devices")
    problems += [f"{key}: unknown section or key{closest(key, known)}" for key in tables if key not in known]
    schema = tables.get("schema")
    if type(schema) is not int or schema != 1:
        stated = "is missing" if schema is None else f"is {schema!r}"
        problems.append(f"schema {stated}: this version reads `schema = 1`")
    listed = tables.get("devices", {})
    if not isinstance(listed, Mapping):
        problems.append("devices: a table is expected, as in [devices.pi]")
        return {}
    named = {}
    for name, table in listed.items():
        where = f"devices.{name}"
        if not NAME.fullmatch(name) or name == LOCAL:
            problems.append(f"{where}: a name has letters, digits, '.', '_', '-', and is not '{LOCAL}'")
        plan = convert_struct(table, DevicePlan, where, problems, base=base)
        if plan is None:
            continue
        problem = address_problem(plan.address)
        if problem:
            problems.append(f"{where}.address: {plan.address!r} {problem}")
        else:
            problems += _idle_keys(table, plan, where)
        named[name] = plan
    return named


def _idle_keys(table: Mapping[str, Any], plan: DevicePlan, where: str) -> list[str]:
    scheme = next(scheme for scheme in SCHEMES if plan.address.startswith(scheme))
    acting = ("address", "notes", *SCHEMES[scheme])
    twice = ["python", "benchmark_binary"] if plan.python and plan.benchmark_binary else []
    return [f"{where}: {' and '.join(twice)} both say what runs bundles: leave one out"] * bool(twice) + [
        f"{where}.{key}: does nothing for a device at {scheme}..." for key in table if key not in acting
    ]
