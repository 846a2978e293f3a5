"""Attention heads: which channels are one head's, and which attributes of the model count on all of them being there.

Nothing about that is in a traced graph. Candidates are read off whole-number attributes near the projection, whatever
they are called, and each is tried: a model without a head has to answer as one whose output projection does not read
that head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from exporter.compress.groups import Cut

USUAL = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads")
"""Names that are tried first."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One way to divide a projection's channels.

    Attributes:
        units: channels that one head has, by head.
        counters: module, attribute, and what it counts of each head that is left: 1, or the head's channels.
    """

    units: tuple[tuple[int, ...], ...]
    counters: tuple[tuple[str, str, int], ...]


def possible_heads(module: nn.Module, name: str, cuts: Sequence[Cut], width: int) -> Iterator[Heads]:
    """Ways in which channels might be those of heads, the likeliest first; none where no linear layer reads them.

    Args:
        module: the model.
        name: of the layer that makes the channels.
        cuts: where they are taken from.
        width: how many there are; queries, keys and values of a fused projection are one after the other.
    """
    readers = [module.get_submodule(cut.name) for cut in cuts if cut.reads]
    inner = next((one.in_features for one in readers if isinstance(one, nn.Linear)), 0)
    if not inner or width % inner:
        return
    seen: set[Heads] = set()
    for owner in _owners(name):
        numbers = {key: value for key, value in vars(module.get_submodule(owner)).items() if type(value) is int}
        widths = tuple((owner, key) for key, value in numbers.items() if value == inner)
        for key in sorted(numbers, key=lambda key: key not in USUAL):
            value = numbers[key]
            if value < 1 or inner % value:
                continue
            # The attribute says how many heads there are, or how many channels one has.
            for size, counts in ((inner // value, ((owner, key, 1),)), (value, ())):
                for further in ((), tuple((*one, size) for one in widths)):
                    found = Heads(units=_units(width, inner, size), counters=(*counts, *further))
                    if 1 < len(found.units) < inner and found not in seen:
                        seen.add(found)
                        yield found


def _units(width: int, inner: int, size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(start + place for start in range(first, width, inner) for place in range(size))
        for first in range(0, inner, size)
    )


def _owners(name: str) -> list[str]:
    """The module that has the projection, and the one around it."""
    owner = name.rpartition(".")[0]
    return list(dict.fromkeys((owner, owner.rpartition(".")[0])))
