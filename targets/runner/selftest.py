"""Does the bundle compute here what it computed where it was made?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .bundle import Bundle
from .choice import reasons_to_fail
from .engine import Engine, delegation_of
from .faults import MISSING, Fault, brief
from .feeds import Samples
from .host import cpu_features, host_facts


class Match(NamedTuple):
    """How one output compares with what is expected.

    `worst` is the largest finite absolute error, `quanta` the same in int8 steps; None where there is none.
    """

    problems: list[str]
    worst: float | None
    quanta: float | None
    exact: int
    total: int


def compare_output(numpy: Any, got: Any, expected: Any, tolerance: Mapping[str, Any]) -> Match:
    """Compares one output: dtype, shape, NaN pattern, and |got - expected| <= atol + rtol * |expected|."""
    total = int(expected.size)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        found, wanted = (f"{array.dtype}{list(array.shape)}" for array in (got, expected))
        return Match([f"is {found} instead of {wanted}"], None, None, 0, total)
    # Arithmetic on arrays without axes gives scalars, which cannot be assigned to.
    got, expected = numpy.atleast_1d(got), numpy.atleast_1d(expected)
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


def test_variant(engine: Engine, bundle: Bundle, name: str) -> dict[str, Any]:
    """Runs every sample through a variant; all problems are collected, none stops the others."""
    problems: list[str] = []
    matches: list[Match] = []
    specs: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    cases, delegation = 0, None
    try:
        samples, session = Samples(engine.numpy, bundle), engine.open(bundle, name)
        specs = {"inputs": _specs(session.inputs()), "outputs": _specs(session.outputs())}
        cases, delegation = samples.count, delegation_of(session)
    except Fault as fault:
        if fault.code == MISSING:
            raise
        problems.append(str(fault))
    else:
        problems += [] if cases else ["the bundle has no samples, so nothing was tested"]
    for case in range(cases):
        try:
            expected = samples.expected(case, name)
            outputs = session.run(samples.inputs(case))
            compared = test_case(engine.numpy, outputs, expected, bundle.variants[name]["tolerances"])
        except Fault as fault:
            problems.append(str(fault))
        except Exception as error:  # the runtime's own exception types are unknown here
            problems.append(f"case {case}: the runtime failed: {brief(error)}")
        else:
            matches += compared
            problems += [f"case {case}, {problem}" for match in compared for problem in match.problems]
    if problems:
        beyond = any(match.problems and match.worst is not None for match in matches)
        problems += reasons_to_fail(bundle.variants[name], bundle.manifest, cpu_features(), beyond)
    total = sum(match.total for match in matches)
    return {
        "variant": name,
        "runtime": engine.runtime_of(bundle.variants[name]).NAME,
        "passed": not problems,
        "cases": cases,
        "max_abs_error": max((match.worst for match in matches if match.worst is not None), default=None),
        "max_quanta": max((match.quanta for match in matches if match.quanta is not None), default=None),
        "exact_share": sum(match.exact for match in matches) / total if total else None,
        "problems": problems,
        "delegation": delegation,
        **specs,
    }


def _specs(tensors: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in tensors]


def self_test(engine: Engine, bundle: Bundle, names: Sequence[str]) -> dict[str, Any]:
    """Every sample on each named variant of a bundle whose files are those that the manifest lists."""
    variants = [test_variant(engine, bundle, name) for name in names]
    return {
        "passed": all(variant["passed"] for variant in variants),
        "problems": [],
        "runtime": engine.facts([bundle.variants[name] for name in names]),
        "variants": variants,
        "host": host_facts(),
    }


def self_test_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    lines: list[str] = []
    for tested in report["variants"]:
        worst, quanta, share = tested["max_abs_error"], tested["max_quanta"], tested["exact_share"]
        words = [f"{tested['variant']:<12} {'passed' if tested['passed'] else 'FAILED'}  {tested['cases']} cases"]
        steps = f" ({quanta:.2g} quanta)" if quanta is not None else ""
        words += [f"max abs error {worst:.3g}{steps}"] if worst is not None else []
        words += [f"exact {100 * share:.2f} %"] if share is not None else []
        lines.append(", ".join(words))
        lines += [f"  - {problem}" for problem in tested["problems"]]
    facts = report["runtime"]
    verdict = "passed" if report["passed"] else "FAILED"
    ran = {tested["runtime"] for tested in report["variants"]} or {facts["name"]}
    places = [f"{facts['name']} {facts['version']}, {facts['provider']}"] if facts["name"] in ran else []
    places += [f"{name} {facts['others'].get(name, '(missing)')}" for name in sorted(ran - {facts["name"]})]
    return [*lines, f"self-test {verdict} on {' and on '.join(places)}"]
