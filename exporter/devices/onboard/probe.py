"""Prints, as one JSON document, what is known of the machine that this runs on; nothing is changed or estimated.

The arguments are the folder whose free space matters, and the distributions whose versions are asked for.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from typing import Any

CPU = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
FIRMWARE = "/sys/devices/platform/soc*/soc*:firmware/get_throttled"
NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits that a Raspberry Pi's firmware sets while something holds its CPU back."""


def text(path: str) -> str:
    """A small file, stripped; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip("\0 \n")
    except OSError:
        return ""


def texts(pattern: str) -> list[str]:
    """Those files that say something, in order of their names."""
    return [found for path in sorted(glob.glob(pattern)) if (found := text(path))]


def host() -> dict[str, Any]:
    """What stays the same."""
    cpuinfo, memory = text("/proc/cpuinfo"), re.search(r"(?m)^MemTotal:\s+(\d+) kB", text("/proc/meminfo"))
    listed = re.findall(r"(?m)^(?:flags|Features)[ \t]*:(.*)$", cpuinfo)
    model = re.search(r"(?m)^(?:model name|Model|Hardware)\s*: (.+)$", cpuinfo)
    board = text("/sys/firmware/devicetree/base/model")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": model[1].strip() if model else board or platform.processor() or platform.machine() or "unknown",
        "cores": os.cpu_count() or 1,
        "features": sorted(set.intersection(*(set(line.split()) for line in listed))) if listed else [],
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "python": platform.python_version(),
        "governor": governor(),
    }


def governor() -> str | None:
    """The governors of all CPUs."""
    return "+".join(sorted(set(texts(CPU + "scaling_governor")))) or None


def state() -> dict[str, Any]:
    """What changes."""
    load = text("/proc/loadavg").split()[:3]
    clocks = [int(found) / 1000 for found in texts(CPU + "scaling_cur_freq") if found.isdigit()]
    clocks = clocks or [float(found) for found in re.findall(r"(?m)^cpu MHz\s*: ([\d.]+)", text("/proc/cpuinfo"))]
    hottest = []
    for zone in glob.glob("/sys/class/thermal/thermal_zone*"):
        kind, value = text(zone + "/type"), text(zone + "/temp")
        if re.search("cpu|x86_pkg|soc|package", kind, re.IGNORECASE) and re.fullmatch(r"-?\d+", value):
            hottest.append(int(value) / 1000)
    return {
        "load_average": [float(value) for value in load] or None,
        "frequency_mhz": clocks or None,
        "temperature_c": max(hottest, default=None),
        "governor": governor(),
        "throttling": throttling(),
    }


def throttling() -> list[str] | None:
    """What holds the CPU back now; None where the system does not tell."""
    flags = [int(found, 16) for found in texts(FIRMWARE) if re.fullmatch("(0x)?[0-9a-fA-F]+", found)]
    levels = []
    for device in sorted(glob.glob("/sys/class/thermal/cooling_device*")):
        kind, level = text(device + "/type"), text(device + "/cur_state")
        if re.search("cpu|processor", kind, re.IGNORECASE) and level.isdigit():
            levels.append((kind, int(level)))
    if not flags and not levels:
        return None
    firmware = [f"firmware: {name}" for bit, name in NOW.items() if any(flag >> bit & 1 for flag in flags)]
    return firmware + [f"cooling: {kind} at level {level}" for kind, level in levels if level]


def versions(distributions: list[str]) -> dict[str, str]:
    """Installed versions."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts(folder: str, distributions: list[str]) -> dict[str, Any]:
    """Everything, with the free space of the nearest folder that is there."""
    place = os.path.abspath(os.path.expanduser(folder))
    nearest = place
    while not os.path.isdir(nearest) and os.path.dirname(nearest) != nearest:
        nearest = os.path.dirname(nearest)
    return {
        "host": host(),
        "state": state(),
        "python": sys.executable,
        "runtimes": versions(distributions),
        "folder": place,
        "free_bytes": shutil.disk_usage(nearest).free,
    }


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1], sys.argv[2:])))
