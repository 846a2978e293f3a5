"""What manifest.json says, as typed values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .faults import BROKEN, USAGE, Fault

HERE = Path(__file__).resolve().parent
"""The bundle's folder."""


class Bundle(NamedTuple):
    """A manifest, as far as the runner needs it; `module` is the file that knows the main runtime.

    `here` is the runtime that works here, where that decides which variants are right.
    """

    manifest: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    module: str = "runtime"
    here: str = ""


def bundle_of(manifest: dict[str, Any]) -> Bundle:
    """Checks the values that the runner relies on.

    Raises:
        Fault: a value is missing, has the wrong type or names nothing.
    """
    try:
        bundle = Bundle(
            manifest=manifest,
            variants={variant["name"]: variant for variant in manifest["variants"]},
            inputs=list(manifest["signature"]["inputs"]),
            outputs=list(manifest["signature"]["outputs"]),
        )
        tensors = bundle.inputs + bundle.outputs
        named = {manifest["float_variant"], manifest["choice"]["variant"]}
        texts = [manifest[key] for key in ("name", "target", "digest")] + [manifest["choice"]["why"]]
        texts += [manifest["runtime"][key] for key in ("name", "minimum")]
        others = manifest.get("other_runtimes", [])
        texts += [runtime[key] for runtime in others for key in ("name", "minimum")]
        texts += [variant[key] for variant in bundle.variants.values() for key in ("precision", "runtime")]
        texts += [tensor[key] for tensor in tensors for key in ("name", "dtype")]
        numbers = [manifest["samples"], *(len(tensor["shape"]) for tensor in tensors)]
        tables = [variant["tolerances"] for variant in bundle.variants.values()]
        tables += [variant.get("not_on", {}) for variant in bundle.variants.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise Fault(BROKEN, f"manifest.json is not a bundle's manifest: {type(error).__name__} {error}") from error
    typed = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    if not typed or not all(isinstance(table, dict) for table in tables) or not named <= set(bundle.variants):
        raise Fault(BROKEN, "manifest.json is not a bundle's manifest: a value has the wrong type or names nothing")
    return bundle


def other_runtimes(bundle: Bundle) -> list[str]:
    """Names of the runtimes that some variants need beside the bundle's main one."""
    return [runtime["name"] for runtime in bundle.manifest.get("other_runtimes", [])]


def release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, to compare it."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple([*numbers, 0, 0, 0][:3])


def on_runtime(bundle: Bundle, name: str) -> Bundle:
    """The bundle as if it had only what runs on one of its runtimes, the first of which others are compared with."""
    main = bundle.manifest["runtime"]
    others = {runtime["name"]: runtime for runtime in bundle.manifest.get("other_runtimes", [])}
    known = [main["name"], *main.get("alternatives", {}), *others]
    if name not in known:
        raise Fault(USAGE, f"this bundle does not run on {name!r}; it runs on {', '.join(known)}")
    variants = {
        key: variant for key, variant in bundle.variants.items()
        if (variant["runtime"] == name if name in others else variant["runtime"] not in others)
    }  # fmt: skip
    if not variants:
        raise Fault(BROKEN, f"manifest.json lists {name}, and no variant runs on it")
    first = bundle.manifest["float_variant"]
    needed = {**others[name], "machine": main.get("machine")} if name in others else main
    manifest = {
        **bundle.manifest, "runtime": needed, "other_runtimes": [],
        "float_variant": first if first in variants else next(iter(variants)),
    }  # fmt: skip
    return bundle._replace(
        manifest=manifest, variants=variants, module=f"runtime_{name}" if name in others else bundle.module
    )


def variants_named(bundle: Bundle, wanted: str) -> list[str]:
    """The names that `--variant` stands for: one, or every variant for `all`."""
    if wanted == "all":
        return list(bundle.variants)
    if wanted not in bundle.variants:
        known = ", ".join(bundle.variants)
        raise Fault(USAGE, f"there is no variant {wanted!r} in this bundle; it has {known}")
    return [wanted]


def shape_text(shape: Sequence[int | str]) -> str:
    """As in `[batch, 3]`."""
    return f"[{', '.join(map(str, shape))}]"
