"""Names, types and shapes of the model's inputs: from the plan, the model file, or the data."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exporter import sources
from exporter.artifacts import Signature, TensorSpec, canonical
from exporter.errors import DataError, InputError, ModelError, closest
from exporter.events import Note
from exporter.pipeline.datasets import DataSets
from exporter.pipeline.results import Inspected, load_json
from exporter.pipeline.steps import Steps, versions
from exporter.plan_types import ExportPlan, InputPlan, ModelPlan
from exporter.sources import Source


def model_inputs(
    model: ModelPlan, source: Source, data: DataSets, export: ExportPlan, steps: Steps
) -> tuple[TensorSpec, ...]:
    """The inputs in the order of the model's arguments, with a fixed batch where the plan asks for one.

    Raises:
        DataError, ModelError: the plan's inputs are not those of the data or of the file.
        InputError: a fixed batch is asked of a ready ONNX file.
    """
    if source.kind == "onnx" and export.batch != "dynamic":
        raise InputError(
            "a ready .onnx file keeps its own batch axis",
            where="export.batch",
            hint="remove `batch` from [export], or export the model from torch",
        )
    specs = _of_factory(model, data, steps) if source.kind == "factory" else _of_file(model, source, steps)
    fixed = sorted({spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)})
    if source.kind != "factory" and fixed:
        sizes = ", ".join(map(str, fixed))
        text = f"the model file has a fixed batch of {sizes}: the bundle takes no other; export it with a dynamic one"
        steps.emit(Note(text=text))
    batch = export.batch
    return specs if batch == "dynamic" else tuple(with_batch(spec, batch) for spec in specs)


def _of_factory(model: ModelPlan, data: DataSets, steps: Steps) -> tuple[TensorSpec, ...]:
    declared = model.inputs
    if declared and all(spec.dtype and spec.shape is not None for spec in declared.values()):
        return tuple(
            TensorSpec(name=name, dtype=spec.dtype or "float32", shape=spec.shape or ())
            for name, spec in declared.items()
        )
    with steps.guarded("read the data's shapes"):
        inferred = {spec.name: spec for spec in data.infer_inputs()}
    unknown = [f"'{name}'{closest(name, list(inferred))}" for name in declared if name not in inferred]
    if unknown:
        raise DataError(
            f"the data have no array for input {', '.join(unknown)}",
            where="[model.inputs]",
            hint=f'arrays in the data: {", ".join(inferred)}; `rename = {{ array = "input" }}` renames them',
        )
    # The plan's order comes first: it is the order of the model's arguments.
    order = [*declared, *(name for name in inferred if name not in declared)]
    return tuple(_refined(inferred[name], declared.get(name)) for name in order)


def _of_file(model: ModelPlan, source: Source, steps: Steps) -> tuple[TensorSpec, ...]:
    found = _inspect(model, source, steps).signature.inputs
    names = [spec.name for spec in found]
    problems = [f"input '{name}'{closest(name, names)}" for name in model.inputs if name not in names]
    specs = []
    for spec in found:
        refined = _refined(spec, model.inputs.get(spec.name))
        settled = _settled(spec, refined) if source.kind == "onnx" else refined
        if refined.dtype != spec.dtype or not _same_but_names(settled, refined):
            problems.append(f"{refined}, where the file has {spec}")
        specs.append(settled)
    if problems:
        raise ModelError(
            f"the model file does not have {'; '.join(problems)}",
            where="[model.inputs]",
            hint=f"its inputs: {', '.join(map(str, found))}",
        )
    return tuple(specs)


def _inspect(model: ModelPlan, source: Source, steps: Steps) -> Inspected:
    path = Path(model.source)

    def build(folder: Path) -> None:
        if source.kind == "onnx":
            signature = sources.inspect_onnx(path).signature
        else:
            program = sources.load_program(path, model.allow_pickle)
            signature = Signature(inputs=sources.program_inputs(program), outputs=())
        (folder / "inspected.json").write_bytes(canonical(Inspected(signature=signature)))

    parts = {
        "source": source.digest,
        "versions": versions("onnx" if source.kind == "onnx" else "torch"),
        "allow_pickle": model.allow_pickle,
    }
    stored = steps.stored("inspect", 1, parts, build, label="read the model file")
    return load_json(stored.folder / "inspected.json", Inspected)


def _refined(spec: TensorSpec, wanted: InputPlan | None) -> TensorSpec:
    if wanted is None:
        return spec
    shape = spec.shape if wanted.shape is None else wanted.shape
    return TensorSpec(name=spec.name, dtype=wanted.dtype or spec.dtype, shape=shape)


def _settled(spec: TensorSpec, wanted: TensorSpec) -> TensorSpec:
    """An ONNX file's input with the sizes that the plan gives for dynamic axes; their names are those in the file."""
    if len(spec.shape) != len(wanted.shape):
        return spec
    pairs = zip(spec.shape, wanted.shape, strict=True)
    shape = tuple(size if isinstance(have, str) and isinstance(size, int) else have for have, size in pairs)
    return msgspec.structs.replace(spec, shape=shape)


def _same_but_names(left: TensorSpec, right: TensorSpec) -> bool:
    return len(left.shape) == len(right.shape) and all(
        a == b or (isinstance(a, str) and isinstance(b, str)) for a, b in zip(left.shape, right.shape, strict=True)
    )


def with_batch(spec: TensorSpec, batch: int) -> TensorSpec:
    """An input whose first axis, where it is dynamic, has this size."""
    if not spec.shape or isinstance(spec.shape[0], int):
        return spec
    return msgspec.structs.replace(spec, shape=(batch, *spec.shape[1:]))


def fixed_axes(found: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Dynamic axes of an ONNX file's inputs that are to have a size, by name.

    Raises:
        InputError: one axis is to have two sizes.
    """
    sizes: dict[str, int] = {}
    for spec, other in zip(found, wanted, strict=True):
        for axis, size in zip(spec.shape, other.shape, strict=True):
            if isinstance(axis, str) and isinstance(size, int) and sizes.setdefault(axis, size) != size:
                raise InputError(
                    f"axis '{axis}' cannot be {sizes[axis]} and {size}",
                    where=f"input {spec}",
                    hint="give one size in [model.inputs] wherever the file has this axis",
                )
    return sizes
