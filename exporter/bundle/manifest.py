"""manifest.json and profiles/*.json: digests, seals, and reading them back strictly."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from exporter.artifacts import BenchmarkProfile, InstructionProfile, Manifest, Profile, canonical, digest_of
from exporter.errors import BundleError, InputError

MANIFEST = "manifest.json"
PROFILES = "profiles"
INSTRUCTIONS = ".instructions.json"
"""How profiles of emulated devices end, so that no one reads them as latency."""
BENCHMARK = ".benchmark.json"
"""How profiles by a tool that compares no outputs end."""
LARGEST_JSON = 256 * 2**20

Sealed = TypeVar("Sealed", Manifest, Profile, InstructionProfile, BenchmarkProfile)
Measured = TypeVar("Measured", Profile, InstructionProfile, BenchmarkProfile)


def sealed_manifest(manifest: Manifest) -> Manifest:
    """Fills in `digest` (of the contents) and `seal` (of everything)."""
    contents = _without(manifest, "digest", "choice", "seal")
    named = msgspec.structs.replace(manifest, digest=digest_of(contents), seal="")
    return msgspec.structs.replace(named, seal=digest_of(_without(named, "seal")))


def sealed_profile(profile: Measured) -> Measured:
    """Fills in `seal`."""
    return msgspec.structs.replace(profile, seal=digest_of(_without(profile, "seal")))


def read_manifest(bundle: Path) -> Manifest:
    """Reads and checks manifest.json: strict types, canonical bytes, digest, seal, and paths that stay inside.

    Raises:
        BundleError: naming what does not hold.
    """
    path = bundle / MANIFEST
    if bundle.is_file():
        raise InputError(
            "this is a file, and a bundle's folder is needed",
            where=str(bundle),
            hint=f"where it is a packed bundle: `edge-exporter unpack {bundle}`",
        )
    if not bundle.is_dir():
        raise InputError("there is no such bundle folder", where=str(bundle), hint="`edge-exporter build` prints it")
    inside = [] if path.exists() or path.is_symlink() else sorted(bundle.glob(f"*/{MANIFEST}"))
    if inside:
        raise InputError(
            f"this folder holds bundles, {len(inside)} of them, and is none itself",
            where=str(bundle),
            hint=f"name one, as {inside[0].parent}",
        )
    manifest = _read(path, Manifest)
    if sealed_manifest(manifest) != manifest:
        raise BundleError("the manifest was changed after it was sealed", where=str(path))
    names = [entry.path for entry in manifest.files]
    for name in [*names, *(variant.main for variant in manifest.variants)]:
        check_inside(name, path)
    if len(set(names)) != len(names) or MANIFEST in names:
        raise BundleError("the manifest lists a file twice", where=str(path))
    for variant in manifest.variants:
        if variant.main not in names:
            raise BundleError(
                f"variant '{variant.name}' runs {variant.main}, which the manifest does not list", where=str(path)
            )
    known = {variant.name for variant in manifest.variants}
    for name in (manifest.float_variant, manifest.choice.variant):
        if name not in known:
            raise BundleError(f"the manifest names a variant '{name}' that it does not have", where=str(path))
    return manifest


def read_profile(path: Path, manifest: Manifest) -> Profile:
    """Reads and checks a profile of this bundle.

    Raises:
        BundleError: it was changed, or it was measured on another bundle.
    """
    return _of_this_bundle(path, _read(path, Profile), manifest)


def read_profiles(bundle: Path, manifest: Manifest) -> dict[str, Profile]:
    """All profiles of a bundle that hold latencies, by file name."""
    paths = sorted((bundle / PROFILES).glob("*.json"))
    return {
        path.name: read_profile(path, manifest) for path in paths if not path.name.endswith((INSTRUCTIONS, BENCHMARK))
    }


def read_instruction_profiles(bundle: Path, manifest: Manifest) -> dict[str, InstructionProfile]:
    """All profiles of emulated devices, by file name; checked as `read_profile` does."""
    paths = sorted((bundle / PROFILES).glob(f"*{INSTRUCTIONS}"))
    return {path.name: _of_this_bundle(path, _read(path, InstructionProfile), manifest) for path in paths}


def read_benchmark_profiles(bundle: Path, manifest: Manifest) -> dict[str, BenchmarkProfile]:
    """All profiles by LiteRT's benchmark_model, by file name; checked as `read_profile` does."""
    paths = sorted((bundle / PROFILES).glob(f"*{BENCHMARK}"))
    return {path.name: _of_this_bundle(path, _read(path, BenchmarkProfile), manifest) for path in paths}


def _of_this_bundle(path: Path, profile: Measured, manifest: Manifest) -> Measured:
    if sealed_profile(profile) != profile:
        raise BundleError("the profile was changed after it was sealed", where=str(path))
    if profile.bundle_digest != manifest.digest:
        raise BundleError("the profile belongs to another bundle", where=str(path))
    return profile


def check_inside(name: str, manifest: Path) -> None:
    """Refuses a path that is absolute, leaves the bundle, or is not in its plain form.

    Raises:
        BundleError: naming the path.
    """
    path = PurePosixPath(name)
    plain = str(path) == name and name not in ("", ".")
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not plain:
        raise BundleError(f"the manifest names a path outside the bundle: {name!r}", where=str(manifest))


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file so that a reader, or a crash, sees the old or the new one whole."""
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(exist_ok=True)
    try:
        with temp.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def _read(path: Path, kind: type[Sealed]) -> Sealed:
    if path.is_symlink():
        raise BundleError("a file of the bundle is a symbolic link", where=str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # Opening a named pipe would wait for ever.
            raise BundleError("a file of the bundle is no regular file", where=str(path))
        if path.stat().st_size > LARGEST_JSON:
            raise BundleError("the file is too large for what it is", where=str(path))
        content = path.read_bytes()
        value = msgspec.json.decode(content, type=kind)
    except FileNotFoundError as error:
        raise BundleError("a file of the bundle is missing", where=str(path)) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError("a file of the bundle cannot be read", where=str(path), why=str(error)) from error
    except RecursionError as error:
        raise BundleError("a file of the bundle is nested too deeply", where=str(path)) from error
    if canonical(value) == content:
        return value
    if canonical(msgspec.json.decode(content)) == content:
        raise BundleError(
            "the file lacks what this version of edge-exporter writes into it",
            where=str(path),
            why="another version made it, or it was changed",
            hint="build the bundle again, or use the version that made it; `run.py` in the bundle runs all the same",
        )
    raise BundleError("the file differs from what was written", where=str(path))


def _without(value: Manifest | Profile | InstructionProfile | BenchmarkProfile, *keys: str) -> dict[str, Any]:
    return {key: item for key, item in msgspec.structs.asdict(value).items() if key not in keys}
