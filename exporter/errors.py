"""Every error that a user can cause or can act on, with its exit code.

A message answers what went wrong, where (file, key, stage, node, tensor) and why; the hint is the next
command to type or the next edit to make. Anything else that escapes is our bug and exits with 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends of other systems, what turns the direction of writing, and halves of characters."""


class ExporterError(Exception):
    """Base of all user-facing errors.

    Args:
        what: one sentence, the fault itself.
        where: the file, plan key, stage, node or tensor at fault.
        why: the reason, often a library's own words, already shortened.
        hint: what to do next.
    """

    exit_code = 5

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint

    def lines(self) -> list[str]:
        """The message as it is printed: the fault first, then where, why and hint, each on its line."""
        shown = [self.what]
        shown += [f"  where: {self.where}"] if self.where else []
        shown += [f"  why:   {self.why}"] if self.why else []
        shown += [f"  hint:  {self.hint}"] if self.hint else []
        return shown

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UsageError(ExporterError):
    """The command line itself is wrong."""

    exit_code = 2


class InputError(ExporterError):
    """The plan, the model it names, its data or the output folder cannot be used as given."""

    exit_code = 3


class PlanError(InputError):
    """One or more problems in a plan, shown together."""

    def __init__(self, problems: Sequence[str], *, where: str, hint: str | None = None) -> None:
        count = len(problems)
        what = f"the plan has {count} problem{'s' if count != 1 else ''}" + "".join(
            f"\n  - {problem}" for problem in problems
        )
        super().__init__(what, where=where, hint=hint)
        self.problems = tuple(problems)


class ModelError(InputError):
    """The trained model cannot be loaded: factory, weights, or file."""


class DataError(InputError):
    """Calibration or evaluation data do not fit the model, or are unusable."""


class OutputError(InputError):
    """The output folder or the store cannot be written."""


class MissingError(ExporterError):
    """A runtime, converter, package or device is missing; the hint names what brings it."""

    exit_code = 4


class StageError(ExporterError):
    """A stage failed inside a library."""

    exit_code = 5


class BundleError(ExporterError):
    """A bundle does not hold what it claims."""

    exit_code = 6


class GateError(ExporterError):
    """An accuracy gate was not met: nothing is published."""

    exit_code = 7


class RegressionError(GateError):
    """`compare` found a gate that was not met; its outcome was printed already."""


class PartialError(ExporterError):
    """With --keep-going: some targets were built and some failed."""

    exit_code = 8


def shorten(text: object, limit: int = 300) -> str:
    """First lines of a library's message on one line, at most `limit` characters."""
    joined = " ".join(str(text).split())
    return joined if len(joined) <= limit else joined[: limit - 1].rstrip() + "…"


def closest(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the most similar candidate, or an empty string."""
    import difflib

    match = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def printable(text: str, *, one_line: bool = False) -> str:
    """Text for a terminal: what would move its cursor, colour it or hide other text is shown as an escape sequence.

    Args:
        text: may hold names out of a model's file, in which anything can stand.
        one_line: whether line ends and tabs are shown so too.
    """
    shown = CONTROLS.sub(_escaped, text)
    return re.sub(r"[\t\n]", _escaped, shown) if one_line else shown


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
