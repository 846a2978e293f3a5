"""torch's export errors, said in the user's terms: which axis, in which input, in which line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exporter.artifacts import TensorSpec
from exporter.errors import StageError, shorten

_CONTROL_FLOW = ("GuardOnDataDependentSymNode", "UncapturedHigherOrderOpError", "TorchRuntimeError")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def export_failure(error: BaseException, inputs: Sequence[TensorSpec], dims: Mapping[str, str]) -> StageError:
    """Translates what torch.export or torch.onnx raised.

    Args:
        error: what was raised.
        inputs: the signature's inputs.
        dims: torch's name of an axis -> the user's name.
    """
    text = "\n".join(str(link) for link in _chain(error))
    fixed = {
        dims.get(name, name): size
        for name, size in re.findall(
            r"marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)", text
        )
    }
    if fixed:
        return specialised(fixed, inputs, why=_first_fault(text, dims))
    if "Constraints violated" in text:
        return StageError(
            "torch cannot export the model with its dynamic axes",
            where=", ".join(map(str, inputs)),
            why=_first_fault(text, dims),
            hint="write a number for the axis in `[model.inputs.NAME] shape`, or `[export] batch = N`",
        )
    names = {type(link).__name__ for link in _chain(error)}
    if names & set(_CONTROL_FLOW) or "data-dependent" in text:
        return StageError(
            "torch cannot export the model: its control flow depends on the data",
            where=_line(text, error),
            why=_first_line(error),
            hint="replace the Python `if` or loop with torch.where or torch.cond, or export the .onnx yourself "
            'and use it as `source = "model.onnx"`',
        )
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if operator:
        return StageError(
            f"the operator {operator[1]} has no ONNX form in torch's exporter",
            where=_line(text, error),
            why=_first_line(error),
            hint='replace it in the model, or export the .onnx yourself and use it as `source = "model.onnx"`',
        )
    return StageError(
        f"torch cannot export the model: {type(_root(error)).__name__}",
        where=_line(text, error),
        why=_first_line(error),
        hint='export the .onnx yourself and use it as `source = "model.onnx"`',
    )


def specialised(
    fixed: Mapping[str, str | int], inputs: Sequence[TensorSpec], *, why: str | None = None
) -> StageError:
    """The error for dynamic axes that the model works with at one size only.

    Args:
        fixed: axis name -> the size it was specialised to.
        inputs: the signature's inputs, to say where the axes are.
        why: torch's or the runtime's words.
    """
    axes = ", ".join(f"'{axis}' was specialised to {size}" for axis, size in fixed.items())
    places = [f"input '{s.name}', axis {i}" for s in inputs for i, dim in enumerate(s.shape) if dim in fixed]
    size = next(iter(fixed.values()))
    return StageError(
        f"the model works with one size of a dynamic axis only: axis {axes}",
        where="; ".join(places) or None,
        why=why,
        hint="make the model independent of that size (a Python `if` on a shape, a view or buffer of fixed size), "
        f"or fix the axis: write {size} for it in `[model.inputs.NAME] shape`"
        + (f", or `[export] batch = {size}`" if "batch" in fixed else ""),
    )


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _root(error: BaseException) -> BaseException:
    """The exception that torch's exporter wraps in a report of its own."""
    wrappers = ("TorchExportError", "ConversionError", "OnnxExporterError")
    return next((link for link in _chain(error) if type(link).__name__ not in wrappers), error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(_root(error)).splitlines() if line.strip()]
    return shorten(lines[0] if lines else type(_root(error)).__name__, 240)


def _first_fault(text: str, dims: Mapping[str, str]) -> str:
    """The first listed constraint, with the user's names of the axes."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    fault = next((line for line in lines if line.startswith(("You marked", "Not all values"))), lines[0])
    for name, shown in dims.items():
        fault = fault.replace(name, f"'{shown}'")
    return shorten(fault.partition(" If you're using")[0], 240)


def _line(text: str, error: BaseException) -> str | None:
    """`file:line` of the user's code that torch points at."""
    import traceback

    frames = [(file, line) for file, line, _ in _FRAME.findall(text)]
    frames += [(f.filename, str(f.lineno)) for f in reversed(traceback.extract_tb(_root(error).__traceback__))]
    own = [
        (file, line)
        for file, line in frames
        if "site-packages" not in file and not file.startswith("<") and "/exporter/onnx_export/" not in file
    ]
    return f"{own[0][0]}:{own[0][1]}" if own else None
