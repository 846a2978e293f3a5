"""What the commands that measure and that look at devices do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter.errors import InputError, UsageError, shorten
from exporter.opening import opened

if TYPE_CHECKING:
    from exporter.artifacts import Manifest, Profile
    from exporter.console import Console
    from exporter.devices import BenchmarkDevice, EmulatedDevice, NamedDevice
    from exporter.pipeline.steps import Steps
    from exporter.plan_types import ProfilePlan


def profile(
    *,
    bundle: Path,
    device: str | None,
    devices: Path | None,
    threads: Sequence[int],
    affinity: Sequence[int],
    runtime: str | None,
    min_seconds: float | None,
    max_seconds: float | None,
    set_default: bool,
    file: Path | None,
    name: str | None,
    **common: Any,
) -> None:
    """`edge-exporter profile`."""
    from exporter.bundle import read_manifest
    from exporter.devices import (
        LOCAL,
        BenchmarkDevice,
        RuntimeDevice,
        device_of,
        emulated_device,
        named_device,
        read_devices,
    )
    from exporter.pipeline.importing import import_profile
    from exporter.pipeline.measuring import profile_on

    how = (threads, affinity, min_seconds, max_seconds)
    if name is not None and file is None:
        raise UsageError("--as names the device of an imported profile: give --import as well")
    if file is not None and any((device, devices, runtime, *how)):
        raise UsageError(
            "--import measures nothing",
            hint="leave out --device, --devices, --threads, --affinity, --runtime, --min-seconds and --max-seconds",
        )
    with opened(**common) as (console, steps):
        manifest = read_manifest(bundle)
        if runtime is not None:
            _check_runtime(manifest, runtime, set_default)
        if file is not None:
            imported = import_profile(bundle, file, name, steps)
            _show_measured(bundle, manifest, [imported], set_default, console)
            return
        named = named_device(device or LOCAL, read_devices(devices))
        if runtime is not None and named.plan.address != LOCAL:
            raise UsageError(
                f"--runtime makes an environment on this machine, and {named.name} is another one",
                hint="leave out --runtime: what the device runs on is what its `python` in devices.toml has",
            )
        if (emulated := emulated_device(named, steps.store)) is not None:
            _count(bundle, emulated, (*how, set_default), console, steps)
            return
        flags = {"min_seconds": min_seconds, "max_seconds": max_seconds, "affinity": tuple(affinity) or None}
        sweep = _sweep(manifest, named, flags, threads)
        if set_default and len(sweep) > 1:
            raise UsageError(
                "--set-default takes one thread count, since profiles of several are not ranked together",
                hint=f"add --threads {sweep[0].threads}",
            )
        if named.plan.benchmark_binary is not None:
            _benchmark(
                bundle, BenchmarkDevice(named, named.plan.benchmark_binary), sweep, set_default, console, steps
            )
            return
        place = RuntimeDevice(runtime, steps.store) if runtime is not None else device_of(named, steps.store)
        measured = profile_on(place, bundle, sweep, steps)
        _show_measured(bundle, manifest, measured, set_default, console)


def _check_runtime(manifest: Manifest, name: str, set_default: bool) -> None:
    """Refuses, before any work, a runtime that the bundle does not run on, and a default that it cannot choose."""
    from exporter.devices import runtime_named

    runtime = runtime_named(manifest, name)
    if set_default and runtime.name in [other.name for other in manifest.other_runtimes]:
        raise UsageError(
            f"--set-default chooses among all variants, and {runtime.name} runs only some of them",
            hint="leave out --runtime: variants of all runtimes are then measured together",
        )


def _sweep(
    manifest: Manifest, named: NamedDevice, flags: Mapping[str, Any], threads: Sequence[int]
) -> list[ProfilePlan]:
    """Settings for each thread count: flags before devices.toml before the bundle's plan."""
    from exporter.plan_types import ProfilePlan

    asked = manifest.plan.get("profile", {}) | {"enabled": True}
    asked |= {"affinity": named.plan.affinity} if named.plan.affinity else {}
    asked |= {key: value for key, value in flags.items() if value is not None}
    counts = tuple(threads) or named.threads or (asked.get("threads", 1),)
    return [msgspec.convert({**asked, "threads": count}, ProfilePlan) for count in dict.fromkeys(counts)]


def _show_measured(
    bundle: Path, manifest: Manifest, measured: Sequence[Profile], set_default: bool, console: Console
) -> None:
    from exporter.devices import profile_name
    from exporter.pipeline import publish
    from exporter.pipeline.build import profile_document
    from exporter.show import show_profile

    whole = manifest.float_variant in [one.variant for one in measured[0].variants]
    choices = [publish.choose(manifest, one, profile_name(one)) for one in measured] if whole else []
    emulated = measured[0].provenance == "emulated"
    if set_default and not whole:
        raise InputError(
            f"{measured[0].runtime.name} ran only some of the variants, and chooses no default among all",
            hint="the profile is kept; leave out --set-default",
        )
    if set_default and emulated:
        raise InputError(
            f"{measured[0].device} is emulated: its latency chooses no default",
            why=measured[0].flags[-1],
            hint="the profile is kept, labelled; leave out --set-default",
        )
    if set_default:
        manifest = publish.set_default(bundle, manifest, choices[0])
    for one in measured:
        show_profile(console, manifest, one)
        for comparison in one.comparisons:
            console.result(publish.describe(comparison))
    default = manifest.choice.variant
    silent = emulated or len(measured) > 1 or not whole or default == choices[0].variant
    other = "" if silent else _other(choices[0].variant)
    console.result(f"default variant: {default}{other}")
    console.document(
        {
            "bundle": str(bundle),
            "profile": profile_document(measured[0]),
            "profiles": [profile_document(one) for one in measured],
            "default": manifest.choice,
            "fastest_here": choices[0] if whole else None,
        }
    )


def _count(
    bundle: Path, device: EmulatedDevice, about_time: Sequence[object], console: Console, steps: Steps
) -> None:
    from exporter.pipeline.emulating import count_on
    from exporter.show import show_instructions

    if any(about_time):
        raise UsageError(
            f"{device.name} is emulated: its instructions are counted, and no latency is measured there",
            hint="leave out --threads, --affinity, --min-seconds, --max-seconds and --set-default",
        )
    counted = count_on(device, bundle, steps)
    show_instructions(console, counted)
    console.document({"bundle": str(bundle), "instructions": counted})


def _benchmark(
    bundle: Path,
    device: BenchmarkDevice,
    sweep: Sequence[ProfilePlan],
    set_default: bool,
    console: Console,
    steps: Steps,
) -> None:
    from exporter.pipeline.benchmarking import benchmark_on
    from exporter.show import show_benchmark

    if set_default:
        raise UsageError(
            f"{device.name} runs benchmark_model, which compares no outputs: no default is chosen by it",
            hint="leave out --set-default",
        )
    measured = benchmark_on(device, bundle, sweep, steps)
    for one in measured:
        show_benchmark(console, one)
    console.document({"bundle": str(bundle), "benchmarks": measured})


def devices(*, action: str, name: str | None, devices: Path | None, **common: Any) -> None:
    """`edge-exporter devices`."""
    if action == "check":
        _check(name or "local", devices, **common)
        return
    if name is not None:
        raise UsageError(f"`devices list` takes no name (got '{name}')", hint=f"`edge-exporter devices check {name}`")
    from exporter.devices import read_devices

    with opened(**common) as (console, _):
        found = read_devices(devices)
        rows = [("local", "local", "this machine")]
        rows += [(one, plan.address, shorten(plan.notes, 60)) for one, plan in found.named.items()]
        console.table(("device", "address", "notes"), rows)
        console.result(f"from {found.file}" if found.file else "no devices.toml was found: docs/devices.md shows one")
        console.document(
            {
                "file": None if found.file is None else str(found.file),
                "devices": [{"name": one, "address": address, "notes": notes} for one, address, notes in rows],
            }
        )


def _check(name: str, file: Path | None, **common: Any) -> None:
    from exporter.devices import device_of, emulated_device, named_device, read_devices
    from exporter.tables import facts_rows

    with opened(**common) as (console, steps):
        named = named_device(name, read_devices(file))
        facts = (emulated_device(named, steps.store) or device_of(named, steps.store)).check()
        console.table(("", facts.device), facts_rows(facts))
        for note in facts.notes:
            console.result(f"note: {note}")
        console.document(facts)


def _other(variant: str) -> str:
    return f"; {variant} is the fastest here: `--set-default` makes it the default"
