"""Where a bundle runs: on this machine, in this environment or in a fresh one, or on another device.

Importing this room is cheap: its names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.devices.benchmark import BenchmarkDevice
    from exporter.devices.config import LOCAL, NAME, Devices, NamedDevice, named_device, read_devices
    from exporter.devices.device import Device, Prepared
    from exporter.devices.emulated import EmulatedDevice
    from exporter.devices.find import device_of, emulated_device
    from exporter.devices.isolated import isolated_python
    from exporter.devices.kept import kept_python
    from exporter.devices.local import cpu_features, run_bench, run_self_test
    from exporter.devices.remote import emulation_note
    from exporter.devices.running import profile_name, steady_seconds
    from exporter.devices.runtimes import RuntimeDevice, runtime_named

__all__ = [
    "LOCAL",
    "NAME",
    "BenchmarkDevice",
    "Device",
    "Devices",
    "EmulatedDevice",
    "NamedDevice",
    "Prepared",
    "RuntimeDevice",
    "cpu_features",
    "device_of",
    "emulated_device",
    "emulation_note",
    "isolated_python",
    "kept_python",
    "named_device",
    "profile_name",
    "read_devices",
    "run_bench",
    "run_self_test",
    "runtime_named",
    "steady_seconds",
]

_HOMES = {
    "LOCAL": "config",
    "NAME": "config",
    "BenchmarkDevice": "benchmark",
    "Device": "device",
    "Devices": "config",
    "EmulatedDevice": "emulated",
    "NamedDevice": "config",
    "Prepared": "device",
    "RuntimeDevice": "runtimes",
    "cpu_features": "local",
    "device_of": "find",
    "emulated_device": "find",
    "emulation_note": "remote",
    "isolated_python": "isolated",
    "kept_python": "kept",
    "named_device": "config",
    "profile_name": "running",
    "read_devices": "config",
    "run_bench": "local",
    "run_self_test": "local",
    "runtime_named": "runtimes",
    "steady_seconds": "running",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
