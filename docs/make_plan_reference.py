"""Writes docs/plan.md from the types that plans are read into: `python docs/make_plan_reference.py`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from exporter import plan_types
from exporter.artifacts import DType, Preprocessing
from targets.cpu import CpuOptions

SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("[model]", plan_types.ModelPlan),
    ("[model.inputs.NAME]", plan_types.InputPlan),
    ("[model.inputs.NAME.preprocess]", Preprocessing),
    ("[merge]", plan_types.MergePlan),
    ("[[merge.models]]", plan_types.MergeModelPlan),
    ("[merge.teaching]", plan_types.TeachingPlan),
    ("[compress]", plan_types.CompressPlan),
    *(
        (f'[[compress.steps]] method = "{kind.__struct_config__.tag}"', kind)
        for kind in get_args(plan_types.CompressStep)
    ),
    ("[calibration]", plan_types.DataPlan),
    ("[training]", plan_types.TrainingPlan),
    ("[evaluation]", plan_types.EvaluationPlan),
    ("[export]", plan_types.ExportPlan),
    ("[quantize]", plan_types.QuantizePlan),
    ("[gate]", plan_types.GatePlan),
    ("[profile]", plan_types.ProfilePlan),
    ("[targets.cpu]", CpuOptions),
)

HEAD = """# Plan reference

Written by `docs/make_plan_reference.py` from the types that plans are read into.

A plan is a TOML file with `schema = 1`, a `name` (the first part of the bundles' folder names; by default the plan's
folder), and the sections below. Paths are relative to the plan file. An unknown key is an error. A table
`[targets.NAME]` asks for a bundle for that target; it may hold `export`, `quantize`, `gate` and `profile` tables that
override the plan's for this target alone, as in `[targets.cpu.quantize]`. Tables `[[variants]]`, each with a `name`
and `model`, `merge` or `compress` tables that are laid over the plan's, are built instead of the plan itself and
[compared](merge.md#variants).

The defaults below are the built-in ones; the `cpu` target prefers `quantize.reduce_range = true`.
Later layers win: built-in default, the target's default, the plan, the plan's target table,
`--set section.key=value`. `edge-exporter plan PLAN` shows every value and the layer that it came from.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, kind in SECTIONS:
        parts += [f"## `{title}`", "", _summary(kind), "", "| key | type | default | |", "|---|---|---|---|"]
        texts = _attributes(kind)
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            default = "required" if field.required else f"`{_default(field)}`"
            parts.append(f"| `{field.name}` | {_type(hints[field.name])} | {default} | {texts[field.name]} |")
        parts.append("")
    return "\n".join(parts)


def _summary(kind: type[msgspec.Struct]) -> str:
    text = (inspect.getdoc(kind) or "").partition("Attributes:")[0].strip()
    bare = re.sub(r"^`(\[|method = )[^`]*`[:.]?\s*", "", text)
    return bare[:1].upper() + bare[1:]


def _attributes(kind: type[msgspec.Struct]) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = (inspect.getdoc(base) or "").partition("Attributes:")[2]
        for match in re.finditer(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            found[match[1]] = " ".join(match[2].split()).replace("|", "\\|")
    return found


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "not set"
    if isinstance(value, msgspec.Struct):
        return "the defaults below"
    return "[]" if value == () else json.dumps(value)


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0])
    if hint == DType:
        return "name of a numpy type"
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    return names.get(getattr(hint, "__name__", ""), "value" if hint is Any else "table")


if __name__ == "__main__":
    sys.stdout.write(f"{len(SECTIONS)} sections\n")
    Path(__file__).with_name("plan.md").write_text(reference(), encoding="utf-8")
