"""What each command does: a console, a call into the pipeline, a table or a document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ExporterError, GateError, PartialError, UsageError
from exporter.opening import opened as _console

if TYPE_CHECKING:
    from exporter.artifacts import Alternative
    from exporter.console import Console
    from exporter.pipeline.steps import Steps
    from exporter.plan import Plan

DAY = 24 * 3600


def build(
    *,
    model: str,
    output: Path,
    targets: Sequence[str],
    sets: Sequence[str],
    keep_going: bool,
    no_profile: bool,
    calib: str | None,
    evaluation: str | None,
    labels: str | None,
    weights: str | None,
    allow_pickle: bool,
    name: str | None,
    **common: Any,
) -> None:
    """`edge-exporter build`."""
    from exporter.flags import plan_of
    from exporter.pipeline.alternatives import build_alternatives
    from exporter.pipeline.build import TargetFailure, outcome_document
    from exporter.pipeline.build import build as run_build
    from exporter.registry import load_target
    from exporter.show import show_alternatives, show_bundle

    started = time.perf_counter()
    flags = {
        "--calib": calib,
        "--eval": evaluation,
        "--labels": labels,
        "--weights": weights,
        "--allow-pickle": allow_pickle or None,
        "--name": name,
    }
    with _console(**common) as (console, steps):
        if no_profile:
            sets = [*sets, "profile.enabled=false"]
        plan = plan_of(model, flags, targets, sets)
        rows: list[Alternative] = []
        if plan.variants:
            both, rows = build_alternatives(plan, output.absolute(), steps, load_target, keep_going=keep_going)
            outcomes = [outcome for _, outcome in both]
        else:
            outcomes = run_build(plan, output.absolute(), steps, load_target, keep_going=keep_going)
        failures: list[ExporterError] = []
        for outcome in outcomes:
            if isinstance(outcome, TargetFailure):
                console.error(outcome.error)
                # Of alternatives, one that is refused is what the comparison was for.
                if not (plan.variants and isinstance(outcome.error, GateError)):
                    failures.append(outcome.error)
            else:
                beside = {one.runtime: one.profile for one in outcome.beside}
                show_bundle(console, outcome.path, outcome.manifest, outcome.profile, beside)
        if plan.variants:
            show_alternatives(console, plan.name, rows)
        console.document(
            {
                "schema": 1,
                "name": plan.name,
                "seconds": round(time.perf_counter() - started, 3),
                "targets": [outcome_document(outcome) for outcome in outcomes],
                **({"variants": rows} if plan.variants else {}),
            }
        )
        console.result(f"\ndone in {time.perf_counter() - started:.1f} s")
        if failures:
            names = ", ".join(outcome.target for outcome in outcomes if isinstance(outcome, TargetFailure))
            raise PartialError(f"{len(failures)} of {len(outcomes)} targets failed: {names}")


def init(
    *,
    model: str,
    calib: str | None,
    evaluation: str | None,
    labels: str | None,
    weights: Path | None,
    targets: Sequence[str],
    output: Path,
    force: bool,
    **common: Any,
) -> None:
    """`edge-exporter init`."""
    from exporter.pipeline.init import write_plan

    with _console(**common) as (console, steps):
        with steps.guarded("write a plan"):
            data = {"evaluation": evaluation, "labels": labels}
            specs = write_plan(model, calib, weights, output, overwrite=force, targets=targets, **data)
        console.result(f"wrote {output}")
        for spec in specs:
            console.result(f"  input {spec}")
        if labels is None and len(specs) > 1 and any(len(spec.shape) == 1 for spec in specs):
            console.result("  where one of them holds labels: the same with `--eval DATA --labels NAME --force`")
        console.result(f"next: look through it, then `edge-exporter build {output}`")
        console.document({"plan": str(output), "inputs": specs})


def show_plan(*, plan: Path, targets: Sequence[str], sets: Sequence[str], **common: Any) -> None:
    """`edge-exporter plan`."""
    from exporter.plan import read_plan
    from exporter.registry import load_target

    with _console(**common) as (console, steps):
        resolved = read_plan(plan, load_target=load_target, sets=sets, only=targets)
        document: dict[str, Any] = {"plan": str(plan)}
        if resolved.variants:
            shown = {one.label: _shown_plan(console, one, steps) for one in resolved.variants}
            document |= {"targets": {}, "steps": [], "variants": shown}
        else:
            document |= _shown_plan(console, resolved, steps)
        console.document(document)


def _shown_plan(console: Console, plan: Plan, steps: Steps) -> dict[str, Any]:
    """Values and steps of one plan, on the screen and for the document."""
    from exporter.pipeline.peek import step_states
    from exporter.registry import load_target

    states = step_states(plan, steps, load_target)
    shown: dict[str, Any] = {}
    for target in plan.targets:
        tables = plan.resolved(target)
        values = {
            f"{section}.{key}": value
            for section, table in tables.items()
            if isinstance(table, dict) and section != "targets"
            for key, value in table.items()
        }
        values |= {f"targets.{target.name}.{key}": value for key, value in tables["targets"][target.name].items()}
        rows = [(key, _origin(plan.origins, target.name, key), _toml(value)) for key, value in values.items()]
        console.table(("key", "from", "value"), rows, title=f"{plan.name} for target {target.name}")
        shown[target.name] = {key: {"value": values[key], "origin": origin} for key, origin, _ in rows}
    console.result("")
    rows = [(state.target, state.step, "in the store" if state.cached else "to do") for state in states]
    console.table(("target", "step", "state"), rows)
    return {"targets": shown, "steps": states}


def analyze(
    *, source: str, targets: Sequence[str], variant: str | None, sets: Sequence[str], rows: int, **common: Any
) -> None:
    """`edge-exporter analyze`."""
    from exporter.pipeline.analyzing import analyze_bundle, analyze_plan
    from exporter.plan import read_plan
    from exporter.registry import load_target
    from exporter.show_analysis import show_analysis

    with _console(**common) as (console, steps):
        if not source.endswith(".toml"):
            if sets or targets:
                raise UsageError("--set and --target change a plan; a bundle is looked at as it is")
            found = [analyze_bundle(Path(source), variant, steps, load_target)]
        else:
            plan = read_plan(Path(source), load_target=load_target, sets=sets, only=targets)
            if plan.variants:
                raise UsageError(
                    f"{source} has variants ({', '.join(one.label for one in plan.variants)})",
                    hint="build it, and analyze the bundle of one of them",
                )
            found = analyze_plan(plan, load_target, variant, source, steps)
        for analysis in found:
            show_analysis(console, analysis, rows)
        console.document({"schema": 1, "analyses": found})


def verify(*, bundle: Path, isolated: bool, minimum: bool, no_run: bool, **common: Any) -> None:
    """`edge-exporter verify`."""
    from exporter.bundle import opened_bundle
    from exporter.pipeline.check import verify as run_verify

    if minimum and not isolated:
        raise UsageError("--minimum needs --isolated: it installs the oldest runtime into a fresh environment")
    if isolated and no_run:
        raise UsageError("--isolated runs the self-test, --no-run does not: choose one")
    with _console(**common) as (console, _), opened_bundle(bundle) as folder:
        verified = run_verify(folder, run=not no_run, isolated=isolated, minimum=minimum)
        manifest = verified.manifest
        count = len(manifest.files) + 1
        console.result(f"{bundle}: {count} files are as they were written")
        if verified.self_test is None:
            console.result("self-test: not run (--no-run)")
        else:
            runtime = verified.self_test["runtime"]
            others = "".join(f", {name} {version}" for name, version in runtime.get("others", {}).items())
            runtimes = f"{runtime['name']} {runtime['version']}{others}"
            console.result(f"self-test in {verified.environment}, {runtimes}:")
            for report in verified.self_test["variants"]:
                exact = report.get("exact_share")
                share = "" if exact is None else f", {exact:.2%} of values equal"
                console.result(f"  {report['variant']}: passed, {report['cases']} cases{share}")
            for other in verified.self_test.get("skipped", []):
                console.result(f"  not tested: {other}")
        console.document(
            {
                "bundle": str(bundle),
                "digest": manifest.digest,
                "files": count,
                "environment": verified.environment,
                "self_test": verified.self_test,
            }
        )


def targets(**common: Any) -> None:
    """`edge-exporter targets`."""
    from exporter.registry import load_target, target_names

    with _console(**common) as (console, steps):
        rows, document = [], []
        for name in target_names():
            try:
                with steps.guarded(f"load target {name}"):
                    target = load_target(name)
                    missing, summary = target.missing(target.options_type()), target.summary
            except ExporterError as error:
                what = f"{error.what}: {error.why}" if error.why else error.what
                missing, summary = (what, error.hint or ""), "cannot be loaded"
            state = "ready" if missing is None else f"missing: {missing[0]} ({missing[1]})"
            rows.append((name, state, summary))
            document.append({"name": name, "summary": summary, "ready": missing is None, "missing": missing})
        console.table(("target", "state", "what it makes"), rows)
        console.document({"targets": document})


def cache(*, action: str, older_than: float, max_size: float | None, **common: Any) -> None:
    """`edge-exporter cache`."""
    from exporter.tables import human_size

    with _console(**common) as (console, steps):
        store = steps.store
        if action == "dir":
            console.result(str(store.root))
            console.document({"dir": str(store.root)})
        elif action == "list":
            entries = store.usage()
            rows = [(one.stage, one.key[:12], human_size(one.size), _age(one.age_seconds)) for one in entries]
            console.table(("stage", "key", "size", "last used"), rows)
            total = sum(one.size for one in entries)
            console.result(f"{len(entries)} results, {human_size(total)}, in {store.root}")
            console.document({"dir": str(store.root), "bytes": total, "entries": entries})
        else:
            limits: dict[str, Any] = {}
            if action == "gc" and max_size is not None:
                limits = {"max_bytes": int(max_size * 1e9)}
            elif action == "gc":
                limits = {"older_than_seconds": older_than * DAY}
            removed = store.collect(**limits)
            freed = sum(one.size for one in removed)
            console.result(f"removed {len(removed)} results, {human_size(freed)}")
            console.document({"removed": removed, "bytes": freed})


def _origin(origins: dict[str, str], target: str, key: str) -> str:
    return origins.get(f"targets.{target}.{key}") or origins.get(key) or "built-in default"


def _toml(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _age(seconds: float) -> str:
    return f"{seconds / DAY:.1f} days" if seconds >= DAY else f"{seconds / 3600:.1f} hours"
