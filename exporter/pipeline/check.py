"""`verify`: a bundle's bytes, its self-test, and what its runtime says about inputs and outputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from exporter.artifacts import Manifest
from exporter.bundle import check_bundle, check_runtime_signature
from exporter.devices import cpu_features, isolated_python, run_self_test
from exporter.errors import BundleError
from exporter.target_api import made_for


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked; `self_test` is None when it was not run."""

    path: Path
    manifest: Manifest
    self_test: dict[str, Any] | None
    environment: str


def verify(bundle: Path, *, run: bool, isolated: bool, minimum: bool) -> Verified:
    """Checks a bundle.

    Args:
        bundle: its folder.
        run: also run its own self-test, which executes code from the bundle.
        isolated: run that in a fresh environment made from the bundle's requirements.
        minimum: take the oldest runtime that the bundle claims to run on.

    Raises:
        BundleError: it does not hold what it claims.
        MissingError: its runtime is not here, or cannot be installed.
    """
    manifest = check_bundle(bundle)
    if not run:
        return Verified(path=bundle, manifest=manifest, self_test=None, environment="not run")
    if isolated:
        with isolated_python((manifest.runtime, *manifest.other_runtimes), minimum=minimum) as python:
            report = run_self_test(bundle, python)
    else:
        report = run_self_test(bundle, sys.executable)
    for variant in report["variants"]:
        for side in ("inputs", "outputs"):
            check_runtime_signature(manifest, str(variant["variant"]), side, variant[side])
    tested = {str(variant["variant"]) for variant in report["variants"]}
    # Those for other CPUs or runtimes that are not here are left out, and the report says so.
    others = {runtime.name for runtime in manifest.other_runtimes}
    here = [
        variant.name
        for variant in manifest.variants
        if made_for(variant.requires, cpu_features()) and variant.runtime not in others
    ]
    untested = [name for name in here if name not in tested]
    if untested:
        raise BundleError(f"the self-test left out {', '.join(untested)}", where=str(bundle))
    # The self-test runs code: it must have left the bundle as it was.
    check_bundle(bundle)
    where = "a fresh environment" if isolated else "this environment"
    return Verified(path=bundle, manifest=manifest, self_test=report, environment=where)
