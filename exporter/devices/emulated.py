"""Emulated devices: a bundle runs as real aarch64 code, and its instructions are counted.

An emulator says what code runs and how much of it, and nothing about time: caches, memory, clock and how many
instructions a core completes at once are not modelled. So nothing here is in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from exporter.artifacts import (
    Delegation,
    DeviceFacts,
    InstructionProfile,
    Manifest,
    Provenance,
    RuntimeFacts,
    VariantInstructions,
)
from exporter.devices.arm64 import check_tools, guest_python, userland
from exporter.devices.config import EMULATED
from exporter.devices.emulator import Guest, emulator
from exporter.errors import InputError, closest
from exporter.store import Store

CPUS = 4


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """What an emulated device pretends to be.

    Attributes:
        cpu: QEMU's name of the core.
        ids: implementer, variant, part and revision of /proc/cpuinfo, as the real core reports them.
        features: what Linux lists for that core. They must be those that QEMU gives the core: libraries choose
            kernels by them, and a kernel that the core does not have ends the guest with an illegal instruction.
    """

    cpu: str
    ids: tuple[str, str, str, str]
    features: str


BOARDS: Mapping[str, Board] = {
    "pi4": Board(cpu="cortex-a72", ids=("0x41", "0x0", "0xd08", "3"), features="fp asimd evtstrm crc32 cpuid"),
    "pi5": Board(
        cpu="cortex-a76",
        ids=("0x41", "0x4", "0xd0b", "1"),
        features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
"""Never QEMU's own `max`: with its SVE, libraries have given wrong int8 results."""


class EmulatedDevice:
    """A device whose processor is emulated here. It counts instructions, and measures no time."""

    provenance: Provenance = "emulated"

    def __init__(self, name: str, address: str, store: Store) -> None:
        """Names the device; nothing is made or run yet.

        Args:
            name: what the user calls it.
            address: as in `emulated:pi5`.
            store: keeps the arm64 userland.

        Raises:
            InputError: there is no such device.
        """
        kind = address.removeprefix(EMULATED)
        if kind not in BOARDS:
            raise InputError(
                f"there is no emulated device '{kind}'{closest(kind, list(BOARDS))}",
                hint=f"these can be emulated: {', '.join(f'{EMULATED}{known}' for known in BOARDS)}",
            )
        self.name = name
        self.address = address
        self.board = BOARDS[kind]
        self._store = store

    def check(self) -> DeviceFacts:
        """What the device pretends to be, once what emulates it was found here.

        Raises:
            MissingError: a program that emulating needs is not installed.
        """
        check_tools()
        facts = f"{emulator()} -cpu {self.board.cpu}, under Debian's arm64 Python, with the bundle's aarch64 wheels"
        features = f"features: {self.board.features}"
        return DeviceFacts(
            device=self.name,
            address=self.address,
            provenance=self.provenance,
            notes=(facts, features, "it counts instructions; no latency is measured on it"),
        )

    def profile(self, bundle: Path, manifest: Manifest) -> InstructionProfile:
        """The bundle's own self-test, then the instructions of one inference of each variant made for such a CPU.

        Args:
            bundle: its folder, whose files are those that the manifest lists.
            manifest: of the bundle.

        Raises:
            MissingError: the emulator, or something that it needs, is not here.
            BundleError: the self-test failed; nothing was counted.
            StageError: the guest died.
        """
        with self.booted(manifest) as guest:
            report = guest.self_test(bundle)
            tested = {str(one["variant"]): one for one in report["variants"]}
            here = [variant for variant in manifest.variants if variant.name in tested]
            counts, batch, flags = guest.count(bundle, {variant.name: variant.main for variant in here})
        return InstructionProfile(
            bundle_digest=manifest.digest,
            target=manifest.target,
            device=self.name,
            cpu=self.board.cpu,
            features=tuple(report["host"]["features"]),
            emulator=emulator(),
            python=str(report["host"]["python"]),
            runtime=msgspec.convert(report["runtime"], RuntimeFacts),
            batch=batch,
            variants=tuple(
                VariantInstructions(
                    variant=variant.name,
                    guest_instructions=counts[variant.name],
                    cases=tested[variant.name]["cases"],
                    max_abs_error=tested[variant.name]["max_abs_error"],
                    max_quanta=tested[variant.name]["max_quanta"],
                    exact_share=tested[variant.name]["exact_share"],
                    delegation=msgspec.convert(tested[variant.name].get("delegation"), Delegation | None),
                )
                for variant in here
            ),
            skipped=tuple(report.get("skipped", ())),
            flags=flags,
            self_test="passed",
        )

    @contextmanager
    def booted(self, manifest: Manifest) -> Iterator[Guest]:
        """The device with what a bundle requires; it is gone afterwards, its userland stays in the store."""
        root = userland(self._store, manifest.runtime)
        with tempfile.TemporaryDirectory(prefix="edge-exporter-emulated-") as folder:
            prefix = Path(folder) / "root"
            _write_prefix(prefix, root, self.board)
            yield Guest(Path(folder), prefix, guest_python(root).name, self.board.cpu)


def _write_prefix(prefix: Path, root: Path, board: Board) -> None:
    """A root folder that differs from the userland in what the kernel would tell.

    onnxruntime reads /proc/cpuinfo when it is imported, and dies under an emulator that shows it another machine's.
    """
    cpus = prefix / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text(f"0-{CPUS - 1}\n")
    (prefix / "proc").mkdir()
    implementer, variant, part, revision = board.ids
    lines = (
        "BogoMIPS\t: 108.00", f"Features\t: {board.features}", f"CPU implementer\t: {implementer}",
        "CPU architecture: 8", f"CPU variant\t: {variant}", f"CPU part\t: {part}", f"CPU revision\t: {revision}", "",
    )  # fmt: skip
    blocks = ["\n".join((f"processor\t: {index}", *lines, "")) for index in range(CPUS)]
    (prefix / "proc/cpuinfo").write_text("".join(blocks))
    for entry in root.iterdir():
        (prefix / entry.name).symlink_to(entry)
