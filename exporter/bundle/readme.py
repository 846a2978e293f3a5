"""The README.md that travels in a bundle."""

from __future__ import annotations

from exporter.artifacts import Manifest, Preprocessing, RuntimeNeed, TensorSpec, Variant


def readme_text(manifest: Manifest) -> str:
    """How to run the bundle, what goes in and comes out, and what each variant kept of the model's accuracy."""
    runtime = manifest.runtime
    fidelity = manifest.variants[0].fidelity
    lines = [
        f"# {manifest.name} for {manifest.target}",
        "",
        f"Runs with Python {runtime.python} or newer, numpy and {runtime.name} {runtime.minimum} or newer, "
        f"and nothing else{_platform(runtime)}.",
        "",
        "```",
        f"pip install -r requirements-{runtime.name}.txt",
        *(
            f"pip install -r requirements-{name}.txt  # instead of it{_without(name, manifest.variants)}"
            for name in runtime.alternatives
        ),
        *(
            f"pip install -r requirements-{one.name}.txt   # for variants on {one.name}"
            for one in manifest.other_runtimes
        ),
        "python run.py                                  # what is here, and which variant this machine gets",
        "python run.py --self-test                      # checksums, then real inputs against expected outputs",
        "python run.py --bench                          # latency on this machine",
        "python run.py --input x.npz --output y.npz     # arrays named as below, ready for the model",
        "```",
        "",
        "## Inputs and outputs",
        "",
        "| | name | type | shape |",
        "|---|---|---|---|",
        *(_row("input", spec) for spec in manifest.signature.inputs),
        *(_row("output", spec) for spec in manifest.signature.outputs),
        "",
    ]
    for name, preprocessing in manifest.signature.preprocessing.items():
        lines += [f"`{name}` is made from raw data like this: {_steps(preprocessing)}.", ""]
    if manifest.signature.labels:
        lines += ["Classes, in order: " + ", ".join(manifest.signature.labels) + ".", ""]
    lines += [
        "## Variants",
        "",
        "| variant | precision | nodes in int8 | metric | SQNR of the worst output |",
        "|---|---|---|---|---|",
        *(_variant_row(variant) for variant in manifest.variants),
        "",
        f"Measured on {fidelity.samples} {fidelity.data} samples against the trained model in {fidelity.reference}.",
        "",
    ]
    lines += [
        f"`{variant.name}` does not run on {name}: {why}. `run.py` takes another variant there.\n"
        for variant in manifest.variants
        for name, why in variant.not_on.items()
    ]
    if manifest.model.licence:
        lines += [f"Licence of the trained model: {manifest.model.licence}.", ""]
    return "\n".join(lines)


def _without(runtime: str, variants: tuple[Variant, ...]) -> str:
    """Which variants a runtime does not compute right."""
    names = [f"`{variant.name}`" for variant in variants if runtime in variant.not_on]
    return f", without {', '.join(names)}" if names else ""


def _platform(runtime: RuntimeNeed) -> str:
    machine = f", on {runtime.machine} machines" if runtime.machine else ""
    return machine + (f" (Linux: glibc {runtime.glibc} or newer)" if runtime.glibc else "")


def _row(side: str, spec: TensorSpec) -> str:
    return f"| {side} | `{spec.name}` | {spec.dtype} | {list(spec.shape)} |"


def _variant_row(variant: Variant) -> str:
    coverage = variant.coverage
    covered = f"{coverage.quantized} of {coverage.eligible}" if coverage else "-"
    metric = variant.fidelity.metric
    task = f"{metric.name} {metric.value:.4f} (model {metric.reference:.4f})" if metric else "no labels"
    measured = [output.sqnr_db for output in variant.fidelity.outputs if output.sqnr_db is not None]
    sqnr = f"{min(measured):.1f} dB" if measured else "equal"
    return f"| {variant.name} | {variant.precision} | {covered} | {task} | {sqnr} |"


def _steps(preprocessing: Preprocessing) -> str:
    steps = [f"channels in {preprocessing.channel_order} order"]
    if preprocessing.size is not None:
        height, width = preprocessing.size
        how = (
            f"centre crop that keeps {preprocessing.crop_fraction:g}" if preprocessing.crop == "center" else "stretch"
        )
        steps.append(f"{preprocessing.interpolation} resize to {height}x{width} ({how})")
    steps.append(f"times {preprocessing.scale:.10g}")
    steps += [f"minus {list(preprocessing.mean)}"] if preprocessing.mean else []
    steps += [f"divided by {list(preprocessing.std)}"] if preprocessing.std else []
    steps.append(f"as {preprocessing.layout}")
    return ", ".join(steps)
