"""`[[variants]]`: alternatives of one plan, each with tables of its own laid over the plan's."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from exporter.errors import closest, shorten
from exporter.plan_sets import deep_merge

Tables = dict[str, Any]

SECTIONS = ("model", "merge", "compress")
"""What alternatives may differ in."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def split_variants(tables: Tables, problems: list[str]) -> tuple[Tables, dict[str, Tables]]:
    """The plan without its alternatives, and the whole tables of each alternative by name.

    Args:
        tables: the plan's.
        problems: receives what is wrong with the list itself; what is wrong in an alternative's sections is found
            where it is resolved.
    """
    rest = {key: value for key, value in tables.items() if key != "variants"}
    given = tables.get("variants", [])
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        problems.append(f"variants: tables [[variants]] are expected, not {shorten(repr(given), 80)}")
        return rest, {}
    found: dict[str, Tables] = {}
    for index, one in enumerate(given):
        name = one.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            stated = "is missing" if name is None else f"{name!r} does not fit"
            problems.append(f"variants[{index}].name: {stated} (letters, digits, '_', '-'; at most 32)")
            continue
        if name in found:
            problems.append(f"variants[{index}].name: there are two '{name}'")
        for key in one:
            if key not in ("name", *SECTIONS):
                problems.append(f"variants[{index}].{key}: unknown key{closest(key, ['name', *SECTIONS])}")
        own = {section: one[section] for section in SECTIONS if section in one}
        found[name] = deep_merge(rest, own)
    _check_folders(found, problems)
    return rest, found


def _check_folders(found: Mapping[str, Tables], problems: list[str]) -> None:
    """No two alternatives leave their compressed model in one folder: the last would be all that is left."""
    folders: dict[str, str] = {}
    for name, tables in found.items():
        compress = tables.get("compress")
        folder = compress.get("save") if isinstance(compress, Mapping) else None
        if not isinstance(folder, str):
            continue
        place = posixpath.normpath(folder)
        if place in folders:
            problems.append(
                f"compress.save: alternatives '{folders[place]}' and '{name}' would both leave their model in "
                f"'{folder}': give each a `save` of its own, under [variants.compress]"
            )
        folders.setdefault(place, name)
