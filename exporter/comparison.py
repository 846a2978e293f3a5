"""What `compare` finds: two bundles or profiles, variant by variant, and the gates that the second must pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from exporter.artifacts import Value
from exporter.errors import InputError, UsageError, closest

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
GATES = ("accuracy", "sqnr", "size", "memory", *PERCENTILES)
GATE = re.compile(r"(?P<name>[^=]*)=(?P<number>[+-]?\d+(?:\.\d+)?)(?P<percent>%?)")
ROUNDING_DB = 100.0
"""SQNR above which outputs differ by the rounding of float32 alone, which other kernels change at will."""
EXAMPLES = "--gate accuracy=-0.5% --gate p50=+5% --gate size=+0%"


class Gate(Value, frozen=True, kw_only=True):
    """How far the second side may be from the first.

    Attributes:
        name: one of GATES.
        limit: change that is still allowed: a share with `relative`, else points of the metric or dB.
        relative: the limit is a share of the first side's value.
        text: as it was given.
    """

    name: str
    limit: float
    relative: bool
    text: str


class GateOutcome(Value, frozen=True, kw_only=True):
    """A gate and what became of it for one pair of variants."""

    gate: str
    variant: str
    passed: bool
    text: str


class Pair(Value, frozen=True, kw_only=True):
    """One quantity on both sides; None where a side does not have it, and `why` says so.

    `exact` are sides without a value because their outputs are equal bit for bit, so that it has no end.
    """

    a: float | None
    b: float | None
    why: str = ""
    exact: tuple[bool, bool] = (False, False)

    @property
    def change(self) -> float | None:
        """The second over the first, minus one."""
        return None if self.a is None or self.b is None or self.a == 0 else (self.b - self.a) / abs(self.a)


class LatencyPair(Value, frozen=True, kw_only=True):
    """A percentile on both sides in nanoseconds, and the second as a ratio to the first."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    confidence: float
    count: int
    verdict: Literal["faster", "slower", "no difference"]


class OpCounts(Value, frozen=True, kw_only=True):
    """Operators of both files, and those whose count differs: (first, second)."""

    a: int
    b: int
    changed: dict[str, tuple[int, int]]


class Control(Value, frozen=True, kw_only=True):
    """A variant whose files are the same on both sides: what it differs by is the host, and not the bundle.

    Attributes:
        variant: its name.
        ratio: of its medians.
        widened_by: factor by which every interval of latency was widened, at least.
        tails: the same for percentiles by which the host changed more than by the median.
    """

    variant: str
    ratio: float
    widened_by: float
    tails: dict[str, float] = {}

    def factor(self, percentile: str) -> float:
        """By which intervals of a percentile are widened."""
        return max(self.widened_by, self.tails.get(percentile, 1.0))


class ComparedVariants(Value, frozen=True, kw_only=True):
    """A variant of each side.

    Attributes:
        a: its name on the first side.
        b: on the second.
        default: both are what runs by default on their side.
        size: bytes of files.
        accuracy: the plan's metric.
        sqnr: of the worst output against its own trained model, in dB.
        int8: nodes that compute in int8.
        ops: operators of the graph; None where they were not counted.
        latency: by percentile, those that both sides support.
        memory: peak bytes of a process of its own.
    """

    a: str
    b: str
    default: bool
    size: Pair
    accuracy: Pair
    sqnr: Pair
    int8: Pair
    ops: OpCounts | None
    latency: dict[str, LatencyPair]
    memory: Pair

    @property
    def label(self) -> str:
        """One name, or both where they differ."""
        return self.a if self.a == self.b else f"{self.a} -> {self.b}"


class Compared(Value, frozen=True, kw_only=True):
    """Two bundles or profiles.

    Attributes:
        a: what the first is.
        b: what the second is.
        variants: pairs, defaults first.
        metric: name of the metric; None without labels.
        measured: where and how latency was measured on both sides; empty where it was not compared.
        not_measured: why latency was not compared.
        remeasured: rounds of a measurement that was made for this comparison; 0 for profiles that were there.
        differences: what is not the same on both sides although it is compared.
        control: what is the same file on both sides, where profiles that were there have one.
        gates: outcome of each.
        flags: what disturbed the measurements that were there, of the first side and of the second.
    """

    schema: Literal[1] = 1
    a: str
    b: str
    variants: tuple[ComparedVariants, ...]
    metric: str | None
    measured: str
    not_measured: str
    remeasured: int
    differences: tuple[str, ...]
    control: Control | None = None
    gates: tuple[GateOutcome, ...] = ()
    flags: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def failed(self) -> list[GateOutcome]:
        """Gates that were not met."""
        return [gate for gate in self.gates if not gate.passed]


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """Reads `name=change` of each `--gate`.

    Raises:
        UsageError: an unknown name, no number, or one name twice.
    """
    gates: list[Gate] = []
    for text in texts:
        match = GATE.fullmatch(text.strip())
        name = text.partition("=")[0].strip()
        if name not in GATES:
            raise UsageError(
                f"there is no gate '{name}'{closest(name, GATES)}",
                where=f"--gate {text}",
                hint=f"one of {', '.join(GATES)}, as in `{EXAMPLES}`",
            )
        if match is None:
            raise UsageError("a gate is a name and a number", where=f"--gate {text}", hint=f"as in `{EXAMPLES}`")
        relative = match["percent"] == "%"
        if name == "sqnr" and relative:
            raise UsageError("SQNR is gated in dB", where=f"--gate {text}", hint="as in `--gate sqnr=-3`")
        if name not in ("sqnr", "accuracy") and not relative:
            raise UsageError(
                f"'{name}' is gated by a percentage", where=f"--gate {text}", hint=f"`--gate {text.strip()}%`"
            )
        if any(gate.name == name for gate in gates):
            raise UsageError(f"'{name}' is gated twice", where=f"--gate {text}", hint="give it once")
        limit = float(match["number"]) / (100 if relative else 1)
        gates.append(Gate(name=name, limit=limit, relative=relative, text=text.strip()))
    return tuple(gates)


def judged(compared: Compared, gates: Sequence[Gate]) -> Compared:
    """Holds the pairs of default variants against the gates; every pair where no default is known.

    Raises:
        InputError: a gate asks for what is not known of a pair.
    """
    defaults = [pair for pair in compared.variants if pair.default] or list(compared.variants)
    outcomes = tuple(_judge(gate, pair, compared) for gate in gates for pair in defaults)
    return msgspec.structs.replace(compared, gates=outcomes)


def _judge(gate: Gate, pair: ComparedVariants, compared: Compared) -> GateOutcome:
    if gate.name in PERCENTILES:
        passed, text = _judge_latency(gate, pair, compared)
    else:
        passed, text = _judge_value(gate, pair)
    return GateOutcome(gate=gate.text, variant=pair.label, passed=passed, text=text)


def _judge_latency(gate: Gate, pair: ComparedVariants, compared: Compared) -> tuple[bool, str]:
    found = pair.latency.get(gate.name)
    if found is None:
        why = compared.not_measured or f"too few runs for {gate.name} on one side"
        raise InputError(
            f"{gate.name} of {pair.label} cannot be gated: {why}",
            where=f"--gate {gate.text}",
            hint="measure again with `edge-exporter profile`, or compare with --remeasure",
        )
    limit = 1 + gate.limit
    interval = f"[{found.low:.3f}, {found.high:.3f}]"
    # An increase is only held against a side where it is more than chance; a gain that is asked for must be there.
    chance = found.verdict == "no difference" and limit >= 1
    passed = chance or found.ratio <= limit
    told = f"{found.ratio:.3f}x {interval} of the first side's, at most {limit:.3f}x"
    return passed, told + (", no difference" if chance else "")


def _judge_value(gate: Gate, pair: ComparedVariants) -> tuple[bool, str]:
    values: Pair = getattr(pair, gate.name)
    a, b = values.a, values.b
    if gate.name == "sqnr":
        a, b = (_rounded(value, exact=exact) for value, exact in zip((a, b), values.exact, strict=True))
    if a is None or b is None:
        raise InputError(
            f"{gate.name} of {pair.label} cannot be gated: {values.why or 'it is not known'}",
            where=f"--gate {gate.text}",
            hint="leave the gate out, or bring what is missing",
        )
    change = b - a
    if gate.relative:
        if a == 0:
            return b == 0, f"{a:g} -> {b:g}"
        change /= abs(a)
    higher_is_better = gate.name in ("accuracy", "sqnr")
    rounding = 1e-9
    passed = change >= gate.limit - rounding if higher_is_better else change <= gate.limit + rounding
    shown = f"{change:+.2%}" if gate.relative else f"{change:+.4g}"
    bound = f"{gate.limit:+.2%}" if gate.relative else f"{gate.limit:+.4g}"
    told = f"{shown}, at {'least' if higher_is_better else 'most'} {bound}"
    return passed, told if (a, b) == (values.a, values.b) else f"{told}; above {ROUNDING_DB:g} dB all counts as equal"


def _rounded(decibels: float | None, *, exact: bool) -> float | None:
    if exact:
        return ROUNDING_DB
    return None if decibels is None else min(decibels, ROUNDING_DB)
