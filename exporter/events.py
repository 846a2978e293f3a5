"""What the pipeline tells while it works; the console turns it into a screen, plain lines or JSON lines."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all events; `tag` makes the type a field of its JSON."""


class StepStarted(Event, frozen=True, kw_only=True):
    """A step begins; `total` counts its units of work where they are known."""

    step: str
    total: int | None = None


class StepProgress(Event, frozen=True, kw_only=True):
    """`done` units of a step are finished."""

    step: str
    done: int


class StepStage(Event, frozen=True, kw_only=True):
    """What a step does now, where that takes long and its units cannot be counted."""

    step: str
    stage: str


class StepFinished(Event, frozen=True, kw_only=True):
    """A step ended well; `cached` when its result was there already, and `key` its name in the store."""

    step: str
    cached: bool
    seconds: float
    detail: str = ""
    key: str = ""


class StepFailed(Event, frozen=True, kw_only=True):
    """A step ended with an error, which is reported on its own."""

    step: str


class Note(Event, frozen=True, kw_only=True):
    """Something that the user should know, and that stops nothing."""

    text: str


class Quiet(Event, frozen=True, kw_only=True):
    """Latency is measured from here until the step finishes: nothing may animate.

    `at_most` are the seconds that timed runs take at most, where that is known; loading comes on top.
    """

    step: str
    at_most: float | None = None


Emit = Callable[[Event], None]
