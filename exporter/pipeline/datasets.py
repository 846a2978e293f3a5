"""The plan's data: digests, and sets opened for the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from exporter import data as data_room
from exporter.artifacts import Preprocessing, TensorSpec
from exporter.errors import DataError
from exporter.pipeline.watching import Watch
from exporter.plan import Plan
from exporter.plan_types import DataPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.data import CalibrationSet

    Arrays = Mapping[str, NDArray[np.generic]]

Role = Literal["calibration", "training", "evaluation"]


class DataSets:
    """Calibration, training and evaluation data of a plan.

    Raises:
        DataError: the plan names no data, or they cannot be read.
    """

    def __init__(self, plan: Plan) -> None:
        self.labels = plan.evaluation.labels if plan.evaluation else None
        self.class_names = plan.model.labels
        self.preprocessing: dict[str, Preprocessing] = {
            name: spec.preprocess for name, spec in plan.model.inputs.items() if spec.preprocess
        }
        self.sections: dict[Role, DataPlan] = {}
        self.learned: str | None = None
        if plan.calibration is not None:
            # Calibration data often carry labels too, under the same name: they are no input.
            self.learned = plan.merge.labels if plan.merge else None
            self.sections["calibration"] = _without(plan.calibration, self.labels, self.learned)
        if plan.training is not None:
            self.sections["training"] = _without(plan.training, self.labels)
        if plan.evaluation is not None:
            self.sections["evaluation"] = plan.evaluation
        if not self.sections:
            raise DataError(
                "the plan names no data",
                where="[calibration], [evaluation]",
                why="a bundle tests itself with real inputs, and none are ever made up",
                hint='add `[calibration] data = "file.npz"`, or give --calib',
            )
        # Before their digests are taken: what is written later is seen.
        self.watch = Watch()
        for section in self.sections.values():
            self.watch.add(data_room.files_of(section))
        self.digests: dict[str, str] = {
            role: data_room.content_digest(section, self._labels(role)) for role, section in self.sections.items()
        }

    @property
    def judged(self) -> Literal["calibration", "evaluation"]:
        """Which data fidelity is measured on."""
        return "evaluation" if "evaluation" in self.sections else "calibration"

    @property
    def taught(self) -> Role:
        """Which data students learn from."""
        return "training" if "training" in self.sections else "calibration"

    def infer_inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes read off the data."""
        role: Role = next(iter(self.sections))
        return data_room.infer_inputs(
            self.sections[role], labels=self._labels(role), preprocessing=self.preprocessing
        )

    def parts(self, role: Role) -> dict[str, Any]:
        """What decides which samples of a set a step sees, beside the model's inputs: for its key."""
        return {
            "data": self.digests[role],
            "preprocessing": self.preprocessing,
            "batch": self.sections[role].batch_size,
        }

    def judged_parts(self) -> dict[str, Any]:
        """The same of what fidelity is measured on, whose labels depend on the names of classes."""
        return {**self.parts(self.judged), "labels": self.class_names}

    def open(self, role: Role, inputs: tuple[TensorSpec, ...]) -> CalibrationSet:
        """Opens one of the sets."""
        return data_room.open_set(
            self.sections[role],
            inputs=inputs,
            preprocessing=self.preprocessing,
            labels=self._labels(role),
            class_names=self.class_names,
        )

    def learning(self, inputs: tuple[TensorSpec, ...]) -> CalibrationSet:
        """The calibration data with their labels, for a merge that learns from them.

        Raises:
            DataError: the plan names no calibration data, or they hold no such array.
        """
        section = self.sections.get("calibration")
        if section is None:
            raise DataError(
                "a merge that learns needs labelled calibration data",
                where="[calibration]",
                hint='add `[calibration] data = "file.npz"` with an array of labels',
            )
        ignore = tuple(name for name in section.ignore if name != self.learned)
        opened = data_room.open_set(
            msgspec.structs.replace(section, ignore=ignore),
            inputs=inputs,
            preprocessing=self.preprocessing,
            labels=self.learned,
            class_names=self.class_names,
        )
        if problems := opened.static_problems():
            raise DataError(
                f"the merge learns from labels, and {problems[0].text}",
                where=section.data,
                hint="`[merge] labels` names an array of the calibration data",
            )
        return opened

    def judged_batches(self, inputs: tuple[TensorSpec, ...]) -> Iterator[Arrays]:
        """The batches that fidelity is measured on, always in the same order and sizes."""
        section = self.sections[self.judged]
        return (batch.inputs for batch in self.open(self.judged, inputs).batches(section.batch_size))

    def _labels(self, role: Role) -> str | None:
        return self.labels if role == "evaluation" else None


def _without(section: DataPlan, *names: str | None) -> DataPlan:
    """A section that takes these arrays for no inputs."""
    return msgspec.structs.replace(
        section, ignore=(*section.ignore, *(name for name in dict.fromkeys(names) if name))
    )
