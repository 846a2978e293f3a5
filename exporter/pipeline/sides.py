"""The two sides of a comparison: a bundle, or one profile, and which profiles of them can be compared."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exporter.artifacts import BenchmarkProfile, InstructionProfile, Manifest, Profile, Variant
from exporter.bundle import BENCHMARK, INSTRUCTIONS, MANIFEST, PROFILES, check_bundle, read_view, sealed_profile
from exporter.errors import BundleError, InputError, shorten
from exporter.views import BundleView

LARGEST = 64 * 2**20


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One side: a bundle with its profiles, a bundle of which one profile was named, or a profile alone."""

    label: str
    view: BundleView | None
    profiles: dict[str, Profile]
    main: str | None

    @property
    def manifest(self) -> Manifest | None:
        """The bundle's, where there is a bundle."""
        return self.view.manifest if self.view else None

    @property
    def variants(self) -> list[str]:
        """Names of its variants."""
        if self.view:
            return [one.name for one in self.view.manifest.variants]
        return [one.variant for profile in self.profiles.values() for one in profile.variants]

    @property
    def default(self) -> str | None:
        """The variant that runs by default; None of a profile alone."""
        return self.view.manifest.choice.variant if self.view else None

    def variant(self, name: str) -> Variant | None:
        """What the manifest says of a variant."""
        return self.view.variant(name) if self.view else None


def open_side(path: Path) -> Side:
    """Opens a bundle's folder, or a profile's file.

    Raises:
        BundleError: it does not hold what it claims.
        InputError: there is nothing, or nothing that holds latencies.
    """
    if path.is_dir():
        check_bundle(path)
        view = read_view(path)
        return Side(label=path.name or str(path), view=view, profiles=view.profiles, main=view.main_profile)
    if not path.is_file():
        raise InputError(
            "there is no such bundle or profile", where=str(path), hint="name a bundle's folder, or a profile in it"
        )
    bundle = path.absolute().parent.parent
    if path.absolute().parent.name == PROFILES and (bundle / MANIFEST).is_file():
        check_bundle(bundle)
        view = read_view(bundle)
        if path.name in view.profiles:
            label = f"{bundle.name}/{path.name}"
            return Side(label=label, view=view, profiles={path.name: view.profiles[path.name]}, main=path.name)
    profile = _read(path)
    return Side(label=path.name, view=None, profiles={path.name: profile}, main=path.name)


def matching(a: Side, b: Side) -> tuple[Profile, Profile] | None:
    """Profiles of both sides that were measured in the same place in the same way; those of the defaults first."""
    order_a = sorted(a.profiles, key=lambda name: name != a.main)
    order_b = sorted(b.profiles, key=lambda name: name != b.main)
    for name in order_a:
        for other in order_b:
            if not differences(a.profiles[name], b.profiles[other]):
                return a.profiles[name], b.profiles[other]
    return None


def differences(a: Profile, b: Profile) -> list[str]:
    """What makes latencies of two profiles incomparable, in words."""
    pairs = [
        ("provenance", a.provenance, b.provenance),
        ("device", a.device, b.device),
        ("CPU", a.host.cpu, b.host.cpu),
        ("cores", a.host.cores, b.host.cores),
        ("CPU features", " ".join(a.host.features), " ".join(b.host.features)),
        ("system", f"{a.host.system} {a.host.machine}", f"{b.host.system} {b.host.machine}"),
        ("runtime", f"{a.runtime.name} {a.runtime.version}", f"{b.runtime.name} {b.runtime.version}"),
        ("threads", a.settings.threads, b.settings.threads),
        ("pinned to CPUs", a.settings.affinity or "none", b.settings.affinity or "none"),
        ("batch", a.settings.batch, b.settings.batch),
    ]
    return [f"{what}: {shorten(one, 80)} and {shorten(other, 80)}" for what, one, other in pairs if one != other]


def _read(path: Path) -> Profile:
    hint = "a profile is profiles/HOST.json of a bundle, or what `run.py --bench --json` printed"
    if path.name.endswith((INSTRUCTIONS, BENCHMARK)):
        raise InputError("this profile holds no runs that could be compared", where=str(path), hint=hint)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError("the file is too large for a profile", where=str(path), hint=hint)
        content = path.read_bytes()
        profile = msgspec.json.decode(content, type=Profile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if path.is_file() and _other_kind(path):
            raise InputError(
                "this profile holds no runs that could be compared", where=str(path), hint=hint
            ) from error
        raise InputError("the file is no profile", where=str(path), why=shorten(error), hint=hint) from error
    if profile.seal and sealed_profile(profile) != profile:
        raise BundleError("the profile was changed after it was sealed", where=str(path))
    return profile


def _other_kind(path: Path) -> bool:
    for kind in (InstructionProfile, BenchmarkProfile):
        try:
            msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        return True
    return False
