"""Names of tensors in a .tflite file: made up for a converter, and the user's afterwards."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from targets._tflite import operator_kinds


def placeholder(side: str, index: int) -> str:
    """A name that converters take."""
    return f"{side}_{index}"


def give_names(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Replaces placeholders in a file's signature by names, and names tensors.

    Args:
        path: the file, whose signature has `placeholder("input", 0)` and so on.
        inputs: names.
        outputs: names.
    """
    flatbuffer_utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    model = flatbuffer_utils.read_model(str(path))
    (signature,) = model.signatureDefs
    names = {placeholder("input", index): name for index, name in enumerate(inputs)}
    names |= {placeholder("output", index): name for index, name in enumerate(outputs)}
    for entry in (*signature.inputs, *signature.outputs):
        entry.name = names[text(entry.name)]
    _name_tensors(model)
    path.unlink()
    flatbuffer_utils.write_model(model, str(path))


def _name_tensors(model: Any) -> None:
    """Calls the tensors at the edge as the signature does, and results of operators by type and number.

    The names that converters give are made of their own insides; an operator goes by the name of its first result.
    """
    (signature,) = model.signatureDefs
    graph = model.subgraphs[int(signature.subgraphIndex)]  # Others are bodies of loops.
    names = {int(entry.tensorIndex): text(entry.name) for entry in (*signature.outputs, *signature.inputs)}
    taken = set(names.values())

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for index, name in _results(model, graph):
        if index not in names:
            names[index] = fresh(name)
    # A constant may go by what the user calls an output, and the quantizer wants every name once.
    for index, tensor in enumerate(graph.tensors):
        if index not in names:
            names[index] = fresh(text(tensor.name))
    for index, name in names.items():
        graph.tensors[index].name = name
    for inside, body in enumerate(one for one in model.subgraphs if one is not graph):
        for index, name in _results(model, body):
            body.tensors[index].name = fresh(f"inside_{inside}_{name}")


def _results(model: Any, graph: Any) -> Iterator[tuple[int, str]]:
    """Indices of what a graph's operators give, and names made of their types and numbers."""
    for number, (kind, operator) in enumerate(zip(operator_kinds(model, graph), graph.operators, strict=True)):
        for place, index in enumerate(map(int, operator.outputs)):
            yield index, f"{kind.lower()}_{number}" + (f"_{place}" if place else "")


def text(name: bytes | str) -> str:
    """A flatbuffer's text, which is read as bytes and written as text."""
    return name.decode() if isinstance(name, bytes) else name
