"""ARM boards without hardware: a root folder that a login is locked into, and a whole machine with a kernel."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sshd import Server, free_port

from exporter.devices.arm64 import unpack_packages
from exporter.devices.emulated import BOARDS, CPUS

CORE = BOARDS["pi5"]
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "failover",
    "net_failover", "virtio_net", "virtio-rng",
)  # fmt: skip
"""In the order in which they must be loaded."""
PACKAGES = ("openssh-server", "busybox-static", "linux-image-cloud-arm64")
"""What a machine has beside the userland of emulated devices."""
INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B mkdir -p /dev/pts /tmp /run/sshd /var/empty
$B mount -t devpts pts /dev/pts
for module in {modules}; do $B insmod $module; done
$B ip link set lo up
$B ip addr add 10.0.2.15/24 dev eth0
$B ip link set eth0 up
/usr/sbin/sshd -D -e -f /etc/board.conf
$B poweroff -f
"""
SSHD_CONF = """\
HostKey /etc/board-host
AuthorizedKeysFile /etc/board-authorized
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv PYTHONPATH=/opt/wheels
"""
BOOT_SECONDS = 180


def into_root(root: Path, folder: Path) -> str:
    """The line of sshd's configuration that locks logins into an arm64 root; `/device` there is `folder`'s own."""
    (folder / "device").mkdir()
    implementer, variant, part, revision = CORE.ids
    lines = (
        f"Features\t: {CORE.features}", f"CPU implementer\t: {implementer}", "CPU architecture: 8",
        f"CPU variant\t: {variant}", f"CPU part\t: {part}", f"CPU revision\t: {revision}",
    )  # fmt: skip
    blocks = ["\n".join((f"processor\t: {index}", *lines, "", "")) for index in range(CPUS)]
    (folder / "cpuinfo").write_text("".join(blocks))
    binds = ("/proc", "/dev", "/sys", f"{folder}/cpuinfo:/proc/cpuinfo", f"{folder}/device:/device")
    login = folder / "login"
    # The root has no shell: this one splits the words that ssh was given, and the root's Python is what they run.
    login.write_text(
        '#!/bin/sh\neval "set -- ${SSH_ORIGINAL_COMMAND#exec }"\nexport PYTHONPATH=/opt/wheels PROOT_NO_SECCOMP=1\n'
        f'exec proot -q "qemu-aarch64 -cpu {CORE.cpu}" -r "{root}" '
        + " ".join(f'-b "{bind}"' for bind in binds)
        + ' -w / "$@"\n'
    )
    login.chmod(0o755)
    return f"ForceCommand {login}"


@contextmanager
def machine(folder: Path, userland: Path) -> Iterator[Server]:
    """A virtual board under qemu-system-aarch64: Debian's kernel, its sshd, its Python and the real aarch64 wheels.

    Args:
        folder: for its files.
        userland: its Python and the wheels, with modules that are compiled, which takes an emulated Python minutes.

    Raises:
        MissingError: Debian's arm64 packages cannot be had here.
    """
    root = folder / "root"
    shutil.copytree(userland, root, symlinks=True)
    unpack_packages(root, PACKAGES)
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    _furnish(root, folder)
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (folder / "client.conf").write_text(
        f"User root\nIdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nLogLevel ERROR\n"
    )
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.move(kernel, folder / "vmlinuz")
    _archive(root, folder / "initramfs")
    shutil.rmtree(root)
    command = [
        "qemu-system-aarch64", "-M", "virt", "-cpu", CORE.cpu, "-m", "2048", "-nographic", "-no-reboot",
        "-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initramfs"), "-append", "quiet panic=-1",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
    ]  # fmt: skip
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            _answering(port, process, folder / "console")
            yield Server(folder, port, process)
        finally:
            process.kill()
            process.wait()


def _furnish(root: Path, folder: Path) -> None:
    """What the packages' own installation scripts would have written, and the first program."""
    modules = [next((root / "lib/modules").rglob(f"{name}.ko")) for name in MODULES]
    # Of some 100 MB, these are all that is needed.
    for path in (root / "lib/modules").rglob("*.ko"):
        if path not in modules:
            path.unlink()
    listed = " ".join(f"/{path.relative_to(root)}" for path in modules)
    (root / "init").write_text(INIT.format(modules=listed))
    (root / "init").chmod(0o755)
    for name in ("proc", "sys", "dev", "root", "etc"):
        (root / name).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root::0:0::/root:/bin/sh\nsshd:*:100:100::/run/sshd:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nsshd:x:100:\n")
    (root / "etc/board.conf").write_text(SSHD_CONF)
    shutil.copy(folder / "host", root / "etc/board-host")
    shutil.copy(folder / "user.pub", root / "etc/board-authorized")
    if not os.path.lexists(root / "bin/sh"):
        (root / "bin/sh").symlink_to("busybox")


def _archive(root: Path, path: Path) -> None:
    """Writes a folder as the `newc` archive that Linux unpacks into its first root."""
    with path.open("wb") as out:
        for number, entry in enumerate([*sorted(root.rglob("*")), None], start=1):
            name = b"TRAILER!!!" if entry is None else os.fsencode(entry.relative_to(root))
            mode, content = 0, b""
            if entry is not None:
                mode = entry.lstat().st_mode
                if entry.is_symlink():
                    content = os.fsencode(entry.readlink())
                elif entry.is_file():
                    content = entry.read_bytes()
            fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
            header = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
            out.write(header + b"\0" * (-len(header) % 4))
            out.write(content + b"\0" * (-len(content) % 4))


def _answering(port: int, process: subprocess.Popen[bytes], console: Path) -> None:
    """Waits for sshd: QEMU itself takes connections from the start, and closes them."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, console.read_text(errors="replace")[-3000:]
        with socket.socket() as probe:
            probe.settimeout(5)
            try:
                probe.connect(("127.0.0.1", port))
                if re.match(rb"SSH-", probe.recv(16)):
                    return
            except OSError:
                pass
        time.sleep(0.5)
    raise AssertionError(f"the board did not start: {console.read_text(errors='replace')[-3000:]}")
