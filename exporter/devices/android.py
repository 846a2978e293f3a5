"""What Android tells of a device without any program of ours on it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence

from exporter.artifacts import DeviceFacts, Host, HostState
from exporter.errors import MissingError, shorten

ASK_SECONDS = 30.0
CPU = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
Shell = Callable[[Sequence[str]], list[str]]
"""Words of a program to a command line that runs it on the device."""


def android_facts(shell: Shell, name: str, address: str, folder: str) -> DeviceFacts:
    """Facts of a device; what it does not tell stays None.

    Args:
        shell: runs a program on the device.
        name: of the device.
        address: how it is reached.
        folder: whose file system matters.

    Raises:
        MissingError: the device has gone.
    """
    free = re.search(r"\s(\d+)\s+\d+%", asked(shell, "df -k /data/local/tmp"))
    note = "no `python` is set for it in devices.toml: this is what Android tells, and no bundle can be run"
    return DeviceFacts(
        device=name,
        address=address,
        provenance="native",
        host=android_host(shell),
        state=android_state(shell),
        folder=folder,
        free_bytes=int(free[1]) * 1024 if free else None,
        notes=(note,),
    )


def android_host(shell: Shell) -> Host:
    """What stays the same."""
    named = asked(shell, "for key in product.manufacturer product.model soc.model; do getprop ro.$key; done")
    release = asked(shell, "getprop ro.build.version.release").strip()
    cpuinfo = asked(shell, "cat /proc/cpuinfo")
    listed = [set(found.split()) for found in re.findall(r"(?m)^(?:flags|Features)[ \t]*:(.*)$", cpuinfo)]
    memory = re.search(r"(?m)^MemTotal:\s+(\d+) kB", asked(shell, "cat /proc/meminfo"))
    return Host(
        system=f"Android {release}".strip(),
        machine=asked(shell, "uname -m").strip() or "unknown",
        cpu=" ".join(filter(None, map(str.strip, named.splitlines()))) or "unknown",
        cores=max(1, len(re.findall(r"(?m)^processor\s*:", cpuinfo))),
        features=tuple(sorted(set.intersection(*listed))) if listed else (),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        python="none",
        governor="+".join(sorted(set(asked(shell, f"cat {CPU}scaling_governor").split()))) or None,
    )


def android_state(shell: Shell) -> HostState:
    """What changes."""
    load = asked(shell, "cat /proc/loadavg").split()[:3]
    clocks = [int(found) / 1000 for found in asked(shell, f"cat {CPU}scaling_cur_freq").split() if found.isdigit()]
    zones = "for zone in /sys/class/thermal/thermal_zone*; do echo $(cat $zone/type) $(cat $zone/temp); done"
    sensors = re.findall(r"(?mi)^(\S*(?:cpu|soc)\S*) (-?\d+)$", asked(shell, zones))
    return HostState(
        load_average=tuple(map(float, load)) or None,
        frequency_mhz=tuple(clocks) or None,
        temperature_c=max((int(value) / 1000 for _, value in sensors), default=None),
        governor="+".join(sorted(set(asked(shell, f"cat {CPU}scaling_governor").split()))) or None,
    )


def asked(shell: Shell, command: str) -> str:
    """What a command of the device's shell prints; empty where the device refuses it.

    Args:
        shell: runs a program on the device.
        command: a constant text of ours, never made from a user's words.

    Raises:
        MissingError: the device has gone.
    """
    try:
        done = subprocess.run(
            shell(["sh", "-c", f"exec 2>/dev/null; {command}"]),
            stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MissingError("the device does not answer", why=f"nothing came in {ASK_SECONDS:.0f} s") from error
    words = done.stderr.decode(errors="replace")
    if re.search("device '.*' not found|no devices|device offline|device unauthorized|error: closed", words):
        raise MissingError("the device has gone", why=shorten(words), hint="see `adb devices`")
    return done.stdout.decode(errors="replace").replace("\r\n", "\n")
