"""Data from a Python callable that returns, or yields, dicts of arrays."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.data.headers import unusable_dtype
from exporter.data.refs import PythonRef
from exporter.data.values import Chunk, Problem
from exporter.errors import DataError, closest, shorten

if TYPE_CHECKING:
    from exporter.data.values import Array

Yielded = dict[str, "Array"]


@dataclass
class _Passes:
    """What a callable yielded so far in this build.

    Attributes:
        sums: checksum of each item.
        ended: whether a pass came to an end, so that there are no more.
    """

    sums: list[int] = field(default_factory=list)
    ended: bool = False

    def same(self, index: int, arrays: Yielded | None) -> bool:
        """Whether an item, or the end (None), is what was there before; remembers what is new."""
        if arrays is None:
            known = index >= len(self.sums)
            self.ended = self.ended or known
            return known
        found = 0
        for name in sorted(arrays):
            array = arrays[name]
            found = zlib.crc32(repr((name, array.dtype.str, array.shape)).encode(), found)
            found = zlib.crc32(array.tobytes(), found)
        if index == len(self.sums) and not self.ended:
            self.sums.append(found)
        return index < len(self.sums) and self.sums[index] == found


_passes: dict[PythonRef, _Passes] = {}
"""Each build passes over its data several times, and compares what models answer in different passes."""


def forget_passes(ref: PythonRef) -> None:
    """Lets a callable yield other samples than before: another build may have begun, with other files."""
    _passes.pop(ref, None)


def rows_of(values: Yielded) -> int | None:
    """Samples in one yielded dict: the common length of axis 0, or None where there is none."""
    lengths = {array.shape[0] if array.ndim else None for array in values.values()}
    return lengths.pop() if len(lengths) == 1 else None


def source_file(ref: PythonRef) -> Path | None:
    """The file that holds the callable, found without executing it; None where it has none.

    Raises:
        DataError: there is no such module.
    """
    if ref.home.endswith(".py"):
        return Path(ref.home)
    with _importing(Path.cwd()):
        try:
            spec = importlib.util.find_spec(ref.home)
        except (Exception, SystemExit) as error:
            raise _failed(f"the module '{ref.home}' cannot be found", ref, error) from error
    if spec is None:
        raise DataError(f"there is no module '{ref.home}'", where=f"{ref.home}:{ref.function}")
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


@dataclass(frozen=True, kw_only=True)
class PythonSource:
    """What a callable yields; see `Source`. Each pass calls it again."""

    ref: PythonRef
    function: Callable[[], Any]
    folder: Path
    ignore: tuple[str, ...] = ()
    count: None = None
    names: None = None
    faults: tuple[tuple[str, Problem], ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    prepared: bool = False
    _given: list[object] = field(default_factory=list)

    def row_bytes(self) -> int:
        """Not known before a pass."""
        return 0

    def yielded(self) -> Iterator[Yielded]:
        """One pass: what the callable yields, without the arrays that the plan ignores.

        Raises:
            DataError: the callable raises, gives the same used-up iterator again, yields no dict of arrays, or other
                ones than in another pass.
        """
        count = 0
        for index, item in enumerate(self._items()):
            values = self._arrays(item, index)
            self._recognize(index, values)
            count = index + 1
            yield {name: array for name, array in values.items() if name not in self.ignore}
        self._recognize(count, None)

    def chunks(self, size: int, limit: int | None, *, whole: bool = False) -> Iterator[Chunk]:
        """One pass; a chunk is what the callable yields, cut after `limit` samples unless `whole`."""
        del size
        left = limit
        for values in self.yielded():
            if left is not None and left <= 0:
                return
            rows = rows_of(values)
            counted = 1 if rows is None else rows
            faults = [
                Problem(f"array '{name}' {fault.text}", fault.hint)
                for name, array in values.items()
                if (fault := unusable_dtype(array.dtype))
            ]
            if not whole and rows is None:
                listed = ", ".join(f"'{name}' {list(array.shape)}" for name, array in values.items())
                faults.append(Problem(f"the arrays yielded together differ on axis 0: {listed or 'no arrays'}"))
            if faults:
                yield Chunk(rows=max(counted, 1), values={}, faults=tuple(faults))
            elif whole:
                yield Chunk(rows=max(counted, 1), values=values)
            elif rows and left is not None and rows > left:
                yield Chunk(rows=left, values={name: array[:left] for name, array in values.items()})
            elif rows:
                yield Chunk(rows=rows, values=values)
            left = None if left is None else left - counted
            if left is not None and left <= 0:
                return

    def _items(self) -> Iterator[Any]:
        with _importing(self.folder):
            try:
                result = self.function()
                iterator = iter((result,) if isinstance(result, dict) else result)
            except (Exception, SystemExit) as error:
                if isinstance(error, TypeError) and _raised_here(error):
                    raise _wrong_call(self.ref, error) from error
                raise _failed("the data callable failed", self.ref, error) from error
        if result is iterator:
            if any(result is earlier for earlier in self._given):
                raise DataError(
                    "the data callable returned the same iterator again, which is used up",
                    where=_where(self.ref),
                    hint="make it a generator function, or return a new iterator at each call",
                )
            self._given[:] = [result]
        while True:
            with _importing(self.folder):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                except (Exception, SystemExit) as error:
                    raise _failed("the data callable failed", self.ref, error) from error
            yield item

    def _recognize(self, index: int, values: Yielded | None) -> None:
        if not _passes.setdefault(self.ref, _Passes()).same(index, values):
            raise DataError(
                "the data callable gives other samples each time it is called",
                where=f"{_where(self.ref)}, item {index}",
                why="data are read several times, and what models answer is compared sample by sample",
                hint="draw random numbers from a generator that the callable seeds, and do not shuffle",
            )

    def _arrays(self, item: Any, index: int) -> Yielded:
        if not isinstance(item, dict):
            raise DataError(
                f"the data callable yielded {_describe(item)} where a dict of arrays is expected",
                where=f"{_where(self.ref)}, item {index}",
                hint="yield {'input name': array, ...}, with labels under their name",
            )
        arrays: Yielded = {}
        for name, value in item.items():
            if not isinstance(name, str) or isinstance(value, str) or not hasattr(value, "__array__"):
                raise DataError(
                    f"the data callable yielded a dict with {name!r}: {_describe(value)}; an array is expected",
                    where=f"{_where(self.ref)}, item {index}",
                    hint="convert it with numpy.asarray",
                )
            try:
                arrays[name] = np.asarray(value)
            except Exception as error:
                raise DataError(
                    f"'{name}' from the data callable cannot become a numpy array",
                    where=f"{_where(self.ref)}, item {index}",
                    why=shorten(error),
                ) from error
        return arrays


def python_source(ref: PythonRef, ignore: tuple[str, ...] = ()) -> PythonSource:
    """Loads the module and finds the callable in it.

    Raises:
        DataError: the module does not load, or has no such callable.
    """
    if ref.home.endswith(".py"):
        module, folder = _load_file(ref), Path(ref.home).parent
    else:
        module, folder = _load_module(ref), Path.cwd()
    found: Any = module
    for part in ref.function.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(module).items() if callable(value)]
            raise DataError(f"{ref.home} has no '{ref.function}'{closest(ref.function, names)}", where=_where(ref))
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"'{ref.function}' is {_describe(found)}, not a callable", where=_where(ref))
    return PythonSource(ref=ref, function=found, folder=folder, ignore=ignore)


def _load_module(ref: PythonRef) -> ModuleType:
    with _importing(Path.cwd()):
        try:
            return importlib.import_module(ref.home)
        except (Exception, SystemExit) as error:
            raise _failed(f"the module '{ref.home}' cannot be imported", ref, error) from error


def _load_file(ref: PythonRef) -> ModuleType:
    # A name of its own cannot shadow anything; being in sys.modules is what dataclasses and pickle need.
    name = "_edge_exporter_data_" + hashlib.sha256(ref.home.encode()).hexdigest()[:16]
    with _importing(Path(ref.home).parent):
        try:
            spec = importlib.util.spec_from_file_location(name, ref.home)
            if spec is None or spec.loader is None:
                raise ImportError("no loader for this file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            sys.modules.pop(name, None)
            raise _failed("the file with the data callable cannot be loaded", ref, error) from error
    return module


@contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """The user's own folder on the path while the user's code runs, and no __pycache__ left in it."""
    entry, without_bytecode = str(folder), sys.dont_write_bytecode
    sys.path.insert(0, entry)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = without_bytecode
        if entry in sys.path:
            sys.path.remove(entry)


def _where(ref: PythonRef) -> str:
    return f"{ref.home}:{ref.function}"


def _describe(value: object) -> str:
    kind = type(value).__qualname__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    if isinstance(value, tuple | list):
        inner = ", ".join(type(item).__qualname__ for item in value[:4])
        return f"{article} {kind} of {len(value)} ({inner}{', ...' if len(value) > 4 else ''})"
    return "None" if value is None else f"{article} {kind}"


def _raised_here(error: BaseException) -> bool:
    """Whether the call itself failed, before any line of the user's code ran."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def _wrong_call(ref: PythonRef, error: BaseException) -> DataError:
    return DataError(
        "the data callable cannot be called without arguments, or returns nothing that can be iterated",
        where=_where(ref),
        why=shorten(error),
        hint="it takes no argument and returns an iterable of dicts of arrays",
    )


def _failed(what: str, ref: PythonRef, error: BaseException) -> DataError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    theirs = [frame for frame in frames if not frame.filename.startswith((ours, "<frozen"))]
    own = [frame for frame in theirs if not _is_installed(frame.filename)]
    last = (own or theirs)[-1:]
    where = f"{last[0].filename}:{last[0].lineno} ({_where(ref)})" if last else _where(ref)
    return DataError(what, where=where, why=shorten(f"{type(error).__name__}: {error}"))


def _is_installed(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith(sysconfig.get_paths()["stdlib"])
