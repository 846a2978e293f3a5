"""A metric's own Python file: what it imports from beside it, its digest, and its import."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from exporter.artifacts import digest_of, file_digest


def code_digest(file: Path) -> str:
    """SHA-256 over a file and the files beside it that it imports, directly or not."""
    return digest_of([file_digest(path) for path in (file, *neighbours(file).values())])


def module_digest(name: str) -> str | None:
    """SHA-256 over the package of an importable module and, unless it is installed, what it imports beside it.

    Nothing is imported; None where there is no such module.
    """
    try:
        top = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if top is None:
        return None
    folders = [Path(place) for place in top.submodule_search_locations or ()]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    if not files and top.origin is not None and top.has_location:
        files = [Path(top.origin)]
    if not files:
        return None
    root = folders[0].parent if folders else files[0].parent
    beside = {} if {"site-packages", "dist-packages"} & set(root.parts) else _reached(files, root)
    return digest_of([file_digest(path) for path in (*files, *beside.values())])


def neighbours(file: Path) -> dict[str, Path]:
    """Files in a file's folder that it imports, directly or not, by dotted name; a package counts as a whole.

    The files are read, not run; one that is no Python imports nothing.
    """
    return _reached([file], file.parent)


def _reached(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """What files import from a folder, directly or not, without themselves."""
    found: dict[str, Path] = {}
    known, waiting = set(files), list(files)
    while waiting:
        for name in _imported(waiting.pop()):
            for dotted, path in _files(folder, name):
                if dotted not in found and path not in known:
                    found[dotted] = path
                    waiting.append(path)
    return dict(sorted(found.items()))


def load_file(file: Path) -> ModuleType:
    """Imports a Python file under a name of its own; what lies beside it comes before modules of equal name.

    Raises:
        ImportError: it is no Python file; also whatever the file itself raises.
    """
    spec = importlib.util.spec_from_file_location(f"_metric_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    for name, path in neighbours(file).items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and Path(loaded).resolve() != path.resolve():
            del sys.modules[name]
    folder = str(file.parent)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def _imported(file: Path) -> Iterator[str]:
    """First parts of the names that a file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # Importing it will say so, with the line.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _files(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    package = folder / name
    if package.is_dir():
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
    elif (module := folder / f"{name}.py").is_file():
        yield name, module
