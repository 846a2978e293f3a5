"""The inputs of a model as its data show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast, get_args

import numpy as np

from exporter.artifacts import BATCH, DType, Preprocessing, TensorSpec
from exporter.data.columns import ColumnSource
from exporter.data.convert import needs_preprocessing
from exporter.data.preprocess import apply_to_arrays
from exporter.data.source import open_source
from exporter.data.values import Problem, Source, Wanted, labels_of
from exporter.errors import DataError, closest
from exporter.plan_types import DataPlan

if TYPE_CHECKING:
    from exporter.data.values import Array


def infer_inputs(
    plan: DataPlan,
    *,
    labels: str | None,
    preprocessing: Mapping[str, Preprocessing],
    batch: str | int = BATCH,
) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes of the inputs, from array headers, the first image, or the first yielded dict.

    Everything that is neither `labels` nor ignored is an input. Axis 0 of an array counts samples and becomes
    `batch`; raw pixels with preprocessing become float32 in the model's layout; float64 becomes float32.

    Args:
        plan: the section of the plan that names the data.
        labels: name of the array with labels; by default what an `[evaluation]` section says.
        preprocessing: input name -> preprocessing.
        batch: what axis 0 is: a name for a dynamic axis, or a fixed size.

    Returns:
        One spec per input, in the order of the data.

    Raises:
        DataError: the data cannot be read, have no inputs, or preprocessing names none of them.
        MissingError: images without Pillow.
    """
    wanted = Wanted(plan=plan, labels=labels_of(plan, labels), preprocessing=preprocessing)
    source = open_source(wanted)
    specs: list[TensorSpec] = []
    for name, sample in _first_samples(source, wanted):
        try:
            specs.append(_spec(wanted.input_name(name), sample(), source, preprocessing, batch))
        except Problem as problem:
            raise DataError(
                f"input '{wanted.input_name(name)}' {problem.text}", where=plan.data, hint=problem.hint
            ) from problem
    names = [spec.name for spec in specs]
    if not specs:
        raise DataError("the data have no array that could be an input", where=plan.data)
    if len(set(names)) < len(names):
        raise DataError(f"several arrays are named or renamed alike: {', '.join(names)}", where=plan.data)
    for name in preprocessing:
        if name not in names:
            text = f"preprocessing is given for '{name}', which is not in the data{closest(name, names)}"
            raise DataError(text, where=plan.data, hint="correct the name, or map it with `rename`")
    return tuple(specs)


def has_array(plan: DataPlan, name: str) -> bool:
    """Whether data have an array of this name.

    Args:
        plan: the section of the plan that names the data.
        name: of the array, in the data.

    Raises:
        DataError: the data cannot be read.
        MissingError: images without Pillow.
    """
    wanted = Wanted(plan=plan)
    return any(found == name for found, _ in _first_samples(open_source(wanted), wanted))


class _Lazy:
    """A sample that is made when it is asked for, so that a failure can be told with its name."""

    def __init__(self, source: Source, name: str, value: Array | None = None) -> None:
        self.source, self.name, self.value = source, name, value

    def __call__(self) -> Array:
        if self.value is not None:
            return self.value[:1] if self.value.ndim else self.value
        if not isinstance(self.source, ColumnSource):
            raise TypeError(f"{type(self.source).__name__} has no columns")
        for name, fault in self.source.faults:
            if name == self.name:
                raise fault
        column = self.source.columns[self.name]
        return np.zeros((1, *column.shape), column.dtype)


def _first_samples(source: Source, wanted: Wanted) -> Iterator[tuple[str, _Lazy]]:
    """(name in the data, its first sample with an axis for samples) of all that may be inputs."""
    if source.names is not None:
        yield from ((name, _Lazy(source, name)) for name in source.names if name != wanted.labels)
        return
    for chunk in source.chunks(1, 1, whole=True):
        if chunk.faults:
            raise DataError(chunk.faults[0].text, where=wanted.plan.data, hint=chunk.faults[0].hint)
        for name, value in chunk.values.items():
            if name != wanted.labels and not isinstance(value, Problem):
                yield name, _Lazy(source, name, value)
        return


def _spec(
    name: str,
    sample: Array,
    source: Source,
    preprocessing: Mapping[str, Preprocessing],
    batch: str | int,
) -> TensorSpec:
    wanted = preprocessing.get(name)
    if wanted is not None and not source.prepared and sample.ndim and needs_preprocessing(sample.dtype):
        sample = apply_to_arrays(sample, wanted)
    dtype = sample.dtype.newbyteorder("=").name
    if dtype == "float64":
        dtype = "float32"
    if dtype not in get_args(DType):
        raise Problem(f"has dtype {dtype}, which is not one that models take")
    shape = (batch, *sample.shape[1:]) if sample.ndim else ()
    return TensorSpec(name=name, dtype=cast(DType, dtype), shape=shape)
