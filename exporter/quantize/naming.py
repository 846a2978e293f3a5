"""Names that onnxruntime's quantizer would give a second time, and tensors that it would take from under others.

It makes the names of what it adds out of those that are there, and does not look whether they are free: weights `w`
with a scale of the model's own called `w_scale` beside them would be multiplied by the wrong one of the two.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, MutableSequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MADE = (
    "_scale",
    "_zero_point",
    "_quantized",
    "_quantized_scale",
    "_quantized_zero_point",
    "_QuantizeLinear_Input",
    "_QuantizeLinear_Output",
    "_DequantizeLinear_Output",
    "_output_quantized",
    "_output_quantized_cast_output",
    "_MatMul",
)
"""What onnxruntime adds to a tensor's name, static or dynamic."""


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or a longer one, that is not taken and that nothing taken could be made from."""
    while name in taken or any(name + added in taken for added in MADE):
        name += "_"
    return name


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from all_graphs(inner)


def read_inside(graph: onnx.GraphProto) -> set[str]:
    """Names that graphs inside of nodes read."""
    _, *inner = all_graphs(graph)
    return {name for one in inner for node in one.node for name in node.input}


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Puts nodes behind those that make what they read; True where they were not.

    onnxruntime's quantizer sorts them by what they read themselves, without the graphs inside of them.
    """
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs: list[list[int]] = []
    for node in graph.node:
        inner = [one for attribute in node.attribute for one in (attribute.g, *attribute.graphs)]
        read = [
            *node.input,
            *(name for one in inner for each in all_graphs(one) for n in each.node for name in n.input),
        ]
        needs.append(sorted({made[name] for name in read if name in made}))
    if all(index > max(before, default=-1) for index, before in enumerate(needs)):
        return False
    order: dict[int, None] = {}
    for start in range(len(needs)):
        waiting = [start]
        while waiting:
            missing = [one for one in needs[waiting[-1]] if one not in order]
            if missing:
                waiting.extend(missing)
            else:
                order.setdefault(waiting.pop())
    nodes = [graph.node[index] for index in order]
    ordered = type(graph)()
    ordered.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(ordered.node)
    return True


def rename_clashing(model: onnx.ModelProto) -> dict[str, str]:
    """Gives tensors other names where the quantizer would make theirs; inputs and outputs of the model keep theirs.

    Returns:
        New names by old ones.
    """
    graph = model.graph
    taken = set(tensor_names(graph))
    constants = {tensor.name for tensor in graph.initializer}
    fixed = {value.name for value in graph.input} - constants | {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    for name in sorted(taken):
        for base in (name.removesuffix(added) for added in MADE if name.endswith(added)):
            if base not in taken or {name, base} & renamed.keys():
                continue
            if {name, base} <= fixed:
                taken.add(_read_apart(graph, base, taken))
                continue
            other = base if name in fixed else name
            renamed[other] = free_name(f"{other}_", taken)
            taken.add(renamed[other])
    _rename(graph, renamed)
    return renamed


def read_apart(model: onnx.ModelProto) -> None:
    """Lets nodes read a copy of what the quantizer would round or rename for others too.

    That is an input that the model hands out as it is, which would come to be made of itself, and what the model
    hands out, or a graph inside of a node reads, in front of a clipping: it would get the range of what is clipped.
    """
    graph = model.graph
    taken = set(tensor_names(graph))
    clipped = {node.input[0] for node in graph.node if node.op_type in ("Relu", "Clip")}
    made = {name for node in graph.node for name in node.output}
    ends = {value.name for value in graph.output}
    for name in sorted(ends & ({value.name for value in graph.input} | (clipped & made))):
        taken.add(_read_apart(graph, name, taken))
    for name in sorted(clipped & made & read_inside(graph)):
        copy = free_name(f"{name}_", taken)
        taken.add(copy)
        _, *inner = all_graphs(graph)
        for one in inner:
            rename_reads(one, {name: copy})
        _copy_behind(graph, name, copy)


def tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of all tensors of a graph and of those inside of its nodes."""
    for one in all_graphs(graph):
        yield from (tensor.name for tensor in one.initializer)
        yield from (value.name for value in (*one.input, *one.output))
        yield from (name for node in one.node for name in (*node.input, *node.output) if name)


def _read_apart(graph: onnx.GraphProto, name: str, taken: Container[str]) -> str:
    """Lets all nodes read a copy of an input or output of the model; the copy's name."""
    copy = free_name(f"{name}_", taken)
    for one in all_graphs(graph):
        rename_reads(one, {name: copy})
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is None:
        _copy_behind(graph, name, copy)
        return copy
    maker.output[list(maker.output).index(name)] = copy
    _copy_behind(graph, copy, name, described=name)
    return copy


def _copy_behind(graph: onnx.GraphProto, name: str, copy: str, *, described: str = "") -> None:
    """Adds the node that copies a tensor, behind the one that makes it; `described`: which of the two has a type."""
    from onnx import helper

    place = next((index + 1 for index, node in enumerate(graph.node) if name in node.output), 0)
    graph.node.insert(place, helper.make_node("Identity", [name], [copy], name=f"copy of {name}"))
    known = next((v for v in (*graph.input, *graph.output, *graph.value_info) if v.name == (described or name)), None)
    if known is not None:
        value = graph.value_info.add()
        value.CopyFrom(known)
        value.name = name if described else copy


def rename_reads(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Lets the nodes of one graph read other tensors, by the names of those that they read."""
    for node in graph.node:
        _replace(node.input, names)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    if not names:
        return
    for one in all_graphs(graph):
        for node in one.node:
            _replace(node.input, names)
            _replace(node.output, names)
        described: Iterable[onnx.ValueInfoProto | onnx.TensorProto]
        described = (*one.initializer, *one.input, *one.output, *one.value_info)
        for value in described:
            value.name = names.get(value.name, value.name)


def _replace(names: MutableSequence[str], by: Mapping[str, str]) -> None:
    for index, name in enumerate(names):
        if name in by:
            names[index] = by[name]
