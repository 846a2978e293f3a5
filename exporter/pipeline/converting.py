"""What one target's `convert` is asked for, and what it makes: the steps before files are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import Signature, TensorSpec, canonical
from exporter.devices import kept_python
from exporter.errors import InputError, closest
from exporter.pipeline.converted import check_variants
from exporter.pipeline.forms import form_of_data, formed_inputs
from exporter.pipeline.inputs import with_batch
from exporter.pipeline.job import PROGRAM, Job
from exporter.pipeline.pixels import onnx_with_pixels, with_pixels
from exporter.pipeline.results import DataChecked, FloatModel, Int8Model, load_json
from exporter.pipeline.steps import versions
from exporter.plan import TargetPlan
from exporter.store import Stored
from exporter.target_api import ConvertRequest, Need, Target, VariantFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exporter.pipeline.expected import Cases

    Arrays = Mapping[str, NDArray[np.generic]]

VARIANTS = "variants"
FIXED_BATCH = "the files have fixed shapes: the batch is 1"


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a target's files are made from.

    Attributes:
        float_model: the float ONNX file.
        signature: of the model, with preprocessing and labels.
        program: the captured torch program, where the target needs it.
        cases: real inputs, as the model and as the files take them.
    """

    float_model: FloatModel
    signature: Signature
    program: Stored | None
    cases: Cases


class Converting:
    """Asks one target what it needs, and has it convert.

    Attributes:
        need: what the target asks for, with what the plan says of inputs.
        inputs: of the model, as the target takes them.
        notes: what a reader of the bundle should know.
    """

    def __init__(self, job: Job, target: Target, plan: TargetPlan) -> None:
        """Asks the target.

        Raises:
            InputError: it cannot take this model, or not as the plan says.
        """
        self._job, self._target, self._plan, self._steps = job, target, plan, job.steps
        self.notes: tuple[str, ...] = ()
        with self._steps.guarded(f"{target.name}: requires"):
            need = target.requires(plan.options)
        self.need: Need = msgspec.structs.replace(need, form=form_of_data(need.form, job.data.preprocessing))
        self._check_dynamic()
        self.inputs = self._inputs()
        if plan.export.preprocess == "graph":
            self.need = with_pixels(target.name, self.need, self.inputs, job.data.preprocessing)

    def given(self, checked: DataChecked, data: Path) -> Given:
        """What the files are made from; `data` is the folder with real inputs.

        Raises:
            InputError: the plan's evaluation names an output that the model does not have.
        """
        from exporter.pipeline.expected import Cases

        job = self._job
        float_model = job.float_model(self.inputs, checked, data, self._plan.export, self.need)
        signature = msgspec.structs.replace(
            float_model.exported.signature,
            inputs=self.inputs,
            preprocessing=job.data.preprocessing,
            labels=job.plan.model.labels,
        )
        self._check_output(signature)
        return Given(
            float_model=float_model,
            signature=signature,
            program=job.program(self.inputs, checked, data) if self.need.program else None,
            cases=Cases(path=data / "cases.npz", count=checked.cases, inputs=self.inputs, form=self.need.form),
        )

    def convert(
        self, given: Given, int8: Sequence[Int8Model], *, why: str = ""
    ) -> tuple[Stored, tuple[VariantFile, ...]]:
        """The target's files, in the folder `VARIANTS` of what is stored.

        Args:
            given: what they are made from.
            int8: the quantized ONNX files, for a target that takes them.
            why: an end for the step's name.
        """
        job, target, need = self._job, self._target, self.need
        float_model, signature, program = given.float_model, given.signature, given.program
        calibrates = need.calibration and self._plan.quantize.enabled
        scheme = self._plan.quantize.scheme if calibrates else None
        ranged = calibrates and need.ranges and not self._plan.quantize.dynamic
        calibration = job.calibration_parts() if ranged else None
        offered = ("dynamic",) if calibrates and self._welcomes_dynamic(float_model) else ()
        request = ConvertRequest(
            float_model=float_model.path,
            int8=tuple(model.file for model in int8),
            signature=signature,
            program=program.folder / PROGRAM if program else None,
            pixels=need.form.pixels,
            form=need.form,
            quantize=scheme,
            offered=offered,
            calibration=(lambda: self._calibration(signature)) if ranged else None,
            tell=self._steps.stages(f"{target.name}: convert{why}"),
            examples=given.cases.both,
            tolerance=self._plan.export.tolerance,
        )

        def build(folder: Path) -> None:
            (folder / VARIANTS).mkdir()
            with onnx_with_pixels(msgspec.structs.replace(request, python=python)) as asked:
                made = target.convert(asked, self._plan.options, folder / VARIANTS)
            check_variants(target.name, made, folder / VARIANTS)
            (folder / "variants.json").write_bytes(canonical(made))

        parts = {
            "target": [target.name, target.version],
            "options": self._plan.options,
            "float": float_model.content,
            "int8": [[model.content, model.file.name, model.file.requires, model.file.specialises] for model in int8],
            "program": program.key if program else None,
            "quantize": scheme,
            "offered": offered,
            "form": need.form,
            "calibration": calibration,
            "signature": signature,
            "tolerance": self._plan.export.tolerance,
            "environment": need.environment,
            "versions": versions(*target.distributions),
        }
        python = self._python(self._steps.key("convert", 1, parts))
        stored = self._steps.stored("convert", 1, parts, build, label=f"{target.name}: convert{why}")
        return stored, load_json(stored.folder / "variants.json", tuple[VariantFile, ...])

    def _check_dynamic(self) -> None:
        """Refuses dynamic int8 for a target that says of none of its files how such a one must be judged."""
        quantize, name = self._plan.quantize, self._target.name
        if quantize.enabled and quantize.dynamic and self.need.int8 and not self.need.dynamic:
            raise InputError(
                f"target '{name}' makes no dynamic int8",
                where="quantize.dynamic",
                why="its int8 files are simulated where another CPU builds them, and ranges at run time cannot be",
                hint=f"`[targets.{name}.quantize] dynamic = false` makes static int8 for it",
            )

    def _inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs; all fixed where the target needs the captured program."""
        job, plan, name = self._job, self._plan, self._target.name
        if not (self.need.program or self.need.fixed):
            return job.inputs(plan.export)
        if self.need.program and job.source.kind == "onnx":
            raise InputError(
                f"target '{name}' converts torch models, and the source is a ready .onnx file",
                where="model.source",
                hint=self.need.otherwise
                or "give the torch model as source (`file.py:factory` or a torch.export .pt2), or leave the target "
                "out: `--target cpu`",
            )
        found = job.inputs(plan.export)
        inputs = tuple(with_batch(spec, 1) for spec in found)
        if free := [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]:
            axes = sorted({str(dim) for spec in free for dim in spec.shape if isinstance(dim, str)})
            raise InputError(
                f"target '{name}' needs fixed shapes, and axis {', '.join(map(repr, axes))} is dynamic",
                where="; ".join(f"input {spec}" for spec in free),
                hint=f"write numbers in `[model.inputs.{free[0].name}] shape`, and give data of that size",
            )
        if inputs != found:
            self.notes += (FIXED_BATCH,)
        return inputs

    def _check_output(self, signature: Signature) -> None:
        evaluation = self._job.plan.evaluation
        names = [spec.name for spec in signature.outputs]
        if evaluation is not None and evaluation.output is not None and evaluation.output not in names:
            raise InputError(
                f"the model has no output '{evaluation.output}'{closest(evaluation.output, names)}",
                where="evaluation.output",
                hint=f"its outputs: {', '.join(names)}",
            )

    def _python(self, key: str) -> str | None:
        """Of the environment that converting needs, unless it was done before."""
        steps, environment = self._steps, self.need.environment
        if environment is None or not steps.writes or steps.store.find("convert", key) is not None:
            return None
        return kept_python(steps.store, environment, steps.emit)

    def _welcomes_dynamic(self, float_model: FloatModel) -> bool:
        """Whether a target that quantizes by itself is to make a dynamic file that the plan does not ask for."""
        from exporter.quantize import suits_dynamic

        return self.need.dynamic and self._plan.quantize.try_dynamic and suits_dynamic(float_model.path)

    def _calibration(self, signature: Signature) -> Iterator[Arrays]:
        """The calibration samples as the target's files take them."""
        form = self.need.form
        return (
            formed_inputs(batch, signature.inputs, form) for batch in self._job.calibration_batches(signature.inputs)
        )
