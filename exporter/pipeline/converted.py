"""What a target's `convert` returned, checked before anything relies on it: the target can be anyone's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from exporter.errors import StageError
from exporter.tables import human_size
from exporter.target_api import SHARED, VariantFile

WORTH = 64_000
"""Bytes of a float file from which on a quantized one is expected to be smaller."""


def check_variants(target: str, made: object, folder: Path, *, whole: bool = True) -> None:
    """Checks that variants are told apart, float first, and that their files lie in the folder.

    Args:
        target: the target's name, for the message.
        made: what `convert` returned.
        folder: where it was to write.
        whole: all that the target makes, the float variant first; else one variant again.

    Raises:
        StageError: naming every fault.
    """
    if not (isinstance(made, tuple) and made and all(isinstance(variant, VariantFile) for variant in made)):
        problems = [f"it returned {made!r}, not a tuple of one VariantFile or more"]
    else:
        problems = [f"there are {count} variants called '{name}'" for name, count in _names(made) if count > 1]
        if whole and made[0].scheme is not None:
            problems.append(
                f"the first variant, '{made[0].name}', is quantized; others are compared with a float one"
            )
        for variant in made:
            path = PurePosixPath(variant.main)
            if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or path.parts[0] == SHARED:
                problems.append(f"'{variant.main}' of variant '{variant.name}' is not a file in a folder of its own")
            elif not (folder / path).is_file():
                problems.append(f"'{variant.main}' of variant '{variant.name}' was not written")
            if variant.stand_in is not None and not (folder / variant.stand_in).is_file():
                problems.append(
                    f"'{variant.stand_in}', which stands in for variant '{variant.name}', was not written"
                )
    if problems:
        raise StageError(
            f"{target}: what convert made is not what a bundle holds",
            where=f"target {target}",
            why="; ".join(problems),
            hint="update the package that brings this target",
        )


def larger_notes(folder: Path, variants: Sequence[VariantFile]) -> tuple[str, ...]:
    """Which files are larger than the float one, where that is large enough for a format's own bytes not to count."""
    first, *others = variants
    sizes = {one.name: sum(path.stat().st_size for path in (folder / one.main).parent.iterdir()) for one in variants}
    base = sizes[first.name]
    return tuple(
        f"{one.name} is larger than {first.name}: {human_size(sizes[one.name])} against {human_size(base)}"
        for one in others
        if base >= WORTH and sizes[one.name] > base
    )


def _names(made: tuple[VariantFile, ...]) -> list[tuple[str, int]]:
    return list(Counter(variant.name for variant in made).items())
