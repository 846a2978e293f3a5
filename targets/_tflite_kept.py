"""Operators that must stay float because 8 bits would make something else of them, by what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets import _tflite

MASKED = "masked values pass through it"
APART = "a SOFTMAX needs its values told apart more finely than 8 bits can over their range"
DEAD = "it takes or gives nothing but zeros on the calibration data, of which no range can be made"
INSIDE = "it runs inside another operator, where calibration does not see"
FARTHEST = 255.0
"""Range of what goes into a softmax at which a step of 8 bits is one: scores stay below, masks of -10000 do not."""
SOFTMAX = ("SOFTMAX", "LOG_SOFTMAX")
SCORING = ("ADD", "SUB", "MUL", "SELECT", "SELECT_V2", *_tflite.MOVERS)
"""Operators that put masks on scores, or move them."""

Ranges = Mapping[str, Mapping[str, Any]]
"""By tensor, `min` and `max` of what it reached on the calibration data."""


def kept_in_float(float_file: Path, ranges: Ranges) -> dict[str, str]:
    """Names of the operators that no static variant may make integer, and why.

    Args:
        float_file: the float file.
        ranges: of its tensors; where there are none, nothing is kept.
    """
    if not ranges:
        return {}
    operators = _tflite.operators(float_file)
    seen = _seen(operators, ranges)
    # No scale fits a mask and what it masks: all that is not masked would be rounded to zero. That of an infinity
    # would be infinite, and runtimes crash on a file with one.
    wide = masked_tensors(float_file, ranges) | _tflite.masking_constants(float_file)
    dead = {name for name, bounds in seen.items() if bounds == (0, 0)}
    kept = dict.fromkeys(_tflite.inner_operators(float_file), INSIDE)
    kept |= {one.name: DEAD for one in operators if not dead.isdisjoint(one.tensors)}
    kept |= dict.fromkeys(_far_apart(operators, seen), APART)
    return kept | {one.name: MASKED for one in operators if not wide.isdisjoint(one.tensors)}


def masked_tensors(float_file: Path, ranges: Ranges) -> set[str]:
    """Names of the float tensors that reached values that mask others."""
    seen = _seen(_tflite.operators(float_file), ranges)
    return {name for name, bounds in seen.items() if _tflite.has_masks(bounds)}


def _seen(operators: list[_tflite.Operator], ranges: Ranges) -> Mapping[str, tuple[float, float]]:
    """Least and largest value of each float tensor."""
    floats = {
        name
        for one in operators
        for name, kind in zip(one.tensors, (*one.results, *one.taken), strict=True)
        if kind in _tflite.FLOATS
    }
    return {name: bounds_of(found) for name, found in ranges.items() if name in floats}


def _far_apart(operators: list[_tflite.Operator], seen: Mapping[str, tuple[float, float]]) -> set[str]:
    """Each softmax whose input no 8-bit range resolves, and what makes that input of scores and masks."""
    makers = {name: one for one in operators for name in one.tensors[: len(one.results)]}

    def far(name: str) -> bool:
        low, high = seen.get(name, (0, 0))
        return max(high, 0) - min(low, 0) > FARTHEST

    waiting = [one for one in operators if one.kind in SOFTMAX and far(one.tensors[len(one.results)])]
    found: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one.name not in found:
            found.add(one.name)
            before = (makers[name] for name in one.tensors[len(one.results) :] if name in makers and far(name))
            waiting += [maker for maker in before if maker.kind in SCORING]
    return found


def bounds_of(found: Mapping[str, Any]) -> tuple[float, float]:
    """Least and largest value, which lie in as many lists as the tensor has axes."""

    def alone(value: Any) -> float:
        return alone(value[0]) if isinstance(value, list) else float(value)

    return alone(found["min"]), alone(found["max"])
