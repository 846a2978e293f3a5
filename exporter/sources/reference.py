"""`pkg.module:factory` and `file.py:factory`: what a source string refers to."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import ModelError

ACCEPTED = (
    "a factory (`file.py:function` or `pkg.module:function`), a torch.export program (`.pt2`), "
    "or an ONNX model (`.onnx`)"
)


@dataclass(frozen=True, kw_only=True)
class FactoryReference:
    """A callable in a Python file or in an importable module.

    Attributes:
        file: absolute path of the file, or None for an importable module.
        module: dotted name of the module; for a file that uses relative imports, its name in its package.
        attribute: name of the callable, dots allowed.
        package_root: folder that holds the file's outermost package; None unless the file needs it.
    """

    file: Path | None
    module: str
    attribute: str
    package_root: Path | None = None

    @property
    def shown(self) -> str:
        """The reference as a user would write it, without the folder."""
        return f"{self.file.name if self.file else self.module}:{self.attribute}"


def is_factory(source: str) -> bool:
    """Whether a source string names a callable rather than a model file."""
    head, colon, attribute = source.rpartition(":")
    # `C:\model.onnx` has a colon too; a callable's name has no separators.
    return bool(colon) and bool(head) and not any(mark in attribute for mark in "/\\") and len(head) > 1


def parse_factory(source: str) -> FactoryReference:
    """Splits `file.py:function` or `pkg.module:function`.

    Raises:
        ModelError: the file does not exist, or a name is not a Python name.
    """
    head, _, attribute = source.rpartition(":")
    if not all(part.isidentifier() for part in attribute.split(".")):
        raise ModelError(
            f"'{attribute}' is not the name of a factory",
            where=f"[model] source = {source!r}",
            hint="write the name of a function or class after the colon, as in `model.py:make_model`",
        )
    if not head.endswith(".py"):
        if not all(part.isidentifier() for part in head.split(".")):
            raise ModelError(
                f"'{head}' is neither a Python file nor a module name",
                where=f"[model] source = {source!r}",
                hint=f"a source is {ACCEPTED}",
            )
        return FactoryReference(file=None, module=head, attribute=attribute)
    file = Path(head)
    if not file.is_file():
        raise ModelError("the factory's file does not exist", where=str(file), hint=_similar(file))
    file = file.resolve()
    root, module = _package_of(file)
    return FactoryReference(file=file, module=module, attribute=attribute, package_root=root)


def _similar(file: Path) -> str | None:
    from exporter.errors import closest

    if not file.parent.is_dir():
        return f"there is no folder {file.parent}; paths in a plan are relative to the plan file"
    found = closest(file.name, [entry.name for entry in file.parent.glob("*.py")])
    return found.removeprefix("; ") or None


def _package_of(file: Path) -> tuple[Path | None, str]:
    """Root folder and dotted name, for a file inside a package that uses relative imports."""
    if not (file.parent / "__init__.py").is_file() or not _imports_relatively(file):
        return None, file.stem
    parts = [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _imports_relatively(file: Path) -> bool:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(tree))
