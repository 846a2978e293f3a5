"""The values that the modules of this room trade in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from exporter.artifacts import Preprocessing
from exporter.plan_types import DataPlan, EvaluationPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Reader = Callable[[int], Array]


class Problem(Exception):
    """One thing wrong with the data: a finding that is collected and becomes a line of a DataError."""

    def __init__(self, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that run together.

    Attributes:
        inputs: input name -> model-ready array, samples along axis 0.
        labels: labels of these samples along axis 0, or None where the set has none.
    """

    inputs: dict[str, Array]
    labels: Array | None = None


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a complete pass over a set found.

    Attributes:
        samples: how many samples the set gives.
        notes: facts worth telling that are not errors.
        sample_digests: blake2b (16 bytes) of the model-ready bytes of each distinct sample.
    """

    samples: int
    notes: tuple[str, ...] = ()
    sample_digests: frozenset[bytes] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive raw samples under the names that the data use.

    Attributes:
        rows: how many samples; axis 0 of every array, except in a source whose batches are `whole`.
        values: raw arrays, or the reason why one could not be read.
        faults: what is wrong with the chunk itself; its values are then not used.
    """

    rows: int
    values: Mapping[str, Array | Problem]
    faults: tuple[Problem, ...] = ()


class Column(Protocol):
    """Raw samples of one name that can be read in order, again and again."""

    @property
    def count(self) -> int:
        """How many samples there are."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the first sample."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first sample."""

    @property
    def single(self) -> bool:
        """Whether samples may differ in shape, so that they must be read one by one."""

    def open(self) -> AbstractContextManager[Reader]:
        """Starts a pass: the reader gives the next n samples, (n, ...), and raises Problem where it cannot."""


class Source(Protocol):
    """A data set as it lies there, before renaming and conversion.

    `count` is None where only a pass can tell. `prepared` says that the preprocessing is already applied.
    """

    @property
    def count(self) -> int | None:
        """How many samples there are, where known without reading them."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the arrays, where known without reading them."""

    @property
    def faults(self) -> tuple[tuple[str, Problem], ...]:
        """(name, reason) of each array that cannot be used at all."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the set as a whole."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts about how the data were understood."""

    @property
    def prepared(self) -> bool:
        """Whether arrays come out of it already preprocessed."""

    def chunks(self, size: int, limit: int | None, *, whole: bool = False) -> Iterator[Chunk]:
        """One pass over at most `limit` samples, in chunks of about `size`."""

    def row_bytes(self) -> int:
        """Size of one raw sample, or 0 where not known."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is known about a set before it is opened.

    Attributes:
        plan: the section of the plan.
        labels: name of the array with labels.
        inputs: input names of the model; empty when they are to be inferred.
        preprocessing: input name -> preprocessing.
        class_names: names of the classes in the order of the model's.
    """

    plan: DataPlan
    labels: str | None = None
    inputs: tuple[str, ...] = ()
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def input_name(self, name: str) -> str:
        """The model's name for an array of the data."""
        return self.plan.rename.get(name, name)

    def is_known(self, name: str) -> bool:
        """Whether the plan or the model speaks of an array of this name."""
        return (
            self.input_name(name) in (*self.inputs, *self.preprocessing)
            or name in self.plan.rename
            or name == self.labels
        )

    def sole_input(self) -> str:
        """What the one input is called in data that do not name it."""
        if len(self.inputs) == 1:
            return self.inputs[0]
        if len(self.preprocessing) == 1:
            return next(iter(self.preprocessing))
        return "input"


def labels_of(plan: DataPlan, labels: str | None) -> str | None:
    """The name of the label array: the caller's, else the plan's own."""
    if labels is None and isinstance(plan, EvaluationPlan):
        return plan.labels
    return labels
