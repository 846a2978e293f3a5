"""Several torch models in one module: stacked, chained, or their outputs fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.errors import ModelError, closest, shorten
from exporter.merge.fusing import Fusion, fuse
from exporter.merge.wiring import Takes, exposed, output_name, running_order

Named = Callable[[object], Iterator[tuple[str, Tensor]]]
"""A module's own result as tensors with names."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One member.

    Attributes:
        label: its name in the stack.
        module: the member.
        takes: its own inputs and where they come from.
        positional: indices into `takes` that are passed in order.
        keywords: indices into `takes` that are passed by name.
        outputs: names of its outputs; by default its own.
    """

    label: str
    module: nn.Module
    takes: Takes
    positional: tuple[int, ...]
    keywords: Mapping[str, int]
    outputs: tuple[str, ...] = ()


class Composite(nn.Module):
    """Runs its members, each in its turn; takes tensors in order, gives a dict of outputs by name."""

    def __init__(
        self,
        parts: Sequence[Part],
        inputs: Sequence[str],
        named: Named,
        *,
        expose: Sequence[str] = (),
        fusion: Fusion | None = None,
    ) -> None:
        """Takes the members as they are.

        Args:
            parts: the members; outputs keep their order.
            inputs: names of the inputs, in order.
            named: names of a result's tensors.
            expose: outputs to keep although another member takes them.
            fusion: fuses the members' outputs, one with one in order, instead of giving all.

        Raises:
            ModelError: a member takes what is not there.
        """
        super().__init__()
        self.members = nn.Module()
        self.wires: dict[str, tuple[Takes, tuple[int, ...], Mapping[str, int], tuple[str, ...]]] = {}
        for part in parts:
            self.members.add_module(_attribute(part.label), part.module)
            self.wires[part.label] = (part.takes, part.positional, part.keywords, part.outputs)
        self.inputs = tuple(inputs)
        self.named = named
        self.expose = tuple(expose)
        self.fusion = fusion
        self.order = running_order({part.label: part.takes for part in parts}, inputs)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Runs all members.

        Args:
            tensors: one an input.

        Returns:
            Outputs by name: `member.output`, or the first member's names where outputs are fused.

        Raises:
            ModelError: a member takes an output that is not there, or outputs cannot be fused.
        """
        names, values = self._all(tensors)
        if self.fusion is not None:
            return _fused(names, values, self.fusion)
        takes = {label: wire[0] for label, wire in self.wires.items()}
        return {name: values[name] for name in exposed(names, takes, self.expose)}

    def each(self, *tensors: Tensor) -> list[Tensor]:
        """The first output of each member, before anything is fused."""
        names, values = self._all(tensors)
        return [values[output_name(label, own[0])] for label, own in names.items()]

    def _all(self, tensors: Sequence[Tensor]) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
        """Names of outputs by member, in the stack's order, and all values."""
        values = dict(zip(self.inputs, tensors, strict=True))
        names: dict[str, list[str]] = {}
        for label in self.order:
            given = self._run(label, values)
            names[label] = list(given)
            values |= {output_name(label, own): tensor for own, tensor in given.items()}
        return {label: names[label] for label in self.wires}, values

    def _run(self, label: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        takes, positional, keywords, outputs = self.wires[label]
        if missing := [source for source in takes.values() if source not in values]:
            raise ModelError(
                f"'{label}' takes '{missing[0]}', which is no output{closest(missing[0], list(values))}",
                where="[[merge.models]] inputs",
                hint=f"there are {', '.join(values)}",
            )
        taken = [values[source] for source in takes.values()]
        module = getattr(self.members, _attribute(label))
        chained = [source for source in takes.values() if source not in self.inputs]
        try:
            result = module(
                *(taken[index] for index in positional), **{own: taken[index] for own, index in keywords.items()}
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            # Whoever runs the whole speaks of a member's own faults, and whoever exports of the exporter's.
            if not chained or torch.compiler.is_exporting():
                raise
            given = ", ".join(f"{source} {list(values[source].shape)}" for source in takes.values())
            raise ModelError(
                f"'{label}' cannot be run on what it is fed with",
                where=f"[[merge.models]] {label}, inputs",
                why=f"{given}: {shorten(error)}",
                hint="feed it from an output of the shape that its input has",
            ) from error
        found = list(self.named(result))
        if outputs and len(outputs) != len(found):
            raise ModelError(
                f"the plan names {len(outputs)} outputs of '{label}', and it has {len(found)}",
                where=f"[[merge.models]] {label}, outputs",
                why=f"it gives {', '.join(name for name, _ in found)}",
            )
        return {name: tensor for name, (_, tensor) in zip(outputs or [n for n, _ in found], found, strict=True)}


def _fused(given: Mapping[str, Sequence[str]], values: Mapping[str, Tensor], fusion: Fusion) -> dict[str, Tensor]:
    (first, own), *_ = given.items()
    if other := next((label for label, names in given.items() if len(names) != len(own)), None):
        raise ModelError(
            f"'{first}' has {len(own)} outputs and '{other}' {len(given[other])}: they cannot be fused",
            where="[[merge.models]]",
        )
    return {
        name: fuse([values[output_name(label, names[index])] for label, names in given.items()], fusion)
        for index, name in enumerate(own)
    }


def _attribute(label: str) -> str:
    """A name that no attribute of a module has; other labels have other names."""
    stem = label.rstrip("_")
    # Longer twins move as well, so that the place that this one takes is free: `train` and `train_`.
    taken = any(hasattr(_EMPTY, stem + "_" * count) for count in range(len(label) - len(stem) + 1))
    return f"{label}_" if taken else label


_EMPTY = nn.Module()
