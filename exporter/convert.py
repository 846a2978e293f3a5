"""Untyped tables to Structs, with every problem named and the closest key proposed for a typo."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from exporter.errors import closest, shorten

_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "array": "a list",
    "object": "a table",
}

S = TypeVar("S", bound=msgspec.Struct)

REFERENCES = ("source", "data", "metric")
"""Keys that hold a file, or `file.py:function`, or `pkg.module:function`."""


def convert_struct(
    raw: object,
    kind: type[S],
    where: str,
    problems: list[str],
    *,
    base: Path | None,
    also: tuple[str, ...] = (),
) -> S | None:
    """Reads a table into a Struct.

    Args:
        raw: the table.
        kind: the Struct type.
        where: dotted key of the table, for messages.
        problems: receives every fault found.
        base: folder that relative paths start from; None where a table holds none.
        also: further keys that are valid here, for proposals.

    Returns:
        The Struct, or None when there was a problem.
    """
    if not isinstance(raw, Mapping):
        problems.append(f"{where}: a table is expected, not {_kind(raw)}")
        return None
    hints = get_type_hints(kind, include_extras=True)
    before = len(problems)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in hints:
            problems.append(f"{where}.{key}: unknown key{closest(key, [*hints, *also])}")
            continue
        values[key] = _convert(value, hints[key], f"{where}.{key}", problems, base)
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    problems += [f"{where}.{key} is missing" for key in required if key not in raw]
    return kind(**values) if len(problems) == before else None


def defaults_of(kind: type[msgspec.Struct]) -> list[str]:
    """Names of the fields that have a default."""
    return [field.name for field in msgspec.structs.fields(kind) if not field.required]


def _convert(value: object, hint: Any, where: str, problems: list[str], base: Path | None) -> Any:
    if (
        get_origin(hint) is Annotated
        and get_origin(get_args(hint)[0]) is tuple
        and _structs_in(get_args(get_args(hint)[0])[0])
    ):
        hint = get_args(hint)[0]  # Their number is checked with them.
    nested = _struct_in(hint)
    if nested is not None:
        return convert_struct(value, nested, where, problems, base=base)
    if get_origin(hint) is dict and (nested := _struct_in(get_args(hint)[1])) is not None:
        if not isinstance(value, Mapping):
            problems.append(f"{where}: a table is expected, not {_kind(value)}")
            return None
        return {
            key: convert_struct(item, nested, f"{where}.{key}", problems, base=base) for key, item in value.items()
        }
    if get_origin(hint) is tuple and (kinds := _structs_in(get_args(hint)[0])):
        return _structs(value, kinds, where, problems, base)
    if base is not None and isinstance(value, str) and where.rpartition(".")[2] in REFERENCES:
        if not value.strip():
            problems.append(f"{where}: a file or `file.py:function` is expected, not an empty text")
            return None
        return resolve_reference(value, base)
    if (number := _unfit(value)) is not None:
        # A limit that is no number would be met by everything, and a manifest could not hold it.
        kind = "a finite number" if isinstance(number, float) else "a whole number of at most 64 bits"
        problems.append(f"{where}: {kind} is expected (got {shorten(number, 40)})")
        return None
    try:
        return msgspec.convert(value, hint, dec_hook=lambda kind, item: _path(kind, item, base))
    except msgspec.ValidationError as error:
        words = [one for one in _literals(hint) if isinstance(one, str)] if isinstance(value, str) else []
        near = closest(str(value), words)
        problems.append(f"{where}: {_words(str(error), hint)} (got {shorten(repr(value), 80)}){near}")
        return None


def _structs(
    value: object, kinds: Sequence[type[msgspec.Struct]], where: str, problems: list[str], base: Path | None
) -> tuple[msgspec.Struct | None, ...] | None:
    """A list of tables; where several kinds are possible, the key that tags them tells which one a table is."""
    if not isinstance(value, list) or not value:
        problems.append(
            f"{where}: one or more tables [[{where}]] are expected, not {_kind(value) if value else 'none'}"
        )
        return None
    return tuple(_tagged(item, kinds, f"{where}[{index}]", problems, base) for index, item in enumerate(value))


def _tagged(
    value: object, kinds: Sequence[type[msgspec.Struct]], where: str, problems: list[str], base: Path | None
) -> msgspec.Struct | None:
    field = kinds[0].__struct_config__.tag_field
    if field is None or not isinstance(value, Mapping):
        return convert_struct(value, kinds[0], where, problems, base=base)
    known = {str(kind.__struct_config__.tag): kind for kind in kinds}
    tag = value.get(field)
    if tag not in known:
        given = f"{tag!r}{closest(str(tag), list(known))}" if field in value else "nothing"
        problems.append(f"{where}.{field}: one of {', '.join(map(repr, known))} is expected (got {given})")
        return None
    rest = {key: item for key, item in value.items() if key != field}
    return convert_struct(rest, known[tag], where, problems, base=base, also=(field,))


def resolve_reference(reference: str, base: Path) -> str:
    """Makes the file in `file`, `file.py:function` absolute; `pkg.module:function` and plain words stay."""
    path, colon, name = reference.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{base / path}:{name}"
    if (colon and "/" not in reference and "\\" not in reference) or reference == "accuracy":
        return reference
    return str(base / reference)


def _path(kind: type, value: object, base: Path | None) -> Path:
    if kind is Path and isinstance(value, str):
        return (base or Path()) / value
    raise TypeError(f"Expected 'path', got {_kind(value)}")  # msgspec makes it a fault of the value.


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    candidates = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _structs_in(hint: Any) -> list[type[msgspec.Struct]]:
    """The Struct types that the items of a list may have."""
    candidates = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [item for item in candidates if isinstance(item, type) and issubclass(item, msgspec.Struct)]


def _unfit(value: object) -> int | float | None:
    """The first number inside a value that JSON has no place for, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else value
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for item in inside if (found := _unfit(item)) is not None), None)


def _kind(value: object) -> str:
    return _KINDS.get(type(value).__name__, type(value).__name__)


def _words(message: str, hint: Any) -> str:
    """What msgspec says, in the words of a plan's author."""
    text = message.removesuffix(" - at `$`").replace("`", "'")
    if text.startswith("Invalid enum value") and (allowed := _literals(hint)):
        numbers = ", or a whole number," if int in _leaves(hint) else ""
        return f"one of {', '.join(map(repr, allowed))}{numbers} is expected"
    match = re.fullmatch(r"Expected '([a-z]+)'(?: \| null)?, got '\w+'", text)
    return f"{_KINDS[match[1]]} is expected" if match and match[1] in _KINDS else text


def _literals(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for argument in get_args(hint) for value in _literals(argument)]


def _leaves(hint: Any) -> list[Any]:
    """The plain types in a hint."""
    arguments = [argument for argument in get_args(hint) if get_origin(hint) is not Literal]
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [hint]
