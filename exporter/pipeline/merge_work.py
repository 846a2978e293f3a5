"""What every way to join models is given."""

from __future__ import annotations

from pathlib import Path

from exporter.pipeline.models import Inputs, Models
from exporter.pipeline.results import DataChecked
from exporter.plan import Plan
from exporter.plan_types import MergePlan


class MergeWork:
    """The [merge] of a plan, and what there is to work with.

    Attributes:
        models: loads, runs and judges torch models.
        plan: has a [merge].
        merge: that section.
        inputs: of the model.
        checked: what checking the data found.
        data: folder with the examples that it took.
    """

    def __init__(self, models: Models, plan: Plan, inputs: Inputs, checked: DataChecked, data: Path) -> None:
        if plan.merge is None:
            raise ValueError("the plan merges nothing")
        self.models = models
        self.plan = plan
        self.merge: MergePlan = plan.merge
        self.inputs = inputs
        self.checked = checked
        self.data = data
