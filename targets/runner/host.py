"""Facts and state of this machine: what the system tells, None where it does not; nothing is estimated."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

FEATURES = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16",
)  # fmt: skip
"""CPU features, in Linux's spelling, that decide how fast or how exact a model runs."""

FIRMWARE = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of a Raspberry Pi's get_throttled that say what holds its CPU back now (raspberrypi.com, vcgencmd)."""

PROC = Path("/proc")
SYS = Path("/sys")


def host_facts(proc: Path | None = None, sysfs: Path | None = None) -> dict[str, Any]:
    """CPU, features, cores, memory, governor of this machine. The two paths stand in for /proc and /sys."""
    proc, sysfs = proc or PROC, sysfs or SYS
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(proc / "meminfo") or "", re.MULTILINE)
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(proc, sysfs),
        "cores": os.cpu_count() or 1,
        "features": list(cpu_features(proc)),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "python": platform.python_version(),
        "governor": _governor(sysfs),
    }


def host_state(proc: Path | None = None, sysfs: Path | None = None) -> dict[str, Any]:
    """Load average, frequency in MHz of each CPU, temperature in degrees Celsius, what holds the CPU back: now."""
    proc, sysfs = proc or PROC, sysfs or SYS
    load = re.match(r"([\d.]+) ([\d.]+) ([\d.]+)", _text(proc / "loadavg") or "")
    khz = [_text(path) for path in _cpufreq(sysfs, "scaling_cur_freq")]
    mhz = [int(text) / 1000 for text in khz if text and text.isdigit()]
    # Where the kernel does not scale frequencies (virtual machines), cpuinfo still has the clock.
    mhz = mhz or [float(text) for text in re.findall(r"(?m)^cpu MHz\s*: ([\d.]+)", _text(proc / "cpuinfo") or "")]
    return {
        "load_average": [float(text) for text in load.groups()] if load else None,
        "frequency_mhz": mhz or None,
        "temperature_c": _temperature(sysfs),
        "governor": _governor(sysfs),
        **_throttling(sysfs),
    }


def cpu_features(proc: Path | None = None) -> tuple[str, ...]:
    """Those of FEATURES that every CPU has, sorted; empty where the system does not tell."""
    lines = re.findall(r"(?m)^(?:flags|Features)[ \t]*:(.*)$", _text((proc or PROC) / "cpuinfo") or "")
    # Cores can differ (big.LITTLE): a model may run on any of them, so only what all have counts.
    common = set.intersection(*(set(line.split()) for line in lines)) if lines else set()
    return tuple(sorted(common.intersection(FEATURES)))


def peak_rss_bytes(proc: Path | None = None) -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not tell."""
    # On Linux ru_maxrss is inherited through fork and exec, so a large parent would be charged to its child.
    peak = re.search(r"(?m)^VmHWM:\s+(\d+) kB", _text((proc or PROC) / "self" / "status") or "")
    if peak:
        return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def busy_seconds(proc: Path | None = None) -> tuple[float, float, float] | None:
    """(now, CPU seconds of all work on the host, CPU seconds of this process); None where unknown."""
    fields = re.match(r"cpu +([\d ]+)", _text((proc or PROC) / "stat") or "")
    if not fields or not hasattr(os, "sysconf"):
        return None
    user, nice, kernel, _idle, _wait, irq, soft, steal = ([*map(int, fields[1].split())] + [0] * 8)[:8]
    ticks = user + nice + kernel + irq + soft + steal
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def busy_others(before: tuple[float, float, float] | None, after: tuple[float, float, float] | None) -> float | None:
    """Cores that other processes kept busy between two readings; None when too short to tell."""
    if before is None or after is None or after[0] - before[0] < 0.5:
        return None
    everyone, mine = after[1] - before[1], after[2] - before[2]
    return max(0.0, everyone - mine) / (after[0] - before[0])


def _cpu_model(proc: Path, sysfs: Path) -> str:
    found = re.search(r"(?m)^(?:model name|Model|Hardware)\s*: (.+)$", _text(proc / "cpuinfo") or "")
    if found:
        return found[1].strip()
    board = _text(sysfs / "firmware" / "devicetree" / "base" / "model")
    return (board or platform.processor() or platform.machine() or "unknown").strip("\0 ")


def _governor(sysfs: Path) -> str | None:
    return "+".join(sorted({text for path in _cpufreq(sysfs, "scaling_governor") if (text := _text(path))})) or None


def _throttling(sysfs: Path) -> dict[str, Any]:
    """What holds the CPU back now, in words, and how often it was throttled since boot; None where unknown."""
    words: list[str] = []
    limits = _cpufreq(sysfs, "scaling_max_freq")
    known = bool(limits)
    for path in (sysfs / "devices" / "platform").glob("soc*/soc*:firmware/get_throttled"):
        bits = _text(path) or ""
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", bits):
            known = True
            words += [f"firmware: {name}" for bit, name in FIRMWARE.items() if int(bits, 16) >> bit & 1]
    for device in sorted((sysfs / "class" / "thermal").glob("cooling_device*")):
        kind, level = _text(device / "type") or "", _text(device / "cur_state") or ""
        if re.search(r"cpu|processor", kind, re.IGNORECASE) and level.isdigit():
            known = True
            words += [f"cooling: {kind} at level {level}"] if int(level) else []
    lowered = [pair for path in limits if (pair := _lowered(path))]
    words += sorted({f"limited to {limit / 1000:.0f} of {top / 1000:.0f} MHz" for limit, top in lowered})
    counters = (sysfs / "devices" / "system" / "cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [int(text) for path in counters if (text := _text(path)) and text.isdigit()]
    return {"throttling": words if known else None, "throttle_events": sum(counts) if counts else None}


def _lowered(limit: Path) -> tuple[int, int] | None:
    """(allowed, possible) kHz of a CPU whose clock is limited."""
    allowed, possible = _text(limit) or "", _text(limit.with_name("cpuinfo_max_freq")) or ""
    both = allowed.isdigit() and possible.isdigit()
    return (int(allowed), int(possible)) if both and int(allowed) < int(possible) else None


def _temperature(sysfs: Path) -> float | None:
    """The hottest CPU sensor; other zones (battery, board) say nothing about throttling."""
    found = []
    for zone in sorted((sysfs / "class" / "thermal").glob("thermal_zone*")):
        kind, value = _text(zone / "type") or "", _text(zone / "temp") or ""
        if re.search(r"cpu|x86_pkg|soc|package", kind, re.IGNORECASE) and re.fullmatch(r"-?\d+", value):
            found.append(int(value) / 1000)
    return max(found, default=None)


def _cpufreq(sysfs: Path, leaf: str) -> list[Path]:
    paths = (sysfs / "devices" / "system" / "cpu").glob(f"cpu[0-9]*/cpufreq/{leaf}")
    return sorted(paths, key=lambda path: int(path.parent.parent.name[3:]))


def _text(path: Path) -> str | None:
    """A small text file, stripped; None when it cannot be read (sysfs files can vanish or refuse)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
