"""Files of arrays that steps hand to each other: `<group>/<name>` members of an npz, written one at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from exporter.artifacts import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

EPOCH = (1980, 1, 1, 0, 0, 0)
"""A fixed time for members, so that equal arrays make equal files."""


class AddArrays(Protocol):
    """Adds a group of arrays to an open file."""

    def __call__(self, group: str, arrays: Arrays) -> None:
        """Writes `<group>/<name>` for each array."""


@contextmanager
def writing_arrays(path: Path, *, compressed: bool = False) -> Iterator[AddArrays]:
    """Opens an npz for writing in constant memory; equal contents give equal bytes."""
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression=how, allowZip64=True) as archive:

        def add(group: str, arrays: Arrays) -> None:
            for name, values in arrays.items():
                info = zipfile.ZipInfo(f"{group}/{name}.npy", date_time=EPOCH)
                info.compress_type = how
                with archive.open(info, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(values), allow_pickle=False)

        yield add


def group_names(path: Path) -> list[str]:
    """Groups of a file whose groups have one level, sorted."""
    with np.load(path, allow_pickle=False) as archive:
        return sorted({name.split("/")[0] for name in archive.files})


def read_groups(path: Path, groups: list[str]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The arrays of each group in turn; one group is in memory at a time."""
    with np.load(path, allow_pickle=False) as archive:
        for group in groups:
            prefix = f"{group}/"
            yield {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def arrays_digest(groups: Mapping[str, Arrays]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    import hashlib

    parts = [
        [group, name, str(values.dtype), list(values.shape), hashlib.sha256(values.tobytes()).hexdigest()]
        for group, arrays in groups.items()
        for name, values in arrays.items()
    ]
    return digest_of(parts)
