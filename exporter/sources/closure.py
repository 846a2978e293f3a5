"""Which local Python files a factory imports, found by reading them: nothing is executed.

What lies in the standard library is left out, and what lies in site-packages is represented by the version of
its distribution, so that a result is made anew exactly when code that the user edits or upgrades has changed.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


@dataclass(kw_only=True)
class Closure:
    """Local modules by dotted name, and third-party distributions by name."""

    modules: dict[str, Path] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)


def import_closure(name: str, file: Path | None, search: Sequence[str]) -> Closure:
    """Follows the imports of a module through all local modules.

    Args:
        name: dotted name of the module; for a file outside a package, any name.
        file: the module's file, or None to look it up by name.
        search: folders to look in before `sys.path`.
    """
    closure = Closure()
    waiting: list[tuple[str, Path]] = []
    if file is not None:
        closure.modules[name] = file
        waiting.append((name, file))
        # Importing a module runs the packages around it too.
        waiting += list(_resolve(name.rpartition(".")[0], search, closure))
    else:
        waiting += list(_resolve(name, search, closure))
    while waiting:
        module, path = waiting.pop()
        for wanted in _imports(module, path):
            waiting += list(_resolve(wanted, search, closure))
    return closure


def _imports(module: str, path: Path) -> Iterator[str]:
    """Dotted names that a file may import, relative ones made absolute."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # the import itself will say so, with the line
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                kept = parts[: len(parts) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            if base:
                yield base
                # `from package import x` imports the submodule x where there is one.
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _resolve(dotted: str, search: Sequence[str], closure: Closure) -> Iterator[tuple[str, Path]]:
    """Files newly found for a dotted name: those of its packages, then its own."""
    if not dotted:
        return
    parts = dotted.split(".")
    # A neighbour may have the name of a module of the standard library, and comes before it.
    if parts[0] in sys.stdlib_module_names and PathFinder.find_spec(parts[0], list(search)) is None:
        return
    spec = _top_level(parts[0], search)
    if spec is None or _is_third_party(spec):
        _record_distribution(parts[0], closure)
        return
    name = parts[0]
    for index in range(len(parts)):
        if index:
            locations = spec.submodule_search_locations
            name = f"{name}.{parts[index]}"
            found = PathFinder.find_spec(name, list(locations)) if locations is not None else None
            if found is None:
                return
            spec = found
        if spec.origin and spec.has_location and name not in closure.modules:
            closure.modules[name] = Path(spec.origin)
            yield name, Path(spec.origin)


def _top_level(name: str, search: Sequence[str]) -> ModuleSpec | None:
    found = PathFinder.find_spec(name, list(search))
    if found is not None and (found.origin or found.submodule_search_locations):
        return found
    for finder in sys.meta_path:  # editable installs bring finders of their own
        find = getattr(finder, "find_spec", None)
        spec = find(name, None) if find else None
        if isinstance(spec, ModuleSpec):
            return spec
    return None


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    return tuple(Path(path).resolve() for name in names if (path := sysconfig.get_path(name)))


def _is_third_party(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or [])
    if not places:
        return True  # built in or frozen
    return any(
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or any(path.is_relative_to(folder) for folder in _installed_folders())
        for path in (Path(place).resolve() for place in places)
    )


def _record_distribution(name: str, closure: Closure) -> None:
    try:
        closure.distributions[name] = importlib.metadata.version(name)
        return
    except importlib.metadata.PackageNotFoundError:
        pass
    for distribution in _distributions_by_package().get(name, ()):
        closure.distributions[distribution] = importlib.metadata.version(distribution)


@cache
def _distributions_by_package() -> dict[str, tuple[str, ...]]:
    found = importlib.metadata.packages_distributions()
    return {name: tuple(sorted(set(distributions))) for name, distributions in found.items()}
