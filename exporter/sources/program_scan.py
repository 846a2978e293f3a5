"""What torch would execute while it reads a `.pt2` archive, looked for before it does.

An archive is data, but torch turns parts of it into code: pickled weights, constants and sample inputs; symbolic
expressions, which sympy evaluates; names, from which the module's source is generated; operator names, which are
looked up in torch; and compiled libraries, which are loaded. Each part must be of the plain kind that
`torch.export.save` writes.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.errors import ModelError, shorten
from exporter.sources.weights import pickle_refused

MAX_JSON = 1 << 30
"""Bytes of one JSON member."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_PLAIN = re.compile(r"[\w.+\-:/<>\[\] ]*\Z", re.ASCII)
_NAMES = frozenset({"name", "as_name", "forward_arg_names"})
_INERT = frozenset({"metadata", "guards_code", "out_spec", "as_string", "as_strings"})
"""Not read as code: source positions; guards, which are never asked for; keys of outputs; constants."""
_OPERATORS = frozenset({
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt",
    "ge", "and_", "or_", "not_", "xor", "getitem", "lshift", "rshift", "invert", "truth", "index",
})  # fmt: skip
# torch.ops has methods too, which import modules and load libraries; and one operator opens files by name.
_TARGETS = re.compile(
    r"(torch\.ops(?!\.(import_module|load_library|loaded_libraries)\b)(?!\.aten\.from_file\b)"
    r"(\.(?!__)[A-Za-z_]\w*){2,3}|math\.[a-z]\w*|torch\._?sym_\w+|torch\.(sym|math)\.\w+|#\w+:[\w.:]+)\Z",
    re.ASCII,
)
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "floor", "ceiling", "Abs",
    "Mod", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Xor", "Equality", "Unequality",
    "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Piecewise", "ExprCondPair", "Tuple",
    "sqrt", "log", "exp", "sin", "cos", "tan", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
    "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat", "Identity",
})  # fmt: skip
_VALUES = frozenset({"true", "false", "oo", "zoo", "nan", "int_oo", "pi", "E"})
_SYMBOL = re.compile(r"[a-z]+\d+\Z")
_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?\Z", re.IGNORECASE)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Tuple,
    ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.keyword,
)  # fmt: skip


def scan_program(path: Path, *, allow_pickle: bool) -> None:
    """Refuses an archive that is not what `torch.export.save` writes, or that would run code.

    Raises:
        ModelError: naming the member and what was found in it.
    """
    root = _check_members(path)
    if allow_pickle:
        return
    import torch

    try:
        reader = torch._C.PyTorchFileReader(str(path))  # the reader that torch itself will use
        names = list(reader.get_all_records())
    except RuntimeError as error:
        raise _damaged(path, error) from error
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise _runs_code(path, f"{root}/{name}", "it holds compiled code")
        if name.startswith(("data/weights/", "data/constants/", "data/sample_inputs/")):
            _check_payload(path, name, reader)
        elif name.startswith("models/"):
            for fault in _program_faults(_json(path, name, reader)):
                raise _runs_code(path, name, fault)


def _check_members(path: Path) -> str:
    """Checks names and sizes; returns the folder that all members lie in."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from error
    names = [member.filename for member in members]
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
            raise ModelError("the archive has a member that leads out of it", where=f"{path}, member {name!r}")
    if len({name.lower() for name in names}) != len(names):
        raise ModelError("the archive has two members of one name", where=str(path), hint="save it again")
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size:
        # torch stores members as they are, so that they can be mapped into memory.
        raise ModelError(
            "the archive has oversized members",
            where=str(path),
            why=f"it has {path.stat().st_size} bytes and would unpack to {total}; torch does not compress",
            hint="save it again with torch.export.save",
        )
    roots = {name.split("/")[0] for name in names}
    if len(roots) != 1 or not any(name.endswith("/models/model.json") for name in names):
        older = "serialized_exported_program.json" in names
        raise ModelError(
            "the archive is no torch.export program"
            + (" of this format: it was written by an older torch" if older else ""),
            where=str(path),
            hint="save it with `torch.export.save(torch.export.export(model, inputs), 'model.pt2')`",
        )
    return roots.pop()


def _check_payload(path: Path, name: str, reader: Any) -> None:
    if name.endswith(".json"):
        for key, entry in _entries(_json(path, name, reader)):
            stored = str(entry.get("path_name", ""))
            if entry.get("use_pickle") is not False or "tensor_meta" not in entry:
                raise pickle_refused(path, f"'{key}' is stored as a pickle", f"member {name}")
            if "/" in stored or not _PLAIN.match(stored) or not stored.startswith(("weight_", "tensor_")):
                raise _runs_code(path, name, f"'{key}' is stored in {stored!r}, which is no tensor file")
    elif name.endswith(".pt"):
        import torch

        data = reader.get_record(name)
        if not data:
            return
        try:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            raise pickle_refused(path, error, f"member {name}") from error


def _entries(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    inner = config.get("config") if isinstance(config, dict) else None
    if isinstance(inner, dict):
        yield from ((key, value if isinstance(value, dict) else {}) for key, value in inner.items())


def _json(path: Path, name: str, reader: Any) -> Any:
    if reader.get_record_size(name) > MAX_JSON:
        raise ModelError("the archive has oversized members", where=f"{path}, member {name}")
    try:
        return json.loads(reader.get_record(name))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _program_faults(value: Any, key: str = "") -> Iterator[str]:
    """Strings of a serialized program that torch would treat as code and that are not of the plain kind."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _PLAIN.match(name):
                yield f"the name {shorten(repr(name), 80)} is not plain"
            if name not in _INERT:
                yield from _program_faults(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _program_faults(item, key)
    elif isinstance(value, str):
        fault = _string_fault(value, key)
        if fault:
            yield f"{fault}: {shorten(repr(value), 120)}"


def _string_fault(text: str, key: str) -> str | None:
    if key == "expr_str":
        return None if is_plain_expression(text) else "an expression is not arithmetic"
    if key in ("target", "as_operator"):
        operator = text.removeprefix("_operator.")
        plain = operator in _OPERATORS if operator != text else bool(_TARGETS.match(text))
        return None if plain else "an operator is not one of torch.ops"
    if key == "in_spec":
        return None if _input_names_are_plain(text) else "a name of an input is not plain"
    if key in _NAMES:
        return None if text == "" or _IDENTIFIER.match(text) else "a name is not an identifier"
    return None if _PLAIN.match(text) else "a name is not plain"


def _input_names_are_plain(spec: str) -> bool:
    """Whether all strings of a pytree specification, nested JSON included, can be spliced into source."""
    if not spec:
        return True
    try:
        waiting = [json.loads(spec)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                waiting += value
            elif isinstance(value, str) and not re.fullmatch(r"[\w.]*", value, re.ASCII):
                waiting.append(json.loads(value))
    except (ValueError, RecursionError):
        return False
    return True


def is_plain_expression(text: str) -> bool:
    """Whether an expression has only numbers, symbols, arithmetic and the functions of symbolic shapes."""
    if len(text) > 100_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
        return all(_is_plain_node(node) for node in ast.walk(tree)) and _power_depth(tree) <= 2
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        strings = [a for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        allowed = {"Symbol": _IDENTIFIER, "Float": _NUMBER}.get(name)
        return (
            name in _FUNCTIONS
            and all(isinstance(keyword.value, ast.Constant) and keyword.arg for keyword in node.keywords)
            and all(allowed is not None and allowed.match(str(string.value)) for string in strings)
            and (name not in _POWERS or _is_small_power(node.args))
        )
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or node.id in _VALUES or bool(_SYMBOL.match(node.id))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small_power([node.left, node.right])
    if isinstance(node, ast.Constant):
        # Strings stand in calls only, where they were looked at.
        return isinstance(node.value, int | float | str) and not (
            isinstance(node.value, str) and not (_IDENTIFIER.match(node.value) or _NUMBER.match(node.value))
        )
    return isinstance(node, _NODES)


def _is_small_power(operands: list[ast.expr]) -> bool:
    """Numbers raised to large powers would keep sympy busy for ever."""
    if len(operands) != 2:
        return False
    return all(
        not (isinstance(n, ast.Constant) and isinstance(n.value, int | float) and abs(n.value) > 64)
        for n in ast.walk(operands[1])
    )


def _power_depth(node: ast.AST) -> int:
    inner = max((_power_depth(child) for child in ast.iter_child_nodes(node)), default=0)
    operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS
    return inner + (operator or call)


def _runs_code(path: Path, member: str, what: str) -> ModelError:
    return ModelError(
        "the exported program is refused: it could run code when it is read",
        where=f"{path}, member {member}",
        why=what,
        hint="save it again from a model you trust; or, if you trust this file, pass `--allow-pickle` "
        "or set `[model] allow_pickle = true`",
    )


def _damaged(path: Path, error: object) -> ModelError:
    return ModelError(
        "the file is not a torch.export program, or is damaged",
        where=str(path),
        why=shorten(error, 160),
        hint="save it again with torch.export.save",
    )
