"""`compare` as text for a terminal of 80 columns, and as Markdown for a pull request."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from exporter.comparison import Compared, ComparedVariants, Pair
from exporter.console import Console
from exporter.markdown import escaped, table
from exporter.tables import human_size, milliseconds
from exporter.views import printable

WIDTH = 80
COLUMNS = ("", "first", "second", "change")
FLAGS_SHOWN = 3
ONE_RUN = (
    "each side was measured once, and no file is the same on both: processes vary more than the runs of one do, "
    "which --remeasure takes in"
)


def show_compared(console: Console, compared: Compared) -> None:
    """One table a pair of variants, then gates."""
    _say(console, f"first:  {compared.a}")
    _say(console, f"second: {compared.b}")
    for pair in compared.variants:
        console.result("")
        rows = [[printable(cell) for cell in row] for row in pair_rows(pair, compared)]
        _say(console, _title(pair))
        console.table(COLUMNS, rows, width=WIDTH)
        for line in pair_lines(pair):
            _say(console, line)
    console.result("")
    for line in [*notes(compared), *gate_lines(compared)]:
        _say(console, line)


def compared_markdown(compared: Compared) -> str:
    """The same as Markdown."""
    lines = [f"Second: {escaped(compared.b)}, against the first: {escaped(compared.a)}", ""]
    for pair in compared.variants:
        lines += [f"**{escaped(_title(pair))}**", "", *table(COLUMNS, pair_rows(pair, compared)), ""]
        lines += [f"- {escaped(line)}" for line in pair_lines(pair)]
        lines += [""] if pair_lines(pair) else []
    lines += [f"- {escaped(line)}" for line in [*notes(compared), *gate_lines(compared)]]
    return "\n".join(lines)


def pair_rows(pair: ComparedVariants, compared: Compared) -> list[tuple[str, str, str, str]]:
    """Size, accuracy, operators and latency of a pair; what one side lacks is a dash."""
    rows = [("size", *_cells(pair.size, lambda value: human_size(int(value)), relative=True))]
    if compared.metric is not None:
        rows.append((compared.metric, *_cells(pair.accuracy, lambda value: f"{value:.4f}", relative=True)))
    rows.append(("SQNR dB", *_cells(pair.sqnr, lambda value: f"{value:.1f}", relative=False)))
    rows.append(("int8 nodes", *_cells(pair.int8, lambda value: f"{value:.0f}", relative=False)))
    if pair.ops is not None:
        rows.append(("operators", str(pair.ops.a), str(pair.ops.b), f"{pair.ops.b - pair.ops.a:+d}"))
    for name, found in pair.latency.items():
        change = f"{found.ratio:.3f}x [{found.low:.3f}, {found.high:.3f}] {found.verdict}"
        rows.append((f"{name} ms", milliseconds(found.a), milliseconds(found.b), change))
    rows.append(("peak MB", *_cells(pair.memory, lambda value: f"{value / 1e6:.0f}", relative=True)))
    return rows


def pair_lines(pair: ComparedVariants) -> list[str]:
    """Operators whose count differs."""
    if pair.ops is None or not pair.ops.changed:
        return []
    return ["operators: " + ", ".join(f"{op} {one} -> {other}" for op, (one, other) in pair.ops.changed.items())]


def notes(compared: Compared) -> list[str]:
    """Where latency was measured, and what stands between the two sides."""
    lines = []
    if compared.measured:
        how = f", {compared.remeasured} fresh processes of each in turn" if compared.remeasured else ""
        lines.append(f"latency: {compared.measured}{how}; intervals of 95 %")
    if compared.control is not None:
        control = compared.control
        tails = "".join(f", of {name} {by:.3f}x" for name, by in control.tails.items())
        lines.append(
            f"control: {control.variant} is the same file on both sides and took {control.ratio:.3f}x: intervals are "
            f"widened {control.widened_by:.3f}x{tails}{'' if compared.remeasured else '; --remeasure tells more'}"
        )
    elif compared.measured and not compared.remeasured:
        lines.append(ONE_RUN)
    if compared.not_measured:
        lines.append(f"latency: not compared: {compared.not_measured}")
    if compared.metric is None:
        whys = {pair.accuracy.why for pair in compared.variants if pair.accuracy.why}
        lines += [f"accuracy: not compared: {why}" for why in sorted(whys)]
    lines += [f"not the same: {line}" for line in compared.differences]
    return lines + [
        line for side, flags in zip(("first", "second"), compared.flags, strict=True) for line in _flags(side, flags)
    ]


def _flags(side: str, flags: Sequence[str]) -> list[str]:
    """What disturbed a side's measurement: first what held for the whole of it, then for one variant."""
    shown = sorted(flags, key=lambda flag: flag.endswith(")"))
    more = [f"{len(shown) - FLAGS_SHOWN} more, which `show` lists"] if len(shown) > FLAGS_SHOWN else []
    return [f"note: {side}: {'; '.join(shown[:FLAGS_SHOWN] + more)}"] if shown else []


def gate_lines(compared: Compared) -> list[str]:
    """Each gate with its outcome."""
    return [
        f"gate {gate.gate}: {'passed' if gate.passed else 'FAILED'}: {gate.variant}: {gate.text}"
        for gate in compared.gates
    ]


def _title(pair: ComparedVariants) -> str:
    return f"{pair.label}{' (default)' if pair.default else ''}"


def _cells(pair: Pair, shown: Callable[[float], str], *, relative: bool) -> tuple[str, str, str]:
    values = zip((pair.a, pair.b), pair.exact, strict=True)
    cells = ["exact" if exact else "-" if value is None else shown(value) for value, exact in values]
    if pair.a is None or pair.b is None:
        return cells[0], cells[1], "-"
    change = pair.change
    if pair.a == pair.b:
        return cells[0], cells[1], "equal"
    if relative and change is not None:
        return cells[0], cells[1], f"{change:+.2%}"
    return cells[0], cells[1], f"{pair.b - pair.a:+.4g}"


def _say(console: Console, text: str) -> None:
    console.result(textwrap.fill(printable(text), WIDTH, subsequent_indent="  ", break_on_hyphens=False))
