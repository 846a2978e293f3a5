"""Where a bundle runs: on this machine, in this environment or in a fresh one, or on another device."""

from exporter.devices.benchmark import BenchmarkDevice
from exporter.devices.config import NAME, Devices, NamedDevice, named_device, read_devices
from exporter.devices.device import Device, Prepared
from exporter.devices.emulated import EmulatedDevice
from exporter.devices.find import device_of, emulated_device
from exporter.devices.isolated import isolated_python
from exporter.devices.local import cpu_features, run_bench, run_self_test
from exporter.devices.running import profile_name

__all__ = [
    "NAME",
    "BenchmarkDevice",
    "Device",
    "Devices",
    "EmulatedDevice",
    "NamedDevice",
    "Prepared",
    "cpu_features",
    "device_of",
    "emulated_device",
    "isolated_python",
    "named_device",
    "profile_name",
    "read_devices",
    "run_bench",
    "run_self_test",
]
