"""`plan`: which steps of a build are in the store already; nothing is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporter.bundle import bundle_name
from exporter.errors import GateError
from exporter.pipeline.bundling import Bundling
from exporter.pipeline.crosschecking import in_build_order
from exporter.pipeline.job import Job
from exporter.pipeline.steps import Steps
from exporter.plan import Plan
from exporter.store import Stored
from exporter.target_api import Target


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a target's build; what follows the first one that is to do depends on its result."""

    target: str
    step: str
    cached: bool


class _ToDoError(Exception):
    """The first step that is not in the store."""


class _PeekSteps(Steps):
    """Finds results and never builds one."""

    writes = False

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps.store, lambda event: None, steps.log, steps.jobs)
        self.seen: list[tuple[str, bool]] = []

    def stored(
        self,
        stage: str,
        stage_version: int,
        parts: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        label: str,
        total: int | None = None,
    ) -> Stored:
        key = self.key(stage, stage_version, parts)
        folder = self.store.find(stage, key)
        self.seen.append((label, folder is not None))
        if folder is None:
            raise _ToDoError
        return Stored(folder=folder, key=key, cached=True)


def step_states(plan: Plan, steps: Steps, load_target: Callable[[str], Target]) -> list[StepState]:
    """The steps of each target up to the first one that has to run."""
    peek = _PeekSteps(steps)
    job = Job(plan, peek)
    states: dict[str, list[StepState]] = {}
    for target_plan in in_build_order(plan.targets, load_target):
        peek.seen.clear()
        try:
            drafted = Bundling(job, load_target(target_plan.name), target_plan).draft()
            peek.seen.append((f"bundle {bundle_name(drafted.manifest)}", True))
        except (_ToDoError, GateError):
            pass  # Its label is the last one seen; what was refused ends with the step that was judged.
        name = target_plan.name
        states[name] = [StepState(target=name, step=step, cached=cached) for step, cached in peek.seen]
    return [state for target_plan in plan.targets for state in states[target_plan.name]]
