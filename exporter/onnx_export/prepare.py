"""A module of any calling convention as one that takes tensors in order and gives a flat tuple of tensors."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from exporter.artifacts import TensorSpec
from exporter.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How inputs, by their index in the signature, are passed to `forward()`."""

    positional: tuple[int, ...] = ()
    keywords: Mapping[str, int] = dataclasses.field(default_factory=dict)


class FlatModule(nn.Module):
    """Takes tensors in the order of the signature, gives a flat tuple of tensors."""

    def __init__(self, module: nn.Module, convention: Convention) -> None:
        super().__init__()
        self.inner = module
        self.convention = convention

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the module; a tensor that is returned twice, or is an input, is copied, so that each has a name."""
        seen = {id(tensor) for tensor in tensors}
        flat = []
        for _, tensor in flatten(self.call(*tensors)):
            flat.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(flat)

    def call(self, *tensors: Tensor) -> object:
        """Runs the module and gives its own result."""
        positional, keywords = self.convention.positional, self.convention.keywords
        return self.inner(
            *(tensors[index] for index in positional), **{name: tensors[index] for name, index in keywords.items()}
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A module that is ready to run and to export.

    Attributes:
        flat: the module, positional tensors in and a flat tuple out.
        inputs: names of its inputs, in order.
        output_names: the user's names of its outputs; empty for the module's own.
        from_program: whether it came from a torch.export program, whose axes are already decided.
    """

    flat: FlatModule
    inputs: tuple[str, ...]
    output_names: tuple[str, ...] = ()
    from_program: bool = False

    def names(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """Runs the module once and says what its outputs are called.

        Args:
            example: numpy arrays or tensors by input name.

        Raises:
            ModelError: an output is no tensor, names are not unique, or the user named another number of outputs.
        """
        with torch.inference_mode():
            found = list(flatten(self.flat.call(*tensors_of(self, example))))
        own = tuple(name for name, _ in found)
        if not own:
            raise ModelError("the model returns no tensor", where="forward()")
        if self.output_names and len(self.output_names) != len(own):
            raise ModelError(
                f"the plan names {len(self.output_names)} outputs, the model has {len(own)}",
                where="[model] outputs",
                why=f"the plan names {', '.join(self.output_names)}; the model gives {', '.join(own)}",
                hint="name all of them in this order, or remove `outputs` to keep the model's own names",
            )
        names = self.output_names or own
        twice = [name for name, count in Counter([*self.inputs, *names]).items() if count > 1]
        if twice:
            raise ModelError(
                f"the name {', '.join(map(repr, twice))} belongs to two inputs or outputs",
                where="[model] outputs",
                why=f"inputs are {', '.join(self.inputs)}; outputs are {', '.join(names)}",
                hint="name the outputs in the plan: `outputs = [...]` in [model], in the order above",
            )
        return names


def prepare_module(
    module: nn.Module | ExportedProgram, inputs: Sequence[TensorSpec], output_names: tuple[str, ...] = ()
) -> Prepared:
    """Maps the user's inputs to `forward()`: by name where all are its parameters, else by position.

    Args:
        module: a module, or a torch.export program.
        inputs: the signature's inputs, in the user's order.
        output_names: names of the outputs, in the order in which they are flattened; empty for the model's own.

    Raises:
        ModelError: the names fit no parameters and the count fits no positions.
    """
    from_program = isinstance(module, ExportedProgram)
    # Guards are source text that torch would compile; shapes are checked against the plan instead.
    inner = module.module(check_guards=False) if isinstance(module, ExportedProgram) else module
    if from_program:
        _settle(inner)
    else:
        inner.eval()
    names = tuple(spec.name for spec in inputs)
    convention = _of_program(module, names) if isinstance(module, ExportedProgram) else _of(inner.forward, names)
    flat = FlatModule(inner, convention)
    flat.training = False
    return Prepared(flat=flat, inputs=names, output_names=output_names, from_program=from_program)


def _settle(inner: nn.Module) -> None:
    """Lets whatever holds a program be switched to eval mode, or trained: the program's own mode was exported."""
    for name in ("train", "eval"):
        setattr(inner, name, types.MethodType(_itself, inner))


def _itself(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _of_program(program: ExportedProgram, names: tuple[str, ...]) -> Convention:
    """A program takes exactly the positional and keyword arguments that it was exported with."""
    positional, keywords = program.call_spec.in_spec.children()
    if not all(child.is_leaf() for child in (*positional.children(), *keywords.children())):
        raise ModelError(
            "the exported program takes tuples, lists or dicts of tensors",
            where="its inputs",
            hint="export it again from a module that takes each tensor as an argument of its own",
        )
    taken = tuple(program.graph_signature.user_inputs)
    count = positional.num_children
    if len(taken) != len(names) or not all(isinstance(name, str) for name in taken):
        raise _misfit(names, ", ".join(map(str, taken)))
    order = [names.index(str(name)) for name in taken] if set(taken) == set(names) else list(range(len(names)))
    return Convention(
        positional=tuple(order[:count]), keywords=dict(zip(keywords.context or (), order[count:], strict=True))
    )


def _of(forward: Callable[..., object], names: tuple[str, ...]) -> Convention:
    """By name where all names are parameters of `forward`, else in order."""
    in_order = Convention(positional=tuple(range(len(names))))
    try:
        takes = [p for p in inspect.signature(forward).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):
        return in_order
    named = {p.name: p for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in takes if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if names and all(name in named for name in names):
        missing = [name for name in required if name not in names]
        if not missing:
            return Convention(keywords={name: index for index, name in enumerate(names)})
        raise ModelError(
            f"forward() needs inputs that are not there: {', '.join(missing)}",
            where="[model.inputs]",
            why=f"the inputs are {', '.join(names)}; forward() takes {', '.join(p.name for p in takes)}",
            hint="add them to [model.inputs] and to the data, or give the parameters a default",
        )
    places = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = float("inf") if any(p.kind is p.VAR_POSITIONAL for p in takes) else len(places)
    only_by_name = [p.name for p in takes if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    needed = len(required) - len(only_by_name)
    if not only_by_name and needed <= len(names) <= most:
        return in_order
    shown = ", ".join(f"{p.name} (optional)" if p.default is not p.empty else str(p) for p in takes)
    fits = bool(required) and all(name in names for name in required)
    spare = [name for name in names if name not in named] if fits else []
    raise _misfit(names, shown, spare)


def _misfit(names: Sequence[str], takes: str, spare: Sequence[str] = ()) -> ModelError:
    """`spare` are those beside inputs that do fit."""
    listed = ", ".join(f'"{name}"' for name in spare)
    return ModelError(
        "the inputs do not fit the model's forward()",
        where="[model.inputs]",
        why=f"the inputs are {', '.join(names) or 'none'}; forward() takes {takes or 'nothing'}",
        hint="leave what is no input, as labels, out of [model.inputs], and say "
        f"--set 'calibration.ignore=[{listed}]'"
        if spare
        else "name the inputs like the parameters of forward(), or give as many as it takes, in its order",
    )


def tensors_of(prepared: Prepared, arrays: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Tensors in the order of the signature, from numpy arrays or tensors by name."""
    import numpy as np

    missing = [name for name in prepared.inputs if name not in arrays]
    if missing:
        raise ModelError(f"there are no data for the input {', '.join(missing)}", where="[model.inputs]")
    values = (arrays[name] for name in prepared.inputs)
    # A copy: torch warns about arrays that cannot be written to, and a model may write to its input.
    return tuple(v if isinstance(v, Tensor) else torch.from_numpy(np.array(v, order="C")) for v in values)


def flatten(value: object) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a model's result with their names.

    One tensor is `output`; a sequence gives `output_0`, `output_1`, ...; mappings, dataclasses and named tuples give
    their keys; what is nested is joined with dots; None is left out.

    Raises:
        ModelError: something in the result is no tensor.
    """
    if isinstance(value, Tensor):
        yield "output", value
        return
    children = _children(value)
    if children is None:
        raise _no_tensor(value, "the output")
    sequence = isinstance(value, list | tuple) and not hasattr(value, "_fields")
    for key, item in children:
        yield from _nested(item, f"output_{key}" if sequence else key)


def _nested(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if value is None:
        return
    if isinstance(value, Tensor):
        yield name, value
        return
    children = _children(value)
    if children is None:
        raise _no_tensor(value, f"the output '{name}'")
    for key, item in children:
        yield from _nested(item, f"{name}.{key}")


def _children(value: object) -> list[tuple[str, object]] | None:
    # A mapping first: outputs of transformers are dataclasses too, with fields that may be unset.
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return [(str(index), item) for index, item in enumerate(value)]
    return None


def _no_tensor(value: object, what: str) -> ModelError:
    kind = "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"
    return ModelError(
        f"{what} is no tensor but {kind}",
        where="the result of forward()",
        hint="return tensors only (in a tuple, dict or dataclass): wrap the model in the factory and drop the rest",
    )
