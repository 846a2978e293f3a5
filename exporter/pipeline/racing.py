"""Latency of a candidate as a share of another model's, measured on a target's runtime before anything is bundled."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from exporter.artifacts import (
    Choice,
    Comparison,
    DataFacts,
    Fidelity,
    Manifest,
    ModelFacts,
    Profile,
    Signature,
    Variant,
)
from exporter.bundle import BundleParts, write_bundle
from exporter.devices import run_bench
from exporter.errors import InputError, MissingError
from exporter.pipeline.forms import formed_signature
from exporter.pipeline.models import Inputs
from exporter.pipeline.results import DataChecked
from exporter.plan import TargetPlan
from exporter.plan_types import ProfilePlan
from exporter.target_api import ConvertRequest, Target, VariantFile

if TYPE_CHECKING:
    from torch import nn

BEFORE, AFTER = "before", "after"
LONGEST = 4.0
"""Seconds that a candidate is measured at most: there are several, and the last one counts again in its bundle."""


class Race:
    """Measures float candidates interleaved with the model before, by the runner that a bundle would have.

    Raises:
        InputError: the target's files do not run on this machine, or need fixed shapes.
        MissingError: what the target needs is not installed.
    """

    def __init__(
        self,
        target: Target,
        plan: TargetPlan,
        inputs: Inputs,
        outputs: tuple[str, ...],
        checked: DataChecked,
        data: Path,
        before: nn.Module,
    ) -> None:
        if (missing := target.missing(plan.options)) is not None:
            raise MissingError(f"latency on target '{target.name}' cannot be measured: {missing[0]}", hint=missing[1])
        self.target, self.plan, self.checked, self.data = target, plan, checked, data
        self.outputs, self.before = outputs, before
        self._kept = TemporaryDirectory(prefix="edge-exporter-race-")
        self._first: tuple[VariantFile, Signature] | None = None
        self.need = target.requires(plan.options)
        self.payload = target.payload(plan.options)
        self.last: Comparison | None = None
        self.host = ""
        made_for = self.payload.runtime.machine
        if made_for not in (None, platform.machine()):
            raise InputError(
                f"latency on target '{target.name}' cannot be measured here: its files are for {made_for}",
                where='[[compress.steps]] method = "prune-channels", latency',
                why=f"this machine is {platform.machine()}",
                hint="ask for a share of `macs` instead, or name another `target`",
            )
        if self.need.environment is not None:
            raise InputError(
                f"latency on target '{target.name}' cannot be measured with {self.need.environment.name}",
                where='[[compress.steps]] method = "prune-channels", latency',
                why="it converts in an environment of its own, which takes too long for each candidate",
                hint="ask for a share of `macs` instead, or name another `target`",
            )
        # What captures a program needs fixed shapes; a batch of one is measured in either case.
        self.inputs = tuple(msgspec.structs.replace(spec, shape=(1, *spec.shape[1:])) for spec in inputs) if (
            self.need.program) else inputs  # fmt: skip
        if self.need.program and any(isinstance(dim, str) for spec in self.inputs for dim in spec.shape):
            raise InputError(
                f"target '{target.name}' needs fixed shapes",
                where="; ".join(str(spec) for spec in inputs),
                hint="write numbers in the shapes of [model.inputs]",
            )
        # The last case of a dynamic batch holds several samples.
        several = any(spec.shape and isinstance(spec.shape[0], str) for spec in inputs)
        self.cases = checked.cases - several

    def share(self, candidate: nn.Module) -> float:
        """Median latency of a candidate relative to the model before."""
        with TemporaryDirectory(prefix="edge-exporter-race-") as place:
            profile = self._run(Path(place), candidate)
        self.last = next(one for one in profile.comparisons if one.variant == AFTER)
        self.host = profile.host.cpu
        return self.last.ratio

    def _run(self, place: Path, candidate: nn.Module) -> Profile:
        from exporter.pipeline.expected import Cases, expected_samples

        kept = Path(self._kept.name)
        if self._first is None:
            self._first = self._converted(kept / BEFORE, self.before)
        after, signature = self._converted(place / AFTER, candidate)
        # One folder for both, so that one bundle holds them.
        files: list[VariantFile] = []
        for name, folder, made in ((BEFORE, kept, self._first[0]), (AFTER, place, after)):
            top, _, rest = made.main.partition("/")
            shutil.copytree(folder / name / "converted" / top, place / "variants" / name)
            files.append(msgspec.structs.replace(made, name=name, main=f"{name}/{rest}"))
        cases = Cases(path=self.data / "cases.npz", count=self.cases, inputs=self.inputs, form=self.need.form)
        samples = place / "samples.npz"
        tolerances = expected_samples(cases, samples, self.target, place / "variants", files)
        nothing = Fidelity(reference="torch", reference_digest="", samples=0, data="calibration", outputs=())
        manifest = Manifest(
            name="race",
            target=self.target.name,
            signature=formed_signature(signature, self.need.form),
            variants=tuple(
                Variant(
                    name=one.name,
                    runtime=one.runtime,
                    main=f"variants/{one.main}",
                    precision=one.precision,
                    fidelity=nothing,
                    tolerances=tolerances[one.name],
                    edges=one.edges,
                )
                for one in files
            ),
            float_variant=BEFORE,
            runtime=self.payload.runtime,
            samples=self.cases,
            model=ModelFacts(source="", digest="", licence=None),
            data=DataFacts(calibration=None, calibration_samples=0, evaluation=None, evaluation_samples=0, overlap=0),
            tools={},
            plan={},
            files=(),
            choice=Choice(variant=BEFORE, why="a race"),
        )
        bundle = _folder(place / "bundle")
        write_bundle(
            bundle,
            manifest,
            BundleParts(variants=place / "variants", samples=samples, runner=self.payload.files, plan={}),
        )
        return run_bench(bundle, self._settings(), len(files))

    def _converted(self, folder: Path, module: nn.Module) -> tuple[VariantFile, Signature]:
        """The target's float file of a module."""
        from exporter.onnx_export import export_onnx, export_opset, prepare_module, save_program
        from exporter.pipeline.arrays import read_groups

        _folder(folder / "converted")
        (example,) = read_groups(self.data / "example.npz", ["0"])
        if self.inputs and self.inputs[0].shape[:1] == (1,):
            example = {name: values[:1] for name, values in example.items()}
        prepared = prepare_module(module, self.inputs, self.outputs)
        path = folder / "model.onnx"
        signature = export_onnx(
            prepared,
            example=example,
            inputs=self.inputs,
            opset=self.plan.export.opset or export_opset(self.need.opset),
            ir_version=self.need.ir_version,
            path=path,
        )
        signature = msgspec.structs.replace(signature, inputs=self.inputs)
        program = folder / "program.pt2" if self.need.program else None
        if program is not None:
            save_program(prepared, example=example, inputs=self.inputs, path=program)
        request = ConvertRequest(float_model=path, int8=(), signature=signature, program=program, form=self.need.form)
        return self.target.convert(request, self.plan.options, folder / "converted")[0], signature

    def _settings(self) -> ProfilePlan:
        longest = min(self.plan.profile.max_seconds, LONGEST)
        return msgspec.structs.replace(
            self.plan.profile, max_seconds=longest, min_seconds=min(self.plan.profile.min_seconds, longest)
        )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
