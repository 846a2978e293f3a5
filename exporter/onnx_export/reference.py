"""The torch model as the reference: run on numpy arrays, and held to give the same result each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.errors import ModelError, StageError, shorten
from exporter.onnx_export.compare import ROUNDING_HINT
from exporter.onnx_export.prepare import Prepared, flatten, tensors_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Session = Callable[[Arrays], dict[str, NDArray[np.generic]]]


def torch_session(prepared: Prepared) -> Session:
    """The module as a function from arrays by input name to arrays by output name.

    The function raises StageError when the module does, and ModelError when an output cannot be an array.
    """

    def run(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        tensors = tensors_of(prepared, arrays)
        try:
            with torch.inference_mode():
                found = list(flatten(prepared.flat.call(*tensors)))
        except ModelError:
            raise
        except Exception as error:
            shapes = ", ".join(
                f"{n} {t.dtype} {list(t.shape)}" for n, t in zip(prepared.inputs, tensors, strict=True)
            )
            raise StageError(
                f"the torch model raised {type(error).__name__}",
                where=f"forward() with {shapes}",
                why=shorten(error),
                hint="check the shapes and dtypes in [model.inputs] and the data",
            ) from error
        names = prepared.output_names or tuple(name for name, _ in found)
        if len(names) != len(found):
            raise ModelError(
                f"the plan names {len(names)} outputs, the model has {len(found)}", where="[model] outputs"
            )
        return {name: _array(tensor, name) for name, (_, tensor) in zip(names, found, strict=True)}

    return run


def mismatch_hint(prepared: Prepared) -> str:
    """What to do when ONNX differs from this model."""
    fused = (torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
    if any(isinstance(module, fused) for module in prepared.flat.modules()):
        # Only in eval mode, and only outside of an export, do these layers zero what is masked as padding.
        return (
            "torch's fused attention zeroes padded positions, which neither training nor an export does: call "
            "`torch.backends.mha.set_fastpath_enabled(False)` in the factory, or leave them out of the output"
        )
    return ROUNDING_HINT


def _array(tensor: torch.Tensor, name: str) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = tensor.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise ModelError(
            f"the output '{name}' has the element type {tensor.dtype}, which is not supported",
            where="the result of forward()",
            hint="convert it in the model, as in `output.float()`",
        ) from error
    return array


class _RandomOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            self.names[str(func).removeprefix("aten.").partition(".")[0]] = None
        return func(*args, **(kwargs or {}))


def check_eval(prepared: Prepared, example: Arrays) -> None:
    """Runs the module twice, with different seeds, and holds that the outputs are equal bit for bit.

    Eval mode is forced first.

    Raises:
        ModelError: outputs differ; the submodules in training mode and the random operators are named.
    """
    if not prepared.from_program:
        prepared.flat.inner.eval()
    training = [
        f"{name.removeprefix('inner.')} ({type(module).__name__})"
        for name, module in prepared.flat.named_modules()
        if module.training and not prepared.from_program
    ]
    session = torch_session(prepared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = session(example)
        torch.manual_seed(1)
        second = session(example)
    differing = [name for name, value in first.items() if value.tobytes() != second[name].tobytes()]
    if not differing:
        return
    watch = _RandomOperators()
    # Control flow cannot run while operators are watched; then there are no names to tell.
    with torch.random.fork_rng(devices=[]), suppress(StageError), watch:
        session(example)
    reasons = [f"in training mode despite eval(): {', '.join(training[:10])}"] if training else []
    reasons += [f"it draws random numbers with {', '.join(watch.names)}"] if watch.names else []
    raise ModelError(
        "the model is random in eval mode: two runs on the same inputs differ",
        where=f"output {', '.join(differing)}",
        why="; ".join(reasons) or "it keeps state between calls, or uses an operator that is not deterministic",
        hint="export the program from a model in eval mode: `model.eval()` before torch.export.export"
        if prepared.from_program
        else "use nn.Dropout rather than F.dropout, or pass `training=self.training` to it; do not override train()",
    )
