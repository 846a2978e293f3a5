"""A bundle with all of its profiles, for those who show or compare it."""

from __future__ import annotations

from pathlib import Path

from exporter.bundle.manifest import (
    read_benchmark_profiles,
    read_instruction_profiles,
    read_manifest,
    read_profiles,
)
from exporter.views import BundleView


def read_view(bundle: Path) -> BundleView:
    """Reads the manifest and every profile; files of models are not looked at.

    Raises:
        BundleError: a manifest or profile does not hold.
        InputError: there is no such folder.
    """
    manifest = read_manifest(bundle)
    return BundleView(
        path=bundle,
        manifest=manifest,
        profiles=read_profiles(bundle, manifest),
        instructions=read_instruction_profiles(bundle, manifest),
        benchmarks=read_benchmark_profiles(bundle, manifest),
    )
