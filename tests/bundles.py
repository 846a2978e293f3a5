"""Bundles that differ from a real one in a stated way, and hold all the same: sealed again, their profiles too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx

from exporter.artifacts import (
    InstructionProfile,
    Manifest,
    Profile,
    RuntimeFacts,
    VariantInstructions,
    canonical,
)
from exporter.bundle import MANIFEST, PROFILES, read_manifest, read_profiles, sealed_manifest, sealed_profile
from exporter.store import list_files

HOSTILE = '<script>alert("x")</script>|`**_ \N{SNOWMAN}\N{HEBREW LETTER ALEF}' + "w" * 5000
"""A name that no page, table or terminal may take for more than text."""


def rewritten(
    bundle: Path,
    to: Path,
    manifest: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    profile: Callable[[Profile], Profile] = lambda profile: profile,
    *,
    other: str = "",
) -> Path:
    """A copy of a bundle with another manifest and other profiles; the file of variant `other` has other bytes."""
    shutil.copytree(bundle, to)
    before = read_manifest(bundle)
    if other:
        path = to / next(one.main for one in before.variants if one.name == other)
        model = onnx.load(path)
        model.doc_string += "other"
        onnx.save(model, path)
        kept = {entry.path for entry in before.files}
        before = replaced(before, files=tuple(entry for entry in list_files(to) if entry.path in kept))
    profiles = read_profiles(bundle, before)
    after = sealed_manifest(manifest(before))
    (to / MANIFEST).write_bytes(canonical(after))
    for name, one in profiles.items():
        changed = msgspec.structs.replace(profile(one), bundle_digest=after.digest)
        (to / PROFILES / name).write_bytes(canonical(sealed_profile(changed)))
    return to


def replaced(value: Any, /, **changes: Any) -> Any:
    """A value with other fields."""
    return msgspec.structs.replace(value, **changes)


def slower(profile: Profile, factor: float, *, variants: tuple[str, ...] = ()) -> Profile:
    """A profile whose samples all took so many times as long."""
    return replaced(
        profile,
        variants=tuple(
            replaced(one, samples_ns=tuple(round(factor * sample) for sample in one.samples_ns))
            if not variants or one.variant in variants
            else one
            for one in profile.variants
        ),
    )


def counts(manifest: Manifest) -> InstructionProfile:
    """What an emulated device would have counted."""
    return sealed_profile(
        InstructionProfile(
            bundle_digest=manifest.digest,
            target=manifest.target,
            device="emulated:pi5",
            cpu="cortex-a76",
            features=(),
            emulator="qemu",
            python="3.11",
            runtime=RuntimeFacts(name="onnxruntime", version="1", provider="cpu", numpy="2"),
            batch=1,
            variants=(
                VariantInstructions(
                    variant=manifest.float_variant,
                    guest_instructions={"total": 123456, "load": 23456},
                    cases=1,
                    max_abs_error=0.0,
                    max_quanta=None,
                    exact_share=1.0,
                ),
            ),
            skipped=("int8: too new",),
            flags=(),
            self_test="passed",
        )
    )
