"""What can go wrong in a way that the user can act on, and the exit code of each."""

from __future__ import annotations

import sys

OK, USAGE, BAD_INPUT, MISSING, BROKEN = 0, 2, 3, 4, 6


class Fault(Exception):
    """Something the user can act on: one message, maybe a hint, and the exit code."""

    def __init__(self, code: int, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def say(text: str) -> None:
    """Everything but results goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def brief(error: object) -> str:
    """A library's own words on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
