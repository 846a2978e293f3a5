"""Which member of a stack feeds which: names of inputs and outputs, and the order in which members run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from exporter.errors import ModelError, closest

Takes = Mapping[str, str]
"""A member's own input -> where it comes from: an input of the stack, or `member.output`."""


def output_name(label: str, own: str) -> str:
    """What a member's output is called in the stack."""
    return f"{label}.{own}"


def feeding(source: str, labels: Sequence[str]) -> str | None:
    """The member that a source belongs to, or None for an input of the stack."""
    label, dot, _ = source.partition(".")
    return label if dot and label in labels else None


def running_order(takes: Mapping[str, Takes], inputs: Sequence[str]) -> list[str]:
    """Members in an order in which what feeds another runs before it.

    Args:
        takes: what each member takes, by the member's name.
        inputs: of the stack.

    Raises:
        ModelError: a source is neither an input nor an output of a member, or members feed each other in a circle.
    """
    labels = list(takes)
    graph: dict[str, list[str]] = {}
    for label, wires in takes.items():
        before = graph.setdefault(label, [])
        for own, source in wires.items():
            feeder = feeding(source, labels)
            if feeder is not None:
                before.append(feeder)
            elif source not in inputs:
                raise ModelError(
                    f"'{label}' takes '{source}', which is neither an input nor the output of a member"
                    f"{closest(source, [*inputs, *labels])}",
                    where=f"[[merge.models]] {label}, inputs.{own}",
                    hint=f"inputs are {', '.join(inputs)}; outputs of members are written `member.output`",
                )
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ModelError(
            f"members feed each other in a circle: {' -> '.join(reversed(error.args[1]))}",
            where="[[merge.models]] inputs",
            hint="let one of them start from an input of the model",
        ) from error


def exposed(given: Mapping[str, Sequence[str]], takes: Mapping[str, Takes], expose: Sequence[str]) -> list[str]:
    """Names of the stack's outputs: those that no other member takes, and those asked for.

    Args:
        given: names of outputs by member, in the stack's order.
        takes: what each member takes.
        expose: outputs that are kept although another member takes them.

    Raises:
        ModelError: a name to expose, or one that a member takes, is no output.
    """
    every = [output_name(label, own) for label, names in given.items() for own in names]
    taken = {source for wires in takes.values() for source in wires.values() if feeding(source, list(given))}
    for source in [*sorted(taken), *expose]:
        if source not in every:
            raise ModelError(
                f"there is no output '{source}'{closest(source, every)}",
                where="[merge] expose" if source in expose else "[[merge.models]] inputs",
                hint=f"outputs of members: {', '.join(every)}",
            )
    return [name for name in every if name not in taken or name in expose]
