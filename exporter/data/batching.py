"""Cutting a stream of samples into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.data.values import Batch

if TYPE_CHECKING:
    from exporter.data.values import Array


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive model-ready samples of one shape: (rows, ...) each."""

    count: int
    inputs: dict[str, Array]
    labels: Array | None = None

    @property
    def shapes(self) -> tuple[object, ...]:
        """What must be equal in samples that run together."""
        shapes = tuple((name, values.shape[1:]) for name, values in self.inputs.items())
        return shapes if self.labels is None else (*shapes, self.labels.shape[1:])

    def cut(self, start: int, stop: int) -> Rows:
        """Some of the samples, without copying them."""
        if start == 0 and stop == self.count:
            return self
        return Rows(
            count=stop - start,
            inputs={name: values[start:stop] for name, values in self.inputs.items()},
            labels=None if self.labels is None else self.labels[start:stop],
        )


def rebatch(stream: Iterable[Rows], size: int, *, exact: bool) -> Iterator[Batch]:
    """Batches of `size` samples, fewer where the shape changes or the stream ends.

    Args:
        stream: samples in order.
        size: samples in a batch, at least 1.
        exact: leave out batches that would be smaller.
    """
    pending: list[Rows] = []
    have = 0
    for rows in stream:
        if pending and pending[0].shapes != rows.shapes:
            if not exact:
                yield _joined(pending)
            pending, have = [], 0
        start = 0
        while start < rows.count:
            stop = min(rows.count, start + size - have)
            pending.append(rows.cut(start, stop))
            have += stop - start
            start = stop
            if have == size:
                yield _joined(pending)
                pending, have = [], 0
    if pending and not exact:
        yield _joined(pending)


def _joined(parts: list[Rows]) -> Batch:
    if len(parts) == 1:
        return Batch(inputs=dict(parts[0].inputs), labels=parts[0].labels)
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        labels=np.concatenate(labels) if labels else None,
    )
