"""From a device's name to the Device behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exporter.devices.adb import AdbDevice
from exporter.devices.config import ADB, EMULATED, LOCAL, SSH, NamedDevice
from exporter.devices.device import Device
from exporter.devices.emulated import EmulatedDevice
from exporter.devices.local import LocalDevice
from exporter.devices.ssh import SshDevice
from exporter.store import Store

Make = Callable[[NamedDevice, Store], Device]

KINDS: Mapping[str, Make] = {
    LOCAL: lambda named, store: LocalDevice(),
    SSH: lambda named, store: SshDevice(named),
    ADB: lambda named, store: AdbDevice(named),
}
"""One maker for each kind of address."""


def emulated_device(named: NamedDevice, store: Store) -> EmulatedDevice | None:
    """The emulated device that a name or an address stands for; None where a bundle would run natively.

    Raises:
        InputError: no such device is emulated.
    """
    if not named.plan.address.startswith(EMULATED):
        return None
    return EmulatedDevice(named.name, named.plan.address, store)


def device_of(named: NamedDevice, store: Store) -> Device:
    """The device that a name or an address stands for; nothing is opened yet. Emulated ones are no such Device.

    Args:
        named: what was asked for.
        store: keeps what devices make here once, such as the userland of an emulated one.
    """
    return next(make for kind, make in KINDS.items() if named.plan.address.startswith(kind))(named, store)
