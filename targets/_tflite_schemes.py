"""What `[quantize]` and `[targets.mobile]` ask of the quantizer of .tflite files: checked, and as jobs for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from exporter.artifacts import QuantScheme, Value
from exporter.errors import InputError, closest, shorten
from targets import _tflite
from targets._tflite_kept import Ranges, kept_in_float

OBSERVERS = ("minmax", "moving-average")
CHOSEN = ("observer", "exclude", "ops", "dynamic")
"""Fields of a scheme that a plan can choose for .tflite files."""
EXCLUDED = "excluded by the plan"
OTHERS = "; what is meant for another target belongs into its own table, as [targets.cpu.quantize]"
BY_NAME = "left in float by name"
BYTES = "turns bytes into the values that are quantized"
UNFIT = "in this converter's form of it integers can go wrong"
MOVES = "moves what is left in float"


def checked_scheme(asked: QuantScheme) -> QuantScheme:
    """What the quantizer does of what `[quantize]` asks.

    Raises:
        InputError: it cannot do it.
    """
    able = msgspec.structs.replace(QuantScheme(activations="int8"), **{name: getattr(asked, name) for name in CHOSEN})
    wrong = [
        f"{name} = {getattr(asked, name)!r}"
        for name in QuantScheme.__struct_fields__
        if getattr(asked, name) != getattr(able, name)
    ]
    if asked.observer not in OBSERVERS:
        wrong.append(f"observer = '{asked.observer}'")
    if wrong:
        raise InputError(
            f"the quantizer of .tflite files cannot do {', '.join(wrong)}",
            where="[quantize]",
            why=f"weights are int8, one scale a channel; activations int8; observers {' or '.join(OBSERVERS)}",
            hint="say what mobile is to do in [targets.mobile.quantize]; `variants` in [targets.mobile] chooses "
            "other types",
        )
    return able


class Left(Value, frozen=True, kw_only=True):
    """What is to stay in float.

    Attributes:
        types: operator types, from `[targets.mobile] exclude`.
        names: of single operators, from a scheme.
        ops: the only types that become integer, from a scheme; all where it is empty.
        unfit: operator types that the quantizer makes wrong in this file, if it has them.
    """

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()


def left_of(types: tuple[str, ...], scheme: QuantScheme | None) -> Left:
    """What a plan and a scheme leave in float."""
    return Left(types=types, names=scheme.exclude, ops=scheme.ops) if scheme is not None else Left(types=types)


def check_left(float_file: Path, left: Left) -> None:
    """Checks that the operators that a plan names are those of the model.

    Raises:
        InputError: the model has no such operator.
    """
    if left == Left():
        return
    there = _tflite.operators(float_file)
    kinds, names = sorted({one.kind for one in there}), [one.name for one in there]
    for key, given, known in (
        ("[targets.mobile] exclude", left.types, kinds),
        ("[targets.mobile.quantize] ops", left.ops, kinds),
        ("[targets.mobile.quantize] exclude", left.names, names),
    ):
        if unknown := sorted(set(given) - set(known)):
            raise InputError(
                f"the model has no operator {', '.join(unknown)}{closest(unknown[0], known)}",
                where=key,
                hint=shorten(f"its operators: {', '.join(known)}") + OTHERS,
            )


def read_ranges(path: Path) -> Ranges:
    """Ranges as `calibrate` wrote them; none where it wrote none."""
    found: Ranges = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def reasons_for(float_file: Path, left: Left, ranges: Ranges) -> Mapping[str, str]:
    """Names of the operators that stay in float, and why; what only moves their results stays with them.

    Args:
        float_file: the float file.
        left: what is to stay in float.
        ranges: those that a static variant is made with; none for others.
    """
    reasons = kept_in_float(float_file, ranges)
    for one in _tflite.operators(float_file):
        if one.kind in left.types:
            reasons[one.name] = EXCLUDED
        elif one.kind in left.unfit:
            reasons[one.name] = UNFIT
        elif one.name in left.names:
            reasons[one.name] = BY_NAME
        elif left.ops and one.kind not in left.ops and one.kind not in _tflite.MOVERS:
            reasons[one.name] = f"only {', '.join(left.ops)} in int8"
    moved = dict.fromkeys(_tflite.with_movers(float_file, reasons), MOVES)
    # What only moves pixels need not follow: rounded before or after, they are rounded once.
    return {**dict.fromkeys(_tflite.byte_operators(float_file), BYTES), **moved, **reasons}
