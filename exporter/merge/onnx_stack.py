"""Several ONNX files in one: names prefixed, operator sets brought to one version, inputs joined, outputs fused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from exporter.errors import ModelError, closest, shorten
from exporter.merge.fusing import Fusion
from exporter.merge.onnx_fuse import fused_outputs
from exporter.merge.wiring import Takes, exposed, feeding, output_name, running_order

SOFTMAX_OPSET = 13
"""Before it Softmax, ReduceSum and others take their axes otherwise."""


@dataclass(frozen=True, kw_only=True)
class OnnxPart:
    """One member.

    Attributes:
        label: what its names are prefixed with.
        path: its file.
        takes: its own inputs and where they come from; empty for inputs of the same names.
        outputs: names of its outputs; by default its own.
    """

    label: str
    path: Path
    takes: Takes
    outputs: tuple[str, ...] = ()


def stack_onnx(
    parts: Sequence[OnnxPart], path: Path, *, expose: Sequence[str] = (), fusion: Fusion | None = None
) -> None:
    """Writes one model that runs all members; sub-graphs that they share are still there as often as before.

    Args:
        parts: the members; outputs keep their order.
        path: the file to write.
        expose: outputs to keep although another member takes them.
        fusion: fuses the members' outputs instead of giving all.

    Raises:
        ModelError: a member takes what is not there or has another type or shape, versions of operators cannot be
            brought together, or outputs cannot be fused.
    """
    models = {part.label: _load(part) for part in parts}
    fixed: dict[str, int] = {}
    imports = _imports(models, fusion)
    for label, model in models.items():
        _convert(label, model, imports[""])
    takes = {part.label: _takes(part, models[part.label]) for part in parts}
    inputs = _inputs(models, takes, fixed)
    values = dict(inputs)
    given: dict[str, list[str]] = {}
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    by_label = {part.label: part for part in parts}
    for label in running_order(takes, list(inputs)):
        model = models[label]
        _check_sources(label, takes[label], values)
        _rename_axes(model, {own: values[source] for own, source in takes[label].items()})
        outputs = _absorb(label, model, {own: values[source] for own, source in takes[label].items()}, fixed)
        given[label] = list(_names(by_label[label], [name for name, _ in outputs]))
        values |= {output_name(label, name): value for name, (_, value) in zip(given[label], outputs, strict=True)}
        initializers += [value for value in model.graph.initializers.values()]
        for value in initializers[-len(model.graph.initializers) :] if model.graph.initializers else ():
            model.graph.initializers.pop(str(value.name))
        moved = list(model.graph)
        model.graph.remove(moved)
        nodes += moved
    ordered = {part.label: given[part.label] for part in parts}
    if fusion is not None:
        results, added, constants = fused_outputs(ordered, values, fusion)
        nodes += added
        initializers += constants
    else:
        results = {name: values[name] for name in exposed(ordered, takes, expose)}
    for name, value in results.items():
        value.name = name
    _fix_axes(inputs.values(), fixed)
    _tell_apart([*inputs.values(), *results.values()], nodes, initializers)
    graph = ir.Graph(
        list(inputs.values()),
        list(results.values()),
        nodes=nodes,
        initializers=initializers,
        opset_imports=imports,
        name="stack",
    )
    stacked = ir.Model(graph, ir_version=max(model.ir_version or 0 for model in models.values()))
    size = sum(value.const_value.nbytes for value in initializers if value.const_value is not None)
    ir.save(stacked, path, external_data=f"{path.name}.data" if size >= 1_900_000_000 else None)


def _load(part: OnnxPart) -> ir.Model:
    model = ir.load(part.path)
    ir.external_data.load_to_model(model)
    # Functions have names of their own that could meet; onnxruntime inlines them anyway.
    Sequential(
        passes.InlinePass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)
    inputs = [(value, value.name) for value in model.graph.inputs]
    passes.OutputFixPass()(model)
    for value, name in inputs:
        value.name = (
            name  # The pass calls an input otherwise that is an output too; a stack calls the output otherwise.
        )
    return model


def _imports(models: Mapping[str, ir.Model], fusion: Fusion | None) -> dict[str, int]:
    """One version of each operator set: the newest of the standard one; of others there must be one only."""
    newest = max(model.graph.opset_imports.get("", 1) for model in models.values())
    imports = {"": max(newest, SOFTMAX_OPSET) if fusion is not None else newest}
    for label, model in models.items():
        for domain, version in model.graph.opset_imports.items():
            if domain and imports.setdefault(domain, version) != version:
                raise ModelError(
                    f"the members use versions {imports[domain]} and {version} of the operators '{domain}'",
                    where=f"[[merge.models]] {label}",
                    hint="export them again with one version of that operator set",
                )
    return imports


def _convert(label: str, model: ir.Model, opset: int) -> None:
    from onnxscript.version_converter import ConvertVersionPass

    before = model.graph.opset_imports.get("", 1)
    if before == opset:
        return
    why = None
    try:
        ConvertVersionPass(target_version=opset, fallback=True)(model)
    except Exception as error:
        why = shorten(error)
    # The pass also leaves a model as it is where it cannot convert it.
    if model.graph.opset_imports.get("") != opset or why:
        raise ModelError(
            f"'{label}' has ONNX opset {before} and cannot be brought to {opset}, which another member has",
            where=f"[[merge.models]] {label}",
            why=why,
            hint=f"export all members with one opset, such as {opset}",
        )


def _takes(part: OnnxPart, model: ir.Model) -> Takes:
    own = [str(value.name) for value in model.graph.inputs]
    takes = {name: part.takes.get(name, name) for name in own}
    if unknown := [name for name in part.takes if name not in own]:
        raise ModelError(
            f"'{part.label}' has no input '{unknown[0]}'",
            where=f"[[merge.models]] {part.label}, inputs",
            hint=f"its inputs are {', '.join(own)}",
        )
    return takes


def _inputs(models: Mapping[str, ir.Model], takes: Mapping[str, Takes], fixed: dict[str, int]) -> dict[str, ir.Value]:
    """The stack's inputs, each as the first member that takes it has it."""
    found: dict[str, ir.Value] = {}
    for label, model in models.items():
        for value in model.graph.inputs:
            source = takes[label][str(value.name)]
            if feeding(source, list(models)) is not None:
                continue
            if source not in found:
                found[source] = ir.Value(name=source, type=value.type, shape=value.shape)
                continue
            _check_fits(f"input '{source}' of '{label}'", value, found[source], fixed)
    return found


def _check_sources(label: str, takes: Takes, values: Mapping[str, ir.Value]) -> None:
    if missing := [source for source in takes.values() if source not in values]:
        raise ModelError(
            f"'{label}' takes '{missing[0]}', which is no output{closest(missing[0], list(values))}",
            where=f"[[merge.models]] {label}, inputs",
            hint=f"there are {', '.join(values)}",
        )


def _check_fits(what: str, own: ir.Value, given: ir.Value, fixed: dict[str, int]) -> None:
    """A fixed size meets the same size or a dynamic axis, which it then fixes; element types are equal."""
    clash = own.type is not None and given.type is not None and own.dtype != given.dtype
    if own.shape is not None and given.shape is not None:
        clash |= len(own.shape) != len(given.shape)
        for mine, other in zip(own.shape, given.shape, strict=False):
            size = fixed.get(other.value or "", other) if isinstance(other, ir.SymbolicDim) else other
            if isinstance(mine, int) and isinstance(size, int):
                clash |= mine != size
            elif isinstance(mine, int) and isinstance(size, ir.SymbolicDim) and size.value:
                fixed[size.value] = mine
    if clash:
        raise ModelError(
            f"{what} does not fit what feeds it",
            where="[[merge.models]] inputs",
            why=f"it is {own.dtype}{_shown(own)}, and what feeds it is {given.dtype}{_shown(given)}",
            hint='give each its own input, as in `inputs = { image = "other_image" }`',
        )


def _fix_axes(inputs: Iterable[ir.Value], fixed: Mapping[str, int]) -> None:
    """A dynamic axis whose size some member fixes has that size in the whole."""
    for value in inputs:
        if value.shape is not None and fixed:
            value.shape = ir.Shape(
                [fixed.get(dim.value or "", dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )


def _tell_apart(ends: Sequence[ir.Value], nodes: Sequence[ir.Node], initializers: Sequence[ir.Value]) -> None:
    """No two nodes and no two values have one name; inputs and outputs keep theirs."""
    kept, taken, named = {id(value) for value in ends}, {str(value.name) for value in ends}, set[str]()
    inner = [node for outer in nodes for node in (outer, *_within(outer))]
    for node in inner:
        node.name = _free(str(node.name), named)
    values = {id(value): value for value in (*initializers, *(out for node in inner for out in node.outputs))}
    for key, value in values.items():
        if key not in kept and value.name:
            value.name = _free(value.name, taken)


def _within(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes of the graphs that a node holds."""
    for attribute in node.attributes.values():
        graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
        for graph in (attribute.as_graph(),) if attribute.type == ir.AttributeType.GRAPH else graphs:
            yield from ir.traversal.RecursiveGraphIterator(graph)


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken, which then is."""
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    taken.add(free)
    return free


def _shown(value: ir.Value) -> str:
    return str(list(value.shape)) if value.shape is not None else "[?]"


def _rename_axes(model: ir.Model, feeds: Mapping[str, ir.Value]) -> None:
    """Axes of a member's inputs are called like those of what feeds them, everywhere in the member."""
    renamed: dict[str, str | None] = {}
    for value in model.graph.inputs:
        for own, other in zip(value.shape or (), feeds[str(value.name)].shape or (), strict=False):
            if isinstance(own, ir.SymbolicDim) and own.value and isinstance(other, ir.SymbolicDim):
                renamed[own.value] = other.value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.shape is not None and not value.shape.frozen:
                value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, renamed: Mapping[str, str | None]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return renamed.get(dim.value, dim.value) if dim.value else None


def _absorb(
    label: str, model: ir.Model, feeds: Mapping[str, ir.Value], fixed: dict[str, int]
) -> list[tuple[str, ir.Value]]:
    """Prefixes every name of a member, and lets what feeds it take the place of its inputs."""
    graph = model.graph
    outputs = [(str(value.name), value) for value in graph.outputs]
    for value in list(graph.inputs):
        _check_fits(f"input '{value.name}' of '{label}'", value, feeds[str(value.name)], fixed)
        ir.convenience.replace_all_uses_with(value, feeds[str(value.name)])
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.name = f"{label}.{node.name or node.op_type}"
        for value in node.outputs:
            if value.name:
                value.name = f"{label}.{value.name}"
    stored = list(graph.initializers.values())
    for value in stored:
        graph.initializers.pop(str(value.name))
        value.name = f"{label}.{value.name}"
        graph.initializers[value.name] = value
    graph.outputs.clear()
    return outputs


def _names(part: OnnxPart, own: Sequence[str]) -> Sequence[str]:
    if part.outputs and len(part.outputs) != len(own):
        raise ModelError(
            f"the plan names {len(part.outputs)} outputs of '{part.label}', and it has {len(own)}",
            where=f"[[merge.models]] {part.label}, outputs",
            why=f"it gives {', '.join(own)}",
        )
    return part.outputs or own
