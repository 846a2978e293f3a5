"""A torch.export `.pt2` archive in, after checking that reading it cannot run code."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ModelError, shorten
from exporter.sources.program_scan import scan_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_MODEL = "model"


def load_program(path: Path, allow_pickle: bool = False) -> ExportedProgram:
    """Reads a program that `torch.export.save` wrote.

    torch unpickles some parts of such an archive, evaluates its symbolic expressions and generates code from its
    names. Unless `allow_pickle` is set, every such part is checked first to be plain data.

    Raises:
        ModelError: the archive is damaged, of another kind, or would run code.
    """
    if not path.is_file():
        raise ModelError("the model file does not exist", where=str(path))
    scan_program(path, allow_pickle=allow_pickle)
    # torch.export.load would hide the cause of a failure in a log, and go on to an older format.
    from torch.export.pt2_archive._package import load_pt2

    logs = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            programs = load_pt2(str(path)).exported_programs
    except Exception as error:
        raise ModelError(
            "torch cannot read the exported program",
            where=str(path),
            why=shorten(error) or type(error).__name__,
            hint="save it again with `torch.export.save` of the torch version installed here",
        ) from error
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    program: ExportedProgram = programs[_MODEL]
    # Source text of input checks, which torch would compile and run; inputs are checked against the plan instead.
    program._guards_code = []
    return program
