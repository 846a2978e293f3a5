"""What the steps that belong to the model leave in the store, and hand to each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from exporter.artifacts import Coverage, Fidelity, Lint, QuantScheme, Repair, Signature, Value
from exporter.target_api import Int8File, SchemeNeed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

CEILING_DB = 60.0
"""More than int8 reaches but by chance: files are not told apart above it."""


class SetFacts(Value, frozen=True, kw_only=True):
    """What checking one set found."""

    samples: int
    notes: tuple[str, ...]


class DataChecked(Value, frozen=True, kw_only=True):
    """data.json of the data step; beside it lie example.npz (one or two batches) and cases.npz (inputs of cases)."""

    calibration: SetFacts | None
    evaluation: SetFacts | None
    overlap: int
    example_digest: str
    cases_digest: str
    cases: int
    training: SetFacts | None = None
    taught_overlap: int = 0


class Inspected(Value, frozen=True, kw_only=True):
    """inspected.json: what a model file says about itself."""

    signature: Signature


class Exported(Value, frozen=True, kw_only=True):
    """export.json: the signature with the user's names, and how far ONNX is from torch (None for a ready file).

    `shared` are nodes before and after sub-graphs that occurred several times were made one.
    """

    signature: Signature
    max_relative_error: float | None
    batches_compared: int
    shared: tuple[int, int] | None = None


class FloatModel(msgspec.Struct, frozen=True, kw_only=True):
    """A float ONNX file in the store; `content` is the digest of it and of its signature."""

    path: Path
    content: str
    exported: Exported


class ReferenceFacts(Value, frozen=True, kw_only=True):
    """reference.json: how many batches, and a digest of the samples that they hold."""

    batches: int
    samples: str


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs of the trained model on the evaluation data: one group of arrays a batch, and its labels."""

    path: Path
    content: str
    batches: int

    def outputs(self) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """Outputs by name, batch after batch."""
        from exporter.pipeline.arrays import read_groups

        return read_groups(self.path, [f"{index}/outputs" for index in range(self.batches)])


class Int8Model(msgspec.Struct, frozen=True, kw_only=True):
    """An int8 ONNX file in the store, as a target takes it.

    Attributes:
        file: the file and how it was made.
        content: digest of what is stored.
        wanted: what the target asked for.
        prepared: the float file that it was quantized from; None for a dynamic one.
        repairs: what was tried because it failed the gate, or to make it faster.
    """

    file: Int8File
    content: str
    wanted: SchemeNeed
    prepared: Path | None = None
    lints: tuple[Lint, ...] = ()
    repairs: tuple[Repair, ...] = ()


class Int8Side(msgspec.Struct, frozen=True, kw_only=True):
    """One static int8 file as it was first made, before any repair.

    Attributes:
        target: that it was made for.
        variant: its name.
        scheme: how it was quantized.
        coverage: what is int8 in it.
        fidelity: against the trained model.
    """

    target: str
    variant: str
    scheme: QuantScheme
    coverage: Coverage
    fidelity: Fidelity

    def sqnr_db(self, output: str) -> float:
        """Of one output."""
        found = next(one.sqnr_db for one in self.fidelity.outputs if one.output == output)
        return CEILING_DB if found is None else min(found, CEILING_DB)

    def __str__(self) -> str:
        return f"{self.variant} of {self.target}"


def load_json(path: Path, kind: type[T]) -> T:
    """Reads a step's JSON; the store has checked its bytes."""
    return msgspec.json.decode(path.read_bytes(), type=kind)
