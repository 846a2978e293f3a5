"""The plan of `build`: read from a file, or made from a model and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.plan import Plan, read_plan, resolve
from exporter.registry import load_target

DEFAULT_TARGET = "cpu"


def plan_of(model: str, flags: Mapping[str, Any], targets: Sequence[str], sets: Sequence[str]) -> Plan:
    """Resolves what the command line asks for.

    Args:
        model: a plan file (`.toml`), or a source as in `[model] source`.
        flags: values by flag, None where it was not given; they describe a model and go with none but that.
        targets: build these alone.
        sets: `section.key=value` overrides.

    Raises:
        UsageError: flags that do not go together.
        InputError: the plan is wrong, or what it names is not there.
    """
    if model.endswith(".toml"):
        given = [flag for flag, value in flags.items() if value is not None]
        if given:
            raise UsageError(
                f"{', '.join(given)}: a plan ({model}) says this itself",
                hint="use --set section.key=value to change a plan's value",
            )
        return read_plan(Path(model), load_target=load_target, sets=sets, only=targets)
    if flags["--labels"] and not flags["--eval"]:
        raise UsageError("--labels names an array of the evaluation data: give --eval as well")
    tables: dict[str, Any] = {
        "schema": 1,
        "model": {"source": model},
        "targets": {name: {} for name in targets or [DEFAULT_TARGET]},
    }
    tables["model"] |= {"weights": flags["--weights"]} if flags["--weights"] else {}
    tables["model"] |= {"allow_pickle": True} if flags["--allow-pickle"] else {}
    tables |= {"name": flags["--name"]} if flags["--name"] else {}
    tables |= {"calibration": {"data": flags["--calib"]}} if flags["--calib"] else {}
    if flags["--eval"]:
        tables["evaluation"] = {"data": flags["--eval"]}
        tables["evaluation"] |= {"labels": flags["--labels"]} if flags["--labels"] else {}
    tail = model.rpartition(":")[2] if ":" in model else Path(model).stem
    return resolve(
        tables,
        base=Path.cwd(),
        where="command line",
        origin="command line",
        default_name=tail,
        load_target=load_target,
        sets=sets,
    )
