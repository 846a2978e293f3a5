"""A Python factory in: import, check the arguments, call, load the weights, switch to eval mode."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from exporter.artifacts import digest_of
from exporter.errors import ModelError, closest, shorten
from exporter.plan_types import ModelPlan
from exporter.sources.closure import import_closure
from exporter.sources.identify import search_path
from exporter.sources.reference import FactoryReference, parse_factory

if TYPE_CHECKING:
    from torch import nn


def load_factory(plan: ModelPlan) -> nn.Module:
    """Calls the factory that `plan.source` names and loads `plan.weights` into what it returns.

    Returns:
        The module in eval mode, with gradients off and element types left as they are.

    Raises:
        ModelError: the factory cannot be imported or called, does not return a module, or the weights do not fit.
    """
    from torch import nn

    reference = parse_factory(plan.source)
    with _importable(reference):
        factory = _attribute(_import(reference), reference)
        _check_arguments(factory, plan.args, reference)
        try:
            module = factory(**plan.args)
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"the factory {reference.shown} raised {type(error).__name__}",
                where=_user_frame(error, reference),
                why=shorten(error) or None,
                hint="call it in a Python shell to see the whole traceback",
            ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory {reference.shown} returned no torch.nn.Module but {_type_name(module)}",
            where=f"[model] source = {plan.source!r}",
            hint="return the module itself"
            + ("; this is a class: return an instance of it" if isinstance(module, type) else ""),
        )
    _check_fresh(module, plan, reference)
    if plan.weights is not None:
        from exporter.sources.weights import load_weights

        load_weights(module, plan.weights, allow_pickle=plan.allow_pickle)
    module.eval()
    module.requires_grad_(False)
    _settle_computed(module)
    _HANDED[module] = (plan.weights, _fingerprint(module))
    return module


def _settle_computed(module: nn.Module) -> None:
    """Takes the history of gradients off weights that old-style norms compute at every run: it cannot be copied."""
    from torch import Tensor

    for one in module.modules():
        for name, value in vars(one).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(one)[name] = value.detach()


_HANDED: WeakKeyDictionary[nn.Module, tuple[Path | None, tuple[object, ...]]] = WeakKeyDictionary()
"""Modules that factories returned and that are still there, with the weights in them and what they looked like."""


def _check_fresh(module: nn.Module, plan: ModelPlan, reference: FactoryReference) -> None:
    """Refuses a module that was returned before and is something else by now: two models would be one.

    Raises:
        ModelError: the factory keeps what it returns.
    """
    before = _HANDED.get(module)
    if before is None or before == (plan.weights, _fingerprint(module)):
        return
    raise ModelError(
        f"the factory {reference.shown} returned the same module again, which has other weights now",
        where=f"[model] source = {plan.source!r}",
        why="two models of this plan would be one object, with the weights that were loaded last",
        hint="make a new module in each call: take `functools.cache`, or the global that keeps it, away",
    )


def _fingerprint(module: nn.Module) -> tuple[object, ...]:
    """Changes when a tensor of the module is written to, or replaced by another."""
    return tuple(
        (name, id(tensor), 0 if tensor.is_inference() else tensor._version)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    )


@contextmanager
def _importable(reference: FactoryReference) -> Iterator[None]:
    """Puts the factory's folders first on `sys.path`, and lets its neighbours win over modules of equal name."""
    folders = search_path(reference)
    before = list(sys.path)
    if reference.file is not None:
        local = import_closure(reference.module, reference.file, folders).modules
        for name, path in local.items():
            if name.partition(".")[0] in sys.stdlib_module_names:
                continue  # What others loaded already is not taken away from them.
            loaded = getattr(sys.modules.get(name), "__file__", None)
            if loaded is not None and Path(loaded).resolve() != path.resolve():
                del sys.modules[name]
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in folders:
            if folder in sys.path and sys.path.count(folder) > before.count(folder):
                sys.path.remove(folder)


def _import(reference: FactoryReference) -> ModuleType:
    try:
        if reference.file is None:
            return importlib.import_module(reference.module)
        return _import_file(reference.file, reference)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if reference.file is None and missing and f"{reference.module}.".startswith(f"{missing}."):
            raise ModelError(
                f"there is no module '{missing}'",
                where=f"[model] source: {reference.shown}",
                hint=f"install it, run from the folder that holds it ({Path.cwd()} is searched), "
                "or name a file: `path/to/file.py:function`",
            ) from error
        raise ModelError(
            f"the factory's module cannot be imported: {type(error).__name__}",
            where=_user_frame(error, reference),
            why=shorten(error) or None,
            hint=f"install '{missing}' where edge-exporter is installed"
            if missing
            else "import it in a Python shell to see the whole traceback",
        ) from error


def _import_file(file: Path, reference: FactoryReference) -> ModuleType:
    package = reference.module.rpartition(".")[0]
    if package:
        importlib.import_module(package)
    # A name of its own: a user's `model.py` must not replace, nor be taken for, another module.
    unique = f"edge_exporter_source_{digest_of(str(file))[:12]}"
    name = f"{package}.{unique}" if package else unique
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, reference: FactoryReference) -> Callable[..., object]:
    found: Any = module
    for part in reference.attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            near = closest(part, names).removeprefix("; ")
            callables = [name for name in names if callable(getattr(found, name))]
            raise ModelError(
                f"{reference.file.name if reference.file else reference.module} has no '{part}'",
                where=f"[model] source: {reference.shown}",
                hint=near or (f"it has {', '.join(callables[:10])}" if callables else None),
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"'{reference.attribute}' is not callable: it is {_type_name(found)}",
            where=f"[model] source: {reference.shown}",
            hint="name a function or class that makes the model",
        )
    from torch import nn

    if isinstance(found, nn.Module):
        raise ModelError(
            f"'{reference.attribute}' is a module already made, not a factory",
            where=f"[model] source: {reference.shown}",
            hint=f"name a function that returns it: `def make(): return {reference.attribute}`",
        )
    result: Callable[..., object] = found
    return result


def _check_arguments(factory: Callable[..., object], args: Mapping[str, Any], reference: FactoryReference) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # some built-in callables do not tell
    takes = signature.parameters.values()
    named = [p for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    fixed = [p.name for p in takes if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    missing = [p.name for p in named if p.default is p.empty and p.name not in args] + fixed
    anything = any(p.kind is p.VAR_KEYWORD for p in takes)
    unexpected = [] if anything else [name for name in args if name not in names]
    if not missing and not unexpected:
        return
    faults = [f"needs {', '.join(repr(name) for name in missing)}"] if missing else []
    faults += [f"takes no '{name}'{closest(name, names)}" for name in unexpected]
    example = ", ".join(f"{name} = ..." for name in [*[n for n in args if n in names], *missing])
    raise ModelError(
        f"the factory {reference.shown} needs other arguments",
        where="[model] args",
        why="; ".join(faults) + f"; its signature is {reference.attribute}{signature}",
        hint=f"write `args = {{ {example} }}` in [model]" if example else "remove `args` from [model]",
    )


def _user_frame(error: BaseException, reference: FactoryReference) -> str:
    """`file:line` of the innermost frame in the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<"))
        and "site-packages" not in frame.filename
        and not frame.filename.startswith(str(Path(importlib.__file__).parent.parent))
    ]
    if not frames:
        return f"[model] source: {reference.shown}"
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}"


def _type_name(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"
