"""A torch model at some point of a build: how it is made again, from a factory and, where it was changed, a state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter import sources
from exporter.artifacts import Fidelity, ModelCost, TensorSpec, canonical, digest_of
from exporter.errors import DataError
from exporter.pipeline.datasets import DataSets, Role
from exporter.pipeline.judging import judge, judged_by
from exporter.pipeline.results import DataChecked, Reference, ReferenceFacts, load_json
from exporter.pipeline.steps import Steps, versions
from exporter.plan import Plan
from exporter.plan_types import ModelPlan
from exporter.sources import SourceKind

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from exporter.compress import Call, Structure
    from exporter.onnx_export import Prepared
    from exporter.pipeline.composition import Composition
    from exporter.target_api import Session

Inputs = tuple[TensorSpec, ...]
STATE = "state.safetensors"
STRUCTURE = "structure.json"


class TorchModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is loaded from.

    Attributes:
        plan: source, arguments and outputs; its weights count unless `folder` is set.
        kind: of the source.
        content: digest of everything that decides what it computes.
        folder: where a step left its state dict and its changes of architecture; None for the user's own.
        composition: the models that it consists of; then the plan's source is not what it is made from.
    """

    plan: ModelPlan
    kind: SourceKind
    content: str
    folder: Path | None = None
    composition: Composition | None = None

    def load(self) -> nn.Module | ExportedProgram:
        """The model, in eval mode."""
        if self.composition is None and self.kind == "torch-export":
            return sources.load_program(Path(self.plan.source), self.plan.allow_pickle)
        if self.folder is None:
            return self.composition.module() if self.composition else sources.load_factory(self.plan)
        from exporter.compress import apply_structure

        bare = msgspec.structs.replace(self.plan, weights=None)
        module = apply_structure(
            self.composition.module() if self.composition else sources.load_factory(bare), self.structure
        )
        sources.load_weights(module, self.folder / STATE, allow_pickle=False)
        return module.eval().requires_grad_(False)

    @property
    def structure(self) -> Structure:
        """Changes of architecture."""
        from exporter.compress import read_structure

        return read_structure((self.folder / STRUCTURE).read_bytes()) if self.folder else ()


class Models:
    """Loads torch models when a step needs them, runs them on the evaluation data, and judges them; all stored."""

    def __init__(self, plan: Plan, data: DataSets, steps: Steps) -> None:
        self.plan = plan
        self.data = data
        self.steps = steps
        self._last: tuple[tuple[str, Inputs, tuple[str, ...]], Prepared] | None = None

    def without_metric(self) -> Models:
        """The same for models that the plan's metric does not judge."""
        return Models(msgspec.structs.replace(self.plan, evaluation=None), self.data, self.steps)

    def prepared(self, model: TorchModel, inputs: Inputs) -> Prepared:
        """A model ready to run; the last one is kept."""
        from exporter.onnx_export import prepare_module

        key = (model.content, inputs, model.plan.outputs)
        if self._last is None or self._last[0] != key:
            self._last = (key, prepare_module(model.load(), inputs, model.plan.outputs))
        return self._last[1]

    def outputs(self, model: TorchModel, inputs: Inputs, label: str = "run the trained model") -> Reference:
        """What a model answers on the evaluation data, with the labels."""

        def session() -> Session:
            from exporter.onnx_export import torch_session

            return torch_session(self.prepared(model, inputs))

        parts = {"source": model.content, "outputs": model.plan.outputs, "versions": versions("torch")}
        return stored_outputs(self.data, self.steps, inputs, parts, session, label=label)

    def output_names(self, model: TorchModel, inputs: Inputs, data: Path) -> tuple[str, ...]:
        """What a model's outputs are called.

        Args:
            model: is run once.
            inputs: of the model.
            data: folder of the checked data, with examples of inputs.
        """
        from exporter.pipeline.arrays import read_groups

        (example,) = read_groups(data / "example.npz", ["0"])
        return self.prepared(model, inputs).names(example)

    def calibration(self, inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
        """One pass over the calibration inputs, as tensors in the order of the model's inputs."""
        return self._tensors("calibration", inputs)

    def taught(self, inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
        """The same over what students learn from."""
        return self._tensors(self.data.taught, inputs)

    def lesson(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """All of what students learn from, one tensor an input.

        Raises:
            DataError: samples have several shapes.
        """
        return at_once(list(self.taught(inputs)), inputs, self.data.taught)

    def _tensors(self, role: Role, inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
        import numpy as np
        import torch

        section = self.data.sections[role]
        for batch in self.data.open(role, inputs).batches(section.batch_size):
            yield tuple(torch.from_numpy(np.array(batch.inputs[spec.name], order="C")) for spec in inputs)

    def call(self, model: TorchModel, inputs: Inputs) -> Call:
        """Runs any module that takes its inputs as this model does."""
        from exporter.onnx_export import FlatModule

        convention = self.prepared(model, inputs).flat.convention
        return lambda module, batch: FlatModule(module, convention)(*batch)

    def judged(self, model: TorchModel, inputs: Inputs, reference: Reference, label: str) -> Fidelity:
        """A model's divergence from the trained one, and its metric."""
        step = f"accuracy of {label}"

        def build(folder: Path) -> None:
            from exporter.onnx_export import torch_session

            fidelity = judge(
                self.data,
                inputs,
                reference,
                torch_session(self.prepared(model, inputs)),
                self.plan.evaluation,
                runs_in="torch",
                progress=self.steps.progress(step),
            )
            (folder / "fidelity.json").write_bytes(canonical(fidelity))

        parts = {
            "model": model.content,
            "outputs": model.plan.outputs,
            "inputs": inputs,
            "reference": reference.content,
            "metric": judged_by(self.plan.evaluation),
            "versions": versions("torch"),
        }
        stored = self.steps.stored("judge", 3, parts, build, label=step, total=reference.batches)
        return load_json(stored.folder / "fidelity.json", Fidelity)

    def cost(self, model: TorchModel, inputs: Inputs, checked: DataChecked, data: Path) -> ModelCost:
        """A model's parameters, work and size."""

        def build(folder: Path) -> None:
            from exporter.compress import measure_cost
            from exporter.onnx_export import tensors_of
            from exporter.pipeline.arrays import read_groups

            prepared = self.prepared(model, inputs)
            (example,) = read_groups(data / "example.npz", ["0"])
            cost = measure_cost(prepared.flat, tensors_of(prepared, example))
            (folder / "cost.json").write_bytes(canonical(cost))

        parts = {
            "model": model.content,
            "inputs": inputs,
            "example": checked.example_digest,
            "versions": versions("torch", "zstandard"),
        }
        stored = self.steps.stored("count", 3, parts, build, label="count parameters and work")
        return load_json(stored.folder / "cost.json", ModelCost)


def at_once(batches: Sequence[Sequence[Tensor]], inputs: Inputs, role: Role) -> tuple[Tensor, ...]:
    """Batches as one.

    Raises:
        DataError: samples have several shapes, which no tensor holds.
    """
    import torch

    for index, spec in enumerate(inputs):
        if len(shapes := {tuple(batch[index].shape[1:]) for batch in batches}) > 1:
            shown = ", ".join(str(list(shape)) for shape in sorted(shapes)[:4])
            raise DataError(
                f"samples of '{spec.name}' have {len(shapes)} shapes, and a student is taught on samples of one",
                where=f"[{role}]",
                why=f"they are {shown}{', ...' if len(shapes) > 4 else ''}",
                hint="give samples of one shape to learn from: `[training] data = ...`; the axis stays dynamic",
            )
    return tuple(torch.cat(list(parts)) for parts in zip(*batches, strict=True))


def stored_outputs(
    data: DataSets,
    steps: Steps,
    inputs: Inputs,
    parts: Mapping[str, Any],
    session: Callable[[], Session],
    *,
    label: str = "run the trained model",
) -> Reference:
    """Outputs of a model on the evaluation data.

    Args:
        data: of the plan.
        steps: runs the step.
        inputs: of the model.
        parts: what decides the model's answers.
        session: opens the model.
        label: what the step is called.
    """
    section = data.sections[data.judged]
    # Part of the content: other samples may have the same outputs, and int8 models other ones for them.
    samples = digest_of({"set": data.judged, "inputs": inputs, **data.judged_parts()})

    def build(folder: Path) -> None:
        from exporter.pipeline.arrays import writing_arrays

        progress = steps.progress(label)
        run = session()
        count = 0
        with writing_arrays(folder / "reference.npz") as add:
            for batch in data.open(data.judged, inputs).batches(section.batch_size):
                add(f"{count}/outputs", run(batch.inputs))
                if batch.labels is not None:
                    add(f"{count}", {"labels": batch.labels})
                count += 1
                progress(count)
        (folder / "reference.json").write_bytes(canonical(ReferenceFacts(batches=count, samples=samples)))

    all_parts = {
        "set": data.judged,
        "inputs": inputs,
        **data.judged_parts(),
        **parts,
    }
    stored = steps.stored("reference", 2, all_parts, build, label=label)
    facts = load_json(stored.folder / "reference.json", ReferenceFacts)
    return Reference(path=stored.folder / "reference.npz", content=stored.content, batches=facts.batches)


def write_model(folder: Path, state: Mapping[str, Tensor], structure: Structure) -> None:
    """Writes what `TorchModel.load` reads; tensors that share memory are written one by one."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, folder / STATE)
    (folder / STRUCTURE).write_bytes(canonical(structure))
