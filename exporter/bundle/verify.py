"""Whether a bundle holds what its manifest claims: every byte, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.artifacts import Manifest, TensorSpec, file_digest
from exporter.bundle.manifest import (
    MANIFEST,
    PROFILES,
    read_benchmark_profiles,
    read_instruction_profiles,
    read_manifest,
    read_profiles,
)
from exporter.errors import BundleError

SHOWN = 20


def check_bundle(bundle: Path) -> Manifest:
    """Checks the manifest, every file's size and SHA-256, that nothing was added, and all profiles.

    Raises:
        BundleError: naming every file at fault.
    """
    manifest = read_manifest(bundle)
    wanted = {entry.path: entry for entry in manifest.files}
    present, problems = _walk(bundle)
    for path, entry in sorted(wanted.items()):
        file = bundle / path
        if path not in present:
            problems.append(f"{path}: missing")
        elif file.stat().st_size != entry.size:
            problems.append(f"{path}: {file.stat().st_size} bytes where {entry.size} were written")
        elif file_digest(file) != entry.sha256:
            problems.append(f"{path}: its contents changed (SHA-256 differs)")
    if manifest.choice.profile is not None:
        chosen_by = f"{PROFILES}/{manifest.choice.profile}"
        problems += [f"{chosen_by}: missing, and the default variant rests on it"] if chosen_by not in present else []
    problems += [f"{path}: added" for path in sorted(present - set(wanted)) if not _may_be_there(path)]
    if problems:
        shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
        raise BundleError(
            "the bundle does not hold what its manifest claims" + "".join(f"\n  - {line}" for line in shown),
            where=str(bundle),
            hint="build it again, or fetch it again from where it came from",
        )
    read_profiles(bundle, manifest)
    read_instruction_profiles(bundle, manifest)
    read_benchmark_profiles(bundle, manifest)
    return manifest


def check_runtime_signature(
    manifest: Manifest, variant: str, side: str, reported: Sequence[Mapping[str, Any]]
) -> None:
    """Compares inputs or outputs that a runtime reports with the manifest's signature.

    Args:
        manifest: of the bundle.
        variant: the variant that was opened.
        side: `inputs` or `outputs`.
        reported: name, dtype and shape of each tensor; a text or None in a shape is a dynamic axis.

    Raises:
        BundleError: naming the tensor.
    """
    specs: Sequence[TensorSpec] = getattr(manifest.signature, side)
    names = [str(item["name"]) for item in reported]
    where = f"variant {variant}, {side}"
    if names != [spec.name for spec in specs]:
        raise BundleError(
            f"the model's {side} are {names}, the manifest says {[spec.name for spec in specs]}", where=where
        )
    for spec, item in zip(specs, reported, strict=True):
        shape = tuple(item["shape"])
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(wanted, int) or not isinstance(got, int) or wanted == got
            for wanted, got in zip(spec.shape, shape, strict=True)
        )
        if item["dtype"] != spec.dtype or not fits:
            got = f"{item['dtype']}{list(shape)}"
            raise BundleError(f"the model's tensor '{spec.name}' is {got}, the manifest says {spec}", where=where)


def _may_be_there(path: str) -> bool:
    parts = path.split("/")
    return path == MANIFEST or (len(parts) == 2 and parts[0] == PROFILES and parts[1].endswith(".json"))


def _walk(bundle: Path) -> tuple[set[str], list[str]]:
    """Relative paths of all regular files, and what is neither file nor folder. Links are never followed."""
    present: set[str] = set()
    problems: list[str] = []
    for folder, names, files in os.walk(bundle, followlinks=False):
        for name in [*names, *files]:
            path = Path(folder, name)
            relative = path.relative_to(bundle).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                problems.append(f"{relative}: a symbolic link (to {path.readlink()})")
            elif stat.S_ISREG(mode):
                present.add(relative)
            elif not stat.S_ISDIR(mode):
                problems.append(f"{relative}: neither a file nor a folder")
            elif not any(path.iterdir()):
                problems.append(f"{relative}: an empty folder was added")
    return present, problems
