"""Runs, tests and measures the model in this folder.

Needs Python 3.9 or newer, numpy, and the runtime that the bundle was made for.
"""

# This file reads the command line, and runs no other file of the bundle unless it is the one that the manifest lists.

import sys

# Python puts this folder first on its path: a json.py or numpy.py beside this file would be imported instead of the
# real one. So it leaves the path before the first import, which even `from __future__ import` is.
if __name__ == "__main__" and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    del sys.path[0]

import argparse
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any, NamedTuple, Optional

# Bytecode written beside this file would be an added file of the bundle.
sys.dont_write_bytecode = True

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]

PACKAGE = "bundle_runner"
PROFILES = "profiles"
IMPORTABLE = (".py", ".pyc", ".pyd", ".so")
BROKEN, INTERRUPTED = 6, 130
EXAMPLES = """\
examples:
  python run.py                                what this bundle is
  python run.py --self-test                    does it compute what it should?
  python run.py --bench                        latency of every variant, here
  python run.py --bench --threads 2 --affinity 0,1 --json > profile.json
  python run.py --input x.npz --output y.npz   x.npz: one array for each input

exit codes: 0 done, 2 wrong command line, 3 input that does not fit, 4 numpy or
the runtime is missing, 6 the bundle does not hold what it claims
"""


class Contents(NamedTuple):
    """manifest.json, the size and SHA-256 of each file that it lists, and the files that it relies on."""

    manifest: dict[str, Any]
    listed: dict[str, tuple[int, str]]
    used: set[str]


def say(text: str) -> None:
    """Everything but results goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def _brief(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


# The files -------------------------------------------------------------------------------------------------


def read_manifest() -> Contents:
    """Reads manifest.json beside this file, and of it what concerns files.

    Raises:
        ValueError: it cannot be read or is no manifest of a bundle.
    """
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"manifest.json cannot be read: {_brief(error)}") from error
    try:
        if manifest["schema"] != 1:
            raise ValueError(f"manifest.json has schema {manifest['schema']!r}; this runner reads 1")
        listed = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        used = {"samples.npz", "run.py", "runtime.py", *(variant["main"] for variant in manifest["variants"])}
        used |= {f"runtime_{runtime['name']}.py" for runtime in manifest.get("other_runtimes", [])}
    except (KeyError, TypeError, AttributeError) as error:
        message = f"manifest.json is not a bundle's manifest: {type(error).__name__} {error}"
        raise ValueError(message) from error
    typed = all(type(size) is int and isinstance(digest, str) for size, digest in listed.values())
    if not typed or not all(isinstance(path, str) for path in (*listed, *used)):
        raise ValueError("manifest.json is not a bundle's manifest: a value has the wrong type or names nothing")
    return Contents(manifest, listed, used)


def is_code(path: str) -> bool:
    """Whether a listed file is one of the runner's modules."""
    return "/" not in path and path.endswith(".py")


def check_files(contents: Contents, wanted: Callable[[str], bool]) -> list[str]:
    """Compares size and SHA-256 of the files that the manifest lists; one problem for each that differs."""
    unlisted = sorted(contents.used - set(contents.listed))
    problems = [f"{name}: not listed in manifest.json" for name in unlisted if wanted(name)]
    for name, (size, digest) in sorted(contents.listed.items()):
        problem = _file_problem(name, size, digest) if wanted(name) else None
        problems += [f"{name}: {problem}"] if problem else []
    return problems


def _file_problem(name: str, size: int, digest: str) -> Optional[str]:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name or not relative.parts:
        return "not a path inside the bundle"
    path = HERE / relative
    if any(step.is_symlink() for step in [path, *path.parents] if HERE in step.parents):
        return "is a symbolic link"
    if not path.is_file():
        return "missing"
    found = hashlib.sha256()
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes instead of {size}"
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                found.update(block)
    except OSError as error:
        return f"cannot be read: {_brief(error)}"
    return None if found.hexdigest() == digest else "contents differ from the manifest's sha256"


def planted(contents: Contents) -> list[str]:
    """Files and folders beside this one that Python could import and the manifest does not list.

    They are not imported, since this folder left Python's path; but someone, or a mistake, put them there.
    """
    known = {PurePosixPath(name).parts[:1] for name in contents.listed} | {(PROFILES,)}
    added = [path for path in sorted(HERE.iterdir()) if (path.name,) not in known and _importable(path)]
    return [f"{path.name}: not listed in manifest.json, but Python could import it" for path in added]


def _importable(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix.lower() in IMPORTABLE
    try:
        return path.name.isidentifier() and any(file.suffix.lower() in IMPORTABLE for file in path.iterdir())
    except OSError:
        return True


class Source(SourceFileLoader):
    """Compiles a module each time anew: bytecode in a __pycache__ is not what the manifest lists."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file, and of nothing else."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class Siblings(MetaPathFinder):
    """Finds the listed modules of this folder by their path: nothing elsewhere can take their place."""

    def __init__(self, contents: Contents) -> None:
        self._names = [name for name in contents.listed if is_code(name)]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        """The file of `bundle_runner.NAME`."""
        package, _, name = fullname.rpartition(".")
        if package != PACKAGE or f"{name}.py" not in self._names:
            return None
        file = str(HERE / f"{name}.py")
        return spec_from_file_location(fullname, file, loader=Source(fullname, file))


def load_commands(contents: Contents) -> Any:
    """The module `commands`, in a package made of the files beside this one."""
    package = ModuleType(PACKAGE)
    package.__path__ = []
    sys.modules[PACKAGE] = package
    sys.meta_path.insert(0, Siblings(contents))
    return import_module(f"{PACKAGE}.commands")


# Command line ----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(
        prog="run.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = cli.add_mutually_exclusive_group()
    action.add_argument("--self-test", action="store_true", help="check all files, then every sample on each variant")
    action.add_argument("--bench", action="store_true", help="self-test, then measure latency, variants interleaved")
    action.add_argument("--input", type=Path, metavar="X.npz", help="run this npz file of model-ready inputs")
    action.add_argument("--footprint", metavar="VARIANT", help=argparse.SUPPRESS)
    cli.add_argument("--output", type=Path, metavar="Y.npz", help="where the outputs of --input go")
    cli.add_argument("--variant", metavar="NAME", help="a variant, or `all` (default but for --input)")
    cli.add_argument("--runtime", metavar="NAME", help="test or measure on this runtime alone")
    cli.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else")
    cli.add_argument("--threads", type=_whole(1), default=1, metavar="N", help="threads of an operator (default 1)")
    cli.add_argument("--affinity", type=_cpus, metavar="0,1", help="run on these CPUs only")
    how = cli.add_argument_group("when --bench stops: the first three are all met, or the time is over")
    how.add_argument("--min-samples", type=_whole(1), default=200, metavar="N", help="of each variant (default 200)")
    how.add_argument("--min-seconds", type=_number(0), default=1.0, metavar="S", help="(default 1)")
    how.add_argument("--ci-width", type=_number(1e-9), default=0.02, metavar="W",
                     help="95 %% interval of the median, relative (default 0.02)")  # fmt: skip
    how.add_argument("--max-seconds", type=_number(1e-9), default=20.0, metavar="S", help="(default 20)")
    how.add_argument("--warmup-seconds", type=_number(0), default=0.3, metavar="S", help="before it (default 0.3)")
    how.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the order of variants (default 0)")
    return cli


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return number


def _number(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} up")
        return value

    return number


def _cpus(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPU numbers such as 0,1")
    return tuple(sorted({int(part) for part in parts}))


def refuse(args: argparse.Namespace, problems: list[str]) -> int:
    """Reports files that differ; nothing was run."""
    lines = [f"  - {problem}" for problem in problems]
    if not args.self_test and not args.bench:
        say("\n".join(["error: the bundle does not hold what it claims", *lines]))
        return BROKEN
    if args.self_test and args.json:
        report = {"passed": False, "problems": problems, "runtime": None, "variants": [], "host": None}
        print(json.dumps(report, indent=2))
    text = "\n".join([*lines, "self-test FAILED"])
    print(text, file=sys.stderr if args.bench or args.json else sys.stdout)
    if args.bench:
        say("error: nothing was measured, because the self-test failed")
    return BROKEN


def act(args: argparse.Namespace) -> int:
    """Checks the files, then runs the command; returns its exit code."""
    try:
        contents = read_manifest()
    except ValueError as error:
        say(f"error: {error}")
        return BROKEN
    check = partial(check_files, contents)
    whole = args.self_test or args.bench
    problems = check(lambda path: True) + planted(contents) if whole else check(is_code)
    if problems:
        return refuse(args, problems)
    try:
        commands = load_commands(contents)
    except (OSError, SyntaxError, ImportError, ValueError) as error:
        say(f"error: the runner cannot be loaded: {_brief(error)}")
        return BROKEN
    code: int = commands.act(args, contents.manifest, check, EXAMPLES)
    return code


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that lacks a letter of some tensor's name must not end the run.
            stream.reconfigure(errors="backslashreplace")
    cli = parser()
    args = cli.parse_args(argv)
    if (args.input is None) != (args.output is None):
        cli.error("--input and --output go together")
    if args.input is not None and args.variant == "all":
        cli.error("--input runs one variant, not all")
    if args.runtime is not None and not (args.self_test or args.bench or args.footprint):
        cli.error("--runtime goes with --self-test and --bench")
    try:
        return act(args)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
