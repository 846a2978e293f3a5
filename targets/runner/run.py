"""Runs, tests and measures the model in this folder.

Needs Python 3.9 or newer, numpy, and the runtime that the bundle was made for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

# Bytecode written beside this file would be an added file of the bundle.
sys.dont_write_bytecode = True

HERE = Path(__file__).resolve().parent
BATCH = "batch"
OK, USAGE, BAD_INPUT, MISSING, BROKEN, INTERRUPTED = 0, 2, 3, 4, 6, 130
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
EXAMPLES = """\
examples:
  python run.py                                what this bundle is
  python run.py --self-test                    does it compute what it should?
  python run.py --bench                        latency of every variant, here
  python run.py --bench --threads 2 --affinity 0,1 --json > profile.json
  python run.py --input x.npz --output y.npz   x.npz: one array for each input

exit codes: 0 done, 2 wrong command line, 3 input that does not fit, 4 numpy or
the runtime is missing, 6 the bundle does not hold what it claims
"""


class Fault(Exception):
    """Something the user can act on: one message, maybe a hint, and the exit code."""

    def __init__(self, code: int, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class Bundle(NamedTuple):
    """What manifest.json says, as far as the runner needs it."""

    manifest: dict[str, Any]
    files: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class Match(NamedTuple):
    """How one output compares with what is expected.

    `worst` is the largest finite absolute error, `quanta` the same in int8 steps; None where there is none.
    """

    problems: list[str]
    worst: float | None
    quanta: float | None
    exact: int
    total: int


def say(text: str) -> None:
    """Everything but results goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def brief(error: object) -> str:
    """A library's own words on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


# The bundle ------------------------------------------------------------------------------------------------


def read_bundle() -> Bundle:
    """Reads manifest.json beside this file."""
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Fault(BROKEN, f"manifest.json cannot be read: {brief(error)}") from error
    try:
        if manifest["schema"] != 1:
            raise Fault(BROKEN, f"manifest.json has schema {manifest['schema']!r}; this runner reads 1")
        bundle = Bundle(
            manifest=manifest,
            files={entry["path"]: entry for entry in manifest["files"]},
            variants={variant["name"]: variant for variant in manifest["variants"]},
            inputs=list(manifest["signature"]["inputs"]),
            outputs=list(manifest["signature"]["outputs"]),
        )
        named = {manifest["float_variant"], manifest["choice"]["variant"]}
        needed = [manifest["name"], manifest["target"], manifest["digest"], manifest["choice"]["why"]]
        needed += [manifest["runtime"][key] for key in ("name", "minimum")]
        needed += [variant[key] for variant in bundle.variants.values() for key in ("main", "precision")]
        needed += [tensor[key] for tensor in bundle.inputs + bundle.outputs for key in ("name", "dtype")]
        sizes = [entry["size"] for entry in bundle.files.values()]
        sizes += [len(tensor["shape"]) for tensor in bundle.inputs + bundle.outputs] + [manifest["samples"]]
        tables = [variant["tolerances"] for variant in bundle.variants.values()]
        needed += [entry["sha256"] for entry in bundle.files.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise Fault(BROKEN, f"manifest.json is not a bundle's manifest: {type(error).__name__} {error}") from error
    typed = all(isinstance(text, str) for text in needed) and all(type(size) is int for size in sizes)
    if not typed or not all(isinstance(table, dict) for table in tables) or not named <= set(bundle.variants):
        raise Fault(BROKEN, "manifest.json is not a bundle's manifest: a value has the wrong type or names nothing")
    return bundle


def check_files(bundle: Bundle, wanted: Callable[[str], bool] = lambda path: True) -> list[str]:
    """Compares size and SHA-256 of the files that the manifest lists; one problem for each that differs."""
    used = {"samples.npz", "run.py", "bench.py", "runtime.py"}
    used |= {variant["main"] for variant in bundle.variants.values()}
    problems = [f"{name}: not listed in manifest.json" for name in sorted(used - set(bundle.files)) if wanted(name)]
    for name, entry in sorted(bundle.files.items()):
        if wanted(name):
            problem = _file_problem(name, entry)
            problems += [f"{name}: {problem}"] if problem else []
    return problems


def _file_problem(name: str, entry: dict[str, Any]) -> str | None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name or not relative.parts:
        return "not a path inside the bundle"
    path = HERE / relative
    if any(step.is_symlink() for step in [path, *path.parents] if HERE in step.parents):
        return "is a symbolic link"
    if not path.is_file():
        return "missing"
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"has {size} bytes instead of {entry['size']}"
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        return f"cannot be read: {brief(error)}"
    return None if digest.hexdigest() == entry["sha256"] else "contents differ from the manifest's sha256"


def lacking(variant: dict[str, Any], features: Sequence[str]) -> list[str]:
    """CPU features that a variant requires and this CPU does not show."""
    return [feature for feature in variant.get("requires", []) if feature not in features]


def choose(bundle: Bundle, features: Sequence[str]) -> tuple[str, str]:
    """(variant, why): the bundle's choice where the CPU allows it, else the next that it allows, float last."""
    choice, last = bundle.manifest["choice"], bundle.manifest["float_variant"]
    absent = lacking(bundle.variants[choice["variant"]], features)
    if not absent:
        return choice["variant"], choice["why"]
    why = f"this CPU does not show {', '.join(absent)}, which {choice['variant']} requires"
    others = [name for name in bundle.variants if name != last and not lacking(bundle.variants[name], features)]
    return [*others, last][0], why


def _variants(bundle: Bundle, wanted: str) -> list[str]:
    if wanted != "all" and wanted not in bundle.variants:
        known = ", ".join(bundle.variants)
        raise Fault(USAGE, f"there is no variant {wanted!r} in this bundle; it has {known}")
    return list(bundle.variants) if wanted == "all" else [wanted]


# numpy and the runtime -------------------------------------------------------------------------------------


@cache
def sibling(name: str) -> Any:
    """A module of this folder, by its path: nothing elsewhere on sys.path can take its place."""
    spec = importlib.util.spec_from_file_location(f"bundle_{name}", HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise Fault(BROKEN, f"{name}.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, ImportError, ValueError) as error:
        raise Fault(BROKEN, f"{name}.py cannot be loaded: {brief(error)}") from error
    return module


def need(bundle: Bundle) -> tuple[Any, Any]:
    """(numpy, the runtime's module), or a Fault that names the command that brings what is missing."""
    needed = bundle.manifest["runtime"]
    path = HERE / f"requirements-{needed['name']}.txt"
    command = f'python -m pip install -r "{path}"'
    try:
        import numpy
    except ImportError as error:
        raise Fault(MISSING, f"numpy cannot be imported: {brief(error)}", f"{command}") from error
    runtime = sibling("runtime")
    try:
        version = runtime.version()
    except runtime.RuntimeMissing as error:
        raise Fault(MISSING, str(error), error.command) from error
    if _release(version) < _release(needed["minimum"]):
        message = f"{needed['name']} {version} is older than {needed['minimum']}, which this bundle needs"
        raise Fault(MISSING, message, command.replace("install", "install --upgrade"))
    return numpy, runtime


def _release(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple([*numbers, 0, 0, 0][:3])


def open_variant(bundle: Bundle, runtime: Any, name: str, args: argparse.Namespace) -> Any:
    """Opens a variant in the runtime; a model that it refuses is a broken bundle."""
    path = str(HERE / bundle.variants[name]["main"])
    try:
        return runtime.open_session(path, args.threads, args.affinity)
    except runtime.RuntimeMissing as error:
        raise Fault(MISSING, str(error), error.command) from error
    except Exception as error:  # the runtime's own exception types are unknown here
        raise Fault(BROKEN, f"{bundle.variants[name]['main']} cannot be opened: {brief(error)}") from error


def runtime_facts(numpy: Any, runtime: Any) -> dict[str, str]:
    """Name, version and provider of the runtime, and numpy's version."""
    return {
        "name": runtime.NAME,
        "version": runtime.version(),
        "provider": runtime.provider(),
        "numpy": str(numpy.__version__),
    }


# Self-test -------------------------------------------------------------------------------------------------


class Samples:
    """samples.npz, read array by array."""

    def __init__(self, numpy: Any, bundle: Bundle) -> None:
        self.count: int = bundle.manifest["samples"]
        self._inputs, self._outputs = bundle.inputs, bundle.outputs
        try:
            self._arrays = numpy.load(HERE / "samples.npz", allow_pickle=False)
            self._names = set(self._arrays.files)
        except (*UNREADABLE, AttributeError) as error:
            raise Fault(BROKEN, f"samples.npz cannot be read: {brief(error)}") from error

    def inputs(self, case: int) -> dict[str, Any]:
        """Arrays by input name."""
        return {tensor["name"]: self._read(f"{case}/inputs/{tensor['name']}") for tensor in self._inputs}

    def expected(self, case: int, variant: str) -> dict[str, Any]:
        """Arrays by output name."""
        return {tensor["name"]: self._read(f"{case}/expected/{variant}/{tensor['name']}") for tensor in self._outputs}

    def _read(self, key: str) -> Any:
        if key not in self._names:
            raise Fault(BROKEN, f"samples.npz lacks {key}")
        try:
            return self._arrays[key]
        except UNREADABLE as error:
            raise Fault(BROKEN, f"samples.npz, {key}: {brief(error)}") from error


def compare_output(numpy: Any, got: Any, expected: Any, tolerance: Mapping[str, Any]) -> Match:
    """Compares one output: dtype, shape, NaN pattern, and |got - expected| <= atol + rtol * |expected|."""
    total = int(expected.size)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        found, wanted = (f"{array.dtype}{list(array.shape)}" for array in (got, expected))
        return Match([f"is {found} instead of {wanted}"], None, None, 0, total)
    if expected.dtype.kind == "f":
        error = numpy.zeros(expected.shape)
        apart = ~((got == expected) | (numpy.isnan(got) & numpy.isnan(expected)))
        one, other = got[apart].astype(numpy.float64), expected[apart].astype(numpy.float64)
        with numpy.errstate(invalid="ignore", over="ignore"):
            error[apart] = numpy.abs(one - other)
    else:
        # Exact for every integer type: widened first, and a wrapped difference reads right as unsigned.
        wide = numpy.uint64 if expected.dtype == numpy.uint64 else numpy.int64
        one, other = got.astype(wide), expected.astype(wide)
        error = numpy.where(one > other, one - other, other - one).astype(numpy.uint64)
        apart = error != 0
        error = error.astype(numpy.float64)
    size = numpy.abs(expected.astype(numpy.float64))
    size[~numpy.isfinite(size)] = 0
    allowed = float(tolerance["atol"]) + float(tolerance.get("rtol", 0.0)) * size
    # Written so that NaN, which compares false, fails.
    wrong = apart & ~(error <= allowed)
    comparable = error[numpy.isfinite(error)]
    worst = float(comparable.max()) if comparable.size else None
    problems = []
    if wrong.any():
        where = tuple(int(index) for index in numpy.argwhere(wrong)[0])
        problems.append(
            f"{int(wrong.sum())} of {total} values beyond {tolerance['atol']:g} + "
            f"{tolerance.get('rtol', 0.0):g} * |expected|; first at {list(where)}: {got[where]} for {expected[where]}"
        )
    quantum = tolerance.get("quantum")
    quanta = worst / quantum if quantum and worst is not None else None
    return Match(problems, worst, quanta, total - int(apart.sum()), total)


def test_case(numpy: Any, got: Mapping[str, Any], expected: Mapping[str, Any], tolerances: Any) -> list[Match]:
    """Compares all outputs of one sample."""
    if set(got) != set(expected):
        return [Match([f"outputs are {sorted(got)} instead of {sorted(expected)}"], None, None, 0, 0)]
    matches = []
    for output, wanted in expected.items():
        tolerance = tolerances.get(output)
        if isinstance(tolerance, dict) and isinstance(tolerance.get("atol"), (int, float)):
            match = compare_output(numpy, got[output], wanted, tolerance)
        else:
            match = Match(["manifest.json has no tolerance"], None, None, 0, int(wanted.size))
        matches.append(match._replace(problems=[f"output {output}: {problem}" for problem in match.problems]))
    return matches


def test_variant(bundle: Bundle, numpy: Any, runtime: Any, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs every sample through a variant; all problems are collected, none stops the others."""
    variant = bundle.variants[name]
    problems: list[str] = []
    matches: list[Match] = []
    specs: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    cases = 0
    try:
        samples, session = Samples(numpy, bundle), open_variant(bundle, runtime, name, args)
        specs = {"inputs": _specs(session.inputs()), "outputs": _specs(session.outputs())}
        cases = samples.count
    except Fault as fault:
        if fault.code == MISSING:
            raise
        problems.append(str(fault))
    else:
        problems += [] if cases else ["the bundle has no samples, so nothing was tested"]
    for case in range(cases):
        try:
            expected = samples.expected(case, name)
            compared = test_case(numpy, session.run(samples.inputs(case)), expected, variant["tolerances"])
        except Fault as fault:
            problems.append(str(fault))
        except Exception as error:  # the runtime's own exception types are unknown here
            problems.append(f"case {case}: the runtime failed: {brief(error)}")
        else:
            matches += compared
            problems += [f"case {case}, {problem}" for match in compared for problem in match.problems]
    absent = lacking(variant, sibling("bench").cpu_features())
    if problems and absent:
        problems.append(f"this CPU does not show {', '.join(absent)}, which {name} requires")
    total = sum(match.total for match in matches)
    return {
        "variant": name,
        "passed": not problems,
        "cases": cases,
        "max_abs_error": max((match.worst for match in matches if match.worst is not None), default=None),
        "max_quanta": max((match.quanta for match in matches if match.quanta is not None), default=None),
        "exact_share": sum(match.exact for match in matches) / total if total else None,
        "problems": problems,
        **specs,
    }


def _specs(tensors: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in tensors]


def self_test(bundle: Bundle, names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Checks all files, then every sample on each named variant. Nothing is run from files that differ."""
    problems = check_files(bundle)
    report: dict[str, Any] = {"passed": False, "problems": problems, "runtime": None, "variants": [], "host": None}
    if problems:
        return report
    numpy, runtime = need(bundle)
    report["runtime"], report["host"] = runtime_facts(numpy, runtime), sibling("bench").host_facts()
    report["variants"] = [test_variant(bundle, numpy, runtime, name, args) for name in names]
    report["passed"] = all(variant["passed"] for variant in report["variants"])
    return report


def self_test_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    lines = [f"  - {problem}" for problem in report["problems"]]
    for tested in report["variants"]:
        worst, quanta, share = tested["max_abs_error"], tested["max_quanta"], tested["exact_share"]
        words = [f"{tested['variant']:<12} {'passed' if tested['passed'] else 'FAILED'}  {tested['cases']} cases"]
        steps = f" ({quanta:.2g} quanta)" if quanta is not None else ""
        words += [f"max abs error {worst:.3g}{steps}"] if worst is not None else []
        words += [f"exact {100 * share:.2f} %"] if share is not None else []
        lines.append(", ".join(words))
        lines += [f"  - {problem}" for problem in tested["problems"]]
    facts = report["runtime"]
    where = f" on {facts['name']} {facts['version']}, {facts['provider']}" if facts else ""
    return [*lines, f"self-test {'passed' if report['passed'] else 'FAILED'}{where}"]


# Measuring -------------------------------------------------------------------------------------------------


def bench_cases(bundle: Bundle, samples: Samples) -> tuple[int, list[int]]:
    """(batch size, cases) to measure with: single samples where there are any, else the most frequent size."""
    cases: dict[int, list[int]] = {}
    for case in range(samples.count):
        cases.setdefault(_batch_size(bundle, samples.inputs(case)), []).append(case)
    if not cases:
        raise Fault(BROKEN, "the bundle has no samples to measure with")
    batch = 1 if 1 in cases else max(cases, key=lambda size: (len(cases[size]), -size))
    return batch, cases[batch]


def _batch_size(bundle: Bundle, arrays: Mapping[str, Any]) -> int:
    named = [tensor["name"] for tensor in bundle.inputs if tensor["shape"] and tensor["shape"][0] == BATCH]
    fixed = [tensor["name"] for tensor in bundle.inputs if tensor["shape"] and isinstance(tensor["shape"][0], int)]
    return int(arrays[(named + fixed)[0]].shape[0]) if named or fixed else 1


def footprint(bundle: Bundle, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Load time, first inference and peak memory of this process, which does nothing else."""
    from time import perf_counter_ns

    numpy, runtime = need(bundle)
    samples = Samples(numpy, bundle)
    feed = samples.inputs(bench_cases(bundle, samples)[1][0])
    start = perf_counter_ns()
    session = open_variant(bundle, runtime, name, args)
    loaded = perf_counter_ns()
    session.run(feed)
    done = perf_counter_ns()
    return {
        "load_ns": loaded - start,
        "first_ns": done - loaded,
        "peak_rss_bytes": sibling("bench").peak_rss_bytes(),
    }


def _footprint_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "run.py"), "--footprint", name, "--threads", str(args.threads), "--json"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        facts = json.loads(child.stdout) if child.returncode == 0 else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        last = brief(child.stderr[-300:])
        code = child.returncode if child.returncode in (BAD_INPUT, MISSING) else BROKEN
        raise Fault(code, f"{name}: the process that loads it ended with {child.returncode}: {last}")
    return facts


def run_bench(bundle: Bundle, names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Measures the named variants; the caller has seen the self-test pass. Returns a profile."""
    numpy, runtime = need(bundle)
    bench = sibling("bench")
    samples = Samples(numpy, bundle)
    batch, cases = bench_cases(bundle, samples)
    settings = bench.Settings(
        threads=args.threads,
        affinity=args.affinity,
        batch=batch,
        min_samples=args.min_samples,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        ci_width=args.ci_width,
        warmup_seconds=args.warmup_seconds,
        seed=args.seed,
    )
    feeds = [samples.inputs(case) for case in cases]
    apart = {name: _footprint_of(name, args) for name in names}
    sessions = {name: open_variant(bundle, runtime, name, args).run for name in names}
    say(f"measuring {', '.join(names)}: at most {args.max_seconds:g} s, batch {batch}, {args.threads} thread(s)")
    steady = bench.measure(sessions, feeds, settings)
    host, baseline = bench.host_facts(), bundle.manifest["float_variant"]
    series = steady.samples
    profiles = [
        {
            "variant": name,
            **apart[name],
            "warmup_runs": steady.warmup_runs,
            "samples_ns": series[name],
            "summary": bench.summarize(series[name]),
        }
        for name in names
    ]
    others = [name for name in names if baseline in series and name != baseline]
    return {
        "schema": 1,
        "bundle_digest": bundle.manifest["digest"],
        "target": bundle.manifest["target"],
        "provenance": "native",
        "host": host,
        "runtime": runtime_facts(numpy, runtime),
        "settings": settings._asdict(),
        "before": steady.before,
        "after": steady.after,
        "variants": profiles,
        "comparisons": [bench.compare(name, baseline, series[name], series[baseline]) for name in others],
        "flags": bench.flags(steady, settings, host["cores"]),
        "self_test": "passed",
        "seal": "",
    }


def bench_lines(profile: dict[str, Any], name: str) -> list[str]:
    """The profile as a table of at most 80 columns; a percentile that the samples do not support is a dash."""
    host, facts, settings = profile["host"], profile["runtime"], profile["settings"]
    pinned = ",".join(map(str, settings["affinity"])) if settings["affinity"] else "not pinned"
    about = [
        f"bundle   {name}",
        f"runtime  {facts['name']} {facts['version']}, {facts['provider']}, numpy {facts['numpy']}",
        f"host     {host['cpu']}, {host['cores']} cores, {host['system']} {host['machine']}, "
        f"governor {host['governor'] or 'unknown'}",
        f"measured batch {settings['batch']}, {settings['threads']} thread(s), CPUs {pinned}, "
        f"{profile['variants'][0]['summary']['count']} rounds interleaved",
    ]
    lines = [line for text in about for line in textwrap.wrap(text, 80, subsequent_indent=" " * 9)]
    head = ("variant", "median", "95 % interval", "p90", "p99", "load", "first", "peak MB")
    lines += ["", _row(head), _row(("", "ms", "ms", "ms", "ms", "ms", "ms", ""))]
    for entry in profile["variants"]:
        summary, peak = entry["summary"], entry["peak_rss_bytes"]
        cells = [entry["variant"], _ms(summary["median"])]
        cells += [f"{_ms(summary['median_low'])}-{_ms(summary['median_high'])}"]
        cells += [_ms(summary["percentiles"].get(label)) for label in ("p90", "p99")]
        cells += [_ms(entry["load_ns"]), _ms(entry["first_ns"]), f"{peak / 1e6:.0f}" if peak else "-"]
        lines.append(_row(cells))
    lines.append("")
    for found in profile["comparisons"]:
        verb = {"faster": "is faster than", "slower": "is slower than"}
        what = verb.get(found["verdict"], "does not measurably differ from")
        text = (
            f"{found['variant']} {what} {found['baseline']}: {found['ratio']:.3f} of its time "
            f"({100 * found['confidence']:.0f} % interval {found['low']:.3f}-{found['high']:.3f})"
        )
        lines += textwrap.wrap(text, 80, subsequent_indent="  ")
    for flag in profile["flags"]:
        lines += textwrap.wrap(f"note: {flag}", 80, subsequent_indent="      ")
    return lines


def _row(cells: Sequence[str]) -> str:
    widths = (8, 15, 8, 8, 8, 8, 8)
    return (f"{cells[0]:<10}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], widths))).rstrip()


def _ms(nanoseconds: float | None) -> str:
    if nanoseconds is None:
        return "-"
    value = nanoseconds / 1e6
    decimals = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f}"


# One inference ---------------------------------------------------------------------------------------------


def read_inputs(numpy: Any, bundle: Bundle, path: Path) -> dict[str, Any]:
    """Arrays from an npz file, checked against the signature; every misfit is named."""
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (*UNREADABLE, AttributeError, TypeError) as error:
        message = f"{path} cannot be read as an npz file of plain arrays: {brief(error)}"
        raise Fault(BAD_INPUT, message, "write it with numpy.savez(path, name=array, ...)") from error
    sizes: dict[str, tuple[int, str]] = {}
    names = [tensor["name"] for tensor in bundle.inputs]
    problems = [f"{name}: there is no such input" for name in sorted(set(arrays) - set(names))]
    for tensor in bundle.inputs:
        given = tensor["name"] in arrays
        found = _misfit(arrays[tensor["name"]], tensor, sizes) if given else f"{tensor['name']}: missing"
        problems += [found] if found else []
    if problems:
        wanted = "; ".join(f"{item['name']}: {item['dtype']}{_shape(item['shape'])}" for item in bundle.inputs)
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise Fault(BAD_INPUT, f"{path} does not fit the model{listed}", f"the model takes {wanted}")
    return arrays


def _misfit(array: Any, tensor: dict[str, Any], sizes: dict[str, tuple[int, str]]) -> str | None:
    name, shape, wanted = tensor["name"], list(array.shape), tensor["shape"]
    if str(array.dtype) != tensor["dtype"]:
        return f"{name}: dtype is {array.dtype} instead of {tensor['dtype']}"
    if len(shape) != len(wanted) or any(isinstance(axis, int) and axis != size for axis, size in zip(wanted, shape)):
        return f"{name}: shape is {shape} instead of {_shape(wanted)}"
    if 0 in shape:
        return f"{name}: is empty, shape {shape}"
    for axis, size in zip(wanted, shape):
        if isinstance(axis, str) and sizes.setdefault(axis, (size, name))[0] != size:
            other = sizes[axis]
            return f"{name}: axis {axis!r} is {size}, but {other[0]} in {other[1]}"
    return None


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def write_outputs(numpy: Any, arrays: Mapping[str, Any], path: Path) -> None:
    """Writes an npz file in one step: it is there complete, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            # numpy.savez cannot hold an array called `file`, so the archive is written here.
            with zipfile.ZipFile(part, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                        numpy.lib.format.write_array(stream, numpy.asanyarray(array), allow_pickle=False)
            part.replace(path)
        finally:
            if part.exists():
                part.unlink()
    except (OSError, ValueError) as error:
        raise Fault(BAD_INPUT, f"{path} cannot be written: {brief(error)}") from error


def infer(bundle: Bundle, args: argparse.Namespace) -> None:
    """Runs one npz file of model-ready inputs through a variant."""
    features = sibling("bench").cpu_features()
    name, why = (args.variant, "asked for") if args.variant else choose(bundle, features)
    absent = lacking(bundle.variants[name], features)
    if absent and args.variant:
        say(f"warning: this CPU does not show {', '.join(absent)}, which {name} requires")
    folder = str(PurePosixPath(bundle.variants[name]["main"]).parent) + "/"
    problems = check_files(bundle, lambda path: path.startswith(folder) or path == "runtime.py")
    if problems:
        raise Fault(BROKEN, "the bundle does not hold what it claims" + "".join(f"\n  - {one}" for one in problems))
    numpy, runtime = need(bundle)
    arrays = read_inputs(numpy, bundle, args.input)
    session = open_variant(bundle, runtime, name, args)
    say(f"variant {name}: {why}")
    try:
        outputs = session.run(arrays)
    except Exception as error:  # the runtime's own exception types are unknown here
        raise Fault(BAD_INPUT, f"{runtime.NAME} refused these inputs: {brief(error)}") from error
    if HERE in args.output.resolve().parents:
        say(f"warning: {args.output} lies in the bundle, which counts as a file added to it")
    write_outputs(numpy, outputs, args.output)
    specs = [{"name": key, "dtype": str(array.dtype), "shape": list(array.shape)} for key, array in outputs.items()]
    if args.json:
        _print_json({"variant": name, "why": why, "output": str(args.output), "outputs": specs})
        return
    for spec in specs:
        print(f"{args.output}: {spec['name']} {spec['dtype']}{_shape(spec['shape'])}")


def describe(bundle: Bundle, as_json: bool) -> None:
    """What the bundle is and how to call it; needs neither numpy nor the runtime."""
    manifest = bundle.manifest
    name, why = choose(bundle, sibling("bench").cpu_features())
    if as_json:
        keys = ("name", "target", "digest", "signature", "variants", "float_variant", "runtime", "choice")
        _print_json({**{key: manifest[key] for key in keys}, "here": {"variant": name, "why": why}})
        return
    print(f"{manifest['name']} for {manifest['target']}, {manifest['runtime']['name']} >= "
          f"{manifest['runtime']['minimum']}, digest {manifest['digest'][:12]}")  # fmt: skip
    for title, tensors in (("input", bundle.inputs), ("output", bundle.outputs)):
        for tensor in tensors:
            print(f"  {title:<8} {tensor['name']}: {tensor['dtype']}{_shape(tensor['shape'])}")
    for variant in bundle.variants.values():
        required = f", requires {', '.join(variant['requires'])}" if variant.get("requires") else ""
        print(f"  variant  {variant['name']}: {variant['precision']}{required}")
    print(f"  here     {name} runs by default: {why}\n\n{EXAMPLES}", end="")


# Command line ----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(
        prog="run.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = cli.add_mutually_exclusive_group()
    action.add_argument("--self-test", action="store_true", help="check all files, then every sample on each variant")
    action.add_argument("--bench", action="store_true", help="self-test, then measure latency, variants interleaved")
    action.add_argument("--input", type=Path, metavar="X.npz", help="run this npz file of model-ready inputs")
    action.add_argument("--footprint", metavar="VARIANT", help=argparse.SUPPRESS)
    cli.add_argument("--output", type=Path, metavar="Y.npz", help="where the outputs of --input go")
    cli.add_argument("--variant", metavar="NAME", help="a variant, or `all` (default but for --input)")
    cli.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else")
    cli.add_argument("--threads", type=_whole(1), default=1, metavar="N", help="threads of an operator (default 1)")
    cli.add_argument("--affinity", type=_cpus, metavar="0,1", help="run on these CPUs only")
    how = cli.add_argument_group("when --bench stops: the first three are all met, or the time is over")
    how.add_argument("--min-samples", type=_whole(1), default=200, metavar="N", help="of each variant (default 200)")
    how.add_argument("--min-seconds", type=_number(0), default=1.0, metavar="S", help="(default 1)")
    how.add_argument("--ci-width", type=_number(1e-9), default=0.02, metavar="W",
                     help="95 %% interval of the median, relative (default 0.02)")  # fmt: skip
    how.add_argument("--max-seconds", type=_number(1e-9), default=20.0, metavar="S", help="(default 20)")
    how.add_argument("--warmup-seconds", type=_number(0), default=0.3, metavar="S", help="before it (default 0.3)")
    how.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the order of variants (default 0)")
    return cli


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return number


def _number(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} up")
        return value

    return number


def _cpus(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPU numbers such as 0,1")
    return tuple(sorted({int(part) for part in parts}))


def pin(cpus: Sequence[int] | None) -> None:
    """Keeps this process, and the threads and processes it starts, on some CPUs."""
    if cpus is None:
        return
    wanted = f"--affinity {','.join(map(str, cpus))}"
    if not hasattr(os, "sched_setaffinity"):
        raise Fault(BAD_INPUT, f"{wanted}: this system cannot pin a process to CPUs", "leave --affinity out")
    allowed = os.sched_getaffinity(0)
    # The kernel drops CPUs that it does not have and pins to the rest without a word.
    if not set(cpus) <= allowed:
        raise Fault(BAD_INPUT, f"{wanted}: the CPUs here are {','.join(map(str, sorted(allowed)))}")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise Fault(BAD_INPUT, f"{wanted}: {brief(error)}") from error


def _print_json(value: Any, indent: int | None = 2) -> None:
    print(json.dumps(value, indent=indent, allow_nan=False))


def _act(args: argparse.Namespace) -> int:
    bundle = read_bundle()
    if args.input is not None:
        if args.variant is not None:
            _variants(bundle, args.variant)
        pin(args.affinity)
        infer(bundle, args)
        return OK
    names = _variants(bundle, args.footprint or args.variant or "all")
    if not (args.self_test or args.bench or args.footprint):
        describe(bundle, args.json)
        return OK
    # Before numpy or the runtime start threads of their own.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    pin(args.affinity)
    if args.footprint:
        _print_json(footprint(bundle, names[0], args))
        return OK
    report = self_test(bundle, names, args)
    if not report["passed"]:
        if args.json and args.self_test:
            _print_json(report)
        print("\n".join(self_test_lines(report)), file=sys.stderr if args.bench or args.json else sys.stdout)
        if args.bench:
            say("error: nothing was measured, because the self-test failed")
        return BROKEN
    if args.self_test:
        _print_json(report) if args.json else print("\n".join(self_test_lines(report)))
        return OK
    profile = run_bench(bundle, names, args)
    _print_json(profile, None) if args.json else print("\n".join(bench_lines(profile, bundle.manifest["name"])))
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that lacks a letter of some tensor's name must not end the run.
            stream.reconfigure(errors="backslashreplace")
    cli = parser()
    args = cli.parse_args(argv)
    if (args.input is None) != (args.output is None):
        cli.error("--input and --output go together")
    if args.input is not None and args.variant == "all":
        cli.error("--input runs one variant, not all")
    try:
        return _act(args)
    except Fault as fault:
        say(f"error: {fault}")
        if fault.hint:
            say(f"  hint: {fault.hint}")
        return fault.code
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
