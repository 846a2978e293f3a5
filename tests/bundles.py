"""Bundles that differ from a real one in a stated way, and hold all the same: sealed again, their profiles too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import Manifest, Profile, canonical
from exporter.bundle import MANIFEST, PROFILES, read_manifest, read_profiles, sealed_manifest, sealed_profile

HOSTILE = '<script>alert("x")</script>|`**_ \N{SNOWMAN}\N{HEBREW LETTER ALEF}' + "w" * 5000
"""A name that no page, table or terminal may take for more than text."""


def rewritten(
    bundle: Path,
    to: Path,
    manifest: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    profile: Callable[[Profile], Profile] = lambda profile: profile,
) -> Path:
    """A copy of a bundle with another manifest and other profiles."""
    shutil.copytree(bundle, to)
    before = read_manifest(bundle)
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
