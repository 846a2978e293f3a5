"""Lays a bundle's files down and seals its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import tomli_w

from exporter.artifacts import Manifest, canonical
from exporter.bundle.manifest import MANIFEST, sealed_manifest
from exporter.bundle.readme import readme_text
from exporter.disk import write_synced
from exporter.store import list_files
from exporter.target_api import SHARED

SAMPLES = "samples.npz"
VARIANTS = "variants"


class BundleParts(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a bundle.

    Attributes:
        variants: folder with one folder a variant, and perhaps one that they share; others in it are left out.
        samples: real inputs and the outputs expected for them.
        runner: files by their name in the bundle.
        plan: the resolved plan.
        guide: the target's part of the README.
    """

    variants: Path
    samples: Path
    runner: Mapping[str, Path]
    plan: Mapping[str, Any]
    guide: Callable[[Manifest], str] | None = None


def write_bundle(folder: Path, manifest: Manifest, parts: BundleParts) -> Manifest:
    """Writes everything into an empty folder, the manifest last.

    Args:
        folder: where to.
        manifest: with everything but `files`, `digest` and `seal`.
        parts: the files.

    Returns:
        The sealed manifest.
    """
    for variant in manifest.variants:
        own = PurePosixPath(variant.main).parent
        # A variant may have files beside its main one; what belongs to none stays behind.
        shutil.copytree(parts.variants / own.relative_to(VARIANTS), folder / own, dirs_exist_ok=True)
    if (parts.variants / SHARED).is_dir():
        shutil.copytree(parts.variants / SHARED, folder / VARIANTS / SHARED)
    shutil.copyfile(parts.samples, folder / SAMPLES)
    for name, source in parts.runner.items():
        shutil.copyfile(source, folder / name)
    runtime = manifest.runtime
    wanted = {runtime.name: runtime.requirements, **runtime.alternatives}
    wanted |= {one.name: one.requirements for one in manifest.other_runtimes}
    for name, requirements in wanted.items():
        text = "".join(f"{line}\n" for line in requirements)
        (folder / f"requirements-{name}.txt").write_text(text, encoding="utf-8")
    (folder / "plan.toml").write_text(tomli_w.dumps(dict(parts.plan)), encoding="utf-8")
    guide = f"\n{parts.guide(manifest)}" if parts.guide else ""
    (folder / "README.md").write_text(readme_text(manifest) + guide, encoding="utf-8")
    files = tuple(entry for entry in list_files(folder) if entry.path != MANIFEST)
    complete = sealed_manifest(msgspec.structs.replace(manifest, files=files))
    write_synced(folder / MANIFEST, canonical(complete))
    return complete


def bundle_name(manifest: Manifest) -> str:
    """NAME-TARGET-DIGEST12."""
    return f"{manifest.name}-{manifest.target}-{manifest.digest[:12]}"
