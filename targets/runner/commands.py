"""What each command line does, once the files that it runs are those that the manifest lists."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .bench import Settings
from .bundle import Bundle, bundle_of, on_runtime, shape_text, variants_named
from .choice import choose, made_elsewhere, refuse_wrong, runnable, wrong_here
from .engine import Engine, limit_threads, located, pin, start
from .faults import BROKEN, MISSING, OK, Fault, say
from .footprint import footprint
from .host import cpu_features
from .inference import Check, infer, pick
from .profiling import profile, profile_lines
from .selftest import self_test, self_test_lines


def act(args: argparse.Namespace, manifest: dict[str, Any], check: Check, examples: str) -> int:
    """Runs the command; returns its exit code."""
    try:
        bundle = bundle_of(manifest)
        if args.input is not None:
            return _infer(bundle, args, check)
        if args.self_test or args.bench or args.footprint:
            return _try_or_measure(on_runtime(bundle, args.runtime) if args.runtime else bundle, args)
        variants_named(bundle, args.variant or "all")
        _describe(bundle, args.json, examples)
    except Fault as fault:
        say(f"error: {fault}")
        if fault.hint:
            say(f"  hint: {fault.hint}")
        return fault.code
    return OK


def _infer(bundle: Bundle, args: argparse.Namespace, check: Check) -> int:
    if args.variant is not None:
        variants_named(bundle, args.variant)
    pin(args.affinity)
    if foreign := made_elsewhere(bundle):
        say(f"warning: {foreign}")
    bundle = located(bundle, None)
    name, why = pick(bundle, args.variant, check)
    engine = start(bundle, args.threads, args.affinity)
    specs = infer(engine, bundle, name, why, args.input, args.output)
    if args.json:
        _print_json({"variant": name, "why": why, "output": str(args.output), "outputs": specs})
        return OK
    for spec in specs:
        print(f"{args.output}: {spec['name']} {spec['dtype']}{shape_text(spec['shape'])}")
    return OK


def _try_or_measure(bundle: Bundle, args: argparse.Namespace) -> int:
    foreign = made_elsewhere(bundle)
    if foreign and not args.self_test:
        raise Fault(MISSING, f"{foreign}: what it costs here says nothing about it", "run this on such a machine")
    if foreign:
        say(f"{foreign}: only what runs on any machine is tested here")
    limit_threads(args.threads)
    pin(args.affinity)
    bundle = located(bundle, args.runtime)
    names, skipped = _names(bundle, args.footprint or args.variant or "all")
    engine = start(bundle, args.threads, args.affinity, args.runtime)
    if args.footprint:
        _print_json(footprint(engine, bundle, names[0]))
        return OK
    report = {**self_test(engine, bundle, names), "skipped": skipped, "elsewhere": foreign}
    passed, lines = report["passed"], "\n".join(self_test_lines(report))
    if args.self_test:
        if args.json:
            _print_json(report)
        if not (args.json and passed):
            print(lines, file=sys.stderr if args.json else sys.stdout)
        return OK if passed else BROKEN
    left = _left_out(engine, bundle, report)
    names = [name for name in names if name not in left]
    if not passed:
        say(lines)
    if not names or (not passed and bundle.manifest["runtime"]["name"] == engine.runtime.NAME):
        say("error: nothing was measured, because the self-test failed")
        return BROKEN
    measured = {**profile(engine, bundle, names, _settings(args), args.runtime), "not_measured": left}
    if args.json:
        _print_json(measured, None)
    else:
        print("\n".join(profile_lines(measured, bundle.manifest["name"])))
    return OK


def _left_out(engine: Engine, bundle: Bundle, report: dict[str, Any]) -> dict[str, str]:
    """Variants that this runtime does not compute right, and why: known before, or found by the self-test.

    A runtime that stands in for the main one need not run every variant; what it does run is worth measuring.
    """
    wrong = {name: why for name in bundle.variants if (why := wrong_here(bundle, name))}
    failed = {
        tested["variant"]: f"it fails its self-test on {engine.runtime.NAME}: {tested['problems'][0]}"
        for tested in report["variants"] if not tested["passed"]
    }  # fmt: skip
    return {**wrong, **failed}


def _names(bundle: Bundle, asked: str) -> tuple[list[str], list[str]]:
    """The variants asked for, and why some are left out: all does not include those made for other CPUs."""
    names = variants_named(bundle, asked)
    if asked != "all":
        refuse_wrong(bundle, asked)
        return names, []
    names, others = runnable(bundle, cpu_features())
    for why in others:
        say(f"not run here: {why}")
    if not names:
        raise Fault(MISSING, "no variant of this bundle is made for this CPU", "name one with --variant to try it")
    return names, others


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        threads=args.threads,
        affinity=args.affinity,
        min_samples=args.min_samples,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        ci_width=args.ci_width,
        warmup_seconds=args.warmup_seconds,
        seed=args.seed,
    )


def _describe(bundle: Bundle, as_json: bool, examples: str) -> None:
    """What the bundle is and how to call it; needs neither numpy nor the runtime."""
    manifest = bundle.manifest
    bundle = located(bundle, None)
    name, why = choose(bundle, cpu_features())
    foreign = made_elsewhere(bundle)
    if as_json:
        keys = ("name", "target", "digest", "signature", "variants", "float_variant", "runtime", "choice")
        _print_json(
            {**{key: manifest[key] for key in keys}, "here": {"variant": name, "why": why, "elsewhere": foreign}}
        )
        return
    print(f"{manifest['name']} for {manifest['target']}, {manifest['runtime']['name']} >= "
          f"{manifest['runtime']['minimum']}, digest {manifest['digest'][:12]}")  # fmt: skip
    for title, tensors in (("input", bundle.inputs), ("output", bundle.outputs)):
        for tensor in tensors:
            print(f"  {title:<8} {tensor['name']}: {tensor['dtype']}{shape_text(tensor['shape'])}")
    for variant in bundle.variants.values():
        required = f", requires {', '.join(variant['requires'])}" if variant.get("requires") else ""
        wrong = f", not on {', '.join(variant['not_on'])}" if variant.get("not_on") else ""
        print(f"  variant  {variant['name']}: {variant['precision']}{required}{wrong}")
    if foreign:
        print(f"  here     {foreign}")
    print(f"  here     {name} runs by default: {why}\n\n{examples}", end="")


def _print_json(value: Any, indent: int | None = 2) -> None:
    print(json.dumps(value, indent=indent, allow_nan=False))
