"""A published bundle as those who show it see it: its manifest and everything that was measured of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import BenchmarkProfile, InstructionProfile, Manifest, Profile, Variant

SIZE_TIE, LATENCY_TIE = 0.001, 0.01
"""Shares of a size and of a latency by which two files differ and are still equal."""


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's folder, its manifest, and its profiles by file name.

    Attributes:
        path: the folder.
        manifest: read and checked.
        profiles: latencies.
        instructions: counts of emulated devices, which are no times.
        benchmarks: what LiteRT's benchmark_model printed.
    """

    path: Path
    manifest: Manifest
    profiles: dict[str, Profile] = {}
    instructions: dict[str, InstructionProfile] = {}
    benchmarks: dict[str, BenchmarkProfile] = {}

    @property
    def default(self) -> Variant:
        """The variant that runs by default."""
        return self.variant(self.manifest.choice.variant)

    def variant(self, name: str) -> Variant:
        """The variant of this name.

        Raises:
            KeyError: there is none.
        """
        found = {one.name: one for one in self.manifest.variants}
        return found[name]

    @property
    def main_profile(self) -> str | None:
        """Name of the profile that the default rests on, else of this machine's, else of the first."""
        chosen = self.manifest.choice.profile
        if chosen in self.profiles:
            return chosen
        local = [name for name, one in self.profiles.items() if one.device == "local"]
        return next(iter([*local, *self.profiles]), None)


def without_samples(profile: Profile) -> dict[str, Any]:
    """A profile as JSON, without its raw samples."""
    plain: dict[str, Any] = msgspec.to_builtins(profile)
    for variant in plain["variants"]:
        del variant["samples_ns"]
    return plain


def beats(theirs: Sequence[float], own: Sequence[float], ties: Sequence[float]) -> bool:
    """Whether costs are nowhere higher than others, and somewhere lower.

    Args:
        theirs: costs of what may be better.
        own: costs of what may be worse.
        ties: for each the share by which two may differ and still be equal.
    """
    gains = [
        0.0 if abs(a - b) <= tie * max(abs(a), abs(b)) else b - a for a, b, tie in zip(theirs, own, ties, strict=True)
    ]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def printable(text: str) -> str:
    """A stranger's text for a terminal: control characters, which could move the cursor, are replaced."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) in ("Cc", "Cf") else one for one in text)
