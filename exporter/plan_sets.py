"""`--set section.key=value`, and how tables are laid over each other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast

Tables = dict[str, Any]


def parse_sets(sets: Sequence[str], problems: list[str]) -> Tables:
    """Reads `section.key=value` texts into tables.

    Args:
        sets: the texts; keys are dotted TOML keys, values are TOML values or bare words.
        problems: receives what cannot be read.
    """
    tables: Tables = {}
    for text in sets:
        key, equals, value = text.partition("=")
        parts = _key_parts(key)
        if not equals or len(parts) < 2:
            problems.append(
                f"--set {text}: section.key=value is expected, as in --set quantize.per_channel=false (a name that "
                'holds dots in quotes: model.inputs."input.1".shape)'
            )
            continue
        try:
            parsed = tomllib.loads(f"value = {value.strip()}")["value"]
        except (ValueError, RecursionError):
            parsed = value.strip()  # A bare word is taken as text, so that shells need no second pair of quotes.
        nested: Any = parsed
        for part in reversed(parts):
            nested = {part: nested}
        tables = deep_merge(tables, nested)
    return tables


def _key_parts(key: str) -> list[str]:
    """The parts of a dotted TOML key, or none when it is no such key."""
    try:
        nested: Any = tomllib.loads(f"{key.strip()} = 0")
    except ValueError:
        return []
    parts = []
    while isinstance(nested, dict) and len(nested) == 1:
        (part, nested), *_ = nested.items()
        parts.append(part)
    return parts if nested == 0 and all(parts) else []


def deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tables:
    """Tables over tables; values of `over` win."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = deep_merge(cast(Tables, below), value) if both else value
    return result
