"""Divergence from a reference, streamed over the evaluation data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from exporter.artifacts import Fidelity, OutputFidelity
from exporter.errors import InputError, StageError
from exporter.masks import masked_alike
from exporter.measure.channels import Channels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Floats = NDArray[np.float64]


WORST_DB = -300.0
"""SQNR of an output without a signal, or with values that are no numbers."""


class _Sums:
    """Running sums over pairs of values."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.error = 0.0
        self.dot = 0.0
        self.candidate = 0.0
        self.largest = 0.0

    def add(self, left: Floats, right: Floats, error: Floats) -> None:
        import numpy as np

        self.signal += float(np.vdot(left, left))
        self.candidate += float(np.vdot(right, right))
        self.dot += float(np.vdot(left, right))
        self.error += float(np.vdot(error, error))
        self.largest = max(self.largest, float(np.max(np.abs(error), initial=0.0)))

    @property
    def cosine(self) -> float:
        """Of both sides as vectors."""
        norm = math.sqrt(self.signal * self.candidate)
        return min(1.0, self.dot / norm) if norm > 0 else float(self.error == 0.0)


class _Divergence:
    """Running sums for one output."""

    def __init__(self) -> None:
        self.real = _Sums()
        self.masks = _Sums()
        self.channels = Channels()
        self.rows = 0
        self.agreeing = 0
        self.values = 0
        self.finite = 0
        self.masked = 0
        self.broken = 0

    def add(self, reference: NDArray[np.generic], candidate: NDArray[np.generic]) -> None:
        import numpy as np

        wanted, got = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
        # Masks put -inf (or NaN) into outputs on purpose: equal ones agree, and carry no signal.
        same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
        finite = np.isfinite(wanted)
        broken = finite & ~np.isfinite(got)
        # Nor do finite masks (-1e9), beside whose energy that of all other values would vanish.
        floating = np.issubdtype(reference.dtype, np.floating)
        masked = masked_alike(wanted, got) if floating else np.zeros(wanted.shape, bool)
        self.broken += int(np.count_nonzero(broken))
        self.values += wanted.size
        self.finite += int(np.count_nonzero(finite))
        self.masked += int(np.count_nonzero(masked))
        with np.errstate(invalid="ignore"):  # -inf minus -inf, which `same` takes out again.
            error = np.where(same | broken, 0.0, got - wanted)
        left, right = np.where(finite, wanted, 0.0), np.where(finite & ~broken, got, 0.0)
        if masked.any():
            self.masks.add(*(values[masked] for values in (left, right, error)))
            left, right, error = (np.where(masked, 0.0, values) for values in (left, right, error))
        self.real.add(left, right, error)
        if floating:
            self.channels.add(left, error, finite & ~masked)
        # Classes are second in maps (N, C, H, W), as torch's losses have them, else last.
        axis = 1 if wanted.ndim >= 4 else wanted.ndim - 1
        if wanted.ndim >= 2 and wanted.shape[axis] > 1:
            self.rows += wanted.size // wanted.shape[axis]
            self.agreeing += int(np.sum(wanted.argmax(axis) == got.argmax(axis)))

    def result(self, output: str, floating: bool) -> OutputFidelity:
        # Where all values are so large, they are no masks.
        sums = self.masks if self.masked == self.finite and not self.real.error else self.real
        return OutputFidelity(
            output=output,
            sqnr_db=WORST_DB if self.broken else sqnr_db(sums.signal, sums.error),
            cosine=sums.cosine,
            max_abs_error=sums.largest,
            top1_agreement=self.agreeing / self.rows if self.rows and floating else None,
            floating=floating,
            broken=self.broken,
            weakest=self.channels.weakest(),
            varying_db=self.channels.varying_db(),
        )


def sqnr_db(signal: float, error: float) -> float | None:
    """10 log10(signal power / error power) in dB; None when there is no error, -300 when there is no signal."""
    if error == 0.0:
        return None
    return max(WORST_DB, 10 * math.log10(signal / error)) if signal > 0 and math.isfinite(error) else WORST_DB


def measure_fidelity(
    pairs: Iterable[tuple[Arrays, Arrays]],
    *,
    reference: Literal["torch", "onnx"],
    reference_digest: str,
    data: Literal["evaluation", "calibration"],
) -> Fidelity:
    """Compares a candidate with its reference, batch by batch, in constant memory.

    Args:
        pairs: (reference outputs, candidate outputs) of each batch, by output name.
        reference: what the reference ran in.
        reference_digest: digest of the reference model.
        data: which data the batches came from.

    Raises:
        InputError: an output of the reference holds no finite value at all.
        StageError: an output is missing or has another shape.
    """
    import numpy as np

    sums: dict[str, _Divergence] = {}
    floating: dict[str, bool] = {}
    samples = 0
    for wanted, got in pairs:
        for name, expected in wanted.items():
            if name not in got or got[name].shape != expected.shape:
                shape = tuple(got[name].shape) if name in got else "nothing"
                raise StageError(
                    f"output '{name}' changed its shape",
                    why=f"{reference} gives {tuple(expected.shape)}, the converted model {shape}",
                )
            sums.setdefault(name, _Divergence()).add(expected, got[name])
            floating[name] = bool(np.issubdtype(expected.dtype, np.floating))
        samples += len(next(iter(wanted.values()))) if next(iter(wanted.values())).ndim else 1
    for name, divergence in sums.items():
        if divergence.values and not divergence.finite:
            raise InputError(
                f"output '{name}' of the trained model holds nothing but NaN or infinity on the {data} data",
                hint="look at the model's weights, and at the scale of its inputs ([model.inputs] preprocess)",
            )
    return Fidelity(
        reference=reference,
        reference_digest=reference_digest,
        samples=samples,
        data=data,
        outputs=tuple(divergence.result(name, floating[name]) for name, divergence in sums.items()),
    )
