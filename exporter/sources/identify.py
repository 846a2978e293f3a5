"""What kind of source a plan names, and a digest of everything that its model depends on.

Cheap by design: a plan can be resolved and looked up in the store without importing torch or onnx.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporter.artifacts import digest_of, file_digest
from exporter.errors import ModelError, closest, shorten
from exporter.plan_types import ModelPlan
from exporter.sources.closure import import_closure
from exporter.sources.external_data import checked_external_files
from exporter.sources.reference import ACCEPTED, FactoryReference, is_factory, parse_factory

SourceKind = Literal["factory", "torch-export", "onnx"]
PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model source.

    Attributes:
        kind: how it is loaded.
        digest: hex SHA-256 of contents only; no path, time or host name goes into it.
        files: the files that were read for it.
    """

    kind: SourceKind
    digest: str
    files: tuple[Path, ...]


def identify(plan: ModelPlan) -> Source:
    """Says what `[model] source` is and digests what it depends on.

    For a factory: its file, the local modules that it imports, directly or not, the versions of third-party
    packages that these import, the function's name, its arguments, the weights and the files in `depends`.
    For a model file: its bytes, and those of an ONNX model's external data.

    Raises:
        ModelError: a file is missing, the suffix is unknown, or the source is a pickled module.
    """
    if is_factory(plan.source):
        return _identify_factory(plan, parse_factory(plan.source))
    path = Path(plan.source)
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise ModelError(
            f"a '{suffix}' file cannot be a model source: a whole pickled module runs code when it is read",
            where=f"[model] source = {plan.source!r}",
            hint='name the function that makes the model, `source = "model.py:make_model"`, and give this file as '
            "`weights` if it holds a state dict; or save the model with torch.export.save as .pt2",
        )
    if suffix not in (".pt2", ".onnx"):
        raise ModelError(
            f"the model source has an unknown form: {path.name!r}",
            where=f"[model] source = {plan.source!r}",
            hint=f"a source is {ACCEPTED}" + ("; add the function's name after a colon" if suffix == ".py" else ""),
        )
    _require(path, "the model file does not exist")
    if plan.weights is not None or plan.args:
        name = "weights" if plan.weights is not None else "args"
        raise ModelError(
            f"`{name}` belongs to a factory; a '{suffix}' file brings its own weights",
            where=f"[model] {name}",
            hint=f"remove `{name}` from [model]",
        )
    files = (path, *(checked_external_files(path) if suffix == ".onnx" else ()))
    digest = digest_of({"kind": suffix, "files": [file_digest(file) for file in files]} | _depends(plan))
    return Source(kind="torch-export" if suffix == ".pt2" else "onnx", digest=digest, files=(*files, *_flat(plan)))


def search_path(reference: FactoryReference) -> list[str]:
    """Folders that imports of a factory are looked up in before `sys.path`."""
    if reference.file is None:
        return [str(Path.cwd())]
    root = [str(reference.package_root)] if reference.package_root else []
    return [*root, str(reference.file.parent)]


def _identify_factory(plan: ModelPlan, reference: FactoryReference) -> Source:
    if reference.file is not None:
        _check_syntax(reference.file)
    if plan.weights is not None:
        _require(plan.weights, "the weights file does not exist")
    closure = import_closure(reference.module, reference.file, search_path(reference))
    contents = {
        "kind": "factory",
        "attribute": reference.attribute,
        # A file's own name says nothing about what it makes; those of the modules it imports do.
        "modules": {
            "" if path == reference.file else name: file_digest(path) for name, path in closure.modules.items()
        },
        "distributions": closure.distributions,
        "args": plan.args,
        "weights": file_digest(plan.weights) if plan.weights else None,
    }
    if reference.file is None:
        contents["module"] = reference.module
    files = [*closure.modules.values(), *([plan.weights] if plan.weights else []), *_flat(plan)]
    return Source(kind="factory", digest=digest_of(contents | _depends(plan)), files=tuple(files))


def _check_syntax(file: Path) -> None:
    try:
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ModelError(
            "the factory's file is not valid Python",
            where=f"{file}{line}",
            why=shorten(error.msg if isinstance(error, SyntaxError) else error),
        ) from error


def _require(path: Path, what: str) -> None:
    if path.is_file():
        return
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = closest(path.name, names).removeprefix("; ")
    raise ModelError(
        what if not path.exists() else f"{path.name!r} is not a file",
        where=str(path),
        hint=hint or "paths in a plan are relative to the plan file",
    )


def _flat(plan: ModelPlan) -> Iterable[Path]:
    for path in plan.depends:
        if path.is_dir():
            yield from sorted(entry for entry in path.rglob("*") if entry.is_file())
        else:
            _require(path, "a file named in [model] depends does not exist")
            yield path


def _depends(plan: ModelPlan) -> dict[str, list[str]]:
    return {"depends": [file_digest(path) for path in _flat(plan)]}
