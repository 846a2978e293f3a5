"""Which variant a CPU can run, and where its numbers can differ."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .bundle import HERE, Bundle, other_runtimes, release
from .faults import MISSING, Fault

WIDE_SUMS = ("avx512_vnni", "avx_vnni", "asimddp")
"""Features that add int8 products in 32 bits. x86 without them adds u8s8 products in 16 bits, which can saturate."""
FAMILIES = {"arm64": "aarch64", "amd64": "x86_64"}
"""Names that other systems have for what Linux calls a family of processors."""


def made_elsewhere(bundle: Bundle) -> str | None:
    """Says so where this machine is not of the family that the bundle is made for."""
    wanted = bundle.manifest["runtime"].get("machine")
    here = FAMILIES.get(platform.machine().lower(), platform.machine().lower())
    if wanted is None or wanted == here:
        return None
    return f"this machine is {here or 'of an unknown family'}, and the bundle is made for {wanted}"


def lacking(variant: dict[str, Any], features: Sequence[str]) -> list[str]:
    """CPU features that a variant requires and this CPU does not show; `a|b` is met by either."""
    needs = [need.split("|") for need in variant.get("requires", [])]
    return [" or ".join(need) for need in needs if not any(one in features for one in need)]


def not_shown(variant: dict[str, Any], absent: Sequence[str]) -> str:
    """What `lacking` found, in words."""
    return f"this CPU does not show {', '.join(absent)}, which {variant['name']} requires"


def unfit_runtime(bundle: Bundle, variant: dict[str, Any]) -> str | None:
    """What is wrong here with the runtime that a variant runs on beside the main one, or None."""
    name = variant["runtime"]
    if name not in other_runtimes(bundle):
        return None
    least = next(one["minimum"] for one in bundle.manifest["other_runtimes"] if one["name"] == name)
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    return f"{name} {found} is older than {least}" if release(found) < release(least) else None


def wrong_here(bundle: Bundle, name: str) -> str | None:
    """Why the runtime that works here does not compute a variant right, or None."""
    why = bundle.variants[name].get("not_on", {}).get(bundle.here)
    return None if why is None else f"{bundle.here} does not compute {name} right: {why}"


def refuse_wrong(bundle: Bundle, name: str) -> None:
    """Raises a Fault where the runtime that works here would give wrong values."""
    if wrong := wrong_here(bundle, name):
        main = bundle.manifest["runtime"]["name"]
        command = f'python -m pip install -r "{HERE / f"requirements-{main}.txt"}"'
        raise Fault(MISSING, wrong, f"{command} brings {main}, which does; or take another --variant")


def obstacle(bundle: Bundle, name: str, features: Sequence[str]) -> str | None:
    """Why a variant is not for this machine, or None."""
    variant = bundle.variants[name]
    absent, unfit = lacking(variant, features), unfit_runtime(bundle, variant)
    if wrong := wrong_here(bundle, name):
        return wrong
    if absent:
        return not_shown(variant, absent)
    if unfit:
        return f"{unfit}, which {name} runs on (requirements-{variant['runtime']}.txt brings it)"
    return None


def runnable(bundle: Bundle, features: Sequence[str]) -> tuple[list[str], list[str]]:
    """(variants for this machine, why each of the others is not)."""
    why = {name: obstacle(bundle, name, features) for name in bundle.variants}
    return [name for name, found in why.items() if not found], [found for found in why.values() if found]


def choose(bundle: Bundle, features: Sequence[str]) -> tuple[str, str]:
    """(variant, why): the bundle's choice where the machine allows it, else the next that it allows.

    The next is the fastest that was measured, or where nothing was the first, float last. A variant that specialises
    the choice for this CPU comes before it, unless the choice was made by measuring both.
    """
    choice, last = bundle.manifest["choice"], bundle.manifest["float_variant"]
    why_not = obstacle(bundle, choice["variant"], features)
    for name, variant in bundle.variants.items():
        measured = name in choice.get("measured", [])
        special = variant.get("specialises") == choice["variant"] and not measured
        if special and not obstacle(bundle, name, features):
            shown = [one for need in variant["requires"] for one in need.split("|") if one in features]
            return name, f"this CPU shows {', '.join(shown)}, which it is made for in place of {choice['variant']}"
    if not why_not:
        return choice["variant"], choice["why"]
    known = [name for name in choice.get("measured", []) if name in bundle.variants]
    others = known if last in known else [name for name in bundle.variants if name != last]
    return [*(name for name in others if not obstacle(bundle, name, features)), last][0], why_not


def reasons_to_fail(
    variant: dict[str, Any], manifest: dict[str, Any], features: Sequence[str], beyond: bool
) -> list[str]:
    """What about this CPU may explain a variant that failed; `beyond`: its values were beyond the tolerance."""
    absent = lacking(variant, features)
    reasons = [not_shown(variant, absent)] if absent else []
    hint = saturation(variant, manifest, features) if beyond else None
    return [*reasons, hint] if hint else reasons


def saturation(variant: dict[str, Any], manifest: dict[str, Any], features: Sequence[str]) -> str | None:
    """Says so where an int8 variant was made on a CPU whose int8 sums saturate otherwise than here."""
    made_on, scheme = manifest.get("made_on"), variant.get("scheme")
    there = made_on.get("features") if isinstance(made_on, dict) else None
    narrow = isinstance(scheme, dict) and scheme.get("reduce_range")
    # Features are unknown where a system does not tell; 7-bit weights cannot saturate.
    if variant["precision"] != "int8" or narrow or not isinstance(there, list) or not there or not features:
        return None
    then, now = ([feature for feature in WIDE_SUMS if feature in shown] for shown in (there, features))
    if bool(then) == bool(now):
        return None
    made, runs = (f"with {', '.join(found)}" if found else f"without {', '.join(WIDE_SUMS)}" for found in (then, now))
    return (
        f"{variant['name']} was made on a CPU {made} and runs on one {runs}: u8s8 sums saturate differently on such "
        "CPUs; rebuild with `--set quantize.reduce_range=true`"
    )
