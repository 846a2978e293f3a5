"""A ready ONNX model in: checked, and its inputs and outputs described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporter.artifacts import BATCH, Dim, DType, Signature, TensorSpec
from exporter.errors import ModelError, shorten
from exporter.sources.external_data import checked_external_files

if TYPE_CHECKING:
    import onnx

_LARGE = 1_900_000_000


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What an ONNX file says of itself.

    Attributes:
        signature: inputs that are not initializers, and outputs; every dynamic axis has a name.
        opset: version of the default operator set.
        ir_version: version of the file format.
        domains: operator sets by domain; the default one is "".
    """

    signature: Signature
    opset: int
    ir_version: int
    domains: Mapping[str, int]


def inspect_onnx(path: Path) -> OnnxFacts:
    """Checks an ONNX file and reads its signature; weights are not kept in memory.

    A nameless dynamic axis is called `<tensor>_axis<k>`; axis 0 of an input is called `batch`.

    Raises:
        ModelError: the file is missing or damaged, breaks the ONNX rules, keeps data outside its folder, or takes
            or gives what is no tensor of a supported type.
    """
    if not path.is_file():
        raise ModelError("the model file does not exist", where=str(path))
    external = checked_external_files(path)
    model = _load(path)
    _complete(model, path)
    signature = _signature(model, path)
    _check(model, path, by_path=bool(external) or path.stat().st_size >= _LARGE)
    domains = {_domain(entry.domain): entry.version for entry in model.opset_import}
    if "" not in domains:
        raise ModelError("the model imports no version of the ONNX operator set", where=str(path))
    return OnnxFacts(signature=signature, opset=domains[""], ir_version=model.ir_version, domains=domains)


def check_opset(facts: OnnxFacts, max_opset: int, max_ir: int, runtime_text: str) -> None:
    """Refuses a model that is newer than the oldest runtime it must run on.

    Args:
        facts: of the model.
        max_opset: newest ONNX opset that the runtime knows.
        max_ir: newest IR version that the runtime reads.
        runtime_text: the runtime as a user knows it, as in `onnxruntime 1.17`.

    Raises:
        ModelError: naming both numbers.
    """
    faults = []
    if facts.opset > max_opset:
        faults.append(f"the model uses ONNX opset {facts.opset}, {runtime_text} knows up to {max_opset}")
    if facts.ir_version > max_ir:
        faults.append(f"the model has IR version {facts.ir_version}, {runtime_text} reads up to {max_ir}")
    if faults:
        raise ModelError(
            f"the ONNX model is newer than {runtime_text}",
            why="; ".join(faults),
            hint="raise `min_runtime` in [targets.cpu] if your devices have a newer runtime, "
            f"or export the model again with opset {max_opset}",
        )


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelError(
            "the file is not an ONNX model, or is damaged",
            where=str(path),
            why=shorten(error, 160),
            hint="export or download it again",
        ) from error


def _check(model: onnx.ModelProto, path: Path, *, by_path: bool) -> None:
    """Runs onnx's own checker: on the file where it must follow external data, else on the completed model."""
    import onnx

    try:
        onnx.checker.check_model(str(path) if by_path else model)
    except Exception as error:
        raise ModelError(
            "the file is not a valid ONNX model",
            where=str(path),
            why=shorten(str(error).split("==> Context:")[0]),
            hint="export it again",
        ) from error


def _complete(model: onnx.ModelProto, path: Path) -> None:
    """Adds sizes of outputs that the file leaves open and that follow from its operators."""
    from onnx import shape_inference

    outputs = [value for value in model.graph.output if value.type.WhichOneof("value") == "tensor_type"]
    if path.stat().st_size >= _LARGE or not any(None in (_dims(value) or (None,)) for value in outputs):
        return
    try:
        inferred = {value.name: value for value in shape_inference.infer_shapes(model).graph.output}
    except Exception:
        return  # what cannot be inferred stays open, and is reported if even the rank does
    for value in outputs:
        known = inferred[value.name].type.tensor_type
        own = value.type.tensor_type
        if not own.HasField("shape") and known.HasField("shape"):
            own.shape.CopyFrom(known.shape)
        if known.HasField("shape") and len(known.shape.dim) == len(own.shape.dim):
            for have, better in zip(own.shape.dim, known.shape.dim, strict=True):
                if not have.HasField("dim_value") and not have.dim_param:
                    have.CopyFrom(better)


def _signature(model: onnx.ModelProto, path: Path) -> Signature:
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = tuple(_spec(value, path, "input") for value in model.graph.input if value.name not in stored)
    return Signature(inputs=inputs, outputs=tuple(_spec(value, path, "output") for value in model.graph.output))


def _spec(value: onnx.ValueInfoProto, path: Path, role: str) -> TensorSpec:
    where = f"{path}, {role} '{value.name}'"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "value of unknown type").removesuffix("_type").replace("_", " ")
        raise ModelError(f"an {role} of the model is no tensor but a {what}", where=where)
    dims = _dims(value)
    if dims is None:
        raise ModelError(
            f"the model does not say how many axes its {role} has",
            where=where,
            hint="export it again with shapes, or set them with onnx.tools.update_model_dims",
        )
    return TensorSpec(
        name=value.name,
        dtype=_dtype(value.type.tensor_type.elem_type, where, role),
        shape=tuple(_named(dim, axis, value.name, role) for axis, dim in enumerate(dims)),
    )


def _named(dim: Dim | None, axis: int, tensor: str, role: str) -> Dim:
    if dim is not None:
        return dim
    return BATCH if axis == 0 and role == "input" else f"{tensor}_axis{axis}"


def _dims(value: onnx.ValueInfoProto) -> tuple[Dim | None, ...] | None:
    """Axes as sizes or names, None where the file leaves them open; None if it has no shape at all."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: list[Dim | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:
            name = dim.dim_param.strip().strip("?")
            dims.append(None if name.startswith("unk__") else name or None)  # onnx's name for "unknown"
    return tuple(dims)


def _dtype(code: int, where: str, role: str) -> DType:
    import onnx

    names: Sequence[DType] = get_args(DType)
    try:
        name = onnx.TensorProto.DataType.Name(code).lower()
    except ValueError:
        name = f"type {code}"
    name = {"float": "float32", "double": "float64"}.get(name, name)
    for known in names:
        if name == known:
            return known
    raise ModelError(
        f"the model's {role} has the element type {name}, which is not supported",
        where=where,
        hint=f"supported are {', '.join(names)}; convert it inside or outside of the model",
    )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
